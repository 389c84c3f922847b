"""The report of a run, and of several side by side, looked at in a real browser."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import TINY
from helpers import pictures
from helpers.commands import call
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from ups import pipeline
from ups.evaluation.leaderboard import render_html as render_leaderboard
from ups.evaluation.report.html import RunResults
from ups.run import CONF
from ups.runs import reports

# starts processes, or whole runs
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("drawn")]

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PROBE = """<script>const frame = document.querySelector("iframe"); frame.onload = () => {
  const page = frame.contentDocument, width = frame.contentWindow.innerWidth;
  document.body.dataset.seen = JSON.stringify({
    width: width, overflow: page.documentElement.scrollWidth - width,
    images: [...page.images].map(i => i.naturalWidth),
    curves: [...page.querySelectorAll("svg")].map(s => s.getBoundingClientRect().width)
  });
};</script>"""


# what the leaderboard shows: boxes are left, top, right, bottom
BOARD_PROBE = """<script>const frame = document.querySelector("iframe"); frame.onload = () => {
  const page = frame.contentDocument, width = frame.contentWindow.innerWidth;
  const box = e => {
    const b = e.getBoundingClientRect();
    return [b.left, b.top, b.right, b.bottom];
  };
  const text = query => [...page.querySelectorAll(query)].map(e => e.textContent);
  document.body.dataset.seen = JSON.stringify({
    overflow: page.documentElement.scrollWidth - width, heads: text("th"), cells: text("td"),
    table: box(page.querySelector("table")), error: box(page.querySelector("td")),
    names: text("svg text.name"), boxes: [...page.querySelectorAll("svg text.name")].map(box),
    summary: text("#summary")[0], same: text("#same")[0]
  });
};</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that went on after an interruption, with later stages, and a peer."""
    folder = tmp_path_factory.mktemp("runs")
    for args in (["name='<b>one'", "stage=all", "stage.diffusion.trainer.max_epochs=1",
                  "stage.consistency.trainer.max_epochs=1"],
                 ["name=two", "model=resnet", "model.hidden_channels=8"]):  # fmt: skip
        sizes = [size for size in TINY if "model" not in args[1] or not size.startswith("model")]
        with pictures.drawn():
            done = call("ups.run", *sizes, "trainer.log_every_n_steps=2", *args, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "report.html" in done.stdout
    return folder


def looked_at(page, width, tmp_path, probe=PROBE):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    # in a frame: the window itself is never narrower than 500, a phone is
    frame = tmp_path / "frame.html"
    inside = html.escape(page.read_text())
    frame.write_text(
        f'<meta charset="utf-8"><body><iframe style="width:{width}px;height:900px;border:0" '
        f'srcdoc="{inside}"></iframe>{probe}'
    )
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
               "--virtual-time-budget=5000", "--window-size=1400,1000", "--dump-dom",
               f"file://{frame}"]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=600).stdout
    seen = re.search(r"data-seen=\"([^\"]*)\"", dom)
    assert seen, dom[-500:]
    return json.loads(seen[1].replace("&quot;", '"'))


@pytest.mark.parametrize("width", [1280, 390])
def test_report_shows_everything_in_a_browser(folder, tmp_path, width):
    page = folder / "outputs/<b>one/reports/report.html"
    seen = looked_at(page, width, tmp_path)
    assert seen["width"] == width
    assert seen["overflow"] <= 0
    assert len(seen["images"]) == 9
    assert min(seen["images"]) > 100
    assert len(seen["curves"]) == 3 + 2 + 3  # and two of draws, and three stages' learning curves
    assert min(seen["curves"]) > 200
    assert page.stat().st_size < 3e6


def test_report_holds_the_evaluation_and_loads_nothing(folder):
    text = (folder / "outputs/<b>one/reports/report.html").read_text()
    rows = json.loads((folder / "outputs/<b>one/reports/eval_ttc.json").read_text())["rows"]
    for row in rows:
        assert f"<td>{row['nrmse']:.4f}</td>" in text
    assert "&lt;b&gt;one" in text
    assert "<b>one" not in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    for term in (
        "L_forward",
        "L_inv_enc",
        "L_inv_dec",
        "L_noise",
        "config_hash",
        "persistence",
        "ttc",
    ):
        assert term in text, term


def test_learning_curves_are_those_of_all_log_files(folder, tmp_path):
    shutil.copytree(folder / "outputs/<b>one", tmp_path / "one")
    logs = tmp_path / "one/logs"
    more = logs / "version_10/metrics.csv"
    more.parent.mkdir()
    more.write_text("step,training/operator/loss\n1000000,0.5\n")
    curves = RunResults.read(tmp_path / "one").curves()
    steps, values = curves["operator"]["loss"]
    assert (steps[-1], values[-1]) == (1e6, 0.5)
    assert len(steps) > 1
    assert set(curves) == {"operator", "diffusion", "consistency"}


def test_report_compares_runs(folder, tmp_path):
    runs = ("outputs/<b>one", "outputs/two")
    done = call("ups.report", *runs, "-o", tmp_path / "both.html", cwd=folder)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "both.html").read_text()
    assert "outputs/two: resnet" in text
    assert "model.architecture" in text
    assert text.count("<td>persistence</td>") == 2  # once in each table
    assert looked_at(tmp_path / "both.html", 390, tmp_path)["overflow"] <= 0


def test_report_is_refused_when_the_folder_has_no_results(tmp_path):
    done = call("ups.report", tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert "is not a run that has been tested" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_finishes_when_its_report_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reports, "write_run", lambda *arguments: 1 / 0)
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", [*TINY, "trainer.max_epochs=1", "name=one"])
    GlobalHydra.instance().clear()
    pipeline.run(cfg)
    assert "report.html could not be written" in Path("outputs/one/run.log").read_text()
    assert Path("outputs/one/reports/eval_operator.json").exists()


def board_row(name, label, nrmse, seconds, **more):
    """A row of the leaderboard, as text."""
    model = label.partition(",")[0]
    numbers = {"nrmse": nrmse, "seconds_per_trajectory": seconds, "one_step_nrmse": nrmse / 4}
    values = {"name": name, "label": label, "model": model, "seed": 0, **numbers, **more}
    values |= {"commit": "abcdef012345", "time": "2026-01-02T03:04:05", "dataset.hash": "h"}
    return {key: str(value) for key, value in values.items()}


BOARD = [
    board_row("burgers", "memory-upt, latent", 0.005, 4e-3, rmse=0.11, crps=0.0314),
    board_row("burgers", "memory-upt, physical", 0.0051, 4.1e-3, rmse=0.12),
    board_row("a-job-of-a-sweep-with-a-long-name", "resnet, physical", 0.0052, 4.2e-3, rmse=0.13),
    board_row("worse", "unet, physical", 1e9, 5e-3, rmse=1e9),
    board_row("baseline", "persistence", 1.2, 1e-5, rmse=0.6),
    board_row("baseline", "solver-64", 0.05, 1e-4, rmse=0.05),
    board_row("baseline", "solver-256", 0.0049, 2e-4, rmse=0.005),
]  # fmt: skip


@pytest.mark.parametrize("width", [1200, 390])
def test_leaderboard_shows_the_error_first_and_names_its_points(tmp_path, width):
    page = tmp_path / "board.html"
    page.write_text(render_leaderboard(BOARD))
    seen = looked_at(page, width, tmp_path, BOARD_PROBE)
    assert seen["overflow"] <= 0
    assert seen["heads"][:3] == ["nRMSE ▲", "rollout", "run"]
    assert 0 <= seen["error"][0] < seen["error"][2] <= width
    assert width == 390 or seen["table"][2] <= width
    assert seen["cells"][0] == "0.0049"
    assert "1.0e+9†" in seen["cells"]
    assert "CRPS" in seen["heads"]
    assert "0.0314" in seen["cells"]
    assert "spread / error" not in seen["heads"]  # no row has it
    assert {"commit", "tested", "seed"}.isdisjoint(seen["heads"])  # the same in all rows
    assert seen["same"] == "The same in all rows: seed 0, commit abcdef01, tested 2026-01-02 03:04."
    assert seen["summary"] == (
        "Best: memory-upt, latent of burgers, nRMSE 0.0050 in 4.0 ms a trajectory. "
        "Persistence has 1.2000. "
        "The numerical solver on 256 points has 0.0049 in 0.20 ms a trajectory."
    )
    assert {"memory-upt, latent", "solver-64", "solver-256"} <= set(seen["names"])
    assert "unet, physical" not in seen["names"]
    for i, (left, top, right, bottom) in enumerate(seen["boxes"]):
        assert 0 <= left < right <= width
        for a, b, c, d in seen["boxes"][:i]:
            assert left >= c or right <= a or top >= d - 1 or bottom <= b + 1
