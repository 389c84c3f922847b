"""What finished runs on flows past obstacles are asked: other obstacles, fewer and more points, and
the cost beside the lattice Boltzmann solver.

    python benchmarks/obstacles.py [RUN ...]     writes benchmarks/results/obstacles.json

RUN: folders of runs of one model on ``data=obstacles`` that differ in their seed; default: those of
the model with the least error in benchmarks/accuracy.py obstacles. Errors are nRMSE of latent
rollouts over all frames of the test set, the mean over seeds.

- Obstacles of other shapes, sizes and numbers than any of the training set, newly generated.
- The encoder gets half of the points of each flow, or twice as many new ones, from the solver's own
  first frame. The error is at the test set's points.
- The decoder is asked at four times as many points.
- The solver starts from its first fine frame, interpolated to coarser lattices, and is compared at
  the test set's points. It gets the longest steps of those tried whose error is within 2 % of the
  least; flows that diverge are solved again in smaller ones.

All seconds are those of one core. Break-even is the number of trajectories after which the solves
of the training set and the training have paid, against the solver at equal error. The time of a
training counts on every core of the machine.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import accuracy
import numpy as np
import torch
from pareto import beside_solver, break_even, spent
from runs import data_of, read, save, spread
from throughput import in_turn
from torch import Tensor

import ups
from ups.core.errors import UpsError
from ups.core.fields import Grid
from ups.core.points import Points
from ups.datamodules import PointCloudDataModule
from ups.datamodules.generate import map_with_progress
from ups.datamodules.obstacles import (
    Drawn,
    ObstacleFlows,
    draw_trajectory,
    pushed,
    solve_flow,
)
from ups.datamodules.point_clouds import padded
from ups.datamodules.point_sampling import NODE_TYPES, PointSampler, sample_points, signed_distance
from ups.datamodules.readers.point_clouds import Geometry
from ups.evaluation.metrics import RolloutMetrics
from ups.evaluation.wall_distance import errors_by_distance
from ups.physics.lattice_boltzmann import LATTICE_SPEED
from ups.simulation.simulator import Simulator

STUDY = accuracy.STUDIES["obstacles"]
BATCHES = (1, 8)
MORE_QUERIES = 4
# nodes along D, as parts of those of the data
COARSENESS = (0.25, 0.375, 0.5, 0.75, 1.0)
SPEEDS = (2 * LATTICE_SPEED, LATTICE_SPEED)
REPEATS = 3


class TestFlow(NamedTuple):
    """A flow of the test set, and the solver's fine solution at the time of the first frame.

    Args:
        drawn: its Reynolds number, obstacles and points.
        first: the fields (X, Y, 3) at the nodes of the data's lattice.
        seconds: the time that it took to solve.
    """

    drawn: Drawn
    first: Tensor
    seconds: float


def other_obstacles(flows: ObstacleFlows) -> dict[str, dict[str, Any]]:
    """Settings of flows that the training set has not, by what is special about them."""
    most, longest = flows.num_obstacles[1], flows.aspect_ratios[1]
    small, large = flows.diameters
    return {
        "more obstacles": {"num_obstacles": [most + 1, most + 2]},
        "longer ellipses": {"aspect_ratios": [1.25 * longest, 2 * longest]},
        "smaller obstacles": {"diameters": [0.6 * small, 0.9 * small]},
        "larger obstacles": {"diameters": [1.1 * large, 1.4 * large]},
    }


def with_flows(run: Path, data: PointCloudDataModule, changes: dict[str, Any]) -> Any:
    """Data of which the test set has other flows; its training set is not used."""
    sizes = {"num_train": 1, "num_validation": 1}
    return data_of(run, flows={**(data.hparams["flows"] or {}), **changes}, **sizes)


def predict(
    sim: Simulator,
    data: PointCloudDataModule,
    batch: int,
    u0: Tensor | None = None,
    x: Points | None = None,
) -> Tensor:
    """Rollouts (N, T, P, C) of the test set at its points, of ``batch`` flows at a time.

    Args:
        sim: the model.
        data: the flows.
        batch: number of flows that are rolled out together.
        u0: first frames (N, Q, C) at other points; default: those of the data.
        x: the points of ``u0``.
    """
    points, parameters = data.points["test"], data.parameters["test"]
    u0, x = (data.values["test"][:, 0], points) if u0 is None or x is None else (u0, x)
    parts = torch.arange(len(u0)).split(batch)
    return torch.cat(
        [
            sim.rollout(
                u0[i],
                data.num_frames - 1,
                nu=parameters[i, 0],
                x=x.select(i),
                x_out=None if x is points else points.select(i),
            )
            for i in parts
        ]
    )


def error(pred: Tensor, data: PointCloudDataModule, sim: Simulator) -> float:
    metrics = RolloutMetrics(pred.shape[1], sim.spec)
    metrics.update(pred, data.values["test"][:, 1:], data.points["test"].mask)
    return float(metrics.compute()["nrmse"])  # type: ignore[arg-type]  # one number


def node_distance(grid: Grid, drawn: Drawn) -> np.ndarray:
    """The distances (X, Y) of the nodes of a lattice to the nearest wall."""
    nodes = grid.positions().double().numpy()
    return signed_distance(nodes, drawn.obstacles, grid.extent[1])


def first_frame(flows: ObstacleFlows, drawn: Drawn) -> TestFlow:
    began = time.perf_counter()
    grid = flows.grid
    times = [flows.start_time]
    (flow,) = solve_flow(pushed(grid), times, drawn.reynolds, grid, drawn.obstacles)
    return TestFlow(drawn, flow.fields, time.perf_counter() - began)


def first_frames(flows: ObstacleFlows) -> list[TestFlow]:
    """The test set's flows at the time of their first frame."""
    drawn = [
        draw_trajectory(flows, np.random.default_rng(seed))
        for seed in flows.seeds[-flows.num_test :]
    ]
    solve = partial(first_frame, flows)
    return map_with_progress(solve, drawn, "solving the first frames", os.cpu_count())


