"""Batches of training windows; batch n of a run depends on the seed and n only."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ups.core.batch import Batch
from ups.core.fields import Grid
from ups.datamodules.readers import Reader
from ups.physics import Equation
from ups.physics.moving_frame import MovingFrame


@dataclass
class WindowIndices:
    """The windows of a batch, an integer array (B, ...) for each property.

    Args:
        number: number of the window in the epoch.
        trajectory: index of its trajectory.
        start: index of its first frame.
        translate: translation in points along each axis (B, D).
        reflect: 1 if it is reflected, else 0.
        stride: number of frames from one of its frames to the next.
        seed: seed of what else is drawn for the window.
    """

    number: np.ndarray
    trajectory: np.ndarray
    start: np.ndarray
    translate: np.ndarray
    reflect: np.ndarray
    stride: np.ndarray
    seed: np.ndarray


class WindowDataset(Dataset[Batch]):
    """Makes batches from trajectories in memory or from their files.

    Args:
        sources: the file of each trajectory and its row there.
        values: trajectories (N, T, *space, C); None to read from the files.
        unroll_steps: number of steps in a window.
        parameters: the parameters (N, P).
        grid: the grid of the fields.
        dt: the time between frames.
        equation: the equation, for its symmetries; None if there is none, and then none is used.
        amplitude_cap: largest amplitude of the first field of a rescaled window. A model need not
            learn fields that are larger than those in the data.
        observe: maps the first frames (B, *space, C) to what is seen of them; None if they are seen
            whole.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Reader, int]],
        values: np.ndarray | None,
        unroll_steps: int,
        parameters: Tensor,
        grid: Grid,
        dt: float,
        equation: Equation | None,
        amplitude_cap: float = math.inf,
        observe: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.sources = sources
        self.values = values
        self.unroll_steps = unroll_steps
        self.parameters = parameters
        self.grid = grid
        self.dt = dt
        self.equation = equation
        self.amplitude_cap = amplitude_cap
        self.observe = observe

    def __getitem__(self, w: WindowIndices) -> Batch:
        w = self._within_cap(w) if w.stride.max() > 1 else w
        u = torch.from_numpy(self._read(w, self.unroll_steps + 1))
        u = self._from_moving_frame(u, w.stride)
        parameters = self.parameters[w.trajectory]
        amounts = {
            "reflect": torch.from_numpy(w.reflect),
            "rescale_time": torch.from_numpy(w.stride) - 1,  # a factor of 1 changes nothing
            "translate": torch.from_numpy(w.translate),
        }
        for name, amount in amounts.items():
            symmetry = self.equation.symmetry(name) if self.equation else None
            rows = (amount.flatten(1).any(1) if amount.ndim > 1 else amount != 0).nonzero()[:, 0]
            if symmetry is None or len(rows) == 0:
                continue
            chosen = amount[rows] + 1 if name == "rescale_time" else amount[rows]
            u[rows] = symmetry.fields(u[rows], chosen, self.grid)
            parameters[rows] = symmetry.parameters(parameters[rows], chosen)
        if self.observe is not None:
            u[:, 0] = self.observe(u[:, 0])
        return Batch(u, parameters, torch.from_numpy(w.trajectory), torch.from_numpy(w.number))

    def _from_moving_frame(self, u: Tensor, stride: np.ndarray) -> Tensor:
        """See windows (B, T, *space, C) from the frame from which a rollout sees them."""
        dt = self.dt * torch.from_numpy(stride)
        return MovingFrame(self.equation, u[:, 0], self.grid, dt).enter(u)

    def _read(self, w: WindowIndices, frames: int) -> np.ndarray:
        """Read frames (B, frames, *space, C) of the windows, ``w.stride`` frames apart."""
        if self.values is not None:
            times = w.start[:, None] + w.stride[:, None] * np.arange(frames)
            return self.values[w.trajectory[:, None], times]
        windows = []
        for i, start, stride in zip(w.trajectory, w.start, w.stride, strict=True):
            file, row = self.sources[i]
            windows.append(file.read([row], start, (frames - 1) * stride + 1)[:, ::stride])
        return np.concatenate(windows)

    def _within_cap(self, w: WindowIndices) -> WindowIndices:
        """Reduce strides until the first field of each window is within ``amplitude_cap``."""
        symmetry = self.equation.symmetry("rescale_time") if self.equation else None
        if symmetry is None:
            return replace(w, stride=np.ones_like(w.stride))
        stride = w.stride.copy()
        first = torch.from_numpy(self._read(w, 1))
        for factor in range(stride.max(), 1, -1):
            factors = torch.full((len(first),), factor)
            seen = self._from_moving_frame(first, factors.numpy())
            rescaled = symmetry.fields(seen, factors, self.grid)
            size = rescaled.abs().flatten(1).amax(1).numpy()
            stride[(stride == factor) & (size > self.amplitude_cap)] -= 1
        return replace(w, stride=stride)


