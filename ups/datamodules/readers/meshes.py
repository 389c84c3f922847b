"""Series of meshes, through meshio: VTK, XDMF and its other formats.

A trajectory is a folder with one file for each frame, such as flow_0.vtu, flow_1.vtu ..., in the
order of the numbers in their names; or a series of XDMF, one file with all frames and their times.
Fields are the data at the mesh's points. Cells are not read. An axis along which no point differs
from another is left out, and with it that component of each vector.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ups.core.errors import UpsError
from ups.core.io import unreadable
from ups.core.optional_packages import import_optional
from ups.datamodules.readers.coordinates import UNEVEN, check_even, spacing
from ups.datamodules.readers.field_files import check_different
from ups.datamodules.readers.transient_flow import (
    by_numbers,
    check_equal_lengths,
    check_numbering,
    subfolders,
)

AXES = "xyz"
ROUNDING = 1e-6  # of positions, in units of the extent of the points
XDMF = (".xdmf", ".xmf")


class Frame(NamedTuple):
    """What a mesh holds at a time.

    Args:
        points: the positions (P, 3) or (P, 2).
        data: the fields at the points by name, (P,) or (P, 3) each.
    """

    points: np.ndarray
    data: Mapping[str, np.ndarray]


class Series(Protocol):
    """The frames of a trajectory, read one at a time."""

    def __len__(self) -> int: ...

    def times(self) -> np.ndarray | None:
        """The times (T,); None if the files don't say them."""

    def frames(self, numbers: Sequence[int]) -> Iterator[Frame]: ...


