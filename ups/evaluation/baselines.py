"""Baselines for every result: persistence, and the equation's solver on coarser grids."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ups.core.errors import Diverged, UpsError
from ups.core.fields import FieldSpec
from ups.core.gradients import needs_gradients
from ups.core.stepper import Stepper
from ups.physics import Equation


class Persistence:
    """A stepper that does not change the field."""

    name = "persistence"

    def encode(self, u: Tensor, parameters: Tensor) -> Tensor:
        return u

    def step(self, state: Tensor, parameters: Tensor) -> Tensor:
        return state

    def decode(self, state: Tensor) -> Tensor:
        return state


def coarse_solvers(
    equation: Equation | None, spec: FieldSpec, num_points: Sequence[int]
) -> "list[SolverStepper]":
    """The equation's solver on those coarse grids that fit ``spec``; none without a solver."""
    if equation is None or equation.solve is None:
        return []
    if equation.restrict is None or equation.prolong is None:
        return []
    fitting = [n for n in num_points if spec.grid.can_coarsen_to(n)]
    return [SolverStepper(equation, spec, n) for n in fitting]


class SolverStepper:
    """The equation's solver on a coarse grid, in float32.

    It starts from what the equation's ``restrict`` makes of the field: averages over cells, or the
    waves that the coarse grid holds. ``prolong`` reconstructs the fine grid from its result. A
    solution that does not stay finite is NaN.

    Args:
        equation: the equation.
        spec: describes the field.
        num_points: number of points of the coarse grid along its first axis.

    Raises:
        UpsError: the number of points is no divisor of the fine grid's, or the equation has no
            solver between grids.
    """

    def __init__(self, equation: Equation, spec: FieldSpec, num_points: int) -> None:
        if not spec.grid.can_coarsen_to(num_points):
            points = " x ".join(map(str, spec.grid.shape))
            raise UpsError(f"`num_points` must be a divisor of {points}, got {num_points}.")
        if equation.solve is None or equation.restrict is None or equation.prolong is None:
            raise UpsError(f"the equation {equation.name} has no solve, restrict and prolong.")
        self.solve = equation.solve
        self.restrict = equation.restrict
        self.prolong = equation.prolong
        self.spec = spec
        self.factor = spec.grid.shape[0] // num_points
        self.grid = spec.grid.coarsened(self.factor)
        self.name = f"solver-{num_points}"

    def encode(self, u: Tensor, parameters: Tensor) -> Tensor:
        """Bring fields (B, *space, C) to the coarse grid.

        Raises:
            UpsError: the parameters are not the same for all fields.
        """
        if bool((parameters != parameters[:1]).any()):
            raise UpsError(f"{self.name} needs equal parameters for all fields of a batch.")
        return self.restrict(u, self.factor)

    def step(self, state: Tensor, parameters: Tensor) -> Tensor:
        # numbers are faster, but have no gradient
        values = list(parameters[0]) if needs_gradients(parameters) else parameters[0].tolist()
        try:
            frames = self.solve(state, [self.spec.dt], values, self.grid, torch.float32)
        except Diverged:  # as a model's rollout that has diverged: an error that is not a number
            return torch.full_like(state, math.nan)
        return frames[:, 0]

    def decode(self, state: Tensor) -> Tensor:
        return self.prolong(state, self.factor)


class RandomStart:
    """A stepper that starts from fields to which something random is added.

    Of the equation's solver and of what is not seen of the initial fields, it draws members of a
    reference ensemble: their futures differ by nothing but the initial fields.

    Args:
        stepper: moves the fields forward.
        draw: maps initial fields (B, *space, C) to what is added to them.
    """

    def __init__(self, stepper: Stepper, draw: Callable[[Tensor], Tensor]) -> None:
        self.stepper = stepper
        self.draw = draw

    def encode(self, u: Tensor, parameters: Tensor) -> Tensor:
        return self.stepper.encode(u + self.draw(u), parameters)

    def step(self, state: Tensor, parameters: Tensor) -> Tensor:
        return self.stepper.step(state, parameters)

    def decode(self, state: Tensor) -> Tensor:
        return self.stepper.decode(state)
