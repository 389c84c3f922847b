"""Error against cost: the numerical solver on several grids, and trained models in every mode that
they have.

    python benchmarks/pareto.py RUN [RUN ...]

RUN: folders of runs on the same data, those of benchmarks/accuracy.py among them; of runs that
differ in the number at the end of their names, their seed, the mean error counts, and of those
whose folder is gone the error that the JSON already has. Writes benchmarks/results/pareto.json for
Burgers, where the error is the rollout nRMSE over the test set. For Navier-Stokes it writes
pareto_navier_stokes.json: rollouts start from frame 10, the error is the relative L2 norm over
frames 11 to 20 together, as in the literature, and the truth is solved anew on 256 x 256 points;
beside it stands the rollout nRMSE from frame 0 of the run that is timed. Each model has a second
row, with the steps of its rollouts compiled.

The cost is seconds a trajectory of all its frames on this machine, for trajectories one at a time
(what somebody waits who needs one) and many at once (throughput): the median over blocks, in each
of which every row is timed in turn, so that the machine's drift meets all alike; with one thread or
all of them, whichever is faster for the row. The solver is compiled, shares a batch among the
threads, and gets its best step size: the longest of those tried whose error is within 2 % of the
smallest. What one thread takes is there as well. Break-even is the number of trajectories after
which training has paid, against the solver at equal error; training takes what the log of a run
says, and of benchmarks/accuracy.py's runs, which have one core, the time on two that gave them
their number of steps.
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
from runs import data_of, over_threads, read, save, spread, training_seconds
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


def forecasts(case: Case, rollout: Rollout, u: Tensor) -> Tensor:
    torch.manual_seed(0)
    return torch.cat([rollout(part[:, 0]) for part in u.split(case.at_once)])


def error(case: Case, rollout: Rollout, u: Tensor) -> float:
    return case.error(forecasts(case, rollout, u), u[:, 1:])


def from_first_frame(case: Case, rollout: Rollout, u: Tensor) -> dict[str, float]:
    """The rollout nRMSE from frame 0, where that is not the error itself."""
    if case.first == 0:
        return {}
    return {"rollout_nrmse": pdebench_metrics(forecasts(case, rollout, u), u[:, 1:])["nrmse"]}


def add_seconds(
    rows: list[dict[str, Any]], rollouts: list[Rollout], u0: Tensor, batches: Sequence[int]
) -> None:
    """Seconds a trajectory to every row, in turn: the fastest way, and with one thread.

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
            of_one = seconds[f"{k} 1"]
            row.setdefault("seconds_on_one_core", {})[str(batch)] = of_one
            row.setdefault("seconds", {})[str(batch)] = min(of_one, seconds[f"{k} {every_thread}"])
    torch.set_num_threads(every_thread)


def solver_rows(
    case: Case, data: TrajectoryDataModule, whole: Tensor
) -> tuple[list[dict[str, Any]], list[Rollout]]:
    rows, rollouts = [], []
    u = whole[:, case.first :]
    for points in case.points:
        each = {
            cfl: over_threads(case.solver(points, cfl, data, u.shape[1] - 1)) for cfl in case.cfls
        }
        errors = {cfl: error(case, rollout, u) for cfl, rollout in each.items()}
        cfl = max(c for c in case.cfls if errors[c] <= 1.02 * min(errors.values()))
        rollouts.append(each[cfl])
        from_start = over_threads(case.solver(points, cfl, data, whole.shape[1] - 1))
        rows.append(
            {
                "name": f"solver-{points}",
                "cfl": cfl,
                "error": errors[cfl],
                **from_first_frame(case, from_start, whole),
            }
        )
        print(rows[-1], flush=True)
    return rows, rollouts


def recorded_errors(case: Case, data: TrajectoryDataModule) -> dict[tuple[str, str], float]:
    """The errors in the JSON on the same test set, by the names of row and run."""
    earlier = read(case.result)
    if earlier.get("dataset") != data.dataset:
        return {}
    return {
        (row["name"], run): value
        for row in earlier["rows"]
        if "runs" in row
        for run, value in zip(row["runs"], row["errors"]["seeds"], strict=True)
    }


