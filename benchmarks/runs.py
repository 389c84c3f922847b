"""What the benchmarks share: a run of the command line, a run's own results, mean and spread
over seeds, a JSON that is always whole.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from torch import Tensor

from ups.callbacks.graceful_stop import TimeLimit
from ups.core import resolvers
from ups.core.io import write_text
from ups.core.renamed_keys import load_config
from ups.datamodules import TrajectoryDataModule
from ups.evaluation.results import Evaluation, Row
from ups.pipeline import train
from ups.runs.provenance import git_state, hardware
from ups.runs.stages import is_finished, validation_score

SEEDS = (0, 1, 2)
DATA_VERSION = 2  # of generated data; results of another are of earlier data
RESULTS = Path(__file__).parent / "results"
# models in results that were recorded under earlier names
EARLIER_NAMES = {
    "small": "mixer_small",
    "upt-small": "mixer-small",
    "upt_absolute": "upt",
    "upt-absolute": "upt",
}


def ups_run(settings: Sequence[str], one_core: bool = False) -> None:
    """``python -m ups.run`` with ``settings``, on the whole machine or one core; its data are kept
    in outputs/data.

    Ends the benchmark where it fails; the same command resumes.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if one_core else None
    code = subprocess.run(
        [sys.executable, "-m", "ups.run", *settings, "data.cache_dir=outputs/data"], env=environment
    ).returncode
    if code:
        raise SystemExit(f"a run ended with exit code {code}; the same command does what is left")


def side_by_side(commands: Sequence[Sequence[str]]) -> Iterator[None]:
    """``ups_run`` with each of ``commands``, as many at a time as there are threads, one each.

    Yields once a command, in their order, when it is done.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        yield from pool.map(partial(ups_run, one_core=True), commands)


def train_side_by_side(configs: Sequence[Any]) -> Iterator[float]:
    """Train the stages of each of ``configs`` without a test, as many at a time as there are
    threads, a process of one thread each.

    Yields the validation score of each, in their order, when it is done.
    """
    pool = ProcessPoolExecutor(
        torch.get_num_threads(), get_context("spawn"), torch.set_num_threads, (1,)
    )
    with pool:
        yield from pool.map(_validated, configs)


def _validated(cfg: Any) -> float:
    resolvers.register()  # this process may not have imported ups.run
    folder = Path(cfg.output_dir) / cfg.name
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    for stage in cfg.stage.train:
        if not is_finished(folder, stage):
            train(cfg, stage, folder, CSVLogger(folder), 1, TimeLimit())
    return validation_score(folder)


def over_threads(rollout: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``rollout``, a share of the batch for each thread: the compiled solvers have one each."""

    def shared(u0: Tensor) -> Tensor:
        parts = u0.chunk(torch.get_num_threads())
        with ThreadPoolExecutor(len(parts)) as pool:
            return torch.cat(list(pool.map(rollout, parts)))

    return shared


def on_one_core(measure: Callable[[], float]) -> float:
    """What ``measure`` finds with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure()
    finally:
        torch.set_num_threads(threads)


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


def data_of(run: Path, **changes: Any) -> TrajectoryDataModule:
    """The data that a run was trained on, with ``changes``, at hand."""
    settings: Any = OmegaConf.to_container(load_config(run / "config.yaml").data)
    data = instantiate({**settings, **changes}, _convert_="all")
    data.prepare_data()
    data.setup()
    return data


def own_rows(folder: Path, *reports: str) -> list[Row]:
    """The rows of a run's own model in some of its reports, without the baselines."""
    evaluations = [Evaluation.read(folder / f"reports/{report}.json") for report in reports]
    return [row for result in evaluations for row in result.rows if not row.is_baseline]


def training_seconds(folder: Path) -> float:
    """The time that a run's stages took, by its log: from each start, which comes when data are
    made, to the last epoch before the next.
    """
    seconds, last = 0.0, None
    for line in (folder / "run.log").read_text().splitlines():
        if match := re.match(r"(\S+ \S+) \w+(: \d+ parameters to train|  Epoch )", line):
            moment = datetime.fromisoformat(match[1])
            if last and "Epoch" in match[2]:
                seconds += (moment - last).total_seconds()
            last = moment
    return seconds


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": statistics.mean(values),
        "stdev": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": list(values),
    }


def read(name: str) -> dict[str, Any]:
    """What ``results/<name>.json`` holds so far, with the current names of the models."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return {}
    pattern = rf'"(of_)?({"|".join(EARLIER_NAMES)})(?=[", ])'
    text = re.sub(pattern, lambda m: f'"{m[1] or ""}{EARLIER_NAMES[m[2]]}', path.read_text())
    return json.loads(text)


def save(name: str, result: dict[str, Any]) -> None:
    """Write ``results/<name>.json``, with the machine, versions and commit that it was made by."""
    commit, dirty = git_state()
    about = {
        "hardware": hardware(),
        "torch": torch.__version__,
        "commit": commit,
        "dirty": dirty,
        "command": " ".join(sys.argv),
        "data": DATA_VERSION,
    }
    write_text(RESULTS / f"{name}.json", json.dumps({**result, "about": about}, indent=1) + "\n")
