"""A U-Net for periodic lines."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.models.base import GridModel
from ups.models.resnet import circular


class UNet(GridModel):
    """Pairs of circular convolutions at several resolutions, joined by skip connections.

    Source: Ronneberger et al., MICCAI 2015; for PDEs as in PDEArena (Gupta and Brandstetter, TMLR
    2023) and APEBench, with group normalization.

    Args:
        points: points of the training grid, a multiple of 2**levels.
        width: channels at full resolution; each level doubles them.
        levels: how often the resolution is halved.
        conserve: see ``GridModel``.
    """

    def __init__(
        self, points: int, width: int = 16, levels: int = 3, conserve: bool = True
    ) -> None:
        super().__init__(points, conserve=conserve)
        if points % 2**levels:
            raise UpsError(
                f"model.levels={levels}: the {points} points must be a multiple of {2**levels}"
            )
        widths = [width * 2**level for level in range(levels + 1)]
        pairs = list(pairwise(widths))
        self.lift = _double(self.fields + self.inputs, width)
        self.halve = nn.ModuleList(circular(fine, fine, 3, stride=2) for fine, _ in pairs)
        self.down = nn.ModuleList(_double(fine, coarse) for fine, coarse in pairs)
        self.widen = nn.ModuleList(
            nn.ConvTranspose1d(coarse, fine, 2, stride=2) for fine, coarse in pairs
        )
        self.up = nn.ModuleList(_double(2 * fine, fine) for fine, _ in pairs)
        self.project = circular(width, self.fields, 3)

    def forward(self, u: Tensor) -> Tensor:
        h, skips = self.lift(u), []
        for halve, block in zip(self.halve, self.down, strict=True):
            skips.append(h)
            h = block(halve(h))
        for widen, block, skip in zip(
            reversed(self.widen), reversed(self.up), reversed(skips), strict=True
        ):
            h = block(torch.cat((skip, widen(h)), 1))
        return self.project(h)


def _double(channels_in: int, channels_out: int) -> nn.Sequential:
    first, second = circular(channels_in, channels_out, 3), circular(channels_out, channels_out, 3)
    return nn.Sequential(
        first,
        nn.GroupNorm(1, channels_out),
        nn.GELU(),
        second,
        nn.GroupNorm(1, channels_out),
        nn.GELU(),
    )
