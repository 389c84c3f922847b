"""Base class of models without latent tokens, which step the field itself."""

import torch
from torch import Tensor, nn

from ups.models.upt import DT_SCALE, NU_SCALE


class GridModel(nn.Module):
    """A model that steps fields on the grid itself.

    A subclass implements ``forward``, the change of the field; this class adds the rest of the
    protocol. The grid points are the tokens, and encode and decode are the identity. Latent and
    physical rollouts are therefore the same, and the inverse losses are zero and must be off
    (``lambda_inv=0``).

    Args:
        points: points of the training grid.
        fields: components F of the field.
        conserve: whether the equation conserves the mean of each field; then changes of the mean
            are removed.
    """

    inputs = 2  # channels of the condition, in addition to the field's

    def __init__(self, points: int, fields: int = 1, conserve: bool = True) -> None:
        super().__init__()
        self.tokens, self.width, self.free, self.fields, self.conserve = (
            points,
            fields,
            fields,
            fields,
            conserve,
        )

    def forward(self, u: Tensor) -> Tensor:
        """The change of the field over one step.

        Args:
            u: the field and the condition of unit scale (B, F + 2, X).

        Returns:
            The change (B, F, X).
        """
        raise NotImplementedError

    def encode(self, u: Tensor) -> Tensor:
        """Return fields (B, X, F) as tokens, unchanged."""
        return u

    def decode(self, z: Tensor) -> Tensor:
        """Return tokens as fields (B, X, F), unchanged."""
        return z

    def step(self, z: Tensor, dt: Tensor, nu: Tensor) -> Tensor:
        """Advance fields (B, X, F) by ``dt`` (B,) at ``nu`` (B,)."""
        about = torch.stack((dt / DT_SCALE - 1, (nu / NU_SCALE).log()), -1)
        change = self(torch.cat((z, about[:, None].expand(-1, z.shape[1], -1)), -1).mT).mT
        return z + (change - change.mean(1, keepdim=True) if self.conserve else change)

    def muon_parameters(self) -> list[Tensor]:
        """The weights that the optimizer may treat as matrices: none."""
        return []
