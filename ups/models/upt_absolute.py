"""The Universal Physics Transformer with the structure of the paper.

It has absolute positions and perceivers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.models.upt import DT_SCALE, NU_SCALE


class PlainUPT(nn.Module):
    """The Universal Physics Transformer of the paper, on a periodic line.

    Source: Alkin et al., "Universal Physics Transformers", NeurIPS 2024.

    - Encoder: points gathered in patches, sine-cosine positions, transformer blocks, a perceiver
      onto learned queries.
    - Approximator: transformer blocks modulated by dt and nu (Peebles and Xie, "DiT", ICCV 2023).
    - Decoder: transformer blocks, a perceiver from the positions of the output.

    Here the approximator adds to the tokens, and a LayerNorm without parameters keeps them at unit
    scale after the encoder and after every step: without it latent rollouts diverge.

    Args:
        points: points of the training grid.
        patches: number of patches in which the encoder gathers the points.
        tokens: number of latent tokens N.
        width: channels C of a token.
        heads: number of attention heads.
        encoder: number of blocks in the encoder.
        approximator: number of blocks in the approximator.
        decoder: number of blocks in the decoder.
        fields: components F of the field.

    Raises:
        UpsError: the sizes don't fit together.
    """

    def __init__(
        self,
        points: int,
        patches: int = 64,
        tokens: int = 64,
        width: int = 48,
        heads: int = 4,
        encoder: int = 2,
        approximator: int = 4,
        decoder: int = 2,
        fields: int = 1,
    ) -> None:
        super().__init__()
        if points % patches or width % heads or width % 4:
            raise UpsError(
                f"model.patches={patches}, model.width={width}, model.heads={heads}: "
                f"the {points} points must be a multiple of patches, width one of 4 "
                "and of heads"
            )
        self.patches, self.tokens, self.width, self.free, self.fields = (
            patches,
            tokens,
            width,
            width,
            fields,
        )
        self.embed = nn.Linear(points // patches * fields, width)
        self.encoder = nn.ModuleList(Block(width, heads) for _ in range(encoder))
        self.queries = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.pool = Attention(width, heads)
        self.pool_mlp = _mlp(width)
        self.condition = nn.Sequential(nn.Linear(2, width), nn.SiLU())
        self.approximator = nn.ModuleList(
            Block(width, heads, conditioned=True) for _ in range(approximator)
        )
        self.decoder = nn.ModuleList(Block(width, heads) for _ in range(decoder))
        self.place = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.read = Attention(width, heads)
        self.read_mlp = _mlp(width)
        self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, fields))
        self.register_buffer(
            "patch_places",
            sine_cosine((torch.arange(patches) + 0.5) / patches, width),
            persistent=False,
        )
        self.register_buffer(
            "point_places",
            sine_cosine((torch.arange(points) + 0.5) / points, width),
            persistent=False,
        )
        self.patch_places: Tensor
        self.point_places: Tensor

    def encode(self, u: Tensor) -> Tensor:
        """Encode fields (B, X, F) of unit scale into tokens (B, N, C)."""
        h = self.embed(u.reshape(u.shape[0], self.patches, -1)) + self.patch_places
        for block in self.encoder:
            h = block(h)
        z = self.queries + self.pool(self.queries.expand(u.shape[0], -1, -1), h)
        return _unit(z + self.pool_mlp(z))

    def step(self, z: Tensor, dt: Tensor, nu: Tensor) -> Tensor:
        """Advance tokens (B, N, C) by ``dt`` (B,) at ``nu`` (B,)."""
        about = self.condition(torch.stack((dt / DT_SCALE - 1, (nu / NU_SCALE).log()), -1))
        for block in self.approximator:
            z = block(z, about)
        return _unit(z)

    def decode(self, z: Tensor) -> Tensor:
        """Decode tokens (B, N, C) into fields (B, X, F) on the training grid."""
        for block in self.decoder:
            z = block(z)
        places = self.place(self.point_places).expand(z.shape[0], -1, -1)
        h = places + self.read(places, z)
        return self.project(h + self.read_mlp(h))

    def muon_parameters(self) -> list[Tensor]:
        """The weight matrices of the blocks, which an optimizer may treat as matrices."""
        blocks = (*self.encoder, *self.approximator, *self.decoder)
        return [
            p
            for block in blocks
            for name, p in block.named_parameters()
            if p.ndim == 2 and "modulation" not in name
        ]


class Attention(nn.Module):
    """Attention of queries (B, Q, C) to keys and values (B, N, C), each normalized first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_kv = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv, self.out = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Attend from ``queries`` (B, Q, C) to ``context`` (B, N, C): (B, Q, C)."""
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.q(self.norm_q(queries)), *self.kv(self.norm_kv(context)).chunk(2, -1))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """A pre-norm transformer block.

    Args:
        width: channels C.
        heads: number of attention heads.
        conditioned: whether a vector (B, C) scales, shifts and gates the block, which is the
            identity at initialization.
    """

    def __init__(self, width: int, heads: int, conditioned: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (
            nn.LayerNorm(width, elementwise_affine=not conditioned) for _ in range(2)
        )
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width) if conditioned else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, about: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, C), with a condition (B, C) if there is one, to tokens (B, N, C)."""
        if self.modulation is None or about is None:
            h = h + self._attend(self.norm1(h))
            return h + self.mlp(self.norm2(h))
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(about)[:, None].chunk(6, -1)
        h = h + gate1 * self._attend(self.norm1(h) * (1 + scale1) + shift1)
        return h + gate2 * self.mlp(self.norm2(h) * (1 + scale2) + shift2)

    def _attend(self, h: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(h).chunk(3, -1)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


def sine_cosine(x: Tensor, width: int) -> Tensor:
    """Sines and cosines (X, C) of positions ``x`` (X,) in [0, 1).

    Positions are scaled to [0, 200) as in the authors' code.
    """
    angles = 200 * x[:, None] * 1e4 ** -torch.linspace(0, 1, width // 2)
    return torch.cat((angles.sin(), angles.cos()), -1)


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
    )


def _unit(z: Tensor) -> Tensor:
    return F.layer_norm(z, z.shape[-1:])
