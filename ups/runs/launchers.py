"""What launchers say of this process in the environment, and when that does not count."""

import os
from collections.abc import Mapping
from typing import Any

import torch

# of torchrun, Lightning, SLURM, LSF, Open MPI and MPICH
RANK_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "GROUP_RANK",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "JSM_NAMESPACE_RANK",
    "OMPI_COMM_WORLD_RANK",
    "PMI_RANK",
)


def trains_alone(trainer: Mapping[str, Any]) -> bool:
    """Whether these arguments of the Trainer ask for one process: one device on one node.

    Variables of a launcher then say nothing about training. They may come from a shell, a notebook
    or a container that was started by one.
    """
    if trainer["num_nodes"] != 1:
        return False
    devices = trainer["devices"]
    if str(devices) in ("auto", "-1"):
        on_cpu = trainer["accelerator"] == "cpu" or not torch.accelerator.is_available()
        return on_cpu or torch.accelerator.device_count() == 1
    if isinstance(devices, str) and "," in devices:  # indices: "0," is one device
        return len([index for index in devices.split(",") if index.strip()]) == 1
    return str(devices) == "1" or (not isinstance(devices, int | str) and len(devices) == 1)


def has_foreign_rank() -> bool:
    """Whether a launcher's variable says that this is not the first process."""
    return any(os.environ.get(name, "0").strip() not in ("", "0") for name in RANK_VARIABLES)
