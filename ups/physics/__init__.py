"""The equations: initial conditions, reference solvers, exact solutions, invariants. Knows nothing of models.

An equation is a module with the names of ``Equation``. Each module here that has a ``solve`` is one, under its own name; one of your
own is given by the name that Python imports it by. ``ups.physics.line`` holds what equations of a field on a periodic line share.
"""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol

from torch import Tensor

from ups.errors import UpsError


class Equation(Protocol):
    """What an equation's module holds. Fields are (B, X) on a uniform periodic grid of X points; ``nu`` is the equation's one parameter,
    positive, whatever it is called and means there.
    """

    PARAMETER: str  # its symbol, as names of files say it, in front of its value
    CONSERVED: tuple[str, ...]  # what the equation keeps, of "mass" and "energy"

    def initial_conditions(self, n: int, x: Tensor, seed: int, length: float = 1.0) -> Tensor:
        """Draw ``n`` of them at positions ``x`` (X,): (n, X) float32, the same for the same seed."""

    def solve(self, u0: Tensor, t: Tensor | Sequence[float], nu: float, length: float = 1.0, dtype: Any = ...) -> Tensor:
        """Solve from cell averages ``u0`` (B, X) to times ``t`` (T,): (B, T, X). Makes the data and stands beside models as baseline."""

    def mirror(self, u: Tensor) -> Tensor:
        """A symmetry beside the shift, for augmentation: (..., X) -> (..., X), solutions to solutions."""

    def hasten(self, u: Tensor, times: float) -> Tensor:
        """The field of a solution that runs ``times`` as fast, at ``times`` the parameter: (..., X), for augmentation."""

    def advance(self, u: Tensor, dt: float, nu: Tensor, length: float = 1.0, refine: int = 4) -> Tensor:
        """Point values ``u`` one ``dt`` on at ``nu`` (B,), by the equation alone, on a grid ``refine`` times finer: (B, X)."""

    def certainty(self, u: Tensor, jump: float = ..., reach: int = ...) -> Tensor:
        """How far ``advance`` can be trusted where it leads to ``u``: (B, X), from 0 to 1."""

    def mass(self, u: Tensor, length: float = 1.0) -> Tensor:
        """(..., X) -> (...)."""

    def energy(self, u: Tensor, length: float = 1.0) -> Tensor:
        """(..., X) -> (...), which never grows."""

    def total_variation(self, u: Tensor) -> Tensor:
        """(..., X) -> (...), which never grows."""


_MODULES = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
EQUATIONS: dict[str, Any] = {module.__name__.rpartition(".")[2]: module for module in _MODULES if hasattr(module, "solve")}

__all__ = ["EQUATIONS", "Equation", "find"]


@cache
def find(name: str) -> Equation:
    """The equation that is called ``name``.

    Raises:
        UpsError: there is none, or its module lacks something.
    """
    try:
        module = EQUATIONS[name] if name in EQUATIONS else import_module(name)
    except (ImportError, ValueError, TypeError) as error:
        allowed = f"allowed are {', '.join(EQUATIONS)}, or the name of a module of your own"
        raise UpsError(f"equation={name!r}: {error}; {allowed}") from None
    wanted = [*Equation.__annotations__, *(key for key in vars(Equation) if not key.startswith("_"))]
    lacking = [key for key in wanted if not hasattr(module, key)]
    if lacking:
        raise UpsError(f"equation={name!r}: its module lacks {', '.join(lacking)}; ups.physics.Equation says what each is")
    return module
