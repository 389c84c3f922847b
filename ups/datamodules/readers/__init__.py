"""Readers of data files: the protocols, on a grid and on points, and how a reader is chosen."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from ups.core.errors import UpsError
from ups.core.fields import Grid
from ups.core.schema import arguments
from ups.datamodules.readers.arrays import ArrayFile
from ups.datamodules.readers.meshes import MeshFiles
from ups.datamodules.readers.pdearena import PDEArenaFiles
from ups.datamodules.readers.pdebench import TrajectoryFile
from ups.datamodules.readers.pdebench_2d import PDEBenchFiles
from ups.datamodules.readers.point_clouds import PointCloudFile
from ups.datamodules.readers.the_well import WellFiles
from ups.datamodules.readers.transient_flow import TransientFlowFolders


class Trajectories(Protocol):
    """What all readers say, opened as ``Reader(path, temporal_downsampling, ...)``.

    An instance is passed to worker processes, so a handle must not be part of its pickled state.

    Args:
        path: the file or the folder.
        temporal_downsampling: keep every so many-th frame.
        spatial_downsampling: keep every so many-th point, on a grid along each axis.

    Further arguments, each with a default, are settings of the data module: what the file may not
    say itself.

    Attributes:
        path: the file or the folder.
        trajectories: number of trajectories.
        frames: number of frames that are kept.
        dt: the time between them.
        channels: the names of the channels.
        parameters: the parameters by name, positive numbers (N,) each.
        splits: the trajectories of "train", "validation" and "test"; None if the file doesn't say
            them.
    """

    path: Path
    trajectories: int
    frames: int
    dt: float
    channels: tuple[str, ...]
    parameters: Mapping[str, np.ndarray]
    splits: Mapping[str, Sequence[int]] | None

    def __init__(
        self, path: Path, temporal_downsampling: int = 1, spatial_downsampling: int = 1
    ) -> None: ...


class Reader(Trajectories, Protocol):
    """Trajectories on a grid, for ``OwnDataModule``; other data modules ask for no channels,
    parameters and splits.

    Attributes:
        grid: the grid of the points that are kept.
    """

    grid: Grid

    def read(
        self, trajectories: Sequence[int], start: int = 0, frames: int | None = None
    ) -> np.ndarray:
        """Read ``frames`` frames from ``start`` on: (B, frames, *space, C), float32."""


class PointReader(Trajectories, Protocol):
    """Trajectories that each have their own points, the same in all frames, for
    ``PointCloudDataModule``.

    Attributes:
        features: the names of what is known of each point besides its position.
    """

    features: tuple[str, ...]

    def points(self, trajectory: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the positions (P, D) of a trajectory's points and their features (P, F), float32."""

    def read(
        self, trajectories: Sequence[int], start: int = 0, frames: int | None = None
    ) -> list[np.ndarray]:
        """Read ``frames`` frames from ``start`` on: B arrays (frames, P, C), float32."""


READERS: dict[str, type[Reader]] = {
    "arrays": ArrayFile,
    "pdebench": TrajectoryFile,
    "pdebench_2d": PDEBenchFiles,
    "pdearena": PDEArenaFiles,
    "the_well": WellFiles,
}
POINT_READERS: dict[str, type[PointReader]] = {
    "point_clouds": PointCloudFile,
    "transient_flow": TransientFlowFolders,
    "meshes": MeshFiles,
}
Known = TypeVar("Known", Reader, PointReader)


def get_reader(name: str, readers: Mapping[str, type[Known]]) -> type[Known]:
    """The class that ``data.reader`` names.

    Raises:
        UpsError: there is none.
    """
    if name in readers:
        return readers[name]
    module, _, attribute = name.rpartition(".")
    allowed = f"one of {', '.join(readers)}, or package.module.Class"
    try:
        reader: type[Known] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UpsError(f"`data.reader` must be {allowed}, got {name!r} ({error}).") from None
    return reader


def open_reader(
    name: str,
    readers: Mapping[str, type[Known]],
    path: Path,
    thinning: tuple[int, int],
    settings: Mapping[str, Any],
) -> Known:
    """Open ``path`` with the reader of that name.

    Args:
        name: ``data.reader``.
        readers: the readers that have names, ``READERS`` or ``POINT_READERS``.
        path: the file or the folder.
        thinning: keep every so many-th frame, and point.
        settings: what is said about the file, by the names of the reader's arguments.

    Raises:
        UpsError: the reader has no such argument or lacks an attribute, or the file has a fault.
    """
    reader = get_reader(name, readers)
    known = arguments(reader)
    for key in settings:
        if key not in known.named and not known.is_open:
            raise UpsError(f"`data.{key}` must be null: data.reader={name} has no use for it.")
    opened = reader(path, *thinning, **settings)
    own = "features" if readers is POINT_READERS else "grid"
    missing = [k for k in ("channels", "parameters", "splits", own) if not hasattr(opened, k)]
    if missing:
        raise UpsError(
            f"`data.reader` must name a class with the attributes {', '.join(missing)}, got {name}."
        )
    return opened
