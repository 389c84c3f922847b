"""What a person sees after a run: the table in the terminal, the evaluation JSON, the picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from ups.files import whole_or_absent, write_text

Row = Mapping[str, Any]


def write_evaluation(path: Path, dataset: Mapping[str, Any], rows: Sequence[Row], provenance: Mapping[str, Any]) -> None:
    """Write {"dataset", "rows", "provenance"} as JSON."""
    write_json(path, {"dataset": dict(dataset), "rows": [dict(row) for row in rows], "provenance": dict(provenance)})


def finished_results(folder: Path, stage: str) -> dict[str, Any] | None:
    """The evaluation that a run's folder holds for ``stage``, or None where there is none yet."""
    path = folder / "reports" / f"eval_{stage}.json"
    return json.loads(path.read_text()) if path.exists() else None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def print_table(dataset: Mapping[str, Any], rows: Sequence[Row], console: Console | None = None) -> None:
    """The final table: errors in physical space and cost, the run's own rows first."""
    title = "{name}: {trajectories} test trajectories, {points} points, {n} frames from t = 0".format(**dataset, n=dataset["frames"] - 1)
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("model")
    table.add_column("mode")
    for head in ("nRMSE", "at the end", "one step", "RMSE", "max error", "mass (cRMSE)", "ms / trajectory"):
        table.add_column(head, justify="right")
    for row in rows:
        values = (row["nrmse"], row["nrmse_over_time"][-1], row["one_step_nrmse"], row["rmse"], row["max_error"], row["crmse"])
        numbers = [f"{value:.4f}" for value in values]
        table.add_row(row["model"], row["mode"], *numbers, f"{1e3 * row['seconds_per_trajectory']:.2f}")
    (console or Console(width=120)).print(table)


def draw_rollout(path: Path, truth: Tensor, pred: Tensor, dt: float, length: float, title: str) -> None:
    """One picture: truth, prediction and error (T, X) over space and time, and three frames of both."""
    from matplotlib.figure import Figure

    error = pred - truth
    top, worst = float(truth.abs().max()), float(error.abs().max())
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    axes = figure.subplots(1, 4)
    extent = (0.0, length, dt, dt * len(truth))
    for axis, field, name, limit in zip(axes, (truth, pred, error), ("truth", "latent rollout", "error"), (top, top, worst), strict=False):
        image = axis.imshow(field, origin="lower", aspect="auto", extent=extent, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set(title=name, xlabel="x", ylabel="t")
        figure.colorbar(image, ax=axis)
    x = [(i + 0.5) * length / truth.shape[1] for i in range(truth.shape[1])]
    for frame, colour in zip((0, len(truth) // 4, len(truth) - 1), ("C0", "C1", "C2"), strict=True):
        axes[3].plot(x, truth[frame], color=colour, label=f"t = {dt * (frame + 1):.2f}")
        axes[3].plot(x, pred[frame], color=colour, linestyle="--")
    axes[3].set(title="truth (line), rollout (- -)", xlabel="x", ylabel="u")
    axes[3].legend()
    figure.suptitle(title, fontsize=10)
    with whole_or_absent(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def leaderboard_rows(
    name: str, stage: str, dataset: Mapping[str, Any], rows: Sequence[Row], provenance: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The evaluation's rows, flat: lists left out, the data set's and the provenance's entries as columns of their own."""
    about = {f"dataset.{key}": value for key, value in dataset.items()}
    origin = {key: value for key, value in provenance.items() if not isinstance(value, Mapping)}
    versions = {f"version.{key}": value for key, value in provenance["versions"].items()}
    flat = [{key: value for key, value in row.items() if not isinstance(value, list)} for row in rows]
    own = rows[0]["model"]
    # baselines belong to the data set, not to a run: they stand once
    return [{"name": name if r["model"] == own else "baseline", "stage": stage, **r, **about, **origin, **versions} for r in flat]
