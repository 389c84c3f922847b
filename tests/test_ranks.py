"""A process that trains alone is the first one, whatever a launcher left in the environment."""

import pytest
from conftest import TINY
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
        {"RANK": "1"},
        {"LOCAL_RANK": "1", "WORLD_SIZE": "2"},
        {"SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
        {"JSM_NAMESPACE_RANK": "1"},
    ],
)
def test_a_run_of_one_device_is_whole_under_any_rank(ups_run, tmp_path, monkeypatch, variables):
    """Started in a shell of a launcher's second process, say."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = ups_run(
        "stage=operator", "name=one", *TINY, "trainer.strategy=ddp", "callbacks.on_finish=touch end"
    )
    assert "report: " in done.stdout + done.stderr
    folder = tmp_path / "outputs/one"
    assert (folder / "reports/report.html").exists()
    assert (folder / "checkpoints/operator_ema.ckpt").exists()
    assert (tmp_path / "outputs/leaderboard.csv").exists()
    assert (tmp_path / "end").exists()
