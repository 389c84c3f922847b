"""Stop in good order: at a time limit, on SIGTERM, on Ctrl-C."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from ups.callbacks.checkpoint import can_go_on_from
from ups.errors import Interrupted, Unfinished


class TimeLimit:
    """A limit on one call, counted from the moment at which this is made; without a ``duration`` (DD:HH:MM:SS) there is none."""

    def __init__(self, duration: str | None = None) -> None:
        self.duration = duration
        self.end = time.monotonic() + _seconds(duration) if duration else float("inf")

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.end

    def unfinished(self, where: str) -> Unfinished:
        return Unfinished(f"time limit {self.duration} reached {where}; the same command goes on")

    @contextmanager
    def outside_of_training(self) -> Iterator[None]:
        """Raise Unfinished at the very moment, while data are made or a run is tested, say.

        While a stage trains its ``Stop`` callback takes the alarm, and ends the call after a whole step. There is no alarm outside of the
        main thread, nor where the system has none: the limit then counts between steps and stages only.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()
        if self.duration is None or not in_main_thread or not hasattr(signal, "setitimer"):
            yield
            return

        def ring(sign: int, frame: Any) -> None:
            raise self.unfinished("outside of training")

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, self.end - time.monotonic()))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


class Stop(Checkpoint):
    """Saves ``checkpoint`` and ends the call after the batch in which ``limit`` is over or a signal has come.

    In several processes all stop after the same batch.

    It raises instead of asking the trainer to stop: a stopped trainer counts the broken epoch as a whole one, and the EMA has then
    put its average in the place of the weights that training goes on with. It is a Checkpoint so that Lightning calls it last: at an
    epoch's end the callback that keeps the best weights, and early stopping, must have seen the epoch before it is saved as over.

    Raises:
        Unfinished: in that case.
    """

    def __init__(self, checkpoint: Path, limit: TimeLimit) -> None:
        self.checkpoint, self.limit = checkpoint, limit
        self.signal: str | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():  # in the place of other handlers, which Lightning restores at the end
            for sign in (signal.SIGTERM, signal.SIGINT):
                signal.signal(sign, self._remember)
            if hasattr(signal, "SIGALRM"):
                signal.signal(signal.SIGALRM, signal.SIG_IGN)  # between steps the clock is read anyway

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if can_go_on_from(trainer, batch_idx):
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.max_epochs is None or trainer.current_epoch + 1 < trainer.max_epochs:
            self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        stop = self.signal is not None or self.limit.is_over
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            trainer.save_checkpoint(self.checkpoint)
            where = f"in epoch {trainer.current_epoch + 1}, saved in {self.checkpoint}"
            raise self.reason(where) or Interrupted(f"stopped {where}; the same command goes on")

    def reason(self, where: str) -> Unfinished | None:
        """Why this process is to stop ``where`` it is, as the exception to raise; None where nothing has happened here."""
        if self.signal:
            return Interrupted(f"stopped by {self.signal} {where}; the same command goes on")
        return self.limit.unfinished(where) if self.limit.is_over else None

    def _remember(self, sign: int, frame: Any) -> None:
        self.signal = signal.Signals(sign).name


def _seconds(duration: str) -> int:
    days, hours, minutes, seconds = map(int, duration.split(":"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
