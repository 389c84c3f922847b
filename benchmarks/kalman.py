"""An ensemble Kalman filter whose forward map is the Navier-Stokes solver."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ups.core.fields import Grid
from ups.models.interpolation import interpolate_on_grid
from ups.physics import navier_stokes


@dataclass(frozen=True)
class Filter:
    """The ensemble Kalman filter for readings at fixed positions of a periodic square.

    Perturbed readings (Burgers, van Leeuwen and Evensen, Monthly Weather Review 1998) or the
    deterministic variant (Sakov and Oke, Tellus A 2008), with localized covariances.

    Args:
        radius: distance at which covariances are tapered to zero (Gaspari and Cohn, Quarterly
            Journal of the Royal Meteorological Society 1999).
        inflation: factor on the members' deviations from their mean, after each analysis.
        is_deterministic: whether the deterministic variant is taken.
    """

    radius: float
    inflation: float
    is_deterministic: bool

    def run(
        self, members: Tensor, readings: Tensor, positions: Tensor, noise: float, nu: float
    ) -> Tensor:
        """The members (M, X, X) at the time of the last readings.

        Args:
            members: vorticity (M, X, X) one unit of time before the first readings.
            readings: readings (R, P), one unit of time apart.
            positions: their positions (P, 2).
            noise: standard deviation of their errors.
            nu: the viscosity.
        """
        grid = Grid(tuple(members.shape[1:]), (1.0, 1.0), origin=(0.0, 0.0))
        points = grid.positions().flatten(0, 1)
        taper = gaspari_cohn(distances(points, positions), self.radius)
        taper_readings = gaspari_cohn(distances(positions, positions), self.radius)
        # a filter that diverges loses by far; without a bound its solver would hardly ever end
        bound = 3 * members.abs().max()
        for values in readings:
            members = forecast(members, 1, nu)[:, 0]
            seen = interpolate_on_grid(members[..., None], grid, positions)[..., 0]
            deviations = (members - members.mean(0)).flatten(1)
            seen_deviations = seen - seen.mean(0)
            of_readings = seen_deviations.T @ seen_deviations / (len(members) - 1)
            across = deviations.T @ seen_deviations / (len(members) - 1)
            total = taper_readings * of_readings + noise**2 * torch.eye(len(positions))
            gain = torch.linalg.solve(total, (taper * across).T).T
            if self.is_deterministic:
                mean = members.mean(0).flatten() + gain @ (values - seen.mean(0))
                deviations = deviations - 0.5 * seen_deviations @ gain.T
            else:
                perturbed = values + noise * torch.randn(seen.shape)
                found = members.flatten(1) + (perturbed - seen) @ gain.T
                mean = found.mean(0)
                deviations = found - mean
            found = (mean + self.inflation * deviations).view_as(members)
            members = found.clamp(-bound, bound)
        return members


def forecast(members: Tensor, units: int, nu: float) -> Tensor:
    """Solve members (M, X, X) for so many units of time: (M, units, X, X)."""
    return navier_stokes.solve(members, range(1, units + 1), nu, dtype=torch.float32)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances (A, B) of positions (A, 2) and (B, 2) on the periodic unit square."""
    gap = (a[:, None] - b).abs()
    return torch.minimum(gap, 1 - gap).norm(dim=-1)


def gaspari_cohn(distance: Tensor, radius: float) -> Tensor:
    """A correlation that is 0 beyond ``radius``."""
    r = 2 * distance / radius
    near = 1 - 5 / 3 * r**2 + 5 / 8 * r**3 + r**4 / 2 - r**5 / 4
    far = 4 - 5 * r + 5 / 3 * r**2 + 5 / 8 * r**3 - r**4 / 2 + r**5 / 12 - 2 / (3 * r + 1e-9)
    return torch.where(r < 1, near, torch.where(r < 2, far, 0.0))
