"""Checks of what solvers get."""

import math
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.gradients import numbers


def validate_times(t: object) -> list[float]:
    """Check the times (T,) of a solver, and convert them.

    Raises:
        UpsError: they do not increase from 0.
    """
    times: list[float] = numbers(t, "t", torch.float64).reshape(-1).tolist()
    if not times or times[0] < 0 or any(not a <= b < math.inf for a, b in pairwise([0.0, *times])):
        raise UpsError(f"`t` must be finite times >= 0 in increasing order, got {times}.")
    return times


def validate_positions(x: object) -> Tensor:
    """Check positions (X,) and return them in float64, on the CPU.

    Raises:
        UpsError: they have another shape.
    """
    positions = numbers(x, "x", torch.float64).cpu()
    if positions.ndim != 1 or len(positions) == 0:
        raise UpsError(f"`x` must be positions (X,), got shape {tuple(positions.shape)}.")
    return positions


def validate_parameters(nu: float | Tensor, num_fields: int) -> NDArray[np.float64]:
    """Check the parameter of a solver that takes one number, or one for each field (B,).

    Returns:
        The parameters (B,).

    Raises:
        UpsError: there is another number of them, or one is not a number >= 0.
    """
    # lists: for a single number, as in every step of a rollout, they are faster than tensors
    is_number = isinstance(nu, int | float)
    values = [float(nu)] if is_number else numbers(nu, "nu", torch.float64).reshape(-1).tolist()
    if len(values) not in (1, num_fields) or not all(0 <= n < math.inf for n in values):
        raise UpsError(f"`nu` must be one number >= 0, or one for each of the fields, got {nu}.")
    return np.array(values if len(values) == num_fields else values * num_fields)


def validate_positive(value: float, name: str, largest: float = math.inf) -> None:
    """Check a number such as a length or the largest step in cells.

    Raises:
        UpsError: it is not a finite number > 0, or above ``largest``.
    """
    try:
        is_valid = 0 < value < math.inf and value <= largest
    except (TypeError, ValueError):
        is_valid = False
    if not is_valid:
        limit = "" if largest == math.inf else f" and at most {largest:g}"
        raise UpsError(f"`{name}` must be a finite number > 0{limit}, got {value!r}.")
