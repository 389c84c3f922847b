"""The parameter of a PDEBench file, as its attribute or its name says it."""

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ups.core.errors import UpsError
from ups.datamodules.readers.hdf5 import open_hdf5


class FileParameter(NamedTuple):
    """A value, and what says it: "its attribute 'Nu'" or "its name"."""

    value: float
    source: str


def file_parameter(path: Path, symbol: str, *, has_attributes: bool) -> FileParameter | None:
    """Read the parameter ``symbol`` of a file, from its attribute or else from its name.

    Args:
        path: the file. If there is none yet, only the name counts.
        symbol: the parameter's name, in upper or lower case.
        has_attributes: whether it is an HDF5 file.

    Returns:
        The parameter, or None if the file doesn't say it.

    Raises:
        UpsError: the file can't be read, or what it says is not a positive number.
    """
    if has_attributes and path.is_file():
        with open_hdf5(path) as file:
            for name, value in file.attrs.items():
                if name.lower() == symbol.lower():
                    return FileParameter(_positive(path, name, value), f"its attribute {name!r}")
    value = parameter_in_name(path.name, symbol)
    return None if value is None else FileParameter(value, "its name")


def parameter_in_name(name: str, symbol: str) -> float | None:
    """The parameter in a name such as 1D_Burgers_Sols_Nu0.001.hdf5 or burgers_nu0p01.hdf5.

    ``symbol`` and its number must be words: "menu2" says nothing of nu. None too if a name has
    several numbers, or zero.
    """
    fraction = r"(?:[.p]\d+|\.(?=e[+-]?\d))?"  # PDEBench writes 1.e-8 too
    number = rf"(?>\d+{fraction}(?:e[+-]?\d+)?)"  # not given back in part
    pattern = rf"(?<![a-z0-9]){re.escape(symbol)}[_=]?({number})(?![a-z0-9])"
    found = re.findall(pattern, name, re.IGNORECASE)
    values = {float(text.lower().replace("p", ".")) for text in found}
    value = values.pop() if len(values) == 1 else 0.0
    return value if 0 < value < math.inf else None


def _positive(path: Path, name: str, value: object) -> float:
    try:
        number = float(np.asarray(value).item())
    except (TypeError, ValueError):  # a text, or several numbers
        number = math.nan
    if not 0 < number < math.inf:
        raise UpsError(f"{path}: its attribute '{name}' must be a number > 0, got {value!r}.")
    return number
