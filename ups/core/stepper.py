"""Whatever moves a field forward in time, and the loop that does it."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from ups.core.errors import UpsError

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
    checkpoint_every: int | None = None,
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
        checkpoint_every: number of steps whose activations are not kept for the gradient, but
            computed again for it: less memory for a third more time. About the square root of
            ``steps`` needs the least memory. Frames come in groups of as many. It has no effect
            where gradients are off; default: all activations are kept.

    Raises:
        UpsError: ``checkpoint_every`` is given under a reverse-mode transform of ``torch.func``.
    """
    advance = _decoded_steps if reencode else _latent_steps
    steps_per_call = 1 if reencode else frames_per_decode
    has_checkpoints = checkpoint_every is not None and torch.is_grad_enabled()
    if checkpoint_every is not None and has_checkpoints:
        _check_checkpoints_possible()
        steps_per_call = checkpoint_every
    # a decoded field starts the steps that encode it, otherwise its state does
    start = u0 if reencode else stepper.encode(u0, parameters)
    for first in range(0, steps, steps_per_call):
        num_steps = min(steps_per_call, steps - first)
        arguments = (stepper, start, parameters, num_steps)
        if has_checkpoints:
            start, fields = checkpoint(advance, *arguments, use_reentrant=False)
        else:
            start, fields = advance(*arguments)
        yield from fields


def _latent_steps(
    stepper: Stepper, state: Tensor, parameters: Tensor, num_steps: int
) -> tuple[Tensor, Sequence[Tensor]]:
    """The state after ``num_steps`` steps, and the fields of all of them, decoded in one call."""
    states = []
    for _ in range(num_steps):
        state = stepper.step(state, parameters)
        states.append(state)
    u = stepper.decode(torch.cat(states) if num_steps > 1 else state)
    return state, u.split(len(state))


def _decoded_steps(
    stepper: Stepper, u: Tensor, parameters: Tensor, num_steps: int
) -> tuple[Tensor, Sequence[Tensor]]:
    """The field after ``num_steps`` steps that each encode the field before, and all fields."""
    fields = []
    for _ in range(num_steps):
        state = stepper.encode(u, parameters)
        u = stepper.decode(stepper.step(state, parameters))
        fields.append(u)
    return u, fields


def _check_checkpoints_possible() -> None:
    try:
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            pass
    except RuntimeError:  # a checkpoint is made of such hooks
        raise UpsError(
            "`checkpoint_every` must be None under torch.func.grad and its kin, which support no "
            "checkpoints. Use torch.autograd.grad or backward() instead."
        ) from None


@torch.no_grad()
def predict(
    stepper: Stepper, u0: Tensor, steps: int, parameters: Tensor, reencode: bool = False
) -> Tensor:
    """All frames (B, steps, *space, C) of a rollout, without gradients; see ``rollout``."""
    frames_per_decode = max(1, FIELDS_PER_DECODE // len(u0))
    return torch.stack(
        list(rollout(stepper, u0, steps, parameters, reencode, frames_per_decode)), 1
    )
