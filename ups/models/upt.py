"""The Universal Physics Transformer with the structure of the paper.

It has absolute positions and perceivers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, PointCloud
from ups.core.points import Points
from ups.core.schema import Depth, NumPatches, PositiveInt
from ups.models.conditioning import condition_features
from ups.models.neighbors import nearest, take
from ups.models.patches import Patches

NUM_MESSAGES = 16  # points that a supernode hears


class UPT(nn.Module):
    """The Universal Physics Transformer of the paper, on grids and on points.

    Source: Alkin et al., "Universal Physics Transformers", NeurIPS 2024.

    - Encoder: a grid gathered in patches, points in supernodes; sine-cosine positions, transformer
      blocks, a perceiver onto learned queries.
    - Approximator: transformer blocks modulated by dt and nu (Peebles and Xie, "DiT", ICCV 2023).
    - Decoder: transformer blocks, a perceiver from the positions of the output.

    Here the approximator adds to the tokens, and a LayerNorm without parameters keeps them at unit
    scale after the encoder and after every step: without it latent rollouts diverge.

    Args:
        spec: describes the field.
        num_patches: number of patches in which the encoder gathers the points: one number for each
            axis, or their product, of which the patches are as close to cubes as they can be.
        num_supernodes: number of supernodes in which the encoder gathers points that differ from
            sample to sample.
        num_tokens: number of latent tokens N.
        hidden_dim: channels W of a token.
        num_heads: number of attention heads.
        encoder_depth: number of blocks in the encoder.
        approximator_depth: number of blocks in the approximator.
        decoder_depth: number of blocks in the decoder.

    Raises:
        UpsError: the sizes don't fit together.
    """

    patch_places: Tensor
    point_places: Tensor

    def __init__(
        self,
        spec: FieldSpec,
        num_patches: NumPatches = 64,
        num_supernodes: PositiveInt = 256,
        num_tokens: PositiveInt = 64,
        hidden_dim: PositiveInt = 48,
        num_heads: PositiveInt = 4,
        encoder_depth: Depth = 2,
        approximator_depth: Depth = 4,
        decoder_depth: Depth = 2,
    ) -> None:
        super().__init__()
        dims = spec.domain.num_dims
        if hidden_dim % num_heads or hidden_dim % 4 or hidden_dim < 2 * dims:
            raise UpsError(
                f"`model.hidden_dim` must be a multiple of 4 and of `model.num_heads`, which is "
                f"{num_heads}, and at least {2 * dims}, got {hidden_dim}."
            )
        if isinstance(spec.domain, PointCloud):
            self.supernodes = Supernodes(spec.domain, spec.num_channels, num_supernodes, hidden_dim)
            self.known = nn.Linear(len(spec.domain.features), hidden_dim)
        else:
            self.patches = Patches(spec, num_patches, "model.num_patches")
            self.space = spec.grid.shape
            self.embed = nn.Linear(self.patches.size, hidden_dim)
            patch_places = grid_places(self.patches.shape, hidden_dim)
            point_places = grid_places(self.space, hidden_dim)
            self.register_buffer("patch_places", patch_places, persistent=False)
            self.register_buffer("point_places", point_places, persistent=False)
        self.num_tokens = num_tokens
        self.hidden_dim = hidden_dim
        self.num_dynamic_channels = hidden_dim
        self.encoder = nn.ModuleList(Block(hidden_dim, num_heads) for _ in range(encoder_depth))
        self.queries = nn.Parameter(torch.randn(num_tokens, hidden_dim) * 0.02)
        self.pool = Attention(hidden_dim, num_heads)
        self.pool_mlp = _mlp(hidden_dim)
        self.condition = nn.Sequential(nn.Linear(1 + len(spec.parameters), hidden_dim), nn.SiLU())
        self.approximator = nn.ModuleList(
            Block(hidden_dim, num_heads, conditioned=True) for _ in range(approximator_depth)
        )
        self.decoder = nn.ModuleList(Block(hidden_dim, num_heads) for _ in range(decoder_depth))
        self.place = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, hidden_dim)
        )
        self.read = Attention(hidden_dim, num_heads)
        self.read_mlp = _mlp(hidden_dim)
        self.project = nn.Sequential(
            nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, spec.num_channels)
        )

    def encode(self, u: Tensor, points: Points | None = None) -> Tensor:
        """Encode fields (B, P, C) of unit scale at ``points``, or (B, *space, C) on the grid, into
        tokens (B, N, W).
        """
        if points is None:
            h = self.embed(self.patches.cut(u)) + self.patch_places
        else:
            h = self.supernodes(u, points)
        for block in self.encoder:
            h = block(h)
        z = self.queries + self.pool(self.queries.expand(u.shape[0], -1, -1), h)
        return _unit(z + self.pool_mlp(z))

    def step(self, z: Tensor, dt: Tensor, parameters: Tensor) -> Tensor:
        """Advance tokens (B, N, W) by ``dt`` (B,) at ``parameters`` (B, P)."""
        condition = self.condition(condition_features(dt, parameters))
        for block in self.approximator:
            z = block(z, condition)
        return _unit(z)

    def decode(self, z: Tensor, points: Points | None = None) -> Tensor:
        """Decode tokens (B, N, W) into fields (B, P, C) at ``points``, or (B, *space, C) on the
        grid.
        """
        for block in self.decoder:
            z = block(z)
        if points is None:
            places = self.place(self.point_places).expand(z.shape[0], -1, -1)
        else:
            where = self.supernodes.places(points.positions)
            places = self.place(where + self.known(points.features))
        h = places + self.read(places, z)
        u = self.project(h + self.read_mlp(h))
        return u.unflatten(1, self.space) if points is None else u

    def muon_parameters(self) -> list[Tensor]:
        """The weights of blocks and perceivers that an optimizer may treat as matrices."""
        perceivers = (self.pool, self.pool_mlp, self.read, self.read_mlp)
        return transformer_matrices(self.encoder, self.approximator, self.decoder, *perceivers)


class Supernodes(nn.Module):
    """Gathers the messages of points in some of them, the supernodes.

    As in the paper a message is a small network of both ends, and a supernode takes their mean.
    There a supernode hears all points within a radius; here it hears its ``NUM_MESSAGES`` nearest
    ones, itself included, so there is no radius to choose. Supernodes are evenly spread over the
    order of the points, which is random in training.

    Args:
        domain: where the points lie.
        num_channels: number of channels C.
        number: number of supernodes S.
        hidden_dim: channels W of a supernode.
    """

    lower: Tensor
    extent: Tensor

    def __init__(self, domain: PointCloud, num_channels: int, number: int, hidden_dim: int) -> None:
        super().__init__()
        self.number = number
        self.hidden_dim = hidden_dim
        lower = torch.tensor([first for first, _ in domain.edges])
        self.register_buffer("lower", lower, persistent=False)
        self.register_buffer("extent", torch.tensor(domain.extent), persistent=False)
        self.values = nn.Linear(num_channels + len(domain.features), hidden_dim)
        self.sender = nn.Linear(hidden_dim, hidden_dim)
        self.receiver = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.out = nn.Linear(hidden_dim, hidden_dim)

    def places(self, positions: Tensor) -> Tensor:
        """Sines and cosines (B, P, W) of positions (B, P, D)."""
        return sine_cosine_places((positions - self.lower) / self.extent, self.hidden_dim)

    def forward(self, u: Tensor, points: Points) -> Tensor:
        """Gather fields (B, P, C) in supernodes (B, S, W)."""
        h = self.values(torch.cat((u, points.features), -1)) + self.places(points.positions)
        chosen = self._choose(points.mask)
        centers = take(points.positions, chosen)
        near, _ = nearest(points.positions, points.mask, centers, NUM_MESSAGES)
        ends = take(self.sender(h), near) + take(self.receiver(h), chosen)[:, :, None]
        return self.out(F.gelu(ends).mean(2))

    def _choose(self, mask: Tensor) -> Tensor:
        """The numbers (B, S) of the supernodes; points are repeated if there are fewer."""
        size = mask.sum(1, keepdim=True)
        rank = torch.arange(self.number, device=mask.device) * size // self.number
        points_first = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        return points_first.gather(1, rank)


class Attention(nn.Module):
    """Attention of queries (B, Q, W) to keys and values (B, N, W), each normalized first."""

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_q = nn.LayerNorm(hidden_dim)
        self.norm_kv = nn.LayerNorm(hidden_dim)
        self.q = nn.Linear(hidden_dim, hidden_dim)
        self.kv = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.out = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Attend from ``queries`` (B, Q, W) to ``context`` (B, N, W): (B, Q, W)."""
        kv = self.kv(self.norm_kv(context)).chunk(2, -1)
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for t in (self.q(self.norm_q(queries)), *kv)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """A pre-norm transformer block.

    Args:
        hidden_dim: channels W.
        num_heads: number of attention heads.
        conditioned: whether a vector (B, W) scales, shifts and gates the block, which is the
            identity at initialization.
        rotary: rotates queries and keys (B, heads, N, W / heads) by the places of their tokens, so
            that attention depends on relative positions; None for none.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        conditioned: bool = False,
        rotary: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.rotary = rotary
        self.norm1 = nn.LayerNorm(hidden_dim, elementwise_affine=not conditioned)
        self.norm2 = nn.LayerNorm(hidden_dim, elementwise_affine=not conditioned)
        self.qkv = nn.Linear(hidden_dim, 3 * hidden_dim)
        self.out = nn.Linear(hidden_dim, hidden_dim)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_dim, 4 * hidden_dim), nn.GELU(), nn.Linear(4 * hidden_dim, hidden_dim)
        )
        self.modulation = nn.Linear(hidden_dim, 6 * hidden_dim) if conditioned else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, W), with a condition (B, W) if there is one, to tokens (B, N, W)."""
        if self.modulation is None or condition is None:
            h = h + self._attend(self.norm1(h))
            return h + self.mlp(self.norm2(h))
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(condition)[:, None].chunk(
            6, -1
        )
        h = h + gate1 * self._attend(self.norm1(h) * (1 + scale1) + shift1)
        return h + gate2 * self.mlp(self.norm2(h) * (1 + scale2) + shift2)

    def _attend(self, h: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in self.qkv(h).chunk(3, -1)
        )
        if self.rotary is not None:
            q = self.rotary(q)
            k = self.rotary(k)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


