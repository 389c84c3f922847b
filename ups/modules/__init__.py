"""One LightningModule a stage."""

from ups.modules.consistency import ConsistencyModule
from ups.modules.diffusion import DiffusionModule
from ups.modules.evaluate import EvaluateModule
from ups.modules.operator import OperatorModule
from ups.modules.stage import StageModule

__all__ = ["ConsistencyModule", "DiffusionModule", "EvaluateModule", "OperatorModule", "StageModule"]
