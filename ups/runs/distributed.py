"""Several processes that train together."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities import rank_zero_only

from ups.runs.launchers import trains_alone


class SingleProcess(LightningEnvironment):
    """The environment of a process that trains alone, whatever a launcher's variables say."""

    @property
    def creates_processes_externally(self) -> bool:
        return False

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return 0


def ignore_foreign_rank(trainer: Mapping[str, Any]) -> None:
    """Make a process that trains alone the first one; Lightning reads ranks when it is imported.

    Args:
        trainer: arguments of the Trainer.
    """
    if trains_alone(trainer):
        rank_zero_only.rank = 0  # type: ignore[attr-defined]  # set by Lightning in this way


def is_first_process() -> bool:
    """Whether this is the first of the processes that train together: the one that writes."""
    return getattr(rank_zero_only, "rank", 0) == 0


def shutdown_distributed() -> bool:
    """End distributed training and return whether this process is the one that continues."""
    first = is_first_process()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return first
