"""Readers of data files: the protocol, and how one is chosen."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from ups.core.errors import UpsError
from ups.core.fields import Grid
from ups.datamodules.readers.pdebench import TrajectoryFile


class Reader(Protocol):
    """A file of trajectories, opened as ``Reader(path, temporal_downsampling, ...)``.

    An instance is passed to worker processes, so a handle must not be part of its pickled state.

    Args:
        path: the file.
        temporal_downsampling: keep every so many-th frame.
        spatial_downsampling: keep every so many-th point of each axis.

    Attributes:
        path: the file.
        trajectories: number of trajectories.
        frames: number of frames that are kept.
        dt: the time between them.
        grid: the grid of the points that are kept.
    """

    path: Path
    trajectories: int
    frames: int
    dt: float
    grid: Grid

    def __init__(
        self, path: Path, temporal_downsampling: int = 1, spatial_downsampling: int = 1
    ) -> None: ...

    def read(
        self, trajectories: Sequence[int], start: int = 0, frames: int | None = None
    ) -> np.ndarray:
        """Read ``frames`` frames from ``start`` on: (B, frames, *space, C), float32."""


READERS: dict[str, type[Reader]] = {"pdebench": TrajectoryFile}


def get_reader(name: str) -> type[Reader]:
    """The class that ``data.reader`` names.

    Raises:
        UpsError: there is none.
    """
    if name in READERS:
        return READERS[name]
    module, _, attribute = name.rpartition(".")
    allowed = f"one of {', '.join(READERS)}, or package.module.Class"
    try:
        reader: type[Reader] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UpsError(f"`data.reader` must be {allowed}, got {name!r} ({error}).") from None
    return reader
