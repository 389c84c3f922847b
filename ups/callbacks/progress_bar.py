"""The progress bar in a terminal."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar


class EpochProgressBar(RichProgressBar):
    """Rich's bar with the epoch count of the epoch summaries and the loss of the last batch."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}".ljust(
            len(self.validation_description)
        )

    def get_metrics(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Any]:
        return (
            {"loss": f"{float(pl_module.terms['loss']):.5f}"}
            if getattr(pl_module, "terms", None)
            else {}
        )
