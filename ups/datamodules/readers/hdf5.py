"""Open HDF5 files, find them in folders, and check their datasets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ups.core.errors import UpsError
from ups.core.io import unreadable
from ups.datamodules.readers.coordinates import check_even, common_steps
from ups.datamodules.readers.field_files import read_array

SUFFIXES = (".h5", ".hdf5")


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading, also on file systems without locks.

    Raises:
        UpsError: it can't be read. The message says why.
    """
    try:
        return h5py.File(path, "r", locking="best-effort")
    except OSError as error:
        raise unreadable(path, error, "an HDF5 file") from None


def hdf5_files(path: Path) -> list[Path]:
    """The HDF5 file ``path``, or those in the folder ``path``, sorted by name.

    Raises:
        UpsError: there are none.
    """
    if not path.exists():
        raise UpsError(f"there is no data file {path}")
    if path.is_file():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if not files:
        raise UpsError(f"{path} must hold files that end with {' or '.join(SUFFIXES)}.")
    return files


def texts(values: object) -> list[str]:
    """The texts of an attribute, which HDF5 gives as bytes or as str."""
    return [
        value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        for value in np.atleast_1d(np.asarray(values)).tolist()
    ]


def number(path: Path, name: str, value: object) -> float:
    """The number that an attribute is, or a setting in a text.

    Args:
        path: the file, for the message.
        name: what it is, for the message: "the attribute 'eta'" for example.
        value: its value.

    Raises:
        UpsError: it is none, or several.
    """
    try:
        return float(np.asarray(value).item())
    except (TypeError, ValueError, OverflowError):
        found = value.tolist() if isinstance(value, np.ndarray) else value
        raise UpsError(f"{path}: {name} must be a number, got {found!r:.80}.") from None


class Datasets:
    """The datasets of a file or a group, checked when they are asked for.

    Args:
        path: the file, for messages.
        file: its handle.
        group: the beginning of all names, "train/" for example.
    """

    def __init__(self, path: Path, file: Any, group: str = "") -> None:
        self.path = path
        self.file = file
        self.group = group

    def node(self, name: str) -> Any:
        """A dataset or a group; None if there is none."""
        try:
            return self.file.get(self.group + name)
        except (OSError, RuntimeError, KeyError):  # a dangling link
            return None

    def members(self, name: str = "") -> list[str]:
        """The names in a group.

        Raises:
            UpsError: it is no group.
        """
        node = self.node(name)
        if not isinstance(node, h5py.Group):
            where = (self.group + name).rstrip("/")
            raise UpsError(f"{self.path}: '{where}' must be a group, got {node!r}.")
        return list(node)

    def array(self, name: str, *ranks: int) -> Any:
        """A non-empty dataset of numbers with one of the ranks.

        Raises:
            UpsError: there is none.
        """
        array = self.node(name)
        name = self.group + name
        if not hasattr(array, "shape"):
            raise UpsError(f"{self.path}: there is no dataset '{name}', which its layout has.")
        if array.ndim not in ranks or 0 in array.shape or array.dtype.kind not in "fiu":
            raise UpsError(
                f"{self.path}: '{name}' must be a non-empty array of numbers of "
                f"{' or '.join(map(str, ranks))} dimensions, got {array.dtype} {array.shape}."
            )
        return array

    def check_shape(self, name: str, shape: Sequence[int]) -> None:
        """Check the shape of a dataset.

        Raises:
            UpsError: it is another.
        """
        found = self.array(name, len(shape)).shape
        if tuple(found) != tuple(shape):
            raise UpsError(
                f"{self.path}: '{self.group}{name}' must have the shape {tuple(shape)}, "
                f"got {found}."
            )

    def values(self, name: str, *ranks: int) -> np.ndarray:
        """Read a dataset."""
        array = self.array(name, *ranks)
        return read_array(self.path, self.group + name, lambda: np.asarray(array[...]))

    def even(self, name: str, size: int, field: str, trajectories: int) -> np.ndarray:
        """Read ``size`` positions or times, given once or for each trajectory.

        Args:
            name: the dataset.
            size: how many they must be.
            field: what has so many points or frames.
            trajectories: number of trajectories.
        """
        values = self.values(name, 1, 2)
        values = common_steps(self.path, self.group + name, values, trajectories)
        return check_even(self.path, self.group + name, values, size, field)