class MeshFiles:
    """Reads series of meshes.

    Args:
        path: a folder with a folder, or an XDMF file, for each trajectory.
        temporal_downsampling: keep every so many-th frame.
        spatial_downsampling: keep every so many-th point.
        dt: the time between frames; None if the files say their times.
        field: the names of the fields; None for all at the points of the first mesh.

    Raises:
        UpsError: there is no series, the series don't agree, or the time between frames is not
            known.
    """

    features: tuple[str, ...] = ()
    splits: Mapping[str, Sequence[int]] | None = None
    parameters: Mapping[str, np.ndarray] = {}  # no file says any

    def __init__(
        self,
        path: Path,
        temporal_downsampling: int = 1,
        spatial_downsampling: int = 1,
        dt: float | None = None,
        field: str | Sequence[str] | None = None,
    ) -> None:
        self.path = Path(path)
        self._every_frame = temporal_downsampling
        self._every_point = spatial_downsampling
        self._series = find_series(self.path)
        where, first = self._series[0]
        self.trajectories = len(self._series)
        self.frames = len(range(0, len(first), temporal_downsampling))
        (frame,) = first.frames([0])
        self._axes = self._varying_axes()
        self._names = self._chosen(where, frame, field)
        self.channels = tuple(
            name
            for field_name in self._names
            for name in component_names(field_name, frame.data[field_name], self._axes)
        )
        check_different(where, "channels", self.channels)
        self.dt = temporal_downsampling * (time_step(self._series) if dt is None else dt)

    def _varying_axes(self) -> list[int]:
        """The axes along which the points of a trajectory differ by more than rounding."""
        firsts = [frame for _, series in self._series for frame in series.frames([0])]
        extents = np.stack([np.ptp(frame.points, axis=0) for frame in firsts]).max(0)
        return np.flatnonzero(extents > ROUNDING * extents.max()).tolist()

    def points(self, trajectory: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the positions (P, D) of a trajectory's points, and no features (P, 0)."""
        _, series = self._series[trajectory]
        (frame,) = series.frames([0])
        positions = frame.points[:: self._every_point, self._axes].astype(np.float32)
        return positions, np.empty((len(positions), 0), np.float32)

    def read(
        self, trajectories: Sequence[int], start: int = 0, frames: int | None = None
    ) -> list[np.ndarray]:
        """Read ``frames`` frames from ``start`` on of B trajectories.

        Returns:
            B arrays (frames, P, C), float32; the number of points P differs between them.

        Raises:
            UpsError: points move, or a mesh lacks a field.
        """
        last = self.frames if frames is None else start + frames
        numbers = [self._every_frame * k for k in range(start, last)]
        return [self._read(*self._series[i], numbers) for i in trajectories]

    def _read(self, where: Path, series: Series, numbers: Sequence[int]) -> np.ndarray:
        first: np.ndarray | None = None
        fields = []
        for frame in series.frames(numbers):
            first = frame.points if first is None else first
            fields.append(self._fields(where, frame, first))
        return np.stack(fields)

    def _fields(self, where: Path, frame: Frame, points: np.ndarray) -> np.ndarray:
        """The channels (P, C) of a frame."""
        smallest = ROUNDING * np.ptp(points, axis=0).max()
        if frame.points.shape != points.shape or np.abs(frame.points - points).max() > smallest:
            raise UpsError(f"{where}: the points must be the same in all frames.")
        missing = [name for name in self._names if name not in frame.data]
        if missing:
            raise UpsError(f"{where}: a mesh has no data {', '.join(missing)} at its points.")
        columns = [components(frame.data[name], self._axes) for name in self._names]
        fields = np.concatenate(columns, 1)[:: self._every_point].astype(np.float32)
        if fields.shape[1] != len(self.channels):
            raise UpsError(f"{where}: the fields must have {len(self.channels)} components.")
        return fields

    def _chosen(
        self, where: Path, frame: Frame, field: str | Sequence[str] | None
    ) -> Sequence[str]:
        """The names of the fields that are read."""
        names = [field] if isinstance(field, str) else list(frame.data if field is None else field)
        unknown = [name for name in names if name not in frame.data]
        if unknown or not names:
            raise UpsError(
                f"`data.field` must be of the data at the points of {where}, which are "
                f"{', '.join(frame.data) or 'none'}; got {', '.join(unknown) or 'null'}."
            )
        return names


def components(values: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """A field at points (P, components): of vectors in space those along ``axes``."""
    if values.ndim == 1:
        return values[:, None]
    return values[:, axes] if values.shape[1] == len(AXES) else values


def component_names(name: str, values: np.ndarray, axes: Sequence[int]) -> list[str]:
    number = components(values[:1], axes).shape[1]
    if values.ndim == 1:
        return [name]
    letters = [AXES[axis] for axis in axes] if number == len(axes) else range(number)
    return [f"{name}_{letter}" for letter in letters]


def time_step(trajectories: Sequence[tuple[Path, Series]]) -> float:
    """The time between the frames of series that say their times.

    Raises:
        UpsError: one doesn't, its frames are not evenly spaced, or it has another step.
    """
    steps = []
    for where, series in trajectories:
        times = series.times()
        if times is None:
            raise UpsError(f"`data.dt` must be given: {where} doesn't say the time between frames.")
        steps.append(spacing(check_even(where, "time", times, len(series), "the series")))
        if not math.isclose(steps[-1], steps[0], rel_tol=UNEVEN):
            raise UpsError(
                f"the time between frames must be the same in all trajectories: in {where} it is "
                f"{steps[-1]:g}, in {trajectories[0][0]} {steps[0]:g}."
            )
    return steps[0]


def find_series(path: Path) -> list[tuple[Path, Series]]:
    """The trajectories in a folder, with the file or folder of each.

    Raises:
        UpsError: there is none, they have different numbers of frames, or a frame is missing.
    """
    folders = subfolders(path)
    files = sorted((f for f in path.iterdir() if f.suffix.lower() in XDMF), key=by_numbers)
    series: list[tuple[Path, Series]] = [(file, XdmfSeries(file)) for file in files]
    if series:
        check_equal_lengths(series)
        return series
    known = set(_meshio().extension_to_filetypes)
    found = [
        (folder, sorted(meshes, key=by_numbers))
        for folder in folders
        if (meshes := [f for f in folder.iterdir() if f.suffix.lower() in known])
    ]
    if not found:
        raise UpsError(
            f"{path} must hold an XDMF file for each trajectory, or a folder with a mesh for each "
            "frame."
        )
    check_equal_lengths(found)
    check_numbering(found)
    return [(folder, FileSeries(meshes)) for folder, meshes in found]


class FileSeries:
    """A mesh file for each frame."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def times(self) -> None:
        return None

    def frames(self, numbers: Sequence[int]) -> Iterator[Frame]:
        for number in numbers:
            with _reading(self.files[number]):
                mesh = _meshio().read(self.files[number])
            yield Frame(mesh.points, mesh.point_data)


class XdmfSeries:
    """An XDMF file with all frames."""

    def __init__(self, file: Path) -> None:
        self.file = file
        with self._open() as reader:
            self.number = int(reader.num_steps)

    def __len__(self) -> int:
        return self.number

    def times(self) -> np.ndarray | None:
        with self._open() as reader:
            found = [step.find("Time") for step in reader.collection]
            if any(time is None for time in found):
                return None
            return np.array([float(time.get("Value")) for time in found])

    def frames(self, numbers: Sequence[int]) -> Iterator[Frame]:
        with self._open() as reader:
            points, _ = reader.read_points_cells()
            for number in numbers:
                _, data, _ = reader.read_data(number)
                yield Frame(points, data)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        with _reading(self.file), _meshio().xdmf.TimeSeriesReader(self.file) as reader:
            yield reader


def _meshio() -> Any:
    return import_optional("meshio", "data.reader=meshes", "mesh")


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Says in a sentence why a mesh can't be read."""
    try:
        yield
    except UpsError:
        raise
    except (Exception, SystemExit) as error:  # meshio leaves Python for a file that it can't read
        raise unreadable(file, Exception(str(error)), "a mesh that meshio reads") from None
