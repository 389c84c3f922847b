"""Patches of a field on a grid, one for each token."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.models.token_grid import Neighborhood, shape_of_patches, token_shape

EDGE = 4  # points along each axis of a patch, if nothing else is said
LEEWAY = 2  # times the largest value of the training data bounds rollouts


class Patches:
    """Cuts a field into patches.

    Args:
        spec: describes the field.
        number: number of patches N, one number for each axis or their product; of the product the
            patches are as square as they can be. None for patches of ``EDGE`` points along each
            axis, or about as many.
        key: the setting that ``number`` is, for messages.

    Attributes:
        shape: number of patches along each axis.
        size: number of values of a patch.

    Raises:
        UpsError: the field is not on a grid, or its points can't be divided so.
    """

    def __init__(
        self, spec: FieldSpec, number: int | Sequence[int] | None, key: str = "model.num_tokens"
    ) -> None:
        self.spec = spec
        space = spec.grid.shape
        shape = shape_of_patches(space, EDGE) if number is None else token_shape(space, number)
        if shape is None:
            points = " x ".join(map(str, space))
            raise UpsError(
                f"`{key}` must divide the {points} points, as one number or one for each axis, "
                f"got {number}."
            )
        self.shape = shape
        self.number = prod(shape)
        self.patch = tuple(points // n for points, n in zip(space, shape, strict=True))
        self.size = prod(self.patch) * spec.num_channels

    @property
    def tokens(self) -> Grid:
        """The grid of the patches."""
        grid = self.spec.grid
        return Grid(self.shape, grid.extent, grid.boundary)

    def neighborhood(self, overlap: int) -> Neighborhood:
        """The windows of ``overlap`` patches along each axis around each one.

        Raises:
            UpsError: they are wider than the field.
        """
        if overlap % 2 == 0 or overlap > min(self.shape):
            raise UpsError(
                "`model.patch_overlap` must be odd and at most "
                f"{min(self.shape)}, the number of tokens along an axis, got {overlap}."
            )
        return Neighborhood(self.shape, self.spec.grid.boundary, overlap)

    def cut(self, u: Tensor) -> Tensor:
        """Fields (B, *space, C), of any number of channels, as patches (B, N, values of each)."""
        split = [size for axis in zip(self.shape, self.patch, strict=True) for size in axis]
        b = u.shape[0]
        channels = u.shape[-1]
        u = u.reshape(b, *split, channels).permute(*self._order(grouped=False))
        return u.reshape(b, self.number, prod(self.patch) * channels)

    def join(self, patches: Tensor) -> Tensor:
        """Patches (B, N, values of each) as fields (B, *space, C)."""
        channels = patches.shape[-1] // prod(self.patch)
        b = patches.shape[0]
        u = patches.reshape(b, *self.shape, *self.patch, channels)
        return u.permute(*self._order(grouped=True)).reshape(b, *self.spec.grid.shape, channels)

    def _order(self, grouped: bool) -> list[int]:
        """The axes (B, tokens and points in turn, C) as (B, tokens, points, C), or the inverse."""
        dims = len(self.shape)
        if grouped:
            middle = [axis for d in range(dims) for axis in (1 + d, 1 + dims + d)]
        else:
            middle = [*range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2)]
        return [0, *middle, 2 * dims + 1]

    def mean(self, patches: Tensor) -> Tensor:
        """The mean (B, C) over space of fields that are cut into patches (B, N, size)."""
        # of the patches themselves: to join them copies the field if it has several axes
        return self._values(patches).mean((1, 2))

    def with_mean(self, patches: Tensor, mean: Tensor | float) -> Tensor:
        """Patches (B, N, size) of fields, moved to the mean (B, C), or to one for all."""
        shift = mean - self.mean(patches)
        return (self._values(patches) + shift[:, None, None]).flatten(2)

    def _values(self, patches: Tensor) -> Tensor:
        """Patches (B, N, size) as (B, N, points, C)."""
        return patches.unflatten(-1, (-1, self.spec.num_channels))

    def positions(self, channels: int) -> nn.Parameter | None:
        """Learned values (N, channels) for each token, if the field is not the same everywhere."""
        if self.spec.is_homogeneous:
            return None
        return nn.Parameter(torch.zeros(self.number, channels))


class Bound(nn.Module):
    """Cuts values of patches off where they are far beyond those of the training data.

    A rollout that goes wrong stays finite; all others are not touched. Nor is training, whose first
    steps may be wild and whose gradients must reach every value.

    Args:
        patches: cut the field, whose spec says how large its values are; if not, there is no bound.
    """

    limits: Tensor | None

    def __init__(self, patches: Patches) -> None:
        super().__init__()
        spec = patches.spec
        limits = None
        if spec.largest:
            in_units = torch.tensor(spec.largest) / torch.tensor(spec.std)
            limits = LEEWAY * in_units.repeat(patches.size // spec.num_channels)
        self.register_buffer("limits", limits, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """Bound patches (B, N, size) of a field of unit scale."""
        if self.limits is None or self.training:
            return values
        return values.clamp(-self.limits, self.limits)
