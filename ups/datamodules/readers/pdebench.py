"""PDEBench's 1D HDF5 layout, which generated files of any number of dimensions have too.

`tensor` (N, T, X) float32, `x-coordinate` (X,), and `t-coordinate` (T,) or, as published, (T + 1,).
In two dimensions `tensor` is (N, T, X, Y), and there is a `y-coordinate` (Y,), in three a
`z-coordinate`. Fields of several channels have an axis more, the last.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ups.core.errors import UpsError
from ups.core.fields import PERIODIC_AXIS, Boundary, Grid
from ups.datamodules.readers.axes import SPACE
from ups.datamodules.readers.coordinates import without_rounding
from ups.datamodules.readers.field_files import OpenFiles
from ups.datamodules.readers.hdf5 import open_hdf5


class TrajectoryFile:
    """Reads trajectories from one file, which is never written.

    Opening checks names, ranks, lengths, types and coordinates; ``read`` checks that values are
    finite. Each process opens the file once, so that an instance can be passed to worker processes.

    Args:
        path: the HDF5 file.
        temporal_downsampling: keep every so many-th frame.
        spatial_downsampling: keep every so many-th point.

    Raises:
        UpsError: the file has a fault. The message has the file, the dataset and what is expected.
    """

    def __init__(
        self, path: Path, temporal_downsampling: int = 1, spatial_downsampling: int = 1
    ) -> None:
        self.path = Path(path)
        self.temporal_downsampling = temporal_downsampling
        self.spatial_downsampling = spatial_downsampling
        self._files = OpenFiles(open_hdf5)
        if not self.path.exists():
            raise UpsError(f"there is no data file {self.path}")
        names = [n for n in SPACE if n == "x" or self._find(f"{n}-coordinate") is not None]
        axes = {name: self._coordinate(f"{name}-coordinate") for name in names}
        t = self._coordinate("t-coordinate")
        tensor = self._tensor(len(axes))
        trajectories, frames, *space = tensor.shape[: 2 + len(axes)]
        for (name, x), points in zip(axes.items(), space, strict=True):
            if len(x) != points:
                raise UpsError(
                    f"{self.path}: '{name}-coordinate' must have {points} entries, as 'tensor' has "
                    f"points; got {len(x)}."
                )
        if len(t) not in (frames, frames + 1):
            raise UpsError(
                f"{self.path}: 't-coordinate' must have {frames} or {frames + 1} entries, as "
                f"'tensor' has {frames} frames; got {len(t)}."
            )
        self._check_thinning(frames, space)
        is_periodic = self._sides() == PERIODIC_AXIS
        if is_periodic and any(
            self._has_both_ends(tensor, d, x) for d, x in enumerate(axes.values())
        ):
            raise UpsError(
                f"{self.path}: the last point must not repeat the first, as in linspace(0, 1, N). "
                "Leave it out, or read the file with data=own."
            )
        self.trajectories = trajectories
        has_channels = tensor.ndim > 2 + len(axes)
        num_channels = tensor.shape[-1] if has_channels else 1
        self.channels = tuple(f"u{c}" if c else "u" for c in range(num_channels))
        self.parameters: Mapping[str, np.ndarray] = {}
        self.splits: Mapping[str, Sequence[int]] | None = None
        self.t = t[:frames:temporal_downsampling]
        self.frames = len(self.t)
        self.dt = float(self.t[1] - self.t[0])
        # periodic: one cell more than the distance of the first and the last center
        extent = [
            without_rounding(float(x[-1] - x[0]) * len(x) / (len(x) - 1)) for x in axes.values()
        ]
        self.grid = Grid(
            tuple(n // spatial_downsampling for n in space),
            tuple(extent),
            (self._sides(),) * len(axes),
            tuple(float(x[0]) for x in axes.values()),
        )

    def read(
        self, trajectories: Sequence[int], start: int = 0, frames: int | None = None
    ) -> np.ndarray:
        """Read frames of some trajectories.

        Args:
            trajectories: their indices (B,).
            start: the first frame, counted in those that are kept.
            frames: number of frames that are kept; default: all.

        Returns:
            Fields (B, frames, *space, C), float32.

        Raises:
            UpsError: a trajectory can't be read or is not finite.
        """
        tensor = self._tensor(self.grid.num_dims)
        stop = self.frames if frames is None else start + frames
        shape = (len(trajectories), stop - start, *self.grid.shape, len(self.channels))
        out = np.empty(shape, np.float32)
        every_point = (slice(None, None, self.spatial_downsampling),) * self.grid.num_dims
        first = start * self.temporal_downsampling
        last = (stop - 1) * self.temporal_downsampling
        for row, i in enumerate(trajectories):
            # read whole frames and subsample in memory: strided reads of the last axis are slow
            try:
                whole = tensor[i, first : last + 1 : self.temporal_downsampling]
            except (OSError, RuntimeError) as error:  # a damaged chunk
                raise UpsError(
                    f"{self.path}: trajectory {i} of 'tensor' can't be read "
                    f"({str(error).splitlines()[0]})"
                ) from None
            out[row] = whole[:, *every_point].reshape(shape[1:])
            if not np.isfinite(out[row]).all():
                raise UpsError(
                    f"{self.path}: 'tensor' has a value that is not finite in trajectory {i}; "
                    "all must be finite"
                )
        return out

    def _sides(self) -> tuple[Boundary, Boundary]:
        """The sides of every axis, as a generated file says them; PDEBench's are periodic."""
        file: Any = self._files[self.path]
        try:
            side = Boundary(file.attrs.get("boundary", Boundary.PERIODIC))
        except (OSError, RuntimeError, KeyError, ValueError, TypeError):
            raise UpsError(
                f"{self.path}: its attribute 'boundary' must be one of {', '.join(Boundary)}."
            ) from None
        return side, side

    def _check_thinning(self, frames: int, space: Sequence[int]) -> None:
        every, each = self.temporal_downsampling, self.spatial_downsampling
        if any(n % each or n // each < 2 for n in space) or (frames - 1) // every < 1:
            points = " x ".join(map(str, space))
            raise UpsError(
                f"{self.path}: spatial_downsampling={each} must divide its {points} points, and at "
                f"least 2 points and 2 of its {frames} frames must be left at "
                f"temporal_downsampling={every}"
            )

    def _has_both_ends(self, tensor: h5py.Dataset, axis: int, x: np.ndarray) -> bool:
        """Whether fields end along an axis of space as they begin, on points that are no centers
        of cells.

        It looks at the first frames of some trajectories.
        """
        cells = x[0] / (x[1] - x[0])
        if len(x) < 3 or abs(cells - round(cells)) > 0.01:
            return False
        try:
            with np.errstate(invalid="ignore"):  # values are checked when they are read
                some = np.asarray(tensor[:8, 0], np.float64)
        except (OSError, RuntimeError):  # a damaged chunk is refused when it is read
            return False
        first, last = some.take(0, 1 + axis), some.take(-1, 1 + axis)
        return bool(np.abs(last - first).max() <= 1e-6 * np.ptp(some) and np.ptp(some) > 0)

    def verify_checksum(self, parts: Sequence[np.ndarray]) -> None:
        """Compare the content of the file with its recorded hash, if it has one.

        Args:
            parts: everything that the file holds, in parts along the first axis.

        Raises:
            UpsError: they differ.
        """
        file: Any = self._files[self.path]
        known = file.attrs.get("hash")
        if known is not None and digest(parts) != known:
            raise UpsError(
                f"{self.path}: the values of 'tensor' are not those that were written; "
                "remove the file and it is made again"
            )

    def _tensor(self, num_dims: int) -> h5py.Dataset:
        """The dataset of fields, whose axis of channels may be left out."""
        rank = 2 + num_dims
        found = self._find("tensor")
        has_channels = found is not None and found.ndim == rank + 1
        return self._dataset("tensor", rank + has_channels)

    def _find(self, name: str) -> h5py.Dataset | None:
        try:
            found = self._files[self.path].get(name)
        except (OSError, RuntimeError, KeyError):  # a dangling link, or a damaged group
            return None
        return found if isinstance(found, h5py.Dataset) else None

    def _dataset(self, name: str, rank: int) -> h5py.Dataset:
        dataset = self._find(name)
        if dataset is None:
            raise UpsError(
                f"{self.path}: there is no dataset '{name}'; PDEBench's layout has 'tensor', "
                "'x-coordinate' and 't-coordinate'"
            )
        if dataset.ndim != rank or dataset.dtype.kind != "f" or 0 in dataset.shape:
            raise UpsError(
                f"{self.path}: '{name}' must be a non-empty float array of {rank} dimensions, "
                f"got {dataset.dtype} {dataset.shape}."
            )
        return dataset

    def _coordinate(self, name: str) -> np.ndarray:
        try:
            with np.errstate(invalid="ignore"):  # damaged values are checked below
                values = np.asarray(self._dataset(name, 1)[:], np.float64)
        except (OSError, RuntimeError) as error:
            raise UpsError(
                f"{self.path}: '{name}' can't be read ({str(error).splitlines()[0]})"
            ) from None
        steps = np.diff(values)
        if (
            len(values) < 2
            or not np.isfinite(values).all()
            or (steps <= 0).any()
            or np.ptp(steps) > 1e-3 * steps.mean()
        ):
            raise UpsError(
                f"{self.path}: '{name}' must be finite, increasing and evenly spaced, "
                "with at least 2 entries"
            )
        return values


def digest(parts: Sequence[np.ndarray]) -> str:
    """A short hash of an array, the first 12 hex digits of the SHA-256 of its shape and bytes.

    An axis of one channel does not count, because files of one channel have none.

    Args:
        parts: the array in parts along its first axis.
    """
    shape = parts[0].shape[1:]
    shape = shape[:-1] if shape[-1] == 1 else shape
    content = hashlib.sha256(repr((sum(map(len, parts)), *shape)).encode())
    for part in parts:
        content.update(np.ascontiguousarray(part).data)
    return content.hexdigest()[:12]
