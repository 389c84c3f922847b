"""Row 15: parallel jobs write one leaderboard."""

import csv
import json
from concurrent.futures import ProcessPoolExecutor

import pytest
from conftest import NUM_BASELINES, TINY
from helpers.commands import call

from ups.evaluation import leaderboard
from ups.evaluation.results import Evaluation, Row

pytestmark = pytest.mark.integration  # starts processes, or whole runs

RUN = ["ups.run", *TINY, "trainer.max_epochs=1", "name=one"]
DYING = """
import os, signal
import lightning.pytorch as pl

class Dying(pl.Callback):
    def __init__(self, output_dir):
        pass

    def on_test_end(self, trainer, pl_module):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def _write(task):
    """Test twenty runs, as jobs of a sweep do: its own evaluation file, and then the table."""
    folder, worker = task
    row = Row('m,"quoted"', "latent", "none", False, {"nrmse": 0.1})
    for i in range(20):
        evaluation = Evaluation({"hash": "x"}, [row], {"time": f"{worker}-{i}"})
        evaluation.write(folder / f"{worker}-{i}/reports/eval_operator.json")
        leaderboard.write(folder)


def test_leaderboard_holds_all_rows_of_eight_writers(tmp_path):
    with ProcessPoolExecutor(8) as pool:
        list(pool.map(_write, [(tmp_path, worker) for worker in range(8)]))
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 160
    assert {row["name"] for row in rows} == {
        f"{worker}-{i}" for worker in range(8) for i in range(20)
    }
    assert all(row["model"] == 'm,"quoted"' and float(row["nrmse"]) == 0.1 for row in rows)
    page = (tmp_path / "leaderboard.html").read_text()
    data = page.split('<script id="rows" type="application/json">')[1].split("</script>")[0]
    assert len(json.loads(data)) == 160


def test_leaderboard_gets_a_run_that_was_killed_before_by_the_same_command(tmp_path):
    (tmp_path / "dying.py").write_text(DYING)
    done = call(*RUN, "callbacks.leaderboard._target_=dying.Dying", cwd=tmp_path)
    assert done.returncode == -9, done.stdout + done.stderr
    run = tmp_path / "outputs/one"
    for name in ("report.html", "eval_operator.png", "eval_operator.json"):
        assert (run / "reports" / name).exists()
    assert not (tmp_path / "outputs/leaderboard.csv").exists()
    done = call(*RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished already" in done.stdout
    rows = leaderboard.read(tmp_path / "outputs/leaderboard.csv")
    assert [row["name"] for row in rows] == ["one", "one", *["baseline"] * NUM_BASELINES]


@pytest.mark.slow
def test_run_writes_no_leaderboard_when_its_callback_is_off(tmp_path):
    for _ in range(2):
        done = call(*RUN, "callbacks.leaderboard=null", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not list((tmp_path / "outputs").glob("leaderboard*"))
    assert (tmp_path / "outputs/one/reports/eval_operator.json").exists()
    # it is in the table of the next run that writes one
    done = call(*RUN, "name=two", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = leaderboard.read(tmp_path / "outputs/leaderboard.csv")
    assert {row["name"] for row in rows} == {"one", "two", "baseline"}
