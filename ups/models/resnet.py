"""A dilated residual network, the strongest of the plain convolutional surrogates in 1D."""

from torch import Tensor, nn

from ups.core.fields import FieldSpec
from ups.core.schema import Depth, NonEmpty, PositiveInt
from ups.models.base import GridModel, convolution_weights, periodic_line


class DilatedResNet(GridModel):
    """Residual blocks of circular convolutions with growing and shrinking dilation.

    Source: Stachenfeld et al., "Learned coarse models for efficient turbulence simulation", ICLR
    2022; as in PDEArena and APEBench.

    Args:
        spec: describes the field.
        hidden_channels: channels.
        num_blocks: number of residual blocks.
        dilations: the dilations of the convolutions of three points in each block.
        conserve_mean: see ``GridModel``.
    """

    def __init__(
        self,
        spec: FieldSpec,
        hidden_channels: PositiveInt = 32,
        num_blocks: Depth = 4,
        dilations: NonEmpty[PositiveInt] = (1, 2, 4, 8, 4, 2, 1),
        conserve_mean: bool = True,
    ) -> None:
        super().__init__(spec, conserve_mean)
        periodic_line(spec, "model=resnet")

        def block() -> nn.Sequential:
            pairs = (
                (circular(hidden_channels, hidden_channels, 3, dilation=d), nn.ReLU())
                for d in dilations
            )
            return nn.Sequential(*(layer for pair in pairs for layer in pair))

        self.lift = circular(self.in_channels, hidden_channels, 3)
        self.blocks = nn.ModuleList(block() for _ in range(num_blocks))
        self.project = circular(hidden_channels, self.num_channels, 3)

    def forward(self, u: Tensor) -> Tensor:
        h = self.lift(u)
        for block in self.blocks:
            h = h + block(h)
        return self.project(h)

    def muon_parameters(self) -> list[Tensor]:
        """The convolutions of the blocks, which an optimizer may treat as matrices."""
        return convolution_weights(self.blocks)


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
