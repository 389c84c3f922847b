"""Functions that torch.compile compiles where it can."""

import logging
from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


def compiled_or_eager(eager: Callable[P, T]) -> Callable[P, T]:
    """``eager``, compiled with torch.compile at its first call and for each new size of arguments.

    The first failure is logged; it is eager from then on. What ``eager`` itself raises is none.
    """
    is_eager = False

    @cache
    def compiled() -> Callable[P, T]:
        # of one size: batches and fields rarely change theirs, and such kernels are faster
        return torch.compile(eager, dynamic=False)

    @wraps(eager)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal is_eager
        if is_eager:
            return eager(*args, **kwargs)
        try:
            return compiled()(*args, **kwargs)
        except Exception as error:
            result = eager(*args, **kwargs)
            words = str(error).strip().splitlines() or [type(error).__name__]
            log.warning("torch.compile failed: falling back to eager (%s)", words[0])
            is_eager = True
            return result

    return call
