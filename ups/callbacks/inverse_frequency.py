"""The frequency of the inverse losses."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.schema import PositiveInt, validate_arguments
from ups.modules.operator import OperatorModule
from ups.simulation.simulator import Simulator


class InverseLossFrequency(pl.Callback):
    """Computes the operator's inverse losses in every ``every``-th batch only.

    They cost one more encoding and decoding.

    Args:
        every: 1 computes them in every batch.
        parts: number of parts of a batch; all parts of such a batch have the inverse losses.

    Raises:
        UpsError: an inverse loss has a weight, but in its first batch it is absent, zero, or
            without gradient in the encoder or the decoder.
    """

    def __init__(self, every: PositiveInt = 1, parts: PositiveInt = 1) -> None:
        given = {"every": every, "parts": parts}
        validate_arguments(InverseLossFrequency, given, "callbacks.inverse_loss_frequency")
        self.every = every
        self.parts = parts
        self.checked = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int
    ) -> None:
        pl_module.compute_inverse_losses = batch_idx // self.parts % self.every == 0
        if pl_module.stage == "operator" and pl_module.compute_inverse_losses and not self.checked:
            self.checked = True
            check_inverse_loss_gradients(pl_module, batch)


def check_inverse_loss_gradients(module: OperatorModule, batch: Batch) -> None:
    """Compute each inverse term alone, once per call, and check its gradient.

    Args:
        module: the operator's module.
        batch: the first batch with inverse losses.

    Raises:
        UpsError: see ``InverseLossFrequency``.
    """
    simulator = module.simulator
    parameters = [p for p in module.parameters() if p.requires_grad]

    def reached(value: Tensor) -> list[bool]:
        if not value.requires_grad:
            return [False] * len(parameters)
        return [
            g is not None and bool(g.any())
            for g in torch.autograd.grad(value, parameters, allow_unused=True)
        ]

    weights = {
        "L_inv_enc": module.hparams["lambda_inv_enc"],
        "L_inv_dec": module.hparams["lambda_inv_dec"],
    }
    for name, weight in weights.items():
        if weight == 0:
            continue
        drawn = module.sample_noise(batch, torch.Generator(module.device).manual_seed(0))
        term = module.compute_losses(batch, *drawn).get(name)
        first, points = batch.start
        z = simulator.encode(first, batch.parameters, points)
        if term is None or float(term.detach()) == 0.0:
            raise UpsError(
                f"the weight of {name} is {weight:g}, but the term is absent or zero "
                "in the first batch: it would do nothing"
            )
        by_term = reached(term)
        outputs = {"encoder": z, "decoder": simulator.decode(z.detach(), batch.points)}
        for part, output in outputs.items():
            if part == "decoder" and _has_no_parameters(simulator, z, output, batch):
                continue
            by_part = reached(output.square().sum())
            if not any(a and b for a, b in zip(by_term, by_part, strict=True)):
                raise UpsError(
                    f"the weight of {name} is {weight:g}, but the {part} gets no gradient from it: "
                    "it would do nothing there"
                )


def _has_no_parameters(simulator: Simulator, z: Tensor, decoded: Tensor, batch: Batch) -> bool:
    """Whether a model's decoder has none: nothing is frozen, gradients pass, and none is held."""
    is_frozen = any(not p.requires_grad for p in simulator.model.parameters())
    decodes_with_gradient = simulator.decode(z, batch.points).requires_grad
    return not is_frozen and not decoded.requires_grad and decodes_with_gradient
