"""The report, the tables, the pictures and the card: the right number in the right place."""

import base64
import contextlib
import csv
import dataclasses
import html
import io
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import SPEC, make_simulator
from helpers.pictures import drawn as runs_draw
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from rich.console import Console

import ups.evaluation.report.plots
import ups.hub.model_card
import ups.runs.reports
from ups.callbacks import LeaderboardWriter
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.core.io import sha256
from ups.evaluation.examples import Example
from ups.evaluation.leaderboard import flat_rows
from ups.evaluation.report.html import RunResults, write_comparison, write_run
from ups.evaluation.report.plots import draw_rollout
from ups.evaluation.report.table import print_table
from ups.evaluation.results import (
    Evaluation,
    Row,
    divergence_in_words,
    no_gain_in_words,
    times_in_words,
)
from ups.hub.model_card import render_model_card
from ups.models import build
from ups.runs.reports import finished_results, report_paths, write_reports
from ups.runs.settings import is_bookkeeping_key
from ups.simulation.simulator import Simulator

DT, LENGTH = 0.05, 2.5
NUMBERS = (
    *("rmse", "nrmse", "crmse", "brmse", "max_error", "one_step_nrmse", "one_step_squared"),
    *(
        "mass_drift",
        "boundary_jump_error",
        "maximum_principle_violation",
        "tv_growth",
        "energy_growth",
    ),
    "correlation_time",
)
SETTINGS = [  # a baseline among the run's own rows, to see that it moves
    ("mine", "latent", "none", False),
    ("persistence", "physical", "none", False),
    ("mine", "physical", "none", False),
    ("mine", "latent", "diffusion", False),
    ("mine", "latent", "none", True),
    ("mine", "latent", "diffusion", True),
    ("solver-64", "physical", "none", False),
    ("solver-128", "physical", "none", False),
]
LABELS = [
    *("mine, latent", "persistence", "mine, physical", "mine + diffusion, latent"),
    *("mine + ttc, latent", "mine + diffusion + ttc, latent", "solver-64", "solver-128"),
]
SORTED = [*LABELS[:1], *LABELS[2:6], "persistence", "solver-64", "solver-128"]
DATASET = {
    "name": "burgers-nu0.001",
    "hash": "abcdef012345",
    "split": "test",
    "trajectories": 17,
    "points": 32,
    "frames": 5,
    "nu": 0.001,
}
ORIGIN = {
    "time": "2026-01-02T03:04:05+00:00",
    "command": "run.py model=mixer_tiny name=mine_run seed=3 data.num_workers=2",
    "commit": "0123456789abcdef",
    "dirty": False,
    "config_hash": "c0ffee",
    "data_hash": "abcdef012345",
    "evaluated": {"settings": "feed"},
    "seed": 3,
    "versions": {"python": "3.11", "torch": "2.9.1"},
    "hardware": "7 x Abacus",
}


def number(place, key):
    """A value that no other row and key has."""
    return round(0.1 * (place + 1) + 0.003 * (NUMBERS.index(key) + 1), 6)


def make_rows():
    rows = []
    for place, (model, mode, correct, ttc) in enumerate(SETTINGS):
        row = {"model": model, "mode": mode, "correct": correct, "ttc": ttc}
        row |= {key: number(place, key) for key in NUMBERS}
        row["seconds_per_trajectory"] = 0.0012345 * (place + 1)
        row["nrmse_over_time"] = [0.01 * (place + 1) + 0.1 * k for k in range(1, 5)]
        rows.append(row)
    return rows


def make_examples():
    """Three (truth, prediction) of 4 frames, 6 points and one channel."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, size in (("best", 0.1), ("median", 0.5), ("worst", 2.0)):
        truth = torch.randn(4, 6, 1, generator=generator)
        found[name] = Example(truth, truth + size * torch.randn(4, 6, 1, generator=generator))
    return found


def make_tested():
    truth = torch.tensor([9.0, 3.0, 0.5, 0.25])
    rows = [Row.from_dict(row) for row in make_rows()]
    return SimpleNamespace(rows=rows, examples=make_examples(), spectra=(truth, truth**2))


def make_config(folder, stage="all", ttc=True):
    return OmegaConf.create(
        {
            "name": "mine_run",
            "output_dir": str(folder),
            "seed": 3,
            "stage": {"name": stage},
            "model": {"name": "mine", "hidden_dim": 16},
            "ttc": {"enabled": ttc},
            "data": {"_target_": "ups.Data", "nu": 0.001, "path": None, "num_workers": 2},
        }
    )


FIELD = FieldSpec(Grid((6,), (LENGTH,)), dt=DT)
DATA = SimpleNamespace(dataset=DATASET, spec=FIELD)


def write_page(module, spec, folder, **about):
    """The path of the page of a test, in a run's folder.

    Args:
        module: the module that has tested.
        spec: describes the field.
        folder: the run's folder.
        about: what is special in the data set.
    """
    data = SimpleNamespace(dataset={**DATASET, **about}, spec=spec)
    with pytest.MonkeyPatch.context() as monkeypatch, runs_draw():
        monkeypatch.setattr(ups.runs.reports, "write_provenance", lambda *arguments: ORIGIN)
        write_reports(make_config(folder.parent), module, data, folder)
    return folder / "reports/report.html"


def caught(monkeypatch):
    """Figures that are saved, in order; each file holds its figure's place in this list."""
    saved = []

    def savefig(figure, out, format=None, **_):
        mark = f"<?xml?><svg id='{len(saved)}'></svg>" if format == "svg" else f"png {len(saved)}"
        saved.append(figure)
        if hasattr(out, "write"):
            out.write(mark if format == "svg" else mark.encode())
        else:
            out.write_text(mark)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


@pytest.fixture
def figures(monkeypatch):
    return caught(monkeypatch)


