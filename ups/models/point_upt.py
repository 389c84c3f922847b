"""The Universal Physics Transformer on points: any points in, tokens that keep a place, any out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.core.points import Points
from ups.core.schema import Depth, OneOrMore, PositiveFloat, PositiveInt
from ups.models.conditioning import condition_features
from ups.models.lattice import NUM_WAVES, Corners, Lattice, Rotary, offset_features, sum_at
from ups.models.mixer import soft_rms_clip
from ups.models.places import place_channels
from ups.models.upt import Block, transformer_matrices

SCORE_LIMIT = 5.0  # no point of a token counts more than exp(2 SCORE_LIMIT) times another


class PointUPT(nn.Module):
    """A Universal Physics Transformer over points or a grid, whose tokens lie on a lattice.

    Source: Alkin et al., "Universal Physics Transformers", NeurIPS 2024, with three changes. The
    supernodes, which gather messages from the points around them, are the nodes of a lattice and
    not a random choice of the points. They are the latent tokens themselves: no perceiver mixes
    them into tokens without a place. A query reads the tokens at the corners of its cell, not all.

    - Encoder: each point sends a message to the corners of its cell; a token takes the mean of its
      messages with weights that each head learns. Transformer blocks.
    - Approximator: transformer blocks modulated by dt and the parameters, which are the identity
      at initialization.
    - Decoder: transformer blocks, and at any position a network of the tokens at the corners of its
      cell and of what is known of the point. It is continuous across cells.

    Attention knows relative positions only (rotary embeddings).

    Args:
        spec: describes the field.
        num_tokens: number of tokens along each axis, or about so many in all in cells that are
            nearly cubes.
        hidden_dim: channels W of a token.
        num_heads: number of attention heads.
        encoder_depth: number of blocks in the encoder.
        approximator_depth: number of blocks in the approximator.
        decoder_depth: number of blocks in the decoder.
        latent_rms_limit: root mean square at which tokens saturate; see ``soft_rms_clip``.

    Attributes:
        tokens: the lattice of the tokens.

    Raises:
        UpsError: the sizes don't fit together.
    """

    grid_positions: Tensor
    grid_features: Tensor

    def __init__(
        self,
        spec: FieldSpec,
        num_tokens: OneOrMore[PositiveInt] = 128,
        hidden_dim: PositiveInt = 64,
        num_heads: PositiveInt = 4,
        encoder_depth: Depth = 1,
        approximator_depth: Depth = 4,
        decoder_depth: Depth = 1,
        latent_rms_limit: PositiveFloat = 3.0,
    ) -> None:
        super().__init__()
        if hidden_dim % (2 * num_heads):
            raise UpsError(
                "`model.hidden_dim` must be a multiple of twice `model.num_heads`, which is "
                f"{num_heads}, got {hidden_dim}."
            )
        self.lattice = Lattice(spec.domain, num_tokens)
        self.tokens = self.lattice.tokens
        self.num_tokens = self.lattice.num_tokens
        self.hidden_dim = hidden_dim
        self.num_dynamic_channels = hidden_dim
        self.latent_rms_limit = latent_rms_limit
        if isinstance(spec.domain, Grid):
            self.space = spec.domain.shape
            places = place_channels(spec)
            self.register_buffer("grid_features", places.flatten(1).T, persistent=False)
            positions = spec.domain.positions().flatten(0, -2)
            self.register_buffer("grid_positions", positions, persistent=False)
            num_features = len(places)
        else:
            num_features = len(spec.domain.features)
        rotary = Rotary(self.lattice, hidden_dim // num_heads)

        def blocks(depth: int, conditioned: bool = False) -> nn.ModuleList:
            each = (Block(hidden_dim, num_heads, conditioned, rotary) for _ in range(depth))
            return nn.ModuleList(each)

        sizes = (spec.domain.num_dims, num_features, hidden_dim)
        self.pool = SupernodePooling(*sizes, spec.num_channels, num_heads)
        self.encoder = blocks(encoder_depth)
        self.condition = nn.Sequential(nn.Linear(1 + len(spec.parameters), hidden_dim), nn.SiLU())
        self.approximator = blocks(approximator_depth, conditioned=True)
        self.decoder = blocks(decoder_depth)
        self.read = PointDecoder(*sizes, spec.num_channels)

    def encode(self, u: Tensor, points: Points | None = None) -> Tensor:
        """Encode fields (B, P, C) of unit scale at ``points``, or (B, *space, C) on the grid, into
        tokens (B, N, W).
        """
        if points is None:
            u = u.flatten(1, -2)
            points = self._grid_points(u.shape[0])
        corners = self.lattice.corners(points)
        z = self.pool(torch.cat((u, points.features), -1), corners, self.num_tokens)
        for block in self.encoder:
            z = block(z)
        return soft_rms_clip(z, self.latent_rms_limit)

    def step(self, z: Tensor, dt: Tensor, parameters: Tensor) -> Tensor:
        """Advance tokens (B, N, W) by ``dt`` (B,) at ``parameters`` (B, P)."""
        condition = self.condition(condition_features(dt, parameters))
        for block in self.approximator:
            z = block(z, condition)
        return soft_rms_clip(z, self.latent_rms_limit)

    def decode(self, z: Tensor, points: Points | None = None) -> Tensor:
        """Decode tokens (B, N, W) into fields (B, P, C) at ``points``, or (B, *space, C) on the
        grid.
        """
        for block in self.decoder:
            z = block(z)
        places = self._grid_points(z.shape[0]) if points is None else points
        u = self.read(z, places.features, self.lattice.corners(places))
        return u.unflatten(1, self.space) if points is None else u

    def _grid_points(self, number: int) -> Points:
        """The points of the grid for so many samples."""
        each = (self.grid_positions, self.grid_features)
        return Points(*(values.expand(number, -1, -1) for values in each))

    def muon_parameters(self) -> list[Tensor]:
        """The weight matrices of the blocks, which an optimizer may treat as matrices."""
        return transformer_matrices(self.encoder, self.approximator, self.decoder)


class SupernodePooling(nn.Module):
    """Gathers messages of points in tokens.

    A message is a small network of the point's values and of its offset from the token. Its weight
    is the multilinear one times exp(score) of each head: with plain means, the random places of few
    points would blur what a token knows.

    Args:
        num_dims: number of dimensions D.
        num_features: number of features F of a point.
        hidden_dim: channels W of a token.
        num_channels: number of channels C.
        num_heads: number of heads.
    """

    def __init__(
        self, num_dims: int, num_features: int, hidden_dim: int, num_channels: int, num_heads: int
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.values = nn.Linear(num_channels + num_features, hidden_dim)
        self.offsets = nn.Linear(num_dims * (1 + 2 * NUM_WAVES), hidden_dim, bias=False)
        self.score = nn.Linear(hidden_dim, num_heads)
        self.out = nn.Linear(hidden_dim, hidden_dim)
        self.no_points = nn.Parameter(torch.zeros(hidden_dim))

    def forward(self, values: Tensor, corners: Corners, num_tokens: int) -> Tensor:
        """Pool values (B, P, C + F) of points into tokens (B, N, W)."""
        near = self.offsets(offset_features(corners.offset))
        messages = F.gelu(self.values(values)[:, :, None] + near)
        score = SCORE_LIMIT * torch.tanh(self.score(messages) / SCORE_LIMIT)
        weight = corners.weight[..., None] * score.exp()
        weighted = messages.unflatten(-1, (self.num_heads, -1)) * weight[..., None]
        sums = sum_at(corners.token, weighted.flatten(-2), values.shape[0] * num_tokens)
        total = sum_at(corners.token, weight, values.shape[0] * num_tokens)
        means = sums.unflatten(-1, (self.num_heads, -1)) / total.clamp_min(1e-12)[..., None]
        is_empty = total[:, :1] == 0
        return (self.out(means.flatten(-2)) + self.no_points * is_empty).unflatten(
            0, (values.shape[0], num_tokens)
        )


class PointDecoder(nn.Module):
    """Reads tokens at any points.

    Args:
        num_dims: number of dimensions D.
        num_features: number of features F of a point.
        hidden_dim: channels W of a token.
        num_channels: number of channels C.
    """

    def __init__(
        self, num_dims: int, num_features: int, hidden_dim: int, num_channels: int
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_dim)
        self.token = nn.Linear(hidden_dim, hidden_dim)
        self.features = nn.Linear(num_features, hidden_dim, bias=False) if num_features else None
        self.offsets = nn.Linear(num_dims * (1 + 2 * NUM_WAVES), hidden_dim, bias=False)
        self.out = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, num_channels)
        )

    def forward(self, z: Tensor, features: Tensor, corners: Corners) -> Tensor:
        """Read tokens (B, N, W) at points with features (B, P, F): (B, P, C)."""
        # the map of a token comes before it is copied to the many points around it
        tokens = self.token(self.norm(z)).flatten(0, 1)
        near = tokens[corners.token] + self.offsets(offset_features(corners.offset))
        if self.features is not None:
            near = near + self.features(features)[:, :, None]
        read = F.gelu(near)
        return self.out((read * corners.weight[..., None]).sum(2))