def new_points(
    flows: ObstacleFlows, tests: Iterable[TestFlow], factor: int
) -> tuple[Tensor, Points]:
    """First frames (N, P, C) at ``factor`` times as many points as the test set's, newly drawn."""
    rng = np.random.default_rng(flows.seed)
    samples = []
    for drawn, first, _ in tests:
        n = factor * len(drawn.points.positions)
        new = sample_points(n, drawn.obstacles, flows.length, flows.height, rng)
        sample = PointSampler(flows.grid, new, node_distance(flows.grid, drawn))
        fields = torch.from_numpy(sample(first.numpy())).float()
        features = torch.from_numpy(new.features(len(NODE_TYPES)))
        samples.append((fields[None], torch.from_numpy(new.positions), features))
    u, points = padded(samples)
    return u[:, 0], points


def half(points: Points) -> Points:
    """The first half of each sample's points, which have no order."""
    rank = torch.arange(points.mask.shape[1])
    return replace(points, mask=points.mask & (rank < points.mask.sum(1, keepdim=True) / 2))


def errors(
    run: Path, sims: list[Simulator], data: PointCloudDataModule, tests: list[TestFlow]
) -> dict[str, Any]:
    """The errors on the test set, with fewer and more points, and on other flows."""
    doubled, double_points = new_points(data.flows, tests, 2)
    first, points = data.values["test"][:, 0], data.points["test"]
    # the data, the first frames if they are others, and their points
    cases: dict[str, tuple[PointCloudDataModule, Tensor | None, Points | None]] = {
        "test set": (data, None, None),
        "half the points": (data, first, half(points)),
        "twice the points": (data, doubled, double_points),
    }
    for name, changes in other_obstacles(data.flows).items():
        cases[name] = (with_flows(run, data, changes), None, None)
    found: dict[str, Any] = {}
    for name, (truth, u0, x) in cases.items():
        each = [error(predict(sim, truth, BATCHES[-1], u0, x), truth, sim) for sim in sims]
        found[name] = spread(each)
        found[name]["of_the_test_sets"] = found[name]["mean"] / found["test set"]["mean"]
        print(name, found[name], flush=True)
    return found


def by_distance(sim: Simulator, data: PointCloudDataModule) -> dict[str, Any] | None:
    """The error over the distance from the nearest wall, of all channels together."""
    pred, target = predict(sim, data, BATCHES[-1]), data.values["test"][:, 1:]
    found = errors_by_distance(pred, target, data.points["test"], sim.spec)
    if found is None:
        return None
    rmse = found.rmse.square().mean(1).sqrt()
    return {"distance": found.distance.tolist(), "rmse": rmse.tolist()}


def queries(
    sim: Simulator, data: PointCloudDataModule, tests: list[TestFlow]
) -> dict[str, dict[str, float]]:
    """Seconds of the maps and of a rollout of one flow that is asked at more points."""
    points = data.points["test"].unpadded(0)
    u0 = data.values["test"][:1, 0, data.points["test"].mask[0]]
    _, more = new_points(data.flows, tests[:1], MORE_QUERIES)
    parameters = data.parameters["test"][:1]
    z = sim.encode(u0, parameters, points)
    roll = partial(sim.rollout, u0, data.num_frames - 1, nu=parameters[0, 0].item(), x=points)
    calls: dict[str, Callable[[], Any]] = {
        "encode": lambda: sim.encode(u0, parameters, points),
        "step": lambda: sim.step(z, parameters),
        "decode": lambda: sim.decode(z, points),
        "decode at more points": lambda: sim.decode(z, more),
        "rollout": roll,
        "rollout at more points": partial(roll, x_out=more),
    }
    seconds = {name: statistics.median(each) for name, each in in_turn(calls, 3).items()}
    ratios = {
        name: seconds[f"{name} at more points"] / seconds[name] for name in ("decode", "rollout")
    }
    return {"seconds": seconds, "ratio": ratios}


