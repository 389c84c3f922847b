"""Checkpoints that are complete or absent."""

import io
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch.serialization import MAP_LOCATION

from ups.core.io import read_tensors, unreadable, write_bytes
from ups.core.schema import PositiveInt, validate_arguments
from ups.core.settings import PlainDict
from ups.simulation.converter import convert_state


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name, flushes and renames it.

    It reads tensors and plain values only, also under the names of earlier versions.
    """

    def save_checkpoint(
        self, checkpoint: PlainDict, path: str | Path, storage_options: object = None
    ) -> None:
        content = io.BytesIO()  # in memory, so that its size is known before it is written
        torch.save(checkpoint, content)
        write_bytes(Path(path), content.getbuffer())

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: MAP_LOCATION = "cpu",
        weights_only: bool | None = True,
    ) -> PlainDict:
        try:
            checkpoint = read_tensors(Path(path), map_location)
        except Exception as error:  # torch raises many kinds
            raise unreadable(Path(path), error, "a checkpoint") from None
        if isinstance(checkpoint, dict):
            for key in ("state_dict", "current_model_state"):
                if isinstance(checkpoint.get(key), dict):
                    checkpoint[key] = convert_state(checkpoint[key])
        return checkpoint


class ResumeCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint for resuming, restricted to batches from which a run can resume.

    See ``is_resumable_after``.

    Args:
        every_n_train_steps: number of steps between two checkpoints.
        options: all other arguments of ModelCheckpoint.
    """

    def __init__(self, every_n_train_steps: PositiveInt = 500, **options: Any) -> None:
        given = {"every_n_train_steps": every_n_train_steps}
        validate_arguments(ResumeCheckpoint, given, "callbacks.last")
        super().__init__(every_n_train_steps=every_n_train_steps, **options)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
    ) -> None:
        if is_resumable_after(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def is_resumable_after(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether a run that resumes after this batch ends as an uninterrupted one.

    A checkpoint between accumulated batches lacks their gradient. A checkpoint between the last
    batch of an epoch and its validation would skip the validation, and might take a worse epoch for
    the best one.
    """
    return (
        (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    )
