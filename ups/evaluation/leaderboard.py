"""outputs/leaderboard.csv and .html: every result of all runs, derived from their evaluations.

The runs' evaluation files are the only source. Rows of a run that was removed leave the table, and
so do rows that an earlier version wrote for runs that no longer exist.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ups.core.errors import UpsError
from ups.core.io import write_text
from ups.core.locks import file_lock
from ups.evaluation.results import EVALUATIONS, Evaluation, Row, read_evaluations

PAGE = Path(__file__).with_name("leaderboard.html")
# two results with the same values of these keys are the same row, and the newer one is shown
ROW_KEY = ("name", "model", "mode", "correct", "ttc", "dataset.hash")


def write(output_dir: str | Path) -> None:
    """Write both files from the evaluations of all runs in ``output_dir``.

    The html page shows the rows of the table, sortable, with a plot of error against cost for one
    test set at a time.
    """
    path = Path(output_dir) / "leaderboard.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Reading is within the lock, too: whoever is last to write has then seen the evaluations of
    # all who wrote before. Without that an older view could replace a newer one.
    with file_lock(f"{path}.lock"):
        rows = [
            {key: _text(value) for key, value in row.items()} for row in collect_rows(path.parent)
        ]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())
        write_text(path.with_suffix(".html"), render_html(rows))


def collect_rows(output_dir: Path) -> list[dict[str, object]]:
    """Collect the rows of all runs in ``output_dir``, in the order in which they were tested."""
    folders = {path.parents[1] for path in output_dir.glob(f"*/{EVALUATIONS}")}
    evaluations = [
        (evaluation.time, folder.name, path.stem, evaluation)
        for folder in sorted(folders)
        for path, evaluation in read_evaluations(folder).items()
    ]
    table: dict[tuple[object, ...], dict[str, object]] = {}
    for _, name, stem, evaluation in sorted(evaluations, key=lambda found: found[:3]):
        for row in flat_rows(name, stem, evaluation):
            table[tuple(row.get(key) for key in ROW_KEY)] = row
    return list(table.values())


def flat_rows(name: str, stem: str, evaluation: Evaluation) -> list[dict[str, object]]:
    """Flatten the rows of an evaluation; lists of numbers over time are left out.

    The entries of the data set and of the provenance become columns.

    Args:
        name: name of the run.
        stem: name of the evaluation file, without its ending.
        evaluation: the evaluation.
    """
    dataset = {f"dataset.{key}": value for key, value in evaluation.dataset.items()}
    origin = {
        key: value for key, value in evaluation.provenance.items() if not isinstance(value, Mapping)
    }
    versions = evaluation.provenance.get("versions", {})
    # earlier versions did not record the stage of the command
    stage = origin.pop("stage", None) or _stage_of(stem)
    return [
        {
            # baselines belong to the data set and not to a run: they have one row each
            "name": "baseline" if row.is_baseline else name,
            "stage": stage,
            "label": row.label,
            **_numbers(row),
            **dataset,
            **origin,
            **{f"version.{key}": value for key, value in versions.items()},
        }
        for row in evaluation.rows
    ]


def render_html(rows: Sequence[Mapping[str, str]]) -> str:
    """Render the table as one self-contained html page."""
    # no value in a row can close the script element
    data = json.dumps(rows).replace("<", "\\u003c")
    empty = '<script id="rows" type="application/json">[]'
    return PAGE.read_text(encoding="utf-8").replace(empty, empty.removesuffix("[]") + data)


def read(path: Path) -> list[dict[str, str]]:
    """Read all rows of the table, as text; an empty list if there is no table.

    A spreadsheet may have put a byte-order mark before it.

    Raises:
        UpsError: the file is damaged, or has other columns.
    """
    if not Path(path).exists():
        return []
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows = list(table)
            columns = table.fieldnames or ROW_KEY  # an empty file has no rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise UpsError(f"{path} is damaged ({error}); the next run writes it again") from None
    lacking = [key for key in ROW_KEY if key not in columns]
    if lacking:
        raise UpsError(
            f"{path} must be a table separated by commas with the columns {', '.join(ROW_KEY)}, "
            f"got none of {', '.join(lacking)}; the next run writes it again."
        )
    return rows


def _stage_of(stem: str) -> str:
    name = stem.removeprefix("eval_")
    return "evaluate" if name in ("baseline", "ttc") else name


def _numbers(row: Row) -> dict[str, object]:
    return {key: value for key, value in row.items() if not isinstance(value, list)}


def _text(value: object) -> str:
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else str(value)
