"""Checkpoints are whole or absent."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ups.errors import UpsError
from ups.files import read_tensors, write_bytes


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name, flushes and renames it; reads tensors and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()  # so that its size is known before the disk is asked for it
        torch.save(checkpoint, content)
        write_bytes(Path(path), content.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        try:
            return read_tensors(path, map_location)
        except Exception as error:  # torch raises many kinds
            raise UpsError(f"{path} is not a checkpoint, or is damaged ({type(error).__name__})") from None


class LastCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint for going on, but only from where a run can; see ``can_go_on_from``."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if can_go_on_from(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def can_go_on_from(trainer: Any, batch_idx: int) -> bool:
    """Whether a checkpoint after this batch leads to the same end as going on without a stop.

    One amid accumulated batches doesn't hold their gradient; one between an epoch's last batch and its validation would skip that, and
    might take a worse epoch for the best one.
    """
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
