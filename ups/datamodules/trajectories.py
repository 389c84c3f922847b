"""Trajectories of an equation of ``ups.physics``, generated or read from PDEBench's files."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import lightning.pytorch as pl
import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.utils.data import DataLoader

from ups.core.agreement import disagreements
from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid, domain_essentials
from ups.core.io import check_disk_space, check_memory
from ups.core.locks import file_lock
from ups.core.schema import (
    BOOKKEEPING,
    LARGEST,
    EquationName,
    NonNegativeFloat,
    NonNegativeInt,
    OneOrMore,
    PathStr,
    PositiveFloat,
    PositiveInt,
    Seed,
    SettingsOf,
    Words,
    plain,
    validate_arguments,
)
from ups.core.settings import PlainDict
from ups.datamodules.generate import SPLITS, Recipe, Split, generate, short_hash
from ups.datamodules.parts import Part, check_parameters, chosen_recipe, given_parts
from ups.datamodules.readers import READERS, Reader, get_reader
from ups.datamodules.readers.pdebench import TrajectoryFile, digest
from ups.datamodules.statistics import (
    describe_data,
    describe_solutions,
    largest_sizes,
    statistics_stride,
)
from ups.datamodules.windows import WindowDataset, training_sampler
from ups.evaluation.results import DatasetInfo
from ups.physics import get_equation
from ups.physics.moving_frame import MovingFrame
from ups.physics.observation import Observation, check_observable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of training windows by the equation's symmetries.

    Args:
        translate: whether to translate windows at random.
        reflect: whether to reflect windows at random.
        max_time_rescale: largest factor of time rescaling. Windows take every 1st, 2nd, ...
            ``max_time_rescale``-th frame equally often. Rescaled, they solve the equation at as
            many times ``nu`` (see docs/method.md). A window is only rescaled to a value within the
            list of ``nu`` and to fields of a usual initial size.
    """

    translate: bool = True
    reflect: bool = True
    max_time_rescale: PositiveInt = 3


