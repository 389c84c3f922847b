"""What launchers say of this process in the environment, and when that does not count."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ups.core.errors import UpsError

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
    devices = num_devices(trainer["devices"], trainer["accelerator"])
    return trainer["num_nodes"] == 1 and devices == 1


def num_devices(devices: object, accelerator: object) -> int:
    """The number of devices that the Trainer's argument means; 0 if it means none.

    Args:
        devices: a number, indices, or "auto".
        accelerator: the Trainer's argument.
    """
    if str(devices) in ("auto", "-1"):
        on_cpu = accelerator == "cpu" or not torch.accelerator.is_available()
        return 1 if on_cpu else torch.accelerator.device_count()
    if isinstance(devices, str) and "," in devices:  # indices: "0," is one device
        return len([index for index in devices.split(",") if index.strip()])
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    text = str(devices)
    return int(text) if text.isdigit() else 0


def auto_accelerators() -> tuple[str, ...]:
    """The words for the accelerator that "auto" means on this machine.

    Apple's GPU is none of them: it has no float64, in which metrics are summed and data are solved.
    """
    return ("auto", "gpu", "cuda") if torch.cuda.is_available() else ("auto", "cpu")


def usable_accelerator(accelerator: str) -> str:
    """The Trainer's argument for ``accelerator``: on a Mac "auto" means the CPU.

    Raises:
        UpsError: it is Apple's GPU.
    """
    if not torch.backends.mps.is_available():
        return accelerator
    if accelerator in ("mps", "gpu"):
        raise UpsError(
            f"`trainer.accelerator` must be cpu on this machine, got {accelerator!r}: Apple's GPU "
            "has no float64."
        )
    return "cpu" if accelerator == "auto" else accelerator


def auto_precision(accelerator: object) -> str:
    """What trainer.precision=auto means: bf16-mixed on GPUs that have it."""
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"


def has_foreign_rank() -> bool:
    """Whether a launcher's variable says that this is not the first process."""
    return any(os.environ.get(name, "0").strip() not in ("", "0") for name in RANK_VARIABLES)
