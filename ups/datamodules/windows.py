"""Batches of training windows, in an order that depends on seed and position only."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ups.core.batch import Batch
from ups.datamodules.readers.pdebench import TrajectoryFile
from ups.physics import Equation


@dataclass
class WindowIndices:
    """The windows of a batch, an integer array (B,) for each property.

    Args:
        number: number of the window in the epoch.
        trajectory: index of its trajectory.
        start: index of its first frame.
        shift: shift in points.
        mirror: 1 if it is reflected, else 0.
        stride: number of frames from one of its frames to the next.
    """

    number: np.ndarray
    trajectory: np.ndarray
    start: np.ndarray
    shift: np.ndarray
    mirror: np.ndarray
    stride: np.ndarray


class WindowDataset(Dataset[Batch]):
    """Makes batches from trajectories in memory or from their files.

    Args:
        sources: the file of each trajectory and its row there.
        values: trajectories (N, T, X); None to read from the files.
        window: number of steps in a window.
        nu: the equation's parameter (N,).
        physics: the equation, for its symmetries.
        limit: largest amplitude of the first field of a rescaled window. A model need not learn
            fields that are larger than those in the data.
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
        self.sources, self.values, self.window, self.nu = (
            sources,
            values,
            window,
            nu.astype(np.float32),
        )
        self.physics, self.limit = physics, limit

    def __getitem__(self, w: WindowIndices) -> Batch:
        w = self._within_limit(w) if w.stride.max() > 1 else w
        u = self._read(w, self.window + 1)
        mirrored = w.mirror == 1
        u[mirrored] = self.physics.reflect(torch.from_numpy(u[mirrored])).numpy()
        for stride in set(w.stride[w.stride > 1].tolist()):
            faster = w.stride == stride
            u[faster] = self.physics.rescale_time(torch.from_numpy(u[faster]), stride).numpy()
        points = (np.arange(u.shape[-1]) + w.shift[:, None]) % u.shape[-1]
        u = np.take_along_axis(u, points[:, None], -1)
        trajectory, number = torch.from_numpy(w.trajectory), torch.from_numpy(w.number)
        return Batch(
            torch.from_numpy(u),
            torch.from_numpy(self.nu[w.trajectory] * w.stride.astype(np.float32)),
            trajectory,
            number,
        )

    def _read(self, w: WindowIndices, frames: int) -> np.ndarray:
        """Read frames (B, frames, X) of the windows, ``w.stride`` frames apart."""
        if self.values is not None:
            return self.values[
                w.trajectory[:, None], w.start[:, None] + w.stride[:, None] * np.arange(frames)
            ]
        rows = (
            (*self.sources[i], start, stride)
            for i, start, stride in zip(w.trajectory, w.start, w.stride, strict=True)
        )
        return np.concatenate(
            [
                file.read([row], start, (frames - 1) * stride + 1)[:, ::stride]
                for file, row, start, stride in rows
            ]
        )

    def _within_limit(self, w: WindowIndices) -> WindowIndices:
        """Reduce strides until the first field of each window is within ``limit``."""
        stride, first = w.stride.copy(), torch.from_numpy(self._read(w, 1)[:, 0])
        for times in range(stride.max(), 1, -1):
            size = self.physics.rescale_time(first, times).abs().amax(-1).numpy()
            stride[(stride == times) & (size > self.limit)] -= 1
        return replace(w, stride=stride)


class WindowSampler(Sampler[WindowIndices]):
    """Draws batches of windows; batch n of a run is a function of ``seed`` and n only.

    An epoch takes ``windows_per_trajectory`` random windows of every trajectory. With several
    processes each takes its share of every global batch.

    Args:
        trajectories: number of trajectories.
        frames: number of frames of a trajectory.
        window: number of steps in a window.
        points: number of points of a field.
        windows_per_trajectory: number of windows from each trajectory in an epoch.
        batch_size: windows in the batch of one process.
        shift: whether to shift windows at random.
        mirror: whether to reflect windows at random.
        early: above 1, early frames are drawn more often; 1 is uniform.
        stretch: largest stride for each trajectory (N,). Strides 1, ..., ``stretch`` are equally
            frequent.
        repeat: whether every epoch takes the same windows in the same order.
        seed: the seed of the order.
        position: returns how many batches the run has taken. An interrupted run continues with the
            next one.
        rank: index of this process.
        world: number of processes.
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
        self.trajectories, self.frames, self.window, self.points = (
            trajectories,
            frames,
            window,
            points,
        )
        self.stretch = np.ones(trajectories, int) if stretch is None else stretch
        self.windows_per_trajectory, self.batch_size = windows_per_trajectory, batch_size
        self.shift, self.mirror, self.early, self.repeat, self.seed = (
            shift,
            mirror,
            early,
            repeat,
            seed,
        )
        self.position, self.rank, self.world = position, rank, world

    def __len__(self) -> int:
        return max(
            1, self.trajectories * self.windows_per_trajectory // (self.batch_size * self.world)
        )

    def __iter__(self) -> Iterator[WindowIndices]:
        epoch, first = divmod(self.position(), len(self))
        yield from self._epoch(0 if self.repeat else epoch, first)

    @property
    def windows(self) -> int:
        """The number of windows in an epoch."""
        return self.trajectories * self.windows_per_trajectory

    def iter_fixed_batches(self, dataset: WindowDataset) -> Iterator[Batch]:
        """Yield all batches of the first epoch, independent of the position.

        With ``repeat`` every epoch has these batches.
        """
        return (dataset[windows] for windows in self._epoch(0, 0))

    def _epoch(self, epoch: int, first: int) -> Iterator[WindowIndices]:
        """Yield the batches of an epoch, starting from batch ``first``."""
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
            rows = rows % n  # wraps around only if the data set is smaller than one batch
            yield WindowIndices(
                rows, trajectory[rows], start[rows], shift[rows], mirror[rows], stride[rows]
            )
