"""The inputs of a model that describe a step: its time and the equation's parameters."""

import torch
from torch import Tensor

from ups.core.fields import PARAMETER_UNIT, TIME_UNIT


def condition_features(dt: Tensor, parameters: Tensor) -> Tensor:
    """The features (B, 1 + P) of steps of time ``dt`` (B,) at positive ``parameters`` (B, P)."""
    return torch.cat(((dt / TIME_UNIT - 1)[:, None], (parameters / PARAMETER_UNIT).log()), -1)
