"""The scheme of ``ups.physics.navier_stokes.solve``, compiled with numba for the CPU.

One trajectory after the other is solved, on buffers that stay in the cache. The kernel releases the
GIL, so a caller's threads use all cores. Of the K = (Y + 2) // 3 waves along y that are kept, and
all X along x, coefficients are flat arrays (X K,).
"""

import math
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ups.physics.compilation import compiled

with suppress(ImportError):  # then nothing is compiled
    from rocket_fft import c2c, c2r, r2c

Real = NDArray[np.floating]
Complex = NDArray[np.complexfloating]


class Waves(NamedTuple):
    """What the scheme multiplies the coefficients by.

    Args:
        to_u: from the vorticity to u (X K,), complex.
        to_v: from the vorticity to v.
        from_product: from u v to the rate of change, real; zero where a wave is not kept.
        from_squares: from v^2 - u^2 likewise.
        square: squares of the wave numbers.
        is_kept: whether a wave is kept, those along x too.
    """

    to_u: Complex
    to_v: Complex
    from_product: Real
    from_squares: Real
    square: Real
    is_kept: NDArray[np.bool_]


class Buffers(NamedTuple):
    """Memory for two fields.

    Args:
        waves: their kept waves (2, X, K).
        rows: their waves (2, X, Y // 2 + 1) along y.
        points: their values (2, X, Y).
    """

    waves: Complex
    rows: Complex
    points: Real


@compiled
def _to_points(buffers: Buffers) -> None:
    """From ``waves`` to ``points``."""
    waves, rows, points = buffers
    kept = waves.shape[2]
    c2c(waves, waves, np.array([1]), False, 1.0, 1)
    rows[:, :, :kept] = waves
    rows[:, :, kept:] = 0
    c2r(rows, points, np.array([2]), False, 1 / points[0].size, 1)


@compiled
def _to_waves(buffers: Buffers) -> None:
    """From ``points`` to ``waves``."""
    waves, rows, points = buffers
    r2c(points, rows, np.array([2]), True, 1.0, 1)
    waves[:] = rows[:, :, : waves.shape[2]]
    c2c(waves, waves, np.array([1]), True, 1.0, 1)


@compiled
def _velocity(w: Complex, scheme: Waves, buffers: Buffers) -> None:
    """The velocity at the points."""
    both = buffers.waves.reshape(2, -1)
    for i in range(w.size):
        both[0, i] = scheme.to_u[i] * w[i]
        both[1, i] = scheme.to_v[i] * w[i]
    _to_points(buffers)


@compiled
def _advection(scheme: Waves, buffers: Buffers, rate: Complex) -> None:
    """The rate of change by advection, of a velocity at the points, which is overwritten."""
    velocity = buffers.points.reshape(2, -1)
    for i in range(velocity.shape[1]):
        u = velocity[0, i]
        v = velocity[1, i]
        velocity[0, i] = u * v
        velocity[1, i] = (v - u) * (v + u)
    _to_waves(buffers)
    both = buffers.waves.reshape(2, -1)
    for i in range(rate.size):
        rate[i] = scheme.from_product[i] * both[0, i] + scheme.from_squares[i] * both[1, i]


@compiled
def _fastest(velocity: Real, dx: float, dy: float) -> float:
    """The largest number of cells that are crossed in a unit of time."""
    u = velocity[0].reshape(-1)
    v = velocity[1].reshape(-1)
    fastest = 0.0
    for i in range(u.size):
        speed = abs(u[i]) / dx + abs(v[i]) / dy
        if not speed <= fastest:  # not a number, where it is, at all points
            fastest = speed
    return fastest


