"""Before anything long starts: the command itself in small, on untrained weights, and what that says about memory, disk and time.

It runs in a process of its own, which may run out of memory, or be killed for it, without the command.
"""

import contextlib
import json
import logging
import math
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from ups.callbacks.epoch_log import duration
from ups.callbacks.stop import TimeLimit
from ups.errors import UpsError, for_a_person, is_out_of_memory
from ups.files import read_json, require_space, same_disk, size, write_text
from ups.parallel import is_first_process
from ups.provenance import hardware
from ups.stages import begun, parent, parent_hash, settings, stage_config, weights

STEPS = 3  # of each stage at least: the first is slow, the second sees gradients behind layers that begin at zero
TRAINED, TESTED = 32, 8  # trajectories
REFUSED, OUT_OF_MEMORY = 2, 4  # exit codes of the rehearsal
RESERVE = 2**28  # bytes that the rehearsal keeps free beside the training data, for what a long run has and it hasn't
log = logging.getLogger(__name__)


def preflight(cfg: DictConfig, todo: list[str], folder: Path) -> dict[str, int]:
    """Rehearse the stages ``todo`` and say what they need; returns in how many parts a stage's batches are to be taken.

    Stages that this folder knows from an earlier call, with the same settings on the same hardware, are not rehearsed again; and none that
    has begun, which goes on as it began.

    Raises:
        UpsError: a stage fails, or doesn't fit into memory or on the disk; says what would.
    """
    path = folder / "preflight.json"
    known = read_json(path) if path.exists() else {}
    now = {stage: {"settings": settings(cfg, stage), "hardware": hardware()} for stage in todo}
    found = {
        stage: known[stage] for stage in todo if stage in known and (known[stage].items() >= now[stage].items() or begun(folder, stage))
    }
    alone = cfg.stage.name == "preflight"
    if (cfg.preflight or alone) and is_first_process() and (alone or len(found) < len(todo)):
        for stage in todo:
            instantiate(stage_config(cfg, stage).data, _convert_="all").open_files()  # refuses files that hold less than is asked of them
        with tempfile.TemporaryDirectory(prefix="ups-preflight-") as scratch:
            needs, test_seconds = rehearse(cfg, todo, folder, Path(scratch))
        found = {stage: {**now[stage], **needs[stage]} for stage in todo}
        print_needs(cfg, found, test_seconds)
        disk = sum(stage["checkpoints"] for stage in needs.values()) + max(stage["cache"] for stage in needs.values())
        data = instantiate(cfg.data, _convert_="all")
        if same_disk(folder, data.path):
            disk += data.to_be_made()
        require_space(folder, disk, "this run")  # a cache goes when its stage ends
        write_text(path, json.dumps({**known, **found, "test": {"seconds": test_seconds}}, indent=1, default=str) + "\n")
    return {stage: needs["parts"] for stage, needs in found.items()}


