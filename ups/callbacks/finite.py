"""Stop at the first loss that is not a finite number."""

from typing import Any

import lightning.pytorch as pl
import torch

from ups.errors import UpsError


class FiniteLoss(pl.Callback):
    """Stops the run before the optimiser uses a loss that is NaN or infinite; the checkpoints on disk stay the finite ones.

    Raises:
        UpsError: names the first non-finite term, the step and the batch's trajectories.
    """

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if bool(torch.isfinite(outputs["loss"])):
            return
        terms = [name for name, value in outputs.items() if not bool(torch.isfinite(value))]
        name = next((term for term in terms if term != "loss"), "loss")
        trajectories = ", ".join(str(i) for i in batch.trajectory[:16].tolist())
        raise UpsError(
            f"step {trainer.global_step}: {name} is not finite (trajectories {trajectories}); the last checkpoint on disk is finite"
        )