def tables(text):
    """The tables of a page by title: headings, and (marked as baseline, cells) of each row."""
    found = {}
    for part in text.split("<h2>")[1:]:
        heads = [html.unescape(head) for head in re.findall(r"<th>(.*?)</th>", part)]
        rows = [
            (mark != "", [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", cells)])
            for mark, cells in re.findall(r'<tr( class="baseline")?>(<td>.*?)</tr>', part)
        ]
        if heads:
            found[part[: part.index("</h2>")]] = heads, rows
    return found


def columns(table):
    """{heading: {row's label: cell}}"""
    heads, rows = table
    return {
        head: {cells[0]: cells[place] for _, cells in rows}
        for place, head in enumerate(heads)
        if place
    }


def curves(text, figures):
    """The axes of each curve by its caption."""
    pattern = r"<figure><svg(?: [^>]*)? id='(\d+)'></svg><figcaption>(.*?)</figcaption>"
    found = re.findall(pattern, text)
    return {caption: figures[int(place)].axes[0] for place, caption in found}


def pictures(text, figures, kind="png"):
    """(caption, description, figure) of each picture, in the page's order."""
    image = rf'<img src="data:image/{kind};base64,(.*?)" alt="(.*?)">'
    pattern = f"{image}<figcaption>(.*?)</figcaption>"
    return [
        (caption, words, figures[int(base64.b64decode(code).split()[1])])
        for code, words, caption in re.findall(pattern, text)
    ]


def lines_of(axis):
    return {
        line.get_label(): (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))
        for line in axis.lines
    }


def write_logs(folder):
    """The csv logger's files of a run that went on twice: the tenth version is the newest."""
    logs = {
        0: "step,training/operator/loss,training/operator/L_forward,validation/operator/nrmse,"
        "validation/operator/other\n9,0.9,0.8,,\n19,0.7,0.6,,\n19,,,0.44,0.33\n",
        2: "step,training/operator/loss,epoch\n19,0.65,1\n29,0.5,2\n",
        10: "step,training/operator/loss,training/diffusion/loss\n29,0.45,\n5,,1.5\n2,,2.5\n",
    }
    for version, text in logs.items():
        path = folder / f"logs/version_{version}/metrics.csv"
        path.parent.mkdir(parents=True)
        path.write_text(text)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A run's page, from numbers made by hand: its text and its figures."""
    folder = tmp_path_factory.mktemp("page")
    write_logs(folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        saved = caught(monkeypatch)
        path = write_run(make_config(folder), make_tested(), DATA, folder, ORIGIN)
    assert path == folder / "reports/report.html"
    return SimpleNamespace(text=path.read_text(), figures=saved)


# --- the page's words and tables ---


def test_report_page_says_what_was_tested(page):
    first, second = re.findall(r"<p>(.*?)</p>", page.text)[:2]
    assert first == (
        "burgers-nu0.001: 17 test trajectories (set abcdef012345), 32 points, "
        "4 frames after the first."
    )
    assert second == "Commit 0123456789, seed 3, 7 x Abacus, 2026-01-02T03:04:05+00:00."
    assert "<title>UPS: mine_run</title>" in page.text
    assert "name: mine_run" in page.text
    assert "&#34;config_hash&#34;: &#34;c0ffee&#34;" in page.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"dirty": True}, "0123456789 and changes"), ({"commit": None, "dirty": None}, "unknown")],
)
def test_report_page_says_the_commit(tmp_path, figures, changes, words):
    config = make_config(tmp_path)
    path = write_run(config, make_tested(), DATA, tmp_path, {**ORIGIN, **changes})
    assert f"<p>Commit {words}, seed 3" in path.read_text()


def test_report_headline_cells_hold_their_headings_numbers(page):
    table = tables(page.text)["Errors and cost"]
    assert table[0] == [
        *("", "rollout nRMSE", "last frame", "one step", "RMSE"),
        *("max error", "mass (cRMSE)", "ms a trajectory"),
    ]
    found = columns(table)
    for place, label in enumerate(LABELS):
        assert {head: cells[label] for head, cells in found.items()} == {
            "rollout nRMSE": f"{number(place, 'nrmse'):.4f}",
            "last frame": f"{0.01 * (place + 1) + 0.4:.4f}",  # the fourth of four
            "one step": f"{number(place, 'one_step_nrmse'):.4f}",
            "RMSE": f"{number(place, 'rmse'):.4f}",
            "max error": f"{number(place, 'max_error'):.3f}",
            "mass (cRMSE)": f"{number(place, 'crmse'):.5f}",
            "ms a trajectory": f"{1.2345 * (place + 1):.2f}",
        }


def test_report_checks_cells_hold_their_headings_numbers(page):
    found = columns(tables(page.text)["Physics checks"])
    keys = {
        "mass drift": "mass_drift",
        "boundary jump error": "boundary_jump_error",
        "beyond the initial range": "maximum_principle_violation",
        "growth of variation": "tv_growth",
        "growth of energy": "energy_growth",
        "correlation time": "correlation_time",
    }
    assert list(found) == list(keys)
    for head, key in keys.items():
        wanted = {label: f"{number(k, key):.3g}" for k, label in enumerate(LABELS)}
        assert found[head] == wanted, head


def test_report_says_a_column_once_that_is_the_same_in_all_rows(tmp_path, figures):
    evaluation = make_tested()
    rows = [{**row, "crmse": 0.00314, "mass_drift": 0.0} for row in evaluation.rows]
    evaluation.rows[:] = map(Row.from_dict, rows)
    config = make_config(tmp_path)
    config.data.eval_batch_size = 5
    text = write_run(config, evaluation, DATA, tmp_path, ORIGIN).read_text()
    heads = tables(text)["Errors and cost"][0]
    assert heads[-2:] == ["max error", "ms a trajectory"]
    assert "The same in all rows: mass (cRMSE) 0.00314." in text
    assert "The same in all rows: mass drift 0." in text
    assert "mass drift" not in tables(text)["Physics checks"][0]
    assert "; times of one trajectory in batches of 5; no more accurate than the operator" in text


