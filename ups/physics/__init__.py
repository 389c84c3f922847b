"""The equations: initial conditions, reference solvers, exact solutions, invariants. Knows nothing of models."""

from types import ModuleType

from ups.physics import burgers

EQUATIONS: dict[str, ModuleType] = {"burgers": burgers}

__all__ = ["EQUATIONS", "burgers"]
