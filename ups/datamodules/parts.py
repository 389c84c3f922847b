"""The files of a data set, one for each value of the equation's parameter."""

import math
from collections.abc import Sequence
from pathlib import Path

from ups.core.errors import UpsError
from ups.datamodules.readers.parameters import file_parameter
from ups.physics import Equation

Part = tuple[float | None, Path]  # the value, if there is one, and its file


def given_parts(
    paths: Sequence[str | None],
    nus: Sequence[float | None],
    equation: Equation | None,
    reader: str,
) -> tuple[list[Part], list[str]]:
    """Pair files with what is given of their parameters, or else with what they say.

    Returns:
        The pairs, and what is doubtful about them.

    Raises:
        UpsError: there are not as many values as files, or a value is not known.
    """
    nus = [*nus] * len(paths) if [*nus] == [None] else nus
    if len(nus) != len(paths):
        raise UpsError(
            f"`data.nu` must be null or one value for each file: data.path names {len(paths)} "
            f"files and data.nu {len(nus)} values."
        )
    pairs = [(nu, Path(path)) for nu, path in zip(nus, paths, strict=True) if path is not None]
    if equation is None or not equation.parameters:
        if len({nu is None for nu, _ in pairs}) > 1:
            raise UpsError(f"`data.nu` must be one value for each file, or null, got {[*nus]}.")
        return pairs, []
    (symbol,) = equation.parameters
    found = [_parameter_of(path, nu, symbol, reader) for nu, path in pairs]
    doubts = [doubt for _, doubt in found if doubt is not None]
    return [(nu, path) for (nu, _), (_, path) in zip(found, pairs, strict=True)], doubts


def _parameter_of(
    path: Path, given: float | None, symbol: str, reader: str
) -> tuple[float, str | None]:
    """The parameter of a file, what is given or else what the file says, and a doubt about it.

    Raises:
        UpsError: neither is there, or no file.
    """
    # the files of other readers may be of any kind
    known = file_parameter(path, symbol, has_attributes=reader == "pdebench")
    if given is None and known is not None:
        return known.value, None
    if given is None and not path.is_file():
        raise UpsError(f"`data.path` must be a file: there is no data file {path}.")
    if given is None:
        raise UpsError(
            f"`data.nu` must be a number, got null: neither an attribute nor the name of "
            f"{path} says {symbol}, as '..._{symbol}0.1.hdf5' would."
        )
    if known is None or math.isclose(known.value, given, rel_tol=1e-6):
        return given, None
    return given, (
        f"`data.nu` is {given:g}, but {known.source} says that {path} has {symbol} "
        f"{known.value:g}; {given:g} is used."
    )


def check_parameters(equation: Equation, name: str, nu: object) -> None:
    """Check that the equation has as many parameters as ``nu`` says, one or none.

    Raises:
        UpsError: it has others.
    """
    names = ", ".join(equation.parameters)
    if len(equation.parameters) > 1:
        raise UpsError(
            f"`data.equation` must have one parameter or none, got {name} with {names}. Its files "
            "are read with data=own."
        )
    if not names and nu is not None:
        raise UpsError(f"`data.nu` must be null, got {nu}: {name} has no parameter.")


def chosen_recipe(equation: Equation, name: str | None) -> str:
    """The name of the initial conditions of generated data; by default the equation's first.

    Raises:
        UpsError: the equation has none of that name.
    """
    known = list(equation.initial_conditions)
    chosen = known[0] if name is None else name
    if chosen not in known:
        raise UpsError(
            f"`data.initial_conditions` must be null or one of {', '.join(known)}, got {chosen!r}."
        )
    return chosen