def test_rows_that_have_diverged_are_named():
    rows = make_rows()[:3]
    assert divergence_in_words(map(Row.from_dict, rows)) == ""
    rows[0]["nrmse"], rows[1]["nrmse"], rows[2]["nrmse"] = 2e3, 999.0, float("nan")
    found = divergence_in_words(map(Row.from_dict, rows))
    assert found == f"diverged: {LABELS[0]}, {LABELS[2]}"


def test_correctors_that_gain_nothing_are_named():
    def row(correct, nrmse, ttc=False):
        return Row("mine", "latent", correct, ttc, {"nrmse": nrmse})

    plain = row("none", 0.2)
    assert no_gain_in_words([plain, row("diffusion", 0.1)]) == ""
    assert no_gain_in_words([row("diffusion", 0.3)]) == ""  # there is nothing to compare it with
    rows = [plain, row("diffusion", 0.3), row("consistency", 0.2), row("diffusion", 0.3, ttc=True)]
    found = no_gain_in_words([*rows, row("none", 0.4, ttc=True)])
    assert found == "no more accurate than the operator alone: diffusion, consistency"


def test_times_are_of_no_more_trajectories_than_there_are(tmp_path):
    config = make_config(tmp_path)
    config.data.eval_batch_size = 64
    assert times_in_words(config, DATASET) == "times of one trajectory in batches of 17"


def test_print_table_says_a_column_once_that_is_the_same_in_all_rows():
    rows = [{**row, "crmse": 0.0031} for row in make_rows()]
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_table(DATASET, [Row.from_dict(row) for row in rows], console, "times in batches of 5")
    text = console.export_text()
    assert "times in batches of 5; mass (cRMSE) 0.0031 in all rows" in text
    assert text.count("mass (cRMSE)") == 1


def test_report_checks_have_an_energy_column_when_it_is_conserved(tmp_path, figures):
    evaluation = make_tested()
    evaluation.rows[2] = Row.from_dict({**evaluation.rows[2], "energy_drift": 0.7777})
    write_run(make_config(tmp_path), evaluation, DATA, tmp_path, ORIGIN)
    found = columns(tables((tmp_path / "reports/report.html").read_text())["Physics checks"])
    assert list(found)[:3] == ["mass drift", "energy drift", "boundary jump error"]
    assert found["energy drift"] == dict.fromkeys(LABELS, "-") | {"mine, physical": "0.778"}


def test_report_rows_are_labelled_with_the_baselines_last_and_marked(page):
    for title in ("Errors and cost", "Physics checks"):
        _, rows = tables(page.text)[title]
        assert [cells[0] for _, cells in rows] == SORTED
        assert [marked for marked, _ in rows] == [False] * 5 + [True] * 3


def test_report_headline_shows_huge_numbers_short(tmp_path, figures):
    evaluation = make_tested()
    huge = {"nrmse": 2.5e7, "rmse": 123456.0}
    evaluation.rows[0] = Row.from_dict({**evaluation.rows[0], **huge})
    write_run(make_config(tmp_path), evaluation, DATA, tmp_path, ORIGIN)
    found = columns(tables((tmp_path / "reports/report.html").read_text())["Errors and cost"])
    assert found["rollout nRMSE"]["mine, latent"] == "2.5e+07"
    assert found["RMSE"]["mine, latent"] == "123456.0000"
    assert "; diverged: mine, latent" in (tmp_path / "reports/report.html").read_text()


# --- the page's pictures ---


def test_report_pictures_show_truth_prediction_and_error_of_each_example(page):
    found = pictures(page.text, page.figures)
    wanted = []
    for which, (truth, pred, _) in make_examples().items():
        truth, pred = truth[..., 0].numpy(), pred[..., 0].numpy()
        error = pred - truth
        ratio = np.sqrt((error**2).sum(1) / (truth**2).sum(1)).mean()
        top, worst = np.abs(truth).max(), np.abs(error).max()
        for what, field, limit in (
            ("truth", truth, top),
            ("prediction", pred, top),  # the truth's colours, so that the two compare
            ("error", error, worst),
        ):
            wanted.append((f"{which} (nRMSE {ratio:.4f}): {what}", field, limit))
    assert [caption for caption, _, _ in found] == [caption for caption, _, _ in wanted]
    assert wanted[0][0].startswith("best")
    assert wanted[8][0].startswith("worst")
    for (_, words, figure), (caption, field, limit) in zip(found, wanted, strict=True):
        axis = figure.axes[0]
        image = axis.images[0]
        assert np.allclose(image.get_array(), field), caption
        assert image.get_clim() == pytest.approx((-limit, limit)), caption
        # time upwards from the first predicted frame to the last, space to the right
        assert list(image.get_extent()) == pytest.approx([0.0, LENGTH, DT, 4 * DT])
        assert image.origin == "lower"
        assert image.get_cmap().name == "RdBu_r"
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("x", "t")
        which, what = caption.split()[0], caption.split()[-1]
        assert words.startswith(f"{which} test trajectory: {what} over space and time")
        assert words.endswith(f"from {-limit:.2g} (blue) to {limit:.2g} (red)")
        ticks = [-limit, -limit / 2, 0, limit / 2, limit]
        assert figure.axes[1].get_yticks().tolist() == pytest.approx(ticks)


def test_report_curve_of_error_over_time_has_each_rows_values_at_its_times(page):
    axis = curves(page.text, page.figures)["error over time"]
    found = lines_of(axis)
    assert list(found) == LABELS
    for place, label in enumerate(LABELS):
        times, errors = found[label]
        assert times == pytest.approx([DT, 2 * DT, 3 * DT, 4 * DT])
        assert errors == pytest.approx([0.01 * (place + 1) + 0.1 * k for k in range(1, 5)])
    assert axis.get_yscale() == "log"
    assert axis.get_xlabel() == "t"
    grey = {line.get_label() for line in axis.lines if line.get_color() == "0.55"}
    assert grey == {"persistence", "solver-64", "solver-128"}
    own = [line.get_color() for line in axis.lines if line.get_color() != "0.55"]
    assert len(set(own)) == 5


