"""The notebooks run from their first cell to their last, in an empty folder, in small.

Those that a newcomer reads first are stored with their outputs:
`python notebooks/store_outputs.py NAME ...` writes them.
"""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration  # starts processes, or whole runs

nbformat = pytest.importorskip("nbformat", reason="pip install nbclient ipykernel")
nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
pytest.importorskip("ipykernel", reason="pip install nbclient ipykernel")

FOLDER = Path(__file__).parents[1] / "notebooks"
FAST = ("01_quickstart",)
STORED = (  # with outputs: a hosting site shows them
    "01_quickstart", "03_your_own_pde", "07_flow_in_two_dimensions", "08_forecast_from_readings",
)  # fmt: skip

# what takes long, and what is there in its place when the cells are tested
SHORTER = {
    "02_train_and_look_inside": {"trainer.max_epochs=8": "trainer.max_epochs=1"},
    "03_your_own_pde": {"trainer.max_epochs=8": "trainer.max_epochs=1", "n = 160": "n = 40"},
    "04_your_own_model": {"trainer.max_epochs=6": "trainer.max_epochs=1"},
    "05_reading_a_sweep": {"trainer.max_epochs=3": "trainer.max_epochs=1"},
    "06_inverse_problem": {
        "data.num_train=200": "data.num_train=20",
        "trainer.max_epochs=6": "trainer.max_epochs=1",
        "iterations=200": "iterations=5",
    },
    "07_flow_in_two_dimensions": {"initial_conditions(8, 128": "initial_conditions(1, 128"},
    "08_forecast_from_readings": {
        "initial_conditions(1000, 64": "initial_conditions(100, 64",
        "noise=noise, nu=NU)": "noise=noise, nu=NU, iterations=5)",
        "num_draws=4, iterations=40": "num_draws=4, iterations=5",
    },
}


def shorten(notebook, replacements):
    """Have the cells do less."""
    for long, short in replacements.items():
        cells = [cell for cell in notebook.cells if long in cell.source]
        assert len(cells) == 1, f"{long!r} must be in one cell, and is in {len(cells)}"
        cells[0].source = cells[0].source.replace(long, short)


def cases():
    names = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", cases())
def test_every_cell_runs(name, tmp_path):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    shorten(notebook, SHORTER.get(name, {}))
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
    assert not any(output.get("name") == "stderr" and "Error" in output.text for output in outputs)


@pytest.mark.parametrize("name", [case.values[0] for case in cases()])
def test_outputs_are_stored_where_a_reader_needs_them(name):
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    if name not in STORED:
        assert not outputs
        assert all(cell.execution_count is None for cell in cells)
        return
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert path.stat().st_size < 300_000
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(tmp|root|home|Users)/", text)  # nothing of the machine that ran it


def test_links_lead_somewhere():
    for path in FOLDER.glob("*.ipynb"):
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert (
                link.startswith("http")
                or (FOLDER / link).exists()
                or link == "../docs/equations.md"
            ), f"{path.name}: {link}"