class TrajectoryDataModule(pl.LightningDataModule):
    """Trajectories u (N, T, *space, C), split by trajectory.

    Without ``path`` the data are generated once and cached in ``cache_dir``: the equation's initial
    conditions, solved by its ``solve``. With ``path`` any of PDEBench's 1D files of the equation is
    read. The first ``num_train`` trajectories are for training, the last ``num_test`` ones for the
    test, and the ``num_validation`` ones lie before those.

    ``nu`` and ``path`` may be lists, for one model over several values. Each value has its own file
    with the same number of trajectories, and the splits hold one value after the other.

    Training batches are windows of ``unroll_steps`` + 1 frames. Validation and test batches are
    whole trajectories of one ``nu``.

    Args:
        equation: name of the equation, see ``ups.physics.get_equation``; None if the data of
            ``path`` have none. Such data are not augmented.
        path: files to read; None to generate the data.
        cache_dir: folder of generated files. A file of the same recipe is reused.
        nu: the equation's parameter; None, with ``path``, for that of the file, which its attribute
            says or else its name.
        initial_conditions: the recipe of generated data's initial conditions, one of the equation's
            ``initial_conditions``; None for its default.
        num_points: number of points of generated data along each axis, a divisor of
            ``reference_num_points``.
        reference_num_points: number of points of the solver along each axis; None for as many as
            the equation needs, see ``ups.physics.Equation``.
        dt: the time between frames of generated data.
        num_frames: number of frames T of generated data.
        start_time: time for which generated data are solved before their first frame.
        observed_points: number of points along each axis of a coarser grid, on which the first
            frame of every window and trajectory is seen; all other frames are whole. None if the
            first frame is whole too.
        num_train: number of training trajectories.
        num_validation: number of validation trajectories.
        num_test: number of test trajectories.
        temporal_downsampling: keep every so many-th frame of ``path``.
        spatial_downsampling: keep every so many-th point of ``path``.
        unroll_steps: number of steps in a training window.
        samples_per_trajectory: number of windows from each trajectory in an epoch.
        batch_size: windows in a training batch.
        eval_batch_size: trajectories in a validation or test batch.
        augmentation: the arguments of ``Augmentation``; None for its defaults.
        start_time_bias: above 1, early frames are drawn more often; 1 is uniform.
        fixed_windows: whether every epoch takes the same windows.
        in_memory: whether to keep the training data in memory.
        num_workers: worker processes of the training loader.
        seed: seed of generated data.
        sampler_seed: seed of the order of the training windows.
        reader: what reads ``path``, see ``ups.datamodules.readers``.

    Attributes:
        training_parameters: the parameters (P,) of each file.
        spec: describes the field, after ``setup``, like all that follow.
        observation: what is seen of a frame; None if it is seen whole.
        input_sizes: the largest of each of ``ups.simulation.input_range.channel_sizes`` (C,) among
            the fields of the training split from which a rollout is learnt: the initial ones, or
            those of all frames if ``start_time_bias`` is 1. They are as a network sees them.
        num_frames: number of frames T.
        values: fields (N, T, *space, C) of the validation and test splits, the first frame as it is
            observed.
        parameters: parameters (N, P) of each split.
        dataset: a dict that identifies the test set.

    Raises:
        UpsError: a file is missing, damaged or has another layout, there are too few trajectories,
            or the disk is too full.
    """

    def __init__(
        self,
        *,
        equation: EquationName | None,
        path: OneOrMore[PathStr] | None = None,
        cache_dir: Annotated[PathStr, BOOKKEEPING] = "outputs/data",
        nu: OneOrMore[PositiveFloat] | None = None,
        initial_conditions: str | None = None,
        num_points: Annotated[int, Ge(2), Le(LARGEST)] = 256,
        reference_num_points: Annotated[int, Ge(4), Le(LARGEST)] | None = 1024,
        dt: Annotated[float, Gt(0), Le(1000)] = 0.05,
        num_frames: Annotated[int, Ge(2), Le(LARGEST)] = 41,
        num_train: PositiveInt = 1000,
        num_validation: PositiveInt = 100,
        num_test: PositiveInt = 128,
        temporal_downsampling: PositiveInt = 1,
        spatial_downsampling: PositiveInt = 1,
        unroll_steps: PositiveInt = 3,
        samples_per_trajectory: PositiveInt = 10,
        batch_size: PositiveInt = 16,
        eval_batch_size: Annotated[PositiveInt, BOOKKEEPING] = 64,
        augmentation: Annotated[PlainDict | None, SettingsOf(Augmentation)] = None,
        start_time_bias: PositiveFloat = 1.0,
        fixed_windows: bool = False,
        in_memory: Annotated[bool, BOOKKEEPING] = True,
        num_workers: Annotated[NonNegativeInt, BOOKKEEPING] = 0,
        seed: Seed = 0,
        sampler_seed: Seed = 0,
        reader: Annotated[str, Words("pdebench, or package.module.Class")] = "pdebench",
        start_time: NonNegativeFloat = 0.0,
        observed_points: Annotated[int, Ge(2), Le(LARGEST)] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        given = {key: plain(value) for key, value in self.hparams.items()}
        self.hparams.update(given)  # files and checkpoints can't hold numbers of numpy
        nu = self.hparams["nu"]
        if nu is not None and not isinstance(nu, float | int):
            # None in a list leaves the parameter of one file to it
            given["nu"] = [value for value in nu if value is not None] or None
        validate_arguments(type(self), given, "data")
        self.equation_name = equation
        self.equation = None if equation is None else get_equation(equation)
        self.augmentation = Augmentation(**(augmentation or {}))
        if self.equation is not None:
            check_parameters(self.equation, str(equation), nu)
        has_no_parameter = self.equation is not None and not self.equation.parameters
        if path is None and (equation is None or (nu is None and not has_no_parameter)):
            raise UpsError(
                "`data.path` must be a PDEBench file, or `data.equation` and `data.nu` what to "
                "generate data of; got null."
            )
        if path is None and self.equation is not None and self.equation.solve is None:
            raise UpsError(
                f"`data.path` must be a file, got null: the equation {equation} has no solve to "
                "generate data with."
            )
        if path is None and self.equation is not None:
            self.initial_conditions = chosen_recipe(self.equation, initial_conditions)
        if path is None and self._solver_points() % num_points:
            raise UpsError(
                f"`data.num_points` must be a divisor of "
                f"data.reference_num_points={self._solver_points()}, got {num_points}."
            )
        if path is None and self.equation is not None and observed_points is not None:
            check_observable(self.equation, self.equation.grid(num_points), observed_points)
        self.doubts: list[str] = []  # about what was given, for warnings
        nus = [nu] if nu is None or isinstance(nu, float | int) else list(nu)
        if path is None:
            self.parts = self._generated_parts(Path(cache_dir), nus)
        else:
            paths = [path] if isinstance(path, str | Path) else list(path)
            self.parts, self.doubts = given_parts(paths, nus, self.equation, reader)
        self.training_parameters = [[] if value is None else [value] for value, _ in self.parts]
        self.path = self.parts[0][1]
        self.ready = False

    def prepare_data(self) -> None:
        if self.hparams["path"] is None:
            for i, (nu, path) in enumerate(self.parts):
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists():
                    continue
                with file_lock(f"{path}.lock"):  # of parallel sweep jobs only one generates it
                    if not path.exists():
                        check_disk_space(path, self.to_be_made(), "the generated data set")
                        assert self.equation is not None
                        generate(self.equation, self._recipe(i, nu), path)

    def to_be_made(self) -> int:
        """The number of bytes that ``prepare_data`` will write: files, and their parts before."""
        h: Any = self.hparams
        trajectories = h.num_train + h.num_validation + h.num_test
        each = 2 * trajectories * h.num_frames * self._values_per_frame() * 4
        return 0 if h.path is not None else sum(each for _, path in self.parts if not path.exists())

    def train_bytes(self) -> int:
        """The number of bytes of the training data in memory."""
        h: Any = self.hparams
        frames, values = h.num_frames, self._values_per_frame()
        if h.path is not None:
            file = self.open_files()[0]
            frames, values = file.frames, file.read([0], 0, 1).size
        return len(self.parts) * h.num_train * frames * values * 4

    def _solver_points(self) -> int:
        """The number of points along each axis with which data are generated."""
        h: Any = self.hparams
        if h.reference_num_points is not None or self.equation is None:
            return int(h.reference_num_points)
        return int(h.num_points * self.equation.solver_refinement)

    def _values_per_frame(self) -> int:
        """The number of values of a frame of generated data."""
        if self.equation is None:
            return 0
        points = self.hparams["num_points"] ** self.equation.num_dims
        return int(points) * len(self.equation.channels)

    def space(self) -> tuple[int, ...]:
        """The number of points along each axis, known before ``setup``."""
        if self.hparams["path"] is None and self.equation is not None:
            return (int(self.hparams["num_points"]),) * self.equation.num_dims
        return self.open_files()[0].grid.shape

    def setup(self, stage: str | None = None) -> None:
        if self.ready:
            return
        for doubt in self.doubts:
            log.warning("%s", doubt)
        h: Any = self.hparams
        files = self.open_files()
        first = files[0]
        _check_agreement(files)
        if h.unroll_steps >= first.frames:
            raise UpsError(
                f"`data.unroll_steps` must be at most {first.frames - 1}, one less than the frames "
                f"of {first.path}; got {h.unroll_steps}."
            )
        rows = self.rows(first.trajectories)
        self.num_frames = first.frames
        num_values = first.frames * first.read(rows["train"][:1], 0, 1).size  # of a trajectory
        if h.in_memory:
            check_memory(self.train_bytes(), "data.in_memory=true")
        held_out = len(rows["validation"]) + len(rows["test"])
        check_memory(4 * len(files) * held_out * num_values, "data.num_validation + data.num_test")
        self.train_sources = [(file, row) for file in files for row in rows["train"]]
        every = statistics_stride(len(rows["train"]), num_values)
        train_rows = rows["train"] if h.in_memory else rows["train"][::every]
        read = {
            split: [file.read(chosen) for file in files]
            for split, chosen in {**rows, "train": train_rows}.items()
        }
        if h.in_memory and h.path is None:
            for file, *parts in zip(files, *read.values(), strict=True):
                file.verify_checksum(parts)
        self.train_values = _joined(read["train"]) if h.in_memory else None
        known = _joined([part[::every] if h.in_memory else part for part in read["train"]])
        self.parameters = {split: self.read_parameters(files, rows[split]) for split in SPLITS}
        self.spec = self._describe(first, known)
        first_frames = torch.from_numpy(known[:, :1])
        frame = MovingFrame(self.equation, first_frames[:, 0], first.grid, first.dt)
        initial = self._observed(frame.enter(first_frames)[:, 0], first.grid)
        # the initial amplitude of most solutions
        self.amplitude_cap = float(np.quantile(initial.abs().flatten(1).amax(1).numpy(), 0.8))
        inputs = known if h.start_time_bias == 1 else known[:, :1]
        self.input_sizes = largest_sizes(inputs, first, self.equation, self.observation)
        self.values = {split: torch.from_numpy(_joined(read[split])) for split in SPLITS[1:]}
        if self.observation is not None:
            for values in self.values.values():
                values[:, 0] = self.observation(values[:, 0])
        self.dataset = self._test_set(first)
        self.ready = True

    def _test_set(self, file: Reader) -> DatasetInfo:
        """What identifies the test set."""
        nus = [nu for nu, _ in self.parts]
        return {
            "name": self._name(*nus),
            "hash": digest([self.values["test"].numpy()]),
            "split": "test",
            "trajectories": len(self.values["test"]),
            "points": file.grid.num_points,
            "frames": file.frames,
            "nu": nus[0] if len(nus) == 1 else nus,
        }

    def _observed(self, fields: Tensor, grid: Grid) -> Tensor:
        """Set ``observation``, and return what it shows of initial training fields."""
        num_points = self.hparams["observed_points"]
        self.observation = None
        if num_points is None:
            return fields
        self.observation = Observation(self.equation, grid, num_points, fields)
        return self.observation(fields)

    def input_range(self, spec: FieldSpec) -> dict[str, float]:
        """``input_sizes`` in the standard deviations of ``spec``, the largest of all channels."""
        std = torch.tensor(spec.std)
        return {name: (size / std).max().item() for name, size in self.input_sizes.items()}

    def rows(self, trajectories: int) -> dict[str, Sequence[int]]:
        """The rows of each split in a file of so many ``trajectories``."""
        h: Any = self.hparams
        test = trajectories - h.num_test
        return {
            "train": range(h.num_train),
            "validation": range(test - h.num_validation, test),
            "test": range(test, trajectories),
        }

    def read_parameters(self, files: Sequence[Reader], rows: Sequence[int]) -> Tensor:
        """The parameters (N, P) of ``rows`` of each file."""
        known = torch.tensor(self.training_parameters, dtype=torch.float32)
        return known.repeat_interleave(len(rows), 0)

    def _describe(self, file: Reader, values: np.ndarray) -> FieldSpec:
        """Describe the field by training data (N, T, *space, C)."""
        if self.equation is not None:
            return describe_solutions(self.equation, file, values)
        return describe_data(
            file,
            values,
            self.channel_names(values.shape[-1]),
            self.parameter_names(),
            self.parameters["train"],
        )

    def channel_names(self, number: int) -> tuple[str, ...]:
        """The names of the channels of data without an equation."""
        return tuple(f"u{c}" if c else "u" for c in range(number))

    def parameter_names(self) -> tuple[str, ...]:
        """The names of the parameters of data without an equation."""
        return tuple("nu" for _ in self.training_parameters[0])

    def open_files(self) -> list[Reader]:
        """Open the files that exist.

        Raises:
            UpsError: one is damaged or holds too few trajectories.
        """
        return [
            self._open(path)
            for _, path in self.parts
            if self.hparams["path"] is not None or path.exists()
        ]

    def _open(self, path: Path) -> Reader:
        h: Any = self.hparams
        reader = get_reader(h.reader, READERS) if h.path is not None else TrajectoryFile
        file = reader(path, h.temporal_downsampling, h.spatial_downsampling)
        wanted = h.num_train + h.num_validation + h.num_test
        if wanted > file.trajectories:
            raise UpsError(
                f"{path} holds {file.trajectories} trajectories, but "
                f"data.num_train={h.num_train}, data.num_validation={h.num_validation} "
                f"and data.num_test={h.num_test} ask for {wanted}"
            )
        return file

    def train_dataloader(self) -> DataLoader[Batch]:
        h: Any = self.hparams
        sampler = training_sampler(
            self,
            len(self.train_sources),
            self.spec.grid.shape,
            translate=self.augmentation.translate,
            reflect=self.augmentation.reflect,
            max_time_rescale=self._max_time_rescale(),
        )
        dataset = WindowDataset(
            self.train_sources,
            self.train_values,
            h.unroll_steps,
            self.parameters["train"],
            self.spec.grid,
            self.spec.dt,
            self.equation,
            self.amplitude_cap,
            self.observation,
        )
        return DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=h.num_workers)

    def _max_time_rescale(self) -> np.ndarray:
        """The largest stride of the windows of each trajectory (N,).

        A rescaled window has parameters within the training range and fits into a trajectory.
        """
        largest = min(
            self.augmentation.max_time_rescale,
            (self.num_frames - 1) // self.hparams["unroll_steps"],
        )
        values = self.parameters["train"].numpy()
        symmetry = self.equation.symmetry("rescale_time") if self.equation else None
        strides = np.ones(len(values), int)
        if symmetry is None or not values.size:
            return strides
        for stride in range(2, largest + 1):
            factors = torch.full((len(values),), stride)
            rescaled = symmetry.parameters(self.parameters["train"], factors).numpy()
            is_within = (rescaled <= values.max(0) * (1 + 1e-6)).all(1)
            strides[is_within] = stride
        return strides

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._whole("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._whole("test")

    def _whole(self, split: Split) -> DataLoader[Batch]:
        size = self.hparams["eval_batch_size"]
        num_values = len(self.values[split])
        batches = []
        # one part for each nu
        for part in torch.arange(num_values).split(num_values // len(self.parts)):
            batches += [
                Batch(self.values[split][i], self.parameters[split][i], i, i)
                for i in part.split(size)
            ]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list is a data set

    def _generated_parts(self, cache_dir: Path, nus: Sequence[float | None]) -> list[Part]:
        """Pair each value of nu, or None, with the file that is made for it."""
        return [
            (nu, cache_dir / f"{self._name(nu)}-{short_hash(self._recipe(i, nu))}.hdf5")
            for i, nu in enumerate(None if nu is None else float(nu) for nu in nus)
        ]

    def _name(self, *nus: float | None) -> str:
        """The name of the data set."""
        if self.equation is None:
            return ",".join(path.stem for _, path in self.parts)
        values = ",".join(f"{nu:g}" for nu in nus if nu is not None)
        return "-".join([self.equation.name, *(name + values for name in self.equation.parameters)])

    def _recipe(self, part: int, nu: float | None) -> Recipe:
        h: Any = self.hparams
        recipe: Recipe = {
            "equation": self.equation_name,
            "version": 2,
            "initial_conditions": self.initial_conditions,
            "nu": nu,
            "seed": h.seed + part,  # different initial conditions for every nu
            "points": h.num_points,
            "solver_points": self._solver_points(),
            "dt": h.dt,
            "frames": h.num_frames,
            "train": h.num_train,
            "validation": h.num_validation,
            "test": h.num_test,
        }
        if h.start_time:
            recipe["start_time"] = h.start_time
        return recipe


def _check_agreement(files: Sequence[Reader]) -> None:
    """Check that the files of a data set have the same domain, time step and number of frames.

    Raises:
        UpsError: one differs from the first.
    """
    first = files[0]
    for file in files[1:]:
        found = disagreements(_essentials(first), _essentials(file))
        if found:
            raise UpsError(
                f"files of one data set must agree; in {file.path} {', '.join(found)} "
                f"(the first is {first.path})."
            )


def _essentials(file: Reader) -> dict[str, object]:
    """What the files of one data set must agree in."""
    return {"frames": file.frames, "dt": file.dt, **domain_essentials(file.grid)}


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    # concatenate copies a single part
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
