"""outputs/leaderboard.csv: one row a result over all runs, written under a lock."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from ups.files import write_text

# a result is the same row again when these agree
IDENTITY = ("name", "stage", "model", "mode", "correct", "ttc", "dataset.hash")


def record(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add ``rows`` to the table at ``path``; a row that stands there already (by ``IDENTITY``) is replaced, none is lost or torn.

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


def read(path: Path) -> list[dict[str, str]]:
    """All rows of the table, as text; none where there is no table."""
    if not Path(path).exists():
        return []
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _identity(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row.get(key, "") for key in IDENTITY)


def _text(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