class WindowSampler(Sampler[WindowIndices]):
    """Draws batches of windows; batch n of a run is a function of ``seed`` and n only.

    An epoch takes ``samples_per_trajectory`` random windows of every trajectory. With several
    processes each takes its share of every global batch.

    Args:
        num_trajectories: number of trajectories.
        num_frames: number of frames of a trajectory.
        unroll_steps: number of steps in a window.
        shape: number of points of each axis (D,).
        samples_per_trajectory: number of windows from each trajectory in an epoch.
        batch_size: windows in the batch of one process.
        translate: whether to translate windows at random.
        reflect: whether to reflect windows at random.
        start_time_bias: above 1, early frames are drawn more often; 1 is uniform.
        max_time_rescale: largest stride for each trajectory (N,). Strides 1, ...,
            ``max_time_rescale`` are equally frequent.
        fixed_windows: whether every epoch takes the same windows in the same order.
        seed: the seed of the order.
        start_batch: returns how many batches the run has taken. An interrupted run continues with
            the next one.
        rank: index of this process.
        world: number of processes.
    """

    def __init__(
        self,
        num_trajectories: int,
        num_frames: int,
        unroll_steps: int,
        shape: Sequence[int],
        *,
        samples_per_trajectory: int,
        batch_size: int,
        translate: bool,
        reflect: bool,
        start_time_bias: float = 1.0,
        max_time_rescale: np.ndarray | None = None,
        fixed_windows: bool = False,
        seed: int,
        start_batch: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if max_time_rescale is None:
            max_time_rescale = np.ones(num_trajectories, int)
        self.num_trajectories = num_trajectories
        self.num_frames = num_frames
        self.unroll_steps = unroll_steps
        self.shape = shape
        self.samples_per_trajectory = samples_per_trajectory
        self.batch_size = batch_size
        self.translate = translate
        self.reflect = reflect
        self.start_time_bias = start_time_bias
        self.max_time_rescale = max_time_rescale
        self.fixed_windows = fixed_windows
        self.seed = seed
        self.start_batch = start_batch
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        return max(1, self.num_windows // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[WindowIndices]:
        epoch, first = divmod(self.start_batch(), len(self))
        yield from self._epoch(0 if self.fixed_windows else epoch, first)

    @property
    def num_windows(self) -> int:
        """The number of windows in an epoch."""
        return self.num_trajectories * self.samples_per_trajectory

    def iter_fixed_batches(self, dataset: WindowDataset) -> Iterator[Batch]:
        """Yield all batches of the first epoch, independent of ``start_batch``.

        With ``fixed_windows`` every epoch has these batches.
        """
        return (dataset[windows] for windows in self._epoch(0, 0))

    def _epoch(self, epoch: int, first: int) -> Iterator[WindowIndices]:
        """Yield the batches of an epoch, starting from batch ``first``."""
        rng = np.random.default_rng((self.seed, epoch))
        n = self.num_windows
        trajectory = rng.permutation(n) % self.num_trajectories
        place = rng.random(n) ** self.start_time_bias  # early frames more often: docs/method.md
        translate = np.stack([rng.integers(points, size=n) for points in self.shape], -1)
        translate = translate * self.translate
        reflect = rng.integers(2, size=n) * self.reflect
        stride = rng.integers(1, self.max_time_rescale[trajectory] + 1)
        seed = rng.integers(2**31, size=n)
        start = ((self.num_frames - self.unroll_steps * stride) * place).astype(np.int64)
        for b in range(first, len(self)):
            rows = np.arange(self.batch_size) + (b * self.world + self.rank) * self.batch_size
            rows = rows % n  # wraps around only if the data set is smaller than one batch
            yield WindowIndices(
                rows,
                trajectory[rows],
                start[rows],
                translate[rows],
                reflect[rows],
                stride[rows],
                seed[rows],
            )


def training_sampler(
    data: Any, trajectories: int, space: Sequence[int], **augmentation: Any
) -> WindowSampler:
    """The sampler of a data module's training windows. It continues where the module's trainer is.

    Args:
        data: a ``LightningDataModule`` after ``setup``.
        trajectories: the number of training trajectories.
        space: the number of points along each axis, for translations.
        augmentation: other arguments of ``WindowSampler``.
    """
    h = data.hparams
    trainer: pl.Trainer | None = data.trainer

    def batches_taken() -> int:
        return trainer.fit_loop.epoch_loop.batch_progress.total.ready if trainer else 0

    return WindowSampler(
        trajectories,
        data.num_frames,
        h.unroll_steps,
        space,
        samples_per_trajectory=h.samples_per_trajectory,
        batch_size=h.batch_size,
        start_time_bias=h.start_time_bias,
        fixed_windows=h.fixed_windows,
        seed=h.sampler_seed,
        start_batch=lambda: (
            trainer.fit_loop.epoch_loop.batch_progress.total.ready if trainer else 0
        ),
        rank=trainer.global_rank if trainer else 0,
        world=trainer.world_size if trainer else 1,
        **augmentation,
    )
