"""The benchmark of error against cost, in small."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY

import ups

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return pytest.importorskip("pareto")


@pytest.mark.integration
def test_runs_whose_folder_is_gone_keep_their_errors(bench, ups_run, tmp_path, monkeypatch):
    for seed in (0, 1):
        short = ["trainer.max_epochs=1", "stage.evaluate=[]", f"seed={seed}", f"name=tiny-{seed}"]
        ups_run("stage=operator", *TINY, *short)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runs.RESULTS", tmp_path)
    monkeypatch.setattr(ups.Simulator, "compile", lambda sim: None)  # which takes half a minute
    small = bench.CASES["burgers"]._replace(points=(16, 32), cfls=(0.8,), first=2, at_once=4)
    monkeypatch.setitem(bench.CASES, "burgers", small)
    runs = [Path("outputs/tiny-0"), Path("outputs/tiny-1")]

    def model_row():
        bench.main(runs)
        rows = json.loads((tmp_path / "pareto.json").read_text())["rows"]
        eager, compiled = (row for row in rows if "runs" in row)
        assert compiled["name"] == f"{eager['name']}, compiled"
        assert compiled["errors"] == eager["errors"]
        return eager

    before = model_row()
    assert before["errors"]["seeds"][0] != before["errors"]["seeds"][1]
    shutil.rmtree(runs[0])
    after = model_row()
    assert after["errors"] == before["errors"]
    assert (before["run"], after["run"]) == tuple(map(str, runs))
    assert after["rollout_nrmse"] > 0
    assert set(after["seconds_on_one_core"]) == set(after["seconds"]) == {"1", "4"}
    shutil.rmtree(runs[1])
    with pytest.raises(SystemExit, match="none of these runs is there"):
        bench.main(runs)


def test_training_time_is_summed_over_the_parts_of_a_run(bench, tmp_path):
    (tmp_path / "run.log").write_text(
        """\
2026-11-28 09:20:00 operator: 180640 parameters to train, 8 windows a step, data d.hdf5
2026-11-28 09:21:30 operator  Epoch 1/3  loss: 1.70469
a line of a traceback
2026-11-28 23:59:00 operator: 180640 parameters to train, 8 windows a step, data d.hdf5
2026-11-29 00:00:00 operator  Epoch 2/3  loss: 0.09894
2026-11-29 00:00:20 operator  Epoch 3/3  loss: 0.08142
2026-11-29 00:04:00 testing outputs/run: 200 trajectories
2026-11-29 00:05:00 diffusion: 180640 parameters to train, 8 windows a step, data d.hdf5
2026-11-29 00:05:07 diffusion  Epoch 1/1  loss: 0.5
"""
    )
    assert bench.training_seconds(tmp_path) == 90 + 80 + 7
