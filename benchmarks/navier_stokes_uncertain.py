"""An uncertain future: ensembles of the solver and of models, by their number of members.

    python benchmarks/navier_stokes_uncertain.py [RUN ...]

The solver's ensemble starts from what is seen of the test trajectories of
``data=navier_stokes_uncertain``, with random waves of the training split's size for what is not.
RUN are folders of runs on these data; one trained with ``loss=crps`` is drawn from, any other makes
one forecast, whose CRPS is its mean absolute error. Without RUN the solver alone is measured.
Writes benchmarks/results/navier_stokes_uncertain.json.
"""

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from runs import data_of, save
from torch import Tensor

import ups
from ups.core.stepper import predict
from ups.datamodules import TrajectoryDataModule
from ups.datamodules.generate import Split
from ups.evaluation.baselines import RandomStart, SolverStepper
from ups.metrics import EnsembleMetrics, RolloutMetrics, calibrated_coverage
from ups.modules.evaluation import Predict
from ups.run import CONF

MEMBERS = (2, 4, 8, 16)
NUM_TRAJECTORIES = 64  # of the test split
BATCH = 16
SCORES = ("crps", "ensemble_nrmse", "spread_skill_ratio", "spread_skill_ratio_rms", "coverage_90")
BY_FRAME = ("crps", "ensemble_nrmse", "spread_skill_ratio")


def default_data() -> TrajectoryDataModule:
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", ["data=navier_stokes_uncertain", "data.cache_dir=outputs/data"])
    data: TrajectoryDataModule = instantiate(cfg.data, _convert_="all")
    data.prepare_data()
    data.setup()
    return data


def forecasts(
    data: TrajectoryDataModule, forecast: Predict, num: int, split: Split = "test"
) -> tuple[Tensor, float]:
    """Forecasts (num, B, T, *space, C) of trajectories, and the seconds of a single one."""
    u = data.values[split][:NUM_TRAJECTORIES]
    parts = u[:, 0].split(BATCH), data.parameters[split][: len(u)].split(BATCH)
    steps = u.shape[1] - 1
    forecast(parts[0][0], 1, parts[1][0])  # the first call is slower
    torch.manual_seed(0)
    started = time.perf_counter()
    drawn = [
        torch.stack([forecast(u0, steps, parameters) for _ in range(num)])
        for u0, parameters in zip(*parts, strict=True)
    ]
    return torch.cat(drawn, 1), (time.perf_counter() - started) / num / len(u)


def measure_ensemble(
    data: TrajectoryDataModule,
    forecast: Predict,
    numbers: Sequence[int] = MEMBERS,
    split: Split = "test",
) -> dict[str, Any]:
    """The scores of ensembles of so many members."""
    samples, seconds = forecasts(data, forecast, max(numbers), split)
    target = data.values[split][:NUM_TRAJECTORIES, 1:]
    found: dict[str, Any] = {"milliseconds_of_a_member": 1e3 * seconds, "members": {}}
    for members in numbers:
        metrics = EnsembleMetrics(target.shape[1], data.spec, members)
        metrics.update(samples[:members], target)
        scores = metrics.compute()
        found["members"][str(members)] = {
            **{name: scores[name].item() for name in SCORES},
            "calibrated_coverage": calibrated_coverage(members),
            "milliseconds": 1e3 * seconds * members,
            **{f"{key}_over_time": scores[f"{key}_by_frame"].mean(-1).tolist() for key in BY_FRAME},
        }
    return found


def measure_single(data: TrajectoryDataModule, forecast: Predict) -> dict[str, Any]:
    """One forecast: its CRPS is the mean absolute error, in standard deviations."""
    (pred,), seconds = forecasts(data, forecast, 1)
    target = data.values["test"][:NUM_TRAJECTORIES, 1:]
    metrics = RolloutMetrics(target.shape[1], data.spec)
    metrics.update(pred, target)
    crps = ((pred - target).abs() / torch.tensor(data.spec.std)).mean()
    nrmse = metrics.compute()["nrmse"]
    return {"crps": crps.item(), "nrmse": nrmse, "milliseconds": 1e3 * seconds}


def solvers_ensemble(data: TrajectoryDataModule) -> dict[str, Any]:
    """The scores of the solver from random fields for what is not seen."""
    assert data.observation is not None
    ensemble = RandomStart(solver_of(data), data.observation.draw_missing)
    return measure_ensemble(data, partial(predict, ensemble))


def solver_of(data: TrajectoryDataModule) -> SolverStepper:
    assert data.equation is not None
    return SolverStepper(data.equation, data.spec, data.spec.shape[0])


def main(runs: list[Path]) -> None:
    data = data_of(runs[0]) if runs else default_data()
    result: dict[str, Any] = {
        "dataset": data.dataset,
        "trajectories": min(NUM_TRAJECTORIES, len(data.values["test"])),
        "solver's ensemble": solvers_ensemble(data),
        "solver from what is seen": measure_single(data, partial(predict, solver_of(data))),
    }
    for run in runs:
        simulator = ups.load(run)
        if simulator.noise is not None:
            stepper = simulator.stepper(temperature=1.0)
            result[run.name] = measure_ensemble(data, partial(simulator.predict, stepper))
        result[f"{run.name}, one forecast"] = measure_single(
            data, partial(simulator.predict, simulator)
        )
    save("navier_stokes_uncertain", result)


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
