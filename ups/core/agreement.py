"""Whether two descriptions agree: numbers that were read from files only do so approximately."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

RELATIVE_TOLERANCE = 1e-4  # of numbers: coordinates of files are often float32
BOX_TOLERANCE = 0.05  # of the length of an axis


@dataclass(frozen=True)
class Box:
    """The box in which points lie, as far as the outermost of them tell: two draws of points from
    one box differ.

    Args:
        edges: where each axis begins and ends (D,).
    """

    edges: tuple[tuple[float, float], ...]

    def __str__(self) -> str:
        return " x ".join(f"{first:g} to {last:g}" for first, last in self.edges)

    def is_close(self, other: "Box") -> bool:
        """Whether the edges of both are about the same."""
        return len(self.edges) == len(other.edges) and all(
            abs(one - two) <= BOX_TOLERANCE * (own[1] - own[0])
            for own, others in zip(self.edges, other.edges, strict=True)
            for one, two in zip(own, others, strict=True)
        )


def disagreements(expected: Mapping[str, object], found: Mapping[str, object]) -> list[str]:
    """List where ``found`` differs from ``expected``, "`dt` must be 0.05, got 0.1" for each name.

    Args:
        expected: values by name: text, numbers, tuples of them, and boxes.
        found: the same names; what it lacks is None.
    """
    found = {**dict.fromkeys(expected), **found}
    return [
        f"`{name}` must be {_text(value, found[name])}, got {_text(found[name], value)}"
        for name, value in expected.items()
        if not _agree(value, found[name])
    ]


def _agree(a: object, b: object) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_agree, a, b))
    if isinstance(a, Box) and isinstance(b, Box):
        return a.is_close(b)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=RELATIVE_TOLERANCE)
    return bool(a == b)


def _text(value: object, other: object) -> str:
    """``value`` with as many digits as tell it from ``other``."""
    if isinstance(value, tuple):
        others = other if isinstance(other, tuple) else ()
        others += (None,) * (len(value) - len(others))
        return " x ".join(_text(*pair) for pair in zip(value, others, strict=False)) or "none"
    if not isinstance(value, float):
        return str(value)
    is_told = not isinstance(other, float) or f"{value:g}" != f"{other:g}" or value == other
    return f"{value:g}" if is_told else f"{value:.9g}"
