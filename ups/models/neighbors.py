"""The nearest points of each sample of a batch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest(
    positions: Tensor, is_point: Tensor, queries: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """The nearest points of each query.

    Args:
        positions: positions (B, P, D).
        is_point: where there is a point (B, P).
        queries: positions (B, Q, D).
        number: how many points k.

    Returns:
        Numbers (B, Q, k) of the points, the nearest first, and their squared distances. Where there
        are fewer, the nearest point is repeated, at an infinite distance.
    """
    numbers = []
    squares = []
    missing = max(0, number - positions.shape[1])
    # one sample after the other: all distances of a batch would take too much memory
    for each, valid, query in zip(positions, is_point, queries, strict=True):
        # exact: by matrix products a point would not be at distance 0 from itself
        distance = torch.cdist(query, each, compute_mode="donot_use_mm_for_euclid_dist")
        distance = F.pad(distance.masked_fill(~valid, math.inf), (0, missing), value=math.inf)
        least, index = distance.topk(number, largest=False)
        numbers.append(torch.where(least.isfinite(), index, index[:, :1]))
        squares.append(least.square())
    return torch.stack(numbers), torch.stack(squares)


def take(values: Tensor, number: Tensor) -> Tensor:
    """Of values (B, P, C) those of the points with numbers (B, ...): (B, ..., C)."""
    first = torch.arange(len(values), device=values.device) * values.shape[1]
    return values.flatten(0, 1)[number + first.view(-1, *(1,) * (number.ndim - 1))]
