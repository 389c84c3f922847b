"""Metrics under their public names; see ``ups.evaluation.metrics``."""

from ups.evaluation.metrics import (
    NAMES,
    PhysicsChecks,
    RolloutMetrics,
    energy_spectrum,
    pdebench_metrics,
    spread_skill,
)

__all__ = [
    "NAMES",
    "PhysicsChecks",
    "RolloutMetrics",
    "energy_spectrum",
    "pdebench_metrics",
    "spread_skill",
]
