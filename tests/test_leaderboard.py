"""The results of a run: rows, their labels, evaluation files, and the page over all runs."""

import json
import re

import pytest

from ups.callbacks import LeaderboardWriter
from ups.core.errors import UpsError
from ups.evaluation import leaderboard
from ups.evaluation.results import Evaluation, Row, merge_evaluations, read_evaluations

WEIGHTS = {"operator_ema.ckpt": "aa"}


def make_row(model="mine", mode="latent", correct="none", ttc=False, **metrics):
    return Row(model, mode, correct, ttc, metrics)


def make_evaluation(*rows, time="1", evaluated=WEIGHTS, **dataset):
    origin = {"time": time, "evaluated": {**evaluated, "settings": "s"}}
    return Evaluation({"hash": "x", **dataset}, rows, origin)


@pytest.mark.parametrize(
    ("row", "label", "series", "is_baseline"),
    [
        (make_row(), "mine, latent", "latent", False),
        (make_row(mode="physical"), "mine, physical", "physical", False),
        (make_row(ttc=True), "mine + ttc, latent", "ttc_latent", False),
        (make_row(correct="diffusion"), "mine + diffusion, latent", "diffusion_latent", False),
        (
            make_row(correct="diffusion", ttc=True),
            "mine + diffusion + ttc, latent",
            "ttc_diffusion_latent",
            False,
        ),
        (make_row("persistence", "physical"), "persistence", "physical", True),
        (make_row("solver-64", "physical"), "solver-64", "physical", True),
        (make_row("resolver", "physical"), "resolver, physical", "physical", False),
    ],
)
def test_row_has_one_label_and_one_series(row, label, series, is_baseline):
    assert (row.label, row.series, row.is_baseline) == (label, series, is_baseline)


def test_row_keeps_the_keys_of_an_evaluation_file_in_order():
    values = {"model": "mine", "mode": "latent", "correct": "none", "ttc": False, "nrmse": 0.5}
    values |= {"one_step_nrmse": 0.25, "nrmse_over_time": [0.1, 0.9]}
    row = Row.from_dict(values)
    assert json.dumps(row.to_dict()) == json.dumps(values)
    assert row == values
    assert row["nrmse"] == 0.5
    with pytest.raises(KeyError):
        Row.from_dict({"model": "mine"})


def test_evaluation_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "reports/eval_operator.json"
    made = make_evaluation(make_row(nrmse=0.1 + 0.2), make_row("persistence", nrmse=1.0))
    made.write(path)
    assert list(json.loads(path.read_text())) == ["dataset", "rows", "provenance"]
    found = Evaluation.read(path)
    assert (found.dataset, found.provenance) == (made.dataset, made.provenance)
    assert [row.to_dict() for row in found.rows] == [row.to_dict() for row in made.rows]
    path.write_text('{"dataset": {}, "rows": [{"model": "mine"}]}')
    with pytest.raises(UpsError, match=r"eval_operator\.json is damaged.*'mode'"):
        Evaluation.read(path)


def test_fresh_evaluations_are_those_of_the_newest_ones_weights(tmp_path):
    both = {**WEIGHTS, "diffusion_residual_ema.ckpt": "bb"}
    for name, time, evaluated in (
        ("baseline", "3", both),
        ("ttc", "2", both),
        ("operator", "1", WEIGHTS),
        ("diffusion", "0", {**both, "operator_ema.ckpt": "old"}),
    ):
        made = make_evaluation(make_row(nrmse=0.5), time=time, evaluated=evaluated)
        made.write(tmp_path / f"reports/eval_{name}.json")
    assert [path.stem for path in read_evaluations(tmp_path)] == ["eval_ttc", "eval_baseline"]
    assert [path.stem for path in read_evaluations(tmp_path, WEIGHTS)] == ["eval_operator"]
    settings = {**both, "settings": "s"}
    assert len(read_evaluations(tmp_path, settings)) == 2
    assert not read_evaluations(tmp_path, {**settings, "settings": "other"})
    assert not read_evaluations(tmp_path / "nothing")


def test_merged_evaluations_hold_each_setting_once_on_the_newest_test_set():
    older = make_evaluation(make_row(nrmse=1.0), make_row("persistence", nrmse=2.0))
    elsewhere = make_evaluation(make_row(ttc=True, nrmse=3.0), hash="y")
    newer = make_evaluation(make_row(mode="physical", nrmse=4.0), make_row(nrmse=5.0), time="2")
    merged = merge_evaluations([older, elsewhere, newer])
    assert [(row.label, row["nrmse"]) for row in merged.rows] == [
        ("mine, latent", 5.0),
        ("persistence", 2.0),
        ("mine, physical", 4.0),
    ]
    assert (merged.dataset, merged.provenance) == (newer.dataset, newer.provenance)


def test_leaderboard_that_does_not_exist_has_no_rows(tmp_path):
    assert leaderboard.read(tmp_path / "none.csv") == []


def test_leaderboard_page_holds_every_row_and_loads_nothing(tmp_path):
    for name, time in (("</script><b>a".replace("/", ""), "1"), ("b", "2")):
        made = make_evaluation(make_row("</script><b>", nrmse=0.5), time=time)
        made.write(tmp_path / name / "reports/eval_operator.json")
    LeaderboardWriter(str(tmp_path)).write()
    page = (tmp_path / "leaderboard.html").read_text()
    rows = page.split('<script id="rows" type="application/json">')[1].split("</script>")[0]
    assert [row["name"] for row in json.loads(rows)] == ["<script><b>a", "b"]
    assert [row["label"] for row in json.loads(rows)] == ["</script><b>, latent"] * 2
    assert "<b>" not in page
    assert not re.search(r"(src|href)=|@import|url\(", page)
