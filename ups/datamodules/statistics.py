"""What the training trajectories of a data set say of it: units, laws, usual sizes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec
from ups.datamodules.observed import conserves_mean, is_homogeneous
from ups.datamodules.readers import Reader
from ups.physics import Equation
from ups.physics.moving_frame import MovingFrame
from ups.physics.observation import Observation
from ups.simulation.input_range import channel_sizes

# smallest and largest standard deviation of the data: float32 and its squares neither underflow nor
# overflow
STD_LIMITS = (1e-12, 1e12)
STATISTICS_TRAJECTORIES = 1000  # of each file; of twice as many, every second counts
STATISTICS_VALUES = 2**28  # of each file, likewise: large fields would not fit into memory


def statistics_stride(trajectories: int, values_each: int) -> int:
    """Every how many-th of so many trajectories the statistics are of.

    They are of the same trajectories whether the data are kept in memory or not.
    """
    by_size = trajectories * values_each // STATISTICS_VALUES
    return max(1, trajectories // STATISTICS_TRAJECTORIES, by_size)


def describe_solutions(equation: Equation, file: Reader, values: np.ndarray) -> FieldSpec:
    """Describe solutions (N, T, *space, C) of an equation.

    Raises:
        UpsError: they are of another dimension or have other channels, or a standard deviation is
            too small or too large.
    """
    std = _checked_std(file, values)
    found = f"{file.grid.num_dims}D with {values.shape[-1]} channels"
    wanted = f"{equation.num_dims}D with {len(equation.channels)} channels"
    if found != wanted:
        raise UpsError(
            f"{file.path} must be of the equation {equation.name}, {wanted}; "
            f"its fields are {found}."
        )
    # the mean is kept in the field: removing it would break the symmetry u -> -u
    return FieldSpec(
        file.grid,
        equation.channels,
        equation.parameters,
        file.dt,
        std=tuple(std),
        largest=largest_values(values, (0.0,) * values.shape[-1], file, equation),
        conserves_mean=equation.conserves_mean,
        is_homogeneous=equation.is_homogeneous,
    )


def describe_data(
    file: Reader,
    values: np.ndarray,
    channels: Sequence[str],
    parameter_names: Sequence[str],
    parameters: Tensor,
) -> FieldSpec:
    """Describe fields (N, T, *space, C) without an equation, with ``parameters`` (N, P).

    Raises:
        UpsError: a standard deviation is too small or too large.
    """
    std = _checked_std(file, values)
    mean: tuple[float, ...] = tuple(
        np.mean(values, tuple(range(values.ndim - 1)), dtype=np.float64)
    )
    return FieldSpec(
        file.grid,
        tuple(channels),
        tuple(parameter_names),
        file.dt,
        mean=mean,
        std=tuple(std),
        largest=largest_values(values, mean, file, None),
        conserves_mean=conserves_mean(values, std),
        time_unit=file.dt,
        parameter_units=tuple(parameters.double().log().mean(0).exp().tolist()),
        is_homogeneous=is_homogeneous(values, file.grid),
    )


def _checked_std(file: Reader, values: np.ndarray) -> np.ndarray:
    """The standard deviations (C,) of fields (N, T, *space, C)."""
    axes = tuple(range(values.ndim - 1))
    std = np.std(values, axes, dtype=np.float64)
    check_std(file.path, std)
    return std


def check_std(path: Path, std: np.ndarray) -> None:
    """Check the standard deviations (C,) of training data.

    Raises:
        UpsError: one is too small or too large.
    """
    low, high = STD_LIMITS
    if not ((low < std) & (std < high)).all():
        raise UpsError(
            f"{path}: the standard deviation of the training data must be from {low:g} "
            f"to {high:g}, got {', '.join(f'{value:g}' for value in std)}."
        )


def largest_values(
    values: np.ndarray, mean: Sequence[float], file: Reader, equation: Equation | None
) -> tuple[float, ...]:
    """The largest distance of fields (N, T, *space, C) from ``mean`` (C,), as a network sees them,
    of each channel (C,).
    """
    center = torch.tensor(mean, dtype=torch.float32)
    largest = torch.zeros(len(center))
    for frames in torch.from_numpy(values).unbind(1):
        frame = MovingFrame(equation, frames, file.grid, file.dt)
        distance = (frame.enter(frames[:, None])[:, 0] - center).abs()
        largest = torch.maximum(largest, distance.flatten(0, -2).amax(0))
    return tuple(largest.tolist())


def largest_sizes(
    values: np.ndarray, file: Reader, equation: Equation | None, observation: Observation | None
) -> dict[str, Tensor]:
    """The largest sizes (C,) of fields (N, T, *space, C) as a network sees them.

    They have the names of ``ups.simulation.input_range.channel_sizes``.
    """
    largest: dict[str, Tensor] = {}
    for frames in torch.from_numpy(values).unbind(1):
        frame = MovingFrame(equation, frames, file.grid, file.dt)
        seen = frame.enter(frames[:, None])[:, 0]
        seen = seen if observation is None else observation(seen)
        for name, size in channel_sizes(seen, file.grid).items():
            found = size.amax(0)
            largest[name] = torch.maximum(largest.get(name, found), found)
    return largest
