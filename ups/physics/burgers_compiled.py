"""The scheme of ``ups.physics.burgers.solve``, compiled with numba for the CPU.

One trajectory after the other is solved, each with its own step size, on buffers that stay in the
cache. The kernel releases the GIL, so a caller's threads use all cores.
"""

import math

import numpy as np
from numpy.typing import NDArray

from ups.physics.compilation import compiled

Array = NDArray[np.floating]

MAX_STEPS = 1e9  # within one frame


@compiled
def _wrap(v: Array) -> None:
    """Fill the two ghost cells at each end of v (X + 4,)."""
    n = len(v)
    v[1] = v[n - 3]
    v[0] = v[n - 4]
    v[n - 2] = v[2]
    v[n - 1] = v[3]


@compiled
def _hancock(v: Array, out: Array, left: Array, right: Array, ratio: float) -> None:
    """One MUSCL-Hancock step of v (X + 4,) to out (X + 4,); ``ratio`` is dt / dx.

    ``left`` and ``right`` (X + 2,) are buffers for the values at both faces of the cells.
    """
    number = v.dtype.type  # float32 stays float32
    zero = number(0)
    tiny = number(1e-30)
    whole = number(ratio)
    half_ratio = number(ratio / 2)
    for i in range(len(left)):
        a = v[i + 1] - v[i]
        b = v[i + 2] - v[i + 1]
        half = max(a * b, zero) / (a + b + tiny)  # half of van Leer's limited slope
        center = v[i + 1] - whole * v[i + 1] * half  # half a step later
        left[i] = max(center + half, zero)
        right[i] = min(center - half, zero)
    for i in range(len(left) - 2):
        # twice Godunov's flux at both faces of the cell
        near = max(left[i] * left[i], right[i + 1] * right[i + 1])
        far = max(left[i + 1] * left[i + 1], right[i + 2] * right[i + 2])
        out[i + 2] = v[i + 2] - half_ratio * (far - near)
    _wrap(out)


@compiled
def _apply_kernel(v: Array, out: Array, near: float, far: float) -> None:
    """Apply the kernel of weights (far, near, 1 - 2 near - 2 far, near, far): v to out (X + 4,)."""
    number = v.dtype.type
    two = number(2)
    first_weight = number(near)
    second_weight = number(far)
    for i in range(len(v) - 4):
        # as differences, so that rounding does not change the mass step by step
        first = v[i + 1] + v[i + 3] - two * v[i + 2]
        second = v[i] + v[i + 4] - two * v[i + 2]
        out[i + 2] = v[i + 2] + first_weight * first + second_weight * second
    _wrap(out)


@compiled
def _diffuse(v: Array, out: Array, r: float) -> bool:
    """Diffusion of v (X + 4,) over a step of ``r`` = mu dt / dx^2, see ``burgers._kernel``.

    Both arrays are overwritten.

    Returns:
        Whether the result is in ``out``; else it is in ``v``.
    """
    if r == 0.0:
        return False
    m = max(1, math.ceil(1.5 * r))
    r = r / m
    far = max(0.0, (6 * r**2 - r) / 12)
    near = r - 4 * far
    for _ in range(m):
        _apply_kernel(v, out, near, far)
        v, out = out, v
    return m % 2 == 1


@compiled
def solve_rows(u: Array, times: Array, mu: Array, dx: float, cfl: float, frames: Array) -> bool:
    """Solve each row with its own steps.

    Args:
        u: cell averages (B, X).
        times: times (T,), increasing and >= 0.
        mu: the diffusivity nu / pi of each row (B,).
        dx: the size of a cell.
        cfl: the largest advective step, in cells.
        frames: receives the cell averages (B, T, X) at ``times``, in u's dtype.

    Returns:
        Whether all rows could be solved. A row that is not finite, or so large that a frame takes
        more than ``MAX_STEPS`` steps, could not.
    """
    points = u.shape[1]
    v = np.empty(points + 4, u.dtype)
    w = np.empty(points + 4, u.dtype)
    left = np.empty(points + 2, u.dtype)
    right = np.empty(points + 2, u.dtype)
    for b in range(len(u)):
        v[2:-2] = u[b]
        _wrap(v)
        now = 0.0
        for k in range(len(times)):
            span = times[k] - now
            if span > 0:
                # max |u| never grows, so one step size is safe until the next frame
                cells = span * np.abs(v).max() / (cfl * dx)
                if not cells < MAX_STEPS:
                    return False
                steps = max(1, math.ceil(cells))
                dt = span / steps
                r = mu[b] * dt / dx**2
                if _diffuse(v, w, r / 2):
                    v, w = w, v
                for step in range(steps):
                    _hancock(v, w, left, right, dt / dx)
                    v, w = w, v
                    if _diffuse(v, w, r if step < steps - 1 else r / 2):
                        v, w = w, v
                now = times[k]
            frames[b, k] = v[2:-2]
    return True
