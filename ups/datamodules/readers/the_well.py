"""The Well: folders train, valid and test of HDF5 files, each with its fields, grid and scalars.

Polymathic AI's format: groups `dimensions`, `boundary_conditions`, `scalars` and `t0_fields`,
`t1_fields`, `t2_fields` (scalars, vectors and tensors), whose attributes say what varies.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ups.core.errors import UpsError
from ups.core.fields import Boundary
from ups.datamodules.readers.axes import SPACE
from ups.datamodules.readers.coordinates import cells_around, spacing
from ups.datamodules.readers.field_files import FieldArray, FieldFiles, OpenFiles, Part, read_array
from ups.datamodules.readers.hdf5 import Datasets, hdf5_files, number, open_hdf5, texts
from ups.datamodules.readers.pieces import SPLITS, Piece, join

GROUPS = ("t0_fields", "t1_fields", "t2_fields")


class WellFiles(FieldFiles):
    """Reads a data set of The Well.

    Fields that are constant in time are channels like the others. Scalars that are constant in time
    are parameters, of each trajectory or of each file.

    Args:
        path: the folder of the data set, which holds data/train, data/valid and data/test; or the
            folder that holds these; or HDF5 files without splits, or one.
        temporal_downsampling: keep every so many-th frame.
        spatial_downsampling: keep every so many-th point of each axis.
        field: names of fields, such as velocity, all of whose components are taken; None for all.

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
        groups = {
            name: [_WellFile(file, files[file]).describe() for file in found]
            for name, found in _groups(Path(path)).items()
        }
        contents = join(Path(path), groups, field)
        super().__init__(Path(path), files, contents, temporal_downsampling, spatial_downsampling)


