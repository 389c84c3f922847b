"""Generate flows past random circles and ellipses in a channel, at random points.

Positions are in units of a reference diameter D, times in D / U with the mean velocity U of the
inflow; see ``ups.physics.lattice_boltzmann``. The file has the layout of
``ups.datamodules.readers.point_clouds``, and besides

- ``obstacles`` (M, 5): center, semi-axes and angle of all M obstacles; those of trajectory i are
  ``obstacle_offsets[i]`` to ``obstacle_offsets[i + 1]``;
- ``forces`` (T, M, 2): their drag and lift coefficients.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import h5py
import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from torch import Tensor

from ups.core.errors import Diverged, UpsError
from ups.core.fields import Grid
from ups.core.io import atomic_write, check_disk_space
from ups.core.locks import file_lock
from ups.core.schema import NonNegativeFloat, PositiveFloat, PositiveInt, Seed, validate
from ups.datamodules.generate import map_with_progress, short_hash
from ups.datamodules.point_sampling import NODE_TYPES, PointSampler, sample_points, signed_distance
from ups.datamodules.readers.point_clouds import Geometry
from ups.physics.ellipses import Ellipse
from ups.physics.lattice_boltzmann import (
    CHANNELS,
    LATTICE_SPEED,
    SPONGE_LENGTH,
    Flow,
    channel,
    solve,
    undisturbed,
)

Part = dict[str, NDArray[np.floating]]

GAP = 0.5  # between obstacles, and to walls, in D
UPSTREAM, DOWNSTREAM = 2.0, 5.0  # no center is so close to the inflow or the outflow, in D
ATTEMPTS = 1000  # to place the obstacles of a trajectory
# obstacles side by side may leave gaps in which the flow is several times as fast as the inflow:
# what is too fast for the lattice is solved again in smaller steps
LATTICE_SPEEDS = (LATTICE_SPEED, LATTICE_SPEED / 2, LATTICE_SPEED / 4)
# a sideways push of the initial flow, so that vortices form early
PUSH, PUSH_LENGTH = 0.3, 6.0


@dataclass(frozen=True)
class ObstacleFlows:
    """Everything that determines the content of a generated file.

    Trajectory i of a split depends on the seed, the split and i only, not on the sizes of splits.

    Args:
        num_train: number of training trajectories.
        num_validation: number of validation trajectories.
        num_test: number of test trajectories.
        num_frames: number of frames T.
        dt: the time between them, in D / U.
        start_time: the time of the first frame after the start of the flow, in D / U.
        length: the length of the channel, in D.
        height: its height, in D.
        resolution: number of nodes of the solver along D.
        reynolds: the range of Re = U D / nu, drawn uniformly.
        num_obstacles: the range of their number.
        diameters: the range of the diameter of a circle of an obstacle's area, in D.
        aspect_ratios: the range of the ratio of an obstacle's axes; every second one is a circle.
        num_points: the range of the number of points of a trajectory.
        seed: seed of everything drawn.

    Raises:
        UpsError: a range is empty, or a value is not > 0.
    """

    num_train: PositiveInt = 192
    num_validation: PositiveInt = 16
    num_test: PositiveInt = 32
    num_frames: PositiveInt = 41
    dt: PositiveFloat = 0.5
    start_time: NonNegativeFloat = 30.0
    length: Annotated[float, Ge(UPSTREAM + DOWNSTREAM)] = 12.0
    height: PositiveFloat = 6.0
    resolution: PositiveInt = 16
    reynolds: tuple[float, float] = (50.0, 200.0)
    num_obstacles: tuple[int, int] = (1, 3)
    diameters: tuple[float, float] = (0.8, 1.2)
    aspect_ratios: tuple[float, float] = (1.0, 2.0)
    num_points: tuple[int, int] = (1000, 4000)
    seed: Seed = 0

    def __post_init__(self) -> None:
        validate(ObstacleFlows, vars(self), "", name="ObstacleFlows", required="none")
        for name, value in vars(self).items():
            if isinstance(value, tuple) and not 0 < value[0] <= value[1] < math.inf:
                raise UpsError(f"`{name}` must be a range of numbers > 0, got {value}.")

    @property
    def splits(self) -> tuple[int, int, int]:
        return self.num_train, self.num_validation, self.num_test

    @property
    def grid(self) -> Grid:
        """The nodes of the solver, with the sponge behind the channel."""
        return channel(self.length + SPONGE_LENGTH, self.height, self.resolution)

    @property
    def seeds(self) -> list[tuple[int, int]]:
        """The seed of each trajectory: one for its split, and its number there."""
        return [(3 * self.seed + s, i) for s, n in enumerate(self.splits) for i in range(n)]


def file_of(flows: ObstacleFlows, cache_dir: Path) -> Path:
    """The file of generated flows in a folder; its name holds a hash of ``flows``."""
    return Path(cache_dir) / f"obstacles-{short_hash(asdict(flows))}.h5"


def generate_obstacles(flows: ObstacleFlows, cache_dir: Path) -> Path:
    """Generate a file, unless it is there.

    A thread for each core solves one trajectory after the other. Each is kept when it is solved,
    and a repeated call continues with the next one.

    Args:
        flows: what to generate.
        cache_dir: the folder of the file, see ``file_of``.

    Returns:
        The file.

    Raises:
        UpsError: the disk is too full, the obstacles do not fit, or a flow diverges in the smallest
            steps too.
    """
    path = file_of(flows, cache_dir)
    folder = path.with_suffix(".parts")
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(f"{path}.lock"):  # of parallel calls only one generates it
        if not path.exists():
            values = sum(flows.splits) * flows.num_frames * flows.num_points[1] * len(CHANNELS)
            check_disk_space(path, 2 * 4 * values, "the generated data set")
            folder.mkdir(exist_ok=True)
            task = f"solving flows past obstacles, {' x '.join(map(str, flows.grid.shape))} nodes"
            solve_part = partial(_solve_part, flows, folder)
            _write(flows, map_with_progress(solve_part, flows.seeds, task, os.cpu_count()), path)
        shutil.rmtree(folder, ignore_errors=True)
    return path


def _solve_part(flows: ObstacleFlows, folder: Path, seed: tuple[int, int]) -> Path:
    """The file of a trajectory, solved if it is not there."""
    path = folder / f"{seed[0]}-{seed[1]}.npz"
    if not path.exists():
        part = solve_trajectory(flows, np.random.default_rng(seed))
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **part)  # type: ignore[arg-type]  # names of arrays, not options
    return path


class Drawn(NamedTuple):
    """What is drawn of a trajectory.

    Args:
        reynolds: the Reynolds number.
        obstacles: the obstacles.
        points: where the flow is given.
    """

    reynolds: float
    obstacles: list[Ellipse]
    points: Geometry


def draw_trajectory(flows: ObstacleFlows, rng: np.random.Generator) -> Drawn:
    """Draw what ``solve_trajectory`` solves.

    Raises:
        UpsError: the obstacles do not fit.
    """
    reynolds = rng.uniform(*flows.reynolds)
    obstacles = draw_obstacles(flows, rng)
    n = int(rng.integers(*flows.num_points, endpoint=True))
    points = sample_points(n, obstacles, flows.length, flows.height, rng)
    return Drawn(reynolds, obstacles, points)


def solve_trajectory(flows: ObstacleFlows, rng: np.random.Generator) -> Part:
    """Draw and solve a trajectory.

    Returns:
        ``positions`` (P, 2), ``signed_distance`` (P,), ``node_type`` (P,), ``fields`` (T, P, 3),
        ``reynolds`` (), ``obstacles`` (E, 5), ``forces`` (T, E, 2).
    """
    reynolds, obstacles, points = draw_trajectory(flows, rng)
    grid = flows.grid
    nodes = grid.positions().double().numpy()
    sample = PointSampler(grid, points, signed_distance(nodes, obstacles, flows.height))
    times = flows.start_time + np.arange(flows.num_frames) * flows.dt
    flow = solve_flow(pushed(grid), times.tolist(), reynolds, grid, obstacles)
    numbers = [(*o.center, *o.semi_axes, o.angle) for o in obstacles]
    return {
        **points._asdict(),
        "fields": np.stack([sample(each.fields.numpy()) for each in flow]).astype(np.float32),
        "reynolds": np.float32(reynolds),
        "obstacles": np.array(numbers, np.float32),
        "forces": np.stack([each.forces.numpy() for each in flow]),
    }


def solve_flow(
    u0: Tensor,
    times: Sequence[float],
    reynolds: float,
    grid: Grid,
    obstacles: Sequence[Ellipse],
    speeds: Sequence[float] = LATTICE_SPEEDS,
) -> list[Flow]:
    """Solve in the first of steps in which the flow does not diverge.

    Args:
        u0: see ``ups.physics.lattice_boltzmann.solve``, and likewise the next four.
        speeds: the values of its ``lattice_speed`` to try.

    Raises:
        Diverged: the flow diverges in all of them.
    """
    for speed in speeds:
        try:
            return list(solve(u0, times, reynolds, grid, obstacles, lattice_speed=speed))
        except Diverged as error:
            diverged = error
    raise diverged


def pushed(grid: Grid) -> Tensor:
    """The fields (X, Y, 3) that flows begin with: the inflow everywhere, pushed to one side and
    the other along x.
    """
    u0 = undisturbed(grid).float()
    wave = torch.sin(2 * math.pi * grid.positions()[..., 0] / PUSH_LENGTH)
    u0[..., 1] = PUSH * wave * u0[..., 0]
    return u0


def draw_obstacles(flows: ObstacleFlows, rng: np.random.Generator) -> list[Ellipse]:
    """Draw obstacles that keep apart from walls and from each other.

    Raises:
        UpsError: they do not fit.
    """
    n = int(rng.integers(*flows.num_obstacles, endpoint=True))
    placed: list[Ellipse] = []
    for attempt in range(ATTEMPTS):
        if len(placed) == n:
            return placed
        if attempt % 100 == 99:  # the first ones may leave no room
            placed = []
        new = _draw_ellipse(flows, rng)
        if _is_free(new, placed, flows.height):
            placed.append(new)
    raise UpsError(f"{n} obstacles do not fit into a channel of {flows.length} x {flows.height}.")


def _draw_ellipse(flows: ObstacleFlows, rng: np.random.Generator) -> Ellipse:
    is_circle = rng.uniform() < 0.5
    stretch = 1.0 if is_circle else math.sqrt(rng.uniform(*flows.aspect_ratios))
    radius = rng.uniform(*flows.diameters) / 2
    x = rng.uniform(UPSTREAM, flows.length - DOWNSTREAM)
    y = rng.uniform(0, flows.height)
    return Ellipse((x, y), (radius * stretch, radius / stretch), rng.uniform(0, math.pi))


def _is_free(new: Ellipse, placed: list[Ellipse], height: float) -> bool:
    reach = new.half_extent[1] + GAP
    if not reach <= new.center[1] <= height - reach:
        return False
    around = new.perimeter(np.linspace(0, 2 * math.pi, 65))
    return all(other.signed_distance(around).min() >= GAP for other in placed)


def _write(flows: ObstacleFlows, parts: list[Path], path: Path) -> None:
    """Join trajectories to a file, without having all of them in memory."""
    content = hashlib.sha256()
    with (
        atomic_write(path) as temporary,
        h5py.File(temporary, "w", locking="best-effort") as file,
    ):
        sizes = [_load(part, "positions")["positions"].shape[0] for part in parts]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        shape = (flows.num_frames, int(offsets[-1]), len(CHANNELS))
        fields = file.create_dataset("fields", shape, np.float32)
        for part, start, end in zip(parts, offsets, offsets[1:], strict=False):
            values = _load(part, "fields")["fields"]
            fields[:, start:end] = values
            content.update(values.data)
        names = ("positions", "signed_distance", "node_type", "reynolds", "obstacles", "forces")
        rest = [_load(part, *names) for part in parts]
        for name in names[:3]:
            file[name] = np.concatenate([each[name] for each in rest])
        file["offsets"] = offsets
        file["parameters/reynolds"] = np.array([each["reynolds"] for each in rest])
        file["obstacles"] = np.concatenate([each["obstacles"] for each in rest])
        file["forces"] = np.concatenate([each["forces"] for each in rest], 1)
        counts = [len(each["obstacles"]) for each in rest]
        file["obstacle_offsets"] = np.concatenate([[0], np.cumsum(counts)])
        file["t-coordinate"] = (np.arange(flows.num_frames) * flows.dt).astype(np.float32)
        file.attrs["channels"] = CHANNELS
        file.attrs["node_types"] = NODE_TYPES
        file.attrs["splits"] = flows.splits
        file.attrs["recipe"] = json.dumps(asdict(flows))
        file.attrs["hash"] = content.hexdigest()[:12]


def _load(path: Path, *names: str) -> Part:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in names}
