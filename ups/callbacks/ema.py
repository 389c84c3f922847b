"""The running average of the weights, from its first update on."""

import logging
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import callbacks

log = logging.getLogger(__name__)


class EMAWeightAveraging(callbacks.EMAWeightAveraging):
    """Lightning's average, which does not exist before its first update.

    Lightning's own holds the untrained weights until then, validates and ships them, also if
    training ends before ``update_starting_at_step``. Here these are the raw weights. And of every
    ``update_every_n_steps`` steps the last one is averaged, not the first, which is untrained too.

    The arguments are those of ``lightning.pytorch.callbacks.EMAWeightAveraging``.
    """

    @property
    def has_started(self) -> bool:
        """Whether the average has been updated."""
        average = self._average_model
        return average is not None and bool(average.n_averaged > 0)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is None or self.update_every_n_steps <= 0:
            return super().should_update(epoch_idx=epoch_idx)
        start = self.update_starting_at_step or 0
        return step_idx >= start and (step_idx + 1) % self.update_every_n_steps == 0

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.has_started:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.has_started:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._average_model is not None and not self.has_started:
            checkpoint["state_dict"] = checkpoint["current_model_state"]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.has_started:
            super().on_train_end(trainer, pl_module)
            return
        log.warning(
            "The weights are not averaged: `callbacks.ema` has no update within the %d steps of "
            "training.",
            trainer.global_step,
        )
