"""The final table of a run, in the terminal."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ups.evaluation.results import DatasetInfo, Row


def print_table(dataset: DatasetInfo, rows: Sequence[Row], console: Console | None = None) -> None:
    """Print errors in physical space and cost, the run's own rows first.

    Args:
        dataset: description of the test set.
        rows: rows of the evaluation.
        console: where to print; default: the terminal.
    """
    title = (
        "{name}: {trajectories} test trajectories, {points} points, {n} frames from t = 0".format(
            **dataset, n=dataset["frames"] - 1
        )
    )
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("rollout")
    console = console or Console(width=None if sys.stdout.isatty() else 136)
    few = console.width < 110
    for head in (
        "nRMSE",
        "at the end",
        "one step",
        *(() if few else ("RMSE", "max error", "mass (cRMSE)")),
        "ms / trajectory",
    ):
        table.add_column(head, justify="right")
    for row in rows:
        more = () if few else (row["rmse"], row["max_error"], row["crmse"])
        numbers = [
            f"{value:.4f}" if value < 1000 else f"{value:.1e}"
            for value in (row["nrmse"], row["nrmse_over_time"][-1], row["one_step_nrmse"], *more)
        ]
        table.add_row(row.label, *numbers, f"{1e3 * row['seconds_per_trajectory']:.2f}")
    console.print(table)
