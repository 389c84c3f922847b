"""Checks of the arguments of rollouts."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ups.core.agreement import BOX_TOLERANCE
from ups.core.errors import UpsError
from ups.core.fields import PERIODIC_AXIS, FieldSpec, Grid, PointCloud
from ups.core.gradients import numbers, to_tensor
from ups.core.points import Points

MODES = ("latent", "physical")


def validate_fields(
    u0: object, spec: FieldSpec, like: Tensor, x: Tensor | Points | None = None, name: str = "u0"
) -> tuple[Tensor, bool]:
    """Check fields.

    Args:
        u0: fields (B, *space, C), or with fewer axes, see ``FieldSpec.add_channel_axis``.
        spec: describes them.
        like: a tensor of the dtype and on the device that they get.
        x: their positions (P, D), or their points (B, P, D); None for the training grid.
        name: the name of the argument.

    Returns:
        Fields (B, *space, C), and whether they had a channel axis.

    Raises:
        UpsError: they are complex, not finite or of another shape.
    """
    u0 = numbers(u0, name)
    if u0.is_complex():
        raise UpsError(f"`{name}` must be real, got a complex field.")
    u0 = u0.to(like)
    if isinstance(x, Points):
        space: tuple[int, ...] = (x.mask.shape[1],)
    else:
        space = spec.grid.shape if x is None else (len(x),)
    u, has_channels = spec.add_channel_axis(u0)
    if isinstance(x, Points) and len(u) != len(x):
        raise UpsError(
            f"`{name}` must be as many fields as `x` has samples, {len(x)}; got {len(u)}."
        )
    if len(u) == 0 or tuple(u.shape[1:]) != (*space, spec.num_channels):
        channels = () if spec.num_channels == 1 else (spec.num_channels,)
        sizes = ", ".join(str(n) for n in (*space, *channels))
        grid = "x"
        if x is None:
            is_line = isinstance(spec.domain, Grid) and spec.domain.is_periodic_line
            other = "; give x= for any other" if name == "u0" and is_line else ""
            grid = f"the training grid{other}"
        raise UpsError(
            f"`{name}` must have shape (B, {sizes}), the points of {grid}; got {tuple(u0.shape)}."
        )
    if isinstance(x, Points):
        u = torch.where(x.mask[..., None].to(u.device), u, 0)  # padding counts nowhere
    if not bool(torch.isfinite(u).all()):
        raise UpsError(f"`{name}` must be finite, got values that are not.")
    return u, has_channels


def validate_count(value: object, name: str) -> None:
    """Check an integer >= 1.

    Raises:
        UpsError: it is none.
    """
    if not (hasattr(value, "__index__") and value >= 1):  # type: ignore[operator]
        raise UpsError(f"`{name}` must be an integer >= 1, got {value!r}.")


def validate_options(
    steps: int,
    mode: str,
    temperature: float | None,
    grad: bool | None,
    checkpoint_every: int | None,
    stride: int,
) -> None:
    """Check the options of ``Simulator.rollout``.

    Raises:
        UpsError: one is out of its range.
    """
    validate_count(steps, "steps")
    if mode not in MODES:
        raise UpsError(f"`mode` must be one of {', '.join(MODES)}, got {mode!r}.")
    is_number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if temperature is not None and not (is_number and 0 <= temperature < math.inf):
        raise UpsError(f"`temperature` must be a finite number >= 0, got {temperature!r}.")
    if grad not in (None, True, False):
        raise UpsError(f"`grad` must be True, False or None, got {grad!r}.")
    if checkpoint_every is not None and not (
        hasattr(checkpoint_every, "__index__") and checkpoint_every >= 1
    ):
        raise UpsError(
            f"`checkpoint_every` must be an integer >= 1 or None, got {checkpoint_every!r}."
        )
    if not (hasattr(stride, "__index__") and 1 <= stride <= steps):
        raise UpsError(f"`stride` must be an integer from 1 to `steps` ({steps}), got {stride!r}.")


def validate_parameters(
    nu: object,
    parameters: Mapping[str, object] | None,
    names: Sequence[str],
    batch: int,
    like: Tensor,
) -> Tensor:
    """Check parameters and return them as (B, P).

    Args:
        nu: see ``Simulator.rollout``, and likewise ``parameters``.
        names: the names that they must have (P,).
        batch: number of fields B.
        like: a tensor of the dtype and on the device that they get.

    Raises:
        UpsError: one is missing, unknown or out of its range.
    """
    if parameters is not None and not isinstance(parameters, Mapping):
        raise UpsError(f"`parameters` must be numbers by name, got {parameters!r}.")
    given = dict(parameters or {})
    if nu is not None:
        if len(names) != 1:
            raise UpsError(f"`nu` must be None: the parameters are {', '.join(names) or 'none'}.")
        if given:
            raise UpsError("`nu` must be None where `parameters` are given, got both.")
        given = {names[0]: nu}
    if sorted(given) != sorted(names):
        wanted = ", ".join(names) or "none"
        raise UpsError(f"the parameters must be {wanted}, got {', '.join(given) or 'none'}.")
    columns = []
    for name in names:
        try:
            value = to_tensor(given[name], like.dtype, like.device).expand(batch)
        except (TypeError, ValueError, RuntimeError):
            raise UpsError(
                f"`{name}` must be one number or ({batch},), one for each field, "
                f"got {given[name]!r}."
            ) from None
        if not bool(((value > 0) & value.isfinite()).all()):
            raise UpsError(f"`{name}` must be positive and finite, got {value.tolist()}.")
        columns.append(value)
    return torch.stack(columns, 1) if columns else like.new_empty(batch, 0)


def validate_places(
    x: object, x_out: object, domain: Grid | PointCloud, like: Tensor
) -> tuple[list[Tensor | None], Points | None, Points | None]:
    """Check where the fields of a rollout lie.

    Args:
        x: where the initial fields lie, see ``Simulator.rollout``.
        x_out: where the frames lie.
        domain: where the training data lie.
        like: a tensor of the dtype and on the device that they get.

    Returns:
        On a grid the positions (P, D) of both, None for the training grid; on points the points of
        the initial fields, and of the frames if they are others.

    Raises:
        UpsError: they do not fit the domain.
    """
    given = {"x": x, "x_out": x_out}
    if isinstance(domain, PointCloud):
        points = {
            name: _validate_points(value, domain, like, name) for name, value in given.items()
        }
        if points["x"] is None:
            raise UpsError("`x` must be the points of `u0`, got None: the data lie on points.")
        if points["x_out"] is not None and len(points["x_out"]) != len(points["x"]):
            raise UpsError(
                f"`x_out` must have as many samples as `x`, {len(points['x'])}, "
                f"got {len(points['x_out'])}."
            )
        return [None, None], points["x"], points["x_out"]
    places = [
        None if value is None else validate_positions(value, domain, like, name)
        for name, value in given.items()
    ]
    return places, None, None


def _validate_points(points: object, domain: PointCloud, like: Tensor, name: str) -> Points | None:
    """Check points and return them in the dtype and on the device of ``like``."""
    if points is None:
        return None
    if not isinstance(points, Points):
        raise UpsError(f"`{name}` must be ups.Points, got {type(points).__name__}.")
    sizes = (points.positions.shape[-1], points.features.shape[-1])
    wanted = (domain.num_dims, len(domain.features))
    if sizes != wanted:
        raise UpsError(
            f"`{name}` must have positions (B, P, {wanted[0]}) and features (B, P, {wanted[1]}): "
            f"{', '.join(domain.features) or 'none'}; got {sizes[0]} and {sizes[1]}."
        )
    if not bool(points.mask.any(1).all()) or len(points) == 0:
        raise UpsError(f"each sample of `{name}` must have a point.")
    points = points.to(like.device)
    is_point = points.mask[..., None]
    positions, features = (
        torch.where(is_point, values, 0) for values in (points.positions, points.features)
    )
    if not bool(positions.isfinite().all() and features.isfinite().all()):
        raise UpsError(f"`{name}` must be finite, got values that are not.")
    lowest, highest = positions[points.mask].aminmax(dim=0)
    for d, (first, last) in enumerate(domain.edges):
        low, high = lowest[d].item(), highest[d].item()
        beyond = BOX_TOLERANCE * (last - first)
        if not (first - beyond <= low and high <= last + beyond):
            raise UpsError(
                f"`{name}` must lie from {first:g} to {last:g} along axis {d}, the box of the "
                f"training data; got {low:g} to {high:g}."
            )
    return Points(positions, features, points.mask).to(like.dtype)


def validate_positions(x: object, domain: Grid, like: Tensor, name: str) -> Tensor:
    """Check positions and return them as a tensor (P, D).

    Args:
        x: positions (P, D), or (P,) on a line.
        domain: where they must lie.
        like: a tensor of the dtype and on the device that they get.
        name: the name of the argument.

    Raises:
        UpsError: they are not finite, outside or of another shape.
    """
    if isinstance(x, Points):
        raise UpsError(f"`{name}` must be positions, got ups.Points: the data lie on a grid.")
    x = numbers(x, name, like.dtype, like.device)
    x = x[:, None] if x.ndim == 1 and domain.num_dims == 1 else x
    if x.ndim != 2 or len(x) == 0 or x.shape[1] != domain.num_dims:
        wanted = "(P,)" if domain.num_dims == 1 else f"(P, {domain.num_dims})"
        raise UpsError(f"`{name}` must have shape {wanted} with P >= 1, got {tuple(x.shape)}.")
    if not bool(x.isfinite().all()):
        raise UpsError(f"`{name}` must be finite, got values that are not.")
    for d, sides in enumerate(domain.boundary):
        low = x[:, d].min().item()
        high = x[:, d].max().item()
        # an output may span several periods; an input that does is in other units
        if name == "x" and high - low > domain.extent[d] * (1 + 1e-6):
            raise UpsError(
                f"`x` must span at most one period of {domain.extent[d]:g}, "
                f"got {low:g} to {high:g}."
            )
        first, last = domain.edges[d]
        if sides != PERIODIC_AXIS and not (first <= low and high <= last):
            raise UpsError(
                f"`{name}` must lie from {first:g} to {last:g} along axis {d}, which is not "
                f"periodic; got {low:g} to {high:g}."
            )
    return x
