"""Base class of models without latent tokens, which step the field itself."""

import torch
from torch import Tensor, nn

from ups.core.fields import FieldSpec
from ups.models.conditioning import condition_features
from ups.models.places import place_channels


class GridModel(nn.Module):
    """A model that steps fields on the grid itself.

    A subclass implements ``forward``, the change of the field; this class adds the rest of the
    protocol. The grid points are the tokens, and encode and decode are the identity. Latent and
    physical rollouts are therefore the same, and the inverse losses are zero and must be off
    (``lambda_inv=0``).

    Args:
        spec: describes the field, on a grid.
        conserve_mean: whether changes of the mean of each channel are removed, if the field
            conserves it.

    Attributes:
        tokens: the grid of the field.
        in_channels: channels of ``forward``'s input: those of the field, dt, the parameters, and
            those that ``place_channels`` makes of the spec.

    Raises:
        UpsError: the field is not on a grid.
    """

    def __init__(self, spec: FieldSpec, conserve_mean: bool = True) -> None:
        super().__init__()
        self.tokens = spec.grid
        self.num_tokens = spec.grid.num_points
        self.hidden_dim = spec.num_channels
        self.num_dynamic_channels = spec.num_channels
        self.num_channels = spec.num_channels
        places = place_channels(spec)
        self.register_buffer("places", places, persistent=False)
        self.places: Tensor
        self.in_channels = spec.num_channels + 1 + len(spec.parameters) + len(places)
        self.space = spec.grid.shape
        self.conserve_mean = conserve_mean and spec.conserves_mean

    def forward(self, u: Tensor) -> Tensor:
        """The change of the field over one step.

        Args:
            u: the field of unit scale, the condition and the places (B, in_channels, *space).

        Returns:
            The change (B, num_channels, *space).
        """
        raise NotImplementedError

    def encode(self, u: Tensor) -> Tensor:
        """Return fields (B, *space, C) as tokens (B, N, W)."""
        return u.flatten(1, -2)

    def decode(self, z: Tensor) -> Tensor:
        """Return tokens (B, N, W) as fields (B, *space, C)."""
        return z.unflatten(1, self.space)

    def step(self, z: Tensor, dt: Tensor, parameters: Tensor) -> Tensor:
        """Advance tokens (B, N, W) by ``dt`` (B,) at ``parameters`` (B, P)."""
        condition = condition_features(dt, parameters)[:, None].expand(-1, z.shape[1], -1)
        fields = torch.cat((z, condition), -1).mT.unflatten(-1, self.space)
        inputs = torch.cat((fields, self.places.expand(z.shape[0], *self.places.shape)), 1)
        change = self(inputs).flatten(2).mT
        return z + (change - change.mean(1, keepdim=True) if self.conserve_mean else change)

    def muon_parameters(self) -> list[Tensor]:
        """The weights that the optimizer may treat as matrices: none."""
        return []
