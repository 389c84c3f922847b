"""Whether gradients are needed, and conversions that keep them."""

import reprlib
from collections.abc import Mapping
from dataclasses import is_dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from ups.core.errors import UpsError


def needs_gradients(*values: object) -> bool:
    """Whether a tensor in ``values``, or in a list, a mapping or a dataclass there, takes part in
    a differentiation.

    It requires gradients, as under ``torch.func.grad``, or has a tangent, as under
    ``torch.func.jvp``.
    """
    for value in values:
        if isinstance(value, Mapping):
            value = list(value.values())
        if is_dataclass(value):
            value = list(vars(value).values())
        if isinstance(value, list | tuple) and needs_gradients(*value):
            return True
        if not isinstance(value, Tensor):
            continue
        if value.requires_grad and torch.is_grad_enabled():
            return True
        if value.is_floating_point() and unpack_dual(value).tangent is not None:
            return True
    return False


def to_tensor(value: object, dtype: torch.dtype | None, device: torch.device | None) -> Tensor:
    """``torch.as_tensor`` that keeps the gradients of tensors in a list, and takes arrays whose
    bytes are in another order than this machine's.
    """
    if isinstance(value, list | tuple) and any(isinstance(each, Tensor) for each in value):
        value = torch.stack([to_tensor(each, dtype, device) for each in value])
    if isinstance(value, np.ndarray) and not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    return torch.as_tensor(value, dtype=dtype, device=device)


def _is_complex(value: object) -> bool:
    """Whether an array holds complex numbers; of lists torch refuses them itself."""
    if isinstance(value, Tensor):
        return value.is_complex()
    return isinstance(value, np.ndarray) and np.iscomplexobj(value)


def numbers(
    value: object,
    name: str,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """``to_tensor`` of the argument ``name``.

    Raises:
        UpsError: it can't be an array of real numbers.
    """
    if _is_complex(value):
        raise UpsError(f"`{name}` must be real numbers, got complex ones.")
    if isinstance(value, Tensor):  # what fails then is the device's
        return to_tensor(value, dtype, device)
    try:
        return to_tensor(value, dtype, device)
    except (TypeError, ValueError, RuntimeError):
        given = reprlib.repr(value)
        raise UpsError(f"`{name}` must be an array of numbers, got {given}.") from None
