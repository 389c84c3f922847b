"""Overlapping patches of a field on a grid, one for each token."""

from math import prod

import torch
from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.models.token_grid import Neighborhood, token_shape


class OverlappingPatches(nn.Module):
    """Cuts a field into ``num_tokens`` patches, which their neighbors read and write too.

    Args:
        spec: describes the field.
        num_tokens: number of patches N.
        overlap: number of patches along each axis, centered on a token, that it reads and writes;
            odd.

    Attributes:
        shape: number of patches along each axis.
        size: number of values of a patch.
        window: number of patches that a token reads and writes.

    Raises:
        UpsError: the field is not on a grid, or the sizes don't fit together.
    """

    def __init__(self, spec: FieldSpec, num_tokens: int, overlap: int) -> None:
        super().__init__()
        self.spec = spec
        space = spec.grid.shape
        shape = token_shape(space, num_tokens)
        if shape is None or min(shape) < overlap or overlap % 2 == 0:
            points = " x ".join(map(str, space))
            raise UpsError(
                f"model.num_tokens={num_tokens}, model.patch_overlap={overlap}: "
                f"the {points} points must be a multiple of num_tokens; "
                "patch_overlap odd, at most num_tokens"
            )
        self.shape = shape
        self.patch = tuple(points // n for points, n in zip(space, shape, strict=True))
        self.size = prod(self.patch) * spec.num_channels
        self.window: int = overlap ** len(shape)
        self.neighborhood = Neighborhood(shape, spec.grid.boundary, overlap, 1)

    @property
    def tokens(self) -> Grid:
        """The grid of the tokens."""
        grid = self.spec.grid
        return Grid(self.shape, grid.extent, grid.boundary)

    def cut(self, u: Tensor) -> Tensor:
        """Fields (B, *space, C) as patches (B, N, size)."""
        split = [size for axis in zip(self.shape, self.patch, strict=True) for size in axis]
        b = u.shape[0]
        u = u.reshape(b, *split, u.shape[-1]).permute(*self._order(grouped=False))
        return u.reshape(b, prod(self.shape), self.size)

    def join(self, patches: Tensor) -> Tensor:
        """Patches (B, N, size) as fields (B, *space, C)."""
        channels = self.spec.num_channels
        b = patches.shape[0]
        u = patches.reshape(b, *self.shape, *self.patch, channels)
        return u.permute(*self._order(grouped=True)).reshape(b, *self.spec.shape)

    def _order(self, grouped: bool) -> list[int]:
        """The axes (B, tokens and points in turn, C) as (B, tokens, points, C), or the inverse."""
        dims = len(self.shape)
        if grouped:
            middle = [axis for d in range(dims) for axis in (1 + d, 1 + dims + d)]
        else:
            middle = [*range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2)]
        return [0, *middle, 2 * dims + 1]

    def mean(self, u: Tensor) -> Tensor:
        """The mean of fields (B, *space, C) over space, with its axes: (B, 1, ..., C)."""
        return u.mean(self.spec.space_axes, keepdim=True)

    def with_mean(self, u: Tensor, mean: Tensor) -> Tensor:
        """Fields (B, *space, C), moved to the mean (B, C)."""
        return u + (mean.view(u.shape[0], *(1 for _ in self.shape), -1) - self.mean(u))

    def positions(self, channels: int) -> nn.Parameter | None:
        """Learned values (N, channels) for each token, if the field is not the same everywhere."""
        if self.spec.is_homogeneous:
            return None
        return nn.Parameter(torch.zeros(prod(self.shape), channels))
