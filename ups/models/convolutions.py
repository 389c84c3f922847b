"""Convolutions on grids of one, two and three dimensions, padded by the grid's boundary."""

from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.core.fields import PERIODIC_AXIS, Grid

Layer = TypeVar("Layer")
LAYERS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}
UPSAMPLING_LAYERS: dict[int, type[nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Convolution(nn.Module):
    """A convolution that keeps the number of points, or divides it by ``stride``.

    A periodic axis is padded by the values of its other side. Beyond a wall or an open side the
    value of the last point is repeated: zeros would be a jump, which the filters would take for a
    front. What kind of side it is, a network learns from the input (see ``place_channels``).

    Args:
        grid: says the number of dimensions and the boundary.
        channels_in: channels of the input.
        channels_out: channels of the output.
        kernel: number of points that a filter reads along each axis; odd.
        dilation: distance of these points.
        stride: distance of the points of the output.

    Raises:
        UpsError: the grid has more than three dimensions.
    """

    def __init__(
        self,
        grid: Grid,
        channels_in: int,
        channels_out: int,
        kernel: int = 3,
        dilation: int = 1,
        stride: int = 1,
    ) -> None:
        super().__init__()
        # PyTorch's layer brings the weights in their usual shape and scale
        layer = _layer(LAYERS, grid)(channels_in, channels_out, kernel, stride, dilation=dilation)
        self.weight = layer.weight
        self.bias = layer.bias
        self.stride = layer.stride
        self.dilation = layer.dilation
        self.paddings = _paddings(grid, dilation * (kernel - 1) // 2)

    def forward(self, u: Tensor) -> Tensor:
        """Map (B, channels_in, *space) to (B, channels_out, *space)."""
        for mode, sizes in self.paddings.items():
            u = F.pad(u, sizes, mode)
        convolve = FUNCTIONS[u.ndim - 2]
        return convolve(u, self.weight, self.bias, self.stride, dilation=self.dilation)


def upsampling(grid: Grid, channels_in: int, channels_out: int) -> nn.Module:
    """A layer that doubles the number of points along each axis.

    Each point is replaced by its own 2, 4 or 8, so there is no padding.
    """
    return _layer(UPSAMPLING_LAYERS, grid)(channels_in, channels_out, 2, stride=2)


def convolution_weights(*modules: nn.Module) -> list[Tensor]:
    """The weights of all real convolutions in ``modules``, which Muon treats as matrices."""
    kinds = (Convolution, *LAYERS.values(), *UPSAMPLING_LAYERS.values())
    layers = [layer for module in modules for layer in module.modules()]
    return [layer.weight for layer in layers if isinstance(layer, kinds)]


def _layer(layers: dict[int, Layer], grid: Grid) -> Layer:
    if grid.num_dims not in layers:
        raise UpsError(
            f"a convolution must have a grid of at most three dimensions, got {grid.num_dims}."
        )
    return layers[grid.num_dims]


def _paddings(grid: Grid, width: int) -> dict[str, list[int]]:
    """The sizes that PyTorch's ``pad`` takes in each of its modes, from the last axis to the first.

    Args:
        grid: the grid.
        width: number of points that are added on each side of each axis.
    """
    paddings: dict[str, list[int]] = {}
    for d, sides in enumerate(reversed(grid.boundary)):
        mode = "circular" if sides == PERIODIC_AXIS else "replicate"
        sizes = paddings.setdefault(mode, [0] * 2 * grid.num_dims)
        sizes[2 * d : 2 * d + 2] = width, width
    return paddings
