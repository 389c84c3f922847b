"""The Fourier neural operator of the neuraloperator package."""

from typing import Any

from torch import Tensor, nn

from ups.errors import UpsError
from ups.models.field import FieldModel


class FNO(FieldModel):
    """Li et al., "Fourier neural operator for parametric partial differential equations", ICLR 2021, as its authors' package builds it.

    Without a positional embedding: on a periodic line without a preferred place it only costs accuracy.

    Args:
        modes: Fourier modes kept, negative ones included.
        width, layers: channels, Fourier layers.
    """

    def __init__(self, points: int, modes: int = 32, width: int = 64, layers: int = 4, conserve: bool = True) -> None:
        super().__init__(points, conserve=conserve)
        try:
            from neuralop import models
        except ModuleNotFoundError:
            raise UpsError("model=fno needs a package that is not installed; pip install 'ups[peers]'") from None
        self.network = models.FNO(
            (modes,), self.fields + self.inputs, self.fields, hidden_channels=width, n_layers=layers, positional_embedding=None
        )
        # the package adds its own arguments, functions among them, to the weights; a checkpoint holds plain values only
        self.register_state_dict_post_hook(_without_metadata)

    def forward(self, u: Tensor) -> Tensor:
        return self.network(u)


def _without_metadata(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    state.pop("_metadata", None)
