"""A U-Net."""

from itertools import pairwise
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.core.schema import PositiveInt
from ups.models.base import GridModel
from ups.models.convolutions import Convolution, convolution_weights, upsampling


class UNet(GridModel):
    """Pairs of convolutions at several resolutions, joined by skip connections.

    Source: Ronneberger et al., MICCAI 2015; for PDEs as in PDEArena (Gupta and Brandstetter, TMLR
    2023) and APEBench, with group normalization.

    Args:
        spec: describes the field, of a multiple of 2**num_levels points along each axis.
        hidden_channels: channels at full resolution; each level doubles them.
        num_levels: how often the resolution is halved.
        conserve_mean: see ``GridModel``.

    Raises:
        UpsError: the resolution can't be halved that often.
    """

    def __init__(
        self,
        spec: FieldSpec,
        hidden_channels: PositiveInt = 16,
        num_levels: Annotated[int, Ge(0), Le(20)] = 3,
        conserve_mean: bool = True,
    ) -> None:
        super().__init__(spec, conserve_mean)
        grid = spec.grid
        if any(n % 2**num_levels for n in grid.shape):
            points = " x ".join(map(str, grid.shape))
            raise UpsError(
                f"model.num_levels={num_levels}: the points along each axis ({points}) must be a "
                f"multiple of {2**num_levels}."
            )
        widths = [hidden_channels * 2**level for level in range(num_levels + 1)]
        pairs = list(pairwise(widths))
        self.lift = _double(grid, self.in_channels, hidden_channels)
        self.halve = nn.ModuleList(Convolution(grid, fine, fine, stride=2) for fine, _ in pairs)
        self.down = nn.ModuleList(_double(grid, fine, coarse) for fine, coarse in pairs)
        self.widen = nn.ModuleList(upsampling(grid, coarse, fine) for fine, coarse in pairs)
        self.up = nn.ModuleList(_double(grid, 2 * fine, fine) for fine, _ in pairs)
        self.project = Convolution(grid, hidden_channels, self.num_channels)

    def forward(self, u: Tensor) -> Tensor:
        h = self.lift(u)
        skips = []
        for halve, block in zip(self.halve, self.down, strict=True):
            skips.append(h)
            h = block(halve(h))
        for widen, block, skip in zip(
            reversed(self.widen), reversed(self.up), reversed(skips), strict=True
        ):
            h = block(torch.cat((skip, widen(h)), 1))
        return self.project(h)

    def muon_parameters(self) -> list[Tensor]:
        """All convolutions but the first and the last, which read and write the field."""
        return convolution_weights(self.lift[1:], self.halve, self.down, self.widen, self.up)


def _double(grid: Grid, channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        Convolution(grid, channels_in, channels_out),
        nn.GroupNorm(1, channels_out),
        nn.GELU(),
        Convolution(grid, channels_out, channels_out),
        nn.GroupNorm(1, channels_out),
        nn.GELU(),
    )
