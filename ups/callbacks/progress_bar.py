"""The progress bar in a terminal."""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar


class EpochProgressBar(RichProgressBar):
    """Rich's bar with the epoch count of the epoch summaries and the loss of the last batch."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}".ljust(
            len(self.validation_description)
        )

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        terms = getattr(pl_module, "terms", None)
        return {"loss": f"{float(terms['loss']):.5f}"} if terms else {}