def coarse_start(fine: Grid, grid: Grid, test: TestFlow) -> Tensor:
    """The first fine frame at the nodes of another lattice (X, Y, 3); zero within obstacles."""
    distance = node_distance(grid, test.drawn)
    is_fluid = distance > 0
    nodes = Geometry(
        grid.positions().numpy()[is_fluid],
        distance[is_fluid].astype(np.float32),
        np.zeros(int(is_fluid.sum()), np.uint8),
    )
    values = PointSampler(fine, nodes, node_distance(fine, test.drawn))(test.first.numpy())
    start = torch.zeros(*grid.shape, values.shape[-1])
    start[torch.from_numpy(is_fluid)] = torch.from_numpy(values).float()
    return start


def solve_coarse(
    flows: ObstacleFlows, resolution: int, speed: float, test: TestFlow
) -> tuple[Tensor, float]:
    """Frames (T, P, 3) at the test set's points of a solve with fewer nodes, and its seconds."""
    grid = replace(flows, resolution=resolution).grid
    reynolds, obstacles, points = test.drawn
    start = coarse_start(flows.grid, grid, test)
    sample = PointSampler(grid, points, node_distance(grid, test.drawn))
    times = [flows.dt * k for k in range(1, flows.num_frames)]
    began = time.perf_counter()
    flow = solve_flow(start, times, reynolds, grid, obstacles, (speed, speed / 2, speed / 4))
    frames = [torch.from_numpy(sample(each.fields.numpy())).float() for each in flow]
    return torch.stack(frames), time.perf_counter() - began


def solver_row(
    data: PointCloudDataModule, sim: Simulator, tests: list[TestFlow], resolution: int
) -> dict[str, Any] | None:
    """The solver with so many nodes along D; None if flows diverge."""
    tried: list[dict[str, Any]] = []
    for speed in SPEEDS:
        solve_coarse(data.flows, resolution, speed, tests[0])  # compiles, and warms up
        try:
            solved = [solve_coarse(data.flows, resolution, speed, test) for test in tests]
        except UpsError:
            continue
        pred = torch.zeros_like(data.values["test"][:, 1:])
        for own, (frames, _) in zip(pred, solved, strict=True):
            own[:, : frames.shape[1]] = frames
        each = statistics.mean(seconds for _, seconds in solved)
        row = {"name": f"solver-{resolution}", "lattice_speed": speed}
        seconds = {str(batch): each for batch in BATCHES}  # a batch is no faster
        tried.append({**row, "error": error(pred, data, sim), "seconds": seconds})
    if not tried:
        return None
    least = min(row["error"] for row in tried)
    return next(row for row in tried if row["error"] <= 1.02 * least)


def model_seconds(sim: Simulator, data: PointCloudDataModule) -> dict[str, float]:
    """Seconds a trajectory, by how many are rolled out together."""
    predict(sim, data, BATCHES[-1])
    found = {}
    for batch in BATCHES:
        each = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            predict(sim, data, batch)
            each.append((time.perf_counter() - began) / len(data.values["test"]))
        found[str(batch)] = statistics.median(each)
    return found


def costs(
    run: Path, sim: Simulator, data: PointCloudDataModule, tests: list[TestFlow], value: float
) -> dict[str, Any]:
    """The solver on coarser lattices beside a model with an error of ``value``."""
    solvers = []
    for share in COARSENESS:
        if row := solver_row(data, sim, tests, round(share * data.flows.resolution)):
            solvers.append(row)
            print(row, flush=True)
    row = {"error": value, "seconds": model_seconds(sim, data)}
    row |= beside_solver(row, solvers)
    finest = solvers[-1]["seconds"][str(BATCHES[0])]
    trajectory = statistics.mean(test.seconds for test in tests) + finest
    trained = data.flows.num_train + data.flows.num_validation
    spent_seconds = {"data": trained * trajectory, "training": (os.cpu_count() or 1) * spent(run)}
    return {
        **row,
        "solvers": solvers,
        "spent_seconds": spent_seconds,
        "break_even_trajectories": break_even(row, sum(spent_seconds.values())),
    }


def best_runs() -> list[Path]:
    """The runs of the study's best model."""
    models = read(STUDY.search.result)["models"]
    (length,) = STUDY.train_seconds
    tested = {m: each["summary"][length]["latent"]["nrmse"]["mean"] for m, each in models.items()}
    best = min(tested, key=lambda model: tested[model])
    return [
        STUDY.search.folder / accuracy.run_name(best, length, s)
        for s in models[best]["runs"][length]
    ]


def main(runs: list[Path]) -> None:
    torch.set_num_threads(1)
    data: Any = data_of(runs[0])  # flows at points
    sims = [ups.load(run) for run in runs]
    tests = first_frames(data.flows)
    with torch.no_grad():
        found = errors(runs[0], sims, data, tests)
        result = {
            "model": sims[0].model_config["name"],
            "runs": [str(run) for run in runs],
            "dataset": data.dataset,
            "errors": found,
            "by_distance": by_distance(sims[0], data),
            "queries": queries(sims[0], data, tests),
            "costs": costs(runs[0], sims[0], data, tests, found["test set"]["mean"]),
        }
    save("obstacles", result)
    print(result["queries"], result["costs"])


if __name__ == "__main__":
    main([Path(run) for run in sys.argv[1:]] or best_runs())
