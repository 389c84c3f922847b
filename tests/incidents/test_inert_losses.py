"""Row 2: inverse losses that would do nothing stop the run. Row 11: validation picks the weights.

Row 14: NaN stops at its step.
"""

import pytest
from conftest import TINY
from helpers.commands import call

pytestmark = pytest.mark.integration  # starts processes, or whole runs

MINE = """
import torch
from ups.models import MixerUPT

class FrozenEncoder(MixerUPT):
    def encode(self, u):
        return super().encode(u).detach()

class FrozenDecoder(MixerUPT):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.patches_out.requires_grad_(False)
        self.decoder.requires_grad_(False)

class Breaks(MixerUPT):
    calls = 0
    def step(self, z, dt, nu):
        Breaks.calls += self.training
        return super().step(z, dt, nu) * (float("nan") if Breaks.calls > 66 else 1)
"""


def run(folder, architecture, *args):
    (folder / "mine.py").write_text(MINE)
    architecture = f"model.architecture=mine.{architecture}"
    return call("ups.run", *TINY, architecture, "name=one", *args, cwd=folder)


@pytest.mark.parametrize(
    ("architecture", "part", "preflight"),
    [
        ("FrozenEncoder", "encoder", "false"),
        ("FrozenDecoder", "decoder", "false"),
        ("FrozenEncoder", "encoder", "true"),
        pytest.param("FrozenDecoder", "decoder", "true", marks=pytest.mark.slow),
    ],
)
def test_run_stops_when_an_inverse_loss_has_no_gradient(tmp_path, architecture, part, preflight):
    done = run(tmp_path, architecture, f"preflight={preflight}", "loss.inverse_loss_frequency=3")
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"the {part} gets no gradient from it" in done.stdout
    assert "Epoch" not in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_run_stops_with_a_finite_checkpoint_when_a_loss_becomes_nan(tmp_path):
    import torch

    done = run(
        tmp_path,
        "Breaks",
        "stage.operator.module.num_cpu_shards=1",
        "callbacks.last.every_n_train_steps=6",
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "step 20: L_forward is not finite (trajectories " in done.stdout
    kept = torch.load(tmp_path / "outputs/one/checkpoints/operator-last.ckpt", weights_only=True)
    assert all(bool(value.isfinite().all()) for value in kept["state_dict"].values())
    assert kept["global_step"] == 18


def test_best_weights_are_those_of_the_lowest_validation_error(tmp_path):
    """Of trajectories that training never saw, whatever the training loss does after that."""
    import re

    import ups

    wild = ["stage.operator.module.lr=0.03", "stage.operator.module.min_lr_ratio=1"]
    done = call("ups.run", *TINY, "trainer.max_epochs=8", *wild, "name=one", cwd=tmp_path)
    scores = [float(found) for found in re.findall(r"validation nRMSE (\S+)", done.stdout)]
    best = ups.simulation.checkpoint.read_checkpoint(
        tmp_path / "outputs/one/checkpoints/operator_ema.ckpt"
    )
    assert best["validation_nrmse"] == pytest.approx(min(scores), abs=1e-4)
    assert best["epoch"] == scores.index(min(scores))
