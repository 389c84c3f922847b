"""A short rehearsal before a long run, which estimates memory, disk space and time.

It runs the same stages at full size for a few steps, from untrained weights, in a separate process.
That process may run out of memory, or be killed for it, without ending the command.
"""

import json
import logging
import math
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from ups.callbacks.epoch_summary import format_duration
from ups.callbacks.resource_probe import result_path
from ups.core.errors import UpsError
from ups.core.io import check_disk_space, format_bytes, read_json, same_disk, write_text
from ups.runs.distributed import is_first_process
from ups.runs.provenance import hardware
from ups.runs.stages import (
    has_resume_checkpoint,
    parent_hash,
    previous_stage,
    stage_config,
    stage_fingerprint,
    weights_path,
)

# smallest number of steps in each stage: the first is slow, and only from the second on
# gradients pass layers that are initialized to zero
STEPS = 3
TRAINED, TESTED = 32, 8  # number of trajectories
REFUSED, OUT_OF_MEMORY = 2, 4  # exit codes of the rehearsal
# bytes that the rehearsal keeps free, in addition to the training data, for a long run
RESERVE = 2**28
log = logging.getLogger(__name__)


def preflight(cfg: DictConfig, todo: list[str], folder: Path) -> dict[str, int]:
    """Rehearse stages and print what they need.

    A stage is not rehearsed if an earlier call in this folder did so with the same settings on the
    same hardware, or if its training has already started.

    Args:
        cfg: the configuration.
        todo: the stages to train.
        folder: the run's folder.

    Returns:
        The number of parts into which the batches of each stage must be split.

    Raises:
        UpsError: a stage fails, or does not fit into memory or on the disk. The message says what
            would fit.
    """
    path = folder / "preflight.json"
    known = read_json(path) if path.exists() else {}
    now = {
        stage: {"settings": stage_fingerprint(cfg, stage), "hardware": hardware()} for stage in todo
    }
    found = {
        stage: known[stage]
        for stage in todo
        if stage in known
        and (known[stage].items() >= now[stage].items() or has_resume_checkpoint(folder, stage))
    }
    alone = cfg.stage.name == "preflight"
    if (cfg.preflight or alone) and is_first_process() and (alone or len(found) < len(todo)):
        for stage in todo:
            # raises an error if a file holds too few trajectories
            instantiate(stage_config(cfg, stage).data, _convert_="all").open_files()
        with tempfile.TemporaryDirectory(prefix="ups-preflight-") as scratch:
            needs, test_seconds = profile_stages(cfg, todo, folder, Path(scratch))
        found = {stage: {**now[stage], **needs[stage]} for stage in todo}
        print_requirements(cfg, found, test_seconds)
        disk = sum(stage["checkpoints"] for stage in needs.values()) + max(
            stage["cache"] for stage in needs.values()
        )
        data = instantiate(cfg.data, _convert_="all")
        if same_disk(folder, data.path):
            disk += data.to_be_made()
        check_disk_space(folder, disk, "this run")  # a cache is removed when its stage ends
        write_text(
            path,
            json.dumps({**known, **found, "test": {"seconds": test_seconds}}, indent=1, default=str)
            + "\n",
        )
    return {stage: needs["parts"] for stage, needs in found.items()}


