"""Which axis of an array is which.

An axis is a letter: n (trajectories), t (frames), x, y, z or c (channels).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ups.core.errors import UpsError

NAMES: dict[str, tuple[str, ...]] = {
    "t": ("t", "time", "times", "t-coordinate"),
    "x": ("x", "x-coordinate"),
    "y": ("y", "y-coordinate"),
    "z": ("z", "z-coordinate"),
}
CHANNEL_NAMES = ("c", "channel", "channels", "component", "variable")
SPACE = "xyz"
# as the last axis these are channels, if nothing says what it is
MAX_CHANNELS = 8
# and as many or more are points; what is in between may be either
MIN_POINTS = 17


class Axes(NamedTuple):
    """The axes of an array.

    Args:
        letters: a letter for each axis; those of space are the first ones of "xyz".
        coordinates: the names under which a file may say the times and the positions.
        names: the names of the axes, if the file has them, else empty.
    """

    letters: str
    coordinates: dict[str, tuple[str, ...]]
    names: tuple[str, ...] = ()

    @property
    def num_dims(self) -> int:
        return sum(letter in SPACE for letter in self.letters)

    def sizes(self, array: Any) -> dict[str, int]:
        """The size of each axis of an array by its letter."""
        return dict(zip(self.letters, array.shape, strict=True))


def dimension_names(array: Any) -> tuple[str, ...]:
    """The names of the axes that NetCDF and zarr store; empty if there are none."""
    names: Sequence[str] = getattr(array, "dims", ())  # xarray
    if hasattr(array, "metadata"):  # zarr, of version 3 and 2
        stored = getattr(array.metadata, "dimension_names", None)
        names = stored or array.attrs.get("_ARRAY_DIMENSIONS", ())
    return tuple(names) if all(isinstance(name, str) for name in names) else ()


def named_axes(where: str, array: Any) -> Axes | None:
    """The axes by their names; None if they have none that say what time and space are.

    Args:
        where: the file and the array, for the message.
        array: the array.

    Raises:
        UpsError: an axis is missing, or there is one too many.
    """
    names = dimension_names(array)
    known = {name: letter for letter, aliases in NAMES.items() for name in aliases}
    known |= dict.fromkeys(CHANNEL_NAMES, "c")
    letters = [known.get(name.lower(), "") for name in names]
    space = sorted(set(letters) & set(SPACE))
    if "t" not in letters or (not space and letters[1] == "t"):
        return None
    rest = [letter for letter in "nc" if letter not in letters]
    others = [place for place, letter in enumerate(letters) if not letter]
    for place, letter in zip(others, rest, strict=False):
        letters[place] = letter
    is_complete = "n" in letters and space and "" not in letters
    if not is_complete or len(set(letters)) < len(letters):
        raise UpsError(
            f"{where} must have the dimensions of trajectories, time and x, y, z, and at most one "
            f"more, of channels; got {', '.join(names)}."
        )
    # a plane of x and z counts as one of x and y
    rename = dict(zip(space, SPACE, strict=False))
    ordered = [rename.get(letter, letter) for letter in letters]
    coordinates: dict[str, tuple[str, ...]] = {
        letter: (name,) for letter, name in zip(ordered, names, strict=True) if letter not in "nc"
    }
    return Axes("".join(ordered), coordinates, names)


def counted_axes(num_dims: int, rank: int) -> Axes:
    """The axes n, t, space and, if there is one more, c."""
    letters = "nt" + SPACE[:num_dims] + "c" * (rank - num_dims - 2)
    return Axes(letters, {letter: NAMES[letter] for letter in "t" + SPACE[:num_dims]})


def possible_dims(rank: int) -> list[int]:
    """The numbers of dimensions that an array (N, T, *space) or (N, T, *space, C) may have."""
    return [dims for dims in (1, 2, 3) if rank in (dims + 2, dims + 3)]


def count_dims(shape: Sequence[int], coordinates: Sequence[str]) -> int | None:
    """The number of dimensions of space of an array without names; None if it isn't certain.

    Args:
        shape: its shape, (N, T, *space) or (N, T, *space, C).
        coordinates: those of x, y and z whose positions are known.
    """
    possible = possible_dims(len(shape))
    if len(possible) < 2:
        return possible[0] if possible else None
    fewer, more = possible
    *space, last = shape[2:]
    if len(coordinates) == more:
        return more
    if len(coordinates) == fewer and last < MIN_POINTS:
        return fewer
    if coordinates or min(space) <= MAX_CHANNELS:  # a position is missing, or channels come first
        return None
    if last <= MAX_CHANNELS:
        return fewer
    return more if last >= MIN_POINTS else None
