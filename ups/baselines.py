"""What every result stands beside: persistence, and the reference solver itself on coarser grids."""

import torch
from torch import Tensor

from ups.errors import UpsError
from ups.physics import Equation


class Persistence:
    """Predicts that nothing changes."""

    name = "persistence"

    def rollout(self, u0: Tensor, steps: int, *, nu: Tensor) -> Tensor:
        """(B, X) -> (B, steps, X)."""
        return u0[:, None].expand(-1, steps, -1).contiguous()


class Solver:
    """The equation's reference solver at ``points`` points, in float32: cell averages in, van Leer's limited lines out.

    Of the ways tried to come down to and up from the coarse grid this has the smallest error among those that keep mass: the solver is a
    baseline here, and gets its best form.
    """

    def __init__(self, physics: Equation, points: int, dt: float, length: float = 1.0) -> None:
        self.physics, self.points, self.dt, self.length, self.name = physics, points, dt, length, f"solver-{points}"

    def rollout(self, u0: Tensor, steps: int, *, nu: Tensor) -> Tensor:
        """(B, X) -> (B, steps, X); X must be a multiple of ``points``, and all of ``nu`` (B,) one value."""
        if u0.shape[-1] % self.points or nu.unique().numel() > 1:
            raise UpsError(f"{self.name} takes fields of a multiple of {self.points} points, at one nu")
        cells = u0.unflatten(-1, (self.points, -1))
        t = [self.dt * k for k in range(1, steps + 1)]
        coarse = self.physics.solve(cells.mean(-1), t, nu[0].item(), self.length, dtype=torch.float32)
        return limited_lines(coarse, cells.shape[-1])


def limited_lines(u: Tensor, factor: int) -> Tensor:
    """Cell averages (..., X) -> (..., X * factor): a line in each cell with van Leer's limited slope; keeps the averages."""
    if factor == 1:
        return u
    left, right = u - u.roll(1, -1), u.roll(-1, -1) - u
    slope = torch.where(left * right > 0, 2 * left * right / (left + right + 1e-30), 0.0)
    inside = (torch.arange(factor, device=u.device) + 0.5) / factor - 0.5
    return torch.addcmul(u[..., None], slope[..., None], inside).flatten(-2)
