"""Periodic fields by their waves: on other numbers of points, and at random."""

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


def mode_rms(u: Tensor, axes: Sequence[int]) -> Tensor:
    """The root mean square of each Fourier coefficient over fields.

    Args:
        u: fields (N, ...).
        axes: the axes of space.

    Returns:
        The sizes (...) of the coefficients of ``torch.fft.rfftn`` in its norm "forward".
    """
    coefficients = torch.fft.rfftn(u, dim=tuple(axes), norm="forward")
    return coefficients.abs().square().mean(0).sqrt()


def random_fields(rms: Tensor, n: int, points: Sequence[int], axes: Sequence[int]) -> Tensor:
    """Draw Gaussian fields whose Fourier coefficients are independent and of a given size.

    They use torch's global random numbers.

    Args:
        rms: the root mean square of each coefficient, as ``mode_rms`` returns it.
        n: number of fields.
        points: number of points along each of the axes of space.
        axes: the axes of space, counted from the end.

    Returns:
        Fields (n, ...).
    """
    shape = list(rms.shape)
    for axis, number in zip(axes, points, strict=True):
        shape[axis] = number
    # each coefficient of white noise has the variance 1 / points
    white = torch.randn(n, *shape, dtype=rms.dtype, device=rms.device)
    coefficients = torch.fft.rfftn(white, dim=tuple(axes), norm="forward")
    colored = coefficients * (rms * math.sqrt(math.prod(points)))
    return torch.fft.irfftn(colored, s=tuple(points), dim=tuple(axes), norm="forward")
