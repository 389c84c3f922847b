"""Forecasts from scattered, noisy readings of a flow: by a model, and by an ensemble Kalman filter
with the solver, at equal time.

    python benchmarks/readings.py [TRAJECTORIES [MODEL]]

By default 8 trajectories and navier-stokes-small; MODEL is what ``ups.load`` takes. Read are 64 or
256 random points of the frames 1 to 10 of Navier-Stokes at nu = 1e-5, with noise of 5 % of the
field's standard deviation. Frame 0 is unknown; both ways know the 1000 first frames of the training
data. The forecast goes to frame 20. The model's most probable state is found by
``Simulator.assimilate``. The filter has as many members as take the same time, and its forecast is
their mean; its solver has the 64 x 64 points of the data, whose truth was solved on 128 x 128.
Settings of both are chosen on validation trajectories, by the error at frame 10. Times are those of
one core. What is finished is not repeated. Writes benchmarks/results/readings.json.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from kalman import Filter, forecast
from runs import SEEDS, read, save
from torch import Tensor

import ups
from ups.core.fields import Grid
from ups.core.norms import relative_l2_squared
from ups.datamodules import TrajectoryDataModule
from ups.models.interpolation import interpolate_on_grid
from ups.physics import navier_stokes
from ups.simulation.simulator import Simulator

NAME = "readings"
NU, UNITS, NOISE = 1e-5, 10, 0.05
NUM_POINTS = (64, 256)
TRIAL_TRAJECTORIES, TRIAL_MEMBERS = 3, 24
ITERATIONS = (40, 60, 80)
FILTERS = [Filter(*each) for each in product((0.3, 0.6, 1.2), (1.0, 1.1), (False, True))]
Found = tuple[Tensor, Tensor, float]  # frames 10 and 20 (B, X, X), seconds a trajectory


def main(trajectories: str = "8", model: str = "navier-stokes-small") -> None:
    torch.set_num_threads(1)
    num_trajectories = int(trajectories)
    sim: Simulator = ups.load(model)
    data = TrajectoryDataModule(
        equation="navier_stokes",
        nu=NU,
        num_points=64,
        reference_num_points=128,
        dt=1.0,
        num_frames=2 * UNITS + 1,
        num_test=200,
    )
    data.prepare_data()
    data.setup()
    assert data.train_values is not None  # they are in memory
    background = torch.from_numpy(data.train_values[:, 0, ..., 0])
    forecast(background[:1], 1, NU)  # compiles
    about = {"trajectories": num_trajectories, "model": Path(model).name}
    result = read(NAME)
    if {key: result.get(key) for key in about} != about:
        result = {**about, "points": {}}
    trials = data.values["validation"][:TRIAL_TRAJECTORIES, ..., 0]
    truth = data.values["test"][:num_trajectories, ..., 0]
    for seed, points in product(SEEDS, NUM_POINTS):
        found = result["points"].setdefault(str(points), {"trials": {}, "seeds": {}})
        choose(found["trials"], sim, background, trials, points, lambda: save(NAME, result))
        if str(seed) not in found["seeds"]:
            found["seeds"][str(seed)] = compare(
                sim, background, truth, points, seed, found["trials"]
            )
            save(NAME, result)
            print(points, seed, found["seeds"][str(seed)], flush=True)


def observe(sim: Simulator, u: Tensor, points: int, seed: int) -> tuple[Tensor, Tensor, float]:
    """Readings (B, UNITS, P) of trajectories (B, T, X, X), their positions (P, 2) and noise."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(points, 2, generator=generator)
    # four times as many points: interpolation between them has no error that matters
    fine = navier_stokes.resample(u[:, 1 : UNITS + 1], 4 * u.shape[-1])
    grid = Grid(tuple(fine.shape[-2:]), (1.0, 1.0), origin=(0.0, 0.0))
    exact = interpolate_on_grid(fine.flatten(0, 1)[..., None], grid, positions)
    exact = exact.view(len(u), UNITS, points)
    noise = NOISE * sim.spec.std[0]
    return exact + noise * torch.randn(exact.shape, generator=generator), positions, noise


