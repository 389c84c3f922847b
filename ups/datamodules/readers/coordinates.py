"""Positions and times that a file says, checked to be evenly spaced."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ups.core.errors import UpsError
from ups.core.fields import Boundary, Grid

# the largest difference of two steps, relative to their mean
UNEVEN = 1e-3


def check_even(path: Path, name: str, values: np.ndarray, size: int, field: str) -> np.ndarray:
    """Check positions or times.

    Args:
        path: the file, for the message.
        name: the name of the values there.
        values: the values.
        size: how many they must be.
        field: what has so many points or frames.

    Returns:
        The values, float64.

    Raises:
        UpsError: they are not ``size`` finite, increasing and evenly spaced numbers, or there is
            one only, which has no spacing.
    """
    if size < 2:
        raise UpsError(f"{path}: '{name}' must be at least 2 numbers, got {size}.")
    if values.dtype.kind not in "fiu" or values.shape != (size,):
        raise UpsError(
            f"{path}: '{name}' must be {size} finite, increasing numbers, as many as '{field}' "
            f"has, got {values.dtype} {values.shape}."
        )
    with np.errstate(invalid="ignore"):  # damaged values are refused below
        values = values.astype(np.float64)
        steps = np.diff(values)
    if not np.isfinite(values).all() or (steps <= 0).any():
        raise UpsError(
            f"{path}: '{name}' must be {size} finite, increasing numbers, as many as '{field}' has."
        )
    if np.ptp(steps) > UNEVEN * steps.mean():
        raise UpsError(
            f"{path}: '{name}' must be evenly spaced; its steps are from {steps.min():g} to "
            f"{steps.max():g}."
        )
    return values


def common_steps(path: Path, name: str, values: np.ndarray, trajectories: int) -> np.ndarray:
    """The times or positions (X,) of all trajectories, which are given once or for each (N, X).

    Raises:
        UpsError: they are not given for each of the trajectories, or their steps differ.
    """
    if values.ndim != 2:
        return values
    if len(values) != trajectories:
        raise UpsError(
            f"{path}: '{name}' must be given once or for each of the {trajectories} trajectories, "
            f"got {values.shape}."
        )
    steps = np.diff(values.astype(np.float64), axis=1)
    if not (np.abs(steps - steps[:1]) <= UNEVEN * np.abs(steps[:1]).mean()).all():
        raise UpsError(
            f"{path}: '{name}' must have the same steps in all trajectories, but they differ."
        )
    return values[0]


def check_same(path: Path, name: str, values: np.ndarray, first: str, others: np.ndarray) -> None:
    """Check that evenly spaced positions or times are those of the first trajectory.

    Args:
        path: the file, for the message.
        name: the name of the values there.
        values: the values (X,).
        first: the name of those of the first trajectory.
        others: these (X,).

    Raises:
        UpsError: one differs by more than their rounding, for which ``UNEVEN`` of a step is room.
    """
    difference = np.abs(values - others).max()
    if difference > UNEVEN * spacing(others):
        raise UpsError(
            f"{path}: '{name}' must be as '{first}', since all trajectories have the same "
            f"positions and times, but differs by up to {difference:g}."
        )


def each_axis(path: Path, key: str, value: Any, num_dims: int) -> list[Any]:
    """One value for each axis of space.

    Args:
        path: the file, for the message.
        key: the setting.
        value: its value: one for all axes, or a list.
        num_dims: number of axes.

    Raises:
        UpsError: another number of values is given.
    """
    if not isinstance(value, list | tuple):
        return [value] * num_dims
    if len(value) != num_dims:
        raise UpsError(
            f"`data.{key}` must be one value, or one for each of the {num_dims} axes of {path}, "
            f"got {len(value)}."
        )
    return list(value)


def spacing(values: np.ndarray) -> float:
    """The mean step of evenly spaced values."""
    return float(values[-1] - values[0]) / (len(values) - 1)


def without_rounding(length: float) -> float:
    """A length without the rounding of float32 coordinates: to six places, of short lines more."""
    zeros = max(0, -math.floor(math.log10(length)) - 1)
    return round(length, 6 + zeros)


def cells_around(
    axes: Sequence[np.ndarray], boundary: Sequence[tuple[Boundary, Boundary]] = ()
) -> Grid:
    """The grid of cells around evenly spaced points.

    Args:
        axes: the positions along each axis (D,).
        boundary: lower and upper side of each axis; default: periodic.
    """
    return Grid(
        tuple(len(points) for points in axes),
        # one cell more than from the first point to the last
        tuple(without_rounding(len(points) * spacing(points)) for points in axes),
        tuple(boundary),
        tuple(float(points[0]) for points in axes),
    )
