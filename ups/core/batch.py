"""The one batch type."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ups.core.points import Points


@dataclass
class Batch:
    """Windows of consecutive frames.

    Args:
        u: frames (B, K+1, *space, C).
        parameters: the equation's parameters (B, P).
        trajectory: index of the trajectory of each window (B,).
        window: number of each window in the epoch (B,).
        points: where ``u`` lies, if points differ from sample to sample; None on a grid.
        initial: the first frames (B, *space, C) as an encoder gets them, if that is at other
            points than ``u``; None if they are those of ``u``.
        initial_points: where ``initial`` lies.

    Raises:
        ValueError: the shapes don't agree.
    """

    u: Tensor
    parameters: Tensor
    trajectory: Tensor
    window: Tensor
    points: Points | None = None
    initial: Tensor | None = None
    initial_points: Points | None = None

    def __post_init__(self) -> None:
        tensors = (self.u, self.parameters, self.trajectory, self.window)
        shapes = [tuple(tensor.shape) for tensor in tensors]
        u, parameters, *indices = shapes
        fits = len(u) >= 4 and len(parameters) == 2 and all(len(shape) == 1 for shape in indices)
        if not fits or any(shape[0] != u[0] for shape in shapes):
            raise ValueError(
                "a batch must be u (B, K+1, *space, C), parameters (B, P), trajectory (B,) and "
                f"window (B,), got {shapes}."
            )

    def __len__(self) -> int:
        return len(self.u)

    @property
    def start(self) -> tuple[Tensor, Points | None]:
        """The first frames (B, *space, C) as an encoder gets them, and where they lie."""
        if self.initial is None:
            return self.u[:, 0], self.points
        return self.initial, self.initial_points

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on ``device``."""
        return Batch(**{name: part.to(device) for name, part in self._parts().items()})

    def chunk(self, n: int) -> "list[Batch]":
        """Split the batch into ``n`` equal parts."""
        split = {name: part.chunk(n) for name, part in self._parts().items()}
        return [Batch(**{name: parts[i] for name, parts in split.items()}) for i in range(n)]

    @staticmethod
    def cat(batches: "Iterable[Batch]") -> "Batch":
        """Join batches into one; those on points have the same number of points."""
        found = [batch._parts() for batch in batches]
        joined: dict[str, Any] = {}
        for name, part in found[0].items():
            cat: Any = Points.cat if isinstance(part, Points) else torch.cat
            joined[name] = cat([parts[name] for parts in found])
        return Batch(**joined)

    def _parts(self) -> dict[str, Any]:
        """What the batch has, by name."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in parts.items() if part is not None}
