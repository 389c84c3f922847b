"""What a stage needs, estimated from a short rehearsal of it: memory, disk space and time."""

import sys
from collections.abc import Mapping
from typing import TypedDict

from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.table import Column, Table

from ups.callbacks.epoch_summary import format_duration
from ups.core.io import format_bytes
from ups.runs.stages import stage_config


class Requirements(TypedDict):
    """What a stage needs: sizes in bytes, times in seconds, batches in ``parts``."""

    parts: int
    memory: float
    checkpoints: float
    cache: float
    step_seconds: float
    seconds: float


def estimate_requirements(
    cfg: DictConfig, stage: str, parts: int, measured: Mapping[str, float]
) -> Requirements:
    """Estimate what a whole stage needs from what ``ResourceProbe`` measured in its rehearsal."""
    own = stage_config(cfg, stage)
    files = num_files(own)
    windows = own.data.num_train * files * own.data.samples_per_trajectory
    training = windows / own.data.batch_size * parts * measured["batch_seconds"]
    validation = own.data.num_validation * files * measured["validation_seconds"]
    validation /= own.trainer.check_val_every_n_epoch
    return {
        "parts": parts,
        "memory": measured["memory"],
        # best, last, the one being written, and the two that remain
        "checkpoints": 5 * measured["checkpoint"],
        "cache": windows * measured["cache_of_a_window"],
        "step_seconds": measured["batch_seconds"] * parts * own.trainer.accumulate_grad_batches,
        "seconds": own.trainer.max_epochs * (training + validation),
    }


def num_files(cfg: DictConfig) -> int:
    """The number of data files, one for each nu."""
    values = (cfg.data.path, cfg.data.get("nu"))
    return max(len(value) if isinstance(value, ListConfig) else 1 for value in values)


def print_requirements(
    cfg: DictConfig, needs: dict[str, Requirements], test_seconds: float
) -> None:
    """Print a table of what each stage and the test need."""
    heads = ("windows a batch", "peak memory", "disk", "a step", "in all, about")
    table = Table(
        "stage",
        *(Column(head, justify="right") for head in heads),
        title="preflight: every stage has taken real steps at full size",
        title_justify="left",
        title_style="bold",
    )
    for stage, need in needs.items():
        parts = need["parts"]
        windows = stage_config(cfg, stage).data.batch_size // parts
        table.add_row(
            stage,
            f"{parts} x {windows}" if parts > 1 else str(windows),
            format_bytes(need["memory"]) if need["memory"] else "unknown",
            format_bytes(need["checkpoints"] + need["cache"]),
            f"{1e3 * need['step_seconds']:.0f} ms",
            format_duration(need["seconds"]),
        )
    total = sum(need["seconds"] for need in needs.values()) + test_seconds
    table.add_row("test", *[""] * 4, format_duration(test_seconds))
    table.add_row("all", *[""] * 4, format_duration(total), style="bold")
    Console(width=None if sys.stdout.isatty() else 110).print(table)
