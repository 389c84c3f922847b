"""Data from files; no equation is assumed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.schema import (
    NonEmpty,
    OneOrMore,
    PathStr,
    PositiveFloat,
    PositiveInt,
    Seed,
    Text,
    Without,
    Words,
    plain,
    validate_arguments,
)
from ups.datamodules.readers import READERS, Reader, Trajectories, open_reader
from ups.datamodules.trajectories import TrajectoryDataModule

SHARE = 0.1  # of the trajectories, for a split whose size is not given
# more values of the parameters than this are remembered as their range
MAX_LISTED = 8
GENERATED = ("cache_dir", "nu", "initial_conditions", "num_points", "reference_num_points",
             "num_frames", "start_time", "observed_points", "reader", "equation")  # fmt: skip
Side = Literal["periodic", "wall", "open"]


class OwnDataModule(TrajectoryDataModule):
    """Trajectories u (N, T, *space, C) in one, two or three dimensions, from a file or a folder.

    Splits that the files don't have are drawn at random. Nothing is assumed about the equation: no
    baseline solves it, no window is augmented, and the mean of a channel is kept only if the
    training data keep it.

    What the files say themselves need not be given. A reader refuses what it has no use for.

    Args:
        path: a .npy, .npz, HDF5, zarr, NetCDF or MATLAB file, see
            ``ups.datamodules.readers.arrays``, or what another reader opens. Arrays (N,) beside the
            fields are parameters.
        dt: the time between frames; None if the file says its times.
        length: the length of each axis, or one for all; None if the file says its positions.
        field: the array of fields, or a list of several; None for the only one, or "u".
        num_train: number of training trajectories; None for all that the others leave.
        num_validation: number of validation trajectories; None for a tenth, or the file's.
        num_test: number of test trajectories; None for a tenth, or the file's.
        seed: seed of the splits.
        num_dims: number of dimensions of space; None if the file or the shape of its array says it.
        boundary: what lies beyond both sides of each axis, or of all; None for what the file says,
            or else periodic.
        channels: names of the channels; None for those of the file.
        reader: what reads ``path``, see ``ups.datamodules.readers``.
        options: those arguments of ``TrajectoryDataModule`` that are not about generated data.
    """

    def __init__(
        self,
        path: PathStr,
        dt: PositiveFloat | None = None,
        length: OneOrMore[PositiveFloat] | None = None,
        field: OneOrMore[Text] | None = None,
        num_train: PositiveInt | None = None,
        num_validation: PositiveInt | None = None,
        num_test: PositiveInt | None = None,
        seed: Seed = 0,
        num_dims: Annotated[int, Ge(1), Le(3)] | None = None,
        boundary: OneOrMore[Side] | None = None,
        channels: NonEmpty[str] | None = None,
        reader: Annotated[str, Words("the name of a reader, or package.module.Class")] = "arrays",
        **options: Annotated[Any, Without(GENERATED)],
    ) -> None:
        about = {
            "dt": dt,
            "length": length,
            "field": field,
            "num_dims": num_dims,
            "boundary": boundary,
            "channels": channels,
        }
        settings = {key: plain(value) for key, value in about.items() if value is not None}
        validate_arguments(type(self), {**settings, "reader": reader}, "data")
        thinning = (
            options.get("temporal_downsampling", 1),
            options.get("spatial_downsampling", 1),
        )
        self.file = open_reader(reader, READERS, Path(path), thinning, settings)
        sizes = split_sizes(self.file, num_train, num_validation, num_test)
        everything: dict[str, Any] = {**options, **sizes}
        super().__init__(equation=None, path=path, seed=seed, reader=reader, **everything)
        self.hparams.update(sizes)

    def open_files(self) -> list[Reader]:
        return [self.file]

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        rows = {tuple(row) for row in self.parameters["train"].tolist()}
        if len(rows) > MAX_LISTED:
            known = self.parameters["train"]
            rows = {tuple(known.amin(0).tolist()), tuple(known.amax(0).tolist())}
        self.training_parameters = sorted(list(row) for row in rows)

    def rows(self, trajectories: int) -> dict[str, Sequence[int]]:
        h: Any = self.hparams
        rng = np.random.default_rng(h.seed)
        sizes = {"train": h.num_train, "validation": h.num_validation, "test": h.num_test}
        if self.file.splits is not None:
            return {
                split: sorted(rng.permutation(known)[: sizes[split]].tolist())
                for split, known in self.file.splits.items()
            }
        return draw_splits(trajectories, sizes, rng)

    def read_parameters(self, files: Sequence[Reader], rows: Sequence[int]) -> Tensor:
        if not self.file.parameters:
            return torch.empty(len(rows), 0, dtype=torch.float32)
        columns = [values[rows] for values in self.file.parameters.values()]
        return torch.from_numpy(np.stack(columns, 1)).float()

    def channel_names(self, number: int) -> tuple[str, ...]:
        return self.file.channels

    def parameter_names(self) -> tuple[str, ...]:
        return tuple(self.file.parameters)


def draw_splits(
    trajectories: int, sizes: Mapping[str, int], rng: np.random.Generator
) -> dict[str, Sequence[int]]:
    """Draw so many trajectories of each split, of all."""
    order = rng.permutation(trajectories)
    ends = np.cumsum([sizes["test"], sizes["validation"], sizes["train"]])
    test, validation, train, _ = (sorted(part.tolist()) for part in np.split(order, ends))
    return {"train": train, "validation": validation, "test": test}


def split_sizes(
    file: Trajectories,
    num_train: int | None,
    num_validation: int | None,
    num_test: int | None,
) -> dict[str, int]:
    """The sizes of the splits of a file.

    Those that are None are the file's own, or else shares of its trajectories.

    Raises:
        UpsError: they don't fit.
    """
    given = {"num_train": num_train, "num_validation": num_validation, "num_test": num_test}
    if file.splits is not None:
        return _sizes_within(file, file.splits, given)
    validation, test = (
        max(1, round(SHARE * file.trajectories)) if size is None else size
        for size in (num_validation, num_test)
    )
    left = file.trajectories - validation - test
    train = left if num_train is None else num_train
    sizes = {"num_train": train, "num_validation": validation, "num_test": test}
    if not 1 <= train <= left:
        asked = ", ".join(f"data.{name}={size}" for name, size in sizes.items())
        raise UpsError(
            f"{file.path} holds {file.trajectories} trajectories, too few for {asked}; "
            "each split needs one at least"
        )
    return sizes


def _sizes_within(
    file: Trajectories,
    splits: Mapping[str, Sequence[int]],
    given: Mapping[str, int | None],
) -> dict[str, int]:
    """The sizes of the file's own splits, or less if less is given."""
    sizes = {}
    for key, size in given.items():
        known = len(splits[key.removeprefix("num_")])
        if size is not None and size > known:
            raise UpsError(
                f"`data.{key}` must be at most {known}, the trajectories of that split in "
                f"{file.path}; got {size}."
            )
        sizes[key] = known if size is None else size
    return sizes
