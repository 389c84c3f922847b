"""Trajectories of an equation of ``ups.physics``, generated or read from PDEBench's files."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import lightning.pytorch as pl
import numpy as np
import torch
from filelock import FileLock
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.io import atomic_write, check_disk_space, check_memory
from ups.datamodules.readers.pdebench import TrajectoryFile, digest
from ups.datamodules.windows import WindowDataset, WindowSampler
from ups.physics import Equation, get_equation, periodic_1d

SPLITS = ("train", "validation", "test")
SCALES = 1e-12, 1e12  # of the data: float32 and its squares neither underflow nor overflow


class TrajectoryDataModule(pl.LightningDataModule):
    """Trajectories u (N, T, X) of an equation on [0, 1), split by trajectory.

    Without ``path`` the data are generated once and cached in ``directory``: the equation's initial
    conditions, solved by its ``solve``. With ``path`` any of PDEBench's 1D files of the equation is
    read. The first ``train`` trajectories are for training, the last ``test`` ones for the test,
    and the ``validation`` ones lie before those.

    ``nu`` and ``path`` may be lists, for one model over several values. Each value has its own file
    with the same number of trajectories, and the splits hold one value after the other.

    Training batches are windows of ``window`` + 1 frames. Validation and test batches are whole
    trajectories of one ``nu``.

    Args:
        path: PDEBench files to read; None to generate the data.
        directory: folder of generated files. A file of the same recipe is reused.
        nu: the equation's parameter; None, with ``path``, for the value in the file's name.
        points: number of points X of generated data, a divisor of ``solver_points``.
        solver_points: number of points of the solver.
        dt: the time between frames of generated data.
        frames: number of frames T of generated data.
        train: number of training trajectories.
        validation: number of validation trajectories.
        test: number of test trajectories.
        time_stride: keep every ``time_stride``-th frame of ``path``.
        space_stride: keep every ``space_stride``-th point of ``path``.
        window: number of steps in a training window.
        windows_per_trajectory: number of windows from each trajectory in an epoch.
        batch_size: windows in a training batch.
        eval_batch_size: trajectories in a validation or test batch.
        shift: whether to shift windows at random.
        mirror: whether to reflect windows at random.
        early: above 1, early frames are drawn more often; 1 is uniform.
        stretch: largest factor of time rescaling. Windows take every 1st, 2nd, ... ``stretch``-th
            frame equally often. Rescaled, they solve the equation at as many times ``nu`` (see
            docs/method.md). A window is only rescaled to a value within the list and to fields of a
            usual initial size.
        repeat: whether every epoch takes the same windows.
        in_memory: whether to keep the training data in memory.
        num_workers: worker processes of the training loader.
        seed: seed of generated data.
        order_seed: seed of the order of the training windows.
        equation: name of the equation, see ``ups.physics``.

    Attributes:
        dt: the time between frames, after ``setup``, like all that follow.
        length: the length of the periodic line.
        frames: number of frames T.
        points: number of points X.
        x: positions (X,).
        scale: standard deviation of the training data.
        values: fields (N, T, X) of the validation and test splits.
        nus: parameters (N,) of each split.
        dataset: a dict that identifies the test set.

    Raises:
        UpsError: a file is missing, damaged or has another layout, there are too few trajectories,
            or the disk is too full.
    """

    def __init__(
        self,
        path: str | Sequence[str] | None = None,
        directory: str = "outputs/data",
        nu: float | Sequence[float] | None = 0.001,
        points: int = 256,
        solver_points: int = 1024,
        dt: float = 0.05,
        frames: int = 41,
        train: int = 1000,
        validation: int = 100,
        test: int = 128,
        time_stride: int = 1,
        space_stride: int = 1,
        window: int = 4,
        windows_per_trajectory: int = 10,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        shift: bool = True,
        mirror: bool = True,
        early: float = 2.0,
        stretch: int = 3,
        repeat: bool = False,
        in_memory: bool = True,
        num_workers: int = 0,
        seed: int = 0,
        order_seed: int = 0,
        equation: str = "burgers",
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.equation = equation
        if path is None and nu is None:
            raise UpsError(
                "data.path must be given, a PDEBench file to read; or data.nu, a number, "
                "to make data"
            )
        if path is None and solver_points % points:
            raise UpsError(
                f"data.points={points} is not allowed: "
                f"a divisor of data.solver_points={solver_points} is"
            )
        self.parts = self._parts(path, Path(directory), nu)  # pairs (nu, file)
        self.nu = self.parts[0][0] if len(self.parts) == 1 else [value for value, _ in self.parts]
        self.path = self.parts[0][1]
        self.ready = False

    @property
    def physics(self) -> Equation:
        return get_equation(self.equation)

    def prepare_data(self) -> None:
        if self.hparams["path"] is None:
            for i, (nu, path) in enumerate(self.parts):
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists():
                    continue
                with FileLock(f"{path}.lock"):  # of parallel sweep jobs only one generates it
                    if not path.exists():
                        self._make(i, nu, path)

    def to_be_made(self) -> int:
        """The number of bytes that ``prepare_data`` will write."""
        h: Any = self.hparams
        each = (h.train + h.validation + h.test) * h.frames * h.points * 4
        return 0 if h.path is not None else sum(each for _, path in self.parts if not path.exists())

    def setup(self, stage: str | None = None) -> None:
        if self.ready:
            return
        h: Any = self.hparams
        files = self.open_files()
        first = files[0]
        for file in files[1:]:
            if (file.points, file.frames, file.dt) != (first.points, first.frames, first.dt):
                raise UpsError(
                    f"{file.path} has {file.points} points, {file.frames} frames "
                    f"and dt {file.dt:g}, but {first.path} {first.points}, {first.frames} "
                    f"and {first.dt:g}; files of one data set must agree"
                )
        if h.window >= first.frames:
            raise UpsError(
                f"data.window={h.window}: {first.path} has {first.frames} frames, "
                f"so at most {first.frames - 1} is allowed"
            )
        n = first.trajectories
        rows = {
            "train": range(h.train),
            "validation": range(n - h.test - h.validation, n - h.test),
            "test": range(n - h.test, n),
        }
        self.dt, self.length, self.frames, self.points = (
            first.dt,
            first.length,
            first.frames,
            first.points,
        )
        self.x = torch.from_numpy(first.x)
        if h.in_memory:
            check_memory(
                len(files) * h.train * first.frames * first.points * 4, "data.in_memory=true"
            )
        self.train_sources = [(file, row) for file in files for row in rows["train"]]
        some = rows["train"] if h.in_memory else rows["train"][:: max(1, h.train // 500)]
        read = {
            split: [file.read(chosen) for file in files]
            for split, chosen in {**rows, "train": some}.items()
        }
        if h.in_memory and h.path is None:
            for file, *parts in zip(files, *read.values(), strict=True):
                file.verify_checksum(parts)
        known = _joined(read["train"])
        self.train_values = known if h.in_memory else None
        # the mean is kept: removing it would break the symmetry u -> -u
        self.scale = float(np.std(known, dtype=np.float64))
        # the initial amplitude of most solutions
        self.usual_size = float(np.quantile(np.abs(known[:, 0]).max(-1), 0.8))
        if not SCALES[0] < self.scale < SCALES[1]:
            allowed = f"from {SCALES[0]:g} to {SCALES[1]:g}"
            raise UpsError(
                f"{first.path}: the training data's standard deviation is {self.scale:g}; "
                f"{allowed} is what can be trained on"
            )
        self.values = {split: torch.from_numpy(_joined(read[split])) for split in SPLITS[1:]}
        self.nus = {
            split: torch.tensor([nu for nu, _ in self.parts]).repeat_interleave(h[split])
            for split in SPLITS
        }
        self.dataset: dict[str, Any] = {
            "name": self._name(*(nu for nu, _ in self.parts)),
            "hash": digest([self.values["test"].numpy()]),
            "split": "test",
            "trajectories": len(self.values["test"]),
            "points": self.points,
            "frames": self.frames,
            "nu": self.nu,
        }
        self.ready = True

    def open_files(self) -> list[TrajectoryFile]:
        """Open the files that exist.

        Raises:
            UpsError: one is damaged or holds too few trajectories.
        """
        return [
            self._open(path)
            for _, path in self.parts
            if self.hparams["path"] is not None or path.exists()
        ]

    def _open(self, path: Path) -> TrajectoryFile:
        h: Any = self.hparams
        file = TrajectoryFile(path, h.time_stride, h.space_stride)
        if h.train + h.validation + h.test > file.trajectories:
            raise UpsError(
                f"{path} holds {file.trajectories} trajectories, but data.train={h.train}, "
                f"data.validation={h.validation} and data.test={h.test} ask for "
                f"{h.train + h.validation + h.test}"
            )
        return file

    def train_dataloader(self) -> DataLoader[Batch]:
        h: Any = self.hparams
        trainer, nus = self.trainer, self.nus["train"].numpy()
        sampler = WindowSampler(
            len(self.train_sources),
            self.frames,
            h.window,
            self.points,
            windows_per_trajectory=h.windows_per_trajectory,
            batch_size=h.batch_size,
            shift=h.shift,
            mirror=h.mirror,
            early=h.early,
            stretch=np.minimum(
                nus.max() / nus + 1e-6, min(h.stretch, (self.frames - 1) // h.window)
            ).astype(int),
            repeat=h.repeat,
            seed=h.order_seed,
            position=lambda: (
                trainer.fit_loop.epoch_loop.batch_progress.total.ready if trainer else 0
            ),
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
        )
        dataset = WindowDataset(
            self.train_sources, self.train_values, h.window, nus, self.physics, self.usual_size
        )
        return DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=h.num_workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._whole("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._whole("test")

    def _whole(self, split: str) -> DataLoader[Batch]:
        size, each = self.hparams["eval_batch_size"], self.hparams[split]
        batches = []
        for part in torch.arange(len(self.values[split])).split(each):  # one part for each nu
            batches += [
                Batch(self.values[split][i], self.nus[split][i], i, i) for i in part.split(size)
            ]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list is a data set

    def _parts(
        self, path: str | Sequence[str] | None, directory: Path, nu: float | Sequence[float] | None
    ) -> list[tuple[float, Path]]:
        """Pair each value of nu with its file."""
        paths = [path] if path is None or isinstance(path, str | Path) else list(path)
        nus = [nu] if nu is None or isinstance(nu, float | int) else list(nu)
        if path is None:
            return [
                (float(n), directory / f"{self._name(n)}-{_key(self._recipe(i, n))}.hdf5")
                for i, n in enumerate(nus)
                if n is not None
            ]
        nus = nus * len(paths) if nus == [None] else nus
        if len(nus) != len(paths):
            raise UpsError(
                f"data.path names {len(paths)} files and data.nu {len(nus)} values; one for each, "
                "or data.nu=null, is allowed"
            )
        return [
            (_nu_of(Path(p), n, self.physics.PARAMETER), Path(p))
            for p, n in zip(paths, nus, strict=True)
            if p is not None
        ]

    def _name(self, *nus: float) -> str:
        return f"{self.equation}-{self.physics.PARAMETER}" + ",".join(f"{nu:g}" for nu in nus)

    def _recipe(self, part: int, nu: float) -> dict:
        """Everything that determines the content of a generated file."""
        names = ("points", "solver_points", "dt", "frames", *SPLITS)
        seed = self.hparams["seed"] + part  # different initial conditions for every nu
        return {
            "equation": self.equation,
            "version": 1,
            "nu": nu,
            "seed": seed,
            **{name: self.hparams[name] for name in names},
        }

    def _make(self, part: int, nu: float, path: Path) -> None:
        """Generate a file, each split from its own seed.

        The test set therefore does not depend on the sizes of the other splits.
        """
        h: Any = self.hparams
        check_disk_space(path, self.to_be_made(), "the generated data set")
        x, recipe = periodic_1d.cell_centers(h.solver_points), self._recipe(part, nu)
        u0 = [
            self.physics.initial_conditions(h[split], x, 3 * recipe["seed"] + i)
            for i, split in enumerate(SPLITS)
        ]
        values = _solve_all(
            self.physics, u0, np.arange(h.frames) * h.dt, nu, keep=h.solver_points // h.points
        )
        with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
            file["tensor"] = values.numpy()
            file["x-coordinate"] = x[:: h.solver_points // h.points].numpy()
            file["t-coordinate"] = (np.arange(h.frames + 1) * h.dt).astype(np.float32)
            file.attrs["recipe"] = json.dumps(recipe)
            file.attrs["hash"] = digest([values.numpy()])


BurgersDataModule = TrajectoryDataModule  # the default equation is Burgers


def _solve_all(physics: Equation, u0: list[Tensor], t: np.ndarray, nu: float, keep: int) -> Tensor:
    """Solve the initial conditions of all splits, on the GPU if there is one.

    They are solved in groups of similar speed that fit into the cache.

    Args:
        physics: the equation.
        u0: initial conditions (N_i, X) of each split.
        t: times (T,).
        nu: the equation's parameter.
        keep: keep every ``keep``-th point.

    Returns:
        Fields (sum of N_i, T, X / keep).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = 16 if device.type == "cpu" else 512
    # the fastest trajectory of a group sets its time step; groups stay within a split, so that
    # splits don't depend on each other
    groups = [split[rows] for split in u0 for rows in split.abs().amax(1).argsort().split(size)]
    order = torch.cat(
        [
            split.abs().amax(1).argsort() + start
            for split, start in zip(u0, _starts(u0), strict=True)
        ]
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )

    def work(group: Tensor) -> Tensor:
        return physics.solve(group.to(device), t.tolist(), nu)[..., ::keep].cpu()

    with (
        Progress(*columns) as progress,
        ThreadPoolExecutor(os.cpu_count() if device.type == "cpu" else 1) as pool,
    ):
        task = progress.add_task(
            f"solving for {physics.PARAMETER} {nu:g}, {u0[0].shape[1]} points", total=len(order)
        )
        done = []
        try:
            for solved in pool.map(work, groups):
                done.append(solved)
                progress.advance(task, len(solved))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # a signal ends the call now, not after all groups
            raise
    out = torch.empty(len(order), *done[0].shape[1:])
    out[order] = torch.cat(done)
    return out


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    # concatenate copies a single part
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _starts(parts: list[Tensor]) -> list[int]:
    """The index of the first row of each part in their concatenation."""
    return [sum(len(part) for part in parts[:i]) for i in range(len(parts))]


def _nu_of(path: Path, nu: float | None, symbol: str) -> float:
    """The parameter of a PDEBench file, which only its name holds, after ``symbol``.

    Raises:
        UpsError: the name has no parameter and ``nu`` is None, or both differ.
    """
    found = re.search(symbol + r"(\d+(?:\.\d+)?(?:[eE]-?\d+)?)", path.name, re.IGNORECASE)
    if nu is not None:
        if found is not None and float(found.group(1)) != nu:
            raise UpsError(
                f"{path}: the file's name says {symbol} {found.group(1)}, data.nu {nu:g}; "
                "data.nu=null takes the file's"
            )
        return nu
    if found is None:
        raise UpsError(
            f"{path}: the file's name doesn't say {symbol}, as '..._{symbol}0.1.hdf5' would; "
            "give data.nu=..."
        )
    return float(found.group(1))


def _key(recipe: dict) -> str:
    """A short hash of a recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]
