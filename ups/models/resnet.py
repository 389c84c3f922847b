"""A dilated residual network, the strongest of the plain convolutional surrogates in 1D."""

from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.core.fields import PERIODIC_AXIS, FieldSpec
from ups.core.schema import Depth, NonEmpty, PositiveInt
from ups.models.base import GridModel
from ups.models.convolutions import Convolution, convolution_weights


class DilatedResNet(GridModel):
    """Residual blocks of convolutions with growing and shrinking dilation.

    Source: Stachenfeld et al., "Learned coarse models for efficient turbulence simulation", ICLR
    2022; as in PDEArena and APEBench.

    Args:
        spec: describes the field.
        hidden_channels: channels.
        num_blocks: number of residual blocks.
        dilations: the dilations of the convolutions of three points an axis in each block.
        conserve_mean: see ``GridModel``.

    Raises:
        UpsError: a dilation is longer than a periodic axis.
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
        grid = spec.grid
        axes = zip(grid.shape, grid.boundary, strict=True)
        shortest = min((n for n, sides in axes if sides == PERIODIC_AXIS), default=max(dilations))
        if max(dilations) > shortest:
            raise UpsError(
                f"`model.dilations` must be at most {shortest}, the number of points of a periodic "
                f"axis, got {max(dilations)}."
            )

        def block() -> nn.Sequential:
            pairs = (
                (Convolution(grid, hidden_channels, hidden_channels, dilation=d), nn.ReLU())
                for d in dilations
            )
            return nn.Sequential(*(layer for pair in pairs for layer in pair))

        self.lift = Convolution(grid, self.in_channels, hidden_channels)
        self.blocks = nn.ModuleList(block() for _ in range(num_blocks))
        self.project = Convolution(grid, hidden_channels, self.num_channels)

    def forward(self, u: Tensor) -> Tensor:
        h = self.lift(u)
        for block in self.blocks:
            h = h + block(h)
        return self.project(h)

    def muon_parameters(self) -> list[Tensor]:
        """The convolutions of the blocks, which an optimizer may treat as matrices."""
        return convolution_weights(self.blocks)
