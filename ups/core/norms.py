"""Relative errors, with a floor for fields that have decayed to almost zero."""

import torch
from torch import Tensor

from ups.core.fields import FieldSpec

# in standard deviations of the data, so that errors do not depend on the unit
RELATIVE_ERROR_FLOOR = 0.01  # of losses
NEGLIGIBLE = 1e-6  # fields in float32 are hardly more exact


def negligible_size(spec: FieldSpec) -> Tensor:
    """The root mean square (C,), float64, below which a field counts as zero."""
    return NEGLIGIBLE * torch.tensor(spec.std, dtype=torch.float64)


def mean_over(values: Tensor, axes: tuple[int, ...], mask: Tensor | None = None) -> Tensor:
    """The mean of values (..., *space, C) over the axes of space.

    Args:
        values: the values.
        axes: the axes of space, see ``FieldSpec.space_axes``.
        mask: where there is a point, of a shape that broadcasts to (..., *space); default:
            everywhere. What lies elsewhere does not count, NaN neither.
    """
    if mask is None:
        return values.mean(axes)
    is_point = mask[..., None]
    return torch.where(is_point, values, 0).sum(axes) / is_point.to(values.dtype).sum(axes)


def relative_l2_squared(
    pred: Tensor,
    target: Tensor,
    axes: tuple[int, ...],
    floor: Tensor | float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """The mean over channels of ``relative_squares``: (...)."""
    return relative_squares(pred, target, axes, floor, mask).mean(-1)


def relative_squares(
    pred: Tensor,
    target: Tensor,
    axes: tuple[int, ...],
    floor: Tensor | float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """|pred - target|^2 / |target|^2 over space, of each channel.

    Each channel is relative to its own size, so that a small one counts as much as a large one. The
    relative error of a field that has decayed to almost zero is noise, and without a floor it
    dominates a loss.

    Args:
        pred: fields (..., *space, C).
        target: fields (..., *space, C).
        axes: the axes of space, see ``FieldSpec.space_axes``.
        floor: the smallest root mean square of a channel of ``target`` (C,) or one number; a
            smaller one counts as ``floor``.
        mask: see ``mean_over``.

    Returns:
        The squared relative errors (..., C).
    """
    if mask is not None:  # before squares, where a NaN that counts nowhere would make gradients NaN
        pred, target = (torch.where(mask[..., None], each, 0) for each in (pred, target))
    error = mean_over((pred - target).square(), axes, mask)
    smallest = torch.as_tensor(floor, dtype=error.dtype, device=error.device).square()
    size = mean_over(target.square(), axes, mask).maximum(smallest)
    return error / size.clamp_min(torch.finfo(size.dtype).tiny)  # 0 of two zeros
