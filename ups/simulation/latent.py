"""What steppers of latent tokens share, and how tokens are moved to decode to a given field."""

from typing import Protocol

import torch
from torch import Tensor

from ups.core.fields import FieldSpec
from ups.core.stepper import Stepper


class LatentStepper(Stepper, Protocol):
    """A stepper whose states are latent tokens (B, N, W).

    Attributes:
        spec: the field that it steps.
        num_dynamic_channels: number of channels, from the first, that a step may change.
    """

    @property
    def spec(self) -> FieldSpec: ...

    @property
    def num_dynamic_channels(self) -> int: ...

    def propose(self, state: Tensor, parameters: Tensor, num_candidates: int) -> Tensor:
        """Candidates for the next states (B, M, N, W), at most ``num_candidates`` of them.

        A deterministic stepper has one.
        """


class Wrapped:
    """What steppers share that step otherwise than the one which they are made of.

    Args:
        stepper: encodes and decodes.
    """

    def __init__(self, stepper: LatentStepper) -> None:
        self.stepper = stepper

    @property
    def spec(self) -> FieldSpec:
        return self.stepper.spec

    @property
    def num_dynamic_channels(self) -> int:
        return self.stepper.num_dynamic_channels

    def encode(self, u: Tensor, parameters: Tensor) -> Tensor:
        return self.stepper.encode(u, parameters)

    def decode(self, state: Tensor) -> Tensor:
        return self.stepper.decode(state)


def project_to_field(
    stepper: LatentStepper,
    z: Tensor,
    field: Tensor,
    steps: int,
    strength: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Move tokens ``z`` as little as needed so that they decode closer to ``field``.

    Steepest descent on |weight (D(z) - field)|^2. An exact line search sets the length of each
    step: over such a distance the decoder is almost linear. The result has no gradient, and
    channels that a step may not change keep their values.

    Args:
        stepper: decodes the tokens.
        z: tokens (B, N, W).
        field: the target field (B, *space, C).
        steps: number of descent steps.
        strength: factor on the length of each step.
        weight: weight of each point (B, *space, 1); default: 1.

    Returns:
        Tokens (B, N, W).
    """
    is_dynamic = torch.arange(z.shape[-1], device=z.device) < stepper.num_dynamic_channels
    with torch.inference_mode(False):  # guidance also runs in validation and test
        z = z.detach().clone()
        field = field.detach().clone()
        weight = torch.ones_like(field) if weight is None else weight.clone()
        for _ in range(steps):
            z = _descend(stepper, z, field, strength, weight, is_dynamic)
    return z


def _descend(
    stepper: LatentStepper,
    z: Tensor,
    field: Tensor,
    strength: float,
    weight: Tensor,
    is_dynamic: Tensor,
) -> Tensor:
    """One step of steepest descent."""
    with torch.enable_grad():
        start = z.requires_grad_(True)
        gap = weight * (stepper.decode(start) - field)
        direction = torch.autograd.grad(gap.square().sum(), start)[0] * is_dynamic
    with torch.no_grad():
        z = z.detach()
        gap = gap.detach()
        # a finite difference: two threads can't use forward-mode derivatives at once
        size = z.square().mean((1, 2), keepdim=True).sqrt()
        own_size = direction.square().mean((1, 2), keepdim=True).sqrt()
        direction = direction * (0.01 * size / own_size.clamp_min(1e-30))
        change = weight * (stepper.decode(z + direction) - field) - gap
        along = (gap * change).flatten(1).sum(1)
        length = along / change.square().flatten(1).sum(1).clamp_min(1e-30)
        return z - strength * length[:, None, None] * direction
