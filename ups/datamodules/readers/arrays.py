"""One's own arrays: .npy, .npz, HDF5, zarr, NetCDF and MATLAB files of fields (N, T, *space, C).

A file of several arrays may also say the times (`t`), the positions (`x`, `y`, `z`), the names of
the channels (`channels`) and parameters, one number a trajectory (N,), each an array of its name.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ups.core.errors import UpsError
from ups.core.fields import Boundary, Grid
from ups.datamodules.readers.axes import (
    CHANNEL_NAMES,
    NAMES,
    SPACE,
    Axes,
    count_dims,
    counted_axes,
    dimension_names,
    named_axes,
    possible_dims,
)
from ups.datamodules.readers.coordinates import check_even, each_axis, spacing
from ups.datamodules.readers.field_files import (
    Arrays,
    Contents,
    FieldArray,
    FieldFiles,
    OpenFiles,
    Part,
    read_array,
    warn_once,
)
from ups.datamodules.readers.formats import open_arrays

log = logging.getLogger(__name__)
# arrays with a meaning of their own
RESERVED = (*(name for names in NAMES.values() for name in names), "channels")
# arrays of a file of points, each trajectory with its own
OF_POINTS = ("offsets", "positions", "fields")
ROUNDING = 1e-6  # of equal values, relative to the size of the fields
SHAPES = "(N, T, X), (N, T, X, Y) or (N, T, X, Y, Z), with an axis of channels after them or not"


class ArrayFile(FieldFiles):
    """Reads trajectories of arrays of a file.

    Args:
        path: the file.
        temporal_downsampling: keep every so many-th frame.
        spatial_downsampling: keep every so many-th point of each axis.
        dt: the time between frames; None if the file says its times.
        length: the length of each axis, or one for all; None if the file says its positions.
        field: the array of fields, or several whose channels are joined; None for the only one
            with enough axes, or "u".
        num_dims: number of dimensions of space; None if the file or the shape says it.
        boundary: what lies beyond both sides of each axis, or one for all.
        channels: names of the channels; None for those of the file, or of the arrays.

    Raises:
        UpsError: the file has a fault, or does not say all that is needed.
    """

    def __init__(
        self,
        path: Path,
        temporal_downsampling: int = 1,
        spatial_downsampling: int = 1,
        dt: float | None = None,
        length: float | Sequence[float] | None = None,
        field: str | Sequence[str] | None = None,
        num_dims: int | None = None,
        boundary: str | Sequence[str] = "periodic",
        channels: Sequence[str] | None = None,
    ) -> None:
        path = Path(path)
        files = OpenFiles(open_arrays)
        if num_dims is None:
            lists = [value for value in (length, boundary) if isinstance(value, list | tuple)]
            num_dims = len(lists[0]) if lists else None
        arrays = files[path]
        if all(name in arrays for name in OF_POINTS):
            raise UpsError(
                f"{path} must be of fields on a grid; it is of points, which data=obstacles "
                f"data.path={path} reads."
            )
        fields = _Fields(path, arrays, field, num_dims)
        step, grid = fields.time_and_space(dt, length, boundary)
        contents = Contents(
            [Part(path, "", fields.sizes["n"])],
            fields.arrays_of_channels(channels),
            fields.sizes["t"],
            step,
            grid,
            fields.parameters(),
        )
        super().__init__(path, files, contents, temporal_downsampling, spatial_downsampling)


class _Fields:
    """The arrays of fields of an open file.

    Args:
        path: the file.
        arrays: its arrays.
        field: the names of those with fields; None for the only one, or "u".
        num_dims: number of dimensions of space, if it is known.

    Attributes:
        names: the names of the arrays of fields.
        axes: the axes of each.
        sizes: the number of trajectories (n), frames (t) and points of each axis (x, y, z).

    Raises:
        UpsError: there are no such arrays.
    """

    def __init__(
        self, path: Path, arrays: Arrays, field: str | Sequence[str] | None, num_dims: int | None
    ) -> None:
        self.path = path
        self.arrays = arrays
        self.names = self._choose(field, num_dims)
        self.axes = [self._axes(name, num_dims) for name in self.names]
        sizes = [axes.sizes(arrays[name]) for name, axes in zip(self.names, self.axes, strict=True)]
        for each in sizes:
            each.pop("c", None)
        self.sizes = sizes[0]
        if any(each != self.sizes for each in sizes):
            raise UpsError(
                f"`data.field` must name arrays of the same trajectories, frames and points of "
                f"{path}, got {self._shapes(self.names)}."
            )
        self.num_dims = self.axes[0].num_dims

    def time_and_space(
        self,
        dt: float | None,
        length: float | Sequence[float] | None,
        boundary: str | Sequence[str],
    ) -> tuple[float, Grid]:
        """The time between frames and the grid: what is given, or else what the file says."""
        t = self._coordinate("t")
        step = spacing(t) if dt is None and t is not None else dt
        positions = {axis: self._coordinate(axis) for axis in SPACE[: self.num_dims]}
        has_length = length is not None or all(x is not None for x in positions.values())
        if step is None or not has_length:
            raise self._unknown(step is not None, has_length)
        shape, extent, origin = [], [], []
        sides = [
            Boundary(side) for side in each_axis(self.path, "boundary", boundary, self.num_dims)
        ]
        lengths = each_axis(self.path, "length", length, self.num_dims)
        for (axis, x), side, given in zip(positions.items(), sides, lengths, strict=True):
            points = self.sizes[axis]
            if side is Boundary.PERIODIC and self._has_both_ends(axis, x, given):
                log.info(
                    "%s: the last point along %s repeats the first and is left out",
                    self.path,
                    axis,
                )
                points -= 1
            shape.append(points)
            # one cell more than from the first point to the last
            extent.append(points * spacing(x) if given is None and x is not None else given)
            origin.append(extent[-1] / points / 2 if x is None else float(x[0]))
        grid = Grid(
            tuple(shape), tuple(extent), tuple((side, side) for side in sides), tuple(origin)
        )
        return step, grid

    def arrays_of_channels(self, channels: Sequence[str] | None) -> list[FieldArray]:
        """The arrays of fields with the names of their channels: those given, or else the file's.

        Raises:
            UpsError: more or fewer names are given than there are channels.
        """
        found = [
            self._channels(name, axes) for name, axes in zip(self.names, self.axes, strict=True)
        ]
        total = sum(map(len, found))
        if channels is not None and len(channels) != total:
            raise UpsError(
                f"`data.channels` must name the {total} channels of {self.path}, "
                f"got {len(channels)} names."
            )
        given = list(channels or ())
        fields = []
        for name, axes, own in zip(self.names, self.axes, found, strict=True):
            chosen = [given.pop(0) for _ in own] if channels is not None else own
            fields.append(FieldArray(name, axes.letters, tuple(chosen)))
        return fields

    def parameters(self) -> dict[str, np.ndarray]:
        """The parameters (N,) by name.

        Raises:
            UpsError: one is not positive and finite.
        """
        known = {*self.names, *RESERVED, *self.axes[0].names}
        found = {
            name: self._values(name).astype(np.float64)
            for name, array in self.arrays.items()
            if name not in known
            and tuple(array.shape) == (self.sizes["n"],)
            and array.dtype.kind in "fiu"
        }
        for name, values in found.items():
            if not ((values > 0) & np.isfinite(values)).all():
                raise UpsError(
                    f"{self.path}: the parameter '{name}' must be positive and finite, "
                    f"got {values.min():g} to {values.max():g}."
                )
        return found

    def _choose(self, field: str | Sequence[str] | None, num_dims: int | None) -> list[str]:
        ranks = {name: len(array.shape) for name, array in self.arrays.items()}
        fields = [name for name, rank in ranks.items() if 3 <= rank <= 6]
        if num_dims is not None and len(fields) > 1:
            fields = [name for name in fields if ranks[name] - num_dims in (2, 3)]
        if field is None and len(fields) > 1 and "u" in fields:
            field = "u"
        if field is None and len(fields) == 1:
            field = fields[0]
        names = [field] if field is None or isinstance(field, str) else list(field)
        absent = [name for name in names if name not in self.arrays]
        if absent:
            raise UpsError(
                f"`data.field` must name an array {SHAPES} of {self.path}, got {absent[0]!r}; it "
                f"holds {self._shapes(self.arrays) or 'none'}."
            )
        return [name for name in names if name is not None]

    def _axes(self, name: str, num_dims: int | None) -> Axes:
        array = self.arrays[name]
        shape = tuple(array.shape)
        where = f"{self.path}: '{name}'"
        axes = named_axes(where, array) if dimension_names(array) else None
        if axes is None:
            axes = self._count_axes(name, shape, num_dims)
        if axes is None or 0 in shape or array.dtype.kind not in "fiu":
            raise UpsError(
                f"{where} must be real numbers with the axes {SHAPES}: trajectories, frames, "
                f"points and channels; got {array.dtype} {shape}."
            )
        if num_dims not in (None, axes.num_dims):
            raise UpsError(
                f"`data.num_dims` must be {axes.num_dims}, as the axes of '{name}' {shape} in "
                f"{self.path} say, got {num_dims}."
            )
        return axes

    def _count_axes(self, name: str, shape: tuple[int, ...], num_dims: int | None) -> Axes | None:
        """The axes of an array that doesn't name them; None if it is no field.

        Raises:
            UpsError: the last axis may be of space or of channels.
        """
        possible = possible_dims(len(shape))
        dims = num_dims if num_dims in possible else count_dims(shape, self._fitting(shape))
        if dims is None and possible:
            raise UpsError(
                f"`data.num_dims` must be given: '{name}' {shape} of {self.path} may be in "
                f"{possible[0]}D with {shape[-1]} channels, or in {possible[1]}D without."
            )
        return None if dims is None else counted_axes(dims, len(shape))

    def _fitting(self, shape: Sequence[int]) -> list[str]:
        """Those of x, y and z, up to the first that is absent, with as many positions as points."""
        fitting = []
        for axis, points in zip(SPACE, shape[2:], strict=False):
            name = next((name for name in NAMES[axis] if name in self.arrays), None)
            if name is None or tuple(self.arrays[name].shape) != (points,):
                break
            fitting.append(axis)
        return fitting

    def _coordinate(self, axis: str) -> np.ndarray | None:
        names = self.axes[0].coordinates[axis]
        name = next((name for name in names if name in self.arrays), None)
        if name is None:
            return None
        return check_even(self.path, name, self._values(name), self.sizes[axis], self.names[0])

    def _unknown(self, has_dt: bool, has_length: bool) -> UpsError:
        known = {"data.dt": has_dt, "data.length": has_length}
        missing = [name for name, is_known in known.items() if not is_known]
        return UpsError(
            f"{self.path} doesn't say its {' and '.join(missing)}: give "
            f"{' '.join(f'{name}=...' for name in missing)}"
        )

    def _has_both_ends(self, axis: str, x: np.ndarray | None, length: float | None) -> bool:
        """Whether the last points along an axis are the first again, as in linspace(0, 1, N).

        Equal fields at both ends do not say it alone: fields that are their own mirror images have
        them in cells, too. Then positions and a length say it if they fit each other, or else
        positions that begin at 0, unless the fields are flat there.

        Args:
            axis: x, y or z.
            x: its positions, if the file says them.
            length: its length, if it is given.
        """
        points = self.sizes[axis]
        if points < 4:
            return False
        first, second, last_but_one, last, size = self._ends(axis)
        if np.abs(last - first).max() > ROUNDING * size:
            return False
        if np.abs(second - last_but_one).max() > ROUNDING * size:
            return True
        if x is not None and length is not None:
            return abs(length / spacing(x) - (points - 1)) < 0.25
        is_flat = np.abs(second - first).max() <= ROUNDING * size
        if x is not None and abs(x[0]) < 0.25 * spacing(x) and not is_flat:
            return True
        warn_once(
            f"{self.path}: fields are equal at both ends along {axis}, and all points are kept; if "
            "the last ones repeat the first, leave them out."
        )
        return False

    def _ends(self, axis: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
        """Some frames of some trajectories at the first two and the last two points along an axis,
        and the size of the fields.
        """
        name, axes = self.names[0], self.axes[0]
        frames, points = self.sizes["t"], self.sizes[axis]
        some = {"n": slice(8), "t": slice(None, None, -(-frames // 8))}
        (first, second), (last_but_one, last) = (
            np.moveaxis(
                self._part(name, axes, {**some, axis: places}).astype(np.float64),
                axes.letters.index(axis),
                0,
            )
            for places in (slice(2), slice(points - 2, points))
        )
        whole = self._part(name, axes, {"n": 0, "t": frames - 1}).astype(np.float64)
        size = max(np.ptp(whole), np.ptp([first, last]))
        return first, second, last_but_one, last, size

    def _part(self, name: str, axes: Axes, picks: dict[str, int | slice]) -> np.ndarray:
        return self._values(name, tuple(picks.get(axis, slice(None)) for axis in axes.letters))

    def _channels(self, name: str, axes: Axes) -> list[str]:
        """The names of the channels of an array, as the file says them, or else its own name."""
        number = axes.sizes(self.arrays[name]).get("c", 1)
        for key in CHANNEL_NAMES if len(self.names) == 1 else ():
            if key in self.arrays and tuple(self.arrays[key].shape) == (number,):
                values = self._values(key).tolist()
                texts = [value.decode() if isinstance(value, bytes) else value for value in values]
                if all(isinstance(text, str) for text in texts):
                    return texts
        return [f"{name}{c}" if c else name for c in range(number)]

    def _values(self, name: str, index: Any = slice(None)) -> np.ndarray:
        return read_array(self.path, name, lambda: np.asarray(self.arrays[name][index]))

    def _shapes(self, names: Any) -> str:
        return ", ".join(f"{name} {tuple(self.arrays[name].shape)}" for name in names)
