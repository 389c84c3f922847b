"""Hydra callbacks: the table after a multirun, and a command at the end of the process."""

import atexit
import logging
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from ups.core.renamed_keys import rename_arguments
from ups.evaluation.results import read_evaluations
from ups.runs.launchers import trains_alone

TRIES, TIMEOUT = 3, 60.0  # timeout in seconds for each attempt
log = logging.getLogger("ups")


class OnFinish(Callback):
    """A Hydra callback that runs the shell command ``callbacks.on_finish`` once, at the very end.

    The process runs it last: after the run or the whole sweep has finished, failed or stopped, when
    all files are flushed and all loggers are closed. Only SIGKILL prevents it. A failure of the
    command has no effect on the run. With several processes the first on each machine runs it.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        command = config.callbacks.get("on_finish")
        local_rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
        # a value of another type is refused before the run
        if not (isinstance(command, str) and command):
            return
        if local_rank == "0" or trains_alone(config.trainer):
            atexit.register(finish, command)

    on_multirun_start = on_run_start


def finish(command: str, tries: int = TRIES, timeout: float = TIMEOUT) -> None:
    """Run a shell command until it succeeds; never raises.

    It runs in its own session, so that a Ctrl-C does not reach it.

    Args:
        command: the shell command.
        tries: largest number of attempts.
        timeout: limit on one attempt in seconds.
    """
    for attempt in range(1, tries + 1):
        try:
            code: object = subprocess.run(
                command, shell=True, timeout=timeout, start_new_session=True
            ).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            code = error
        if code == 0:
            return
        log.warning(
            "callbacks.on_finish, try %d of %d: %s",
            attempt,
            tries,
            code if isinstance(code, Exception) else f"exit code {code}",
        )


class SweepTable(Callback):
    """A Hydra callback that prints the test error of each setting over its seeds after a multirun.

    If a job has not finished, the process exits with code 2; the same command then runs the
    remaining jobs.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        jobs = {path for path in Path(config.output_dir).glob(f"{config.name}-*") if path.is_dir()}
        left = sorted(job.name for job in jobs if not read_evaluations(job))
        print_sweep(Path(config.output_dir), config.name)
        if left:
            log.error(
                "%d of %d jobs have not finished, the same command goes on with them: %s",
                len(left),
                len(jobs),
                ", ".join(left),
            )
            sys.exit(2)


def print_sweep(output_dir: Path, name: str, console: Console | None = None) -> None:
    """Print a table of the runs ``<output_dir>/<name>-*``, grouped by overrides without the seed.

    The errors come from the runs' evaluations.

    Args:
        output_dir: the folder of the runs.
        name: the name of the sweep.
        console: where to print; default: the terminal.
    """
    settings: dict[str, tuple[str, ...]] = {}
    for path in sorted(output_dir.glob(f"{name}-*/overrides.yaml")):
        try:
            overrides = yaml.safe_load(path.read_text()) or []
        except (yaml.YAMLError, UnicodeDecodeError):
            overrides = None
        if not isinstance(overrides, list):
            log.warning("%s is damaged, and its run left out", path)
            continue
        settings[path.parent.name] = tuple(
            o
            for o in rename_arguments(overrides)[0]
            if not o.startswith(("seed=", "name=", "stage="))
        )
    errors: dict[tuple[tuple[str, ...], str, str], list[float]] = defaultdict(list)
    for job, setting in settings.items():
        # an operator's rows may be in two files, of one test set
        nrmse = {
            (row.label, evaluation.dataset["hash"]): row["nrmse"]
            for evaluation in read_evaluations(output_dir / job).values()
            for row in evaluation.rows
            if not row.is_baseline
        }
        for (label, dataset), error in nrmse.items():
            errors[setting, label, dataset].append(error)
    common = set.intersection(*map(set, settings.values())) if settings else set()
    table = Table(
        title=f"{name}: rollout nRMSE on the test set", title_justify="left", title_style="bold"
    )
    for head in ("setting", "rollout", "runs", "mean", "spread (std)", "best", "worst"):
        table.add_column(head, justify="left" if head in ("setting", "rollout") else "right")
    for (setting, label, _), values in sorted(errors.items()):
        spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
        numbers = [
            f"{statistics.mean(values):.4f}",
            spread,
            f"{min(values):.4f}",
            f"{max(values):.4f}",
        ]
        table.add_row(
            " ".join(o for o in setting if o not in common) or "(the same)",
            label,
            str(len(values)),
            *numbers,
        )
    (console or Console(width=None if sys.stdout.isatty() else 120)).print(table)
