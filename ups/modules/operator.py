"""Stage 1: train encoder, approximator and decoder together."""

from typing import Any

import torch
from torch import Tensor

from ups.datamodules.windows import Batch
from ups.losses import operator_losses
from ups.modules.stage import StageModule
from ups.rollout import Simulator


class OperatorModule(StageModule):
    """Trains a ``Simulator`` on windows with the forward and the two inverse losses.

    loss = L_forward + lambda_inv_enc L_inv_enc + lambda_inv_dec L_inv_dec; see ``ups.losses.operator_losses``. The inverse
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
        optimizer: str = "muon",
        lr: float = 3e-3,
        weight_decay: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
        warmup: float = 0.03,
        final_lr: float = 0.0,
        threads: int = 1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["simulator"], logger=False)
        self.simulator = simulator
        self.inverse_now = True

    def trained(self) -> torch.nn.Module:
        return self.simulator.model

    def loss_terms(self, batch: Batch, *drawn: Tensor) -> dict[str, Tensor]:
        h: Any = self.hparams
        inverse = self.inverse_now and h.lambda_inv_enc + h.lambda_inv_dec > 0
        terms = operator_losses(self.simulator, batch.u, batch.nu, inverse)
        loss = terms["L_forward"]
        if inverse:
            loss = loss + h.lambda_inv_enc * terms["L_inv_enc"] + h.lambda_inv_dec * terms["L_inv_dec"]
        return {"loss": loss, **terms}
