"""A time limit for one call."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from ups.errors import Unfinished


class TimeLimit(pl.Callback):
    """Saves ``checkpoint`` and ends the call once ``duration`` (DD:HH:MM:SS) has passed; a resumed run gets the whole limit again.

    It raises at once instead of asking the trainer to stop: a stopped trainer counts the broken epoch as a whole one, and the EMA has then
    put its average in the place of the weights that training goes on with.

    Raises:
        Unfinished: the time is over.
    """

    def __init__(self, duration: str, checkpoint: Path) -> None:
        days, hours, minutes, seconds = map(int, duration.split(":"))
        self.duration, self.text = ((days * 24 + hours) * 60 + minutes) * 60 + seconds, duration
        self.checkpoint = checkpoint

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.end = time.monotonic() + self.duration

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if time.monotonic() > self.end and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            trainer.save_checkpoint(self.checkpoint)
            raise Unfinished(
                f"time limit {self.text} reached in epoch {trainer.current_epoch + 1}; the same command goes on from {self.checkpoint}"
            )
