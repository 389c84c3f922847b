"""How often the inverse losses are computed."""

from typing import Any

import lightning.pytorch as pl

from ups.errors import UpsError


class InverseLossFrequency(pl.Callback):
    """Computes the operator's inverse losses in every ``every``-th batch only; they cost an encoding and a decoding more.

    Raises:
        UpsError: the inverse losses are asked for, but absent or zero in the first batch that should have them.
    """

    def __init__(self, every: int = 1) -> None:
        self.every = every

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.inverse_now = batch_idx % self.every == 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx > 0 or pl_module.stage != "operator":
            return
        for name, weight in {
            "L_inv_enc": pl_module.hparams.lambda_inv_enc,
            "L_inv_dec": pl_module.hparams.lambda_inv_dec,
        }.items():
            if weight > 0 and (name not in outputs or float(outputs[name].detach()) == 0.0):
                raise UpsError(
                    f"loss weight of {name} is {weight:g}, but the term is absent or zero in batch 0: the inverse losses would do nothing"
                )
