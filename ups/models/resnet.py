"""A dilated residual network, the strongest of the plain convolutional surrogates in 1D."""

from collections.abc import Sequence

from torch import Tensor, nn

from ups.models.base import GridModel


class DilatedResNet(GridModel):
    """Residual blocks of circular convolutions with growing and shrinking dilation.

    Source: Stachenfeld et al., "Learned coarse models for efficient turbulence simulation", ICLR
    2022; as in PDEArena and APEBench.

    Args:
        points: points of the training grid.
        width: channels.
        blocks: number of residual blocks.
        dilations: the dilations of the convolutions of three points in each block.
        conserve: see ``GridModel``.
    """

    def __init__(
        self,
        points: int,
        width: int = 32,
        blocks: int = 4,
        dilations: Sequence[int] = (1, 2, 4, 8, 4, 2, 1),
        conserve: bool = True,
    ) -> None:
        super().__init__(points, conserve=conserve)

        def block() -> nn.Sequential:
            pairs = ((circular(width, width, 3, dilation=d), nn.ReLU()) for d in dilations)
            return nn.Sequential(*(layer for pair in pairs for layer in pair))

        self.lift = circular(self.fields + self.inputs, width, 3)
        self.blocks = nn.ModuleList(block() for _ in range(blocks))
        self.project = circular(width, self.fields, 3)

    def forward(self, u: Tensor) -> Tensor:
        h = self.lift(u)
        for block in self.blocks:
            h = h + block(h)
        return self.project(h)


def circular(
    channels_in: int, channels_out: int, kernel: int, dilation: int = 1, stride: int = 1
) -> nn.Conv1d:
    """A convolution on a periodic grid.

    It keeps the number of points or divides it by ``stride``.
    """
    padding = dilation * (kernel - 1) // 2
    return nn.Conv1d(
        channels_in, channels_out, kernel, stride, padding, dilation, padding_mode="circular"
    )
