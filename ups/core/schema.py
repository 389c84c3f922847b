"""The constructor is the schema: settings are checked against the annotations of what takes them.

A bound is said once, beside the argument: ``batch_size: PositiveInt = 16``. Pydantic checks the
value; the words of the message are derived from the annotation.
"""

import inspect
import pydoc
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import ConfigDict, Strict, StringConstraints, TypeAdapter, ValidationError

from ups.core.errors import UpsError

# larger integers overflow somewhere, and no setting needs one; messages don't mention it
LARGEST = 2**40
LARGEST_NUMBER = 1e18  # likewise, for numbers that are no integers
# keys of Hydra beside the arguments of a class
HYDRA_KEYS = ("_target_", "_convert_", "_recursive_")


@dataclass(frozen=True)
class Bookkeeping:
    """Marks a setting that may differ between two calls that continue one run.

    Args:
        everywhere: whether this holds for every key that ends with the name of the argument. For
            arguments that many classes have, for example ``dirpath``.
    """

    everywhere: bool = False


@dataclass(frozen=True)
class Words:
    """What a value must be, in words, if they can't be derived from the annotation."""

    text: str


@dataclass(frozen=True)
class SettingsOf:
    """Marks a mapping of the arguments of another constructor.

    Args:
        target: the constructor.
        without: arguments that are given elsewhere.
    """

    target: Callable[..., object]
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Without:
    """Marks ``**options`` that are handed on to the base class, without some of its arguments."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class DividesPoints:
    """Marks a size that must divide the number of points, so that its default follows the data."""


BOOKKEEPING = Bookkeeping()
BOOKKEEPING_EVERYWHERE = Bookkeeping(everywhere=True)

T = TypeVar("T")
PositiveInt = Annotated[int, Ge(1), Le(LARGEST)]
NonNegativeInt = Annotated[int, Ge(0), Le(LARGEST)]
PositiveFloat = Annotated[float, Gt(0), Le(LARGEST_NUMBER)]
NonNegativeFloat = Annotated[float, Ge(0), Le(LARGEST_NUMBER)]
Fraction = Annotated[float, Ge(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]
MlpRatio = Annotated[float, Gt(0), Le(1000)]
HiddenDim = Annotated[int, Ge(2), Le(LARGEST)]
Depth = Annotated[int, Ge(0), Le(1000)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
NonEmpty = Annotated[Sequence[T], Len(1)]
OneOrMore = Union[T, NonEmpty[T]]  # noqa: UP007  # `|` takes no type variable
NumPatches = Annotated[OneOrMore[PositiveInt], DividesPoints()]
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]+$"), Words("a non-empty string")]
EquationName = Annotated[
    str,
    StringConstraints(pattern=r"^[\w.]+$"),
    Words("the name of an equation or of its module"),
]
PathStr = Annotated[str, StringConstraints(pattern=r"^[^\x00]+$"), Words("a path")]


@dataclass(frozen=True)
class Argument:
    """An argument of a constructor.

    Args:
        annotation: its type, with bounds.
        default: its default; ``inspect.Parameter.empty`` if it has none.
        is_inherited: whether it is an argument of a base class, by ``**options``.
    """

    annotation: object
    default: object
    is_inherited: bool = False

    @property
    def is_required(self) -> bool:
        """Whether it must be given."""
        return self.default is inspect.Parameter.empty and not self.is_inherited

    def marker(self, kind: type[T]) -> T | None:
        """The marker of the class ``kind`` in the annotation, or in a type of its union."""
        types = (self.annotation, *get_args(self.annotation))
        marks = (mark for each in types for mark in getattr(each, "__metadata__", ()))
        return next((mark for mark in marks if isinstance(mark, kind)), None)


@dataclass(frozen=True)
class Arguments:
    """The arguments of a constructor by name.

    Args:
        named: the arguments.
        is_open: whether it takes any other name too.
    """

    named: Mapping[str, Argument]
    is_open: bool


@cache
def arguments(target: Callable[..., object], skip: int = 0) -> Arguments:
    """Read the arguments of a constructor.

    Args:
        target: a class, a dataclass or a function. An ``__init__`` that takes ``**options`` hands
            them on to the next base class.
        skip: number of leading arguments that are not settings.
    """
    named: dict[str, Argument] = {}
    hidden: set[str] = set()
    is_open = True
    is_inner = False
    for function, is_method in _constructors(target):
        own, options = _read(function, is_method)
        if named and not own:
            break  # a base class without arguments: the options are the class's own
        for name, argument in own.items():
            if name not in hidden:
                # the class may hand on a base's argument itself, so it need not be given
                inherited = replace(argument, is_inherited=is_inner)
                named.setdefault(name, inherited)
        is_inner = True
        is_open = options is not None
        if not is_open:
            break
        hidden |= {name for mark in options or () for name in mark.names}
    kept = list(named.items())[skip:]
    return Arguments(dict(kept), is_open)


def _constructors(target: Callable[..., object]) -> Iterable[tuple[Callable[..., object], bool]]:
    """The functions that take the arguments, and whether their first one is ``self``."""
    if not isinstance(target, type):
        return [(target, False)]
    classes = [cls for cls in target.__mro__ if cls is not object and "__init__" in vars(cls)]
    return [(vars(cls)["__init__"], True) for cls in classes]


def _read(
    function: Callable[..., object], is_method: bool
) -> tuple[dict[str, Argument], tuple[Without, ...] | None]:
    """The arguments of one function, and the markers of its ``**options`` if it has them."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[int(is_method) :]
    except (TypeError, ValueError):  # written in C
        return {}, ()
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception:  # a name in a string that can't be resolved: only the names are checked
        hints = {}
    named: dict[str, Argument] = {}
    options: tuple[Without, ...] | None = None
    for parameter in parameters:
        hint = hints.get(parameter.name, object)
        if parameter.kind is parameter.VAR_KEYWORD:
            marks = getattr(hint, "__metadata__", ())
            options = tuple(mark for mark in marks if isinstance(mark, Without))
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            named[parameter.name] = Argument(hint, parameter.default)
    return named, options


