"""Rollouts that use the symmetries of the equation: each field is seen as the network knows it."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from ups.core.fields import FieldSpec
from ups.core.stepper import Stepper, rollout
from ups.physics import Equation
from ups.physics.moving_frame import MovingFrame
from ups.physics.time_factor import rescale, time_factors


def symmetric_rollout(
    stepper: Stepper,
    u0: Tensor,
    steps: int,
    parameters: Tensor,
    *,
    spec: FieldSpec,
    equation: Equation | None,
    trained: Sequence[Sequence[float]] = (),
    reencode: bool = False,
    group_size: int = 1,
    frames_per_decode: int = 1,
    checkpoint_every: int | None = None,
    stride: int = 1,
    read: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Yield the fields (B, *space, C) of a rollout, without the initial one; see ``rollout``.

    A field that moves as a whole is seen from a frame that moves along. A parameter above the
    trained ones is that of a solution which is slower by a whole factor, if the equation can be
    rescaled; that many steps are taken instead of each. Both choices are constants to gradients.

    Args:
        stepper: see ``rollout``, and likewise ``u0``, ``steps``, ``parameters``, ``reencode``,
            ``frames_per_decode``, ``checkpoint_every``, ``stride`` and ``read``.
        spec: describes the field.
        equation: the equation, for its symmetries; without one this is ``rollout``.
        trained: parameters (N, P) of the training data; empty: all parameters count as trained.
        group_size: number of consecutive fields that share a frame and a parameter.
    """
    factors = time_factors(equation, spec.domain, parameters, trained)
    rows = [(factors == factor).nonzero()[:, 0] for factor in factors.unique()]
    at_one_factor = partial(
        _at_one_factor,
        stepper,
        steps=steps,
        spec=spec,
        equation=equation,
        reencode=reencode,
        group_size=group_size,
        frames_per_decode=frames_per_decode,
        checkpoint_every=checkpoint_every,
        stride=stride,
        read=read,
    )
    rollouts = [at_one_factor(u0[i], parameters[i], factors[i]) for i in rows]
    order = torch.cat(rows).argsort()
    for frames in zip(*rollouts, strict=True):
        yield frames[0] if len(rows) == 1 else torch.cat(frames)[order]


def _at_one_factor(
    stepper: Stepper,
    u0: Tensor,
    parameters: Tensor,
    factors: Tensor,
    *,
    steps: int,
    spec: FieldSpec,
    equation: Equation | None,
    reencode: bool,
    group_size: int,
    frames_per_decode: int,
    checkpoint_every: int | None,
    stride: int,
    read: Callable[[Tensor], Tensor] | None,
) -> Iterator[Tensor]:
    factor = int(factors[0])  # they are all the same
    slowness = 1 / factors.to(u0.dtype)
    slow, slow_parameters = rescale(equation, spec.domain, u0, parameters, slowness)
    frame = MovingFrame(equation, slow, spec.domain, spec.dt, group_size)
    seen = frame.enter(slow[:, None])[:, 0]
    frames = rollout(
        stepper,
        seen,
        factor * steps,
        slow_parameters,
        reencode,
        frames_per_decode,
        checkpoint_every,
        factor * stride,
        read,
    )
    every = factor * stride
    first = every
    # moved together if they come together: for single fields the overhead of calls dominates
    while group := list(islice(frames, 1 if reencode else frames_per_decode)):
        for u in frame.leave(torch.stack(group, 1), first, every).unbind(1):
            if factor > 1:
                u, _ = rescale(equation, spec.domain, u, slow_parameters, factors)
            yield u
        first += every * len(group)
