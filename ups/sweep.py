"""After a multirun: one table over its jobs, mean and spread over seeds."""

import logging
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from ups import leaderboard

log = logging.getLogger(__name__)


class SweepTable(Callback):
    """A Hydra callback that prints, when all jobs of a multirun have ended, the test error of each setting over its seeds.

    Where a job has not finished the process ends with exit code 2; the same command then runs what is left.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        jobs = {path for path in Path(config.output_dir).glob(f"{config.name}-*") if path.is_dir()}
        left = sorted(job.name for job in jobs if not any(job.glob("reports/eval_*.json")))
        print_sweep(Path(config.output_dir), config.name)
        if left:
            log.error("%d of %d jobs have not finished, the same command goes on with them: %s", len(left), len(jobs), ", ".join(left))
            sys.exit(2)


def print_sweep(output_dir: Path, name: str, console: Console | None = None) -> None:
    """Group the runs ``<output_dir>/<name>-*`` by their overrides without the seed; rows come from the leaderboard."""
    settings: dict[str, tuple[str, ...]] = {}
    for path in sorted(output_dir.glob(f"{name}-*/overrides.yaml")):
        try:
            overrides = yaml.safe_load(path.read_text()) or []
        except (yaml.YAMLError, UnicodeDecodeError):
            overrides = None
        if not isinstance(overrides, list):
            log.warning("%s is damaged, and its run left out", path)
            continue
        settings[path.parent.name] = tuple(o for o in overrides if not o.startswith(("seed=", "name=", "stage=")))
    errors: dict[tuple[tuple[str, ...], str, str, str], list[float]] = defaultdict(list)
    for row in leaderboard.read(output_dir / "leaderboard.csv"):
        if row["name"] in settings:
            corrector = " + ".join([row["correct"]] * (row["correct"] != "none") + ["ttc"] * (row["ttc"] == "True"))
            errors[settings[row["name"]], row["mode"], corrector, row["dataset.hash"]].append(float(row["nrmse"]))
    common = set.intersection(*map(set, settings.values())) if settings else set()
    table = Table(title=f"{name}: rollout nRMSE on the test set", title_justify="left", title_style="bold")
    for head in ("setting", "mode", "corrected by", "runs", "mean", "spread (std)", "best", "worst"):
        table.add_column(head, justify="left" if head in ("setting", "mode", "corrected by") else "right")
    for (setting, mode, corrector, _), values in sorted(errors.items()):
        spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
        numbers = [f"{statistics.mean(values):.4f}", spread, f"{min(values):.4f}", f"{max(values):.4f}"]
        table.add_row(" ".join(o for o in setting if o not in common) or "(the same)", mode, corrector, str(len(values)), *numbers)
    (console or Console(width=None if sys.stdout.isatty() else 120)).print(table)
