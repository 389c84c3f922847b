"""Relative errors, with a floor for fields that have decayed to almost zero."""

from torch import Tensor

RELATIVE_ERROR_FLOOR = 0.01  # of the data's standard deviation
TINY = 1e-15  # keeps the quotient of two zeros finite


def mean_over(values: Tensor, axes: tuple[int, ...], mask: Tensor | None = None) -> Tensor:
    """The mean of values (..., *space, C) over the axes of space.

    Args:
        values: the values.
        axes: the axes of space, see ``FieldSpec.space_axes``.
        mask: where there is a point, of a shape that broadcasts to (..., *space); default:
            everywhere.
    """
    if mask is None:
        return values.mean(axes)
    weight = mask[..., None].to(values.dtype)
    return (values * weight).sum(axes) / weight.sum(axes)


def relative_l2_squared(
    pred: Tensor,
    target: Tensor,
    axes: tuple[int, ...],
    floor: Tensor | float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """|pred - target|^2 / |target|^2 over space, mean over channels.

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
        The squared relative errors (...).
    """
    error = mean_over((pred - target).square(), axes, mask)
    size = mean_over(target.square(), axes, mask).clamp_min(floor**2 + TINY)
    return (error / size).mean(-1)
