"""Several processes that train together."""

import torch
from lightning.pytorch.utilities import rank_zero_only


def is_first_process() -> bool:
    """Whether this is the first of the processes that train together: the one that writes."""
    return getattr(rank_zero_only, "rank", 0) == 0


def shutdown_distributed() -> bool:
    """End distributed training and return whether this process is the one that continues."""
    first = is_first_process()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return first
