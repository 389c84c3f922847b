"""Open HDF5 files."""

from pathlib import Path

import h5py

from ups.core.io import unreadable


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading, also on file systems without locks.

    Raises:
        UpsError: it can't be read. The message says why.
    """
    try:
        return h5py.File(path, "r", locking="best-effort")
    except OSError as error:
        raise unreadable(path, error, "an HDF5 file") from None
