"""PDEBench's 1D HDF5 layout.

`tensor` (N, T, X) float32, `x-coordinate` (X,), and `t-coordinate` (T,) or, as published, (T + 1,).
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ups.core.errors import UpsError
from ups.core.fields import Grid
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
        x, t = self._coordinate("x-coordinate"), self._coordinate("t-coordinate")
        tensor = self._dataset("tensor", 3)
        trajectories, frames, points = tensor.shape
        if len(x) != points:
            raise UpsError(
                f"{self.path}: 'x-coordinate' must have {points} entries, as 'tensor' has points; "
                f"got {len(x)}."
            )
        if len(t) not in (frames, frames + 1):
            raise UpsError(
                f"{self.path}: 't-coordinate' must have {frames} or {frames + 1} entries, as "
                f"'tensor' has {frames} frames; got {len(t)}."
            )
        if (
            points % spatial_downsampling
            or points // spatial_downsampling < 2
            or (frames - 1) // temporal_downsampling < 1
        ):
            raise UpsError(
                f"{self.path}: spatial_downsampling={spatial_downsampling} must divide its "
                f"{points} points, and at least 2 points and 2 of its {frames} frames must be left "
                f"at temporal_downsampling={temporal_downsampling}"
            )
        if points > 2 and self._has_both_ends(tensor, x):
            raise UpsError(
                f"{self.path}: the last point must not repeat the first, as in linspace(0, 1, N). "
                "Leave it out, or read the file with data=own."
            )
        self.trajectories = trajectories
        self.channels: tuple[str, ...] = ("u",)
        self.parameters: Mapping[str, np.ndarray] = {}
        self.splits: Mapping[str, Sequence[int]] | None = None
        self.x = x[::spatial_downsampling]
        self.t = t[:frames:temporal_downsampling]
        self.frames = len(self.t)
        # periodic: one cell more than the distance of the first and the last center
        length = without_rounding(float(x[-1] - x[0]) * points / (points - 1))
        self.grid = Grid((len(self.x),), (length,), origin=(float(self.x[0]),))
        self.dt = float(self.t[1] - self.t[0])

    def read(
        self, trajectories: Sequence[int], start: int = 0, frames: int | None = None
    ) -> np.ndarray:
        """Read frames of some trajectories.

        Args:
            trajectories: their indices (B,).
            start: the first frame, counted in those that are kept.
            frames: number of frames that are kept; default: all.

        Returns:
            Fields (B, frames, X, 1), float32.

        Raises:
            UpsError: a trajectory can't be read or is not finite.
        """
        tensor = self._dataset("tensor", 3)
        stop = self.frames if frames is None else start + frames
        out = np.empty((len(trajectories), stop - start, len(self.x), 1), np.float32)
        first = start * self.temporal_downsampling
        last = (stop - 1) * self.temporal_downsampling
        for row, i in enumerate(trajectories):
            # read whole lines and subsample in memory: strided reads of the last axis are slow
            try:
                lines = tensor[i, first : last + 1 : self.temporal_downsampling]
            except (OSError, RuntimeError) as error:  # a damaged chunk
                raise UpsError(
                    f"{self.path}: trajectory {i} of 'tensor' can't be read "
                    f"({str(error).splitlines()[0]})"
                ) from None
            out[row, ..., 0] = lines[:, :: self.spatial_downsampling]
            if not np.isfinite(out[row]).all():
                raise UpsError(
                    f"{self.path}: 'tensor' has a value that is not finite in trajectory {i}; "
                    "all must be finite"
                )
        return out

    def _has_both_ends(self, tensor: h5py.Dataset, x: np.ndarray) -> bool:
        """Whether fields end as they begin, on points that are no centers of cells.

        It looks at the first frames of some trajectories.
        """
        cells = x[0] / (x[1] - x[0])
        if abs(cells - round(cells)) > 0.01:
            return False
        try:
            with np.errstate(invalid="ignore"):  # values are checked when they are read
                some = np.asarray(tensor[:8, 0], np.float64)
        except (OSError, RuntimeError):  # a damaged chunk is refused when it is read
            return False
        gap = np.abs(some[:, -1] - some[:, 0]).max()
        return bool(gap <= 1e-6 * np.ptp(some) and np.ptp(some) > 0)

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

    def _dataset(self, name: str, rank: int) -> h5py.Dataset:
        try:
            dataset = self._files[self.path].get(name)
        except (OSError, RuntimeError, KeyError):  # a dangling link
            dataset = None
        if not isinstance(dataset, h5py.Dataset):
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