def test_report_curve_of_cost_has_milliseconds_against_the_rollouts_error(page):
    axis = curves(page.text, page.figures)["error against cost, on this machine"]
    solvers, *own = axis.lines
    assert list(solvers.get_xdata()) == pytest.approx([1.2345 * 7, 1.2345 * 8])
    assert list(solvers.get_ydata()) == pytest.approx([number(6, "nrmse"), number(7, "nrmse")])
    named = {text.get_text(): tuple(text.xy) for text in axis.texts}
    assert named == {
        "solver-64": pytest.approx((1.2345 * 7, number(6, "nrmse"))),
        "solver-128": pytest.approx((1.2345 * 8, number(7, "nrmse"))),
    }
    places = [0, 2, 3, 4, 5]
    assert [line.get_label() for line in own] == [LABELS[k] for k in places]
    for line, k in zip(own, places, strict=True):
        assert float(line.get_xdata()[0]) == pytest.approx(1.2345 * (k + 1))
        assert float(line.get_ydata()[0]) == pytest.approx(number(k, "nrmse"))
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")


def test_report_curve_of_spectra_begins_at_wave_number_one(page):
    axis = curves(page.text, page.figures)[
        "energy spectrum at the last frame, mean over test trajectories"
    ]
    assert lines_of(axis) == {
        "truth": ([1, 2, 3], [3.0, 0.5, 0.25]),
        "prediction": ([1, 2, 3], [9.0, 0.25, 0.0625]),
    }


def test_report_learning_curves_are_what_was_logged_the_newest_file_last(page):
    found = curves(page.text, page.figures)
    operator = lines_of(found["learning curves: operator"])
    assert operator == {
        "loss": ([9, 19, 29], [0.9, 0.65, 0.45]),
        "L_forward": ([9, 19], [0.8, 0.6]),
        "validation nRMSE": ([19], [0.44]),
    }
    assert lines_of(found["learning curves: diffusion"]) == {"loss": ([2, 5], [2.5, 1.5])}
    assert len(found) == 5
    dashed = {
        line.get_label()
        for line in found["learning curves: operator"].lines
        if line.get_linestyle() == "--"
    }
    assert dashed == {"validation nRMSE"}


def test_report_learning_curves_have_a_log_scale_when_values_are_positive(tmp_path, figures):
    ups.evaluation.report.plots.learning_curves({"a": ([1, 2], [0.5, 0.1])})
    ups.evaluation.report.plots.learning_curves({"a": ([1, 2], [-0.5, 0.0])})
    assert [figure.axes[0].get_yscale() for figure in figures] == ["log", "linear"]


def test_pictures_have_the_axis_of_the_file(tmp_path, figures):
    grid = dataclasses.replace(FIELD.grid, origin=(-1.0 + FIELD.grid.cell_size[0] / 2,))
    spec = FIELD.with_domain(grid)
    draw_rollout(tmp_path / "picture.png", make_examples()["median"], spec, "a title")
    ups.evaluation.report.plots.rollouts(make_examples(), spec)
    images = [
        axis.images[0]
        for figure in figures
        for axis in figure.axes
        if axis.get_xlabel() == "x" and axis.images
    ]
    assert len(images) > 3
    for image in images:
        assert list(image.get_extent()[:2]) == pytest.approx([-1.0, LENGTH - 1])


def test_draw_rollout_shows_fields_limits_and_three_frames(tmp_path, figures):
    truth, pred, _ = make_examples()["median"]
    truth, pred = truth.repeat(3, 1, 1)[:10], pred.repeat(3, 1, 1)[:10]
    draw_rollout(tmp_path / "picture.png", Example(truth, pred), FIELD, "a title")
    assert (tmp_path / "picture.png").read_text() == "png 0"
    (figure,) = figures
    axes = [axis for axis in figure.axes if axis.get_xlabel() == "x"]
    truth, pred = truth[..., 0], pred[..., 0]
    error = pred - truth
    limits = [float(field.abs().max()) for field in (truth, truth, error)]
    names = ["truth", "rollout", "error"]
    fields = [truth, pred, error]
    for axis, name, field, limit in zip(axes, names, fields, limits, strict=False):
        image = axis.images[0]
        assert axis.get_title() == name
        assert np.allclose(image.get_array(), field)
        assert image.get_clim() == pytest.approx((-limit, limit))
        assert list(image.get_extent()) == pytest.approx([0.0, LENGTH, DT, 10 * DT])
        assert image.origin == "lower"
    x = [LENGTH / 6 * (i + 0.5) for i in range(6)]
    drawn = axes[3].lines
    assert len(drawn) == 6
    for place, frame in enumerate((0, 2, 9)):  # the first, one after a quarter, the last
        line, dashes = drawn[2 * place : 2 * place + 2]
        assert line.get_label() == f"t = {DT * (frame + 1):.2f}"
        assert list(line.get_xdata()) == pytest.approx(x)
        assert list(dashes.get_xdata()) == pytest.approx(x)
        assert np.allclose(line.get_ydata(), truth[frame])
        assert np.allclose(dashes.get_ydata(), pred[frame])
        assert (line.get_linestyle(), dashes.get_linestyle()) == ("-", "--")
        assert line.get_color() == dashes.get_color()
    assert figure.get_suptitle() == "a title"


# --- what a run writes ---


@pytest.mark.parametrize(
    ("stage", "ttc", "names"),
    [
        ("operator", True, ["eval_operator"]),
        ("diffusion", False, ["eval_diffusion"]),
        ("all", True, ["eval_baseline", "eval_ttc"]),
        ("evaluate", True, ["eval_baseline", "eval_ttc"]),
        ("evaluate", False, ["eval_baseline"]),
    ],
)
def test_report_paths_are_by_stage_and_conditioning(tmp_path, stage, ttc, names):
    found = report_paths(make_config(tmp_path, stage, ttc), tmp_path)
    wanted = [tmp_path / f"reports/{name}.json" for name in names]
    assert found == dict(zip((False, True), wanted, strict=False))


