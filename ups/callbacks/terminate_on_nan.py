"""Stop at the first loss or gradient that is not finite."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from ups.core.batch import Batch
from ups.core.errors import UpsError


class TerminateOnNaN(pl.Callback):
    """Stops the run before the optimizer uses a NaN or infinite loss or gradient.

    All checkpoints are therefore finite.

    Raises:
        UpsError: the first such value. The message has the term, the step and the trajectories of
            the batch.
    """

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.trajectories = batch.trajectory[:16].tolist()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        if not bool(torch.isfinite(loss)):
            bad = [
                name
                for name, value in pl_module.terms.items()
                if name != "loss" and not bool(torch.isfinite(value))
            ]
            self._stop(trainer, bad[0] if bad else "loss")

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        norms = torch._foreach_norm([p.grad for p in pl_module.parameters() if p.grad is not None])
        if not bool(torch.isfinite(torch.stack(norms)).all()):
            self._stop(trainer, "the gradient")

    def _stop(self, trainer: pl.Trainer, what: str) -> None:
        rows = ", ".join(map(str, self.trajectories))
        raise UpsError(
            f"step {trainer.global_step}: {what} is not finite (trajectories {rows}); "
            "stopped before it was used"
        )
