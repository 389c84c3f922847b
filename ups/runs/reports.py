"""At the end of the test: the plot, the page and the evaluation files; and hints for next steps."""

import json
import logging
import shlex
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from omegaconf import DictConfig

from ups.core.settings import quoted
from ups.evaluation.report.html import write_run
from ups.evaluation.report.plots import draw_rollout
from ups.evaluation.results import (
    Evaluation,
    Provenance,
    Tested,
    TestedData,
    merge_evaluations,
    read_evaluations,
)
from ups.runs.data_defaults import POINTS
from ups.runs.provenance import evaluation_fingerprint, write_provenance
from ups.simulation.picture import can_draw

log = logging.getLogger(__name__)


class ReportWriter(pl.Callback):
    """Writes the reports of a run at the end of its test.

    It precedes the callbacks of the configuration, which then find the evaluation files.

    Args:
        cfg: the configuration.
        folder: the run's folder.

    Attributes:
        seconds: the time that the rollouts took, without the first calls, which compile solvers.
    """

    def __init__(self, cfg: DictConfig, folder: Path) -> None:
        self.cfg = cfg
        self.folder = folder
        self.seconds = 0.0

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds = time.perf_counter() - self.started - pl_module.warm_up_seconds
        write_reports(self.cfg, pl_module, trainer.datamodule, self.folder)


def write_reports(cfg: DictConfig, tested: Tested, data: TestedData, folder: Path) -> None:
    """Write provenance.json, the plot, the page and the evaluation files.

    Args:
        cfg: the configuration.
        tested: results of the test.
        data: the test data.
        folder: the run's folder.
    """
    origin = write_provenance(cfg, folder, data.dataset["hash"])
    paths = report_paths(cfg, folder)
    if can_draw(data.spec):
        draw_rollout(
            paths[False].with_suffix(".png"),
            tested.examples["median"],
            data.spec,
            f"{cfg.name}: the median test trajectory",
        )
    write_page(cfg, tested, data, folder, origin)
    # Last, because they mark the run as finished. What is derived from them, the leaderboard, is
    # written after them and also by the command that finds the run finished.
    for ttc, path in paths.items():
        rows = [row for row in tested.rows if row.ttc == ttc or row.is_baseline]
        Evaluation(data.dataset, rows, origin).write(path)


def log_next_steps(cfg: DictConfig, folder: Path) -> None:
    """Log where the results are and what to do with them."""
    pages = [folder / "reports/report.html", Path(cfg.output_dir) / "leaderboard.html"]
    log.info(
        "report: %s; all runs: %s", *(path if path.exists() else path.parent for path in pages)
    )
    # Hydra parses what the shell leaves: special characters need its quotes too
    name = shlex.quote(f"name={quoted(cfg.name)}")
    more = (
        ""
        if cfg.stage.name in ("all", "evaluate") or cfg.data._target_ == POINTS
        else f"; python -m ups.run stage=all {name} ... trains the later stages"
    )
    log.info(
        "next: ups.load(%s) in Python; python -m ups.report %s RUN compares%s",
        json.dumps(str(folder), ensure_ascii=False),
        shlex.quote(str(folder)),
        more,
    )


def write_page(
    cfg: DictConfig, tested: Tested, data: TestedData, folder: Path, origin: Provenance
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


def finished_results(cfg: DictConfig, folder: Path) -> Evaluation | None:
    """Read the folder's evaluation of exactly these weights and settings.

    Returns:
        The evaluation, or None if a file of this command is missing, damaged or stale.
    """
    fresh = read_evaluations(folder, evaluation_fingerprint(cfg, folder))
    paths = report_paths(cfg, folder).values()
    if not fresh.keys() >= set(paths):
        return None
    return merge_evaluations([fresh[path] for path in paths])
