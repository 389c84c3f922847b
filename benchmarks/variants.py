"""Variants of the default model that only the ablation needs: architectures of one's own, as
anybody may add them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.core.fields import FieldSpec
from ups.models import MixerUPT


class LayerNormUPT(MixerUPT):
    """Tokens held by LayerNorm without parameters instead of a bound."""

    def soft_rms_clip(self, z: Tensor) -> Tensor:
        return F.layer_norm(z, z.shape[-1:])


class PlacedUPT(MixerUPT):
    """Every token also knows its absolute place: a learnt vector is added to it after the
    encoder's blocks.
    """

    def __init__(
        self, spec: FieldSpec, num_tokens: int = 64, hidden_dim: int = 48, **sizes: object
    ) -> None:
        super().__init__(spec, num_tokens, hidden_dim, **sizes)  # type: ignore[arg-type]
        self.places = nn.Parameter(torch.randn(num_tokens, hidden_dim))
        self.encoder.register_forward_pre_hook(
            lambda module, arguments: (arguments[0] + self.places,)
        )
