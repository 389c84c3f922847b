"""Join the files, or groups of files, of a published data set: what they agree in, their splits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ups.core.agreement import disagreements
from ups.core.errors import UpsError
from ups.core.fields import Grid, domain_essentials
from ups.datamodules.readers.field_files import Contents, FieldArray, Part, warn_once

# the splits of published files, and their names here
SPLITS = {"train": "train", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class Piece:
    """A file, or a group of it, with what it holds.

    Args:
        where: the file, and the group, for messages.
        parts: where its trajectories are.
        arrays: the arrays with the fields.
        frames: number of frames.
        dt: the time between them.
        grid: the grid of the points.
        parameters: the parameters by name, (N,) each.
        left_out: why a number of the file is no parameter, by its name.
    """

    where: str
    parts: Sequence[Part]
    arrays: Sequence[FieldArray]
    frames: int
    dt: float
    grid: Grid
    parameters: Mapping[str, np.ndarray] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def trajectories(self) -> int:
        return sum(part.trajectories for part in self.parts)

    def essentials(self) -> dict[str, object]:
        """What the pieces of a data set must agree in."""
        return {
            "fields": ", ".join(f"{array.name} ({', '.join(array.axes)})" for array in self.arrays),
            "channels": ", ".join(name for array in self.arrays for name in array.channels),
            "frames": self.frames,
            "dt": self.dt,
            **domain_essentials(self.grid),
            "parameters": ", ".join(sorted(self.parameters)) or "none",
        }


def join(
    path: Path, groups: Mapping[str, Sequence[Piece]], names: str | Sequence[str] | None
) -> Contents:
    """Join the pieces of a data set.

    Args:
        path: the file or the folder, for messages.
        groups: the pieces of "train", "valid" and "test", or of one group, which is to be split.
        names: the names of the fields that are taken; None for all.

    Raises:
        UpsError: the pieces don't agree, there is no field of a name, or a split is missing.
    """
    pieces = [piece for group in groups.values() for piece in group]
    first = pieces[0]
    for piece in pieces[1:]:
        found = disagreements(first.essentials(), piece.essentials())
        if found:
            raise UpsError(
                f"files of one data set must agree; in {piece.where} {', '.join(found)} "
                f"(the first is {first.where})."
            )
    parameters = {
        name: np.concatenate([piece.parameters[name] for piece in pieces])
        for name in first.parameters
    }
    left_out = {name: why for piece in pieces for name, why in piece.left_out.items()}
    for name, values in parameters.items():
        # networks see the logarithm
        if not ((values > 0).all() and np.isfinite(values).all()):
            left_out[name] = f"it is not positive, but from {values.min():g} to {values.max():g}"
    for name, why in left_out.items():
        warn_once(f"{path}: '{name}' is no parameter: {why}.")
    sizes = {name: sum(piece.trajectories for piece in group) for name, group in groups.items()}
    return Contents(
        [part for piece in pieces for part in piece.parts],
        _select(path, first.arrays, names),
        first.frames,
        first.dt,
        first.grid,
        {
            name: values.astype(np.float64)
            for name, values in parameters.items()
            if name not in left_out
        },
        _rows(path, sizes),
    )


def _select(
    path: Path, arrays: Sequence[FieldArray], names: str | Sequence[str] | None
) -> list[FieldArray]:
    """Those of the arrays that are named, without their groups, in that order; None for all."""
    if names is None:
        return list(arrays)
    known = {array.name.rpartition("/")[2]: array for array in arrays}
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in known:
            raise UpsError(
                f"`data.field` must be of the fields of {path}, which are {', '.join(known)}; "
                f"got {name!r}."
            )
    return [known[name] for name in wanted]


def _rows(path: Path, sizes: Mapping[str, int]) -> dict[str, range] | None:
    """The trajectories of each split, which follow each other; None if there is one group."""
    if len(sizes) == 1:
        return None
    missing = [name for name in SPLITS if not sizes.get(name)]
    if missing:
        raise UpsError(
            f"{path} must have trajectories of {', '.join(SPLITS)}, got none of "
            f"{', '.join(missing)}."
        )
    rows, start = {}, 0
    for name, size in sizes.items():
        rows[SPLITS[name]] = range(start, start + size)
        start += size
    return rows
