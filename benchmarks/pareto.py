"""Error against cost: the numerical solver on several grids, and trained models in every mode that
they have.

    python benchmarks/pareto.py RUN [RUN ...]

RUN: folders of runs on the same data, those of benchmarks/accuracy.py among them; of runs that
differ in the number at the end of their names, their seed, the mean error counts. Writes
benchmarks/results/pareto.json for Burgers, where the error is the rollout nRMSE over the test set.
For Navier-Stokes it writes pareto_navier_stokes.json: rollouts start from frame 10, the error is
the relative L2 norm over frames 11 to 20 together, as in the literature, and the truth is solved
anew on 256 x 256 points. Models that were trained with compile=true have a second row, with the
steps of their rollouts compiled.

The cost is seconds a trajectory of all its frames on this machine, for trajectories one at a time
(what somebody waits who needs one) and many at once (throughput): the median over blocks, in each
of which every row is timed in turn, so that the machine's drift meets all alike; with one thread or
all of them, whichever is faster for the row. The solver is compiled, shares a batch among the
threads, and gets its best step size: the longest of those tried whose error is within 2 % of the
smallest. Break-even is the number of trajectories after which training has paid, against the solver
at equal error; training takes what the times of a run's files say, and of benchmarks/accuracy.py's
runs, which have one core, the time on two that gave them their number of steps.
"""

import math
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import accuracy
import torch
from runs import data_of, over_threads, save, spread, training_seconds
from throughput import in_turn
from torch import Tensor

import ups
from ups.core.renamed_keys import load_config
from ups.datamodules import TrajectoryDataModule
from ups.evaluation.metrics import pdebench_metrics
from ups.evaluation.results import Row
from ups.physics import burgers, navier_stokes
from ups.physics.periodic_1d import cell_averages, limited_linear_reconstruction

Rollout = Callable[[Tensor], Tensor]
# of an equation: the number of its points along an axis, its CFL number, the data, the frames
Solver = Callable[[int, float, TrajectoryDataModule, int], Rollout]


class Case(NamedTuple):
    """How rollouts of an equation are judged.

    Args:
        solver: makes its rollouts, of fields on the data's grid.
        points: the solver's grids, points along an axis.
        cfls: the solver's steps to try, in cells.
        truth: settings of the data of which the test split is the truth.
        first: the frame that rollouts start from.
        error: the error of predictions and truth (B, T, *space).
        at_once: the number of trajectories in a large batch.
        result: the name of the JSON.
    """

    solver: Solver
    points: tuple[int, ...]
    cfls: tuple[float, ...]
    truth: dict[str, int]
    first: int
    error: Callable[[Tensor, Tensor], float]
    at_once: int
    result: str


def times(data: TrajectoryDataModule, frames: int) -> list[float]:
    return [data.spec.dt * k for k in range(1, frames + 1)]