def by_model(
    sim: Simulator,
    background: Tensor,
    observed: tuple[Tensor, Tensor, float],
    iterations: int,
) -> Found:
    readings, positions, noise = observed
    began = time.process_time()
    analysis = sim.assimilate(
        readings,
        positions,
        range(1, UNITS + 1),
        background=background,
        noise=noise,
        nu=NU,
        iterations=iterations,
    )
    last = analysis.rollout(UNITS)[:, -1]
    seconds = (time.process_time() - began) / len(readings)
    return analysis.fields()[:, -1], last, seconds


def by_filter(
    settings: Filter,
    background: Tensor,
    observed: tuple[Tensor, Tensor, float],
    num_members: int,
    forecasts: bool = True,
) -> Found:
    """The mean of the members, of one trajectory after the other."""
    readings, positions, noise = observed
    torch.manual_seed(0)
    began = time.process_time()
    analyses, lasts = [], []
    for values in readings:
        members = background[torch.randperm(len(background))[:num_members]]
        members = settings.run(members, values, positions, noise, NU)
        analyses.append(members.mean(0))
        last = forecast(members, UNITS, NU)[:, -1] if forecasts else members
        lasts.append(last.mean(0))
    seconds = (time.process_time() - began) / len(readings)
    return torch.stack(analyses), torch.stack(lasts), seconds


def error(u: Tensor, truth: Tensor) -> list[float]:
    """nRMSE of each of fields (B, X, X)."""
    squares = relative_l2_squared(u[..., None], truth[..., None], (-3, -2))
    errors: list[float] = squares.sqrt().tolist()
    return errors


def mean_error(u: Tensor, truth: Tensor) -> float:
    errors = error(u, truth)
    return sum(errors) / len(errors)


def choose(
    trials: dict[str, Any],
    sim: Simulator,
    background: Tensor,
    u: Tensor,
    points: int,
    keep: Callable[[], None],
) -> None:
    """Try all settings on validation trajectories; adds [error at frame 10, settings]."""
    observed = observe(sim, u, points, seed=100)
    ways: list[tuple[str, Callable[[], Found], dict[str, Any]]] = []
    by: Callable[[], Found]
    for iterations in ITERATIONS:
        by = partial(by_model, sim, background, observed, iterations)
        ways.append((f"model, {iterations} iterations", by, {"iterations": iterations}))
    for each in FILTERS:
        by = partial(by_filter, each, background, observed, TRIAL_MEMBERS, forecasts=False)
        ways.append((f"filter, {each}", by, asdict(each)))
    for name, by, settings in ways:
        if name not in trials:
            trials[name] = [mean_error(by()[0], u[:, UNITS]), settings]
            print(name, trials[name][0], flush=True)
            keep()


def best(trials: dict[str, Any], way: str) -> dict[str, Any]:
    """The settings of the smallest error."""
    tried = [trial for name, trial in trials.items() if name.startswith(way)]
    settings: dict[str, Any] = min(tried, key=lambda trial: trial[0])[1]
    return settings


def compare(
    sim: Simulator, background: Tensor, u: Tensor, points: int, seed: int, trials: dict[str, Any]
) -> dict[str, Any]:
    """Errors and times of both ways on trajectories (B, T, X, X)."""
    observed = observe(sim, u, points, seed)
    found = {"model": by_model(sim, background, observed, **best(trials, "model"))}
    settings = Filter(**best(trials, "filter"))
    readings, positions, noise = observed
    one = (readings[:1], positions, noise)
    member_seconds = by_filter(settings, background, one, TRIAL_MEMBERS)[2] / TRIAL_MEMBERS
    members = max(2, round(found["model"][2] / member_seconds))
    found["filter"] = by_filter(settings, background, observed, members)
    rows: dict[str, Any] = {
        name: {
            "frame 10": error(middle, u[:, UNITS]),
            "frame 20": error(last, u[:, 2 * UNITS]),
            "seconds": seconds,
        }
        for name, (middle, last, seconds) in found.items()
    }
    rows["filter"]["members"] = members
    rows["from the true frame 0"] = {
        name: {
            "frame 10": error(w[:, UNITS - 1], u[:, UNITS]),
            "frame 20": error(w[:, -1], u[:, -1]),
        }
        for name, w in (
            ("model", sim.rollout(u[:, 0], 2 * UNITS, nu=NU)),
            ("solver", forecast(u[:, 0], 2 * UNITS, NU)),
        )
    }
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
