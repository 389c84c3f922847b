"""Advection on a periodic line, in PDEBench's setting: u_t + beta u_x = 0. The one parameter, ``nu`` elsewhere, is the speed beta > 0.

Source of the setting: Takamoto et al., "PDEBench", NeurIPS 2022 Datasets and Benchmarks: beta from 0.1 to 7, the initial conditions of its
Burgers. Everything is dimensionless. Fields are (B, X) or (B, T, X) on a uniform periodic grid of X points. Mass and energy are kept, the
total variation is too but for where a peak lies between grid points.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ups.physics.line import checked, energy, grid, half_slopes, initial_conditions, mass, total_variation  # noqa: F401  # an equation holds them

PARAMETER = "beta"
CONSERVED = ("mass", "energy")


def solve(
    u0: Tensor, t: Tensor | Sequence[float], nu: float, length: float = 1.0, dtype: torch.dtype = torch.float64, cfl: float = 1.0
) -> Tensor:
    """Solve from cell averages ``u0`` (B, X) to times ``t`` (T,), increasing and >= 0, at speed ``nu`` > 0: (B, T, X).

    MUSCL-Hancock (van Leer 1984) with van Leer's limiter: second order where the solution is smooth; mass is kept to round-off and no new
    extrema appear up to ``cfl`` = 1, where a step is an exact shift by a cell. Runs where ``u0`` lies, in ``dtype``.

    Raises:
        UpsError: see ``ups.physics.line.checked``; exact too.
    """
    u0, times, nu = checked(u0, t, nu)
    dx = length / u0.shape[-1]
    u = u0.to(dtype)
    frames, now = [], 0.0
    for time in times:
        cells = nu * (time - now) / dx  # that the field moves by until the next frame
        steps = math.ceil(cells / cfl)
        for _ in range(steps):
            u = _hancock(u, cells / steps)
        now = time
        frames.append(u)
    return torch.stack(frames, 1).to(u0.dtype)


def _hancock(u: Tensor, courant: float) -> Tensor:
    """One MUSCL-Hancock step of ``courant`` <= 1 cells."""
    behind = u - u.roll(1, -1)
    face = torch.add(u, half_slopes(behind, behind.roll(-1, -1)), alpha=1 - courant)  # on a cell's right, half a step on
    return torch.sub(u, face - face.roll(1, -1), alpha=courant)


def shift(u: Tensor, distance: Tensor | float, length: float = 1.0) -> Tensor:
    """The trigonometric interpolant of point values ``u`` (..., X), moved to the right by ``distance``, a number or (...,)."""
    points = u.shape[-1]
    k = 2 * math.pi / length * torch.arange(points // 2 + 1, device=u.device, dtype=torch.float64)
    angle = torch.as_tensor(distance, dtype=torch.float64, device=u.device)[..., None] * k
    spectrum = torch.fft.rfft(u)
    return torch.fft.irfft(spectrum * torch.exp(-1j * angle).to(spectrum.dtype), n=points)


def exact(u0: Tensor, t: Tensor | Sequence[float], nu: float, length: float = 1.0) -> Tensor:
    """The exact solution u0(x - beta t) from point values ``u0`` (B, X) at times ``t`` (T,): (B, T, X), in u0's dtype."""
    u0, times, nu = checked(u0, t, nu)
    distance = nu * torch.tensor(times, dtype=torch.float64, device=u0.device)
    return shift(u0.double()[:, None], distance, length).to(u0.dtype)


def mirror(u: Tensor) -> Tensor:
    """u -> -u, which solves the equation if u does: (..., X) -> (..., X)."""
    return -u


def hasten(u: Tensor, times: float) -> Tensor:
    """u(x, t) -> u(x, a t), which solves the equation at a nu if u does at nu: (..., X), a = ``times``."""
    return u


def advance(u: Tensor, dt: float, nu: Tensor, length: float = 1.0, refine: int = 4) -> Tensor:
    """Point values ``u`` (B, X) one ``dt`` on, at ``nu`` (B,): (B, X), by the exact solution, to which a finer grid adds nothing."""
    return shift(u, nu * dt, length)


def certainty(u: Tensor, jump: float = 0.0, reach: int = 0) -> Tensor:
    """How far point values ``u`` (B, X) say what the solution is: everywhere, (B, X) ones. What is steep stays as steep as it was."""
    return torch.ones_like(u)
