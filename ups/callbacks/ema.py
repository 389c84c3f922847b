"""The running average of the weights, from its first update on."""

import logging
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import callbacks

from ups.core.errors import UpsError
from ups.core.schema import Decay, NonNegativeInt

log = logging.getLogger(__name__)


class EMAWeightAveraging(callbacks.EMAWeightAveraging):
    """Lightning's average, which does not exist before its first update.

    Lightning's own holds the untrained weights until then, validates and ships them, also if
    training ends before ``update_starting_at_step``. Here these are the raw weights. And of every
    ``update_every_n_steps`` steps the last one is averaged, not the first, which is untrained too.

    Args:
        device: where the average is kept; default: with the weights.
        use_buffers: whether buffers are averaged too.
        decay: decay rate of the average in an update, below 1.
        update_every_n_steps: number of steps between two updates; 0: none after steps.
        update_starting_at_step: the first step, from 0, after which there may be an update.
        update_starting_at_epoch: the first epoch, from 0, at whose end there is one too; None: no
            updates at the ends of epochs.

    Raises:
        UpsError: ``decay`` is 1, with which the average would stay that of the first update.
    """

    def __init__(
        self,
        device: str | None = None,
        use_buffers: bool = True,
        decay: Decay = 0.999,
        update_every_n_steps: NonNegativeInt = 1,
        update_starting_at_step: NonNegativeInt | None = None,
        update_starting_at_epoch: NonNegativeInt | None = None,
    ) -> None:
        if not 0 <= decay < 1:
            raise UpsError(f"`decay` must be a number in [0, 1), got {decay:g}.")
        super().__init__(
            device=device,
            use_buffers=use_buffers,
            decay=decay,
            update_every_n_steps=update_every_n_steps,
            update_starting_at_step=update_starting_at_step,
            update_starting_at_epoch=update_starting_at_epoch,
        )

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
