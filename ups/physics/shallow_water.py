"""Shallow water over flat ground, with height h, velocity u and gravity g.

h_t + div (h u) = 0 and (h u)_t + div (h u u) + g grad (h^2 / 2) = 0. The setting is that of
PDEBench's radial dam break (Takamoto et al., NeurIPS 2022 Datasets and Benchmarks): a square of
length 5, open at all sides, with a column of water of height 2 and a random radius from 0.3 to 0.7
in its middle, and height 1 around it. Everything is dimensionless, and g is 1. The channels are the
height and the two momenta.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ups.core.errors import Diverged, UpsError
from ups.core.fields import Boundary, Grid
from ups.core.gradients import numbers
from ups.physics.equation import Equation, Symmetry
from ups.physics.limiters import van_leer_half_slopes
from ups.physics.solver_inputs import validate_positive, validate_times

GRAVITY = 1.0
LENGTH = 5.0
RADII = (0.3, 0.7)
HEIGHTS = (2.0, 1.0)  # within and outside of the column
CFL = 0.4  # largest step in cells along each axis
MAX_STEPS = 1e6  # between two times


def initial_conditions(n: int, positions: Tensor, seed: int) -> Tensor:
    """Draw the columns of water of PDEBench's radial dam break.

    Args:
        n: number of fields.
        positions: positions (X, Y, 2) on a square of length 5.
        seed: the same seed gives the same fields.

    Returns:
        Fields (n, X, Y, 3), float32.
    """
    radii = torch.from_numpy(np.random.default_rng(seed).uniform(*RADII, n))
    distance = (positions.double() - LENGTH / 2).square().sum(-1).sqrt()
    inside, outside = HEIGHTS
    h = torch.where(distance <= radii[:, None, None], inside, outside)
    return torch.stack((h, torch.zeros_like(h), torch.zeros_like(h)), -1).float()


def solve(
    u0: Tensor,
    t: Tensor | Sequence[float],
    length: float = LENGTH,
    dtype: torch.dtype = torch.float64,
    cfl: float = CFL,
) -> Tensor:
    """Solve from cell averages with a finite-volume scheme between open sides.

    Slopes are van Leer's limited ones, fluxes those of Harten, Lax and van Leer with Einfeldt's
    wave speeds (SIAM J. Numer. Anal. 25, 1988), and time steps Heun's. It is of second order where
    the solution is smooth. Beyond the sides the last cell is repeated. What leaves the square is
    lost, nothing else. Each field takes its own steps. It runs on the device of ``u0``.

    Args:
        u0: cell averages (B, X, Y, 3) of height and momenta, or (X, Y, 3).
        t: times (T,), increasing and >= 0.
        length: the length of both axes.
        dtype: the precision of the computation.
        cfl: the largest step in cells along each axis.

    Returns:
        Cell averages (B, T, X, Y, 3), in u0's dtype.

    Raises:
        UpsError: an argument is invalid, or a height is not positive.
    """
    u0 = numbers(u0, "u0")
    u = (u0[None] if u0.ndim == 3 else u0).to(dtype)
    has_shape = u.ndim == 4 and u.shape[-1] == 3 and min(u.shape[1:3]) >= 2
    if not (has_shape and u0.is_floating_point() and bool((u[..., 0] > 0).all())):
        raise UpsError(
            "`u0` must be real heights > 0 and two momenta (B, X, Y, 3) or (X, Y, 3), got "
            f"{u0.dtype} of shape {tuple(u0.shape)}."
        )
    validate_positive(length, "length")
    validate_positive(cfl, "cfl", 1.0)
    times = validate_times(t)
    cells = [length / n for n in u.shape[1:3]]
    u = u.movedim(-1, 1)
    frames = []
    now = 0.0
    for time in times:
        u = _advance(u, time - now, cells, cfl)
        frames.append(u)
        now = time
    return torch.stack(frames, 1).movedim(2, -1).to(u0.dtype)


def _advance(u: Tensor, span: float, cells: Sequence[float], cfl: float) -> Tensor:
    """Advance u (B, 3, X, Y) by the time ``span``, each row in its own steps."""
    remaining = torch.full((len(u), 1, 1, 1), span, dtype=u.dtype, device=u.device)
    while bool((remaining > 0).any()):
        h, *momenta = u.detach().unbind(1)
        wave = (GRAVITY * h).sqrt()
        fastest = torch.stack(
            [
                ((q / h).abs() + wave).amax((-2, -1)) / cell
                for q, cell in zip(momenta, cells, strict=True)
            ]
        ).amax(0)[:, None, None, None]
        steps = (remaining * fastest / cfl).ceil()
        if not bool((steps < MAX_STEPS).all()):
            raise Diverged("`u0` must be finite, with heights > 0 that stay so.")
        dt = remaining / steps.clamp_min(1)
        first = u + dt * _rate(u, cells)
        u = (u + first + dt * _rate(first, cells)) / 2
        remaining = torch.where(steps > 1, remaining - dt, 0.0)
    return u


def _rate(u: Tensor, cells: Sequence[float]) -> Tensor:
    """The rate of change of u (B, 3, X, Y) by the fluxes along both axes."""
    swapped = u[:, [0, 2, 1]].mT  # the second axis becomes the first, and so does its momentum
    along_y = _rate_along_x(swapped, cells[1]).mT[:, [0, 2, 1]]
    return _rate_along_x(u, cells[0]) + along_y


def _rate_along_x(u: Tensor, cell: float) -> Tensor:
    """The rate of change of u (B, 3, X, Y) by the fluxes along X."""
    v = torch.cat((u[:, :, :1], u[:, :, :1], u, u[:, :, -1:], u[:, :, -1:]), 2)
    d = v.diff(dim=2)
    half = van_leer_half_slopes(d[:, :, :-1], d[:, :, 1:])
    v = v[:, :, 1:-1]
    flux = _flux_between((v + half)[:, :, :-1], (v - half)[:, :, 1:])
    return (flux[:, :, :-1] - flux[:, :, 1:]) / cell


def _flux_between(left: Tensor, right: Tensor) -> Tensor:
    """The flux along X between states (B, 3, X, Y) at the left and the right of faces."""
    velocity = [state[:, 1:2] / state[:, :1] for state in (left, right)]
    wave = [(GRAVITY * state[:, :1]).sqrt() for state in (left, right)]
    slowest = torch.minimum(velocity[0] - wave[0], velocity[1] - wave[1]).clamp_max(0)
    fastest = torch.maximum(velocity[0] + wave[0], velocity[1] + wave[1]).clamp_min(0)
    from_left, from_right = _flux(left), _flux(right)
    mixed = fastest * from_left - slowest * from_right + slowest * fastest * (right - left)
    return mixed / (fastest - slowest)


def _flux(u: Tensor) -> Tensor:
    """The flux along X of states u (B, 3, X, Y)."""
    h, along, across = u.unbind(1)
    velocity = along / h
    pressure = GRAVITY / 2 * h.square()
    return torch.stack((along, along * velocity + pressure, across * velocity), 1)


def _drawn(n: int, grid: Grid, seed: int) -> Tensor:
    return initial_conditions(n, grid.positions(), seed)


def _solve_field(
    u0: Tensor,
    times: Sequence[float],
    parameters: Sequence[float],
    grid: Grid,
    dtype: torch.dtype,
) -> Tensor:
    return solve(u0, times, grid.extent[0], dtype)


def _restrict(u: Tensor, factor: int) -> Tensor:
    """Averages (B, X / factor, Y / factor, 3) over cells of ``factor`` points along each axis."""
    blocks = u.unflatten(-2, (-1, factor)).unflatten(-4, (-1, factor))
    return blocks.mean((-4, -2))


def _prolong(u: Tensor, factor: int) -> Tensor:
    """The values of cells at all of their points: (B, X * factor, Y * factor, 3)."""
    return u.repeat_interleave(factor, -2).repeat_interleave(factor, -3)


def _reflect(u: Tensor, amount: Tensor, grid: Grid) -> Tensor:
    """x -> -x of trajectories (B, T, X, Y, 3), which turns the momentum along x round."""
    return u.flip(-3) * u.new_tensor([1, -1, 1])


EQUATION = Equation(
    name="shallow_water",
    title="Shallow water over flat ground, between open sides: a radial dam break.",
    channels=("h", "hu", "hv"),
    parameters=(),
    num_dims=2,
    initial_conditions={"dam_break": _drawn},
    solve=_solve_field,
    restrict=_restrict,
    prolong=_prolong,
    symmetries=(Symmetry("reflect", _reflect),),
    is_homogeneous=False,
    solver_refinement=2,
    length=LENGTH,
    boundary=Boundary.OPEN,
)
