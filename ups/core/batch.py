"""The one batch type."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class Batch:
    """Windows of consecutive frames.

    Args:
        u: frames (B, K+1, *space, C).
        parameters: the equation's parameters (B, P).
        trajectory: index of the trajectory of each window (B,).
        window: number of each window in the epoch (B,).

    Raises:
        ValueError: the shapes don't agree.
    """

    u: Tensor
    parameters: Tensor
    trajectory: Tensor
    window: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(getattr(self, field.name).shape) for field in fields(self)]
        u, parameters, *indices = shapes
        fits = len(u) >= 4 and len(parameters) == 2 and all(len(shape) == 1 for shape in indices)
        if not fits or any(shape[0] != u[0] for shape in shapes):
            raise ValueError(
                "a batch must be u (B, K+1, *space, C), parameters (B, P), trajectory (B,) and "
                f"window (B,), got {shapes}."
            )

    def __len__(self) -> int:
        return len(self.u)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on ``device``."""
        return Batch(
            self.u.to(device),
            self.parameters.to(device),
            self.trajectory.to(device),
            self.window.to(device),
        )

    def chunk(self, n: int) -> "list[Batch]":
        """Split the batch into ``n`` equal parts."""
        return [
            Batch(*part)
            for part in zip(
                self.u.chunk(n),
                self.parameters.chunk(n),
                self.trajectory.chunk(n),
                self.window.chunk(n),
                strict=True,
            )
        ]

    @staticmethod
    def cat(batches: "Iterable[Batch]") -> "Batch":
        """Join batches into one."""
        parts = list(batches)
        return Batch(
            torch.cat([part.u for part in parts]),
            torch.cat([part.parameters for part in parts]),
            torch.cat([part.trajectory for part in parts]),
            torch.cat([part.window for part in parts]),
        )
