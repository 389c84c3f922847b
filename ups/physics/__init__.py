"""The equations: initial conditions, reference solvers, exact solutions. Knows nothing of models."""

from ups.physics import burgers

__all__ = ["burgers"]