def model_rows(
    case: Case, runs: list[Path], data: TrajectoryDataModule, whole: Tensor
) -> tuple[list[dict[str, Any]], list[Rollout]]:
    """Of runs of one model: the errors of all, the cost of the first at hand, and of its compiled
    steps.
    """
    recorded = recorded_errors(case, data)
    sims = {run: ups.load(run, data) for run in runs if run.exists()}
    if not sims:
        sys.exit(
            f"none of {', '.join(map(str, runs))} is there, so that its cost can't be measured"
        )
    timed, sim = next(iter(sims.items()))
    u, nu = whole[:, case.first :], data.training_parameters[0][0]
    judged = {"steps": u.shape[1] - 1, "nu": nu}
    ways: list[dict[str, Any]] = [{"correct": name} for name in ("none", *sim.correctors)]
    ways += [{**way, "ttc": True} for way in ways if sim.correctors]
    rows: list[dict[str, Any]] = []
    rollouts: list[Rollout] = []
    for way in ways:
        name = Row(
            sim.model_config["name"], "latent", way["correct"], way.get("ttc", False), {}
        ).label
        each = {run: partial(sims[run].rollout, **judged, **way) for run in sims}
        errors = spread(
            [error(case, each[run], u) if run in sims else recorded[name, str(run)] for run in runs]
        )
        rollouts.append(each[timed])
        from_start = partial(sim.rollout, steps=whole.shape[1] - 1, nu=nu, **way)
        rows.append(
            {
                "name": name,
                "run": str(timed),
                **way,
                "error": errors["mean"],
                "errors": errors,
                "runs": [str(run) for run in runs],
                "trained_by": optimizer(timed),
                **from_first_frame(case, from_start, whole),
            }
        )
        print(rows[-1], flush=True)
    compiled = ups.load(timed, data)
    compiled.compile()
    # its fields differ from the first row's by rounding
    rows.append({**rows[0], "name": f"{rows[0]['name']}, compiled"})
    rollouts.append(partial(compiled.rollout, **judged))
    return rows, rollouts


def optimizer(run: Path) -> str:
    """The optimizer and the rate of a run's operator."""
    module = load_config(run / "config.yaml").stage.operator.module
    return f"{module.optimizer} {module.lr:g}"


def at_equal_error(
    value: float, solvers: list[dict[str, Any]], seconds: str, batch: str
) -> float | None:
    """What the solver costs, in ``seconds`` of its rows, at an error of ``value``: between two of
    its grids on straight lines in logarithms.
    """
    ordered = sorted(solvers, key=lambda row: row["error"])
    for better, worse in pairwise(ordered):
        if better["error"] <= value <= worse["error"]:
            share = math.log(value / better["error"]) / math.log(worse["error"] / better["error"])
            return better[seconds][batch] ** (1 - share) * worse[seconds][batch] ** share
    return None


def beside_solver(
    row: dict[str, Any], solvers: list[dict[str, Any]], seconds: str = "seconds"
) -> dict[str, Any]:
    """What the solver costs at the error of a model's row, and how many times the model's cost."""
    equal = {b: at_equal_error(row["error"], solvers, seconds, b) for b in row[seconds]}
    faster = {b: None if s is None else s / row[seconds][b] for b, s in equal.items()}
    return {
        f"solver_{seconds}_at_equal_error": equal,
        seconds.replace("seconds", "times_faster_than_solver"): faster,
    }


def break_even(row: dict[str, Any], spent_seconds: float) -> dict[str, int | None]:
    """The number of trajectories after which so many seconds have paid."""
    equal = row["solver_seconds_at_equal_error"]
    gain = {b: None if s is None else s - row["seconds"][b] for b, s in equal.items()}
    return {b: math.ceil(spent_seconds / g) if g and g > 0 else None for b, g in gain.items()}


def main(runs: list[Path]) -> None:
    torch._dynamo.config.recompile_limit = 64  # models, sizes of batches and numbers of threads
    at_hand = next((run for run in runs if run.exists()), None)
    if at_hand is None:
        sys.exit("none of these runs is there")
    data = data_of(at_hand)
    case = CASES[data.hparams["equation"]]
    whole = data_of(at_hand, **case.truth).values["test"][..., 0]
    with torch.no_grad():
        solvers, rollouts = solver_rows(case, data, whole)
        models = []
        for _, seeds in groupby(runs, lambda run: re.sub(r"-\d+$", "", str(run))):
            rows, ways = model_rows(case, list(seeds), data, whole)
            models += rows
            rollouts += ways
        add_seconds(solvers + models, rollouts, whole[:, case.first], (1, case.at_once))
    for row in models:
        row |= beside_solver(row, solvers) | beside_solver(row, solvers, "seconds_on_one_core")
        row["training_seconds"] = spent(Path(row["run"]))
        row["break_even_trajectories"] = break_even(row, row["training_seconds"])
    for row in solvers + models:
        print(
            f"{row['name']}: error {row['error']:.4f}; "
            + ", ".join(f"{1e3 * s:.2f} ms at {b}" for b, s in row["seconds"].items())
        )
    save(case.result, {"dataset": data.dataset, "rows": solvers + models})


def spent(run: Path) -> float:
    """The time that training a run took on the whole machine."""
    at_equal_time = run.parent in [study.search.folder for study in accuracy.STUDIES.values()]
    return accuracy.train_seconds(run) if at_equal_time else training_seconds(run)


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    main([Path(run) for run in sys.argv[1:]])
