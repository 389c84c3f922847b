"""A Universal Physics Transformer for periodic lines, built for speed on a fixed set of tokens.

Source: Alkin et al., "Universal Physics Transformers", NeurIPS 2024: an encoder to a fixed number of latent tokens, an approximator that
steps the tokens, a decoder. Here everything is relative and periodic: token j stands at (j + 1/2) L/N and sees the field through
an overlapping circular patch, tokens mix through a circular neighbourhood, so that a shift of the field by a token's width is exactly
a shift of the tokens.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.errors import UpsError

NU_SCALE, DT_SCALE = 1e-3, 0.05  # where log nu and dt are centred; a matter of units only


class MixerBlock(nn.Module):
    """h + W2 silu(W1 [h_{j-d}, h_j, h_{j+d}] + b): tokens at a distance d meet, then channels.

    Tokens are rows of C channels, so that one copy puts the three that meet in a row: all else is two matrix products.
    """

    def __init__(self, tokens: int, channels: int, hidden: int, distance: int) -> None:
        super().__init__()
        self.register_buffer("meeting", neighbours(tokens, (-distance, 0, distance)), persistent=False)
        self.w1 = nn.Parameter(torch.randn(hidden, 3 * channels) * (3 * channels) ** -0.5)
        self.b1 = nn.Parameter(torch.zeros(hidden, 1))
        self.w2 = nn.Parameter(torch.randn(channels, hidden) * 0.5 * hidden**-0.5)
        self.meeting: Tensor

    def forward(self, h: Tensor) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C)."""
        b, n, c = h.shape
        y = F.silu(F.linear(h.index_select(1, self.meeting).view(b * n, 3 * c), self.w1, self.b1.view(-1)))
        if torch.is_autocast_enabled(h.device.type):
            return h + F.linear(y, self.w2).view(b, n, c)  # products in low precision, the running sum not
        return torch.addmm(h.reshape(b * n, c), y, self.w2.T).view(b, n, c)


def neighbours(tokens: int, offsets: Sequence[int]) -> Tensor:
    """The places at some ``offsets`` from each of a circle of ``tokens``, place by place: (tokens * len(offsets),)."""
    return ((torch.arange(tokens)[:, None] + torch.tensor(offsets)) % tokens).flatten()


class UPT(nn.Module):
    """Encoder, approximator, decoder over ``tokens`` latent tokens of ``width`` channels.

    Args:
        points: points of the training grid, a multiple of ``tokens``.
        tokens, width: N and C of the latent state (B, N, C).
        hidden: channels inside a block, as a multiple of ``width``.
        distances: how far apart the tokens are that meet in the blocks of a part, in turn. In the approximator their sum, in
            tokens, must reach as far as anything travels in one step.
        encoder, approximator, decoder: blocks in each part.
        patch: patches of points/tokens points that a token sees, and writes to, around its own place; odd.
        fields: components F of the field.
        limit: where the size of a token saturates; see ``bound``.
        conserve: for equations that keep the mean of each field: the last F channels of every token carry it through all steps
            untouched, and the decoder sets it, so that mass is kept to round-off.
    """

    def __init__(
        self,
        points: int,
        tokens: int = 32,
        width: int = 64,
        hidden: float = 1.0,
        distances: Sequence[int] = (1,),
        encoder: int = 2,
        approximator: int = 4,
        decoder: int = 2,
        patch: int = 3,
        fields: int = 1,
        limit: float = 3.0,
        conserve: bool = True,
    ) -> None:
        super().__init__()
        if points % tokens or tokens < patch or patch % 2 == 0:
            raise UpsError(
                f"model.tokens={tokens}, model.patch={patch}: the {points} points must be a multiple of tokens; patch odd, at most tokens"
            )
        self.tokens, self.width, self.patch, self.limit = tokens, width, patch, limit
        self.offsets = range(-(patch // 2), patch // 2 + 1)
        self.register_buffer("seen", neighbours(tokens, self.offsets), persistent=False)
        self.seen: Tensor
        self.free = width - fields if conserve else width  # channels that a step may change
        self.fields, self.per_token, self.conserve = fields, points // tokens * fields, conserve
        inner = round(hidden * width)

        def stack(depth: int) -> nn.Sequential:
            return nn.Sequential(*(MixerBlock(tokens, width, inner, distances[i % len(distances)]) for i in range(depth)))

        self.patches_in = nn.Parameter(torch.randn(width, patch * self.per_token) * (patch * self.per_token) ** -0.5)
        # a constant beside the field, so that the tokens of a field and of its double are not multiples of each other
        self.constant = nn.Parameter(torch.randn(width, 1, 1))
        self.condition = nn.Linear(2, width)
        self.encoder, self.approximator, self.decoder = stack(encoder), stack(approximator), stack(decoder)
        self.patches_out = nn.Parameter(torch.randn(patch * self.per_token, width) * 0.5 * width**-0.5)

    def encode(self, u: Tensor) -> Tensor:
        """Fields (B, X, F) of unit scale -> tokens (B, N, C)."""
        own = u.reshape(u.shape[0], self.tokens, self.per_token)
        patches = own.index_select(1, self.seen).view(u.shape[0], self.tokens, -1)
        h = F.linear(patches, self.patches_in, self.constant.view(-1))
        return self._keep(self.bound(self.encoder(h)), u.mean(1, keepdim=True).expand(-1, self.tokens, -1))

    def step(self, z: Tensor, dt: Tensor, nu: Tensor) -> Tensor:
        """Tokens (B, N, C) -> tokens ``dt`` (B,) later, at ``nu`` (B,)."""
        about = self.condition(torch.stack((dt / DT_SCALE - 1, (nu / NU_SCALE).log()), -1))  # (B, C)
        return self._keep(self.bound(self.approximator(z + about[:, None])), z[..., -self.fields :])

    def decode(self, z: Tensor) -> Tensor:
        """Tokens (B, N, C) -> fields (B, X, F) on the training grid."""
        patches = F.linear(self.decoder(z), self.patches_out).view(*z.shape[:2], self.patch, self.per_token)
        parts = [part.roll(k, 1) for part, k in zip(patches.unbind(2), self.offsets, strict=True)]
        u = torch.stack(parts).sum(0).view(z.shape[0], -1, self.fields).to(z.dtype)
        return u - u.mean(1, keepdim=True) + z[..., -self.fields :].mean(1, keepdim=True) if self.conserve else u

    def bound(self, z: Tensor) -> Tensor:
        """z / sqrt(1 + |z|^2 / limit^2), |z|^2 the mean over a token's channels, for (B, N, C): the identity for small tokens, bounded for
        large ones.

        LayerNorm, which bounds latent rollouts too, throws a token's size away, and with it the precision of small differences: see
        docs/method.md for both measured.
        """
        return z * torch.rsqrt(1 + z.square().mean(-1, keepdim=True) / self.limit**2)

    def _keep(self, z: Tensor, mean: Tensor) -> Tensor:
        return torch.cat((z[..., : -self.fields], mean), -1) if self.conserve else z

    def matrices(self) -> list[Tensor]:
        """The blocks' weight matrices, which an optimiser may treat as such."""
        return [p for m in self.modules() if isinstance(m, MixerBlock) for p in (m.w1, m.w2)]
