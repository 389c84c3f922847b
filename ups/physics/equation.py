"""An equation as data: its names, initial conditions, solver, symmetries and functionals.

Arrays are channels-last: fields (B, *space, C) on a ``Grid``, parameters (B, P).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from ups.core.fields import Boundary, Grid


class Law(StrEnum):
    """How a functional of a solution changes with time."""

    CONSERVED = "conserved"
    NON_INCREASING = "non_increasing"


@dataclass(frozen=True)
class Functional:
    """A quantity of a field whose change is known.

    Args:
        name: its name in the metrics.
        compute: maps fields (..., *space, C) on a grid to values (...).
        law: how the value of a solution changes with time.
        degree: the power d with which it grows, F(a u) = a^d F(u).
        growth_rate: the most by which F^(1/d) grows in a unit of time, if a force drives a
            functional that would not increase.
        instability_rate: the largest rate r at which F^(1/d) grows like e^(r t), if the equation
            has waves that grow by themselves.
    """

    name: str
    compute: Callable[[Tensor, Grid], Tensor]
    law: Law
    degree: int = 1
    growth_rate: float = 0.0
    instability_rate: float = 0.0


Solve = Callable[[Tensor, Sequence[float], Sequence[float], Grid, torch.dtype], Tensor]


def trusted_everywhere(u: Tensor, grid: Grid, threshold: float, radius: int) -> Tensor:
    return torch.ones_like(u[..., :1])


def _unchanged(parameters: Tensor, amount: Tensor) -> Tensor:
    return parameters


@dataclass(frozen=True)
class Symmetry:
    """A map of solutions to solutions, used for augmentation.

    Args:
        name: "translate", "reflect" or "rescale_time".
        fields: maps trajectories (B, T, *space, C), an amount for each (B, ...) and the grid to
            trajectories. The amount of a translation is a number of points along each axis (B, D);
            of a rescaling of time, a factor (B,). A reflection takes none.
        parameters: maps the parameters (B, P) likewise.
    """

    name: str
    fields: Callable[[Tensor, Tensor, Grid], Tensor]
    parameters: Callable[[Tensor, Tensor], Tensor] = _unchanged


@dataclass(frozen=True)
class Boost:
    """The symmetry of an equation that looks the same from a frame that moves at a constant speed.

    Args:
        velocity: maps fields (B, *space, C) to the velocity (B, D) of the frame in which they are
            at rest on average. It must not change with time.
        fields: maps fields (B, *space, C) and a velocity (B, D) to the fields as they are seen from
            a frame of that velocity, at the moment at which both frames coincide.
    """

    velocity: Callable[[Tensor], Tensor]
    fields: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Equation:
    """An equation that data may have.

    Data without an equation are trained and tested too, with persistence as their only baseline and
    without test-time conditioning. An equation need not have more than names and the number of
    dimensions: what it lacks is not used.

    Args:
        name: its name, in file names too.
        title: one line of text for reports and model cards.
        channels: names of the C channels of its field.
        parameters: names of its P parameters, all positive; data are generated with one or none.
        num_dims: number of space dimensions D.
        initial_conditions: recipes by name; the first is the default. Each is (n, grid, seed) ->
            random initial conditions (n, *space, C), float32. None are needed to read files.
        solve: (u0, times, parameters, grid, dtype) -> (B, T, *space, C): the numerical solver from
            cell averages ``u0`` (B, *space, C) at one value of each parameter. It makes the data
            and is a baseline on coarse grids. None to read files.
        restrict: (u, factor) -> u on a grid that is coarser by ``factor``; None if the
            solver is no baseline.
        prolong: (u, factor) -> values on a grid that is finer by ``factor``; None likewise.
        solver_step: (u, dt, parameters, grid, refinement_factor) -> (B, *space, C): one step from
            point values with the equation alone; None if there is no test-time conditioning.
        solver_confidence: (u, grid, threshold, radius) -> (B, *space, 1), from 0 to 1: how far
            ``solver_step`` can be trusted where it leads to ``u``. By default it is, everywhere.
        symmetries: its symmetries that training windows are augmented by.
        boost: its symmetry under boosts, which ``MovingFrame`` uses; None if it has none.
        functionals: its functionals.
        has_maximum_principle: whether a solution stays within the range of its initial condition.
        is_homogeneous: whether a shifted solution is a solution; see ``FieldSpec``.
        solver_refinement: how many times as many points along each axis as the data ``solve`` needs
            for an error that does not matter.
        length: the length of each axis of generated data.
        boundary: what lies beyond every side of generated data.
        first_point: the position of their first point along each axis; None for half a cell of the
            solver's grid, if its values are averages over cells.
    """

    name: str
    title: str
    channels: tuple[str, ...]
    parameters: tuple[str, ...]
    num_dims: int
    initial_conditions: Mapping[str, Callable[[int, Grid, int], Tensor]] = field(
        default_factory=dict
    )
    solve: Solve | None = None
    restrict: Callable[[Tensor, int], Tensor] | None = None
    prolong: Callable[[Tensor, int], Tensor] | None = None
    solver_step: Callable[[Tensor, float, Tensor, Grid, int], Tensor] | None = None
    solver_confidence: Callable[[Tensor, Grid, float, int], Tensor] = trusted_everywhere
    symmetries: tuple[Symmetry, ...] = ()
    boost: Boost | None = None
    functionals: tuple[Functional, ...] = ()
    has_maximum_principle: bool = False
    is_homogeneous: bool = True
    solver_refinement: int = 4
    length: float = 1.0
    boundary: Boundary = Boundary.PERIODIC
    first_point: float | None = None

    def grid(self, num_points: int) -> Grid:
        """The grid of the solver with so many points along each axis."""
        dims = self.num_dims
        sides = ((self.boundary, self.boundary),) * dims
        origin = () if self.first_point is None else (self.first_point,) * dims
        return Grid((num_points,) * dims, (self.length,) * dims, sides, origin)

    @property
    def conserves_mean(self) -> bool:
        """Whether the mean of its field stays the same: it has a conserved "mass" or "mean"."""
        laws = {functional.name: functional.law for functional in self.functionals}
        return Law.CONSERVED in (laws.get("mass"), laws.get("mean"))

    def symmetry(self, name: str) -> Symmetry | None:
        """The symmetry ``name``, or None if the equation does not have it."""
        return next((symmetry for symmetry in self.symmetries if symmetry.name == name), None)


def translate(u: Tensor, points: Tensor, grid: Grid) -> Tensor:
    """Shift trajectories (B, T, *space, C) periodically by ``points`` (B, D) along each axis."""
    for d, n in enumerate(grid.shape):
        index = (torch.arange(n, device=points.device) + points[:, d, None]) % n
        shape = [len(u), *(1 for _ in u.shape[1:])]
        shape[2 + d] = n
        u = torch.take_along_dim(u, index.view(shape), 2 + d)
    return u


TRANSLATE = Symmetry("translate", translate)
