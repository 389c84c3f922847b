"""PDEBench's layouts with several channels or dimensions.

- Compressible flow in 1D, 2D and 3D: `density`, `pressure`, `Vx`, `Vy`, `Vz` (N, T, *space),
  `x-coordinate`, ..., `t-coordinate`; attributes `eta`, `zeta` and `M`.
- Diffusion-reaction, shallow water and diffusion-sorption: groups `0000`, ... with `data`
  (T, *space, C), `grid/x`, ..., `grid/t`.
- Incompressible flow: `velocity` (N, T, X, Y, 2), `particles` (N, T, X, Y, 1), `force`
  (N, X, Y, 2), `t` (N, T); attribute `config`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from ups.core.errors import UpsError
from ups.core.fields import Boundary, Grid
from ups.core.settings import to_plain
from ups.datamodules.readers.axes import SPACE
from ups.datamodules.readers.coordinates import (
    cells_around,
    check_even,
    each_axis,
    spacing,
)
from ups.datamodules.readers.field_files import FieldArray, FieldFiles, OpenFiles, Part
from ups.datamodules.readers.hdf5 import Datasets, hdf5_files, open_hdf5
from ups.datamodules.readers.parameters import parameter_in_name
from ups.datamodules.readers.pieces import Piece, join

FLOW = ("density", "pressure", "Vx", "Vy", "Vz")
FLOW_PARAMETERS = ("eta", "zeta", "M")
INCOMPRESSIBLE = ("velocity", "particles", "force")
# a word of the file's name, and what PDEBench's solver has beyond the sides
SIDES = {
    "periodic": Boundary.PERIODIC,
    "trans": Boundary.OPEN,
    "rdb": Boundary.OPEN,
    "diff-react": Boundary.WALL,
    "ns_incom": Boundary.WALL,
}


class PDEBenchFiles(FieldFiles):
    """Reads PDEBench's files of several channels in one, two or three dimensions.

    Args:
        path: a file, or a folder with files of one kind.
        temporal_downsampling: keep every so many-th frame.
        spatial_downsampling: keep every so many-th point of each axis.
        field: names of arrays, such as density; None for all.
        boundary: what lies beyond both sides of each axis, or of all; None for what the file's name
            says: periodic, trans, rdb, diff-react or ns_incom.
        length: the length of each axis, or one for all, of incompressible flow; None for the domain
            of the file's configuration.

    Raises:
        UpsError: a file has a fault, or the files don't agree.
    """

    def __init__(
        self,
        path: Path,
        temporal_downsampling: int = 1,
        spatial_downsampling: int = 1,
        field: str | Sequence[str] | None = None,
        boundary: str | Sequence[str] | None = None,
        length: float | Sequence[float] | None = None,
    ) -> None:
        files = OpenFiles(open_hdf5)
        pieces = [
            _PDEBenchFile(file, files[file], boundary, length).describe()
            for file in hdf5_files(Path(path))
        ]
        contents = join(Path(path), {"all": pieces}, field)
        super().__init__(Path(path), files, contents, temporal_downsampling, spatial_downsampling)


class _PDEBenchFile(Datasets):
    """An open file.

    Args:
        path: the file, for messages.
        file: its handle.
        boundary: what is said about the sides, if anything.
        length: what is said about the lengths, if anything.
    """

    def __init__(
        self,
        path: Path,
        file: Any,
        boundary: str | Sequence[str] | None,
        length: float | Sequence[float] | None,
    ) -> None:
        super().__init__(path, file)
        self.boundary = boundary
        self.length = length

    def describe(self) -> Piece:
        """Read all but the fields.

        Raises:
            UpsError: it has none of the layouts.
        """
        if "density" in self.file:
            return self._flow()
        if "velocity" in self.file:
            return self._incompressible()
        groups = sorted(name for name, node in self.file.items() if "data" in _members(node))
        if groups:
            return self._groups(groups)
        raise UpsError(
            f"{self.path} must hold density, pressure, Vx, ... or velocity, particles, ... or "
            f"groups with data, as PDEBench's files do; got {', '.join(self.file) or 'nothing'}."
        )

    def _flow(self) -> Piece:
        names = [name for name in FLOW if name in self.file]
        shape = self.array("density", 3, 4, 5).shape
        num_dims = len(shape) - 2
        for name in names:
            self.check_shape(name, shape)
        axes = [
            self.even(f"{axis}-coordinate", size, "density")
            for axis, size in zip(SPACE, shape[2:], strict=False)
        ]
        t = self.values("t-coordinate", 1)
        t = t[: shape[1]] if t.shape == (shape[1] + 1,) else t  # as published
        t = check_even(self.path, "t-coordinate", t, shape[1], "density")
        found = {name: self._flow_parameter(name) for name in FLOW_PARAMETERS}
        letters = "nt" + SPACE[:num_dims]
        return self._piece(
            [Part(self.path, "", shape[0])],
            [FieldArray(name, letters, (name,)) for name in names],
            t,
            cells_around(axes, self._sides(num_dims)),
            {name: np.full(shape[0], value) for name, value in found.items() if value is not None},
        )

    def _groups(self, groups: Sequence[str]) -> Piece:
        first = groups[0]
        positions = [axis for axis in SPACE if axis in _members(self.file[first].get("grid"))]
        num_dims = len(positions)
        shape = self.array(f"{first}/data", num_dims + 2).shape
        for group in groups:
            self.check_shape(f"{group}/data", shape)
        axes = [
            self.even(f"{first}/grid/{axis}", size, f"{first}/data")
            for axis, size in zip(positions, shape[1:], strict=False)
        ]
        channels = tuple(f"u{c}" if c else "u" for c in range(shape[-1]))
        return self._piece(
            [Part(self.path, f"{group}/", 1) for group in groups],
            [FieldArray("data", "t" + SPACE[:num_dims] + "c", channels)],
            self.even(f"{first}/grid/t", shape[0], f"{first}/data"),
            cells_around(axes, self._sides(num_dims)),
        )

    def _incompressible(self) -> Piece:
        shape = self.array("velocity", 5, 6).shape
        num_dims = len(shape) - 3
        config = self._config()
        arrays = []
        for name in INCOMPRESSIBLE:
            if name not in self.file:
                continue
            frames = () if name == "force" else shape[1:2]
            components = 1 if name == "particles" else num_dims
            self.check_shape(name, (shape[0], *frames, *shape[2:-1], components))
            letters = ("n" if name == "force" else "nt") + SPACE[:num_dims] + "c"
            channels = [f"{name}_{axis}" for axis in SPACE[:num_dims]]
            arrays.append(FieldArray(name, letters, tuple(channels if components > 1 else [name])))
        length = config.get("domain_size") if self.length is None else self.length
        if length is None:
            raise UpsError(f"{self.path} doesn't say its data.length: give data.length=...")
        extent = each_axis(self.path, "length", length, num_dims)
        nu = config.get("NU")
        return self._piece(
            [Part(self.path, "", shape[0])],
            arrays,
            self.even("t", shape[1], "velocity"),
            Grid(shape[2:-1], tuple(extent), tuple(self._sides(num_dims))),
            {} if nu is None else {"nu": np.full(shape[0], float(nu))},
        )

    def _piece(
        self,
        parts: Sequence[Part],
        arrays: Sequence[FieldArray],
        times: np.ndarray,
        grid: Grid,
        parameters: Mapping[str, np.ndarray] | None = None,
    ) -> Piece:
        dt = spacing(times)
        return Piece(str(self.path), parts, arrays, len(times), dt, grid, parameters or {})

    def _sides(self, num_dims: int) -> list[tuple[Boundary, Boundary]]:
        """Lower and upper side of each axis: what is given, or else what the name says."""
        name = self.path.name.lower()
        found = [
            side for word, side in SIDES.items() if re.search(rf"(?<![a-z]){word}(?![a-z])", name)
        ]
        given: Any = self.boundary
        if given is None and len(found) != 1:
            raise UpsError(
                f"`data.boundary` must be given: the name of {self.path} says none of "
                f"{', '.join(SIDES)}."
            )
        sides = each_axis(self.path, "boundary", found[0] if given is None else given, num_dims)
        return [(Boundary(side), Boundary(side)) for side in sides]

    def _flow_parameter(self, name: str) -> float | None:
        """A parameter of compressible flow: the file's attribute, or else a word of its name."""
        for key, value in self.file.attrs.items():
            if key.lower() == name.lower() and np.size(value) == 1:
                return float(np.asarray(value, np.float64).item())
        return parameter_in_name(self.path.name, name)

    def _config(self) -> Mapping[str, Any]:
        """The configuration of the generator, which is an attribute."""
        text = self.file.attrs.get("config", "")
        config = OmegaConf.create(text.decode() if isinstance(text, bytes) else str(text))
        return to_plain(config, resolve=False) if isinstance(config, DictConfig) else {}


def _members(node: Any) -> list[str]:
    """The names in a group; none if it is no group."""
    return [] if node is None or hasattr(node, "shape") else list(node)
