"""UPS: Universal Physics Transformers for time-dependent PDEs, trained in stages and measured in physical space.

>>> import ups
>>> sim = ups.load("outputs/burgers_upt")
>>> u = sim.rollout(u0, steps=40, nu=0.001)  # u0 (B, X) -> (B, 40, X)
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["Simulator", "callbacks", "datamodules", "load", "losses", "metrics", "models", "modules", "physics"]


def __getattr__(name: str) -> Any:
    # loaded on first use, so that `python -m ups.run --help` doesn't wait for torch
    if name in ("load", "Simulator"):
        return getattr(import_module("ups.rollout"), name)
    if name in __all__:
        return import_module(f"ups.{name}")
    raise AttributeError(f"module 'ups' has no attribute {name!r}")
