"""Generate trajectories of an equation by its solver, as a file of PDEBench's layout.

Until the file is whole, what is solved is kept in parts, with which a repeated call continues.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Literal, NotRequired, TypedDict, TypeVar

import h5py
import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.fields import Grid
from ups.core.io import atomic_write
from ups.datamodules.readers.axes import SPACE
from ups.datamodules.readers.pdebench import digest
from ups.physics import Equation

# fields of LINE points that are solved in one call; of larger ones as many points
GROUP, GPU_GROUP = 16, 512
LINE = 1024
Item = TypeVar("Item")
Result = TypeVar("Result")
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Recipe(TypedDict):
    """Everything that determines the content of a generated file; see ``TrajectoryDataModule``.

    The keys are hashed into the names of files and written into them, so a change of a word makes
    all data again. In version 2 each trajectory takes its own steps (in version 1 the fastest of a
    group set them for all), and initial conditions have a name. ``start_time`` is there only if it
    is not 0, so that older data keep their names.
    """

    equation: str | None
    version: int
    initial_conditions: str
    nu: float | None
    seed: int
    points: int
    solver_points: int
    dt: float
    frames: int
    train: int
    validation: int
    test: int
    start_time: NotRequired[float]


def generate(equation: Equation, recipe: Recipe, path: Path) -> None:
    """Generate a file, each split from its own seed.

    The test set therefore does not depend on the sizes of the other splits.

    Args:
        equation: the equation.
        recipe: everything that determines the content of the file.
        path: the file.
    """
    keep = recipe["solver_points"] // recipe["points"]
    grid = equation.grid(recipe["solver_points"])
    parameters = [] if recipe["nu"] is None else [recipe["nu"]]
    draw = equation.initial_conditions[recipe["initial_conditions"]]
    u0 = [draw(recipe[split], grid, 3 * recipe["seed"] + i) for i, split in enumerate(SPLITS)]
    start = recipe.get("start_time", 0.0)
    times = (start + np.arange(recipe["frames"]) * recipe["dt"]).tolist()
    folder = path.with_suffix(".parts")
    folder.mkdir(exist_ok=True)
    values = solve_all(equation, u0, times, parameters, grid, keep, folder)
    with (
        atomic_write(path) as temporary,
        h5py.File(temporary, "w", locking="best-effort") as file,
    ):
        has_channels = len(equation.channels) > 1
        file["tensor"] = (values if has_channels else values[..., 0]).numpy()
        for d in range(grid.num_dims):
            file[f"{SPACE[d]}-coordinate"] = grid.axis(d)[::keep].numpy()
        file["t-coordinate"] = (np.arange(recipe["frames"] + 1) * recipe["dt"]).astype(np.float32)
        file.attrs["boundary"] = equation.boundary.value
        for name, value in zip(equation.parameters, parameters, strict=True):
            file.attrs[name] = value
        file.attrs["recipe"] = json.dumps(recipe)
        file.attrs["hash"] = digest([values.numpy()])
    shutil.rmtree(folder)


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
    folder: Path | None = None,
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
        folder: keeps what is solved, and what is there is not solved again; None keeps nothing.

    Returns:
        Fields (sum of N_i, T, *space / keep, C).
    """
    if equation.solve is None:
        raise UpsError(f"the equation {equation.name} has no solve to generate data with.")
    solver = equation.solve
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    every_keep = (slice(None), slice(None), *(slice(None, None, keep) for _ in grid.shape))

    def solve(numbered: tuple[int, Tensor]) -> Tensor:
        first, group = numbered
        # groups may have another size when the call is repeated
        part = None if folder is None else folder / f"{first}-{first + len(group)}.npy"
        if part is not None and part.exists():
            return torch.from_numpy(np.load(part))
        frames = solver(group.to(device), times, parameters, grid, torch.float64)
        kept = frames[every_keep].cpu().contiguous()
        if part is not None:
            with atomic_write(part) as temporary, temporary.open("wb") as file:
                np.save(file, kept.numpy())
        return kept

    size = GROUP if device.type == "cpu" else GPU_GROUP
    size = max(1, size * LINE // grid.num_points)
    groups = [group for split in u0 for group in split.split(size)]
    sizes = [len(group) for group in groups]
    numbered = list(zip(accumulate(sizes, initial=0), groups, strict=False))
    task = _task(equation, parameters, grid)
    threads = os.cpu_count() if device.type == "cpu" else 1
    return torch.cat(map_with_progress(solve, numbered, task, threads, sizes))


def _task(equation: Equation, parameters: Sequence[float], grid: Grid) -> str:
    """The text of the progress bar."""
    values = zip(equation.parameters, parameters, strict=True)
    points = " x ".join(map(str, grid.shape))
    words = [f"{name} {value:g}" for name, value in values]
    return f"solving {equation.name} for {', '.join([*words, f'{points} points'])}"


def map_with_progress(
    solve: Callable[[Item], Result],
    items: Sequence[Item],
    task: str,
    threads: int | None,
    sizes: Sequence[int] | None = None,
) -> list[Result]:
    """Solve items in parallel threads, with a progress bar.

    Args:
        solve: solves an item.
        items: the items (N,).
        task: the text of the progress bar.
        threads: number of threads; None for a few for each core.
        sizes: how much each item counts on the bar (N,); None for 1.

    Returns:
        The results (N,).
    """
    sizes = [1] * len(items) if sizes is None else sizes
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress, ThreadPoolExecutor(threads) as pool:
        bar = progress.add_task(task, total=sum(sizes))
        done = []
        try:
            for solved, size in zip(pool.map(solve, items), sizes, strict=True):
                done.append(solved)
                progress.advance(bar, size)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # a signal ends the call now, not after all groups
            raise
    return done
