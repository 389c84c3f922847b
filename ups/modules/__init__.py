"""One LightningModule a stage."""

from ups.modules.evaluate import EvaluateModule
from ups.modules.operator import OperatorModule

__all__ = ["EvaluateModule", "OperatorModule"]
