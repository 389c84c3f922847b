"""MATLAB files in the layout of the Fourier neural operator's data: `u` (N, *space, T)."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ups.core.optional_packages import import_optional
from ups.datamodules.readers.axes import SPACE
from ups.datamodules.readers.hdf5 import open_hdf5


class MatArray:
    """An array with names of its axes, as those of NetCDF have.

    Args:
        values: the array in the order of the file.
        dims: the names of its axes.
    """

    def __init__(self, values: Any, dims: tuple[str, ...]) -> None:
        self.values = values
        self.dims = dims
        self.shape = tuple(values.shape)
        self.dtype = values.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self.values[index])


def open_mat(path: Path) -> dict[str, Any]:
    """Open a MATLAB file: of version 7.3, which is HDF5 with all axes reversed, or an older one.

    Arrays of three to five axes are trajectories, space and time. A row or a column is a vector.
    """
    if h5py.is_hdf5(path):
        nodes = {name: node for name, node in open_hdf5(path).items() if hasattr(node, "shape")}
        return {name: _named(node, is_reversed=True) for name, node in nodes.items()}
    scipy_io = import_optional("scipy.io", str(path), "mat")
    values = scipy_io.loadmat(path)
    arrays = {name: array for name, array in values.items() if isinstance(array, np.ndarray)}
    return {name: _named(array, is_reversed=False) for name, array in arrays.items()}


def _named(array: Any, *, is_reversed: bool) -> Any:
    rank = len(array.shape)
    if rank == 2 and 1 in array.shape:
        return np.asarray(array[:]).reshape(-1)
    if rank not in (3, 4, 5):
        return array
    dims = ("n", *SPACE[: rank - 2], "t")
    return MatArray(array, dims[::-1] if is_reversed else dims)
