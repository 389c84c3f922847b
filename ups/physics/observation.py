"""Fields of which only the coarse part is seen, and random fields for the rest."""

from torch import Tensor

from ups.core.errors import UpsError
from ups.core.fields import Grid, space_axes
from ups.physics import spectral
from ups.physics.equation import Equation


class Observation:
    """What a coarser grid shows of periodic fields.

    It is what the equation's ``prolong`` makes of its ``restrict``: of Navier-Stokes the waves that
    the coarser grid can hold, all others zero; of Burgers lines between averages over cells.

    Args:
        equation: the equation.
        grid: the grid of the fields.
        num_points: number of points of the coarser grid along each axis.
        fields: fields (N, *space, C) that show how large the rest usually is.

    Raises:
        UpsError: the equation or the grid has no such coarser grid.
    """

    def __init__(
        self, equation: Equation | None, grid: Grid, num_points: int, fields: Tensor
    ) -> None:
        check_observable(equation, grid, num_points)
        assert equation is not None and equation.restrict and equation.prolong
        self.equation = equation
        self.axes = space_axes(grid.num_dims)
        self.space = grid.shape
        self.factor = grid.shape[0] // num_points
        self.missing_rms = spectral.mode_rms(fields - self(fields), self.axes)

    def __call__(self, u: Tensor) -> Tensor:
        """What is seen of fields (..., *space, C), of the same shape."""
        assert self.equation.restrict and self.equation.prolong
        fields = u.reshape(-1, *u.shape[-len(self.space) - 1 :])
        seen = self.equation.prolong(self.equation.restrict(fields, self.factor), self.factor)
        return seen.view_as(u)

    def draw_missing(self, u: Tensor) -> Tensor:
        """Random fields in place of what is not seen of ``u`` (B, *space, C).

        Independent waves of the usual size of each, with random phases; they use torch's global
        random numbers.
        """
        return spectral.random_fields(self.missing_rms.to(u), len(u), self.space, self.axes)


def check_observable(equation: Equation | None, grid: Grid, num_points: int) -> None:
    """Check that fields of ``equation`` on ``grid`` can be seen on ``num_points`` along each axis.

    Raises:
        UpsError: they can't.
    """
    if equation is None or equation.restrict is None or equation.prolong is None:
        name = "data without an equation" if equation is None else f"the equation {equation.name}"
        raise UpsError(
            f"`data.observed_points` must be null, got {num_points}: {name} can't be seen on a "
            "coarser grid."
        )
    fits = grid.can_coarsen_to(num_points) and num_points < grid.shape[0]
    if not (fits and grid.is_periodic):
        points = " x ".join(map(str, grid.shape))
        raise UpsError(
            f"`data.observed_points` must be a divisor of the {points} points of a periodic grid, "
            f"and fewer, got {num_points}."
        )