@pytest.fixture(scope="module")
def run_written(tmp_path_factory):
    """A run's folder after ``report``, what that printed, and its figures."""
    given, printed = [], io.StringIO()

    def note_provenance(cfg, folder, data_hash):
        given.append((folder, data_hash))
        return ORIGIN

    folder = tmp_path_factory.mktemp("written") / "mine_run"
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        contextlib.redirect_stdout(printed),
        runs_draw(),
    ):
        saved = caught(monkeypatch)
        monkeypatch.setattr(ups.runs.reports, "write_provenance", note_provenance)
        write_reports(make_config(folder.parent), make_tested(), DATA, folder)
        print_table(DATASET, make_tested().rows)
    assert given == [(folder, "abcdef012345")]
    return SimpleNamespace(folder=folder, printed=printed.getvalue(), figures=saved)


@pytest.fixture
def written(run_written, tmp_path):
    """A copy of that folder."""
    shutil.copytree(run_written.folder.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "mine_run"


def test_report_splits_rows_by_conditioning_with_the_baselines_in_both(written):
    rows = make_rows()
    wanted = {"baseline": [0, 1, 2, 3, 6, 7], "ttc": [1, 4, 5, 6, 7]}
    for name, places in wanted.items():
        found = json.loads((written / f"reports/eval_{name}.json").read_text())
        assert found == {
            "dataset": DATASET,
            "rows": [rows[k] for k in places],
            "provenance": ORIGIN,
        }
    assert (written / "reports/report.html").exists()


def test_report_draws_the_median_trajectory(written, run_written):
    assert (written / "reports/eval_baseline.png").read_text() == "png 0"
    truth, pred, _ = make_examples()["median"]
    figure = run_written.figures[0]
    first, second = (axis.images[0] for axis in figure.axes[:2])
    assert np.allclose(first.get_array(), truth[..., 0])
    assert np.allclose(second.get_array(), pred[..., 0])
    assert list(first.get_extent()) == pytest.approx([0.0, LENGTH, DT, 4 * DT])
    assert figure.get_suptitle() == "mine_run: the median test trajectory"


def test_leaderboard_holds_every_row_of_a_report(written):
    LeaderboardWriter(str(written.parent)).write()
    with (written.parent / "leaderboard.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    order = [0, 1, 2, 3, 6, 7, 4, 5]  # of one file, then of the other
    assert [row["name"] for row in found] == [
        "baseline" if SETTINGS[place][0] != "mine" else "mine_run" for place in order
    ]
    for place, row in zip(order, found, strict=True):
        assert row["label"] == LABELS[place]
        assert row["stage"] == "evaluate"
        assert row["dataset.hash"] == "abcdef012345"
        assert float(row["nrmse"]) == number(place, "nrmse")
        assert float(row["correlation_time"]) == number(place, "correlation_time")
        assert float(row["seconds_per_trajectory"]) == 0.0012345 * (place + 1)


def test_print_table_prints_the_data_set_and_every_row(run_written):
    printed = run_written.printed
    assert "burgers-nu0.001: 17 test trajectories, 32 points, 4 frames after the first" in printed
    for place in range(len(SETTINGS)):
        assert f"{number(place, 'nrmse'):.4f}" in printed


@pytest.mark.parametrize(
    ("recorded", "stem", "stage"),
    [
        ({"stage": "all"}, "eval_baseline", "all"),
        # of earlier versions
        ({}, "eval_diffusion", "diffusion"),
        ({}, "eval_baseline", "evaluate"),
        ({}, "eval_ttc", "evaluate"),
    ],
)
def test_leaderboard_rows_are_flat_and_named(recorded, stem, stage):
    rows = [make_rows()[k] for k in (0, 1, 3, 6)]
    evaluation = Evaluation(DATASET, [Row.from_dict(row) for row in rows], {**ORIGIN, **recorded})
    found = flat_rows("my run", stem, evaluation)
    assert [row["name"] for row in found] == ["my run", "baseline", "my run", "baseline"]
    for row, (place, source) in zip(found, zip((0, 1, 3, 6), rows, strict=True), strict=True):
        source = {key: value for key, value in source.items() if key != "nrmse_over_time"}
        assert row == {
            "name": row["name"],
            "stage": stage,
            "label": LABELS[place],
            **source,
            **{f"dataset.{key}": value for key, value in DATASET.items()},
            **{k: v for k, v in ORIGIN.items() if k not in ("versions", "evaluated")},
            "version.python": "3.11",
            "version.torch": "2.9.1",
        }
        assert row["nrmse"] == number(place, "nrmse")


def printed_cells(rows, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_table(DATASET, [Row.from_dict(row) for row in rows], console)
    lines = [line for line in console.export_text().splitlines() if line.strip()]
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines]
    return lines[0], [line for line in cells if line]


def test_print_table_cells_hold_their_headings_numbers():
    title, (heads, *lines) = printed_cells(make_rows(), 150)
    assert title.strip() == (
        "burgers-nu0.001: 17 test trajectories, 32 points, 4 frames after the first"
    )
    assert heads == [
        *("rollout", "nRMSE", "at the end", "one step"),
        *("RMSE", "max error", "mass (cRMSE)", "ms / trajectory"),
    ]
    for place, line in enumerate(lines):
        keys = ("nrmse", None, "one_step_nrmse", "rmse", "max_error", "crmse")
        last = 0.01 * (place + 1) + 0.4
        values = [number(place, key) if key else last for key in keys]
        wanted = [LABELS[place], *(f"{v:.4f}" for v in values), f"{1.2345 * (place + 1):.2f}"]
        assert line == wanted
    assert len(lines) == len(SETTINGS)


def test_print_table_leaves_columns_out_when_the_terminal_is_narrow():
    _, (heads, first, *_) = printed_cells(make_rows(), 100)
    assert heads == ["rollout", "nRMSE", "at the end", "one step", "ms / trajectory"]
    assert first == [
        *("mine, latent", f"{number(0, 'nrmse'):.4f}", "0.4100"),
        *(f"{number(0, 'one_step_nrmse'):.4f}", "1.23"),
    ]


def test_print_table_shows_huge_numbers_short():
    rows = make_rows()[:1]
    rows[0]["nrmse"], rows[0]["rmse"] = 1000.0, 999.5
    _, (_, first) = printed_cells(rows, 150)
    assert (first[1], first[4]) == ("1.0e+03", "999.5000")


def test_finished_results_hold_each_row_once_when_all_is_fresh(written, monkeypatch):
    config = make_config(written.parent)
    monkeypatch.setattr(
        ups.runs.reports, "evaluation_fingerprint", lambda *_, **__: {"settings": "feed"}
    )
    found = finished_results(config, written)
    assert found.dataset == DATASET
    order = [0, 1, 2, 3, 6, 7, 4, 5]
    assert found.rows == [make_rows()[k] for k in order]


def test_finished_results_are_none_when_one_is_stale_or_missing(written, monkeypatch):
    config, path = make_config(written.parent), written / "reports/eval_ttc.json"
    monkeypatch.setattr(
        ups.runs.reports, "evaluation_fingerprint", lambda *_, **__: {"settings": "feed"}
    )
    content = json.loads(path.read_text())
    content["provenance"]["evaluated"] = {"settings": "other"}
    path.write_text(json.dumps(content))
    assert finished_results(config, written) is None
    path.unlink()
    assert finished_results(config, written) is None
    assert finished_results(make_config(written.parent, ttc=False), written) is not None


# --- draws ---

SPREAD_CURVE = "spread of draws and error of their mean over time"
RANK_CURVE = "rank of the truth among draws, at all points and frames"


def drawn(row, shift=0.0):
    """The row with the scores of an ensemble of 3."""
    scores = {"crps": 0.0321 + shift, "energy_score": 0.1654, "ensemble_nrmse": 0.0543}
    scores |= {"spread_skill_ratio": 0.876, "coverage_90": 0.44}
    scores["rank_histogram"] = [0.3 + shift, 0.2, 0.25, 0.25 - shift]
    scores["ensemble_nrmse_over_time"] = [0.1 + shift, 0.2, 0.3, 0.4]
    scores["ensemble_spread_over_time"] = [0.05, 0.06, 0.07 + shift, 0.08]
    return Row.from_dict({**row, **scores})


def test_report_has_no_ensembles_without_draws(page):
    assert set(tables(page.text)) == {"Errors and cost", "Physics checks"}
    assert not {SPREAD_CURVE, RANK_CURVE} & set(curves(page.text, page.figures))


def test_report_shows_the_scores_of_the_rows_with_draws(tmp_path, figures):
    evaluation = make_tested()
    evaluation.rows[3] = drawn(evaluation.rows[3])
    text = write_run(make_config(tmp_path), evaluation, DATA, tmp_path, ORIGIN).read_text()
    assert list(tables(text)) == ["Errors and cost", "Ensembles", "Physics checks"]
    assert columns(tables(text)["Ensembles"]) == {
        "CRPS": {LABELS[3]: "0.0321"},
        "energy score": {LABELS[3]: "0.1654"},
        "nRMSE of the mean": {LABELS[3]: "0.0543"},
        "spread / error": {LABELS[3]: "0.88"},
        "coverage of 90 %": {LABELS[3]: "0.44"},
    }
    assert "a spread / error of 1 and a coverage of 0.50 for 3 draws." in text
    axis = curves(text, figures)[SPREAD_CURVE]
    times = pytest.approx([DT, 2 * DT, 3 * DT, 4 * DT])
    assert lines_of(axis) == {
        f"{LABELS[3]}: error of the mean": (times, [0.1, 0.2, 0.3, 0.4]),
        f"{LABELS[3]}: spread": (times, [0.05, 0.06, 0.07, 0.08]),
    }
    assert [line.get_linestyle() for line in axis.lines] == ["-", "--"]
    (steps,) = curves(text, figures)[RANK_CURVE].patches
    assert steps.get_data().values == pytest.approx([1.2, 0.8, 1.0, 1.0])
    assert steps.get_data().edges == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_report_describes_the_pictures_of_draws_to_those_who_cannot_see_them(tmp_path, figures):
    evaluation = make_tested()
    row = Row.from_dict({**evaluation.rows[3], "model": '"<mine>"'})
    evaluation.rows[3] = drawn(row)
    text = write_run(make_config(tmp_path), evaluation, DATA, tmp_path, ORIGIN).read_text()
    found = [html.unescape(words) for words in re.findall(r'role="img" aria-label="(.*?)"', text)]
    label = '"<mine>" + diffusion, latent'
    assert found == [
        f"spread of draws and error of their mean over time; {label}: "
        "error of the mean from 0.1 to 0.4, spread from 0.05 to 0.08",
        f"frequency of the truth's rank among draws; {label}: 1.20, 0.80, 1.00, 1.00",
    ]


def test_comparison_shows_the_draws_of_all_runs_and_reads_older_evaluations(tmp_path, figures):
    rows = make_rows()
    older = {**rows[3], "spread_over_error": 0.7, "ensemble_nrmse": 0.06}
    folders = [
        write_finished(tmp_path / name, [dict(row)])
        for name, row in (("one", drawn(rows[3])), ("two", drawn(rows[3], 0.02)), ("old", older))
    ]
    write_comparison(folders, tmp_path / "all.html")
    text = (tmp_path / "all.html").read_text()
    labels = [f"{folder}: {LABELS[3]}" for folder in folders]
    found = columns(tables(text)["Ensembles"])
    assert found == {"CRPS": {labels[0]: "0.0321", labels[1]: "0.0521"}}
    assert [cells[0] for _, cells in tables(text)["Errors and cost"][1]] == labels
    spreads = lines_of(curves(text, figures)[SPREAD_CURVE])
    assert [times for times, _ in spreads.values()] == [[1, 2, 3, 4]] * 4
    assert len(curves(text, figures)[RANK_CURVE].patches) == 2


# --- several runs side by side ---


def write_finished(folder, rows, dataset=DATASET, width=16, command=None):
    """A run's folder that has been tested, from rows made by hand."""
    (folder / "reports").mkdir(parents=True)
    origin = {**ORIGIN, "command": command or ORIGIN["command"]}
    content = {"dataset": dataset, "rows": rows, "provenance": origin}
    (folder / "reports/eval_baseline.json").write_text(json.dumps(content))
    config = {"name": folder.name, "seed": 3, "model": {"hidden_dim": width, "name": "mine"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_comparison_shows_each_runs_rows_and_the_baselines_once(tmp_path, figures):
    one = write_finished(tmp_path / "one", make_rows()[:2])
    other = make_rows()
    other[0]["nrmse"] = 0.9876
    two = write_finished(tmp_path / "two", other[:2], width=32)
    write_logs(two)
    write_comparison([one, two], tmp_path / "both.html", is_bookkeeping_key)
    text = (tmp_path / "both.html").read_text()
    found = columns(tables(text)["Errors and cost"])["rollout nRMSE"]
    assert found == {
        f"{one}: mine, latent": f"{number(0, 'nrmse'):.4f}",
        f"{two}: mine, latent": "0.9876",
        "persistence": f"{number(1, 'nrmse'):.4f}",
    }
    heads, rows = tables(text)["Settings that differ"]
    assert heads == ["", str(one), str(two)]
    assert [cells for _, cells in rows] == [["model.hidden_dim", "16", "32"]]
    drawn = curves(text, figures)
    times, _ = lines_of(drawn["error over time"])["persistence"]
    assert times == [1, 2, 3, 4]  # frames: runs may differ in dt
    assert drawn["error over time"].get_xlabel() == "frame"
    assert lines_of(drawn["learning curves: operator"]) == {
        f"{two}: loss": ([9, 19, 29], [0.9, 0.65, 0.45]),
        f"{two}: validation nRMSE": ([19], [0.44]),
    }
    assert "different test sets" not in text


def test_comparison_warns_of_other_test_sets_and_keeps_their_baselines_apart(tmp_path, figures):
    one = write_finished(tmp_path / "one", make_rows()[:2])
    other = {**DATASET, "name": "burgers-nu0.01", "hash": "ffff"}
    two = write_finished(tmp_path / "two", make_rows()[:2], other)
    write_comparison([one, two], tmp_path / "both.html")
    text = (tmp_path / "both.html").read_text()
    labels = set(columns(tables(text)["Errors and cost"])["RMSE"])
    assert labels == {
        *(f"{one}: mine, latent", f"{two}: mine, latent"),
        "persistence (burgers-nu0.001, test set abcdef012345)",
        "persistence (burgers-nu0.01, test set ffff)",
    }
    assert "different test sets (abcdef012345, ffff)" in text


def test_run_results_are_of_the_newest_evaluation_and_its_test_set(tmp_path):
    folder = write_finished(tmp_path / "one", make_rows()[:2])
    for name, place, day in (("a", 4, "03"), ("b", 3, "02")):
        origin = {**ORIGIN, "time": f"2026-02-{day}"}
        content = {"dataset": {**DATASET, "hash": "ffff"}, "rows": [make_rows()[place]]}
        path = folder / f"reports/eval_{name}.json"
        path.write_text(json.dumps({**content, "provenance": origin}))
    run = RunResults.read(folder)
    assert run.dataset["hash"] == "ffff"
    assert set(run.rows) == {"mine + ttc, latent", "mine + diffusion, latent"}
    assert run.rows["mine + ttc, latent"] == make_rows()[4]
    path = folder / "reports/eval_baseline.json"
    content = json.loads(path.read_text())
    content["provenance"]["time"] = "2026-02-04"
    path.write_text(json.dumps(content))
    assert set(RunResults.read(folder).rows) == {"mine, latent", "persistence"}


def test_run_results_refuse_a_folder_that_lacks_a_part(tmp_path):
    folder = write_finished(tmp_path / "one", make_rows()[:2])
    (folder / "config.yaml").unlink()
    with pytest.raises(UpsError, match="is not a run that has been tested"):
        RunResults.read(folder)


# --- the card ---

NETS = {
    "mean_network": {"hidden_dim": 8, "depth": 1},
    "denoiser": {"hidden_dim": 8, "depth": 1},
    "num_steps": 2,
}


def write_checkpoint(folder, stem, simulator, before=None, **numbers):
    state = {f"simulator.{name}": value for name, value in simulator.state_dict().items()}
    path = folder / "checkpoints" / f"{stem}_ema.ckpt"
    path.parent.mkdir(exist_ok=True)
    made_from = sha256(before) if before else None
    about = {"simulator": simulator.config(), "state_dict": state, "made_from": made_from}
    torch.save({**about, **numbers}, path)
    return path


@pytest.fixture
def trained(tmp_path):
    """A run's folder with two stages, tested, from numbers made by hand; and its simulator."""
    folder = tmp_path / "mine_run"
    (folder / "reports").mkdir(parents=True)
    simulator = make_simulator()
    numbers = {"epoch": 6, "global_step": 123, "validation_nrmse": 0.04567}
    first = write_checkpoint(folder, "operator", simulator, **numbers)
    simulator.add_corrector("diffusion", NETS)
    numbers = {"epoch": 1, "global_step": 45, "validation_nrmse": 0.03214}
    second = write_checkpoint(folder, "diffusion_residual", simulator, first, **numbers)
    config = make_config(tmp_path)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
    hashes = {path.name: sha256(path)[:12] for path in (first, second)}
    origin = {**ORIGIN, "evaluated": {**hashes, "settings": "feed"}}
    rows = make_rows()
    for name, places in (("baseline", [0, 1, 2, 3, 6]), ("ttc", [1, 4, 5, 6])):
        content = {"dataset": DATASET, "rows": [rows[k] for k in places], "provenance": origin}
        (folder / f"reports/eval_{name}.json").write_text(json.dumps(content))
    return SimpleNamespace(folder=folder, simulator=simulator)


def markdown_rows(text, heading):
    part = text[text.index(f"| {heading} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in part.splitlines()]


def test_card_table_holds_each_rows_numbers_the_baselines_last(trained):
    heads, _, *lines = markdown_rows(render_model_card(trained.folder, "nice"), "rollout")
    assert heads == [
        *("rollout", "rollout nRMSE", "one step", "RMSE"),
        *("max error", "ms a trajectory"),
    ]
    assert lines == [
        [
            LABELS[k],
            *(f"{number(k, key):.4f}" for key in ("nrmse", "one_step_nrmse", "rmse", "max_error")),
            f"{1.2345 * (k + 1):.1f}",
        ]
        for k in (0, 2, 3, 4, 5, 1, 6)
    ]


def test_card_tells_stages_sizes_and_data(trained):
    text = render_model_card(trained.folder, "nice", licence="MIT", notes=" Known faults. \n")
    assert markdown_rows(text, "stage")[2:] == [
        ["operator", "7", "123", "0.0457"],  # epochs are counted from 1
        ["diffusion_residual", "2", "45", "0.0321"],
    ]
    own = sum(p.numel() for p in trained.simulator.model.parameters())
    more = sum(p.numel() for p in trained.simulator.correctors["diffusion"].parameters())
    assert f"{own + more:,} parameters in float32: model {own:,}, diffusion {more:,}." in text
    assert "rollout(u0, steps=4, nu=0.001)" in text
    assert "u0 (B, 32) on x in [0, 1) -> (B, 4, 32), every 0.05" in text
    assert "17 trajectories that training never saw (burgers-nu0.001, test set abcdef" in text
    assert "4 frames after the first" in text
    assert "`nice` beside the baselines, persistence and the numerical solver, all by" in text
    assert "Trained for nu = 0.001, steps of 0.05 and 32 points of [0, 1), on initial" in text
    assert "commit 0123456789abcdef, 7 x Abacus, torch 2.9.1." in text
    assert "python -m ups.run model=mixer_tiny seed=3\n" in text  # what decides, without the name
    assert "- nu: 0.001" in text
    assert "num_workers" not in text
    assert "path:" not in text
    assert "## Notes\n\nKnown faults.\n" in text
    assert text.rstrip().endswith("MIT")


def test_card_says_nothing_of_parameters_and_solvers_when_the_data_have_none(tmp_path):
    folder = tmp_path / "mine_run"
    (folder / "reports").mkdir(parents=True)
    spec = FieldSpec(Grid((32,), (2.0,)), ("u", "v"), dt=0.05)
    config = {**SPEC, "conserve_mean": False}
    simulator = Simulator(build(config, spec), spec, None, config)
    numbers = {"epoch": 6, "global_step": 123, "validation_nrmse": 0.04567}
    path = write_checkpoint(folder, "operator", simulator, **numbers)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(make_config(tmp_path)))
    origin = {**ORIGIN, "evaluated": {path.name: sha256(path)[:12], "settings": "feed"}}
    dataset = {**DATASET, "name": "waves", "nu": None}
    content = {"dataset": dataset, "rows": make_rows()[:3], "provenance": origin}
    (folder / "reports/eval_baseline.json").write_text(json.dumps(content))
    text = render_model_card(folder, "nice")
    assert "\n\nwaves\n\n    import ups\n" in text  # the data's name for the equation's title
    assert "rollout(u0, steps=4)    # u0 (B, 32, 2) on x in [0, 2) -> (B, 4, 32, 2), " in text
    assert "`nice` beside the baselines, persistence, all by" in text
    assert "Trained for steps of 0.05 and 32 points of [0, 2), on initial" in text
    assert yaml.safe_load(text.split("---\n")[1])["tags"] == ["pde", "data", "neural-operator"]
    assert [cells[0] for cells in markdown_rows(text, "rollout")[2:]] == [
        *("mine, latent", "mine, physical", "persistence"),
    ]


def test_card_front_matter_holds_the_runs_own_results(trained):
    front = yaml.safe_load(
        render_model_card(trained.folder, "nice", licence="MIT").split("---\n")[1]
    )
    assert front["license"] == "mit"
    assert front["tags"] == ["pde", "burgers", "neural-operator"]
    (entry,) = front["model-index"]
    assert entry["name"] == "nice"
    labels = [LABELS[k] for k in (0, 2, 3, 4, 5)]
    assert [result["task"]["name"] for result in entry["results"]] == labels
    for place, result in zip((0, 2, 3, 4, 5), entry["results"], strict=True):
        found = {metric["type"]: metric["value"] for metric in result["metrics"]}
        keys = ("nrmse", "one_step_nrmse", "rmse", "max_error")
        assert found == {key: number(place, key) for key in keys}
        assert result["dataset"] == {
            "type": "abcdef012345",
            "name": "burgers-nu0.001",
            "split": "test",
        }


def test_card_says_that_code_was_changed_and_that_no_licence_is_known(trained):
    for path in trained.folder.glob("reports/eval_*.json"):
        content = json.loads(path.read_text())
        content["provenance"]["dirty"] = True
        content["dataset"]["nu"] = [0.01, 0.002]
        path.write_text(json.dumps(content))
    text = render_model_card(trained.folder, "nice")
    assert "commit 0123456789abcdef with changes, " in text
    assert "Trained for nu = 0.01, 0.002, steps" in text
    assert "nu=0.01)" in text
    assert text.rstrip().endswith("Not stated")
    assert "license" not in yaml.safe_load(text.split("---\n")[1])
    assert "## Notes" not in text


def test_card_takes_no_results_of_other_weights(trained):
    path = trained.folder / "reports/eval_ttc.json"
    content = json.loads(path.read_text())
    content["provenance"]["evaluated"]["operator_ema.ckpt"] = "000000000000"
    path.write_text(json.dumps(content))
    rows = ups.hub.model_card.load_test_results(trained.folder).rows
    assert [(row["model"], row["ttc"]) for row in rows] == [
        *(("mine", False), ("persistence", False), ("mine", False)),
        *(("mine", False), ("solver-64", False)),
    ]
    (trained.folder / "reports/eval_baseline.json").unlink()
    with pytest.raises(UpsError, match="no test results of the weights that it holds"):
        render_model_card(trained.folder, "nice")
