"""What the preflight's rehearsal measures while it trains."""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch.optim import Optimizer

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.io import write_text

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


class ResourceProbe(pl.Callback):
    """Measures a rehearsed stage and writes the results to ``folder``.

    Args:
        folder: the rehearsal's folder.
        reserve: bytes of memory to hold during the stage.

    Raises:
        UpsError: a trainable part gets no gradient.
    """

    def __init__(self, folder: str, reserve: int) -> None:
        self.folder = Path(folder)
        self.reserve = reserve
        self.steps = 0
        self.seconds: list[float] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _forget_peak()
        self.held = torch.ones(self.reserve, dtype=torch.uint8, device=pl_module.device)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: STEP_OUTPUT,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        float(pl_module.terms["loss"])  # waits for the device
        self.seconds.append(time.perf_counter() - self.started)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: Any, optimizer: Optimizer
    ) -> None:
        self.steps += 1
        if self.steps < 2:
            return
        for name, part in pl_module.trainable_module().named_children():
            gradients = [p.grad for p in part.parameters() if p.requires_grad]
            if gradients and not any(g is not None and bool(g.any()) for g in gradients):
                raise UpsError(
                    f"stage {pl_module.stage}: its part {name!r} gets no gradient, "
                    "it would not be trained"
                )

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        seconds = time.perf_counter() - self.started
        cache = getattr(pl_module, "cache", None)
        data = trainer.datamodule  # type: ignore[attr-defined]
        trainer.save_checkpoint(self.folder / "one.ckpt")
        seen = {
            "batch_seconds": min(self.seconds[1:]),
            "validation_seconds": seconds / len(data.values["validation"]),
            "memory": max(0, _peak_memory_bytes() - self.reserve),
            "checkpoint": (self.folder / "one.ckpt").stat().st_size,
            "cache_of_a_window": 0
            if cache is None
            else cache.bytes / data.train_dataloader().sampler.num_windows,
        }
        write_text(result_path(self.folder, pl_module.stage), json.dumps(seen))
        del self.held


def result_path(scratch: Path, stage: str) -> Path:
    """The file with the measurements of a stage."""
    return scratch / f"{stage}.json"


def _forget_peak() -> None:
    """Reset the peak memory of the GPU and of the process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    # if this fails, the peak of a stage includes the peaks of earlier stages
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_bytes() -> int:
    """The peak memory in bytes: of the GPU if there is one, otherwise of the process.

    It is 0 on a system that doesn't report it.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, kilobytes elsewhere
