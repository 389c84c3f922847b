"""All stages on a tiny data set, with fixed seeds: every loss and every result is what it was.

A change that is meant to change numbers writes them again and says why in its commit:

    python tests/test_golden.py
"""

import csv
import json
import math
import os
import sys
import tempfile
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from ups.pipeline import run
from ups.run import CONF

GOLDEN = Path(__file__).with_name("golden.json")
# Other processors and thread counts round differently: noise of 1e-6 on every field that is encoded
# moves these numbers by up to 3e-5. The mistakes that this is for are larger than the tolerance.
TOLERANCE = 2e-3
NETWORK = "{hidden_dim:16,depth:1,mlp_ratio:1.0,dilations:[1]}"
SETTINGS = [
    *(
        "stage=all",
        "name=golden",
        "preflight=false",
        "model=mixer_tiny",
        "model.num_tokens=16",
        "model.hidden_dim=16",
    ),
    *(
        "data.nu=[0.002,0.01]",
        "data.num_points=64",
        "data.reference_num_points=128",
        "data.num_frames=9",
    ),
    *("data.num_train=12", "data.num_validation=3", "data.num_test=4", "data.eval_batch_size=3"),
    *("data.samples_per_trajectory=4", "data.batch_size=8", "trainer.accumulate_grad_batches=2"),
    *("trainer.max_epochs=3", "trainer.log_every_n_steps=1", "loss.lambda_inv_dec=0.5"),
    *("loss.inverse_loss_frequency=2", "callbacks.ema.decay=0.8"),
    *(
        f"stage.diffusion.module.corrector.{part}={NETWORK}"
        for part in ("mean_network", "denoiser")
    ),
    *("stage.diffusion.module.corrector.num_steps=3", "stage.diffusion.trainer.max_epochs=2"),
    *("stage.consistency.trainer.max_epochs=2", "ttc.num_candidates=3"),
    *(
        f"stage.{stage}.module.num_cpu_shards=1"
        for stage in ("operator", "diffusion", "consistency")
    ),
]
# times, and shares of points: these jump if rounding moves a draw past the truth
NOT_PINNED = {"seconds_per_trajectory", "rank_histogram", "coverage_90"}


def series(folder):
    """Each logged series of the run in ``folder``, in the order of its steps."""
    found = {}
    for path in sorted(folder.glob("logs/version_*/metrics.csv")):
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                for key, value in line.items():
                    if value and key not in ("step", "epoch") and not key.startswith("test/"):
                        found.setdefault(key, []).append(float(value))
    return found


def rows(folder):
    """The numbers of both evaluations, row by row."""
    found = {}
    for path in sorted(folder.glob("reports/eval_*.json")):
        for row in json.loads(path.read_text())["rows"]:
            name = [path.stem, row["model"], row["mode"], row["correct"], f"ttc {row['ttc']}"]
            numbers = {k: v for k, v in row.items() if isinstance(v, float | list)}
            found[", ".join(name)] = {k: v for k, v in numbers.items() if k not in NOT_PINNED}
    return found


def measure(folder):
    """Run all stages in ``folder`` and collect what there is to pin."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose("config", SETTINGS)
        score = run(cfg)
    finally:
        GlobalHydra.instance().clear()
        os.chdir(before)
    outputs = Path(folder) / "outputs/golden"
    return {"score": score, "series": series(outputs), "rows": rows(outputs)}


def differences(old, new, where=""):
    """Where ``new`` is not ``old`` within the tolerance: one line each."""
    if isinstance(old, dict):
        keys = sorted(old.keys() | new.keys())
        missing = [
            f"{where}{key}: only on one side" for key in keys if not (key in old and key in new)
        ]
        both = [key for key in keys if key in old and key in new]
        return missing + [
            line for k in both for line in differences(old[k], new[k], f"{where}{k}: ")
        ]
    if isinstance(old, list):
        if len(old) != len(new):
            return [f"{where}{len(old)} values -> {len(new)}"]
        pairs = zip(old, new, strict=True)
        return [
            line for i, (a, b) in enumerate(pairs) for line in differences(a, b, f"{where}{i}: ")
        ]
    # what is zero to rounding, the drift of a conserved mean say, has no digits to compare
    if math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=1e-6):
        return []
    return [f"{where}{old} -> {new}"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("part", ["score", "series", "rows"])
def test_tiny_run_of_all_stages_gives_the_recorded_numbers(measured, part):
    golden = json.loads(GOLDEN.read_text())
    assert not differences(golden[part], measured[part])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text(json.dumps(measure(scratch), indent=1) + "\n")
    print("written:", GOLDEN, file=sys.stderr)
