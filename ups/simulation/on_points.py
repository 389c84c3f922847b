"""A simulator whose fields lie at given points."""

from typing import Protocol

import torch
from torch import Tensor

from ups.core.points import Points
from ups.simulation.latent import LatentStepper, Wrapped


class PointStepper(LatentStepper, Protocol):
    """A stepper whose maps take the points of the fields."""

    def encode(
        self, u: Tensor, parameters: Tensor | None = None, points: Points | None = None
    ) -> Tensor: ...

    def decode(self, state: Tensor, points: Points | None = None) -> Tensor: ...


class OnPoints(Wrapped):
    """Encodes and decodes the fields of B samples at the points of each.

    Args:
        stepper: encodes and decodes at any points.
        points: the points of the B samples.
    """

    stepper: PointStepper

    def __init__(self, stepper: PointStepper, points: Points) -> None:
        super().__init__(stepper)
        self.points = points

    def encode(self, u: Tensor, parameters: Tensor | None = None) -> Tensor:
        """Encode fields (B, P, C) into tokens (B, N, W)."""
        return self.stepper.encode(u, parameters, self.points)

    def step(self, state: Tensor, parameters: Tensor) -> Tensor:
        return self.stepper.step(state, parameters)

    def propose(self, state: Tensor, parameters: Tensor, num_candidates: int) -> Tensor:
        return self.stepper.propose(state, parameters, num_candidates)

    def decode(self, state: Tensor) -> Tensor:
        """Decode tokens (F B, N, W) of F frames, one after the other, into fields (F B, P, C)."""
        frames = state.split(len(self.points))
        return torch.cat([self.stepper.decode(frame, self.points) for frame in frames])
