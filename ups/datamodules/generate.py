"""Generate trajectories of an equation by its solver, as a file of PDEBench's 1D layout."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypedDict

import h5py
import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.fields import Grid
from ups.core.io import atomic_write
from ups.datamodules.readers.pdebench import digest
from ups.physics import Equation

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Recipe(TypedDict):
    """Everything that determines the content of a generated file; see ``TrajectoryDataModule``.

    The keys are hashed into the names of files and written into them, so a change of a word makes
    all data again. In version 2 each trajectory takes its own steps (in version 1 the fastest of a
    group set them for all), and initial conditions have a name.
    """

    equation: str | None
    version: int
    initial_conditions: str
    nu: float
    seed: int
    points: int
    solver_points: int
    dt: float
    frames: int
    train: int
    validation: int
    test: int


def generate(equation: Equation, recipe: Recipe, path: Path) -> None:
    """Generate a file, each split from its own seed.

    The test set therefore does not depend on the sizes of the other splits.

    Args:
        equation: the equation.
        recipe: everything that determines the content of the file.
        path: the file.
    """
    keep = recipe["solver_points"] // recipe["points"]
    grid = Grid((recipe["solver_points"],), (1.0,))
    draw = equation.initial_conditions[recipe["initial_conditions"]]
    u0 = [draw(recipe[split], grid, 3 * recipe["seed"] + i) for i, split in enumerate(SPLITS)]
    times = np.arange(recipe["frames"]) * recipe["dt"]
    values = solve_all(equation, u0, times.tolist(), [recipe["nu"]], grid, keep)
    with (
        atomic_write(path) as temporary,
        h5py.File(temporary, "w", locking="best-effort") as file,
    ):
        file["tensor"] = values[..., 0].numpy()
        file["x-coordinate"] = grid.axis(0)[::keep].numpy()
        file["t-coordinate"] = (np.arange(recipe["frames"] + 1) * recipe["dt"]).astype(np.float32)
        for name in equation.parameters:
            file.attrs[name] = recipe["nu"]
        file.attrs["recipe"] = json.dumps(recipe)
        file.attrs["hash"] = digest([values.numpy()])


def short_hash(recipe: Mapping[str, object]) -> str:
    """A short hash of a recipe, for the name of its file."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]


def solve_all(
    equation: Equation,
    u0: Sequence[Tensor],
    times: Sequence[float],
    parameters: Sequence[float],
    grid: Grid,
    keep: int,
) -> Tensor:
    """Solve the initial conditions of all splits, on the GPU if there is one.

    They are solved in groups, on a CPU by one thread for each core. A group holds fields of one
    split, so that splits don't depend on each other, however an equation solves a batch.

    Args:
        equation: the equation.
        u0: initial conditions (N_i, *space, C) of each split.
        times: times (T,).
        parameters: the parameters (P,).
        grid: the grid of the solver.
        keep: keep every ``keep``-th point of each axis.

    Returns:
        Fields (sum of N_i, T, *space / keep, C).
    """
    if equation.solve is None:
        raise UpsError(f"the equation {equation.name} has no solve to generate data with.")
    solver = equation.solve
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = 16 if device.type == "cpu" else 512
    every_keep = (slice(None), slice(None), *(slice(None, None, keep) for _ in grid.shape))

    def solve(group: Tensor) -> Tensor:
        frames = solver(group.to(device), times, parameters, grid, torch.float64)
        return frames[every_keep].cpu()

    groups = [group for split in u0 for group in split.split(size)]
    return torch.cat(_map_with_progress(solve, groups, _task(equation, parameters, grid), device))


def _task(equation: Equation, parameters: Sequence[float], grid: Grid) -> str:
    """The text of the progress bar."""
    values = zip(equation.parameters, parameters, strict=True)
    points = " x ".join(map(str, grid.shape))
    return (
        f"solving for {', '.join(f'{name} {value:g}' for name, value in values)}, {points} points"
    )


def _map_with_progress(
    solve: Callable[[Tensor], Tensor], groups: Sequence[Tensor], task: str, device: torch.device
) -> list[Tensor]:
    """Solve groups in parallel threads, with a progress bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    threads = os.cpu_count() if device.type == "cpu" else 1
    with Progress(*columns) as progress, ThreadPoolExecutor(threads) as pool:
        bar = progress.add_task(task, total=sum(map(len, groups)))
        done = []
        try:
            for solved in pool.map(solve, groups):
                done.append(solved)
                progress.advance(bar, len(solved))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # a signal ends the call now, not after all groups
            raise
    return done
