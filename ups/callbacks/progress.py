"""The progress bar of a terminal."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Rich's bar with epochs counted as the epoch lines count them, and the loss of the last batch."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}".ljust(len(self.validation_description))

    def get_metrics(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Any]:
        return {"loss": f"{float(pl_module.terms['loss']):.5f}"} if getattr(pl_module, "terms", None) else {}
