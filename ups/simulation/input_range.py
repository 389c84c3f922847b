"""How far an initial field, or a parameter, lies outside of those of the training."""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ups.core.fields import PERIODIC_AXIS, FieldSpec, Grid, PointCloud

log = logging.getLogger(__name__)


def channel_sizes(u: Tensor, domain: Grid | PointCloud) -> dict[str, Tensor]:
    """How large and how steep each channel of fields is, in its own unit.

    Of amplitude, mean, gradient, total variation and spectrum these two, each relative to the
    training data, predicted the error on shifted inputs best (docs/method.md).

    Args:
        u: fields (B, *space, C).
        domain: where they lie.

    Returns:
        "largest value" (B, C) and, on a grid, "steepest step" (B, C), the largest difference of two
        neighbors.
    """
    sizes = {"largest value": u.abs().flatten(1, -2).amax(1)}
    if isinstance(domain, Grid):
        steps = torch.zeros_like(sizes["largest value"])
        for d, sides in enumerate(domain.boundary):
            step = (u.roll(-1, d + 1) - u).abs()
            if sides != PERIODIC_AXIS:
                step = step.narrow(d + 1, 0, step.shape[d + 1] - 1)
            if step.numel():
                steps = torch.maximum(steps, step.flatten(1, -2).amax(1))
        sizes["steepest step"] = steps
    return sizes


def input_size(u: Tensor, spec: FieldSpec) -> dict[str, Tensor]:
    """The largest of each of ``channel_sizes`` over the channels, in standard deviations of the
    training data (B,).
    """
    std = u.new_tensor(spec.std)
    return {name: (size / std).amax(1) for name, size in channel_sizes(u, spec.domain).items()}


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


def warn_of_fields(u: Tensor, spec: FieldSpec, limits: Mapping[str, float]) -> bool:
    """Log a warning if a field is beyond the training data; whether it was. See ``outside``."""
    name, value, limit = outside(u, spec, limits)
    if value > limit:
        log.warning(
            "The %s of `u0` is %.3g standard deviations, up to %.3g in the training data; "
            "predictions may be unreliable.",
            name,
            value,
            limit,
        )
    return value > limit


def warn_of_parameters(
    names: Sequence[str],
    parameters: Tensor,
    is_known: Tensor,
    trained: Sequence[Sequence[float]],
) -> None:
    """Log a warning for each parameter with values that are not known.

    Args:
        names: of the parameters.
        parameters: their values (B, P).
        is_known: whether a value is (B, P).
        trained: those of each part of the training data (parts, P).
    """
    for name, values, known, own in zip(
        names, parameters.T, is_known.T, zip(*trained, strict=True), strict=False
    ):
        beyond = values[~known].unique().tolist()
        if beyond:
            low, high = f"{beyond[0]:g}", f"{beyond[-1]:g}"
            log.warning(
                "%s = %s is outside the training range (%s); predictions may be unreliable.",
                name,
                low if low == high else f"{low} to {high}",
                ", ".join(f"{value:g}" for value in sorted(set(own))),
            )
