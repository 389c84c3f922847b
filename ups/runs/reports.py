"""After the test: the result files, the page, the leaderboard, and hints for next steps."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ups.core.io import read_json
from ups.datamodules import TrajectoryDataModule
from ups.evaluation import leaderboard
from ups.evaluation.report.html import write_run
from ups.evaluation.report.plots import draw_rollout
from ups.evaluation.report.table import print_table
from ups.evaluation.results import leaderboard_rows, write_json
from ups.modules import EvaluationModule
from ups.runs.provenance import evaluation_fingerprint, write_provenance

log = logging.getLogger(__name__)


def report(
    cfg: DictConfig, tested: EvaluationModule, data: TrajectoryDataModule, folder: Path
) -> None:
    """Write the evaluation files, the plot, the page, provenance.json and the leaderboard's rows.

    Args:
        cfg: the configuration.
        tested: results of the test.
        data: the test data.
        folder: the run's folder.
    """
    origin, paths = write_provenance(cfg, folder, data.dataset["hash"]), report_paths(cfg, folder)
    picture = paths[False].with_suffix(".png")
    draw_rollout(
        picture,
        *tested.examples["median"],
        data.dt,
        data.length,
        f"{cfg.name}: the median test trajectory",
    )
    table = Path(cfg.output_dir) / "leaderboard.csv"
    leaderboard.upsert_rows(
        table, leaderboard_rows(cfg.name, cfg.stage.name, data.dataset, tested.rows, origin)
    )
    write_page(cfg, tested, data, folder, origin)
    for ttc, path in paths.items():  # written last, because they mark the run as finished
        # both files hold the baselines
        rows = [row for row in tested.rows if row["ttc"] == ttc or row["model"] != cfg.model.name]
        write_json(path, {"dataset": data.dataset, "rows": rows, "provenance": origin})
    print_table(data.dataset, tested.rows)
    log_next_steps(cfg, folder)


def log_next_steps(cfg: DictConfig, folder: Path) -> None:
    """Log where the results are and what to do with them."""
    pages = [folder / "reports/report.html", Path(cfg.output_dir) / "leaderboard.html"]
    log.info(
        "report: %s; all runs: %s", *(path if path.exists() else path.parent for path in pages)
    )
    more = (
        ""
        if cfg.stage.name in ("all", "evaluate")
        else f"; python -m ups.run stage=all name={cfg.name} ... trains the later stages"
    )
    log.info(
        'next: ups.load("%s") in Python; python -m ups.report %s RUN compares%s',
        folder,
        folder,
        more,
    )


def write_page(
    cfg: DictConfig,
    tested: EvaluationModule,
    data: TrajectoryDataModule,
    folder: Path,
    origin: Mapping[str, Any],
) -> None:
    """Write ``reports/report.html``; a failure is logged and does not fail the run.

    Args:
        cfg: the configuration.
        tested: results of the test.
        data: the test data.
        folder: the run's folder.
        origin: the run's provenance.
    """
    try:
        write_run(cfg, tested, data, folder, origin)
    except Exception as error:
        log.warning(
            "%s could not be written (%s: %s); the results are beside it",
            folder / "reports/report.html",
            type(error).__name__,
            error,
        )


def report_paths(cfg: DictConfig, folder: Path) -> dict[bool, Path]:
    """The evaluation files of this command.

    The key is False without test-time conditioning, and True with it, if it is enabled.
    """
    last = cfg.stage.name in ("evaluate", "all")
    paths = {
        False: folder
        / "reports"
        / ("eval_baseline.json" if last else f"eval_{cfg.stage.name}.json")
    }
    return (
        paths | {True: folder / "reports" / "eval_ttc.json"} if last and cfg.ttc.enabled else paths
    )


def finished_results(cfg: DictConfig, folder: Path) -> dict[str, Any] | None:
    """Read the folder's evaluation of exactly these weights and settings.

    Returns:
        The data set and the rows, or None if an evaluation is missing or stale.
    """
    results = [
        read_json(path) if path.exists() else None for path in report_paths(cfg, folder).values()
    ]
    now = evaluation_fingerprint(cfg, folder)
    fresh = [
        result
        for result in results
        if result is not None and result.get("provenance", {}).get("evaluated") == now
    ]
    if len(fresh) < len(results):
        return None
    # the key removes the copies of baselines, which both files hold
    rows = {
        (r["model"], r["mode"], r["correct"], r["ttc"]): r
        for result in fresh
        for r in result["rows"]
    }
    return {"dataset": fresh[0]["dataset"], "rows": list(rows.values())}
