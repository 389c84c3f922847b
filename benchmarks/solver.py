"""What the numerical solver costs, compiled and in torch, and what a model costs beside it, with
eager and with compiled steps.

    python benchmarks/solver.py [MODEL]     writes benchmarks/results/solver.json

Rollouts of 40 frames from PDEBench's published initial conditions at nu = 0.001, to the model's
grid; truth is the solver on four times the model's points. Everything is timed in turn, block by
block, so that the machine's drift meets all alike; times are medians over blocks. A whole rollout
is one call.
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from runs import over_threads, save
from torch import Tensor

import ups
from ups.core.fields import Grid
from ups.datamodules.generate import solve_all
from ups.evaluation.metrics import pdebench_metrics
from ups.physics import burgers
from ups.physics.periodic_1d import cell_averages, limited_linear_reconstruction
from ups.simulation.simulator import Simulator

FIELDS, STEPS, NU, DT, FINER, BLOCKS = 64, 40, 0.001, 0.05, 4, 7
TIMES = [DT * k for k in range(1, STEPS + 1)]
Rollout = Callable[[Tensor], Tensor]


def solver(u0: Tensor, points: int, solve: Callable[..., Tensor]) -> Tensor:
    factor = u0.shape[1] // points
    return limited_linear_reconstruction(solve(cell_averages(u0, factor)), factor)


def compiled(u0: Tensor) -> Tensor:
    return burgers.solve(u0, TIMES, NU, dtype=torch.float32)


def in_torch(u0: Tensor) -> Tensor:
    """The path of GPUs and gradients, with gradients."""
    return burgers.solve(u0.clone().requires_grad_(), TIMES, NU, dtype=torch.float32).detach()


def rollouts(sims: dict[str, Simulator], batch: int) -> dict[str, Rollout]:
    solve = compiled if batch == 1 else over_threads(compiled)
    found: dict[str, Rollout] = {
        name: partial(sim.rollout, steps=STEPS, nu=NU) for name, sim in sims.items()
    }
    for points in (32, 64, 128, 256):
        found[f"solver-{points}"] = partial(solver, points=points, solve=solve)
        found[f"solver-{points}, torch"] = partial(solver, points=points, solve=in_torch)
    return found


def milliseconds(u0: Tensor, each: dict[str, Rollout]) -> dict[str, float]:
    """The time a trajectory takes, by rollout."""
    seconds: dict[str, list[float]] = {name: [] for name in each}
    for block in range(BLOCKS + 1):  # the first is a warm-up
        for name, rollout in each.items():
            repeats = 1 if "torch" in name else 5
            started = time.perf_counter()
            for _ in range(repeats):
                rollout(u0)
            if block:
                seconds[name].append((time.perf_counter() - started) / repeats)
    return {name: 1000 * statistics.median(s) / len(u0) for name, s in seconds.items()}


def generation() -> dict[str, float]:
    """Trajectories a second at 1024 points in float64, as ``make train`` makes its data."""
    u0 = burgers.initial_conditions(500, burgers.cell_centers(1024), 0)[..., None]
    frames = [0.0, *TIMES]
    grid = Grid((1024,), (1.0,))
    started = time.perf_counter()
    solve_all(burgers.EQUATION, [u0], frames, [NU], grid, FINER)
    return {"trajectories_per_second": len(u0) / (time.perf_counter() - started)}


def main(model: str) -> None:
    sim = ups.load(model)
    sims = {"model": sim, "model, compiled": copy.deepcopy(sim)}
    sims["model, compiled"].compile()
    points = sim.spec.grid.shape[0]
    fine = burgers.initial_conditions(FIELDS, burgers.cell_centers(FINER * points), 10_001)
    truth = burgers.solve(fine.double(), [0.0, *TIMES], NU)[..., ::FINER].float()
    u0 = truth[:, 0]
    rows: dict[str, dict[str, Any]] = {
        name: {"nrmse": pdebench_metrics(rollout(u0), truth[:, 1:])["nrmse"]}
        for name, rollout in rollouts(sims, FIELDS).items()
    }
    for label, batch in (("one at a time", 1), (f"{FIELDS} at once", FIELDS)):
        for name, value in milliseconds(u0[:batch], rollouts(sims, batch)).items():
            rows[name][f"ms, {label}"] = value
    result = {"model": model, "rows": rows, "generation": generation()}
    save("solver", result)
    for name, row in rows.items():
        print(f"{name:20}", {key: round(value, 4) for key, value in row.items()})
    print(result["generation"])


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else "burgers-small")