@compiled
def _step(
    w: Complex,
    dt: float,
    nu: float,
    force: Complex,
    scheme: Waves,
    buffers: Buffers,
    stages: Complex,
) -> None:
    """One Runge-Kutta step of w (X K,), whose velocity is in the buffers.

    ``stages`` (5, X K) is memory.
    """
    number = scheme.square.dtype.type  # float32 stays float32
    one_half = number(0.5)
    two = number(2)
    sixth = number(1 / 6)
    whole = number(dt)
    middle, end, total, rate, state = stages[0], stages[1], stages[2], stages[3], stages[4]
    half = np.empty_like(scheme.square)
    _advection(scheme, buffers, rate)
    for i in range(w.size):
        exponent = number(-nu * dt / 2) * scheme.square[i]
        half[i] = math.exp(exponent)
        growth = math.expm1(exponent) / exponent if exponent < 0 else number(1)
        forced = one_half * whole * growth * force[i]
        middle[i] = forced + half[i] * w[i]
        end[i] = forced + half[i] * middle[i]
        total[i] = half[i] * (whole * rate[i])
        state[i] = middle[i] + one_half * total[i]
    _velocity(state, scheme, buffers)
    _advection(scheme, buffers, rate)
    for i in range(w.size):
        change = whole * rate[i]
        total[i] += two * change
        state[i] = middle[i] + one_half * change
    _velocity(state, scheme, buffers)
    _advection(scheme, buffers, rate)
    for i in range(w.size):
        change = whole * rate[i]
        total[i] += two * change
        state[i] = end[i] + half[i] * change
    _velocity(state, scheme, buffers)
    _advection(scheme, buffers, rate)
    for i in range(w.size):
        w[i] = end[i] + sixth * (half[i] * total[i] + whole * rate[i])


@compiled
def solve_rows(
    w0: Real,
    times: Real,
    nu: Real,
    force: Complex,
    scheme: Waves,
    cells: tuple[float, float],
    cfl: float,
    slowest: float,
    max_steps: float,
    frames: Real,
) -> bool:
    """Solve each row with its own steps.

    Args:
        w0: vorticity (B, X, Y).
        times: times (T,), increasing and >= 0.
        nu: the viscosity of each row (B,).
        force: coefficients of the forcing (B, X K), or (1, X K) for all rows.
        scheme: see ``Waves``.
        cells: the size of a cell along each axis.
        cfl: the largest advective step, in cells.
        slowest: the number of steps in a unit of time that decay demands at nu = 1.
        max_steps: the largest number of steps between two times.
        frames: receives the vorticity (B, T, X, Y) at ``times``, in w0's dtype.

    Returns:
        Whether all rows could be solved. A row that is not finite, or takes more than ``max_steps``
        steps, could not.
    """
    space = w0.shape[1:]
    kept = scheme.square.size // space[0]
    rows = np.empty((2, space[0], space[1] // 2 + 1), force.dtype)
    points = np.empty((2, *space), w0.dtype)
    buffers = Buffers(np.empty((2, space[0], kept), force.dtype), rows, points)
    stages = np.empty((5, scheme.square.size), force.dtype)
    w = np.empty(scheme.square.size, force.dtype)
    for b in range(len(w0)):
        points[0] = w0[b]
        points[1] = 0
        _to_waves(buffers)
        w[:] = np.where(scheme.is_kept, buffers.waves[0].reshape(-1), 0)
        now = 0.0
        for k in range(len(times)):
            if times[k] == 0.0:
                frames[b, k] = w0[b]
                continue
            remaining = times[k] - now
            while remaining > 0.0:
                _velocity(w, scheme, buffers)
                fastest = _fastest(points, cells[0], cells[1])
                steps = remaining * max(fastest / cfl, nu[b] * slowest)
                if not steps < max_steps:
                    return False
                dt = remaining / max(math.ceil(steps), 1)
                _step(w, dt, nu[b], force[b % len(force)], scheme, buffers, stages)
                remaining = remaining - dt if steps > 1 else 0.0
            now = times[k]
            buffers.waves[0] = w.reshape(space[0], kept)
            buffers.waves[1] = 0
            _to_points(buffers)
            frames[b, k] = points[0]
    return True
