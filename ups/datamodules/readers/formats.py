"""Open a file of arrays by its suffix, without reading more than is asked for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ups.core.errors import UpsError
from ups.core.io import unreadable
from ups.core.optional_packages import import_optional
from ups.datamodules.readers.field_files import Arrays
from ups.datamodules.readers.hdf5 import open_hdf5
from ups.datamodules.readers.mat import open_mat


def _npy(path: Path) -> Arrays:
    return {"u": np.load(path, mmap_mode="r")}


def _npz(path: Path) -> Arrays:
    with np.load(path) as file:  # an archive can't be read in slices
        return {name: file[name] for name in file.files}


def _hdf5(path: Path) -> Arrays:
    return {name: node for name, node in open_hdf5(path).items() if hasattr(node, "shape")}


def _zarr(path: Path) -> Arrays:
    node = import_optional("zarr", str(path), "xarray").open(str(path), mode="r")
    return {"u": node} if hasattr(node, "shape") else dict(node.arrays())


def _netcdf(path: Path) -> Arrays:
    return dict(
        import_optional("xarray", str(path), "xarray")
        .open_dataset(path, decode_times=False)
        .variables
    )


FORMATS: dict[str, Callable[[Path], Arrays]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".zarr": _zarr,
    ".nc": _netcdf,
    ".mat": open_mat,
}


def open_arrays(path: Path) -> Arrays:
    """Open a file of arrays.

    Raises:
        UpsError: it can't be read.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise UpsError(f"{path} must end with one of {', '.join(FORMATS)}.")
    if not path.exists():
        raise UpsError(f"there is no data file {path}")
    try:
        return FORMATS[suffix](path)
    except UpsError:
        raise
    except Exception as error:  # each library has its own
        raise unreadable(path, error, f"a {suffix} file") from None
