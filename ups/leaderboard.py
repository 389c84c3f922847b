"""outputs/leaderboard.csv and .html: one row a result over all runs, written under a lock."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from ups.errors import UpsError
from ups.files import write_text

PAGE = Path(__file__).with_name("leaderboard.html")
# a result is the same row again when these agree
IDENTITY = ("name", "model", "mode", "correct", "ttc", "dataset.hash")


def record(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add ``rows`` to the table at ``path``; a row that stands there already (by ``IDENTITY``) is replaced, none is lost or torn.

    The page beside it shows the same table, sortable, with a picture of error against cost, one test set at a time.

    Columns are the union of all rows' keys, in the order of their first appearance.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        table = {_identity(row): row for row in [*read(path), *[{k: _text(v) for k, v in row.items()} for row in rows]]}
        columns = list(dict.fromkeys(key for row in table.values() for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table.values())
        write_text(path, text.getvalue())
        write_text(path.with_suffix(".html"), page([*table.values()]))


def page(rows: Sequence[Mapping[str, str]]) -> str:
    """The table as one self-contained html page."""
    data = json.dumps(rows).replace("<", "\\u003c")  # nothing in a row can end the element that holds it
    empty = '<script id="rows" type="application/json">[]'
    return PAGE.read_text(encoding="utf-8").replace(empty, empty.removesuffix("[]") + data)


def read(path: Path) -> list[dict[str, str]]:
    """All rows of the table, as text; none where there is no table."""
    if not Path(path).exists():
        return []
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UpsError(f"{path} is damaged ({error}); move it away and another is begun") from None


def _identity(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row.get(key, "") for key in IDENTITY)


def _text(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
