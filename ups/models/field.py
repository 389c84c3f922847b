"""What models without latent tokens share: they step the field itself."""

import torch
from torch import Tensor, nn

from ups.models.upt import DT_SCALE, NU_SCALE


class FieldModel(nn.Module):
    """A model that steps fields: a subclass's ``forward`` says how the field changes, the rest of the protocol follows.

    Its tokens are the points, and encode and decode the identity, so that latent and physical rollouts are one and inverse losses, which
    are zero, must be off (``lambda_inv=0``).

    Args:
        points: points of the training grid.
        fields: components F of the field.
        conserve: for equations that keep the mean of each field: changes of the mean are left out.
    """

    inputs = 2  # channels of the condition, beside the field's

    def __init__(self, points: int, fields: int = 1, conserve: bool = True) -> None:
        super().__init__()
        self.tokens, self.width, self.free, self.fields, self.conserve = points, fields, fields, fields, conserve

    def forward(self, u: Tensor) -> Tensor:
        """The field and the condition (B, F + 2, X), of unit scale -> the field's change over one step, (B, F, X)."""
        raise NotImplementedError

    def encode(self, u: Tensor) -> Tensor:
        return u

    def decode(self, z: Tensor) -> Tensor:
        return z

    def step(self, z: Tensor, dt: Tensor, nu: Tensor) -> Tensor:
        """Fields (B, X, F) -> fields ``dt`` (B,) later, at ``nu`` (B,)."""
        about = torch.stack((dt / DT_SCALE - 1, (nu / NU_SCALE).log()), -1)
        change = self(torch.cat((z, about[:, None].expand(-1, z.shape[1], -1)), -1).mT).mT
        return z + (change - change.mean(1, keepdim=True) if self.conserve else change)

    def matrices(self) -> list[Tensor]:
        """Weights that the optimiser may treat as matrices: none."""
        return []
