"""outputs/leaderboard.csv and .html: one row for each result of all runs, written under a lock."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from ups.core.errors import UpsError
from ups.core.io import write_text

PAGE = Path(__file__).with_name("leaderboard.html")
# two results with the same values of these keys are the same row
ROW_KEY = ("name", "model", "mode", "correct", "ttc", "dataset.hash")


def upsert_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows to the table; concurrent writers lose none.

    A row replaces the row with the same ``ROW_KEY``. The html page beside the table shows the same
    rows, sortable, with a plot of error against cost for one test set at a time. The columns are
    the keys of all rows, in the order of their first appearance.

    Args:
        path: the csv file.
        rows: the rows to add.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        table = {
            _identity(row): row
            for row in [*read(path), *[{k: _text(v) for k, v in row.items()} for row in rows]]
        }
        columns = list(dict.fromkeys(key for row in table.values() for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table.values())
        write_text(path, text.getvalue())
        write_text(path.with_suffix(".html"), render_html([*table.values()]))


def render_html(rows: Sequence[Mapping[str, str]]) -> str:
    """Render the table as one self-contained html page."""
    # no value in a row can close the script element
    data = json.dumps(rows).replace("<", "\\u003c")
    empty = '<script id="rows" type="application/json">[]'
    return PAGE.read_text(encoding="utf-8").replace(empty, empty.removesuffix("[]") + data)


def read(path: Path) -> list[dict[str, str]]:
    """Read all rows of the table, as text; an empty list if there is no table.

    Raises:
        UpsError: the file is damaged.
    """
    if not Path(path).exists():
        return []
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UpsError(f"{path} is damaged ({error}); move it away and another is begun") from None


def _identity(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row.get(key, "") for key in ROW_KEY)


def _text(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
