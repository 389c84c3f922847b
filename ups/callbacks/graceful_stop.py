"""Stop cleanly at a time limit, on SIGTERM or on Ctrl-C."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT

from ups.callbacks.checkpoint import is_resumable_after
from ups.core.errors import Interrupted, RunIncomplete


class TimeLimit:
    """A limit on the duration of one call, counted from the construction of this object.

    Args:
        duration: DD:HH:MM:SS; None for no limit.
    """

    def __init__(self, duration: str | None = None) -> None:
        self.duration = duration
        self.end = time.monotonic() + _seconds(duration) if duration else float("inf")

    @property
    def is_over(self) -> bool:
        """Whether the time has run out."""
        return time.monotonic() > self.end

    def unfinished(self, where: str) -> RunIncomplete:
        """The exception to raise when the limit is reached at ``where``."""
        return RunIncomplete(
            f"time limit {self.duration} reached {where}; the same command resumes"
        )

    @contextmanager
    def outside_of_training(self) -> Iterator[None]:
        """Raise RunIncomplete as soon as the limit is reached, for example during data generation.

        While a stage trains, its ``GracefulStop`` callback handles the alarm and ends the call
        after a whole step. There is no alarm outside the main thread, or if the system has none:
        the limit is then checked between steps and stages only.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()
        if self.duration is None or not in_main_thread or not hasattr(signal, "setitimer"):
            yield
            return

        def ring(sign: int, frame: FrameType | None) -> None:
            raise self.unfinished("outside of training")

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, self.end - time.monotonic()))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


class GracefulStop(Checkpoint):
    """Saves a checkpoint and ends the call after a batch if the limit is over or a signal came.

    With several processes all stop after the same batch.

    It raises an exception instead of setting the trainer's stop flag. A trainer stopped by the flag
    counts the incomplete epoch as complete, and the EMA replaces the weights that training needs to
    resume by their average. It is a Checkpoint so that Lightning calls it last: the callback that
    keeps the best weights, and early stopping, must process an epoch before it is saved as
    complete.

    Args:
        checkpoint: the file to save.
        limit: the limit on the call.

    Raises:
        RunIncomplete: the call ends early.
    """

    def __init__(self, checkpoint: Path, limit: TimeLimit) -> None:
        self.checkpoint = checkpoint
        self.limit = limit
        self.signal: str | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # replaces other handlers, which Lightning restores at the end
        if threading.current_thread() is threading.main_thread():
            for sign in (signal.SIGTERM, signal.SIGINT):
                signal.signal(sign, self._remember)
            if hasattr(signal, "SIGALRM"):
                # the time limit is checked between steps anyway
                signal.signal(signal.SIGALRM, signal.SIG_IGN)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
    ) -> None:
        if is_resumable_after(trainer, batch_idx):
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
            raise self.reason(where) or Interrupted(f"stopped {where}; the same command resumes")

    def reason(self, where: str) -> RunIncomplete | None:
        """The exception to raise if this process must stop, else None.

        Args:
            where: the position in the run, for the message.
        """
        if self.signal:
            return Interrupted(f"stopped by {self.signal} {where}; the same command resumes")
        return self.limit.unfinished(where) if self.limit.is_over else None

    def _remember(self, sign: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(sign).name


def _seconds(duration: str) -> int:
    days, hours, minutes, seconds = map(int, duration.split(":"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
