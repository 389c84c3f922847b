"""A process that trains alone is the first one, whatever a launcher left in the environment."""

import os

import pytest
from conftest import TINY
from helpers.commands import run_python
from lightning.pytorch.utilities import rank_zero_only

from ups.runs.distributed import SingleProcess, ignore_foreign_rank, is_first_process
from ups.runs.launchers import RANK_VARIABLES, has_foreign_rank, trains_alone


@pytest.mark.parametrize(
    ("changes", "alone"),
    [
        ({}, True),
        ({"devices": 2}, False),
        ({"devices": "2"}, False),
        ({"num_nodes": 2}, False),
        ({"devices": "1"}, True),
        ({"devices": [3]}, True),
        ({"devices": [0, 1]}, False),
        ({"devices": "3,"}, True),
        ({"devices": "0,1"}, False),
        ({"devices": "auto", "accelerator": "cpu"}, True),
    ],
)
def test_one_device_on_one_node_trains_alone(changes, alone):
    trainer = {"devices": 1, "num_nodes": 1, "accelerator": "auto", **changes}
    assert trains_alone(trainer) == alone


@pytest.mark.parametrize("name", RANK_VARIABLES)
def test_a_rank_of_another_launcher_does_not_count(name, monkeypatch):
    for other in RANK_VARIABLES:
        monkeypatch.delenv(other, raising=False)
    assert not has_foreign_rank()
    monkeypatch.setenv(name, "0")
    assert not has_foreign_rank()
    monkeypatch.setenv(name, "3")
    assert has_foreign_rank()
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    ignore_foreign_rank({"devices": 2, "num_nodes": 1, "accelerator": "cpu"})
    assert not is_first_process()
    ignore_foreign_rank({"devices": 1, "num_nodes": 1, "accelerator": "cpu"})
    assert is_first_process()
    alone = SingleProcess()
    assert (alone.local_rank(), alone.node_rank(), alone.global_rank()) == (0, 0, 0)
    assert not alone.creates_processes_externally


@pytest.mark.integration
@pytest.mark.parametrize(
    "variables",
    [
        {"LOCAL_RANK": "1", "WORLD_SIZE": "2"},
        {"SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
        *(
            pytest.param({name: "1"}, marks=pytest.mark.slow)
            for name in ("RANK", "JSM_NAMESPACE_RANK")
        ),
    ],
)
def test_a_run_of_one_device_is_whole_under_any_rank(tmp_path, variables):
    """Started in a shell of a launcher's second process, say. Lightning reads it at its import."""
    words = ["trainer.max_epochs=1", "trainer.strategy=ddp", "callbacks.on_finish=touch end"]
    done = run_python(
        *("-m", "ups.run", "stage=operator", "name=one", *TINY, *words),
        cwd=tmp_path,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report: " in done.stdout + done.stderr
    folder = tmp_path / "outputs/one"
    assert (folder / "reports/report.html").exists()
    assert (folder / "checkpoints/operator_ema.ckpt").exists()
    assert (tmp_path / "outputs/leaderboard.csv").exists()
    assert (tmp_path / "end").exists()