def burgers_solver(points: int, cfl: float, data: TrajectoryDataModule, frames: int) -> Rollout:
    ((nu,),) = data.training_parameters
    (length,) = data.spec.grid.extent

    def rollout(u0: Tensor) -> Tensor:
        own = u0.shape[-1]
        start = (
            cell_averages(u0, own // points)
            if points <= own
            else limited_linear_reconstruction(u0, points // own)
        )
        u = burgers.solve(start, times(data, frames), nu, length, dtype=torch.float32, cfl=cfl)
        return (
            limited_linear_reconstruction(u, own // points)
            if points <= own
            else cell_averages(u, points // own)
        )

    return rollout


def navier_stokes_solver(
    points: int, cfl: float, data: TrajectoryDataModule, frames: int
) -> Rollout:
    ((nu,),) = data.training_parameters

    def rollout(u0: Tensor) -> Tensor:
        start = navier_stokes.resample(u0, points)
        w = navier_stokes.solve(start, times(data, frames), nu, dtype=torch.float32, cfl=cfl)
        return navier_stokes.resample(w, u0.shape[-1])

    return rollout


def joint_relative_l2(pred: Tensor, u: Tensor) -> float:
    """Of all frames of a trajectory together, the mean over trajectories."""
    return float(((pred - u).flatten(1).norm(dim=1) / u.flatten(1).norm(dim=1)).mean())


CASES = {
    "burgers": Case(
        burgers_solver,
        (32, 64, 128, 256, 512, 1024),
        (0.4, 0.6, 0.8, 1.0),
        {},
        0,
        lambda pred, u: pdebench_metrics(pred, u)["nrmse"],
        64,
        "pareto",
    ),
    "navier_stokes": Case(
        navier_stokes_solver,
        (24, 32, 40, 48, 64, 96, 128),
        (1.2, 1.5, 1.8),  # at 2.2 it is unstable
        {"reference_num_points": 256, "num_train": 2, "num_validation": 2},
        10,
        joint_relative_l2,
        16,
        "pareto_navier_stokes",
    ),
}


def error(case: Case, rollout: Rollout, u: Tensor) -> float:
    torch.manual_seed(0)
    pred = torch.cat([rollout(part[:, 0]) for part in u.split(case.at_once)])
    return case.error(pred, u[:, 1:])


def add_seconds(
    rows: list[dict[str, Any]], rollouts: list[Rollout], u0: Tensor, batches: Sequence[int]
) -> None:
    """Seconds a trajectory to every row, in turn.

    Of trajectories that come one at a time the mean over 16.
    """
    every_thread = torch.get_num_threads()
    for batch in batches:
        parts = u0[: max(16, batch)].split(batch)

        def all_parts(rollout: Rollout, threads: int, parts: tuple[Tensor, ...] = parts) -> None:
            torch.set_num_threads(threads)
            for part in parts:
                rollout(part)

        calls = {
            f"{k} {n}": partial(all_parts, rollout, n)
            for k, rollout in enumerate(rollouts)
            for n in {1, every_thread}
        }
        seconds = {
            name: statistics.median(each) / (len(parts) * batch)
            for name, each in in_turn(calls, 1).items()
        }
        for k, row in enumerate(rows):
            row.setdefault("seconds", {})[str(batch)] = min(
                seconds[f"{k} {n}"] for n in {1, every_thread}
            )
    torch.set_num_threads(every_thread)


def solver_rows(
    case: Case, data: TrajectoryDataModule, u: Tensor
) -> tuple[list[dict[str, Any]], list[Rollout]]:
    rows, rollouts = [], []
    for points in case.points:
        each = {
            cfl: over_threads(case.solver(points, cfl, data, u.shape[1] - 1)) for cfl in case.cfls
        }
        errors = {cfl: error(case, rollout, u) for cfl, rollout in each.items()}
        cfl = max(c for c in case.cfls if errors[c] <= 1.02 * min(errors.values()))
        rollouts.append(each[cfl])
        rows.append({"name": f"solver-{points}", "cfl": cfl, "error": errors[cfl]})
        print(rows[-1], flush=True)
    return rows, rollouts


def model_rows(
    case: Case, seeds: list[Path], data: TrajectoryDataModule, u: Tensor
) -> tuple[list[dict[str, Any]], list[Rollout]]:
    """Of runs of one model: the errors of all, the cost of the first, and of its compiled steps."""
    sims, frames = [ups.load(run, data) for run in seeds], u.shape[1] - 1
    correctors = sims[0].correctors
    ways: list[dict[str, Any]] = [{"correct": name} for name in ("none", *correctors)]
    ways += [{"correct": name, "ttc": True} for name in ("none", *correctors) if correctors]
    rows: list[dict[str, Any]] = []
    rollouts: list[Rollout] = []
    for way in ways:
        label = Row(
            sims[0].model_config["name"], "latent", way["correct"], way.get("ttc", False), {}
        ).label
        each = [
            partial(sim.rollout, steps=frames, nu=data.training_parameters[0][0], **way)
            for sim in sims
        ]
        errors = spread([error(case, rollout, u) for rollout in each])
        rollouts.append(each[0])
        rows.append(
            {
                "name": label,
                "run": str(seeds[0]),
                **way,
                "error": errors["mean"],
                "errors": errors,
            }
        )
        print(rows[-1], flush=True)
    if load_config(seeds[0] / "config.yaml").compile:
        compiled = ups.load(seeds[0], data)
        compiled.compile()
        # its fields differ from the first row's by rounding
        rows.append({**rows[0], "name": f"{rows[0]['name']}, compiled"})
        rollouts.append(partial(compiled.rollout, steps=frames, nu=data.training_parameters[0][0]))
    return rows, rollouts


def at_equal_error(value: float, solvers: list[dict[str, Any]], batch: str) -> float | None:
    """What the solver costs, in seconds, at an error of ``value``: between two of its grids on
    straight lines in logarithms.
    """
    ordered = sorted(solvers, key=lambda row: row["error"])
    for better, worse in pairwise(ordered):
        if better["error"] <= value <= worse["error"]:
            share = math.log(value / better["error"]) / math.log(worse["error"] / better["error"])
            return better["seconds"][batch] ** (1 - share) * worse["seconds"][batch] ** share
    return None


def main(runs: list[Path]) -> None:
    torch._dynamo.config.recompile_limit = 64  # models, sizes of batches and numbers of threads
    data = data_of(runs[0])
    case = CASES[data.hparams["equation"]]
    u = data_of(runs[0], **case.truth).values["test"][:, case.first :, ..., 0]
    with torch.no_grad():
        solvers, rollouts = solver_rows(case, data, u)
        models = []
        for _, seeds in groupby(runs, lambda run: re.sub(r"-\d+$", "", str(run))):
            rows, ways = model_rows(case, list(seeds), data, u)
            models += rows
            rollouts += ways
        add_seconds(solvers + models, rollouts, u[:, 0], (1, case.at_once))
    for row in models:
        equal = {batch: at_equal_error(row["error"], solvers, batch) for batch in row["seconds"]}
        row["solver_seconds_at_equal_error"] = equal
        row["times_faster_than_solver"] = {
            b: None if s is None else s / row["seconds"][b] for b, s in equal.items()
        }
        gain = {b: None if s is None else s - row["seconds"][b] for b, s in equal.items()}
        seconds = row["training_seconds"] = spent(Path(row["run"]))
        row["break_even_trajectories"] = {
            b: math.ceil(seconds / g) if g is not None and g > 0 else None for b, g in gain.items()
        }
    for row in solvers + models:
        print(
            f"{row['name']}: error {row['error']:.4f}; "
            + ", ".join(f"{1e3 * s:.2f} ms at {b}" for b, s in row["seconds"].items())
        )
    save(case.result, {"dataset": data.dataset, "rows": solvers + models})


def spent(run: Path) -> float:
    """The time that training a run took on the whole machine."""
    at_equal_time = run.parent in [study.folder for study in accuracy.STUDIES.values()]
    return accuracy.train_seconds(run) if at_equal_time else training_seconds(run)


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    main([Path(run) for run in sys.argv[1:]])
