"""Metrics under their public names; see ``ups.evaluation.metrics`` and ``.ensembles``."""

from ups.evaluation.ensembles import (
    EnsembleMetrics,
    calibrated_coverage,
    coverage,
    distance_to_mean,
    energy_score,
    fair_crps,
    rank_histogram,
    spread_skill,
)
from ups.evaluation.metrics import (
    NAMES,
    PhysicsChecks,
    RolloutMetrics,
    energy_spectrum,
    pdebench_metrics,
)

__all__ = [
    "NAMES",
    "EnsembleMetrics",
    "PhysicsChecks",
    "RolloutMetrics",
    "calibrated_coverage",
    "coverage",
    "distance_to_mean",
    "energy_score",
    "energy_spectrum",
    "fair_crps",
    "pdebench_metrics",
    "rank_histogram",
    "spread_skill",
]
