"""Relative errors, with a floor for fields that have decayed to almost zero."""

from torch import Tensor

RELATIVE_ERROR_FLOOR = 0.01  # of the data's standard deviation


def relative_l2_squared(pred: Tensor, target: Tensor, floor: Tensor | float = 0.0) -> Tensor:
    """|pred - target|^2 / |target|^2 over the last dimension.

    The relative error of a field that has decayed to almost zero is noise, and without a floor it
    dominates a loss.

    Args:
        pred: fields (..., X).
        target: fields (..., X).
        floor: the smallest root mean square of a ``target``; a smaller one counts as ``floor``.

    Returns:
        The squared relative errors (...).
    """
    return (pred - target).square().sum(-1) / target.square().sum(-1).clamp_min(
        target.shape[-1] * floor**2 + 1e-12
    )
