"""Stage 1: train encoder, approximator and decoder together."""

from typing import Any

import torch
from torch import Tensor

from ups.core.batch import Batch
from ups.modules.base import BaseModule
from ups.modules.losses import operator_losses
from ups.simulation.simulator import Simulator


class OperatorModule(BaseModule):
    """Trains a ``Simulator`` on windows with the forward loss and the two inverse losses.

    loss = L_forward + lambda_inv_enc L_inv_enc + lambda_inv_dec L_inv_dec; see
    ``ups.modules.losses.operator_losses``. The inverse terms are computed while ``inverse_now`` is
    set; the InverseLossFrequency callback sets it for each batch.

    Validation is the latent rollout of whole trajectories in physical space;
    ``validation/operator/nrmse`` selects the best weights.

    Args:
        simulator: the simulator to train.
        lambda_inv_enc: weight of L_inv_enc.
        lambda_inv_dec: weight of L_inv_dec.

    The other arguments are those of ``BaseModule``.
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

    def trainable_module(self) -> torch.nn.Module:
        return self.simulator.model

    def compute_losses(self, batch: Batch, *drawn: Tensor) -> dict[str, Tensor]:
        h: Any = self.hparams
        inverse = self.inverse_now and h.lambda_inv_enc + h.lambda_inv_dec > 0
        terms = operator_losses(self.simulator, batch.u, batch.nu, inverse)
        loss = terms["L_forward"]
        if inverse:
            loss = (
                loss + h.lambda_inv_enc * terms["L_inv_enc"] + h.lambda_inv_dec * terms["L_inv_dec"]
            )
        return {"loss": loss, **terms}