class _WellFile(Datasets):
    """An open file of The Well."""

    def __init__(self, path: Path, file: Any) -> None:
        super().__init__(path, file)
        self.dims = texts(self._attribute(self._node("dimensions"), "spatial_dims"))
        if not 1 <= len(set(self.dims)) == len(self.dims) <= len(SPACE):
            raise UpsError(
                f"{path}: the attribute 'spatial_dims' of '/dimensions' must be one to three "
                f"different names, got {', '.join(self.dims) or 'none'}."
            )
        self.trajectories = self._count("n_trajectories")

    def describe(self) -> Piece:
        """Read all but the fields."""
        kind = ", ".join(texts(self.file.attrs.get("grid_type", "cartesian")))
        if kind != "cartesian":
            raise UpsError(f"{self.path}: its grid_type must be cartesian, got {kind}.")
        t = self._coordinate("time")
        axes = [self._coordinate(name) for name in self.dims]
        sizes = {"n": self.trajectories, "t": len(t)}
        sizes |= dict(zip(SPACE, map(len, axes), strict=False))
        return Piece(
            str(self.path),
            [Part(self.path, "", self.trajectories)],
            self._arrays(sizes),
            len(t),
            spacing(t),
            cells_around(axes, self._boundary(dict(zip(self.dims, map(len, axes), strict=True)))),
            *self._numbers(),
        )

    def _arrays(self, sizes: Mapping[str, int]) -> list[FieldArray]:
        arrays = []
        for order, group in enumerate(GROUPS):
            if group not in self.file:
                continue
            for name in self._names(group):
                axes = self._axes(self._node(f"{group}/{name}")) + "c" * order
                self.check_shape(
                    f"{group}/{name}", [sizes.get(axis, len(self.dims)) for axis in axes]
                )
                components = ["".join(each) for each in product(self.dims, repeat=order)]
                channels = [f"{name}_{each}" if each else name for each in components]
                arrays.append(FieldArray(f"{group}/{name}", axes, tuple(channels)))
        if not arrays:
            raise UpsError(f"{self.path} must hold fields, in {', '.join(GROUPS)}; got none.")
        return arrays

    def _axes(self, array: h5py.Dataset) -> str:
        """The letters of the axes along which a field varies."""
        flags = [
            *self._flags(array, "sample_varying", 1),
            *self._flags(array, "time_varying", 1),
            *self._flags(array, "dim_varying", len(self.dims)),
        ]
        letters = "nt" + SPACE[: len(self.dims)]
        return "".join(axis for axis, varies in zip(letters, flags, strict=True) if varies)

    def _coordinate(self, name: str) -> np.ndarray:
        """The times, or the positions along an axis, the same for all trajectories."""
        size = self.array(f"dimensions/{name}", 1, 2).shape[-1]
        if size < 2:
            raise UpsError(f"{self.path}: 'dimensions/{name}' must be at least 2 numbers, got 1.")
        return self.even(f"dimensions/{name}", size, name, self.trajectories)

    def _boundary(self, sizes: Mapping[str, int]) -> list[tuple[Boundary, Boundary]]:
        """Lower and upper side of each axis; open where the file doesn't say another type.

        Args:
            sizes: number of points of each axis.
        """
        sides = {name: [Boundary.OPEN, Boundary.OPEN] for name in self.dims}
        self._node("boundary_conditions")
        for condition in self.members("boundary_conditions"):
            where = f"boundary_conditions/{condition}"
            kind = ", ".join(texts(self._attribute(self._node(where), "bc_type"))).lower()
            if kind not in list(Boundary):
                raise UpsError(
                    f"{self.path}: the bc_type of a boundary must be {', '.join(Boundary)}, "
                    f"got {kind}."
                )
            names = texts(self._attribute(self._node(where), "associated_dims"))
            if not names or not set(names) <= set(sizes):
                raise UpsError(
                    f"{self.path}: the associated_dims of '{where}' must be of "
                    f"{', '.join(self.dims)}, got {', '.join(names) or 'none'}."
                )
            mask = self._mask(where, [sizes[name] for name in names], kind == Boundary.WALL)
            for axis, name in enumerate(names):
                for side, place in enumerate((0, -1)):
                    edge = mask.take(place, axis)
                    # part of a side is enough, but for walls
                    if edge.all() if kind == Boundary.WALL else edge.any():
                        sides[name][side] = Boundary(kind)
        return [(lower, upper) for lower, upper in sides.values()]

    def _mask(self, where: str, shape: Sequence[int], always: bool) -> np.ndarray:
        """Where on its axes a boundary condition holds, ``always`` or ever."""
        mask = self._dataset(f"{where}/mask")
        flags = ("sample_varying", "time_varying")
        leading = sum(bool(np.all(self._node(where).attrs.get(flag, False))) for flag in flags)
        if mask.shape[leading:] != tuple(shape) or mask.dtype.kind not in "biuf":
            raise UpsError(
                f"{self.path}: '{where}/mask' must be truth values of the shape {tuple(shape)}, as "
                f"its axes have points, got {mask.dtype} {mask.shape}."
            )
        values = mask.astype(bool).reshape(-1, *shape)
        return np.asarray(values.all(0) if always else values.any(0))

    def _numbers(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """The numbers (N,) that are constant in time, and why others are not among them."""
        stored: dict[str, Any] = {}
        left_out = {}
        for name in self._names("scalars") if "scalars" in self.file else ():
            if all(self._flags(self._node(f"scalars/{name}"), "time_varying", 1)):
                left_out[name] = "it varies in time"
            else:
                stored[name] = self._dataset(f"scalars/{name}")
        for name in texts(self.file.attrs.get("simulation_parameters", [])):
            if name in self.file.attrs:
                stored.setdefault(name, self.file.attrs[name])
        found = {}
        for name, value in stored.items():
            values = np.asarray(value)
            if values.dtype.kind in "fiu" and values.size in (1, self.trajectories):
                found[name] = np.broadcast_to(values.reshape(-1), self.trajectories)
            else:
                left_out[name] = "it is not one number for each trajectory"
        return found, left_out

    def _names(self, group: str) -> list[str]:
        return texts(self._attribute(self._node(group), "field_names"))

    def _dataset(self, name: str) -> np.ndarray:
        """Read a dataset of any kind and shape."""
        node = self._node(name)
        if not hasattr(node, "shape"):
            raise UpsError(f"{self.path}: '{name}' must be a dataset, got {node!r}.")
        return read_array(self.path, name, lambda: np.asarray(node[()]))

    def _node(self, name: str) -> Any:
        """A node that must be there."""
        node = self.node(name)
        if node is None:
            raise UpsError(
                f"{self.path}: there is no '{name}'; The Well's layout has dimensions, "
                f"boundary_conditions, scalars, {', '.join(GROUPS)}"
            )
        return node

    def _attribute(self, node: Any, name: str) -> Any:
        if name not in node.attrs:
            raise UpsError(f"{self.path}: '{node.name}' must have the attribute '{name}'.")
        return node.attrs[name]

    def _count(self, name: str) -> int:
        """An attribute of the file, a whole number."""
        count = number(self.path, f"the attribute '{name}'", self._attribute(self.file, name))
        if not count.is_integer() or count < 1:
            raise UpsError(
                f"{self.path}: the attribute '{name}' must be a whole number > 0, got {count:g}."
            )
        return int(count)

    def _flags(self, node: Any, name: str, count: int) -> list[bool]:
        """An attribute that is so many truth values."""
        values = np.atleast_1d(self._attribute(node, name))
        if values.shape != (count,) or values.dtype.kind not in "biu":
            raise UpsError(
                f"{self.path}: the attribute '{name}' of '{node.name}' must be {count} truth "
                f"values, got {values.tolist()!r:.80}."
            )
        return [bool(value) for value in values]


def _groups(path: Path) -> dict[str, list[Path]]:
    """The files of each split, or all files under "all"."""
    folder = path / "data" if (path / "data").is_dir() else path
    groups = {name: hdf5_files(folder / name) for name in SPLITS if (folder / name).is_dir()}
    return groups or {"all": hdf5_files(folder)}
