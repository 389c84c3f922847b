"""The Fourier neural operator of the neuraloperator package."""

from collections.abc import Sequence

from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.core.fields import PERIODIC_AXIS, FieldSpec, Grid
from ups.core.optional_packages import import_optional
from ups.core.schema import OneOrMore, PositiveInt
from ups.models.base import GridModel
from ups.models.convolutions import convolution_weights

# the share of an axis by which it is continued with zeros at a wall or an open side
PADDING = 1 / 8


class FNO(GridModel):
    """Fourier neural operator (Li et al., ICLR 2021), as its authors' package builds it.

    The paper is "Fourier neural operator for parametric partial differential equations". The
    package's positional embedding is off: if all positions are equivalent, it only costs accuracy,
    and otherwise ``GridModel`` hands them on. Axes that are not periodic are continued by zeros, so
    that what leaves at one side does not enter at the other.

    Args:
        spec: describes the field.
        modes: number of Fourier modes kept, negative ones included: one number for each axis, or
            one for all.
        hidden_channels: channels.
        num_layers: number of Fourier layers.
        conserve_mean: see ``GridModel``.

    Raises:
        UpsError: the package is not installed, or ``modes`` has another length than the axes.
    """

    def __init__(
        self,
        spec: FieldSpec,
        modes: OneOrMore[PositiveInt] = 32,
        hidden_channels: PositiveInt = 64,
        num_layers: PositiveInt = 4,
        conserve_mean: bool = True,
    ) -> None:
        super().__init__(spec, conserve_mean)
        grid = spec.grid
        each = tuple(modes) if isinstance(modes, Sequence) else (modes,) * grid.num_dims
        if len(each) != grid.num_dims:
            raise UpsError(
                f"`model.modes` must be one number or {grid.num_dims}, one for each axis, "
                f"got {len(each)}."
            )
        models = import_optional("neuralop.models", "model=fno", "peers")
        self.network = models.FNO(
            each,
            self.in_channels,
            self.num_channels,
            hidden_channels=hidden_channels,
            n_layers=num_layers,
            positional_embedding=None,
            domain_padding=_paddings(grid),
        )
        # the package adds its arguments, including functions, to the weights; checkpoints must hold
        # plain values only
        self.register_state_dict_post_hook(_without_metadata)  # type: ignore[no-untyped-call]

    def forward(self, u: Tensor) -> Tensor:
        return self.network(u)

    def muon_parameters(self) -> list[Tensor]:
        """The real matrices of the layers; the complex weights of the modes are none of them."""
        return convolution_weights(self.network.fno_blocks)


def _paddings(grid: Grid) -> list[float]:
    """The share by which each axis is continued, at least one point if it is not periodic."""
    return [
        0.0 if sides == PERIODIC_AXIS else max(PADDING, 1 / n)
        for n, sides in zip(grid.shape, grid.boundary, strict=True)
    ]


def _without_metadata(
    module: nn.Module, state: dict[str, object], prefix: str, metadata: dict[str, object]
) -> None:
    state.pop("_metadata", None)
