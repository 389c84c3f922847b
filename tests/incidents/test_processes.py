"""Two processes train as one does with the same global batch; what is written is written once."""

import csv
import json
import os
import re

import pytest
import torch
from conftest import NUM_BASELINES, TINY
from helpers.commands import run_python

import ups

pytestmark = pytest.mark.integration  # starts processes, or whole runs

pytestmark = pytest.mark.slow
ARGS = [
    *TINY, "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "callbacks.ema.decay=0.9",
    "loss.inverse_loss_frequency=2", "stage.operator.module.num_cpu_shards=1",
]  # fmt: skip
CORRECTOR = [
    f"stage.diffusion.module.corrector.{part}={{hidden_dim:16,depth:2,mlp_ratio:1.0,dilations:[1]}}"
    for part in ("mean_network", "denoiser")
]


def run(folder, name, devices, *args):
    words = [*ARGS, f"name={name}", f"trainer.devices={devices}", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = run_python("-m", "ups.run", *words, cwd=folder, env=environment, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    return (
        folder,
        run(folder, "one", 1, "data.batch_size=8", "preflight=true"),
        run(folder, "two", 2, "data.batch_size=4", "preflight=true"),
    )


def test_processes_have_the_losses_of_one_process_at_every_step(both):
    folder, one, two = both
    lines = [re.findall(r"Epoch .*nRMSE \S+", text) for text in (one, two)]
    assert lines[0] == lines[1] != []
    curves = []
    for name in ("one", "two"):
        (path,) = (folder / f"outputs/{name}/logs").rglob("metrics.csv")
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["training/operator/loss"]]
        curves.append(
            torch.tensor(
                [
                    [
                        float(row[f"training/operator/{name}"] or 0)
                        for name in ("loss", "L_forward", "L_inv_enc")
                    ]
                    for row in rows
                ]
            )
        )
    assert len(curves[0]) == 36
    assert torch.allclose(*curves, rtol=1e-4)


@pytest.mark.parametrize("suffix", ["", "_ema"])
def test_processes_have_the_weights_of_one_process(both, suffix):
    states = [
        ups.load(both[0] / f"outputs/{name}/checkpoints/operator{suffix}.ckpt").state_dict()
        for name in ("one", "two")
    ]
    assert all(torch.allclose(states[0][key], states[1][key], atol=1e-4) for key in states[0])


def test_processes_write_rows_lines_and_preflight_once(both):
    folder, one, two = both
    with (folder / "outputs/leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    baselines = ["baseline"] * NUM_BASELINES
    assert [row["name"] for row in rows] == ["one", "one", *baselines, "two", "two"]
    assert float(rows[0]["nrmse"]) == pytest.approx(float(rows[-2]["nrmse"]), rel=1e-3)
    for text in (one, two, (folder / "outputs/two/run.log").read_text()):
        assert text.count("parameters to train") == 1
        assert text.count("Epoch 1/3") == 1
    assert one.count("preflight: every stage") == two.count("preflight: every stage") == 1
    assert json.loads((folder / "outputs/two/provenance.json").read_text())["data_hash"]


def test_all_stages_train_in_two_processes(tmp_path):
    run(
        tmp_path,
        "all",
        2,
        "stage=all",
        "data.batch_size=4",
        "trainer.max_epochs=1",
        "ttc.num_candidates=2",
        *CORRECTOR,
    )
    assert set(ups.load(tmp_path / "outputs/all").correctors) == {"diffusion", "consistency"}
    reports = tmp_path / "outputs/all/reports"
    assert (reports / "eval_baseline.json").exists()
    assert (reports / "eval_ttc.json").exists()
