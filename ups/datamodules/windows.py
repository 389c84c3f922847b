"""Training windows: one batch type, one way to make a batch, and an order that is a function of seed and position alone."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ups.datamodules.hdf5 import TrajectoryFile
from ups.physics import Equation


@dataclass
class Batch:
    """Windows ``u`` (B, K+1, X) of consecutive frames, their ``nu`` (B,), the ``trajectory`` (B,) that each is from, and its own number
    ``window`` (B,) in the epoch.
    """

    u: Tensor
    nu: Tensor
    trajectory: Tensor
    window: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(t.shape) for t in vars(self).values()]
        if self.u.ndim != 3 or any(shape != shapes[0][:1] for shape in shapes[1:]):
            raise ValueError(f"a batch is u (B, K+1, X), nu (B,), trajectory (B,), window (B,), not {shapes}")

    def __len__(self) -> int:
        return len(self.u)

    def shards(self, n: int) -> "list[Batch]":
        """The batch in ``n`` equal parts."""
        return [Batch(*part) for part in zip(*(t.chunk(n) for t in vars(self).values()), strict=True)]


@dataclass
class Windows:
    """Which windows a batch holds, an integer array (B,) each: number in the epoch, trajectory, first frame, shift in points, mirrored,
    frames from one to the next."""

    number: np.ndarray
    trajectory: np.ndarray
    start: np.ndarray
    shift: np.ndarray
    mirror: np.ndarray
    stride: np.ndarray


class WindowDataset(Dataset[Batch]):
    """Makes batches from trajectories in memory (N, T, X) or, where ``values`` is None, straight from their files.

    ``sources`` tells each trajectory's file and place in it, ``nu`` (N,) its parameter; ``physics`` has the equation's symmetries.
    No window is hastened so much that its first field is larger than ``limit``: what is faster than the data a model need not learn.
    """

    def __init__(
        self,
        sources: Sequence[tuple[TrajectoryFile, int]],
        values: np.ndarray | None,
        window: int,
        nu: np.ndarray,
        physics: Equation,
        limit: float = math.inf,
    ) -> None:
        self.sources, self.values, self.window, self.nu = sources, values, window, nu.astype(np.float32)
        self.physics, self.limit = physics, limit

    def __getitem__(self, w: Windows) -> Batch:
        w = self._within_limit(w) if w.stride.max() > 1 else w
        u = self._read(w, self.window + 1)
        mirrored = w.mirror == 1
        u[mirrored] = self.physics.mirror(torch.from_numpy(u[mirrored])).numpy()
        for stride in set(w.stride[w.stride > 1].tolist()):
            faster = w.stride == stride
            u[faster] = self.physics.hasten(torch.from_numpy(u[faster]), stride).numpy()
        points = (np.arange(u.shape[-1]) + w.shift[:, None]) % u.shape[-1]
        u = np.take_along_axis(u, points[:, None], -1)
        trajectory, number = torch.from_numpy(w.trajectory), torch.from_numpy(w.number)
        return Batch(torch.from_numpy(u), torch.from_numpy(self.nu[w.trajectory] * w.stride.astype(np.float32)), trajectory, number)

    def _read(self, w: Windows, frames: int) -> np.ndarray:
        if self.values is not None:
            return self.values[w.trajectory[:, None], w.start[:, None] + w.stride[:, None] * np.arange(frames)]
        rows = ((*self.sources[i], start, stride) for i, start, stride in zip(w.trajectory, w.start, w.stride, strict=True))
        return np.concatenate([file.read([row], start, (frames - 1) * stride + 1)[:, ::stride] for file, row, start, stride in rows])

    def _within_limit(self, w: Windows) -> Windows:
        stride, first = w.stride.copy(), torch.from_numpy(self._read(w, 1)[:, 0])
        for times in range(stride.max(), 1, -1):
            size = self.physics.hasten(first, times).abs().amax(-1).numpy()
            stride[(stride == times) & (size > self.limit)] -= 1
        return replace(w, stride=stride)


class WindowSampler(Sampler[Windows]):
    """Draws batches of windows; batch number n of a run is a function of ``seed`` and n alone.

    An epoch takes ``windows_per_trajectory`` random windows of every trajectory, each with a random shift and mirroring where
    those are on; with ``repeat`` every epoch takes the same ones, in the same order. ``early`` above 1 draws first frames more often, and
    ``stretch`` (N,), a number for each trajectory, takes of as many windows each every first, second, ... ``stretch``-th frame.
    ``position`` tells how many batches the run has taken so far: an interrupted run goes on with the very next one.
    With several processes each takes its share of every global batch.
    """

    def __init__(
        self,
        trajectories: int,
        frames: int,
        window: int,
        points: int,
        *,
        windows_per_trajectory: int,
        batch_size: int,
        shift: bool,
        mirror: bool,
        early: float = 1.0,
        stretch: np.ndarray | None = None,
        repeat: bool = False,
        seed: int,
        position: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.trajectories, self.frames, self.window, self.points = trajectories, frames, window, points
        self.stretch = np.ones(trajectories, int) if stretch is None else stretch
        self.windows_per_trajectory, self.batch_size = windows_per_trajectory, batch_size
        self.shift, self.mirror, self.early, self.repeat, self.seed = shift, mirror, early, repeat, seed
        self.position, self.rank, self.world = position, rank, world

    def __len__(self) -> int:
        return max(1, self.trajectories * self.windows_per_trajectory // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[Windows]:
        epoch, first = divmod(self.position(), len(self))
        yield from self._epoch(0 if self.repeat else epoch, first)

    @property
    def windows(self) -> int:
        return self.trajectories * self.windows_per_trajectory

    def first_epoch(self, dataset: WindowDataset) -> Iterator[Batch]:
        """All batches of the first epoch, which with ``repeat`` is every epoch, whatever the position."""
        return (dataset[windows] for windows in self._epoch(0, 0))

    def _epoch(self, epoch: int, first: int) -> Iterator[Windows]:
        rng = np.random.default_rng((self.seed, epoch))
        n = self.windows
        trajectory = rng.permutation(n) % self.trajectories
        place = rng.random(n) ** self.early  # early frames more often: see docs/method.md
        shift = rng.integers(self.points, size=n) * self.shift
        mirror = rng.integers(2, size=n) * self.mirror
        stride = rng.integers(1, self.stretch[trajectory] + 1)
        start = ((self.frames - self.window * stride) * place).astype(np.int64)
        for b in range(first, len(self)):
            rows = np.arange(self.batch_size) + (b * self.world + self.rank) * self.batch_size
            rows = rows % n  # only a data set smaller than one batch comes round again
            yield Windows(rows, trajectory[rows], start[rows], shift[rows], mirror[rows], stride[rows])
