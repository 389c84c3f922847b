"""Advection on a periodic line, in PDEBench's setting: u_t + beta u_x = 0.

The one parameter, elsewhere called ``nu``, is the speed beta > 0.

Source of the setting: Takamoto et al., "PDEBench", NeurIPS 2022 Datasets and Benchmarks: beta from
0.1 to 7, the initial conditions of its Burgers. Everything is dimensionless. Fields are (B, X) or
(B, T, X) on a uniform periodic grid of X points. Mass and energy are conserved. So is the total
variation, except for peaks between grid points.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ups.physics.equation import Law
from ups.physics.limiters import van_leer_half_slopes
from ups.physics.periodic_1d import (  # noqa: F401  # handed on, next to what is here
    cell_centers,
    energy,
    initial_conditions,
    mass,
    scalar_equation,
    total_variation,
    validate_solver_inputs,
)
from ups.physics.solver_inputs import validate_positive


def solve(
    u0: Tensor,
    t: Tensor | Sequence[float],
    nu: float | Tensor,
    length: float = 1.0,
    dtype: torch.dtype = torch.float64,
    cfl: float = 1.0,
) -> Tensor:
    """Solve from cell averages with a finite-volume scheme.

    MUSCL-Hancock (van Leer 1984) with van Leer's limiter: second order if the solution is smooth.
    Mass is conserved to round-off. No new extrema appear up to ``cfl`` = 1, and a step at 1 is an
    exact shift by a cell. It runs on the device of ``u0``. Gradients with respect to ``u0`` and
    ``nu`` are exact, with a fixed number of steps.

    Args:
        u0: cell averages (B, X).
        t: times (T,), increasing and >= 0.
        nu: the speed, > 0.
        length: the length of the periodic line.
        dtype: the precision of the computation.
        cfl: the largest shift in one step, in cells.

    Returns:
        Cell averages (B, T, X), in u0's dtype.

    Raises:
        UpsError: see ``ups.physics.periodic_1d.validate_solver_inputs``.
    """
    u0, times, number, with_gradient = validate_solver_inputs(u0, t, nu)
    validate_positive(length, "length")
    validate_positive(cfl, "cfl", 1.0)
    dx = length / u0.shape[-1]
    u = u0.to(dtype)
    speed = with_gradient.to(dtype) if isinstance(with_gradient, Tensor) else number
    frames = []
    now = 0.0
    for time in times:
        cells = speed * (time - now) / dx  # shift of the field until the next frame
        steps = math.ceil(number * (time - now) / dx / cfl)
        for _ in range(steps):
            u = _hancock(u, cells / steps)
        now = time
        frames.append(u)
    return torch.stack(frames, 1).to(u0.dtype)


def _hancock(u: Tensor, courant: float | Tensor) -> Tensor:
    """One MUSCL-Hancock step that shifts by ``courant`` <= 1 cells."""
    behind = u - u.roll(1, -1)
    # value at the right face of a cell, half a step later
    half_slopes = van_leer_half_slopes(behind, behind.roll(-1, -1))
    if isinstance(courant, Tensor):  # the fused operations below take numbers only
        face = u + (1 - courant) * half_slopes
        return u - courant * (face - face.roll(1, -1))
    face = torch.add(u, half_slopes, alpha=1 - courant)
    return torch.sub(u, face - face.roll(1, -1), alpha=courant)


def shift(u: Tensor, distance: Tensor | float, length: float = 1.0) -> Tensor:
    """Shift point values to the right, by their trigonometric interpolant.

    Args:
        u: point values (..., X).
        distance: one number or (...,).
        length: the length of the periodic line.

    Returns:
        Point values (..., X).
    """
    points = u.shape[-1]
    k = 2 * math.pi / length * torch.arange(points // 2 + 1, device=u.device, dtype=torch.float64)
    angle = torch.as_tensor(distance, dtype=torch.float64, device=u.device)[..., None] * k
    spectrum = torch.fft.rfft(u)
    return torch.fft.irfft(spectrum * torch.exp(-1j * angle).to(spectrum.dtype), n=points)


def exact(
    u0: Tensor, t: Tensor | Sequence[float], nu: float | Tensor, length: float = 1.0
) -> Tensor:
    """The exact solution u0(x - beta t), with gradients with respect to ``u0`` and ``nu``.

    Args:
        u0: point values (B, X).
        t: times (T,), increasing and >= 0.
        nu: the speed beta.
        length: the length of the periodic line.

    Returns:
        Point values (B, T, X), in u0's dtype.

    Raises:
        UpsError: see ``ups.physics.periodic_1d.validate_solver_inputs``.
    """
    u0, times, _, speed = validate_solver_inputs(u0, t, nu)
    distance = speed * torch.tensor(times, dtype=torch.float64, device=u0.device)
    return shift(u0.double()[:, None], distance, length).to(u0.dtype)


def reflect(u: Tensor) -> Tensor:
    """u -> -u, which maps solutions to solutions: (..., X) -> (..., X)."""
    return -u


def rescale_time(u: Tensor, factor: Tensor | float) -> Tensor:
    """u(x, t) -> u(x, a t), with a = ``factor``: (..., X).

    If u solves the equation at nu, the result solves it at a nu.
    """
    return u


def solver_step(
    u: Tensor, dt: float, nu: Tensor, length: float = 1.0, refinement_factor: int = 4
) -> Tensor:
    """Advance point values ``u`` (B, X) by ``dt`` at ``nu`` (B,) with the exact solution: (B, X).

    A finer grid adds nothing, so ``refinement_factor`` has no effect.
    """
    return shift(u, nu * dt, length)


def shock_weight(u: Tensor, shock_threshold: float = 0.0, shock_radius: int = 0) -> Tensor:
    """How far point values ``u`` (B, X) determine the solution: everywhere, (B, X) ones.

    Advection does not steepen a field.
    """
    return torch.ones_like(u)


EQUATION = scalar_equation(
    "advection",
    "Advection on a periodic line, in PDEBench's setting: u_t + beta u_x = 0.",
    "beta",
    solve=solve,
    solver_step=solver_step,
    shock_weight=shock_weight,
    reflect=reflect,
    rescale_time=rescale_time,
    laws={"mass": Law.CONSERVED, "tv": Law.NON_INCREASING, "energy": Law.CONSERVED},
    has_maximum_principle=True,
)