def profile_stages(
    cfg: DictConfig, todo: list[str], folder: Path, scratch: Path
) -> tuple[dict[str, dict[str, Any]], float]:
    """Measure stages, with batches split into as few parts as memory allows.

    Args:
        cfg: the configuration.
        todo: the stages to train.
        folder: the run's folder.
        scratch: a temporary folder.

    Returns:
        What each stage needs, and the seconds that the test will take.

    Raises:
        UpsError: see ``preflight``.
    """
    if before := previous_stage(todo[0]):
        parent_hash(folder, todo[0])  # raises an error if that stage has not finished
        for raw in (False, True):
            copy = weights_path(scratch / cfg.name, before, raw=raw)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(weights_path(folder, before, raw=raw), copy)
    parts = dict.fromkeys(todo, 1)
    while True:
        write_text(
            scratch / "config.yaml", OmegaConf.to_yaml(make_dry_run_config(cfg, parts, scratch))
        )
        left = [stage for stage in todo if not result_path(scratch, stage).exists()]
        stages = [f"{stage}={parts[stage]}" for stage in left]
        done = subprocess.run(
            [sys.executable, "-m", "ups.pipeline", str(scratch), *stages],
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            break
        stage = next(
            (stage for stage in left if not result_path(scratch, stage).exists()), "evaluate"
        )
        if done.returncode == REFUSED:
            raise UpsError(f"preflight: {done.stderr.strip().splitlines()[-1]}")
        if done.returncode not in (OUT_OF_MEMORY, -signal.SIGKILL):
            raise UpsError(f"preflight: stage {stage} fails:\n{done.stderr}")
        if stage == "evaluate":
            raise UpsError(
                f"preflight: data.eval_batch_size={cfg.data.eval_batch_size} trajectories don't "
                "fit into memory; fewer may"
            )
        batch = stage_config(cfg, stage).data.batch_size // parts[stage]
        if batch % 2:
            raise UpsError(
                f"preflight: stage {stage}: batches of {batch} windows don't fit into memory "
                f"and can't be halved; {batch // 2} may"
            )
        parts[stage] *= 2
        log.warning(
            "stage %s: batches of %d windows don't fit into memory; they are taken in %d parts",
            stage,
            batch,
            parts[stage],
        )
    seen = {stage: read_json(result_path(scratch, stage)) for stage in todo}
    tested = read_json(result_path(scratch, "test"))
    test = tested["seconds"] * cfg.data.test / min(cfg.data.test, TESTED) + tested["beside"]
    return {
        stage: {
            "parts": parts[stage],
            **estimate_requirements(cfg, stage, parts[stage], seen[stage]),
        }
        for stage in todo
    }, test


def make_dry_run_config(cfg: DictConfig, parts: dict[str, int], scratch: Path) -> DictConfig:
    """The command's configuration with all its sizes, but few steps and trajectories.

    Args:
        cfg: the configuration.
        parts: number of parts of each stage's batches.
        scratch: the folder that receives all output.
    """
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
    small.trainer.update(
        {
            "devices": 1,
            "num_nodes": 1,
            "strategy": "auto",
            "max_time": None,
            "check_val_every_n_epoch": 1,
        }
    )
    in_memory = (
        cfg.data.train * _files(cfg) * cfg.data.frames * cfg.data.points * 4
        if cfg.data.in_memory
        else 0
    )
    small.callbacks.watch = {
        "_target_": "ups.callbacks.resource_probe.ResourceProbe",
        "folder": str(scratch),
        "reserve": RESERVE + in_memory,
    }
    # expected values are for the command and not for its rehearsal
    small.expect = dict.fromkeys(small.expect)
    small.output_dir, small.stage.name = (
        str(scratch),
        "all" if cfg.stage.name == "preflight" else cfg.stage.name,
    )
    return small


def estimate_requirements(
    cfg: DictConfig, stage: str, parts: int, seen: dict[str, float]
) -> dict[str, float]:
    """Estimate what a whole stage needs from the measurements of its rehearsal.

    Args:
        cfg: the configuration.
        stage: the stage.
        parts: number of parts of its batches.
        seen: what ``ResourceProbe`` measured.

    Returns:
        Peak memory, checkpoints and cache in bytes; the time of a step and of the stage in seconds.
    """
    own = stage_config(cfg, stage)
    files = _files(own)
    windows = own.data.train * files * own.data.windows_per_trajectory
    training = windows / own.data.batch_size * parts * seen["batch_seconds"]
    validation = (
        own.data.validation
        * files
        * seen["validation_seconds"]
        / own.trainer.check_val_every_n_epoch
    )
    return {
        "memory": seen["memory"],
        # best, last, the one being written, and the two that remain
        "checkpoints": 5 * seen["checkpoint"],
        "cache": windows * seen["cache_of_a_window"],
        "step_seconds": seen["batch_seconds"] * parts * own.trainer.accumulate_grad_batches,
        "seconds": own.trainer.max_epochs * (training + validation),
    }


def _files(cfg: DictConfig) -> int:
    """The number of data files, one for each nu."""
    return max(
        len(value) if isinstance(value, ListConfig) else 1 for value in (cfg.data.path, cfg.data.nu)
    )


def print_requirements(
    cfg: DictConfig, found: dict[str, dict[str, Any]], test_seconds: float
) -> None:
    """Print a table of what each stage and the test need."""
    table = Table(
        title="preflight: every stage has taken real steps at full size",
        title_justify="left",
        title_style="bold",
    )
    for head in ("stage", "windows a batch", "peak memory", "disk", "a step", "in all, about"):
        table.add_column(head, justify="left" if head == "stage" else "right")
    for stage, need in found.items():
        windows = stage_config(cfg, stage).data.batch_size // need["parts"]
        batch = f"{need['parts']} x {windows}" if need["parts"] > 1 else str(windows)
        sizes = format_bytes(need["memory"]), format_bytes(need["checkpoints"] + need["cache"])
        table.add_row(
            stage,
            batch,
            *sizes,
            f"{1e3 * need['step_seconds']:.0f} ms",
            format_duration(need["seconds"]),
        )
    table.add_row("test", "", "", "", "", format_duration(test_seconds))
    whole = sum(need["seconds"] for need in found.values()) + test_seconds
    table.add_row("all", "", "", "", "", format_duration(whole), style="bold")
    Console(width=None if sys.stdout.isatty() else 110).print(table)
