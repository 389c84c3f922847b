"""The files of docs/extending.md and of the example of an equation, docs/korteweg_de_vries.md."""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pages import write_files

from ups.physics import burgers

pytestmark = pytest.mark.integration  # starts processes

DOCS = Path(__file__).parents[1] / "docs"
PAGE = "\n".join((DOCS / f"{name}.md").read_text() for name in ("extending", "korteweg_de_vries"))
COMMANDS = {
    match[1]: shlex.split(match[0].strip())[3:]
    for match in re.finditer(
        r"^    python -m ups\.run .*?(heat|waves|shallow|slope|kdv)$", PAGE, re.M
    )
}
SIZES = [
    "data.num_points=32", "data.reference_num_points=64", "data.num_frames=11",
    "data.num_train=16", "data.num_validation=4", "data.num_test=4",
    "data.samples_per_trajectory=4", "data.batch_size=8", "trainer.max_epochs=2", "preflight=false",
]  # fmt: skip
SMALL_MODEL = ["model=mixer_tiny", "model.num_tokens=8", "model.hidden_dim=16"]


@pytest.fixture
def page_run(ups_run, tmp_path):
    """Runs the command of the page whose name ends with ``name``; gives its evaluation's rows."""
    write_files(PAGE, tmp_path)
    x = burgers.cell_centers(32)
    u0 = burgers.initial_conditions(24, x, seed=0)
    frames = burgers.solve(u0, [0.05 * k for k in range(11)], nu=0.01)
    np.save(tmp_path / "waves.npy", frames.numpy())

    def run(name, *more, report="operator"):
        sizes = [size for size in SIZES if name != "waves" or "num_" not in size]
        model = [] if name == "shallow" else SMALL_MODEL
        ups_run(*COMMANDS[name], *sizes, *model, *more)
        folder = tmp_path / "outputs" / name
        result = json.loads((folder / f"reports/eval_{report}.json").read_text())
        return result, folder

    return run


def test_pages_name_five_commands():
    assert set(COMMANDS) == {"heat", "waves", "shallow", "slope", "kdv"}


def test_equation_joins_by_one_file(page_run):
    result, _ = page_run("heat")
    assert result["dataset"]["name"] == "heat-nu0.01"
    rows = {row["model"]: row for row in result["rows"]}
    assert set(rows) == {"mixer-tiny", "persistence", "solver-16", "solver-32"}
    assert {"mass_drift", "tv_growth", "energy_growth"} <= rows["mixer-tiny"].keys()


def test_equation_of_all_parts_joins_by_one_file(page_run):
    sizes = ["data.num_points=64", "data.reference_num_points=128", "trainer.max_epochs=1"]
    later = [f"stage.{name}.trainer.max_epochs=1" for name in ("diffusion", "consistency")]
    result, folder = page_run("kdv", "stage=all", *sizes, *later, report="baseline")
    rows = {row["model"]: row for row in result["rows"]}
    assert set(rows) == {"mixer-tiny", "persistence", "solver-16", "solver-32", "solver-64"}
    assert {"mass_drift", "energy_drift"} <= rows["mixer-tiny"].keys()
    assert {"tv_growth", "maximum_principle_violation"}.isdisjoint(rows["mixer-tiny"])
    assert rows["mixer-tiny"]["mass_drift"] < 1e-5
    assert (folder / "reports/eval_ttc.json").exists()


def test_equation_without_a_solver_step_is_not_conditioned_on(ups_run, tmp_path):
    write_files(PAGE, tmp_path)
    words = [*COMMANDS["heat"], *SIZES, *SMALL_MODEL, "stage=all"]
    done = ups_run(*words, check=False)
    assert done.returncode == 2
    expected = "must be false, got true: the equation heat has no solver_step to condition on."
    assert expected in done.stderr


def test_reader_joins_by_one_file_and_its_data_have_no_equation(page_run):
    result, _ = page_run("waves")
    assert result["dataset"]["name"] == "waves"
    assert result["dataset"]["trajectories"] == 4
    rows = {row["model"]: row for row in result["rows"]}
    assert set(rows) == {"mixer-tiny", "persistence"}
    assert "correlation_time" in rows["mixer-tiny"]
    assert "mass_drift" not in rows["mixer-tiny"]


def test_model_joins_by_one_file(page_run):
    result, _ = page_run("shallow")
    assert result["rows"][0]["model"] == "shallow"


def test_loss_joins_by_one_file(page_run):
    _, folder = page_run("slope", "trainer.log_every_n_steps=1")
    with next(folder.glob("logs/*/metrics.csv")).open() as file:
        series = [row.get("training/operator/L_slope") for row in csv.DictReader(file)]
    values = [float(value) for value in series if value]
    assert values
    assert all(torch.isfinite(torch.tensor(values)))
