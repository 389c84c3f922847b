"""Hydra callbacks: the table after a multirun, and a command at the end of the process."""

import atexit
import json
import logging
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from ups.core.io import write_text
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

    def on_run_start(self, config: DictConfig, **kwargs: object) -> None:
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


@dataclass(frozen=True)
class SweepJob:
    """A job of a sweep.

    Args:
        folder: its run directory.
        overrides: its overrides of the configuration.
        is_finished: whether it has ended without an error.
    """

    folder: Path
    overrides: tuple[str, ...]
    is_finished: bool


class SweepTable(Callback):
    """A Hydra callback that prints the test error of each setting over its seeds after a multirun.

    Each job leaves a record when it starts and one when it ends, in whatever process a launcher
    runs it: launchers pass copies of this object. The table and the exit code come from these
    records alone, not from what else ``output_dir`` holds. If a job has not finished, the process
    exits with code 2; the same command then runs the remaining jobs.
    """

    def __init__(self) -> None:
        self.records: Path | None = None  # of a multirun

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        self.records = Path(config.output_dir).absolute() / f".sweep-{uuid4().hex[:12]}"
        atexit.register(shutil.rmtree, self.records, ignore_errors=True)

    def on_job_start(self, config: DictConfig, **kwargs: object) -> None:
        if self.records is not None:
            write_record(self.records, config, is_finished=False)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: object) -> None:
        if self.records is None:  # a single run, whose folder for Hydra is the working directory
            return
        is_completed = job_return.status is JobStatus.COMPLETED
        score = job_return.return_value if is_completed else math.nan
        # a refused job returns nan, see ups.run
        write_record(self.records, config, is_finished=not math.isnan(score))
        if math.isnan(score):
            with suppress(OSError):  # Hydra makes the folder before the job's settings are checked
                Path(config.hydra.runtime.output_dir).rmdir()

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        jobs = read_jobs(self.records) if self.records else []
        print_sweep(jobs, config.name)
        left = sorted(job.folder.name for job in jobs if not job.is_finished)
        if left:
            log.error(
                "%d of %d jobs have not finished, the same command resumes them: %s",
                len(left),
                len(jobs),
                ", ".join(left),
            )
        if left or not jobs:
            sys.exit(2)


def write_record(records: Path, config: DictConfig, is_finished: bool) -> None:
    """Write the record of a job of a sweep into the folder ``records``."""
    records.mkdir(parents=True, exist_ok=True)
    job = {
        "folder": config.hydra.runtime.output_dir,
        "overrides": list(config.hydra.overrides.task),
        "is_finished": is_finished,
    }
    write_text(records / f"{config.hydra.job.num}.json", json.dumps(job))


def read_jobs(records: Path) -> list[SweepJob]:
    """The jobs that left a record in the folder ``records``."""
    jobs = []
    for path in records.glob("*.json"):
        job = json.loads(path.read_text())
        jobs.append(SweepJob(Path(job["folder"]), tuple(job["overrides"]), job["is_finished"]))
    return sorted(jobs, key=lambda job: job.folder.name)


def print_sweep(jobs: Sequence[SweepJob], name: str, console: Console | None = None) -> None:
    """Print a table of the jobs of a sweep, grouped by overrides without the seed.

    The errors come from the evaluations of those that have finished.

    Args:
        jobs: all jobs of the sweep.
        name: the name of the sweep.
        console: where to print; default: the terminal.
    """
    settings: dict[Path, tuple[str, ...]] = {
        job.folder: tuple(
            o
            for o in rename_arguments(list(job.overrides))[0]
            if not o.startswith(("seed=", "stage="))
        )
        for job in jobs
    }
    errors: dict[tuple[tuple[str, ...], str, str], list[float]] = defaultdict(list)
    for job in jobs:
        if not job.is_finished:
            continue
        # an operator's rows may be in two files, of one test set
        nrmse = {
            (row.label, evaluation.dataset["hash"]): row["nrmse"]
            for evaluation in read_evaluations(job.folder).values()
            for row in evaluation.rows
            if not row.is_baseline
        }
        for (label, dataset), error in nrmse.items():
            errors[settings[job.folder], label, dataset].append(error)
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
