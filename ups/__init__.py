"""UPS: Universal Physics Transformers for time-dependent PDEs, trained in stages.

Results are measured in physical space.

>>> import ups
>>> sim = ups.load("outputs/burgers")
>>> u = sim.rollout(u0, steps=40, nu=0.001)  # u0 (B, X) -> (B, 40, X)
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_PACKAGES = (
    "callbacks",
    "datamodules",
    "evaluation",
    "export",
    "metrics",
    "models",
    "modules",
    "physics",
    "simulation",
)
_NAMES = {
    "Points": "ups.core.points",
    "Predictor": "ups.evaluation.foreign",
    "Simulator": "ups.simulation.simulator",
    "UpsError": "ups.core.errors",
    "compare": "ups.comparison",
    "fit": "ups.fitting",
    "load": "ups.simulation.checkpoint",
}
__all__ = [*_NAMES, *_PACKAGES]


def __getattr__(name: str) -> Any:
    # load on first use, so that `python -m ups.run --help` doesn't wait for torch
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    if name in _PACKAGES:
        return import_module(f"ups.{name}")
    raise AttributeError(f"module 'ups' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
