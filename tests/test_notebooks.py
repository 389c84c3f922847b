"""The notebooks run from their first cell to their last, in an empty folder.

What stands in the repository holds no outputs.
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


def cases():
    names = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", cases())
def test_every_cell_runs(name, tmp_path):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
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


def test_notebooks_are_stored_without_outputs():
    for path in FOLDER.glob("*.ipynb"):
        notebook = nbformat.read(path, 4)
        nbformat.validate(notebook)
        assert all(
            not cell.outputs and cell.execution_count is None
            for cell in notebook.cells
            if cell.cell_type == "code"
        ), path


def test_links_lead_somewhere():
    for path in FOLDER.glob("*.ipynb"):
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert (
                link.startswith("http")
                or (FOLDER / link).exists()
                or link == "../docs/equations.md"
            ), f"{path.name}: {link}"
