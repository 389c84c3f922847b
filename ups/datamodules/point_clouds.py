"""Trajectories at points that differ: flows past obstacles, generated or read from a file."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import lightning.pytorch as pl
import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, PointCloud
from ups.core.io import check_memory
from ups.core.points import Points
from ups.core.schema import (
    BOOKKEEPING,
    LARGEST,
    OneOrMore,
    PathStr,
    PositiveFloat,
    PositiveInt,
    Seed,
    SettingsOf,
    Text,
    Words,
    plain,
    validate_arguments,
)
from ups.core.settings import PlainDict
from ups.datamodules.generate import SPLITS, Split
from ups.datamodules.obstacles import ObstacleFlows, file_of, generate_obstacles
from ups.datamodules.own import draw_splits, split_sizes
from ups.datamodules.readers import POINT_READERS, PointReader, open_reader
from ups.datamodules.readers.pdebench import digest
from ups.datamodules.readers.point_clouds import PointCloudFile
from ups.datamodules.statistics import check_std
from ups.datamodules.windows import WindowIndices, training_sampler
from ups.evaluation.results import DatasetInfo
from ups.physics.lattice_boltzmann import CHANNELS

SPLIT_SIZES = ("num_train", "num_validation", "num_test")
# arguments of ``ObstacleFlows`` that are settings of the data module
SIZES = (*SPLIT_SIZES, "num_frames", "seed")
GENERATED_LAYOUT = "point_clouds"  # the reader of generated files
# fields (T, P, C), positions (P, D) and features (P, F) of one trajectory
Sample = tuple[Tensor, Tensor, Tensor]


class PointWindows(Dataset[Batch]):
    """Makes training batches of windows at random points.

    Of every window the points that an encoder gets and those at which a decoder is asked are two
    draws, so that a model can rely on neither. Batch n of a run has the same points whenever it is
    made.

    Args:
        trajectories: the trajectories.
        parameters: their parameters (N, P).
        unroll_steps: number of steps in a window.
        input_points: the most points of an encoder.
        query_points: the most points of a decoder; None for those of the encoder, for models that
            step a field at its own points.
    """

    def __init__(
        self,
        trajectories: Sequence[Sample],
        parameters: Tensor,
        unroll_steps: int,
        input_points: int,
        query_points: int | None,
    ) -> None:
        self.trajectories = trajectories
        self.parameters = parameters
        self.unroll_steps = unroll_steps
        self.input_points = input_points
        self.query_points = query_points

    def __getitem__(self, w: WindowIndices) -> Batch:
        rng = np.random.default_rng(w.seed.tolist())
        inputs = []
        queries = []
        for i, start in zip(w.trajectory, w.start, strict=True):
            fields, positions, features = self.trajectories[i]
            window = fields[start : start + self.unroll_steps + 1]
            seen = window if self.query_points is None else window[:1]
            inputs.append(_draw((seen, positions, features), self.input_points, rng))
            if self.query_points is not None:
                queries.append(_draw((window, positions, features), self.query_points, rng))
        initial, initial_points = padded(inputs, self.input_points)
        parameters = self.parameters[w.trajectory]
        indices = (torch.from_numpy(w.trajectory), torch.from_numpy(w.number))
        if self.query_points is None:
            return Batch(initial, parameters, *indices, initial_points)
        u, points = padded(queries, self.query_points)
        return Batch(u, parameters, *indices, points, initial[:, 0], initial_points)


def _draw(sample: Sample, number: int, rng: np.random.Generator) -> Sample:
    """The sample at ``number`` of its points, or at all if it has fewer."""
    fields, positions, features = sample
    chosen = torch.from_numpy(rng.permutation(len(positions))[:number])
    return fields[:, chosen], positions[chosen], features[chosen]


def padded(samples: Sequence[Sample], number: int = 0) -> tuple[Tensor, Points]:
    """Fields (B, T, P, C) and the points of samples, padded to at least ``number`` points.

    Args:
        samples: the samples, each with its own P.
        number: the smallest P of the result.
    """
    sizes = torch.tensor([len(positions) for _, positions, _ in samples])
    longest = max(number, int(sizes.max()))

    def joined(values: Sequence[Tensor], axis: int) -> Tensor:
        return torch.stack([_extended(each, axis, longest) for each in values])

    fields, positions, features = zip(*samples, strict=True)
    mask = torch.arange(longest) < sizes[:, None]
    points = Points(joined(positions, 0), joined(features, 0), mask)
    return joined(fields, 1), points


def _extended(values: Tensor, axis: int, size: int) -> Tensor:
    """The values with zeros at the end of an axis."""
    shape = list(values.shape)
    shape[axis] = size - shape[axis]
    return torch.cat((values, values.new_zeros(shape)), axis)


class PointCloudDataModule(pl.LightningDataModule):
    """Trajectories at points, other ones for each, split by trajectory.

    Without ``path`` flows past obstacles are generated once and cached in ``cache_dir``, see
    ``ups.datamodules.obstacles``. With ``path`` a file of the same layout is read, see
    ``ups.datamodules.readers.point_clouds``, or what another reader opens. Splits that the files
    don't have are drawn at random. No equation is assumed.

    Training batches are windows of ``unroll_steps`` + 1 frames at random points of each trajectory.
    Validation and test batches are whole trajectories at all their points.

    Args:
        path: a file or a folder to read; None to generate one.
        reader: what reads ``path``, see ``ups.datamodules.readers``.
        dt: the time between the frames of ``path``; None if its files say it.
        field: the names of the fields of ``path``; None for all.
        cache_dir: folder of generated files. A file of the same flows is reused.
        name: the name of generated data, and of runs with them.
        flows: the arguments of ``ObstacleFlows`` for generated data; None for its defaults.
        num_frames: number of frames T of generated data.
        num_train: number of training trajectories; None for those of the file, or all that the
            others leave.
        num_validation: number of validation trajectories; None for those of the file, or a tenth.
        num_test: number of test trajectories; None for those of the file, or a tenth.
        temporal_downsampling: keep every so many-th frame of ``path``.
        spatial_downsampling: keep every so many-th point of each trajectory of ``path``.
        input_points: the most points that an encoder gets in training, a new draw for a window.
        query_points: the most points at which a decoder is asked in training, drawn separately;
            None for the points of the encoder.
        unroll_steps: number of steps in a training window.
        samples_per_trajectory: number of windows from each trajectory in an epoch.
        batch_size: windows in a training batch.
        eval_batch_size: trajectories in a validation or test batch.
        start_time_bias: above 1, early frames are drawn more often; 1 is uniform.
        fixed_windows: whether every epoch takes the same windows at the same points.
        seed: seed of generated data, and of splits that are drawn.
        sampler_seed: seed of the order of the training windows and of their points.

    Attributes:
        training_parameters: the smallest and the largest parameters (P,) of the training data,
            after ``setup``, like all that follow.
        spec: describes the field.
        values: fields (N, T, P, C) of the validation and test splits, with zeros where a trajectory
            has fewer points.
        points: the points of the validation and test trajectories.
        parameters: parameters (N, P) of each split.
        dataset: a dict that identifies the test set.

    Raises:
        UpsError: a file is missing, damaged or has another layout, there are too few trajectories,
            or the disk is too full.
    """

    equation = None
    equation_name: str | None = None
    observation = None

    def __init__(
        self,
        *,
        path: PathStr | None = None,
        reader: Annotated[
            str, Words("the name of a reader, or package.module.Class")
        ] = "point_clouds",
        dt: PositiveFloat | None = None,
        field: OneOrMore[Text] | None = None,
        cache_dir: Annotated[PathStr, BOOKKEEPING] = "outputs/data",
        name: Text = "obstacles",
        flows: Annotated[PlainDict | None, SettingsOf(ObstacleFlows, without=SIZES)] = None,
        num_frames: Annotated[int, Ge(2), Le(LARGEST)] = 41,
        num_train: PositiveInt | None = None,
        num_validation: PositiveInt | None = None,
        num_test: PositiveInt | None = None,
        temporal_downsampling: PositiveInt = 1,
        spatial_downsampling: PositiveInt = 1,
        input_points: PositiveInt = 1024,
        query_points: PositiveInt | None = 1024,
        unroll_steps: PositiveInt = 2,
        samples_per_trajectory: PositiveInt = 20,
        batch_size: PositiveInt = 8,
        eval_batch_size: Annotated[PositiveInt, BOOKKEEPING] = 8,
        start_time_bias: PositiveFloat = 1.0,
        fixed_windows: bool = False,
        seed: Seed = 0,
        sampler_seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        given = {key: plain(value) for key, value in self.hparams.items()}
        self.hparams.update(given)  # files and checkpoints can't hold numbers of numpy
        validate_arguments(type(self), given, "data")
        if path is None:
            if reader != GENERATED_LAYOUT:
                raise UpsError(f"`data.path` must be given: data.reader={reader} reads it.")
            self.flows = self._flows()
            self.path = file_of(self.flows, Path(cache_dir))
            sizes = dict(zip(SPLIT_SIZES, self.flows.splits, strict=True))
        else:
            self.path = Path(path)
            sizes = split_sizes(self._open(), num_train, num_validation, num_test)
        self.hparams.update(sizes)
        self.ready = False

    def _flows(self) -> ObstacleFlows:
        """What to generate."""
        h: Any = self.hparams
        sizes = {name: h[name] for name in SIZES if h[name] is not None}
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in (h.flows or {}).items()
        }
        return ObstacleFlows(**given, **sizes)

    def prepare_data(self) -> None:
        if self.hparams["path"] is None:
            generate_obstacles(self.flows, self.path.parent)

    def to_be_made(self) -> int:
        """The number of bytes that ``prepare_data`` will write: the file, and its parts before."""
        if self.hparams["path"] is not None or self.path.exists():
            return 0
        values = self.flows.num_frames * self.flows.num_points[1] * len(CHANNELS)
        return 2 * 4 * sum(self.flows.splits) * values

    def train_bytes(self) -> int:
        """The number of bytes of the training data in memory."""
        h: Any = self.hparams
        if not self.path.exists():
            values = self.flows.num_frames * self.flows.num_points[1] * len(CHANNELS)
            return 4 * h.num_train * values
        file = self._open()
        sizes = [len(file.points(i)[0]) for i in self._rows(file)["train"]]
        return 4 * sum(sizes) * file.frames * len(file.channels)

    def open_files(self) -> list[PointReader]:
        """Open the files, if they exist."""
        return [self._open()] if self.hparams["path"] is not None or self.path.exists() else []

    def _open(self) -> PointReader:
        h: Any = self.hparams
        if not self.path.exists():
            raise UpsError(f"`data.path` must be a file or a folder: there is no {self.path}.")
        about = {"dt": h.dt, "field": h.field}
        return open_reader(
            h.reader,
            POINT_READERS,
            self.path,
            (h.temporal_downsampling, h.spatial_downsampling),
            {key: value for key, value in about.items() if value is not None},
        )

    def _rows(self, file: PointReader) -> dict[str, Sequence[int]]:
        """The trajectories of each split."""
        sizes: dict[str, int] = {split: self.hparams[f"num_{split}"] for split in SPLITS}
        if file.splits is None:
            rng = np.random.default_rng(self.hparams["seed"])
            return draw_splits(file.trajectories, sizes, rng)
        return {split: file.splits[split][: sizes[split]] for split in SPLITS}

    def setup(self, stage: str | None = None) -> None:
        if self.ready:
            return
        h: Any = self.hparams
        file = self._open()
        if h.unroll_steps >= file.frames:
            raise UpsError(
                f"`data.unroll_steps` must be at most {file.frames - 1}, one less than the frames "
                f"of {file.path}; got {h.unroll_steps}."
            )
        check_memory(self.train_bytes(), "the training data")
        rows = self._rows(file)
        self.num_frames = file.frames
        self.parameters = {split: _parameters(file, chosen) for split, chosen in rows.items()}
        samples = {split: [_sample(file, i) for i in chosen] for split, chosen in rows.items()}
        if h.path is None and isinstance(file, PointCloudFile):
            file.verify_checksum([fields for each in samples.values() for fields, _, _ in each])
        self.train = samples["train"]
        self.spec = self._describe(file)
        known = self.parameters["train"]
        self.training_parameters = [known.amin(0).tolist(), known.amax(0).tolist()]
        self.values: dict[Split, Tensor] = {}
        self.points: dict[Split, Points] = {}
        for split in SPLITS[1:]:
            self.values[split], self.points[split] = padded(samples[split])
        self.dataset = self._identify(samples["test"])
        self.ready = True

    def _identify(self, test: Sequence[Sample]) -> DatasetInfo:
        """What identifies a test set: its fields, and where and next to what they are."""
        h: Any = self.hparams
        content = [
            torch.cat((fields.movedim(1, 0).flatten(1), positions, features), 1).numpy()
            for fields, positions, features in test
        ]
        return {
            "name": h.name if h.path is None else self.path.stem,
            "hash": digest(content),
            "split": "test",
            "trajectories": len(test),
            "points": round(np.mean([len(each) for each in content])),  # of a trajectory
            "frames": self.num_frames,
            "nu": None,
        }

    def _describe(self, file: PointReader) -> FieldSpec:
        """Describe the field, with the statistics of the training data."""
        mean, std = _statistics([fields for fields, _, _ in self.train])
        check_std(file.path, std.numpy())
        positions = torch.cat([each for _, each, _ in self.train])
        lower, upper = positions.amin(0).tolist(), positions.amax(0).tolist()
        size = max(map(abs, (*lower, *upper)))
        faces = ([_rounded(position, size) for position in each] for each in (lower, upper))
        edges = tuple(zip(*faces, strict=True))
        units = _usual_sizes([features for _, _, features in self.train])
        return FieldSpec(
            PointCloud(edges, file.features, units),
            file.channels,
            tuple(file.parameters),
            file.dt,
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
            largest=tuple(self._largest(mean).tolist()),
            conserves_mean=False,
            time_unit=file.dt,
            parameter_units=tuple(self.parameters["train"].double().log().mean(0).exp().tolist()),
            is_homogeneous=False,
        )

    def input_range(self, spec: FieldSpec) -> dict[str, float]:
        """The largest value of the training data in the standard deviations of ``spec``."""
        largest = self._largest(torch.zeros(spec.num_channels))
        return {"largest value": (largest / torch.tensor(spec.std)).max().item()}

    def _largest(self, mean: Tensor) -> Tensor:
        """The largest distance from ``mean`` (C,) in the training data, of each channel (C,)."""
        each = [(fields - mean).abs().amax((0, 1)) for fields, _, _ in self.train]
        return torch.stack(each).amax(0)

    def train_dataloader(self) -> DataLoader[Batch]:
        h: Any = self.hparams
        nowhere = (1,)  # points without an order can't be moved
        sampler = training_sampler(self, len(self.train), nowhere, translate=False, reflect=False)
        sizes = (h.unroll_steps, h.input_points, h.query_points)
        dataset = PointWindows(self.train, self.parameters["train"], *sizes)
        return DataLoader(dataset, sampler=sampler, batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._whole("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._whole("test")

    def _whole(self, split: Split) -> DataLoader[Batch]:
        points = self.points[split]
        batches = [
            Batch(self.values[split][i], self.parameters[split][i], i, i, points.select(i))
            for i in torch.arange(len(self.values[split])).split(self.hparams["eval_batch_size"])
        ]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list is a data set


def _sample(file: PointReader, trajectory: int) -> Sample:
    """The fields (T, P, C), positions (P, D) and features (P, F) of a trajectory, float32.

    Raises:
        UpsError: some are not finite.
    """
    (fields,) = file.read([trajectory])
    positions, features = file.points(trajectory)
    arrays = {"fields": fields, "positions": positions, "features": features}
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(array, np.float32))
        for name, array in arrays.items()
    }
    for name, values in tensors.items():
        if not bool(values.isfinite().all()):
            raise UpsError(
                f"{file.path}: the {name} of trajectory {trajectory} must be finite in float32."
            )
    return tensors["fields"], tensors["positions"], tensors["features"]


def _parameters(file: PointReader, rows: Sequence[int]) -> Tensor:
    """The parameters (N, P) of trajectories, float32.

    Raises:
        UpsError: some are not positive and finite.
    """
    for name, values in file.parameters.items():
        wrong = next((i for i in rows if not 0 < values[i] < math.inf), None)
        if wrong is not None:
            raise UpsError(
                f"{file.path}: the parameter '{name}' must be positive and finite, got "
                f"{values[wrong]:g} for trajectory {wrong}."
            )
    columns = [torch.from_numpy(values[rows]).float() for values in file.parameters.values()]
    return torch.stack(columns, 1) if columns else torch.empty(len(rows), 0)


def _statistics(trajectories: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of fields (T, P, C), in float64, of one after the other."""
    number = sum(fields[..., 0].numel() for fields in trajectories)
    mean = sum(fields.double().sum((0, 1)) for fields in trajectories) / number
    squares = sum((fields.double() - mean).square().sum((0, 1)) for fields in trajectories)
    return torch.as_tensor(mean), torch.as_tensor(squares / number).sqrt()


def _usual_sizes(trajectories: Sequence[Tensor]) -> tuple[float, ...]:
    """The root mean square of each feature of (P, F), 1 of those that only mark points by 1."""
    known = torch.cat(list(trajectories)).double()
    size = known.square().mean(0).sqrt()
    is_mark = ((known == 0) | (known == 1)).all(0)
    return tuple(torch.where(is_mark, 1.0, size).tolist())


def _rounded(position: float, size: float) -> float:
    """A position among those of this size, without the rounding of float32."""
    return round(position, 6 - math.floor(math.log10(size))) + 0.0 if size else position
