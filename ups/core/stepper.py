"""Whatever moves a field forward in time, and the loop that does it."""

from collections.abc import Callable, Iterator, Sequence
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
    stride: int = 1,
    read: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Yield the fields (B, *space, C) of a rollout one frame at a time, without the initial one.

    Args:
        stepper: moves the field forward.
        u0: initial fields (B, *space, C).
        steps: number of steps.
        parameters: parameters of the equation (B, P).
        reencode: whether each step starts from the encoded field of the step before, and not from
            its state.
        frames_per_decode: number of frames that are decoded in one call, which is faster for small
            fields. It has no effect with ``reencode``.
        checkpoint_every: number of steps whose activations are not kept for the gradient, but
            computed again for it: less memory for a third more time. About the square root of
            ``steps`` needs the least memory. Frames come in groups of as many. It has no effect
            where gradients are off; default: all activations are kept.
        stride: number of steps between frames; without ``reencode`` nothing else is decoded. Steps
            after the last frame are not taken.
        read: maps states (B, ...) to what is yielded, for fields at other points than those that
            are encoded; default: ``stepper.decode``.

    Raises:
        UpsError: ``checkpoint_every`` is given under a reverse-mode transform of ``torch.func``.
    """
    steps -= steps % stride
    advance = _decoded_steps if reencode else _latent_steps
    steps_per_call = stride if reencode else frames_per_decode * stride
    has_checkpoints = checkpoint_every is not None and torch.is_grad_enabled()
    if checkpoint_every is not None and has_checkpoints:
        _check_checkpoints_possible()
        steps_per_call = checkpoint_every
    # a decoded field starts the steps that encode it, otherwise its state does
    start = u0 if reencode else stepper.encode(u0, parameters)
    read = read or stepper.decode
    for first in range(0, steps, steps_per_call):
        ahead = range(first + 1, min(first + steps_per_call, steps) + 1)
        is_frame = [k % stride == 0 for k in ahead]
        arguments = (stepper, start, parameters, is_frame, read)
        if has_checkpoints:
            start, fields = checkpoint(advance, *arguments, use_reentrant=False)
        else:
            start, fields = advance(*arguments)
        yield from fields


def _latent_steps(
    stepper: Stepper,
    state: Tensor,
    parameters: Tensor,
    is_frame: Sequence[bool],
    read: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Sequence[Tensor]]:
    """The state after as many steps, and the fields of those that are frames, decoded in one
    call.
    """
    states = []
    for keep in is_frame:
        state = stepper.step(state, parameters)
        if keep:
            states.append(state)
    if not states:
        return state, ()
    u = read(torch.cat(states) if len(states) > 1 else states[0])
    return state, u.split(len(state))


def _decoded_steps(
    stepper: Stepper,
    u: Tensor,
    parameters: Tensor,
    is_frame: Sequence[bool],
    read: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Sequence[Tensor]]:
    """The field after as many steps that each encode the field before, and those that are
    frames.
    """
    fields = []
    for keep in is_frame:
        state = stepper.step(stepper.encode(u, parameters), parameters)
        u = stepper.decode(state)
        if keep:
            # the same function reads the same field, which need not be decoded twice
            fields.append(u if read == stepper.decode else read(state))
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
