"""The LightningModules, one for each stage."""

from ups.modules.base import BaseModule
from ups.modules.consistency import ConsistencyModule
from ups.modules.diffusion import DiffusionModule
from ups.modules.ensemble_operator import EnsembleOperatorModule
from ups.modules.evaluation import EvaluationModule
from ups.modules.operator import OperatorModule

__all__ = [
    "BaseModule",
    "ConsistencyModule",
    "DiffusionModule",
    "EnsembleOperatorModule",
    "EvaluationModule",
    "OperatorModule",
]
