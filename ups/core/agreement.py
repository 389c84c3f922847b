"""Whether two descriptions agree: numbers that were read from files only do so approximately."""

import math
from collections.abc import Mapping

RELATIVE_TOLERANCE = 1e-4  # of numbers: coordinates of files are often float32


def disagreements(expected: Mapping[str, object], found: Mapping[str, object]) -> list[str]:
    """List where ``found`` differs from ``expected``, "`dt` must be 0.05, got 0.1" for each name.

    Args:
        expected: plain values by name: text, numbers, and tuples of them.
        found: the same names.
    """
    return [
        f"`{name}` must be {_text(value, found[name])}, got {_text(found[name], value)}"
        for name, value in expected.items()
        if not _agree(value, found[name])
    ]


def _agree(a: object, b: object) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_agree, a, b))
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
