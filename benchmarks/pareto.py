"""Error against cost: the reference solver at 32 to 1024 points, and trained models in every mode
that they have.

    python benchmarks/pareto.py RUN [RUN ...]     writes benchmarks/results/pareto.json

RUN: folders of runs on the same data, those of benchmarks/accuracy.py among them. The error is the
rollout nRMSE over the test set. The cost is seconds a trajectory of all its frames on this machine,
for trajectories one at a time (what somebody waits who needs one) and 64 at once (throughput): the
median over blocks, in each of which every row is timed in turn, so that the machine's drift meets
all alike; with one thread or all of them, whichever is faster for the row.
The solver gets its best step size: the longest of CFL 0.4, 0.6, 0.8, 1 whose error is within 2 % of
the smallest. Break-even is the number of trajectories after which training has paid, against the
solver at equal error; training takes what the times of a run's files say, and of
benchmarks/accuracy.py's runs, which have one core, the time on two that gave them their number of
steps.
"""

import math
import statistics
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import accuracy
import torch
from runs import data_of, save, training_seconds
from throughput import in_turn
from torch import Tensor

import ups
from ups.datamodules import TrajectoryDataModule
from ups.evaluation.metrics import pdebench_metrics
from ups.evaluation.results import Row
from ups.physics import burgers
from ups.physics.periodic_1d import cell_averages, limited_linear_reconstruction

POINTS = (32, 64, 128, 256, 512, 1024)
CFLS = (0.4, 0.6, 0.8, 1.0)
BATCHES = (1, 64)
Rollout = Callable[[Tensor], Tensor]


def solver(points: int, cfl: float, data: TrajectoryDataModule, frames: int) -> Rollout:
    """The solver on a grid coarser or finer than the data's, which gives and takes fields on the
    data's.
    """
    ((nu,),) = data.training_parameters
    (length,) = data.spec.grid.extent
    t = [data.spec.dt * k for k in range(1, frames + 1)]

    def rollout(u0: Tensor) -> Tensor:
        own = u0.shape[-1]
        start = (
            cell_averages(u0, own // points)
            if points <= own
            else limited_linear_reconstruction(u0, points // own)
        )
        u = burgers.solve(start, t, nu, length, dtype=torch.float32, cfl=cfl)
        return (
            limited_linear_reconstruction(u, own // points)
            if points <= own
            else cell_averages(u, points // own)
        )

    return rollout


def error(rollout: Rollout, u: Tensor) -> float:
    torch.manual_seed(0)
    pred = torch.cat([rollout(part[:, 0]) for part in u.split(64)])
    return pdebench_metrics(pred, u[:, 1:])["nrmse"]


def add_seconds(rows: list[dict[str, Any]], rollouts: list[Rollout], u0: Tensor) -> None:
    """Seconds a trajectory to every row, in turn.

    Of trajectories that come one at a time the mean over 32.
    """
    every_thread = torch.get_num_threads()
    for batch in BATCHES:
        parts = u0[: max(32, batch)].split(batch)

        def all_parts(rollout: Rollout, threads: int, parts: tuple[Tensor, ...] = parts) -> None:
            torch.set_num_threads(threads)
            for part in parts:
                rollout(part)

        calls = {
            f"{k} {n}": partial(all_parts, rollout, n)
            for k, rollout in enumerate(rollouts)
            for n in {1, every_thread}
        }
        times = {
            name: statistics.median(seconds) / (len(parts) * batch)
            for name, seconds in in_turn(calls, 1).items()
        }
        for k, row in enumerate(rows):
            row.setdefault("seconds", {})[str(batch)] = min(
                times[f"{k} {n}"] for n in {1, every_thread}
            )
    torch.set_num_threads(every_thread)


def solver_rows(
    data: TrajectoryDataModule, u: Tensor
) -> tuple[list[dict[str, Any]], list[Rollout]]:
    rows, rollouts = [], []
    for points in POINTS:
        errors = {cfl: error(solver(points, cfl, data, u.shape[1] - 1), u) for cfl in CFLS}
        cfl = max(c for c in CFLS if errors[c] <= 1.02 * min(errors.values()))
        rollouts.append(solver(points, cfl, data, u.shape[1] - 1))
        rows.append({"name": f"solver-{points}", "cfl": cfl, "nrmse": errors[cfl]})
        print(rows[-1], flush=True)
    return rows, rollouts


def model_rows(
    run: Path, data: TrajectoryDataModule, u: Tensor
) -> tuple[list[dict[str, Any]], list[Rollout]]:
    sim, frames = ups.load(run, data), u.shape[1] - 1
    ways: list[dict[str, Any]] = [{"correct": name} for name in ("none", *sim.correctors)]
    ways += [{"correct": name, "ttc": True} for name in ("none", *sim.correctors) if sim.correctors]
    rows: list[dict[str, Any]] = []
    rollouts: list[Rollout] = []
    for way in ways:
        label = Row(
            sim.model_config["name"], "latent", way["correct"], way.get("ttc", False), {}
        ).label
        rollout = partial(sim.rollout, steps=frames, nu=data.training_parameters[0][0], **way)
        rollouts.append(rollout)
        rows.append({"name": label, "run": str(run), **way, "nrmse": error(rollout, u)})
        print(rows[-1], flush=True)
    return rows, rollouts


def at_equal_error(nrmse: float, solvers: list[dict[str, Any]], batch: str) -> float | None:
    """What the solver costs, in seconds, at an error of ``nrmse``: between two of its grids on
    straight lines in logarithms.
    """
    ordered = sorted(solvers, key=lambda row: row["nrmse"])
    for better, worse in pairwise(ordered):
        if better["nrmse"] <= nrmse <= worse["nrmse"]:
            share = math.log(nrmse / better["nrmse"]) / math.log(worse["nrmse"] / better["nrmse"])
            return better["seconds"][batch] ** (1 - share) * worse["seconds"][batch] ** share
    return None


def main(runs: list[Path]) -> None:
    data = data_of(runs[0])
    u = data.values["test"][..., 0]
    with torch.no_grad():
        solvers, rollouts = solver_rows(data, u)
        models = []
        for run in runs:
            rows, ways = model_rows(run, data, u)
            models += rows
            rollouts += ways
        add_seconds(solvers + models, rollouts, u[:, 0])
    for row in models:
        equal = {batch: at_equal_error(row["nrmse"], solvers, batch) for batch in row["seconds"]}
        row["solver_seconds_at_equal_error"] = equal
        row["times_faster_than_solver"] = {
            b: None if s is None else s / row["seconds"][b] for b, s in equal.items()
        }
        gain = {b: None if s is None else s - row["seconds"][b] for b, s in equal.items()}
        equal_time = Path(row["run"]).parent == accuracy.STUDIES["burgers"].folder
        seconds = row["training_seconds"] = (
            accuracy.train_seconds(Path(row["run"]))
            if equal_time
            else training_seconds(Path(row["run"]))
        )
        row["break_even_trajectories"] = {
            b: math.ceil(seconds / g) if g is not None and g > 0 else None for b, g in gain.items()
        }
    for row in solvers + models:
        print(
            f"{row['name']}: nRMSE {row['nrmse']:.4f}; "
            + ", ".join(f"{1e3 * s:.2f} ms at {b}" for b, s in row["seconds"].items())
        )
    save("pareto", {"dataset": data.dataset, "rows": solvers + models})


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    main([Path(run) for run in sys.argv[1:]])