def validate(
    target: Callable[..., object],
    values: Mapping[str, object],
    key: str,
    *,
    name: str | None = None,
    skip: int = 0,
    without: Sequence[str] = (),
    bounds: Callable[..., object] | None = None,
    required: Literal["arguments", "all", "none"] = "arguments",
) -> None:
    """Check settings against the arguments of what takes them.

    Args:
        target: a class, a dataclass or a function.
        values: the settings by name, plain values.
        key: the dotted key of ``values`` in the configuration; "" for its root.
        name: the name of ``target`` in messages.
        skip: number of leading arguments that are not settings.
        without: further arguments that are not settings.
        bounds: a class whose annotations replace those of ``target``, for classes of other
            packages.
        required: what must be there: arguments without a default, all arguments, or nothing.

    Raises:
        UpsError: the first key or value that is not allowed.
    """
    known = arguments(target, skip)
    named = {word: argument for word, argument in known.named.items() if word not in without}
    prefix = f"{key}." if key else ""
    for word, value in values.items():
        if word in HYDRA_KEYS:
            continue
        if word in named:
            argument = named[word]
            if bounds is not None:
                argument = arguments(bounds).named.get(word, argument)
            _check(argument, value, f"{prefix}{word}")
        elif not known.is_open or word in without:
            owner = name or f"{target.__module__}.{target.__qualname__}"
            raise unknown_key(word, named, prefix, owner)
    for word, argument in named.items():
        is_required = required == "all" or (required == "arguments" and argument.is_required)
        if is_required and word not in values:
            raise UpsError(f"`{prefix}{word}` must be given.")


def validate_arguments(
    target: Callable[..., object], values: Mapping[str, object], key: str, *, skip: int = 0
) -> None:
    """Check what a constructor was called with, from Python, as ``validate`` checks settings.

    Paths, tuples and numbers of numpy count as the plain values that they stand for, and numbers
    as truth values. What is no argument is left to Python.

    Args:
        target: the class.
        values: the arguments by name.
        key: the dotted key of the settings.
        skip: number of leading arguments that are not settings.

    Raises:
        UpsError: a value is not allowed.
    """
    named = arguments(target, skip).named
    given = {name: plain(value) for name, value in values.items() if name in named}
    for name, value in given.items():
        if words(named[name].annotation) == "true or false" and isinstance(value, int):
            given[name] = bool(value)
    validate(target, given, key, skip=skip, required="none")


def plain(value: object) -> object:
    """Paths, tuples and numbers of numpy as the plain values that they stand for, also inside."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(each) for each in value]
    return value


def unknown_key(word: object, names: Iterable[str], prefix: str, owner: str) -> UpsError:
    """The error for a key that does not exist."""
    known = list(names)
    near = get_close_matches(str(word), known, 1)
    if near:
        return UpsError(f"`{prefix}{word}` is not a key of {owner}; did you mean `{near[0]}`?")
    keys = ", ".join(known) or "none"
    return UpsError(f"`{prefix}{word}` is not a key of {owner}; the keys are: {keys}.")


def refusal(key: str, allowed: str, value: object) -> UpsError:
    """The error for a value that is not allowed."""
    return UpsError(f"`{key}` must be {allowed}, got {show(value)}.")


def show(value: object) -> str:
    """A value as yaml writes it, on one line, cut if it is long."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, list):
        text = f"[{', '.join(map(show, value))}]"
    else:
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def locate(path: object, key: str, base: type) -> Callable[..., object]:
    """Import the class, or the function, that ``key`` names.

    Args:
        path: "package.module.Class".
        key: the dotted key.
        base: what a class must be a subclass of.

    Raises:
        UpsError: there is none.
    """
    allowed = f"the path of a {base.__name__}"
    if not isinstance(path, str):
        raise refusal(key, allowed, path)
    try:
        found = pydoc.locate(path)
    except pydoc.ErrorDuringImport as error:
        raise UpsError(f"`{key}`: {' '.join(str(error).split())}") from None
    if (isinstance(found, type) and not issubclass(found, base)) or not callable(found):
        raise refusal(key, allowed, path)
    return found


