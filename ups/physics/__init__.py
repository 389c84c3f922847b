"""The equations: initial conditions, reference solvers, exact solutions, invariants.

They are independent of models.

An equation is a module with the names of ``Equation``. Each module here that has a ``solve`` is
one, under its own name. An equation outside UPS is given by the name by which Python imports its
module. ``ups.physics.periodic_1d`` holds what equations of a field on a periodic line share.
"""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol

from torch import Tensor

from ups.core.errors import UpsError


class Equation(Protocol):
    """What the module of an equation holds.

    Fields are (B, X) on a uniform periodic grid of X points. ``nu`` is the equation's one
    parameter, positive, whatever its name and meaning are.
    """

    PARAMETER: str  # its symbol; file names hold it in front of its value
    CONSERVED: tuple[str, ...]  # the conserved ones of "mass" and "energy"

    def initial_conditions(self, n: int, x: Tensor, seed: int, length: float = 1.0) -> Tensor:
        """Draw initial conditions (n, X), float32.

        Args:
            n: number of fields.
            x: positions (X,).
            seed: the same seed gives the same fields.
            length: the length of the periodic line.
        """

    def solve(
        self,
        u0: Tensor,
        t: Tensor | Sequence[float],
        nu: float,
        length: float = 1.0,
        dtype: Any = ...,
    ) -> Tensor:
        """Solve from cell averages; this makes the data and is a baseline of the models.

        Args:
            u0: cell averages (B, X).
            t: times (T,).
            nu: the equation's parameter.
            length: the length of the periodic line.
            dtype: the precision of the computation.

        Returns:
            Cell averages (B, T, X).
        """

    def reflect(self, u: Tensor) -> Tensor:
        """Apply a symmetry other than the shift, for augmentation: (..., X) -> (..., X).

        It maps solutions to solutions.
        """

    def rescale_time(self, u: Tensor, times: float) -> Tensor:
        """The field (..., X) of the solution that runs ``times`` as fast, for augmentation.

        Its parameter is ``times`` the parameter of ``u``.
        """

    def solver_step(
        self, u: Tensor, dt: float, nu: Tensor, length: float = 1.0, refine: int = 4
    ) -> Tensor:
        """Advance point values by one step with the equation alone.

        Args:
            u: point values (B, X).
            dt: the time of the step.
            nu: the equation's parameter (B,).
            length: the length of the periodic line.
            refine: how much finer the grid of the solver is.

        Returns:
            Point values (B, X).
        """

    def shock_weight(self, u: Tensor, jump: float = ..., reach: int = ...) -> Tensor:
        """How far ``solver_step`` can be trusted if it leads to ``u``: (B, X), from 0 to 1."""

    def mass(self, u: Tensor, length: float = 1.0) -> Tensor:
        """The conserved mass: (..., X) -> (...)."""

    def energy(self, u: Tensor, length: float = 1.0) -> Tensor:
        """The energy, which never grows: (..., X) -> (...)."""

    def total_variation(self, u: Tensor) -> Tensor:
        """The total variation, which never grows: (..., X) -> (...)."""


_MODULES = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
EQUATIONS: dict[str, Any] = {
    module.__name__.rpartition(".")[2]: module for module in _MODULES if hasattr(module, "solve")
}

__all__ = ["EQUATIONS", "Equation", "find"]


@cache
def get_equation(name: str) -> Equation:
    """The module of the equation ``name``.

    Raises:
        UpsError: there is none, or its module lacks a name of ``Equation``.
    """
    try:
        module = EQUATIONS[name] if name in EQUATIONS else import_module(name)
    except (ImportError, ValueError, TypeError) as error:
        allowed = f"allowed are {', '.join(EQUATIONS)}, or the name of a module of your own"
        raise UpsError(f"equation={name!r}: {error}; {allowed}") from None
    wanted = [
        *Equation.__annotations__,
        *(key for key in vars(Equation) if not key.startswith("_")),
    ]
    lacking = [key for key in wanted if not hasattr(module, key)]
    if lacking:
        raise UpsError(
            f"equation={name!r}: its module lacks {', '.join(lacking)}; "
            "ups.physics.Equation says what each is"
        )
    return module
