"""How far one model reaches within the equation: viscosities it has not seen, finer and irregular
points, longer times.

    python benchmarks/generality.py RUN [RUN ...]     writes benchmarks/results/generality.json

RUN: runs of one model, one a seed, on the default data; the points and times are read off them. For
the viscosities a model a seed is trained here (in outputs/generality) on nu 0.001, 0.004, 0.01 and
0.04, 500 trajectories each, for as many steps as the default. It is tested on each of these, on
0.002 and 0.02, whose data it has not seen, and on 0.08, which is twice the largest.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from runs import SEEDS, data_of, save, side_by_side, spread

import ups
from ups.evaluation.metrics import pdebench_metrics
from ups.models.interpolation import interpolate
from ups.physics import burgers

OUT = Path("outputs/generality")
SEEN, UNSEEN = (0.001, 0.004, 0.01, 0.04), (0.002, 0.02, 0.08)


def viscosities() -> dict[str, Any]:
    settings = [
        f"output_dir={OUT}",
        "data.num_train=500",
        f"data.nu=[{','.join(map(str, SEEN))}]",
        "trainer.max_epochs=11",
        "stage.operator.module.num_cpu_shards=1",
    ]
    list(side_by_side([[*settings, f"name=nus-{seed}", f"seed={seed}"] for seed in SEEDS]))
    found: dict[str, Any] = {}
    for nu in (*SEEN, *UNSEEN):
        errors = [at_viscosity(OUT / f"nus-{seed}", nu) for seed in SEEDS]
        found[f"{nu:g}"] = {
            "seen": nu in SEEN,
            **spread([e["trajectory"] for e in errors]),
            "nrmse": spread([e["nrmse"] for e in errors]),
        }
    for nu in UNSEEN:
        below = [value for value in SEEN if value < nu][-1:]
        above = [value for value in SEEN if value > nu][:1]
        beside = [found[f"{value:g}"]["mean"] for value in (*below, *above)]
        found[f"{nu:g}"]["of_the_neighbors_mean"] = (
            found[f"{nu:g}"]["mean"] * len(beside) / sum(beside)
        )
    return found


def at_viscosity(run: Path, nu: float) -> dict[str, float]:
    """Errors of one run's latent rollouts on a test set at ``nu``: PDEBench's, of every frame
    relative to itself, and relative to the trajectory, |prediction - truth| / |truth| over x and t,
    which is finite where fields decay to nothing.
    """
    data = data_of(run, nu=nu, num_train=8, num_validation=2)
    u = data.values["test"]
    u = u[..., 0]
    pred = ups.load(run, data).rollout(u[:, 0], data.num_frames - 1, nu=nu)
    relative = (pred - u[:, 1:]).flatten(1).norm(dim=1) / u[:, 1:].flatten(1).norm(dim=1)
    return {
        "trajectory": relative.mean().item(),
        "nrmse": pdebench_metrics(pred, u[:, 1:])["nrmse"],
    }


@torch.no_grad()
def points_and_times(run: Path) -> dict[str, float]:
    """Errors of one run's latent rollouts on the test set's initial conditions, given and asked
    for in other ways.
    """
    data = data_of(run)
    sim, frames = ups.load(run, data), data.num_frames - 1
    ((nu,),) = data.training_parameters
    (points,) = data.spec.grid.shape
    (length,) = data.spec.grid.extent
    fine_x = burgers.cell_centers(data.hparams["reference_num_points"])
    u0 = burgers.initial_conditions(
        data.hparams["num_test"], fine_x, 3 * data.hparams["seed"] + 2
    )  # the test set's, at the solver's points
    t = [data.spec.dt * k for k in range(1, 2 * frames + 1)]
    fine = torch.cat([burgers.solve(part, t, nu) for part in u0.split(16)])
    every = len(fine_x) // points
    coarse0, coarse = u0[:, ::every], fine[:, :, ::every]

    def error(pred: torch.Tensor, target: torch.Tensor) -> float:
        return pdebench_metrics(pred, target)["nrmse"]

    generator = torch.Generator().manual_seed(0)
    some = torch.rand(points, generator=generator) < 0.8  # a fifth of the points is missing
    anywhere = torch.rand(len(fine_x), generator=generator).argsort()[
        :points
    ]  # as many points as the grid has, at random
    whole = sim.rollout(coarse0, 2 * frames, nu=nu)
    after = pdebench_metrics(whole[:, frames:], coarse[:, frames:])["nrmse"]
    at_fine = sim.rollout(coarse0, frames, nu=nu, x_out=fine_x)
    read = interpolate(coarse[:, :frames].flatten(0, 1), sim.x, fine_x, length).unflatten(
        0, (len(u0), frames)
    )
    return {
        "training grid": error(whole[:, :frames], coarse[:, :frames]),
        f"asked for at {len(fine_x)} points": error(at_fine, fine[:, :frames]),
        f"the true fields, read at {len(fine_x)} points": error(read, fine[:, :frames]),
        "a fifth of the points missing": error(
            sim.rollout(coarse0[:, some], frames, nu=nu, x=sim.x[some]), coarse[:, :frames]
        ),
        "given at random points": error(
            sim.rollout(u0[:, anywhere], frames, nu=nu, x=fine_x[anywhere]), coarse[:, :frames]
        ),
        "twice the trained horizon": error(whole, coarse),
        "its second half": after,
    }


def main(runs: list[Path]) -> None:
    each = [points_and_times(run) for run in runs]
    result: dict[str, Any] = {
        "points and times": {name: spread([found[name] for found in each]) for name in each[0]}
    }
    base = result["points and times"]["training grid"]["mean"]
    for name, found in result["points and times"].items():
        found["of_the_training_grid"] = found["mean"] / base
        print(
            f"{name}: {found['mean']:.4f}, {found['of_the_training_grid']:.2f} "
            "of the training grid's",
            flush=True,
        )
    save("generality", result)
    result["viscosities"] = viscosities()
    for nu, found in result["viscosities"].items():
        unseen = "" if found["seen"] else f"{found['of_the_neighbors_mean']:.2f} of its neighbors'"
        print(f"nu {nu}: {found['mean']:.4f}", unseen)
    save("generality", result)


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    main([Path(run) for run in sys.argv[1:]])
