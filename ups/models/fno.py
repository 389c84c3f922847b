"""The Fourier neural operator of the neuraloperator package."""

from torch import Tensor, nn

from ups.core.fields import FieldSpec
from ups.core.optional_packages import import_optional
from ups.core.schema import PositiveInt
from ups.models.base import GridModel, convolution_weights, periodic_line


class FNO(GridModel):
    """Fourier neural operator (Li et al., ICLR 2021), as its authors' package builds it.

    The paper is "Fourier neural operator for parametric partial differential equations". There is
    no positional embedding: on a periodic line all positions are equivalent, and an embedding only
    costs accuracy.

    Args:
        spec: describes the field.
        modes: number of Fourier modes kept, negative ones included.
        hidden_channels: channels.
        num_layers: number of Fourier layers.
        conserve_mean: see ``GridModel``.

    Raises:
        UpsError: the package is not installed.
    """

    def __init__(
        self,
        spec: FieldSpec,
        modes: PositiveInt = 32,
        hidden_channels: PositiveInt = 64,
        num_layers: PositiveInt = 4,
        conserve_mean: bool = True,
    ) -> None:
        super().__init__(spec, conserve_mean)
        periodic_line(spec, "model=fno")
        models = import_optional("neuralop.models", "model=fno", "peers")
        self.network = models.FNO(
            (modes,),
            self.in_channels,
            self.num_channels,
            hidden_channels=hidden_channels,
            n_layers=num_layers,
            positional_embedding=None,
        )
        # the package adds its arguments, including functions, to the weights; checkpoints must hold
        # plain values only
        self.register_state_dict_post_hook(_without_metadata)  # type: ignore[no-untyped-call]

    def forward(self, u: Tensor) -> Tensor:
        return self.network(u)

    def muon_parameters(self) -> list[Tensor]:
        """The real matrices of the layers; the complex weights of the modes are none of them."""
        return convolution_weights(self.network.fno_blocks)


def _without_metadata(
    module: nn.Module, state: dict[str, object], prefix: str, metadata: dict[str, object]
) -> None:
    state.pop("_metadata", None)
