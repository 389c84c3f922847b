"""What equations of a field on a periodic line share: grid, PDEBench's random initial conditions, limited slopes, integrals.

Everything is dimensionless. Fields are (B, X) or (B, T, X) on a uniform periodic grid of X points.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ups.errors import UpsError


def grid(points: int, length: float = 1.0) -> Tensor:
    """Cell centres (points,) of a uniform periodic grid on [0, length)."""
    return (torch.arange(points, dtype=torch.float64) + 0.5).mul(length / points).float()


def initial_conditions(n: int, x: Tensor, seed: int, length: float = 1.0) -> Tensor:
    """Draw ``n`` of PDEBench's random initial conditions at positions ``x`` (X,): a (n, X) float32 tensor.

    Each is a sum over the wave numbers k = 1..4 of a sin(2 pi k c x / L + phi), where c counts how often k came up in two
    draws with replacement, a is uniform in [0, 1) and phi in [0, 2 pi). With probability 0.1 the absolute value is
    taken; the sign is flipped at random; with probability 0.1 a smooth window is multiplied on. A wave number that
    was not drawn is absent. (PDEBench's published ``init_multi`` leaves the constant a sin(phi) of such a number in, which gives most
    fields a mean; files made by it are read as they are.)
    """
    rng = np.random.default_rng(seed)
    position = torch.as_tensor(x, dtype=torch.float64).cpu().numpy() / length
    k = np.arange(1, 5)
    count = (rng.integers(1, 5, size=(n, 2))[:, :, None] == k).sum(1)  # (n, 4)
    amplitude = rng.uniform(0, 1, (n, 4))
    phase = rng.uniform(0, 2 * np.pi, (n, 4))
    amplitude *= count > 0
    u = np.einsum("nk,nkx->nx", amplitude, np.sin(2 * np.pi * (k * count)[:, :, None] * position + phase[:, :, None]))
    u = np.where(rng.uniform(size=(n, 1)) < 0.1, np.abs(u), u)
    u *= rng.choice([-1.0, 1.0], size=(n, 1))
    left, right = rng.uniform(0.1, 0.45, (n, 1)), rng.uniform(0.55, 0.9, (n, 1))
    window = 0.5 * (np.tanh((position - left) / 0.01) - np.tanh((position - right) / 0.01))
    u = np.where(rng.uniform(size=(n, 1)) < 0.1, u * window, u)
    return torch.from_numpy(u).float()


def checked(u0: Any, t: Any, nu: Any) -> tuple[Tensor, list[float], float]:
    """The arguments of a solver, as a person may give them: fields (B, X), or (X,) as one sample; times (T,); one parameter.

    Raises:
        UpsError: fields of another shape or kind, times that don't increase from 0 on, a parameter that is not one number of at least 0.
    """
    u0 = torch.as_tensor(u0)
    u0 = u0[None] if u0.ndim == 1 else u0
    if u0.ndim != 2 or u0.shape[1] < 1 or not u0.is_floating_point():
        raise UpsError(f"u0 is {u0.dtype} of shape {tuple(u0.shape)}; real fields (B, X), or (X,), are expected")
    times = torch.as_tensor(t, dtype=torch.float64).reshape(-1).tolist()
    if not times or times[0] < 0 or any(not a <= b < math.inf for a, b in pairwise([0.0, *times])):
        raise UpsError(f"t={times}: times that increase, from 0 on, are allowed")
    number = float(nu) if torch.as_tensor(nu).numel() == 1 else math.nan
    if not 0 <= number < math.inf:
        raise UpsError(f"nu={nu}: one number of at least 0 is allowed")
    return u0, times, number


def half_slopes(a: Tensor, b: Tensor) -> Tensor:
    """Half of van Leer's limited slope, from the differences ``a`` to the left and ``b`` to the right: a b / (a + b) where they agree in
    sign, else 0.
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
