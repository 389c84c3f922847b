"""Trajectories on point clouds: an HDF5 file in which each trajectory has its own points.

Of N trajectories with P points in all, T frames and C channels:

- `offsets` (N + 1,): the points of trajectory i are `offsets[i]` to `offsets[i + 1]`, in an order
  without meaning, so that any first part of them is a random choice.
- `positions` (P, D), `signed_distance` (P,) to the nearest wall, negative behind it, and
  `node_type` (P,), an index of the attribute `node_types`.
- `fields` (T, P, C), and the times `t-coordinate` (T,).
- `parameters/<name>` (N,): numbers > 0.

Its attributes are `channels`, `node_types` and `splits`, the numbers of trajectories for training,
validation and test, which lie in this order. A generated file also has a `hash` of its fields.
Other arrays and attributes are not read.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.points import SIGNED_DISTANCE
from ups.datamodules.readers.coordinates import spacing
from ups.datamodules.readers.field_files import OpenFiles, check_different, read_array
from ups.datamodules.readers.hdf5 import Datasets, open_hdf5, texts


class Geometry(NamedTuple):
    """The points of a trajectory.

    Args:
        positions: (P, D), float32.
        signed_distance: distances (P,) to the nearest wall, float32.
        node_type: indices (P,) of ``PointCloudFile.node_types``, integers.
    """

    positions: np.ndarray
    signed_distance: np.ndarray
    node_type: np.ndarray

    def features(self, num_types: int) -> np.ndarray:
        """What is known of each point (P, 1 + num_types): its distance, and 1 for its type."""
        types = np.eye(num_types, dtype=np.float32)[self.node_type]
        return np.concatenate([self.signed_distance[:, None], types], 1)


class PointCloudFile:
    """Reads trajectories on point clouds, each with its own points.

    Args:
        path: the file.
        temporal_downsampling: keep every so many-th frame.
        spatial_downsampling: keep every so many-th point.

    Attributes:
        path: the file.
        trajectories: number of trajectories.
        frames: number of frames that are kept.
        dt: the time between them.
        channels: the names of the channels.
        node_types: the names of the types of points.
        features: what ``points`` says of each point: its distance to the nearest wall, and 1 for
            its type.
        parameters: the parameters by name (N,).
        splits: the trajectories of "train", "validation" and "test".

    Raises:
        UpsError: the file has a fault.
    """

    def __init__(
        self, path: Path, temporal_downsampling: int = 1, spatial_downsampling: int = 1
    ) -> None:
        self.path = Path(path)
        self._files = OpenFiles(open_hdf5)
        self._every_frame = temporal_downsampling
        self._every_point = spatial_downsampling
        stored = Datasets(self.path, self._files[self.path])
        self._offsets = self._whole_numbers(stored.values("offsets", 1), "offsets")
        self.trajectories = len(self._offsets) - 1
        frames = len(stored.array("fields", 3))
        times = stored.even("t-coordinate", frames, "fields", self.trajectories)
        self.channels = self._names("channels")
        self.node_types = self._names("node_types")
        self.features = (SIGNED_DISTANCE, *self.node_types)
        self._check(stored, len(times))
        self.frames = len(times[::temporal_downsampling])
        self.dt = spacing(times) * temporal_downsampling
        group = stored.members("parameters") if "parameters" in stored.file else ()
        for name in group:
            stored.check_shape(f"parameters/{name}", (self.trajectories,))
        self.parameters: Mapping[str, np.ndarray] = {
            name: stored.values(f"parameters/{name}", 1) for name in group
        }
        self.splits: Mapping[str, Sequence[int]] | None = self._splits()

    def geometry(self, trajectory: int) -> Geometry:
        """Read the points of a trajectory."""
        chosen = self._points(trajectory)
        arrays = {name: self._read(name, chosen) for name in Geometry._fields}
        kept = {name: array[:: self._every_point] for name, array in arrays.items()}
        return Geometry(
            kept["positions"].astype(np.float32, copy=False),
            kept["signed_distance"].astype(np.float32, copy=False),
            kept["node_type"].astype(np.int64, copy=False),
        )

    def points(self, trajectory: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the positions (P, D) of a trajectory's points and their features (P, F)."""
        geometry = self.geometry(trajectory)
        return geometry.positions, geometry.features(len(self.node_types))

    def read(
        self, trajectories: Sequence[int], start: int = 0, frames: int | None = None
    ) -> list[np.ndarray]:
        """Read ``frames`` frames from ``start`` on of B trajectories.

        Returns:
            B arrays (frames, P, C), float32; the number of points P differs between them.
        """
        first = start * self._every_frame
        count = self.frames - start if frames is None else frames
        times = slice(first, first + (count - 1) * self._every_frame + 1, self._every_frame)
        return [
            self._read("fields", times, self._points(i))[:, :: self._every_point].astype(
                np.float32, copy=False
            )
            for i in trajectories
        ]

    def _whole_numbers(self, values: np.ndarray, name: str) -> np.ndarray:
        whole = values.astype(np.int64)
        if (whole != values).any():
            raise UpsError(f"{self.path}: '{name}' must be whole numbers.")
        return whole

    def verify_checksum(self, trajectories: Sequence[Tensor]) -> None:
        """Compare the fields (T, P, C) of all trajectories with their recorded hash, if there is
        one and nothing was thinned.

        Raises:
            UpsError: they differ.
        """
        known = self._files[self.path].attrs.get("hash")  # type: ignore[attr-defined]
        if known is None or self._every_frame > 1 or self._every_point > 1:
            return
        content = hashlib.sha256()
        for fields in trajectories:
            content.update(fields.numpy().data)
        if content.hexdigest()[:12] != known:
            raise UpsError(
                f"{self.path}: the values of 'fields' are not those that were written; remove the "
                "file and it is made again."
            )

    def _points(self, trajectory: int) -> slice:
        return slice(self._offsets[trajectory], self._offsets[trajectory + 1])

    def _read(self, name: str, *index: slice) -> np.ndarray:
        return read_array(self.path, name, lambda: np.asarray(self._files[self.path][name][index]))

    def _names(self, attribute: str) -> tuple[str, ...]:
        names = tuple(texts(self._attribute(attribute)))
        check_different(self.path, attribute, names)
        return names

    def _check(self, stored: Datasets, frames: int) -> None:
        """Check that the arrays fit each other."""
        points = int(self._offsets[-1])
        if self._offsets[0] != 0 or not (np.diff(self._offsets) > 0).all():
            raise UpsError(f"{self.path}: 'offsets' must increase from 0.")
        dims = stored.array("positions", 2).shape[1]
        stored.check_shape("positions", (points, dims))
        stored.check_shape("signed_distance", (points,))
        stored.check_shape("node_type", (points,))
        stored.check_shape("fields", (frames, points, len(self.channels)))
        types = stored.values("node_type", 1)
        is_index = (types >= 0) & (types < len(self.node_types))
        if types.dtype.kind not in "iu" or not is_index.all():
            raise UpsError(
                f"{self.path}: 'node_type' must be whole numbers, each an index of the "
                f"{len(self.node_types)} 'node_types'."
            )

    def _attribute(self, name: str) -> np.ndarray:
        attributes = self._files[self.path].attrs  # type: ignore[attr-defined]  # a file of h5py
        if name not in attributes:
            raise UpsError(f"{self.path}: there is no attribute '{name}', which it must have.")
        return np.atleast_1d(attributes[name])

    def _splits(self) -> Mapping[str, Sequence[int]]:
        counts = self._attribute("splits")
        is_count = counts.dtype.kind in "iu" and len(counts) == 3 and (counts > 0).all()
        if not is_count or counts.sum() != self.trajectories:
            raise UpsError(
                f"{self.path}: 'splits' must be three whole numbers > 0 whose sum is "
                f"{self.trajectories}, got {counts.tolist()}."
            )
        ends = np.cumsum(counts).tolist()
        starts = [0, *ends[:-1]]
        names = ("train", "validation", "test")
        return {n: range(a, b) for n, a, b in zip(names, starts, ends, strict=True)}
