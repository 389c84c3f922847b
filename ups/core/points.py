"""The points at which fields lie, if they differ from sample to sample."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.gradients import numbers

PLACES = ("positions", "features", "mask")  # what functions and graphs take of ``Points``
# the feature that is the distance to the nearest wall, negative behind it
SIGNED_DISTANCE = "signed_distance"


@dataclass
class Points:
    """The points of B samples, in an order without meaning.

    Samples with fewer than P points are padded: what lies where ``mask`` is False counts nowhere.

    Args:
        positions: the positions (B, P, D).
        features: what is known of each point besides (B, P, F), see ``PointCloud.features``.
        mask: where there is a point (B, P); default: everywhere.

    Arrays of other libraries become tensors.

    Raises:
        UpsError: the shapes don't agree, or the mask is not boolean.
    """

    positions: Tensor
    features: Tensor
    mask: Tensor = None  # type: ignore[assignment]  # a tensor from here on

    def __post_init__(self) -> None:
        self.positions = numbers(self.positions, "positions")
        self.features = numbers(self.features, "features")
        if self.mask is not None:
            self.mask = torch.as_tensor(self.mask)
        else:
            shape = self.positions.shape[:2]
            self.mask = torch.ones(shape, dtype=torch.bool, device=self.positions.device)
        shapes = [tuple(value.shape) for value in (self.positions, self.features, self.mask)]
        ranks = [len(shape) for shape in shapes]
        if ranks != [3, 3, 2] or any(shape[:2] != shapes[0][:2] for shape in shapes):
            raise UpsError(
                "points must be positions (B, P, D), features (B, P, F) and a mask (B, P), "
                f"got {shapes}."
            )
        if self.mask.dtype != torch.bool:
            raise UpsError(f"the mask of points must be of bool, got {self.mask.dtype}.")

    def __len__(self) -> int:
        return len(self.positions)

    def to(self, target: torch.device | str | torch.dtype) -> "Points":
        """The points on a device, or with numbers of another type."""
        mask = self.mask if isinstance(target, torch.dtype) else self.mask.to(target)
        return Points(self.positions.to(target), self.features.to(target), mask)

    def chunk(self, n: int) -> "list[Points]":
        """Split the samples into ``n`` equal parts."""
        parts = (value.chunk(n) for value in (self.positions, self.features, self.mask))
        return [Points(*part) for part in zip(*parts, strict=True)]

    @staticmethod
    def cat(points: "Iterable[Points]") -> "Points":
        """Join the samples of several, all with the same P."""
        parts = list(points)
        return Points(
            torch.cat([part.positions for part in parts]),
            torch.cat([part.features for part in parts]),
            torch.cat([part.mask for part in parts]),
        )

    def select(self, samples: Tensor) -> "Points":
        """The points of the samples with these indices (N,)."""
        return Points(self.positions[samples], self.features[samples], self.mask[samples])

    def unpadded(self, sample: int) -> "Points":
        """The points of one sample (1, P, D), without those that only pad it."""
        mask = self.mask[sample]
        return Points(self.positions[sample][mask][None], self.features[sample][mask][None])
