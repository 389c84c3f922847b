"""The final table of a run, in the terminal."""

import sys
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from ups.evaluation.results import DatasetInfo, Row, divergence_in_words, no_gain_in_words

WIDE = 110  # characters of a terminal that shows all columns
COLUMNS: dict[str, Callable[[Row], float | None]] = {
    "nRMSE": lambda row: row["nrmse"],
    "at the end": lambda row: row["nrmse_over_time"][-1],
    "one step": lambda row: row["one_step_nrmse"],
    "RMSE": lambda row: row["rmse"],
    "max error": lambda row: row["max_error"],
    "mass (cRMSE)": lambda row: row.get("crmse"),  # fields on points have none
}
WIDE_COLUMNS = ("RMSE", "max error", "mass (cRMSE)")


def print_table(
    dataset: DatasetInfo,
    rows: Sequence[Row],
    console: Console | None = None,
    times: str | None = None,
) -> None:
    """Print errors in physical space and cost, the run's own rows first.

    Args:
        dataset: description of the test set.
        rows: rows of the evaluation.
        console: where to print; default: the terminal.
        times: what the times are of, in words.
    """
    title = (
        "{name}: {trajectories} test trajectories, {points} points, "
        "{n} frames after the first".format(**dataset, n=dataset["frames"] - 1)
    )
    console = console or Console(width=None if sys.stdout.isatty() else 136)
    cells = {
        head: [_number(read(row)) for row in rows]
        for head, read in COLUMNS.items()
        if console.width >= WIDE or head not in WIDE_COLUMNS
    }
    cells = {head: texts for head, texts in cells.items() if set(texts) != {"-"}}
    same = [head for head in cells if head in WIDE_COLUMNS and _is_constant(cells[head])]
    said_once = [f"{head} {cells.pop(head)[0]} in all rows" for head in same]
    cells["ms / trajectory"] = [f"{1e3 * row['seconds_per_trajectory']:.2f}" for row in rows]
    remarks = [times, *said_once, divergence_in_words(rows), no_gain_in_words(rows)]
    caption = "; ".join(filter(None, remarks))
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption or None,
        caption_justify="left",
    )
    table.add_column("rollout")
    for head in cells:
        table.add_column(head, justify="right")
    for row, *numbers in zip(rows, *cells.values(), strict=True):
        table.add_row(row.label, *numbers)
    console.print(table)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if value < 1000 else f"{value:.1e}"


def _is_constant(texts: Sequence[str]) -> bool:
    return len(texts) > 1 and len(set(texts)) == 1
