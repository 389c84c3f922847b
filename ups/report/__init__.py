"""What a person sees after a run: the table in the terminal, the evaluation JSON, the picture."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ups import leaderboard
from ups.datamodules import TrajectoryDataModule
from ups.files import read_json, whole_or_absent, write_text
from ups.modules import EvaluateModule
from ups.provenance import evaluated, note_provenance

Row = Mapping[str, Any]
log = logging.getLogger(__name__)


def report(cfg: DictConfig, tested: EvaluateModule, data: TrajectoryDataModule, folder: Path) -> None:
    """The table, the evaluation JSON, the picture, provenance.json and the leaderboard's rows."""
    origin, paths = note_provenance(cfg, folder, data.dataset["hash"]), report_paths(cfg, folder)
    picture = paths[False].with_suffix(".png")
    draw_rollout(picture, *tested.examples["median"], data.dt, data.length, f"{cfg.name}: the median test trajectory")
    table = Path(cfg.output_dir) / "leaderboard.csv"
    leaderboard.record(table, leaderboard_rows(cfg.name, cfg.stage.name, data.dataset, tested.rows, origin))
    write_page(cfg, tested, data, folder, origin)
    for ttc, path in paths.items():  # last: they say that the run is finished
        rows = [row for row in tested.rows if row["ttc"] == ttc or row["model"] != cfg.model.name]  # the baselines stand in both
        write_json(path, {"dataset": data.dataset, "rows": rows, "provenance": origin})
    print_table(data.dataset, tested.rows)
    say_next(cfg, folder)


def say_next(cfg: DictConfig, folder: Path) -> None:
    """Where the results are, and what to do with them."""
    pages = [folder / "reports/report.html", Path(cfg.output_dir) / "leaderboard.html"]
    log.info("report: %s; all runs: %s", *(path if path.exists() else path.parent for path in pages))
    more = "" if cfg.stage.name in ("all", "evaluate") else f"; python -m ups.run stage=all name={cfg.name} ... trains the later stages"
    log.info('next: ups.load("%s") in Python; python -m ups.report %s RUN compares%s', folder, folder, more)


def write_page(cfg: DictConfig, tested: EvaluateModule, data: TrajectoryDataModule, folder: Path, origin: Mapping[str, Any]) -> None:
    """``reports/report.html``; what goes wrong with it is said, and does not fail the run."""
    try:
        from ups.report.page import write_run

        write_run(cfg, tested, data, folder, origin)
    except Exception as error:
        log.warning(
            "%s could not be written (%s: %s); the results are beside it", folder / "reports/report.html", type(error).__name__, error
        )


def report_paths(cfg: DictConfig, folder: Path) -> dict[bool, Path]:
    """The evaluations that this command writes: without test-time conditioning (False) and, where it is on, with it (True)."""
    last = cfg.stage.name in ("evaluate", "all")
    paths = {False: folder / "reports" / ("eval_baseline.json" if last else f"eval_{cfg.stage.name}.json")}
    return paths | {True: folder / "reports" / "eval_ttc.json"} if last and cfg.ttc.enabled else paths


def finished_results(cfg: DictConfig, folder: Path) -> dict[str, Any] | None:
    """The evaluation that the folder holds of just these weights and settings, or None where one is missing or stale."""
    results = [read_json(path) if path.exists() else None for path in report_paths(cfg, folder).values()]
    now = evaluated(cfg, folder)
    fresh = [result for result in results if result is not None and result.get("provenance", {}).get("evaluated") == now]
    if len(fresh) < len(results):
        return None
    rows = {(r["model"], r["mode"], r["correct"], r["ttc"]): r for result in fresh for r in result["rows"]}  # baselines stand in both
    return {"dataset": fresh[0]["dataset"], "rows": list(rows.values())}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def print_table(dataset: Mapping[str, Any], rows: Sequence[Row], console: Console | None = None) -> None:
    """The final table: errors in physical space and cost, the run's own rows first."""
    title = "{name}: {trajectories} test trajectories, {points} points, {n} frames from t = 0".format(**dataset, n=dataset["frames"] - 1)
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("model")
    table.add_column("mode")
    console = console or Console(width=None if sys.stdout.isatty() else 130)
    few = console.width < 110
    for head in ("nRMSE", "at the end", "one step", *(() if few else ("RMSE", "max error", "mass (cRMSE)")), "ms / trajectory"):
        table.add_column(head, justify="right")
    for row in rows:
        more = () if few else (row["rmse"], row["max_error"], row["crmse"])
        numbers = [
            f"{value:.4f}" if value < 1000 else f"{value:.1e}"
            for value in (row["nrmse"], row["nrmse_over_time"][-1], row["one_step_nrmse"], *more)
        ]
        name = row["model"] + (f" + {row['correct']}" if row["correct"] != "none" else "") + (" + ttc" if row["ttc"] else "")
        table.add_row(name, row["mode"], *numbers, f"{1e3 * row['seconds_per_trajectory']:.2f}")
    console.print(table)


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
