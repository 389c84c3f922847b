"""Periodic fields on other numbers of points, by their waves."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def resample(u: Tensor, points: Sequence[int], first_is_kept: bool = True) -> Tensor:
    """The trigonometric interpolant on other grids of the same periodic domain.

    It has the waves that both grids can hold, without that of two points.

    Args:
        u: point values (..., *space), of any number of axes.
        points: number of points along each of the last axes.
        first_is_kept: whether the first points of both grids are at the same place; otherwise the
            values are at the centers of cells, before and after.

    Returns:
        Point values (..., *points).
    """
    for axis, target in enumerate(points, -len(points)):
        source = u.shape[axis]
        kept = (min(source, target) - 1) // 2 + 1
        spectrum = torch.fft.rfft(u.movedim(axis, -1), norm="forward")[..., :kept]
        if not first_is_kept:
            k = torch.arange(kept, device=u.device, dtype=torch.float64)
            shift = torch.exp(1j * math.pi * k * (1 / target - 1 / source))
            spectrum = spectrum * shift.to(spectrum.dtype)
        u = torch.fft.irfft(spectrum, n=target, norm="forward").movedim(-1, axis)
    return u
