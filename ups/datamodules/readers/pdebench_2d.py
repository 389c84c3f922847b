"""PDEBench's layouts with several channels or dimensions.

- Compressible flow in 1D, 2D and 3D: `density`, `pressure`, `Vx`, `Vy`, `Vz` (N, T, *space),
  `x-coordinate`, ..., `t-coordinate`; attributes `eta`, `zeta` and `M`.
- Diffusion-reaction, shallow water and diffusion-sorption: groups `0000`, ... with `data`
  (T, *space, C), `grid/x`, ..., `grid/t`.
- Incompressible flow: `velocity` (N, T, X, Y, 2), `particles` (N, T, X, Y, 1), `force`
  (N, X, Y, 2), `t` (N, T); attribute `config`.
"""

import math
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
    check_same,
    each_axis,
    spacing,
)
from ups.datamodules.readers.field_files import FieldArray, FieldFiles, OpenFiles, Part
from ups.datamodules.readers.hdf5 import Datasets, hdf5_files, number, open_hdf5, texts
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
        length: the length of each axis, or one for all, of incompressible flow, whose files say no
            positions; None for the domain of the file's configuration.

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
        # a link that leads nowhere may have been one, too
        groups = sorted(name for name in self.file if not hasattr(self.node(name), "shape"))
        if any(self.node(f"{group}/data") is not None for group in groups):
            return self._groups(groups)
        raise UpsError(
            f"{self.path} must hold density, pressure, Vx, ... or velocity, particles, ... or "
            f"groups with data, as PDEBench's files do; got {', '.join(self.file) or 'nothing'}."
        )

    def _refuse_length(self) -> None:
        if self.length is not None:
            raise UpsError(f"`data.length` must be null: {self.path} says its positions.")

    def _flow(self) -> Piece:
        self._refuse_length()
        shape = self.array("density", 3, 4, 5).shape
        num_dims = len(shape) - 2
        needed = FLOW[: 2 + num_dims]  # a velocity for each axis
        names = [name for name in FLOW if name in needed or name in self.file]
        for name in names:
            self.check_shape(name, shape)
        axes = [
            self.even(f"{axis}-coordinate", size, "density", shape[0])
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
        self._refuse_length()
        first = groups[0]
        positions = [axis for axis in SPACE if self.node(f"{first}/grid/{axis}") is not None]
        fewest = 2 + max(1, len(positions))
        shape = self.array(f"{first}/data", *range(fewest, 6)).shape
        num_dims = len(shape) - 2
        for group in groups:
            self.check_shape(f"{group}/data", shape)
        axes = [
            self._of_all(groups, axis, size)
            for axis, size in zip(SPACE[:num_dims], shape[1:-1], strict=True)
        ]
        channels = tuple(f"u{c}" if c else "u" for c in range(shape[-1]))
        return self._piece(
            [Part(self.path, f"{group}/", 1) for group in groups],
            [FieldArray("data", "t" + SPACE[:num_dims] + "c", channels)],
            self._of_all(groups, "t", shape[0]),
            cells_around(axes, self._sides(num_dims)),
        )

    def _of_all(self, groups: Sequence[str], axis: str, size: int) -> np.ndarray:
        """The positions or times, which all groups must have alike."""
        first = f"{groups[0]}/grid/{axis}"
        values = self.even(first, size, f"{groups[0]}/data", 1)
        for group in groups[1:]:
            name = f"{group}/grid/{axis}"
            own = self.even(name, size, f"{group}/data", 1)
            check_same(self.path, name, own, first, values)
        return values

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
        extent = self._extent(config, num_dims)
        nu, name = config.get("NU"), "'NU' of the attribute 'config'"
        return self._piece(
            [Part(self.path, "", shape[0])],
            arrays,
            self.even("t", shape[1], "velocity", shape[0]),
            Grid(shape[2:-1], tuple(extent), tuple(self._sides(num_dims))),
            {} if nu is None else {"nu": np.full(shape[0], number(self.path, name, nu))},
        )

    def _extent(self, config: Mapping[str, Any], num_dims: int) -> list[float]:
        """The length of each axis: what is given, or else what the configuration says."""
        if self.length is not None:
            return each_axis(self.path, "length", self.length, num_dims)
        size = config.get("domain_size")
        if size is None:
            raise UpsError(f"{self.path} doesn't say its data.length: give data.length=...")
        sizes = size if isinstance(size, list) else [size] * num_dims
        name = "'domain_size' of the attribute 'config'"
        extent = [number(self.path, name, each) for each in sizes]
        if len(extent) != num_dims or not all(0 < each < math.inf for each in extent):
            raise UpsError(
                f"{self.path}: {name} must be a number > 0, or one for each of the {num_dims} "
                f"axes, got {size!r}."
            )
        return extent

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
            if key.lower() == name.lower():
                return number(self.path, f"the attribute '{key}'", value)
        return parameter_in_name(self.path.name, name)

    def _config(self) -> Mapping[str, Any]:
        """The configuration of the generator, which is an attribute."""
        text = "\n".join(texts(self.file.attrs.get("config", "")))
        try:
            config = OmegaConf.create(text)
        except Exception as error:  # of yaml, of OmegaConf, or an assertion
            reason = " ".join(str(error).split())[:200] or "it is none"
            raise UpsError(
                f"{self.path}: the attribute 'config' must be yaml, but can't be read ({reason})."
            ) from None
        return to_plain(config, resolve=False) if isinstance(config, DictConfig) else {}
