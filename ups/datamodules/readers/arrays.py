"""One's own arrays: .npy, .npz, HDF5, zarr and NetCDF files of fields (N, T, X) or (N, T, X, C).

A file of several arrays may also say the times (`t`), the positions (`x`) and parameters, one
number a trajectory (N,), each an array of its own name.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from ups.core.errors import UpsError
from ups.core.fields import Grid
from ups.core.io import unreadable
from ups.core.optional_packages import import_optional
from ups.datamodules.readers.hdf5 import open_hdf5

log = logging.getLogger(__name__)
TIMES = ("t", "time", "times", "t-coordinate")
POSITIONS = ("x", "x-coordinate")
# more channels than this are rather a second dimension of space
MAX_CHANNELS = 16
# of positions and times: the largest difference of two steps, relative to their mean
UNEVEN = 1e-3


Index = int | slice | Sequence[int] | tuple[int | slice | Sequence[int], ...]


class Array(Protocol):
    """An array in a file, read in slices."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[np.generic]: ...
    def __getitem__(self, index: Index) -> ArrayLike: ...


Arrays = Mapping[str, Array]


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
}


class ArrayFile:
    """Reads trajectories of an array, which is opened once a process and never written.

    Args:
        path: the file.
        temporal_downsampling: keep every so many-th frame.
        spatial_downsampling: keep every so many-th point.
        dt: the time between frames; None if the file says its times.
        length: the length of the periodic line; None if the file says its positions.
        field: the name of the array of fields; None for the only one with 3 or 4 axes, or "u".

    Attributes:
        parameters: the parameters by name, (N,) each.

    Raises:
        UpsError: the file has a fault, or does not say all that is needed.
    """

    def __init__(
        self,
        path: Path,
        temporal_downsampling: int = 1,
        spatial_downsampling: int = 1,
        dt: float | None = None,
        length: float | None = None,
        field: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.temporal_downsampling = temporal_downsampling
        self.spatial_downsampling = spatial_downsampling
        self._arrays: Arrays | None = None
        self._process = -1
        arrays = self._open()
        self.field = self._field_name(arrays, field)
        shape = self._field_shape(arrays[self.field])
        self.trajectories, frames, points, self.channels = shape
        t = self._coordinate(arrays, TIMES, frames)
        x = self._coordinate(arrays, POSITIONS, points)
        if self._has_both_ends(arrays):
            log.info("%s: the last point repeats the first and is left out", self.path)
            points -= 1
            x = None if x is None else x[:-1]
        self._points = points
        # periodic: one cell more than from the first point to the last
        span = points * spacing(x) if x is not None else None
        step, extent = self._known(dt, length, spacing(t) if t is not None else None, span)
        self._check_thinning(frames, points)
        self.frames = (frames - 1) // temporal_downsampling + 1
        self.dt = temporal_downsampling * step
        origin = () if x is None else (float(x[0]),)
        self.grid = Grid((points // spatial_downsampling,), (extent,), origin=origin)
        self.parameters = self._parameters(arrays)

    def read(
        self, trajectories: Sequence[int], start: int = 0, frames: int | None = None
    ) -> np.ndarray:
        """Read ``frames`` frames from ``start`` on: (B, frames, X, C), float32.

        Raises:
            UpsError: a value is not finite.
        """
        arrays = self._open()
        stop = self.frames if frames is None else start + frames
        every = self.temporal_downsampling
        first, last = start * every, (stop - 1) * every
        shape = (len(trajectories), stop - start, *self.grid.shape, self.channels)
        out = np.empty(shape, np.float32)
        for row, i in enumerate(trajectories):
            frames_read = self._values(arrays, self.field, (i, slice(first, last + 1, every)))
            kept = frames_read[:, : self._points : self.spatial_downsampling]
            out[row] = kept.reshape(shape[1:])
            if not np.isfinite(out[row]).all():
                raise UpsError(
                    f"{self.path}: '{self.field}' must be finite in float32; trajectory {i} is not."
                )
        return out

    def _open(self) -> Arrays:
        if self._arrays is None or self._process != os.getpid():  # handles don't survive a fork
            suffix = self.path.suffix.lower()
            if suffix not in FORMATS:
                raise UpsError(f"{self.path} must end with one of {', '.join(FORMATS)}.")
            if not self.path.exists():
                raise UpsError(f"there is no data file {self.path}")
            try:
                self._arrays = FORMATS[suffix](self.path)
            except UpsError:
                raise
            except Exception as error:  # each library has its own
                raise unreadable(self.path, error, f"a {suffix} file") from None
            self._process = os.getpid()
        return self._arrays

    def _known(
        self, dt: float | None, length: float | None, step: float | None, span: float | None
    ) -> tuple[float, float]:
        """The time step and the length that are given, or else read."""
        known = {
            "data.dt": step if dt is None else dt,
            "data.length": span if length is None else length,
        }
        missing = [name for name, value in known.items() if value is None]
        if missing:
            raise UpsError(
                f"{self.path} doesn't say its {' and '.join(missing)}: give "
                f"{' '.join(f'{name}=...' for name in missing)}"
            )
        found = [value for value in known.values() if value is not None]
        return found[0], found[1]

    def _check_thinning(self, frames: int, points: int) -> None:
        every, each = self.temporal_downsampling, self.spatial_downsampling
        if points % each or points // each < 2:
            raise UpsError(
                f"`data.spatial_downsampling` must divide the {points} points of {self.path} and "
                f"leave 2, got {each}."
            )
        if (frames - 1) // every < 1:
            raise UpsError(
                f"`data.temporal_downsampling` must leave 2 of the {frames} frames of {self.path}, "
                f"got {every}."
            )

    def _field_name(self, arrays: Arrays, field: str | None) -> str:
        fields = [name for name, array in arrays.items() if len(array.shape) in (3, 4)]
        if field is None and len(fields) > 1 and "u" in fields:
            field = "u"
        if field is None and len(fields) == 1:
            field = fields[0]
        if field is None or field not in arrays:
            shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in arrays.items())
            raise UpsError(
                f"`data.field` must name an array (N, T, X) or (N, T, X, C) of {self.path}, got "
                f"{field!r}; it holds {shapes or 'none'}."
            )
        return field

    def _field_shape(self, array: Array) -> tuple[int, int, int, int]:
        shape = tuple(array.shape)
        sizes = (*shape, 1) if len(shape) == 3 else shape
        if len(sizes) != 4 or 0 in sizes or array.dtype.kind not in "fiu":
            raise UpsError(
                f"{self.path}: '{self.field}' must be real numbers with the axes (N, T, X) or "
                "(N, T, X, C): trajectories, frames, points and channels; "
                f"got {array.dtype} {shape}."
            )
        if sizes[3] > MAX_CHANNELS:
            raise UpsError(
                f"{self.path}: '{self.field}' has the shape {shape}, that is {sizes[3]} "
                f"channels on a line; at most {MAX_CHANNELS} are read, and fields in two "
                "dimensions are not supported yet"
            )
        trajectories, frames, points, channels = sizes
        return trajectories, frames, points, channels

    def _values(self, arrays: Arrays, name: str, index: Index = slice(None)) -> np.ndarray:
        """Read a part of an array.

        Raises:
            UpsError: it is damaged.
        """
        try:
            return np.asarray(arrays[name][index])
        except Exception as error:  # of the file, a chunk or a codec
            text = " ".join(str(error).split())[:200]
            raise UpsError(f"{self.path}: '{name}' can't be read, it is damaged ({text})") from None

    def _has_both_ends(self, arrays: Arrays) -> bool:
        """Whether the line's last point is its first again, as in linspace(0, 1, N)."""
        some = self._values(arrays, self.field, slice(min(8, self.trajectories)))
        some = some.astype(np.float64)
        gap = np.abs(some[:, :, -1] - some[:, :, 0]).max()
        return bool(some.shape[2] > 2 and gap <= 1e-6 * np.ptp(some))

    def _coordinate(self, arrays: Arrays, names: Sequence[str], size: int) -> np.ndarray | None:
        name = next((name for name in names if name in arrays), None)
        if name is None:
            return None
        values = self._values(arrays, name).astype(np.float64)
        steps = np.diff(values)
        if len(values) != size or not np.isfinite(values).all() or (steps <= 0).any():
            raise UpsError(
                f"{self.path}: '{name}' must be {size} finite, increasing numbers, as many as "
                f"'{self.field}' has, got {values.shape}."
            )
        if np.ptp(steps) > UNEVEN * steps.mean():
            raise UpsError(
                f"{self.path}: '{name}' must be evenly spaced; its steps are from "
                f"{steps.min():g} to {steps.max():g}."
            )
        return values

    def _parameters(self, arrays: Arrays) -> dict[str, np.ndarray]:
        known = {self.field, *TIMES, *POSITIONS}
        found = {
            name: self._values(arrays, name).astype(np.float64)
            for name, array in arrays.items()
            if name not in known and tuple(array.shape) == (self.trajectories,)
        }
        for name, values in found.items():
            if not ((values > 0) & np.isfinite(values)).all():
                raise UpsError(
                    f"{self.path}: the parameter '{name}' must be positive and finite, "
                    f"got {values.min():g} to {values.max():g}."
                )
        return found

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_arrays": None}


def spacing(values: np.ndarray) -> float:
    """The mean step of evenly spaced values."""
    return float(values[-1] - values[0]) / (len(values) - 1)
