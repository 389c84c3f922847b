"""The one batch type."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Batch:
    """Windows of consecutive frames.

    Args:
        u: frames (B, K+1, X).
        nu: the equation's parameter (B,).
        trajectory: index of the trajectory of each window (B,).
        window: number of each window in the epoch (B,).
    """

    u: Tensor
    nu: Tensor
    trajectory: Tensor
    window: Tensor

    def __post_init__(self) -> None:
        shapes = [tuple(t.shape) for t in vars(self).values()]
        if self.u.ndim != 3 or any(shape != shapes[0][:1] for shape in shapes[1:]):
            raise ValueError(
                f"a batch is u (B, K+1, X), nu (B,), trajectory (B,), window (B,), not {shapes}"
            )

    def __len__(self) -> int:
        return len(self.u)

    def shards(self, n: int) -> "list[Batch]":
        """Split the batch into ``n`` equal parts."""
        return [
            Batch(*part) for part in zip(*(t.chunk(n) for t in vars(self).values()), strict=True)
        ]
