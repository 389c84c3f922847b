"""Overlapping patches of a field on a periodic line, one for each token."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec
from ups.models.base import periodic_line


def circular_neighbor_indices(num_tokens: int, offsets: Sequence[int]) -> Tensor:
    """The indices of each token's neighbors on a circle, token by token.

    Args:
        num_tokens: number of tokens N.
        offsets: distances of the neighbors.

    Returns:
        Indices (N * len(offsets),).
    """
    return ((torch.arange(num_tokens)[:, None] + torch.tensor(offsets)) % num_tokens).flatten()


class OverlappingPatches(nn.Module):
    """Cuts a field into ``num_tokens`` patches, which their neighbors read and write too.

    Args:
        spec: describes the field, of a multiple of ``num_tokens`` points.
        model: the name of the model, for messages.
        num_tokens: number of patches N.
        overlap: number of patches, centered on a token, that it reads and writes; odd.

    Attributes:
        size: number of values of a patch.

    Raises:
        UpsError: the field is not on a periodic line, or the sizes don't fit together.
    """

    indices: Tensor

    def __init__(self, spec: FieldSpec, model: str, num_tokens: int, overlap: int) -> None:
        super().__init__()
        num_points = periodic_line(spec, model)
        if num_points % num_tokens or num_tokens < overlap or overlap % 2 == 0:
            raise UpsError(
                f"model.num_tokens={num_tokens}, model.patch_overlap={overlap}: "
                f"the {num_points} points must be a multiple of num_tokens; "
                "patch_overlap odd, at most num_tokens"
            )
        self.num_tokens = num_tokens
        self.num_channels = spec.num_channels
        self.size = num_points // num_tokens * spec.num_channels
        self.offsets = range(-(overlap // 2), overlap // 2 + 1)
        indices = circular_neighbor_indices(num_tokens, self.offsets)
        self.register_buffer("indices", indices, persistent=False)

    def cut(self, u: Tensor) -> Tensor:
        """Fields (B, X, C) as patches (B, N, size)."""
        return u.reshape(u.shape[0], self.num_tokens, self.size)

    def join(self, patches: Tensor) -> Tensor:
        """Patches (B, N, size) as fields (B, X, C)."""
        return patches.reshape(patches.shape[0], -1, self.num_channels)

    def gather(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, W) with their neighbors': (B, N, overlap * W)."""
        return tokens.index_select(1, self.indices).view(*tokens.shape[:2], -1)

    def overlap_add(self, values: Tensor) -> Tensor:
        """What tokens (B, N, overlap * size) write, summed where they overlap: (B, N, size)."""
        parts = values.view(*values.shape[:2], len(self.offsets), -1).unbind(2)
        rolled = [part.roll(k, 1) for part, k in zip(parts, self.offsets, strict=True)]
        return torch.stack(rolled).sum(0)
