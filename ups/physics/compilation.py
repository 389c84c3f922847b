"""Solvers compiled with numba, where it is installed.

A function is compiled for float32 and float64 when each is first needed. numba keeps the machine
code on disk, beside the module or, if that folder is read-only, in the user's cache.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import ParamSpec, TypeVar

try:
    import numba
    import rocket_fft  # noqa: F401 - Fourier transforms for numba
except ImportError:
    numba = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def compiled(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile a function when it is first called, if numba is installed."""
    if numba is None:
        return function
    # a division by zero gives inf, as in NumPy: the check for it would prevent vector instructions
    try:
        return numba.njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:  # no folder for the cache is writable
        return numba.njit(function, nogil=True, error_model="numpy")


def is_installed() -> bool:
    """Whether solvers can be compiled."""
    return numba is not None


@cache
def is_available() -> bool:
    """Whether solvers can be compiled. If they can't, the first call says so in the log."""
    if not is_installed():
        log.warning(
            "numba or rocket-fft is not installed: solvers run in torch, 2 to 100 times slower."
        )
    return is_installed()
