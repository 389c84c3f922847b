"""Baselines for every result: persistence, and the reference solver on coarser grids."""

import torch
from torch import Tensor

from ups.core.errors import UpsError
from ups.physics import Equation


class Persistence:
    """Predicts that the field does not change."""

    name = "persistence"

    def rollout(self, u0: Tensor, steps: int, *, nu: Tensor) -> Tensor:
        """Repeat ``u0`` (B, X): (B, steps, X)."""
        return u0[:, None].expand(-1, steps, -1).contiguous()


class Solver:
    """The equation's reference solver on a coarse grid, in float32.

    It starts from cell averages, and van Leer's limited lines reconstruct its result on the fine
    grid. Of the mass-conserving ways that were tested to go down to the coarse grid and back, this
    one has the smallest error: the solver is a baseline, so it gets its best form.

    Args:
        physics: the equation.
        points: number of points of the coarse grid.
        dt: the time between frames.
        length: the length of the periodic line.
    """

    def __init__(self, physics: Equation, points: int, dt: float, length: float = 1.0) -> None:
        self.physics, self.points, self.dt, self.length, self.name = (
            physics,
            points,
            dt,
            length,
            f"solver-{points}",
        )

    def rollout(self, u0: Tensor, steps: int, *, nu: Tensor) -> Tensor:
        """Solve from ``u0``.

        Args:
            u0: fields (B, X); X must be a multiple of ``points``.
            steps: number of frames.
            nu: the equation's parameter (B,), all of one value.

        Returns:
            Fields (B, steps, X).

        Raises:
            UpsError: X or ``nu`` is not allowed.
        """
        if u0.shape[-1] % self.points or nu.unique().numel() > 1:
            raise UpsError(
                f"{self.name} takes fields of a multiple of {self.points} points, at one nu"
            )
        cells = u0.unflatten(-1, (self.points, -1))
        t = [self.dt * k for k in range(1, steps + 1)]
        coarse = self.physics.solve(
            cells.mean(-1), t, nu[0].item(), self.length, dtype=torch.float32
        )
        return limited_linear_reconstruction(coarse, cells.shape[-1])


def limited_linear_reconstruction(u: Tensor, factor: int) -> Tensor:
    """Reconstruct a finer grid from cell averages, with a line in each cell.

    It keeps the averages; the slope of a line is van Leer's limited one.

    Args:
        u: cell averages (..., X).
        factor: how much finer the grid becomes.

    Returns:
        Values (..., X * factor).
    """
    if factor == 1:
        return u
    left, right = u - u.roll(1, -1), u.roll(-1, -1) - u
    slope = torch.where(left * right > 0, 2 * left * right / (left + right + 1e-30), 0.0)
    inside = (torch.arange(factor, device=u.device) + 0.5) / factor - 0.5
    return torch.addcmul(u[..., None], slope[..., None], inside).flatten(-2)