def _check(argument: Argument, value: object, key: str) -> None:
    if isinstance(value, Mapping) and "_target_" in value:
        return  # Hydra makes the argument of it
    try:
        _adapter(argument.annotation).validate_python(value)
    except ValidationError:
        allowed = words(argument.annotation)
        if isinstance(value, int) and value > LARGEST:
            allowed += f", and at most {f'{LARGEST_NUMBER:g}' if 'number' in allowed else LARGEST}"
        raise refusal(key, allowed, value) from None
    nested = argument.marker(SettingsOf)
    if nested is not None and isinstance(value, Mapping):
        validate(nested.target, value, key, without=nested.without)


def _adapter(annotation: object) -> TypeAdapter[object]:
    try:
        return _cached_adapter(annotation)
    except TypeError:  # a literal or a marker that can't be hashed
        return _cached_adapter.__wrapped__(annotation)


@cache
def _cached_adapter(annotation: object) -> TypeAdapter[object]:
    config = ConfigDict(strict=True, allow_inf_nan=False)
    return TypeAdapter(_checkable(annotation), config=config)


def _checkable(annotation: object) -> Any:
    """``annotation`` with ``object`` for everything but plain values, lists and mappings."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in (int, float, str, bool, None, types.NoneType) or origin is Literal:
        return annotation
    if origin is Annotated:
        inner = _checkable(args[0])
        return inner if inner is object else Annotated[(inner, *args[1:])]
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_checkable, args))]  # noqa: UP007
    if origin is tuple:
        # a list in yaml
        inner_types = tuple(arg if arg is Ellipsis else _checkable(arg) for arg in args)
        return Annotated[tuple[inner_types], Strict(False)]  # type: ignore[valid-type]
    if origin in (list, Sequence):
        return Sequence[_checkable(args[0])]  # type: ignore[misc]
    if annotation in (dict, Mapping) or origin in (dict, Mapping):
        return dict[object, object]
    return object


def words(annotation: object) -> str:
    """What a value of ``annotation`` must be: "an integer >= 1, or null"."""
    return _words(annotation, "", is_plural=False)


def _words(annotation: object, bounds: str, *, is_plural: bool) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        text = next((mark.text for mark in args[1:] if isinstance(mark, Words)), None)
        return text or _words(args[0], _bounds(args[1:]), is_plural=is_plural)
    if origin in (Union, types.UnionType):
        return _alternatives(args)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if annotation is bool:
        return "true or false"
    if origin in (list, Sequence):
        kind = "a non-empty list" if bounds == NON_EMPTY else "a list"
        return f"{kind} of {_words(args[0], '', is_plural=True)}"
    if origin is tuple:
        return f"a list of {len(args)} {_words(args[0], '', is_plural=True)}"
    nouns: dict[object, tuple[str, str]] = {
        int: ("an integer", "integers"),
        float: ("a number", "numbers"),
        str: ("a string", "strings"),
        types.NoneType: ("null", "nulls"),
    }
    return nouns.get(annotation, ("a mapping", "mappings"))[is_plural] + bounds


def _alternatives(members: Sequence[object]) -> str:
    found: list[str] = []
    for member in members:
        item = _item(member)
        is_same = item is not None and item in members
        found.append("a list of such" if is_same else words(member))
    last = [text for text in found if text == "null"]
    return ", or ".join([*(text for text in found if text != "null"), *last])


def _item(annotation: object) -> object:
    """The type of the items of a list; None for other types."""
    if get_origin(annotation) is Annotated:
        return _item(get_args(annotation)[0])
    return get_args(annotation)[0] if get_origin(annotation) in (list, Sequence) else None


NON_EMPTY = " (not empty)"


def _bounds(marks: Sequence[object]) -> str:
    texts = []
    for mark in marks:
        if isinstance(mark, Ge):
            texts.append(f">= {mark.ge}")
        elif isinstance(mark, Gt):
            texts.append(f"> {mark.gt}")
        elif isinstance(mark, Le) and mark.le not in (LARGEST, LARGEST_NUMBER):
            texts.append(f"<= {mark.le}")
        elif isinstance(mark, Lt):
            texts.append(f"< {mark.lt}")
        elif isinstance(mark, Len) and mark.min_length == 1:
            return NON_EMPTY
    return f" {' and '.join(texts)}" if texts else ""
