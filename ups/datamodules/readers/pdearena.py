"""PDEArena's HDF5 files: a group `train`, `valid` or `test` with the trajectories of a split.

- Navier-Stokes: `u`, `vx`, `vy` (N, T, X, Y), `t` (N, T), `x` (N, X), `y` (N, Y).
- Kuramoto-Sivashinsky: `pde_140-256` (N, 140, 256), `dt`, `dx` (N,).

Other numbers (N,), such as the buoyancy `buo_y`, are parameters.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ups.core.errors import UpsError
from ups.core.fields import Boundary, Grid
from ups.datamodules.readers.axes import SPACE
from ups.datamodules.readers.coordinates import spacing, without_rounding
from ups.datamodules.readers.field_files import FieldArray, FieldFiles, OpenFiles, Part
from ups.datamodules.readers.hdf5 import Datasets, hdf5_files, open_hdf5
from ups.datamodules.readers.pieces import SPLITS, Piece, join

FLOW = ("u", "vx", "vy")
LINE = "pde_"  # the beginning of the name of an array on a line
STEPS = ("dt", "dx", "dy")
WALL = (Boundary.WALL, Boundary.WALL)


class PDEArenaFiles(FieldFiles):
    """Reads PDEArena's files.

    Args:
        path: a file, or a folder with files of one kind.
        temporal_downsampling: keep every so many-th frame.
        spatial_downsampling: keep every so many-th point of each axis.
        field: names of arrays, such as vx; None for all.

    Raises:
        UpsError: a file has a fault, or the files don't agree.
    """

    def __init__(
        self,
        path: Path,
        temporal_downsampling: int = 1,
        spatial_downsampling: int = 1,
        field: str | Sequence[str] | None = None,
    ) -> None:
        files = OpenFiles(open_hdf5)
        paths = hdf5_files(Path(path))
        groups = {
            split: [_Split(file, files[file], f"{split}/").describe() for file in holding]
            for split in SPLITS
            if (holding := [file for file in paths if split in files[file]])
        }
        if not groups:
            raise UpsError(
                f"{path} must hold a group {', '.join(SPLITS)}, as PDEArena's files do; got "
                f"{', '.join(files[paths[0]]) or 'nothing'}."
            )
        contents = join(Path(path), groups, field)
        super().__init__(Path(path), files, contents, temporal_downsampling, spatial_downsampling)


class _Split(Datasets):
    """The group of a split in an open file."""

    def describe(self) -> Piece:
        """Read all but the fields.

        Raises:
            UpsError: it has none of the layouts.
        """
        stored = self.members()
        lines = [name for name in stored if name.startswith(LINE)]
        is_flow = any(name in stored for name in FLOW)
        names = FLOW if is_flow else lines[:1]
        if not names:
            raise UpsError(
                f"{self.path}: '{self.group}' must hold {', '.join(FLOW)} or {LINE}..., as "
                f"PDEArena's files do; got {', '.join(stored) or 'nothing'}."
            )
        shape = self.array(names[0], 4 if is_flow else 3).shape
        for name in names:
            self.check_shape(name, shape)
        letters = "nt" + SPACE[: len(shape) - 2]
        return Piece(
            f"{self.path}: {self.group}",
            [Part(self.path, self.group, shape[0])],
            [FieldArray(name, letters, (name if is_flow else "u",)) for name in names],
            shape[1],
            self._time_step(shape) if is_flow else self._step("dt", shape[0]),
            self._box(shape) if is_flow else self._line(shape),
            self._parameters(shape[0]),
        )

    def _line(self, shape: tuple[int, ...]) -> Grid:
        trajectories, _, points = shape
        return Grid((points,), (without_rounding(points * self._step("dx", trajectories)),))

    def _time_step(self, shape: tuple[int, ...]) -> float:
        return spacing(self.even("t", shape[1], FLOW[0], shape[0]))

    def _box(self, shape: tuple[int, ...]) -> Grid:
        """A closed box; the file's positions are linspace(0, L, N), but fields lie in its cells."""
        trajectories, _, *space = shape
        axes = [
            self.even(axis, points, FLOW[0], trajectories)
            for axis, points in zip(SPACE, space, strict=False)
        ]
        extent = tuple(without_rounding(float(x[-1] - x[0])) for x in axes)
        return Grid(tuple(space), extent, (WALL,) * len(space))

    def _parameters(self, number: int) -> dict[str, np.ndarray]:
        nodes = {name: self.node(name) for name in self.members() if name not in STEPS}
        return {
            name: self.values(name, 1)
            for name, node in nodes.items()
            if getattr(node, "shape", None) == (number,) and node.dtype.kind in "fiu"
        }

    def _step(self, name: str, trajectories: int) -> float:
        """A step that is the same for all trajectories."""
        self.check_shape(name, (trajectories,))
        values = self.values(name, 1)
        if not (np.ptp(values) <= 1e-3 * values.mean()) or not values.min() > 0:
            raise UpsError(
                f"{self.path}: '{self.group}{name}' must be one number > 0 for all trajectories, "
                f"got {values.min():g} to {values.max():g}."
            )
        return float(values[0])
