"""A token mixer on patches of a periodic line, built for speed on a fixed set of tokens.

It has the structure of the Universal Physics Transformer (Alkin et al., "Universal Physics
Transformers", NeurIPS 2024): an encoder to a fixed number of latent tokens, an approximator that
steps the tokens, and a decoder. It has no attention and no absolute positions. Token j is centered
at (j + 1/2) L/N and reads the field through an overlapping circular patch; tokens mix with their
neighbors on the circle. A shift of the field by the width of a token is therefore exactly a shift
of the tokens.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.core.errors import UpsError

NU_SCALE, DT_SCALE = 1e-3, 0.05  # centers of log nu and dt; they only set units


class MixerBlock(nn.Module):
    """h + W2 silu(W1 [h_{j-d}, h_j, h_{j+d}] + b): mixes tokens at distance d, then channels.

    Tokens are rows of C channels: one copy concatenates three tokens to a row, and the rest is two
    matrix products.

    Args:
        tokens: number of tokens N.
        channels: channels C of a token.
        hidden: channels inside the block.
        distance: the distance d in tokens.
    """

    def __init__(self, tokens: int, channels: int, hidden: int, distance: int) -> None:
        super().__init__()
        self.register_buffer(
            "meeting", circular_neighbor_indices(tokens, (-distance, 0, distance)), persistent=False
        )
        self.w1 = nn.Parameter(torch.randn(hidden, 3 * channels) * (3 * channels) ** -0.5)
        self.b1 = nn.Parameter(torch.zeros(hidden, 1))
        self.w2 = nn.Parameter(torch.randn(channels, hidden) * 0.5 * hidden**-0.5)
        self.meeting: Tensor

    def forward(self, h: Tensor) -> Tensor:
        """Map tokens (B, N, C) to tokens (B, N, C)."""
        b, n, c = h.shape
        y = F.silu(
            F.linear(h.index_select(1, self.meeting).view(b * n, 3 * c), self.w1, self.b1.view(-1))
        )
        if torch.is_autocast_enabled(h.device.type):
            # products in low precision, the running sum in full precision
            return h + F.linear(y, self.w2).view(b, n, c)
        return torch.addmm(h.reshape(b * n, c), y, self.w2.T).view(b, n, c)


def circular_neighbor_indices(tokens: int, offsets: Sequence[int]) -> Tensor:
    """The indices of each token's neighbors on a circle, token by token.

    Args:
        tokens: number of tokens N.
        offsets: distances of the neighbors.

    Returns:
        Indices (N * len(offsets),).
    """
    return ((torch.arange(tokens)[:, None] + torch.tensor(offsets)) % tokens).flatten()


class UPT(nn.Module):
    """Encoder, approximator and decoder over ``tokens`` latent tokens of ``width`` channels.

    Args:
        points: points of the training grid, a multiple of ``tokens``.
        tokens: N of the latent state (B, N, C).
        width: C of the latent state.
        hidden: channels inside a block, as a multiple of ``width``.
        distances: distances of the tokens that the blocks of a part mix, in turn. In the
            approximator their sum, in tokens, must reach as far as information travels in one step.
        encoder: number of blocks in the encoder.
        approximator: number of blocks in the approximator.
        decoder: number of blocks in the decoder.
        patch: number of patches of points/tokens points, centered on a token, that it reads and
            writes; odd.
        fields: components F of the field.
        limit: root mean square at which tokens saturate; see ``soft_rms_clip``.
        conserve: whether the equation conserves the mean of each field. Then the last F channels of
            every token carry the mean through all steps unchanged and the decoder sets it, so that
            mass is conserved to round-off.

    Raises:
        UpsError: the sizes don't fit together.
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
                f"model.tokens={tokens}, model.patch={patch}: "
                f"the {points} points must be a multiple of tokens; patch odd, at most tokens"
            )
        self.tokens, self.width, self.patch, self.limit = tokens, width, patch, limit
        self.offsets = range(-(patch // 2), patch // 2 + 1)
        self.register_buffer(
            "seen", circular_neighbor_indices(tokens, self.offsets), persistent=False
        )
        self.seen: Tensor
        self.free = width - fields if conserve else width  # channels that a step may change
        self.fields, self.per_token, self.conserve = fields, points // tokens * fields, conserve
        inner = round(hidden * width)

        def stack(depth: int) -> nn.Sequential:
            return nn.Sequential(
                *(
                    MixerBlock(tokens, width, inner, distances[i % len(distances)])
                    for i in range(depth)
                )
            )

        self.patches_in = nn.Parameter(
            torch.randn(width, patch * self.per_token) * (patch * self.per_token) ** -0.5
        )
        # without a constant input, tokens of u and of 2 u would be multiples of each other
        self.constant = nn.Parameter(torch.randn(width, 1, 1))
        self.condition = nn.Linear(2, width)
        self.encoder, self.approximator, self.decoder = (
            stack(encoder),
            stack(approximator),
            stack(decoder),
        )
        self.patches_out = nn.Parameter(
            torch.randn(patch * self.per_token, width) * 0.5 * width**-0.5
        )

    def encode(self, u: Tensor) -> Tensor:
        """Encode fields (B, X, F) of unit scale into tokens (B, N, C)."""
        own = u.reshape(u.shape[0], self.tokens, self.per_token)
        patches = own.index_select(1, self.seen).view(u.shape[0], self.tokens, -1)
        h = F.linear(patches, self.patches_in, self.constant.view(-1))
        return self._restore_mean(
            self.soft_rms_clip(self.encoder(h)), u.mean(1, keepdim=True).expand(-1, self.tokens, -1)
        )

    def step(self, z: Tensor, dt: Tensor, nu: Tensor) -> Tensor:
        """Advance tokens (B, N, C) by ``dt`` (B,) at ``nu`` (B,)."""
        # a condition (B, C) for all tokens of a sample
        about = self.condition(torch.stack((dt / DT_SCALE - 1, (nu / NU_SCALE).log()), -1))
        return self._restore_mean(
            self.soft_rms_clip(self.approximator(z + about[:, None])), z[..., -self.fields :]
        )

    def decode(self, z: Tensor) -> Tensor:
        """Decode tokens (B, N, C) into fields (B, X, F) on the training grid."""
        patches = F.linear(self.decoder(z), self.patches_out).view(
            *z.shape[:2], self.patch, self.per_token
        )
        parts = [part.roll(k, 1) for part, k in zip(patches.unbind(2), self.offsets, strict=True)]
        u = torch.stack(parts).sum(0).view(z.shape[0], -1, self.fields).to(z.dtype)
        return (
            u - u.mean(1, keepdim=True) + z[..., -self.fields :].mean(1, keepdim=True)
            if self.conserve
            else u
        )

    def soft_rms_clip(self, z: Tensor) -> Tensor:
        """z / sqrt(1 + |z|^2 / limit^2) for tokens (B, N, C), with |z|^2 the mean over channels.

        It bounds large tokens and is the identity for small ones. LayerNorm bounds latent rollouts
        too, but it discards the size of a token and with it the precision of small differences; see
        docs/notes/model.md for both measured.
        """
        return z * torch.rsqrt(1 + z.square().mean(-1, keepdim=True) / self.limit**2)

    def _restore_mean(self, z: Tensor, mean: Tensor) -> Tensor:
        return torch.cat((z[..., : -self.fields], mean), -1) if self.conserve else z

    def muon_parameters(self) -> list[Tensor]:
        """The weight matrices of the blocks, which an optimizer may treat as matrices."""
        return [p for m in self.modules() if isinstance(m, MixerBlock) for p in (m.w1, m.w2)]
