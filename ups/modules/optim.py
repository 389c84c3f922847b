"""Muon: steps of orthogonalized momentum for the blocks' matrices, AdamW for everything else."""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim.adamw import adamw

# Jordan's quintic: pushes singular values in (0, 1] towards 1 in five iterations
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) on ``matrices`` and AdamW on ``others``, with one learning rate.

    The orthogonalized momentum is scaled by 0.2 sqrt(max(rows, columns)), the size of an AdamW step
    (Liu et al., "Muon is scalable for LLM training", 2025). Matrices of the same shape are
    orthogonalized together in float32. torch.optim.Muon takes one matrix at a time in bfloat16; on
    a CPU it made a training step 1.5 times as long in a trial.

    Args:
        matrices: real parameters with two dimensions. One with more, as of a convolution
            (out, in, kernel), is treated as the matrix (out, in * kernel).
        others: all other parameters.
        lr: learning rate.
        weight_decay: decoupled weight decay, for both kinds.
        betas: decay rates of AdamW's moments.
        momentum: Nesterov momentum of the matrices' gradients.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
    ) -> None:
        groups: list[dict[str, object]] = [
            {"params": list(matrices), "matrices": True},
            {"params": list(others), "matrices": False},
        ]
        super().__init__(
            [g for g in groups if g["params"]],
            {"lr": lr, "weight_decay": weight_decay, "betas": betas, "momentum": momentum},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["matrices"]:
                self._orthogonal(parameters, group["lr"], group["weight_decay"], group["momentum"])
            else:
                self._adamw(parameters, group["lr"], group["weight_decay"], group["betas"])
        return loss

    def _orthogonal(
        self, parameters: list[Tensor], lr: float, weight_decay: float, momentum: float
    ) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for p in parameters:
            by_shape[p.shape].append(p)
        for shape, matrices in by_shape.items():
            momenta = [self._state(p, "momentum") for p in matrices]
            gradients = [p.grad for p in matrices if p.grad is not None]
            torch._foreach_lerp_(momenta, gradients, 1 - momentum)
            nesterov = torch.stack(torch._foreach_lerp(gradients, momenta, momentum))
            rows = nesterov.flatten(2)
            steps = orthogonalize(rows) * (0.2 * max(rows.shape[1:]) ** 0.5 * lr)
            torch._foreach_mul_(matrices, 1 - lr * weight_decay)
            torch._foreach_sub_(matrices, [step.view(shape) for step in steps.unbind(0)])

    def _adamw(
        self, parameters: list[Tensor], lr: float, weight_decay: float, betas: tuple[float, float]
    ) -> None:
        if not parameters:
            return
        beta1, beta2 = betas
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [self._state(p, "mean") for p in parameters],
            [self._state(p, "square") for p in parameters],
            max_exp_avg_sqs=[],
            state_steps=[self._count(p) for p in parameters],
            foreach=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=weight_decay,
            eps=1e-8,
            maximize=False,
        )

    def _state(self, p: Tensor, name: str) -> Tensor:
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p)
        return state[name]

    def _count(self, p: Tensor) -> Tensor:
        """The step count of ``p`` in the form of ``adamw``: a tensor on the CPU."""
        return self.state[p].setdefault("step", torch.zeros(()))


def orthogonalize(x: Tensor) -> Tensor:
    """Map matrices (B, M, N) to the nearest ones with all singular values close to 1.

    Five Newton-Schulz iterations on X / |X|.
    """
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x
