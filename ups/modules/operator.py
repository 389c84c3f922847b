"""Stage 1: train encoder, approximator and decoder together."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ups.core.batch import Batch
from ups.core.schema import NonNegativeFloat
from ups.modules.base import BaseModule
from ups.modules.losses import inverse_decoding_weight, operator_errors, root
from ups.simulation.simulator import Simulator


class OperatorModule(BaseModule):
    """Trains a ``Simulator`` on windows with the forward loss and the two inverse losses.

    loss = L_forward + lambda_inv_enc L_inv_enc + lambda_inv_dec L_inv_dec; see
    ``ups.modules.losses.operator_errors``. The inverse terms are computed while
    ``compute_inverse_losses`` is set; the InverseLossFrequency callback sets it for each batch.

    The logged terms are means of squared errors, whatever ``squared`` is, so that runs can be
    compared.

    Validation is the latent rollout of whole trajectories in physical space;
    ``validation/operator/nrmse`` selects the best weights.

    Args:
        simulator: the simulator to train.
        lambda_inv_enc: weight of L_inv_enc.
        lambda_inv_dec: weight of L_inv_dec.
        squared: whether the loss is the mean of the squared relative errors, or of their roots.
        adaptive_inv_dec: whether each sample's L_inv_dec counts as far as the sample is
            reconstructed; see ``ups.modules.losses.inverse_decoding_weight``.

    The other arguments are those of ``BaseModule``.
    """

    stage = "operator"
    takes_points = True

    def __init__(
        self,
        simulator: Simulator,
        *,
        lambda_inv_enc: NonNegativeFloat = 1.0,
        lambda_inv_dec: NonNegativeFloat = 1.0,
        squared: bool = False,
        adaptive_inv_dec: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.simulator = simulator
        self.compute_inverse_losses = True

    def trainable_module(self) -> torch.nn.Module:
        return self.simulator.model

    def compute_losses(self, batch: Batch, *drawn: Tensor) -> dict[str, Tensor]:
        inverse = self.needs_inverse_losses()
        errors = operator_errors(
            self.simulator, batch.u, batch.parameters, inverse, batch.points, batch.start
        )
        return self.combine(errors)

    def needs_inverse_losses(self) -> bool:
        """Whether this batch has inverse losses."""
        h: Any = self.hparams
        return bool(self.compute_inverse_losses and h.lambda_inv_enc + h.lambda_inv_dec > 0)

    def combine(self, errors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weighted sum "loss" of squared errors by name, and the mean of each."""
        h: Any = self.hparams
        weights = {
            "L_forward": 1.0,
            "L_inv_enc": h.lambda_inv_enc,
            "L_inv_dec": h.lambda_inv_dec,
        }
        # all terms alike: with only one of them squared, latent rollouts drift
        terms = dict(errors) if h.squared else {name: root(e) for name, e in errors.items()}
        if h.adaptive_inv_dec and "L_inv_dec" in terms:
            weight = inverse_decoding_weight(errors["L_inv_enc"])
            num_draws = len(terms["L_inv_dec"]) // len(weight)
            terms["L_inv_dec"] = terms["L_inv_dec"] * weight.repeat_interleave(num_draws)
        zero = self.simulator.mean.new_zeros(())
        loss = sum((weights[name] * term.mean() for name, term in terms.items()), zero)
        return {"loss": loss, **{name: error.mean() for name, error in errors.items()}}
