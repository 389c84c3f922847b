"""How far an initial field lies outside of those that a simulator was trained on."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ups.core.fields import PERIODIC_AXIS, FieldSpec, Grid


def input_size(u: Tensor, spec: FieldSpec) -> dict[str, Tensor]:
    """How large and how steep fields are, in standard deviations of the training data.

    Of amplitude, mean, gradient, total variation and spectrum these two, each relative to the
    training data, predicted the error on shifted inputs best (docs/method.md).

    Args:
        u: fields (B, *space, C).
        spec: describes the field.

    Returns:
        "largest value" (B,) and, on a grid, "steepest step" (B,), the largest difference of two
        neighbors.
    """
    u = u / u.new_tensor(spec.std)
    sizes = {"largest value": u.abs().flatten(1).amax(1)}
    if isinstance(spec.domain, Grid):
        steps = torch.zeros_like(sizes["largest value"])
        for d, sides in enumerate(spec.domain.boundary):
            step = (u.roll(-1, d + 1) - u).abs()
            if sides != PERIODIC_AXIS:
                step = step.narrow(d + 1, 0, step.shape[d + 1] - 1)
            if step.numel():
                steps = torch.maximum(steps, step.flatten(1).amax(1))
        sizes["steepest step"] = steps
    return sizes


def largest_input(u: Tensor, spec: FieldSpec) -> dict[str, float]:
    """The largest of each of ``input_size`` among fields (B, *space, C)."""
    return {name: value.max().item() for name, value in input_size(u, spec).items()}


def outside(u: Tensor, spec: FieldSpec, limits: Mapping[str, float]) -> tuple[str, float, float]:
    """What exceeds its limit most: its name, its value and its limit.

    Args:
        u: fields (B, *space, C).
        spec: describes the field.
        limits: the largest of each of ``input_size`` in training, not empty.
    """
    values = largest_input(u, spec)
    worst = max(limits, key=lambda name: values[name] / max(limits[name], 1e-30))
    return worst, values[worst], limits[worst]
