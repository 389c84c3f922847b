"""Stage 1: train encoder, approximator and decoder together."""

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from ups.datamodules.windows import Batch
from ups.losses import operator_losses
from ups.metrics import RolloutMetrics
from ups.optim import Muon
from ups.parallel import sharded_loss
from ups.rollout import Simulator


class OperatorModule(pl.LightningModule):
    """Trains a :class:`Simulator` on windows with the forward and the two inverse losses.

    loss = L_forward + lambda_inv_enc L_inv_enc + lambda_inv_dec L_inv_dec; see :func:`ups.losses.operator_losses`. The inverse
    terms are computed for a batch while ``inverse_now`` is set, which the InverseLossFrequency callback does.

    Validation is the latent rollout of whole trajectories, in physical space: ``validation/operator/nrmse`` picks the best weights.
    """

    stage = "operator"

    def __init__(
        self,
        simulator: Simulator,
        *,
        lambda_inv_enc: float = 1.0,
        lambda_inv_dec: float = 1.0,
        lr: float = 3e-3,
        weight_decay: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
        warmup: float = 0.03,
        final_lr: float = 0.0,
        threads: int = 1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["simulator"])
        self.simulator = simulator
        self.inverse_now = True

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        shards = self.hparams["threads"] if self.device.type == "cpu" and not torch.is_autocast_enabled("cpu") else 1
        if shards > 1 and len(batch) % shards == 0:
            terms = sharded_loss(self.loss_terms, batch.shards(shards), list(self.parameters()))
        else:
            terms = self.loss_terms(batch)
        self.terms = {name: value.detach() for name, value in terms.items()}
        values = {f"training/{self.stage}/{name}": value for name, value in self.terms.items()}
        self.log_dict(values, batch_size=len(batch))
        return terms

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Each term of the loss, and "loss", their weighted sum."""
        h: Any = self.hparams
        inverse = self.inverse_now and h.lambda_inv_enc + h.lambda_inv_dec > 0
        terms = operator_losses(self.simulator, batch.u, batch.nu, inverse)
        loss = terms["L_forward"]
        if inverse:
            loss = loss + h.lambda_inv_enc * terms["L_inv_enc"] + h.lambda_inv_dec * terms["L_inv_dec"]
        return {"loss": loss, **terms}

    def on_validation_epoch_start(self) -> None:
        self.metrics: RolloutMetrics | None = None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        target = batch.u[:, 1:]
        if self.metrics is None:
            self.metrics = RolloutMetrics(target.shape[1], target.shape[2], self.simulator.length).to(self.device)
        self.metrics.update(self.simulator.rollout(batch.u[:, 0], target.shape[1], nu=batch.nu), target)

    def on_validation_epoch_end(self) -> None:
        assert self.metrics is not None
        values = self.metrics.compute()
        values["nrmse_final"] = values.pop("nrmse_over_time")[-1]
        self.log_dict({f"validation/{self.stage}/{name}": value for name, value in values.items()})

    def configure_optimizers(self) -> Any:
        h: Any = self.hparams
        matrices = list(self.simulator.model.matrices())
        known = {id(p) for p in matrices}
        others = [p for p in self.parameters() if id(p) not in known]
        optimizer = Muon(matrices, others, h.lr, h.weight_decay, tuple(h.betas), h.momentum)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, total, h.warmup, h.final_lr))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def warmup_cosine(step: int, total: int, warmup: float, final: float) -> float:
    """The learning rate's factor: linear up over the first ``warmup`` of the steps, then half a cosine down to ``final``."""
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    fall = min(1.0, (step - rise) / max(1, total - rise))
    return final + (1 - final) * (0.5 + 0.5 * math.cos(math.pi * fall))
