"""Periodic interpolation between point sets."""

import torch
from torch import Tensor


def interpolate(u: Tensor, x: Tensor, query: Tensor, length: float) -> Tensor:
    """Linear periodic interpolation of ``u`` (B, X), known at ``x`` (X,), at ``query`` (Q,): (B, Q).

    Positions lie in [0, length) and may come in any order. Where a query point is a known point the value is taken over as it is.
    """
    x, order = x.sort()
    u = u[:, order]
    right = torch.searchsorted(x, query.contiguous(), right=True)
    left = (right - 1) % len(x)
    right = right % len(x)
    gap = (x[right] - x[left]) % length
    gap = torch.where(gap == 0, length, gap)  # a single point is its own neighbour, one period on
    weight = ((query - x[left]) % length) / gap
    return torch.lerp(u[:, left], u[:, right], weight)
