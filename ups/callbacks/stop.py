"""Stop in good order: at a time limit, on SIGTERM, on Ctrl-C."""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from ups.callbacks.checkpoint import can_go_on_from
from ups.errors import Interrupted, Unfinished


class Stop(pl.Callback):
    """Saves ``checkpoint`` and ends the call after the batch in which ``duration`` (DD:HH:MM:SS) has passed or a signal has come.

    A resumed run gets the whole limit again. In several processes all stop after the same batch.

    It raises instead of asking the trainer to stop: a stopped trainer counts the broken epoch as a whole one, and the EMA has then
    put its average in the place of the weights that training goes on with.

    Raises:
        Unfinished: in that case.
    """

    def __init__(self, checkpoint: Path, duration: str | None = None) -> None:
        self.checkpoint, self.duration = checkpoint, duration
        self.signal: str | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.end = time.monotonic() + _seconds(self.duration) if self.duration else float("inf")
        if threading.current_thread() is threading.main_thread():  # in the place of Lightning's handlers, which it restores at the end
            for sign in (signal.SIGTERM, signal.SIGINT):
                signal.signal(sign, self._remember)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if can_go_on_from(trainer, batch_idx):
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.max_epochs is None or trainer.current_epoch + 1 < trainer.max_epochs:
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        stop = self.signal is not None or time.monotonic() > self.end
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            trainer.save_checkpoint(self.checkpoint)
            kind, why = (Unfinished, f"time limit {self.duration} reached") if time.monotonic() > self.end else (Interrupted, "stopped")
            if self.signal:
                kind, why = Interrupted, f"stopped by {self.signal}"
            raise kind(f"{why} in epoch {trainer.current_epoch + 1}; the same command goes on from {self.checkpoint}")

    def _remember(self, sign: int, frame: Any) -> None:
        self.signal = signal.Signals(sign).name


def _seconds(duration: str) -> int:
    days, hours, minutes, seconds = map(int, duration.split(":"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