def rehearse(cfg: DictConfig, todo: list[str], folder: Path, scratch: Path) -> tuple[dict[str, dict[str, Any]], float]:
    """What each of the stages ``todo`` needs, its batches in as few parts as fit into memory; and the seconds that the test will take."""
    if before := parent(todo[0]):
        parent_hash(folder, todo[0])  # refuses where that stage has not finished
        for raw in (False, True):
            copy = weights(scratch / cfg.name, before, raw=raw)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(weights(folder, before, raw=raw), copy)
    parts = dict.fromkeys(todo, 1)
    while True:
        write_text(scratch / "config.yaml", OmegaConf.to_yaml(in_small(cfg, parts, scratch)))
        left = [stage for stage in todo if not _seen(scratch, stage).exists()]
        stages = [f"{stage}={parts[stage]}" for stage in left]
        done = subprocess.run([sys.executable, "-m", "ups.preflight", str(scratch), *stages], capture_output=True, text=True)
        if done.returncode == 0:
            break
        stage = next((stage for stage in left if not _seen(scratch, stage).exists()), "evaluate")
        if done.returncode == REFUSED:
            raise UpsError(f"preflight: {done.stderr.strip().splitlines()[-1]}")
        if done.returncode not in (OUT_OF_MEMORY, -signal.SIGKILL):
            raise UpsError(f"preflight: stage {stage} fails:\n{done.stderr}")
        if stage == "evaluate":
            raise UpsError(f"preflight: data.eval_batch_size={cfg.data.eval_batch_size} trajectories don't fit into memory; fewer may")
        batch = stage_config(cfg, stage).data.batch_size // parts[stage]
        if batch % 2:
            raise UpsError(
                f"preflight: stage {stage}: batches of {batch} windows don't fit into memory and can't be halved; {batch // 2} may"
            )
        parts[stage] *= 2
        log.warning("stage %s: batches of %d windows don't fit into memory; they are taken in %d parts", stage, batch, parts[stage])
    seen = {stage: read_json(_seen(scratch, stage)) for stage in todo}
    tested = read_json(_seen(scratch, "test"))
    test = tested["seconds"] * cfg.data.test / min(cfg.data.test, TESTED) + tested["beside"]
    return {stage: {"parts": parts[stage], **needs(cfg, stage, parts[stage], seen[stage])} for stage in todo}, test


def in_small(cfg: DictConfig, parts: dict[str, int], scratch: Path) -> DictConfig:
    """The command with all its sizes, but few steps and trajectories; all that it writes goes to ``scratch``."""
    small: Any = OmegaConf.create(OmegaConf.to_container(cfg))  # a copy that takes new keys
    few = {
        "train": min(cfg.data.train, TRAINED),
        "validation": min(cfg.data.validation, cfg.data.eval_batch_size),
        "test": min(cfg.data.test, TESTED),
        "directory": str(scratch / "data"),
    }
    for stage, split in parts.items():
        own = stage_config(cfg, stage)
        batches = max(STEPS, 2 * own.trainer.accumulate_grad_batches * split)
        windows = math.ceil(batches * own.data.batch_size / split / few["train"])
        small.stage[stage].data.update({**few, "windows_per_trajectory": windows})
        small.stage[stage].trainer.update({"max_epochs": 1})
    small.data.update(few)
    small.trainer.update({"devices": 1, "num_nodes": 1, "strategy": "auto", "max_time": None, "check_val_every_n_epoch": 1})
    in_memory = cfg.data.train * _files(cfg) * cfg.data.frames * cfg.data.points * 4 if cfg.data.in_memory else 0
    small.callbacks.watch = {"_target_": "ups.preflight.Watch", "folder": str(scratch), "reserve": RESERVE + in_memory}
    small.expect = dict.fromkeys(small.expect)  # they are said of the command, not of this
    small.output_dir, small.stage.name = str(scratch), "all" if cfg.stage.name == "preflight" else cfg.stage.name
    return small


class Watch(pl.Callback):
    """Rides on a rehearsed stage, holds ``reserve`` bytes of memory, and writes what it saw to ``folder``.

    Raises:
        UpsError: a part that is to be trained gets no gradient.
    """

    def __init__(self, folder: str, reserve: int) -> None:
        self.folder, self.reserve, self.steps, self.seconds = Path(folder), reserve, 0, list[float]()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        _forget_peak()
        self.held = torch.ones(self.reserve, dtype=torch.uint8, device=pl_module.device)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        float(pl_module.terms["loss"])  # waits for the device
        self.seconds.append(time.perf_counter() - self.started)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.steps += 1
        if self.steps < 2:
            return
        for name, part in pl_module.trained().named_children():
            gradients = [p.grad for p in part.parameters() if p.requires_grad]
            if gradients and not any(g is not None and bool(g.any()) for g in gradients):
                raise UpsError(f"stage {pl_module.stage}: its part {name!r} gets no gradient, it would not be trained")

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.started = time.perf_counter()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        seconds, cache = time.perf_counter() - self.started, getattr(pl_module, "cache", None)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        trainer.save_checkpoint(self.folder / "one.ckpt")
        seen = {
            "batch_seconds": min(self.seconds[1:]),
            "validation_seconds": seconds / len(data.values["validation"]),
            "memory": _peak() - self.reserve,
            "checkpoint": (self.folder / "one.ckpt").stat().st_size,
            "cache_of_a_window": 0 if cache is None else cache.bytes / data.train_dataloader().sampler.windows,
        }
        write_text(_seen(self.folder, pl_module.stage), json.dumps(seen))
        del self.held


