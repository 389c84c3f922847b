"""What equations of a field on a periodic line share.

The grid, PDEBench's random initial conditions, limited slopes, integrals.

Everything is dimensionless. Fields are (B, X) or (B, T, X) on a uniform periodic grid of X points.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ups.core.errors import UpsError


def cell_centers(points: int, length: float = 1.0) -> Tensor:
    """The cell centers (points,) of a uniform periodic grid on [0, length)."""
    return (torch.arange(points, dtype=torch.float64) + 0.5).mul(length / points).float()


def initial_conditions(n: int, x: Tensor, seed: int, length: float = 1.0) -> Tensor:
    """Draw PDEBench's random initial conditions.

    Each is a sum over the wave numbers k = 1..4 of a sin(2 pi k c x / L + phi). The count c says
    how often k occurs in two draws with replacement; a is uniform in [0, 1) and phi in [0, 2 pi).
    With probability 0.1 the absolute value is taken; the sign is flipped at random; with
    probability 0.1 the field is multiplied by a smooth window.

    A wave number that was not drawn is absent. (PDEBench's published ``init_multi`` keeps the
    constant a sin(phi) of such a number, which gives most fields a mean. Files made by it are read
    unchanged.)

    Args:
        n: number of fields.
        x: positions (X,).
        seed: the same seed gives the same fields.
        length: the length of the periodic line.

    Returns:
        Fields (n, X), float32.
    """
    rng = np.random.default_rng(seed)
    position = torch.as_tensor(x, dtype=torch.float64).cpu().numpy() / length
    k = np.arange(1, 5)
    count = (rng.integers(1, 5, size=(n, 2))[:, :, None] == k).sum(1)  # (n, 4)
    amplitude = rng.uniform(0, 1, (n, 4))
    phase = rng.uniform(0, 2 * np.pi, (n, 4))
    amplitude *= count > 0
    u = np.einsum(
        "nk,nkx->nx",
        amplitude,
        np.sin(2 * np.pi * (k * count)[:, :, None] * position + phase[:, :, None]),
    )
    u = np.where(rng.uniform(size=(n, 1)) < 0.1, np.abs(u), u)
    u *= rng.choice([-1.0, 1.0], size=(n, 1))
    left, right = rng.uniform(0.1, 0.45, (n, 1)), rng.uniform(0.55, 0.9, (n, 1))
    window = 0.5 * (np.tanh((position - left) / 0.01) - np.tanh((position - right) / 0.01))
    u = np.where(rng.uniform(size=(n, 1)) < 0.1, u * window, u)
    return torch.from_numpy(u).float()


def validate_solver_inputs(u0: Any, t: Any, nu: Any) -> tuple[Tensor, list[float], float]:
    """Check the arguments of a solver and convert them.

    Args:
        u0: fields (B, X), or (X,) for a single sample.
        t: times (T,).
        nu: the equation's parameter.

    Returns:
        Fields (B, X), times and the parameter.

    Raises:
        UpsError: ``u0`` has another shape or type, the times do not increase from 0, or the
            parameter is not one number >= 0.
    """
    u0 = torch.as_tensor(u0)
    u0 = u0[None] if u0.ndim == 1 else u0
    if u0.ndim != 2 or u0.shape[1] < 1 or not u0.is_floating_point():
        raise UpsError(
            f"u0 is {u0.dtype} of shape {tuple(u0.shape)}; real fields (B, X), or (X,), "
            "are expected"
        )
    times = torch.as_tensor(t, dtype=torch.float64).reshape(-1).tolist()
    if not times or times[0] < 0 or any(not a <= b < math.inf for a, b in pairwise([0.0, *times])):
        raise UpsError(f"t={times}: times that increase, from 0 on, are allowed")
    number = float(nu) if torch.as_tensor(nu).numel() == 1 else math.nan
    if not 0 <= number < math.inf:
        raise UpsError(f"nu={nu}: one number of at least 0 is allowed")
    return u0, times, number


def van_leer_half_slopes(a: Tensor, b: Tensor) -> Tensor:
    """Half of van Leer's limited slope: a b / (a + b) if both have the same sign, else 0.

    Args:
        a: differences to the left.
        b: differences to the right.
    """
    return (a * b).clamp_(min=0).div_(a + b + 1e-30)


def mass(u: Tensor, length: float = 1.0) -> Tensor:
    """The integral of u over the domain: (..., X) -> (...)."""
    return u.mean(-1) * length


def energy(u: Tensor, length: float = 1.0) -> Tensor:
    """Half the integral of u^2: (..., X) -> (...)."""
    return u.square().mean(-1) * (length / 2)


def total_variation(u: Tensor) -> Tensor:
    """The sum of |u_{i+1} - u_i| around the domain: (..., X) -> (...)."""
    return (u.roll(-1, -1) - u).abs().sum(-1)
