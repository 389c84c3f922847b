"""The equations: initial conditions, reference solvers, exact solutions, symmetries, functionals.

They are independent of models. A module here that has an ``EQUATION`` provides it under its name.
"""

import copyreg
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from ups.core.errors import UpsError
from ups.physics.equation import Equation, Functional, Law, Symmetry

_MODULES = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
EQUATIONS: dict[str, Equation] = {
    module.EQUATION.name: module.EQUATION for module in _MODULES if hasattr(module, "EQUATION")
}

__all__ = ["EQUATIONS", "Equation", "Functional", "Law", "Symmetry", "get_equation"]


@cache
def get_equation(name: str) -> Equation:
    """The equation ``name``: one of ``EQUATIONS``, or ``EQUATION`` of the module of that name.

    Raises:
        UpsError: there is none.
    """
    if name in EQUATIONS:
        return EQUATIONS[name]
    allowed = f"one of {', '.join(EQUATIONS)}, or the name of a module with an EQUATION"
    try:
        equation = getattr(import_module(name), "EQUATION", None)
    except (ImportError, ValueError, TypeError) as error:
        raise UpsError(f"`data.equation` must be {allowed}, got {name!r} ({error}).") from None
    if not isinstance(equation, Equation):
        raise UpsError(
            f"`data.equation` must be {allowed}, got {name!r}: the module's EQUATION is no "
            "ups.physics.Equation."
        )
    _MODULE_OF[equation.name] = name
    return equation


_MODULE_OF: dict[str, str] = {}  # of equations that are not among ``EQUATIONS``


def _reduced(equation: Equation) -> tuple[Callable[[str], Equation], tuple[str]]:
    return get_equation, (_MODULE_OF.get(equation.name, equation.name),)


# by name, because its functions can't be pickled; worker processes start fresh where forking
# is not the default
copyreg.pickle(Equation, _reduced)
