"""Checks of what solvers get."""

import math
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.gradients import to_tensor


def validate_times(t: object) -> list[float]:
    """Check the times (T,) of a solver, and convert them.

    Raises:
        UpsError: they do not increase from 0.
    """
    times: list[float] = to_tensor(t, torch.float64, None).reshape(-1).tolist()
    if not times or times[0] < 0 or any(not a <= b < math.inf for a, b in pairwise([0.0, *times])):
        raise UpsError(f"`t` must be finite times >= 0 in increasing order, got {times}.")
    return times


def validate_parameters(nu: float | Tensor, num_fields: int) -> NDArray[np.float64]:
    """Check the parameter of a solver that takes one number, or one for each field (B,).

    Returns:
        The parameters (B,).

    Raises:
        UpsError: there is another number of them, or one is not a number >= 0.
    """
    # lists: for a single number, as in every step of a rollout, they are faster than tensors
    is_number = isinstance(nu, int | float)
    numbers = [float(nu)] if is_number else to_tensor(nu, torch.float64, None).reshape(-1).tolist()
    if len(numbers) not in (1, num_fields) or not all(0 <= n < math.inf for n in numbers):
        raise UpsError(f"`nu` must be one number >= 0, or one for each of the fields, got {nu}.")
    return np.array(numbers if len(numbers) == num_fields else numbers * num_fields)
