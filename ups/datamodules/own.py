"""One's own data, from an array in a file; no equation is assumed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.schema import PathStr, PositiveFloat, PositiveInt, Seed, Without
from ups.datamodules.readers import Reader
from ups.datamodules.readers.arrays import ArrayFile
from ups.datamodules.trajectories import TrajectoryDataModule

SHARE = 0.1  # of the trajectories, for a split whose size is not given
# more values of the parameters than this are remembered as their range
MAX_LISTED = 8
GENERATED = ("cache_dir", "nu", "initial_conditions", "num_points", "reference_num_points",
             "num_frames", "reader", "equation")  # fmt: skip


class OwnDataModule(TrajectoryDataModule):
    """Trajectories u (N, T, X) or (N, T, X, C) of a periodic line, from one file.

    The splits are drawn at random. Nothing is assumed about the equation: no baseline solves it, no
    window is augmented, and the mean of a channel is kept only if the training data keep it.

    Args:
        path: a .npy, .npz, HDF5, zarr or NetCDF file, see ``ups.datamodules.readers.arrays``.
            Arrays (N,) beside the fields are parameters.
        dt: the time between frames; None if the file says its times.
        length: the length of the line; None if the file says its positions.
        field: the name of the array of fields; None for the only one with 3 or 4 axes, or "u".
        num_train: number of training trajectories; None for all that the others leave.
        num_validation: number of validation trajectories; None for a tenth.
        num_test: number of test trajectories; None for a tenth.
        seed: seed of the splits.
        options: those arguments of ``TrajectoryDataModule`` that are not about generated data.
    """

    def __init__(
        self,
        path: PathStr,
        dt: PositiveFloat | None = None,
        length: PositiveFloat | None = None,
        field: str | None = None,
        num_train: PositiveInt | None = None,
        num_validation: PositiveInt | None = None,
        num_test: PositiveInt | None = None,
        seed: Seed = 0,
        **options: Annotated[Any, Without(GENERATED)],
    ) -> None:
        thinning = (
            options.get("temporal_downsampling", 1),
            options.get("spatial_downsampling", 1),
        )
        self.file = ArrayFile(Path(path), *thinning, dt, length, field)
        sizes = split_sizes(self.file, num_train, num_validation, num_test)
        everything: dict[str, Any] = {**options, **sizes}
        super().__init__(equation=None, path=path, seed=seed, **everything)
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
        order = np.random.default_rng(h.seed).permutation(trajectories)
        parts = np.split(order, np.cumsum((h.num_test, h.num_validation, h.num_train)))
        test, validation, train, _ = (sorted(part.tolist()) for part in parts)
        return {"train": train, "validation": validation, "test": test}

    def read_parameters(self, files: Sequence[Reader], rows: Sequence[int]) -> Tensor:
        if not self.file.parameters:
            return torch.empty(len(rows), 0, dtype=torch.float32)
        columns = [values[rows] for values in self.file.parameters.values()]
        return torch.from_numpy(np.stack(columns, 1)).float()

    def parameter_names(self) -> tuple[str, ...]:
        return tuple(self.file.parameters)


def split_sizes(
    file: ArrayFile, num_train: int | None, num_validation: int | None, num_test: int | None
) -> dict[str, int]:
    """The sizes of the splits of a file; those that are None are shares of its trajectories.

    Raises:
        UpsError: they don't fit.
    """
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
