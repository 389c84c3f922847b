"""Readings of trajectories at scattered points, and checks of what is given as such."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.fields import Grid
from ups.core.gradients import numbers
from ups.simulation.arguments import validate_positions

ON_STEP = 1e-3  # times that are closer to a multiple of dt than this, in steps, are one


@dataclass(frozen=True)
class Readings:
    """Readings of trajectories.

    Args:
        values: the readings (B, R, P, C), 0 where there is none.
        weights: one over the standard deviation of their errors (B, R, P, C), 0 where there is no
            reading.
        steps: the number of steps (R,) from the initial state, increasing.
        positions: where they were taken, (1, P, D), or (R, P, D) of sensors that move.
        has_channels: whether they were given with a channel axis.
    """

    values: Tensor
    weights: Tensor
    steps: list[int]
    positions: Tensor
    has_channels: bool

    def trajectories(self) -> "Iterator[Readings]":
        """Yield the readings of each trajectory."""
        for values, weights in zip(self.values.split(1), self.weights.split(1), strict=True):
            yield replace(self, values=values, weights=weights)

    def misfit(self, predicted: Tensor) -> Tensor:
        """Predictions (..., B, R, P, C) less the readings, in units of the noise."""
        return (predicted - self.values) * self.weights


def validate_readings(
    readings: object,
    positions: Tensor,
    times: object,
    noise: object,
    *,
    num_channels: int,
    dt: float,
    like: Tensor,
) -> Readings:
    """Check readings and give them all their axes.

    Args:
        readings: see ``Simulator.assimilate``, and likewise ``times`` and ``noise``.
        positions: positions (1, P, D), or (R, P, D) of sensors that move.
        num_channels: number of channels C.
        dt: the time of a step.
        like: a tensor of the dtype and on the device that they get.

    Raises:
        UpsError: an argument is out of its range, or shapes don't agree.
    """
    steps = _validate_times(times, dt)
    values = numbers(readings, "readings", like.dtype, like.device)
    shape = (len(steps), positions.shape[1], num_channels)
    has_channels = num_channels > 1 or values.ndim == 4 or tuple(values.shape) == shape
    spread = _validate_noise(noise, values)
    if not has_channels:
        values, spread = values.unsqueeze(-1), spread.unsqueeze(-1)
    if values.ndim == 3:
        values, spread = values.unsqueeze(0), spread.unsqueeze(0)
    if values.ndim != 4 or len(values) == 0 or tuple(values.shape[1:]) != shape:
        wanted = ", ".join(map(str, shape if has_channels else shape[:-1]))
        raise UpsError(
            f"`readings` must have shape (B, {wanted}), those of each time and position; "
            f"got {tuple(numbers(readings, 'readings').shape)}."
        )
    if len(positions) not in (1, len(steps)):
        raise UpsError(
            f"`positions` must be those of all times or of {len(steps)} times, "
            f"got {len(positions)}."
        )
    is_missing = values.isnan()
    if bool(values.isinf().any()):
        raise UpsError("`readings` must be finite, or NaN where there is none; got infinite ones.")
    if bool(is_missing.flatten(1).all(1).any()):
        raise UpsError("`readings` must have a number for each trajectory, got one with none.")
    weights = (1 / spread).masked_fill(is_missing, 0.0)
    return Readings(values.nan_to_num(), weights, steps, positions, has_channels)


def validate_sensors(positions: object, grid: Grid, like: Tensor) -> Tensor:
    """Check the positions of readings and return them as (1 or R, P, D).

    Args:
        positions: see ``Simulator.assimilate``.
        grid: where they must lie.
        like: a tensor of the dtype and on the device that they get.

    Raises:
        UpsError: they are not finite, outside or of another shape.
    """
    x = numbers(positions, "positions", like.dtype, like.device)
    moves = x.ndim == 3 and x.shape[2] == grid.num_dims
    placed = validate_positions(x.flatten(0, 1) if moves else x, grid, like, "positions")
    return placed.view(x.shape) if moves else placed[None]


def _validate_times(times: object, dt: float) -> list[int]:
    """Times as numbers of steps."""
    given = numbers(times, "times", torch.float64).cpu()
    steps = given / dt
    is_valid = given.ndim == 1 and len(given) > 0 and bool(given.isfinite().all())
    is_valid = is_valid and bool(((steps - steps.round()).abs() < ON_STEP).all())
    found = steps.round().long().tolist() if is_valid else []
    if not is_valid or found[0] < 0 or found != sorted(set(found)):
        raise UpsError(
            f"`times` must be increasing multiples of dt = {dt:g} from 0, the time of the initial "
            f"state, got {given.tolist()}."
        )
    return found


def _validate_noise(noise: object, readings: Tensor) -> Tensor:
    """The noise of each of the readings."""
    given = numbers(noise, "noise", readings.dtype, readings.device)
    try:
        spread = given.expand(readings.shape)
    except RuntimeError:
        raise UpsError(
            "`noise` must be one number, or have a shape that broadcasts to that of `readings`, "
            f"{tuple(readings.shape)}; got {tuple(given.shape)}."
        ) from None
    wrong = spread[~(((spread > 0) & spread.isfinite()) | readings.isnan())]
    if len(wrong):
        raise UpsError(f"`noise` must be positive and finite, got {wrong[0].item():g}.")
    return spread