def needs(cfg: DictConfig, stage: str, parts: int, seen: dict[str, float]) -> dict[str, float]:
    """What the whole stage needs, from what its rehearsal saw: bytes of peak memory, checkpoints and cache, seconds."""
    own = stage_config(cfg, stage)
    files = _files(own)
    windows = own.data.train * files * own.data.windows_per_trajectory
    training = windows / own.data.batch_size * parts * seen["batch_seconds"]
    validation = own.data.validation * files * seen["validation_seconds"] / own.trainer.check_val_every_n_epoch
    return {
        "memory": seen["memory"],
        "checkpoints": 5 * seen["checkpoint"],  # best, last, the one being written, and the two that stay
        "cache": windows * seen["cache_of_a_window"],
        "step_seconds": seen["batch_seconds"] * parts * own.trainer.accumulate_grad_batches,
        "seconds": own.trainer.max_epochs * (training + validation),
    }


def _files(cfg: DictConfig) -> int:
    """How many files the data are in: one for each nu."""
    return max(len(value) if isinstance(value, ListConfig) else 1 for value in (cfg.data.path, cfg.data.nu))


def print_needs(cfg: DictConfig, found: dict[str, dict[str, Any]], test_seconds: float) -> None:
    table = Table(title="preflight: every stage has taken real steps at full size", title_justify="left", title_style="bold")
    for head in ("stage", "windows a batch", "peak memory", "disk", "a step", "in all, about"):
        table.add_column(head, justify="left" if head == "stage" else "right")
    for stage, need in found.items():
        windows = stage_config(cfg, stage).data.batch_size // need["parts"]
        batch = f"{need['parts']} x {windows}" if need["parts"] > 1 else str(windows)
        sizes = size(need["memory"]), size(need["checkpoints"] + need["cache"])
        table.add_row(stage, batch, *sizes, f"{1e3 * need['step_seconds']:.0f} ms", duration(need["seconds"]))
    table.add_row("test", "", "", "", "", duration(test_seconds))
    whole = sum(need["seconds"] for need in found.values()) + test_seconds
    table.add_row("all", "", "", "", "", duration(whole), style="bold")
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def _seen(scratch: Path, stage: str) -> Path:
    return scratch / f"{stage}.json"


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # where this can't be done, a stage's peak holds those of the stages before it
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Bytes: of the GPU if there is one, otherwise of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    except OSError:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(scratch: Path, stages: list[str]) -> None:
    """The rehearsal itself, in a process of its own: trains ``stages`` by ``scratch/config.yaml``, and tests."""
    from ups import run

    cfg: Any = OmegaConf.load(scratch / "config.yaml")
    folder, logger = scratch / cfg.name, CSVLogger(scratch)
    try:
        for stage, _, parts in (stage.partition("=") for stage in stages):
            run.train(cfg, stage, folder, logger, int(parts), TimeLimit())
        started = time.perf_counter()
        seconds = run.test(cfg, folder, logger)
        write_text(_seen(scratch, "test"), json.dumps({"seconds": seconds, "beside": time.perf_counter() - started - seconds}))
    except Exception as error:
        stop = for_a_person(error)
        if stop is None:
            raise
        print(stop, file=sys.stderr)
        sys.exit(OUT_OF_MEMORY if is_out_of_memory(error) else REFUSED)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
