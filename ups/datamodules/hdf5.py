"""PDEBench's 1D HDF5 layout: `tensor` (N, T, X) float32, `x-coordinate` (X,), `t-coordinate` (T,) or, as published, (T + 1,)."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from ups.errors import UpsError


class TrajectoryFile:
    """Reads trajectories from one file, every ``time_stride``-th frame and ``space_stride``-th point of them.

    Opening checks names, ranks, lengths, types and coordinates; ``read`` checks that values are finite. Each fault is an
    UpsError that names the file, the dataset and what was expected. The file is opened once a process, so that it may be
    handed to worker processes. It is never written.
    """

    def __init__(self, path: Path, time_stride: int = 1, space_stride: int = 1) -> None:
        self.path, self.time_stride, self.space_stride = Path(path), time_stride, space_stride
        self._file: h5py.File | None = None
        self._process = -1
        if not self.path.is_file():
            raise UpsError(f"there is no data file {self.path}")
        x, t = self._coordinate("x-coordinate"), self._coordinate("t-coordinate")
        tensor = self._dataset("tensor", 3)
        trajectories, frames, points = tensor.shape
        if len(x) != points:
            raise UpsError(f"{self.path}: 'x-coordinate' has {len(x)} entries, 'tensor' {points} points; they must agree")
        if len(t) not in (frames, frames + 1):
            raise UpsError(
                f"{self.path}: 't-coordinate' has {len(t)} entries, 'tensor' {frames} frames; {frames} or {frames + 1} are allowed"
            )
        if points % space_stride or points // space_stride < 2 or (frames - 1) // time_stride < 1:
            raise UpsError(
                f"{self.path}: space_stride={space_stride} must divide its {points} points, and at least 2 points and 2 of its "
                f"{frames} frames must be left at time_stride={time_stride}"
            )
        self.trajectories = trajectories
        self.x, self.t = x[::space_stride], t[:frames:time_stride]
        self.frames, self.points = len(self.t), len(self.x)
        self.length = round(float(x[-1] - x[0]) * points / (points - 1), 6)  # periodic: one cell more than the distance of the centres
        self.dt = float(self.t[1] - self.t[0])

    def read(self, trajectories: Sequence[int], start: int = 0, frames: int | None = None) -> np.ndarray:
        """Frames ``start`` to ``start + frames`` (in strides; all by default) of some trajectories: (B, frames, X) float32."""
        tensor = self._dataset("tensor", 3)
        stop = self.frames if frames is None else start + frames
        out = np.empty((len(trajectories), stop - start, self.points), np.float32)
        for row, i in enumerate(trajectories):
            # whole lines are read and thinned in memory: strided reads along the last axis are many times slower
            try:
                lines = tensor[i, start * self.time_stride : (stop - 1) * self.time_stride + 1 : self.time_stride]
            except (OSError, RuntimeError) as error:  # a damaged chunk
                raise UpsError(f"{self.path}: trajectory {i} of 'tensor' can't be read ({str(error).splitlines()[0]})") from None
            out[row] = lines[:, :: self.space_stride]
            if not np.isfinite(out[row]).all():
                raise UpsError(f"{self.path}: 'tensor' has a value that is not finite in trajectory {i}; all must be finite")
        return out

    def refuse_changed(self, parts: Sequence[np.ndarray]) -> None:
        """Compare all that the file holds, read in ``parts``, with the hash that it was written with, where it has one."""
        known = self._open().attrs.get("hash")
        if known is not None and digest(parts) != known:
            raise UpsError(f"{self.path}: the values of 'tensor' are not those that were written; remove the file and it is made again")

    def _dataset(self, name: str, rank: int) -> h5py.Dataset:
        try:
            dataset = self._open().get(name)
        except (OSError, RuntimeError, KeyError):  # a link that leads nowhere
            dataset = None
        if not isinstance(dataset, h5py.Dataset):
            raise UpsError(f"{self.path}: there is no dataset '{name}'; PDEBench's layout has 'tensor', 'x-coordinate' and 't-coordinate'")
        if dataset.ndim != rank or dataset.dtype.kind != "f" or 0 in dataset.shape:
            raise UpsError(
                f"{self.path}: '{name}' is {dataset.dtype} {dataset.shape}; a non-empty float array of {rank} dimensions is expected"
            )
        return dataset

    def _coordinate(self, name: str) -> np.ndarray:
        try:
            with np.errstate(invalid="ignore"):  # what is damaged is looked at below
                values = np.asarray(self._dataset(name, 1)[:], np.float64)
        except (OSError, RuntimeError) as error:
            raise UpsError(f"{self.path}: '{name}' can't be read ({str(error).splitlines()[0]})") from None
        steps = np.diff(values)
        if len(values) < 2 or not np.isfinite(values).all() or (steps <= 0).any() or np.ptp(steps) > 1e-3 * steps.mean():
            raise UpsError(f"{self.path}: '{name}' must be finite, increasing and evenly spaced, with at least 2 entries")
        return values

    def _open(self) -> h5py.File:
        if self._file is None or self._process != os.getpid():  # HDF5 handles don't survive a fork
            try:
                self._file = h5py.File(self.path, "r")
            except OSError as error:
                raise UpsError(f"{self.path} can't be read as HDF5, it is truncated or of another kind ({error})") from None
            self._process = os.getpid()
        return self._file

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}


def digest(parts: Sequence[np.ndarray]) -> str:
    """A short content hash of an array in ``parts`` along its first axis: the first 12 hex digits of the SHA-256 of its shape and bytes."""
    content = hashlib.sha256(repr((sum(map(len, parts)), *parts[0].shape[1:])).encode())
    for part in parts:
        content.update(np.ascontiguousarray(part).data)
    return content.hexdigest()[:12]
