"""Whatever moves a field forward in time, and the loop that does it."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

FIELDS_PER_DECODE = 64  # decoded in one call: for single fields the overhead of calls dominates


class Stepper(Protocol):
    """Moves a field forward by one time step: a network, a solver, or a composition of them.

    A state is whatever the stepper carries from step to step, a tensor (B, ...): latent tokens of a
    network, cell averages of a solver, or the field itself.
    """

    def encode(self, u: Tensor, parameters: Tensor) -> Tensor:
        """Map fields (B, *space, C) to states (B, ...); ``parameters`` are (B, P)."""

    def step(self, state: Tensor, parameters: Tensor) -> Tensor:
        """Advance states (B, ...) by one time step."""

    def decode(self, state: Tensor) -> Tensor:
        """Map states (B, ...) to fields (B, *space, C)."""


def rollout(
    stepper: Stepper,
    u0: Tensor,
    steps: int,
    parameters: Tensor,
    reencode: bool = False,
    frames_per_decode: int = 1,
) -> Iterator[Tensor]:
    """Yield the fields (B, *space, C) of a rollout one frame at a time, without the initial one.

    Args:
        stepper: moves the field forward.
        u0: initial fields (B, *space, C).
        steps: number of frames.
        parameters: parameters of the equation (B, P).
        reencode: whether each step starts from the encoded field of the step before, and not from
            its state.
        frames_per_decode: number of frames that are decoded in one call, which is faster for small
            fields. It has no effect with ``reencode``.
    """
    state = stepper.encode(u0, parameters)
    pending: list[Tensor] = []
    for k in range(steps):
        state = stepper.step(state, parameters)
        pending.append(state)
        if not (reencode or len(pending) >= frames_per_decode or k == steps - 1):
            continue
        u = stepper.decode(torch.cat(pending) if len(pending) > 1 else state)
        yield from u.split(len(u0))
        pending.clear()
        if reencode and k < steps - 1:
            state = stepper.encode(u, parameters)


@torch.no_grad()
def predict(
    stepper: Stepper, u0: Tensor, steps: int, parameters: Tensor, reencode: bool = False
) -> Tensor:
    """All frames (B, steps, *space, C) of a rollout, without gradients; see ``rollout``."""
    frames_per_decode = max(1, FIELDS_PER_DECODE // len(u0))
    return torch.stack(
        list(rollout(stepper, u0, steps, parameters, reencode, frames_per_decode)), 1
    )