def transformer_matrices(*parts: nn.Module) -> list[Tensor]:
    """The weight matrices of the blocks in ``parts``, without those of their modulation."""
    return [
        p
        for part in parts
        for name, p in part.named_parameters()
        if p.ndim == 2 and "modulation" not in name
    ]


def grid_places(shape: Sequence[int], hidden_dim: int) -> Tensor:
    """Sines and cosines (N, C) of the positions of the N cells of a grid, of each axis in turn.

    The axes share the channels; those that remain are zero.
    """
    axes = [(torch.arange(n) + 0.5) / n for n in shape]
    return sine_cosine_places(torch.cartesian_prod(*axes).reshape(-1, len(shape)), hidden_dim)


def sine_cosine_places(share: Tensor, hidden_dim: int) -> Tensor:
    """Sines and cosines (..., C) of positions (..., D) in [0, 1], of each axis in turn."""
    channels = hidden_dim // (2 * share.shape[-1]) * 2
    places = torch.cat([sine_cosine(x, channels) for x in share.unbind(-1)], -1)
    return F.pad(places, (0, hidden_dim - places.shape[-1]))


def sine_cosine(x: Tensor, hidden_dim: int) -> Tensor:
    """Sines and cosines (..., C) of positions ``x`` (...) in [0, 1].

    Positions are scaled to [0, 200] as in the authors' code.
    """
    rates = 1e4 ** -torch.linspace(0, 1, hidden_dim // 2, device=x.device)
    angles = 200 * x[..., None] * rates
    return torch.cat((angles.sin(), angles.cos()), -1)


def _mlp(hidden_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(hidden_dim),
        nn.Linear(hidden_dim, 4 * hidden_dim),
        nn.GELU(),
        nn.Linear(4 * hidden_dim, hidden_dim),
    )


def _unit(z: Tensor) -> Tensor:
    return F.layer_norm(z, z.shape[-1:])
