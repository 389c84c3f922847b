"""How often the inverse losses are computed."""

from typing import Any

import lightning.pytorch as pl
import torch

from ups.errors import UpsError


class InverseLossFrequency(pl.Callback):
    """Computes the operator's inverse losses in every ``every``-th batch only; they cost an encoding and a decoding more.

    With batches in ``parts``, all parts of such a batch have them.

    Raises:
        UpsError: the inverse losses are asked for, but in the first batch that should have them one is absent, zero, or without gradient
            in the encoder or the decoder.
    """

    def __init__(self, every: int = 1, parts: int = 1) -> None:
        self.every, self.parts, self.checked = every, parts, False

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.inverse_now = batch_idx // self.parts % self.every == 0
        if pl_module.stage == "operator" and pl_module.inverse_now and not self.checked:
            self.checked = True
            _refuse_idle(pl_module, batch)


def _refuse_idle(module: Any, batch: Any) -> None:
    """Once in a call each inverse term is computed by itself, and its own gradient looked at."""
    simulator = module.simulator
    parameters = [p for p in module.parameters() if p.requires_grad]

    def reached(value: Any) -> list[bool]:
        if not value.requires_grad:
            return [False] * len(parameters)
        return [g is not None and bool(g.any()) for g in torch.autograd.grad(value, parameters, allow_unused=True)]

    for name, weight in {"L_inv_enc": module.hparams.lambda_inv_enc, "L_inv_dec": module.hparams.lambda_inv_dec}.items():
        if weight == 0:
            continue
        term, z = module.loss_terms(batch).get(name), simulator.encode(batch.u[:, 0])
        if term is None or float(term.detach()) == 0.0:
            raise UpsError(f"the weight of {name} is {weight:g}, but the term is absent or zero in the first batch: it would do nothing")
        own, parts = reached(term), {"encoder": z, "decoder": simulator.decode(z.detach())}
        for part, output in parts.items():
            if not any(a and b for a, b in zip(own, reached(output.square().sum()), strict=True)):
                raise UpsError(f"the weight of {name} is {weight:g}, but the {part} gets no gradient from it: it would do nothing there")
