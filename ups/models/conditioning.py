"""The inputs of a model that describe a step: its time and the equation's parameters."""

import torch
from torch import Tensor

# centers of the parameters and of dt; they only set units
PARAMETER_SCALE = 1e-3
DT_SCALE = 0.05


def condition_features(dt: Tensor, parameters: Tensor) -> Tensor:
    """The features (B, 1 + P) of steps of time ``dt`` (B,) at positive ``parameters`` (B, P)."""
    return torch.cat(((dt / DT_SCALE - 1)[:, None], (parameters / PARAMETER_SCALE).log()), -1)
