"""What readers of fields on a grid share: arrays of one or several files, read axis by axis."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ups.core.errors import UpsError
from ups.core.fields import Grid
from ups.datamodules.readers.axes import SPACE

# arrays of an open file by name, each with a shape and a dtype, read in slices
Arrays = Mapping[str, Any]
INTERLEAVED_ROWS = 64


class OpenFiles:
    """Files by their path, each opened once a process.

    An instance can be passed to worker processes: handles don't survive a fork, and aren't pickled.

    Args:
        open_file: opens a file for reading.
    """

    def __init__(self, open_file: Callable[[Path], Arrays]) -> None:
        self.open_file = open_file
        self._files: dict[Path, Arrays] = {}
        self._process = -1

    def __getitem__(self, path: Path) -> Arrays:
        if self._process != os.getpid():
            self._files = {}
            self._process = os.getpid()
        if path not in self._files:
            self._files[path] = self.open_file(path)
        return self._files[path]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": {}}


@dataclass(frozen=True)
class FieldArray:
    """An array that holds some of the channels.

    Args:
        name: its name in a file, or in a group of it.
        axes: a letter for each axis: n (trajectories), t (frames), x, y, z, or c for each axis of
            components. Along an axis of frames or space that it lacks it is constant.
        channels: the names of its components.
    """

    name: str
    axes: str
    channels: tuple[str, ...]

    @property
    def rows_at_once(self) -> int:
        """How many trajectories to read at once: several if they are not apart in the file."""
        return 1 if self.axes.find("n") <= 0 else INTERLEAVED_ROWS

    def read(
        self,
        arrays: Arrays,
        group: str,
        rows: Sequence[int],
        frames: slice,
        shape: Sequence[int],
    ) -> np.ndarray:
        """Read trajectories (B, T, *shape, C), whose constant axes have one entry.

        Args:
            arrays: the arrays of a file.
            group: the beginning of their names.
            rows: indices of the trajectories (B,).
            frames: the frames.
            shape: number of points of each axis (D,), counted from the first one.
        """
        picks = {"n": slice(min(rows), max(rows) + 1), "t": frames}
        # all points of a line: strided reads of the last axis are slow
        index = tuple(picks.get(axis, slice(None)) for axis in self.axes)
        values = np.asarray(arrays[group + self.name][index])
        wanted = "nt" + SPACE[: len(shape)]
        components = [place for place, axis in enumerate(self.axes) if axis == "c"]
        present = [self.axes.index(axis) for axis in wanted if axis in self.axes]
        values = values.transpose(*present, *components)
        absent = [place for place, axis in enumerate(wanted) if axis not in self.axes]
        values = np.expand_dims(values, absent)
        values = values[(slice(None), slice(None), *(slice(points) for points in shape))]
        if "n" in self.axes:
            values = values[np.asarray(rows) - min(rows)]
        return values.reshape(*values.shape[: len(wanted)], len(self.channels))


@dataclass(frozen=True)
class Part:
    """A file, or a group in a file, with some of the trajectories.

    Args:
        path: the file.
        group: the beginning of the names of its arrays, "train/" for example.
        trajectories: number of trajectories.
    """

    path: Path
    group: str
    trajectories: int


@dataclass(frozen=True)
class Contents:
    """What the files of a data set hold, before frames and points are thinned.

    Args:
        parts: where the trajectories are.
        arrays: the arrays with the fields, the same in each part.
        frames: number of frames.
        dt: the time between them.
        grid: the grid of the points.
        parameters: the parameters by name, (N,) each.
        splits: the trajectories of "train", "validation" and "test", if the files say them.
    """

    parts: Sequence[Part]
    arrays: Sequence[FieldArray]
    frames: int
    dt: float
    grid: Grid
    parameters: Mapping[str, np.ndarray] = field(default_factory=dict)
    splits: Mapping[str, Sequence[int]] | None = None


class FieldFiles:
    """Reads trajectories of fields on a grid from files, which are never written.

    Args:
        path: the file, or the folder of the files.
        files: opens them.
        contents: what they hold.
        temporal_downsampling: keep every so many-th frame.
        spatial_downsampling: keep every so many-th point of each axis.

    Raises:
        UpsError: too few frames or points are left, or two channels have one name.
    """

    def __init__(
        self,
        path: Path,
        files: OpenFiles,
        contents: Contents,
        temporal_downsampling: int = 1,
        spatial_downsampling: int = 1,
    ) -> None:
        self.path = path
        self.files = files
        self.contents = contents
        self.temporal_downsampling = temporal_downsampling
        self.spatial_downsampling = spatial_downsampling
        self._check_thinning()
        grid = contents.grid
        shape = tuple(points // spatial_downsampling for points in grid.shape)
        self.grid = Grid(shape, grid.extent, grid.boundary, grid.origin)
        self.frames = (contents.frames - 1) // temporal_downsampling + 1
        self.dt = temporal_downsampling * contents.dt
        self._ends = np.cumsum([part.trajectories for part in contents.parts])
        self.trajectories = int(self._ends[-1])
        self._rows_at_once = max(array.rows_at_once for array in contents.arrays)
        self.channels = tuple(name for array in contents.arrays for name in array.channels)
        self.parameters = contents.parameters
        self.splits = contents.splits
        check_different(path, "channels", self.channels)

    def read(
        self, trajectories: Sequence[int], start: int = 0, frames: int | None = None
    ) -> np.ndarray:
        """Read ``frames`` frames from ``start`` on: (B, frames, *space, C), float32.

        Raises:
            UpsError: a trajectory can't be read or is not finite.
        """
        stop = self.frames if frames is None else start + frames
        every = self.temporal_downsampling
        chosen = slice(start * every, (stop - 1) * every + 1, every)
        space = self.grid.shape
        out = np.empty((len(trajectories), stop - start, *space, len(self.channels)), np.float32)
        parts = np.searchsorted(self._ends, trajectories, side="right")
        rows = np.asarray(trajectories, np.int64) - np.append(0, self._ends)[parts]
        for run in self._runs(parts):
            part = self.contents.parts[parts[run.start]]
            self._read_rows(out[run], part, rows[run].tolist(), chosen)
        return out

    def _runs(self, parts: np.ndarray) -> Iterator[slice]:
        """Yield runs of trajectories of one part, no longer than are read at once.

        Args:
            parts: the part of each trajectory (B,).
        """
        first = 0
        for last in range(1, len(parts) + 1):
            is_full = last - first == self._rows_at_once
            if is_full or last == len(parts) or parts[last] != parts[first]:
                yield slice(first, last)
                first = last

    def _read_rows(self, out: np.ndarray, part: Part, rows: Sequence[int], frames: slice) -> None:
        """Fill ``out`` (B, T, *space, C) with trajectories of a part."""
        arrays = self.files[part.path]
        thin = [slice(None, None, self.spatial_downsampling)] * self.grid.num_dims
        shape = self.contents.grid.shape
        first = 0
        for array in self.contents.arrays:
            name = part.group + array.name
            read = partial(array.read, arrays, part.group, rows, frames, shape)
            values = read_array(part.path, name, read)
            last = first + len(array.channels)
            with np.errstate(over="ignore", invalid="ignore"):  # refused below
                out[..., first:last] = values[(slice(None), slice(None), *thin)]
            is_finite = np.isfinite(out[..., first:last]).reshape(len(rows), -1).all(1)
            if not is_finite.all():
                raise UpsError(
                    f"{part.path}: '{name}' must be finite in float32; trajectory "
                    f"{rows[int(is_finite.argmin())]} is not."
                )
            first = last

    def _check_thinning(self) -> None:
        every, each = self.temporal_downsampling, self.spatial_downsampling
        for points in self.contents.grid.shape:
            if points % each or points // each < 2:
                raise UpsError(
                    f"`data.spatial_downsampling` must divide the {points} points of {self.path} "
                    f"and leave 2, got {each}."
                )
        if (self.contents.frames - 1) // every < 1:
            raise UpsError(
                f"`data.temporal_downsampling` must leave 2 of the {self.contents.frames} frames "
                f"of {self.path}, got {every}."
            )


def read_array(path: Path, name: str, read: Callable[[], np.ndarray]) -> np.ndarray:
    """Call ``read``, which reads a part of the array ``name`` of a file.

    Raises:
        UpsError: the array is damaged.
    """
    try:
        return read()
    except Exception as error:  # of the file, a chunk or a codec: each library has its own
        text = " ".join(str(error).split())[:200]
        raise UpsError(f"{path}: '{name}' can't be read, it is damaged ({text})") from None


def check_different(path: Path, what: str, names: Sequence[str]) -> None:
    """Check that no two of the names are the same, of the channels for example."""
    if len(set(names)) < len(names):
        raise UpsError(f"the {what} of {path} must have different names, got {', '.join(names)}.")


@cache
def warn_once(text: str) -> None:
    """Log a warning, once: a data module is made several times in a run."""
    logging.getLogger(__name__).warning("%s", text)
