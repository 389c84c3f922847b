"""The Fourier neural operator of the neuraloperator package."""

from typing import Any

from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.models.base import GridModel


class FNO(GridModel):
    """Fourier neural operator (Li et al., ICLR 2021), as its authors' package builds it.

    The paper is "Fourier neural operator for parametric partial differential equations". There is
    no positional embedding: on a periodic line all positions are equivalent, and an embedding only
    costs accuracy.

    Args:
        points: points of the training grid.
        modes: number of Fourier modes kept, negative ones included.
        width: channels.
        layers: number of Fourier layers.
        conserve: see ``GridModel``.

    Raises:
        UpsError: the package is not installed.
    """

    def __init__(
        self, points: int, modes: int = 32, width: int = 64, layers: int = 4, conserve: bool = True
    ) -> None:
        super().__init__(points, conserve=conserve)
        try:
            from neuralop import models
        except ModuleNotFoundError:
            raise UpsError(
                "model=fno needs a package that is not installed; pip install 'ups[peers]'"
            ) from None
        self.network = models.FNO(
            (modes,),
            self.fields + self.inputs,
            self.fields,
            hidden_channels=width,
            n_layers=layers,
            positional_embedding=None,
        )
        # the package adds its arguments, including functions, to the weights; checkpoints must hold
        # plain values only
        self.register_state_dict_post_hook(_without_metadata)

    def forward(self, u: Tensor) -> Tensor:
        return self.network(u)


def _without_metadata(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    state.pop("_metadata", None)
