"""What the benchmarks share: a run of the command line, a run's own results, mean and spread
over seeds, a JSON that is always whole.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml

from ups.core.io import write_text
from ups.datamodules import BurgersDataModule
from ups.runs.provenance import git_state, hardware

SEEDS = (0, 1, 2)
RESULTS = Path(__file__).parent / "results"


def ups_run(settings: Sequence[str], one_core: bool = False) -> None:
    """``python -m ups.run`` with ``settings``, on the whole machine or one core; its data are kept
    in outputs/data.

    Ends the benchmark where it fails; the same command goes on.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if one_core else None
    code = subprocess.run(
        [sys.executable, "-m", "ups.run", *settings, "data.directory=outputs/data"], env=environment
    ).returncode
    if code:
        raise SystemExit(
            f"a run ended with exit code {code}; the same command goes on with what is left"
        )


def side_by_side(commands: Sequence[Sequence[str]]) -> Iterator[None]:
    """``ups_run`` with each of ``commands``, two at a time with a core each.

    Yields once a command, in their order, when it is done.
    """
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(partial(ups_run, one_core=True), commands)


class Measured(Exception):
    """Ends a training whose speed is known."""

    def __init__(self, steps_per_second: float) -> None:
        self.steps_per_second = steps_per_second


class Speed(pl.Callback):
    """Counts training steps for ``seconds``, after ``warm_up`` of them, and raises
    :class:`Measured`.
    """

    def __init__(self, warm_up: float, seconds: float) -> None:
        self.warm_up, self.seconds, self.first = warm_up, seconds, -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        passed = time.perf_counter() - self.began
        if self.first < 0 and passed > self.warm_up:
            self.first, self.warm_up = batch_idx, passed
        if passed > self.warm_up + self.seconds:
            raise Measured((batch_idx - self.first) / (passed - self.warm_up))


def data_of(run: Path, **changes: Any) -> BurgersDataModule:
    """The data that a run was trained on, with ``changes``, at hand."""
    settings = yaml.safe_load((run / "config.yaml").read_text())["data"]
    data = BurgersDataModule(
        **{**{key: value for key, value in settings.items() if key != "_target_"}, **changes}
    )
    data.prepare_data()
    data.setup()
    return data


def own_rows(folder: Path, report: str) -> list[dict[str, Any]]:
    """The rows of a run's own model in one of its reports, without the baselines."""
    rows = json.loads((folder / f"reports/{report}.json").read_text())["rows"]
    return [row for row in rows if row["model"] == rows[0]["model"]]


def training_seconds(folder: Path) -> float:
    """From the first stage's beginning to the test, by the clock of a run's log.

    The run must not have been interrupted.
    """

    def when(words: str) -> datetime:
        line = next(line for line in (folder / "run.log").read_text().splitlines() if words in line)
        return datetime.fromisoformat(line[:19])

    return (when("testing") - when("parameters to train")).total_seconds()


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": statistics.mean(values),
        "stdev": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": list(values),
    }


def read(name: str) -> dict[str, Any]:
    """What ``results/<name>.json`` holds so far."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def save(name: str, result: dict[str, Any]) -> None:
    """Write ``results/<name>.json``, with the machine, versions and commit that it was made by."""
    commit, dirty = git_state()
    about = {
        "hardware": hardware(),
        "torch": torch.__version__,
        "commit": commit,
        "dirty": dirty,
        "command": " ".join(sys.argv),
    }
    path = RESULTS / f"{name}.json"
    write_text(path, json.dumps({**result, "about": about}, indent=1) + "\n")
    print("written:", path)
