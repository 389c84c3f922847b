"""A UPT on points whose tokens carry the field on a grid, and a memory of what the grid lacks."""

from dataclasses import replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.core.fields import FieldSpec
from ups.core.points import Points
from ups.core.schema import (
    Depth,
    MlpRatio,
    NonEmpty,
    NonNegativeInt,
    OneOrMore,
    PositiveFloat,
    PositiveInt,
)
from ups.models.conditioning import condition_features
from ups.models.interpolated import ToGrid, mean_around, read
from ups.models.lattice import NUM_WAVES, Corners, offset_features
from ups.models.mixer import block_matrices, mixer_blocks, soft_rms_clip
from ups.models.patches import Bound, Patches


class PointMemoryUPT(nn.Module):
    """A ``MemoryUPT`` for fields on points.

    - Encoder: the field and what is known of the points, interpolated to a regular grid without
      weights (``ToGrid``) and cut into patches. What the interpolation leaves over at the points is
      gathered at the nodes around them, and becomes a memory of ``memory_channels`` a token.
    - Approximator: blocks that mix tokens along the axes. It adds to the values of the patches and
      rewrites the memory. Before training a step keeps the field.
    - Decoder: multilinear interpolation of the values at any points, times a factor plus a shift
      that a small network finds from the memory there and what is known of the point. So the field
      may change within a cell, as it does near a wall. Before training both change little.

    Args:
        spec: describes the field, on points.
        num_points: number of nodes of the grid along each axis, at least 2, or about so many in all
            in cells that are nearly cubes; see ``ToGrid``.
        num_tokens: number of patches, one number for each axis or their product; None for patches
            of about four nodes along each axis.
        memory_channels: number of channels of a token's memory.
        memory_rms_limit: root mean square at which a token's memory saturates; see
            ``soft_rms_clip``.
        detail_channels: number of channels, at each node, in which the encoder gathers what the
            interpolation leaves over, and which the decoder reads.
        hidden_channels: channels inside a step.
        mlp_ratio: channels inside a block, as a multiple of ``hidden_channels``.
        dilations: distances, in tokens, at which the blocks mix along an axis, in turn.
        depth: number of blocks for each axis.
        place_depth: likewise, of those that the features of the points pass once.
        patch_overlap: number of patches along each axis, centered on a token, that it reads and
            writes; odd.

    Attributes:
        hidden_dim: channels W of a token: its values, its memory, and what is known of its place.
        num_dynamic_channels: all but the place's.
        tokens: the grid of the patches.

    Raises:
        UpsError: the field is not on points, or the sizes don't fit together.
    """

    def __init__(
        self,
        spec: FieldSpec,
        num_points: OneOrMore[PositiveInt] = 2048,
        num_tokens: OneOrMore[PositiveInt] | None = None,
        memory_channels: PositiveInt = 16,
        memory_rms_limit: PositiveFloat = 3.0,
        detail_channels: PositiveInt = 8,
        hidden_channels: PositiveInt = 48,
        mlp_ratio: MlpRatio = 1.0,
        dilations: NonEmpty[NonNegativeInt] = (1, 2, 4, 1),
        depth: Depth = 8,
        place_depth: Depth = 2,
        patch_overlap: PositiveInt = 3,
    ) -> None:
        super().__init__()
        cloud = spec.point_cloud
        channels = spec.num_channels
        self.num_channels = channels
        features = len(cloud.features)
        self.to_grid = ToGrid(cloud, num_points)
        on_grid = replace(spec, domain=self.to_grid.finest.tokens)
        self.patches = Patches(on_grid, num_tokens)
        self.neighborhood = self.patches.neighborhood(patch_overlap)
        self.tokens = self.patches.tokens
        self.num_tokens = self.patches.number
        self.sizes = [self.patches.size, memory_channels, hidden_channels]
        self.hidden_dim = sum(self.sizes)
        self.num_dynamic_channels = self.patches.size + memory_channels
        self.memory_rms_limit = memory_rms_limit
        nodes = prod(self.patches.patch)
        blocks = (self.tokens, hidden_channels, mlp_ratio, dilations)

        self.details = DetailPooling(cloud.num_dims, 2 * (channels + features), detail_channels)
        self.first_memory = self._window(
            self.patches.size + nodes * detail_channels, memory_channels
        )
        self.features_in = self._window(nodes * (features + 1), hidden_channels)
        self.place_blocks = mixer_blocks(*blocks, place_depth)
        self.tokens_in = self._window(self.num_dynamic_channels, hidden_channels)
        self.condition = nn.Linear(1 + len(spec.parameters), hidden_channels)
        self.positions = nn.Parameter(torch.zeros(self.num_tokens, hidden_channels))
        self.blocks = mixer_blocks(*blocks, depth)
        self.next_memory = nn.Linear(hidden_channels, memory_channels)
        written = self.neighborhood.window * self.patches.size
        self.patches_out = nn.Parameter(torch.zeros(written, hidden_channels))
        detail_dim = self.neighborhood.window * nodes * detail_channels
        known = memory_channels + hidden_channels
        self.details_out = nn.Parameter(torch.randn(detail_dim, known) * known**-0.5)
        self.bound = Bound(self.patches)
        self.correct = Correction(channels, features + detail_channels)

    def _window(self, token_dim: int, channels: int) -> nn.Linear:
        """A linear map of the tokens around each one."""
        return nn.Linear(self.neighborhood.window * token_dim, channels)

    def encode(self, u: Tensor, points: Points) -> Tensor:
        """Encode fields (B, P, C) of unit scale at ``points`` into tokens (B, N, W)."""
        known = torch.cat((u, points.features), -1)
        corners = self.to_grid.finest.corners(points)
        on_grid = self.to_grid(known, points)
        left = known - read(on_grid, corners)
        details = self.details(torch.cat((known, left), -1), corners, on_grid.shape[1])
        field, features = on_grid.tensor_split([u.shape[-1]], -1)
        # a constant: beyond the grid there are zeros, so tokens know where it ends
        features = F.pad(features, (0, 1), value=1.0)
        values = self._cut(field)
        seen = torch.cat((values, self._cut(details)), -1)
        memory = self._read(seen, self.first_memory)
        place = self.place_blocks(F.silu(self._read(self._cut(features), self.features_in)))
        # L_inv_dec is relative to the spread of tokens: a place that grew would reduce it
        place = F.rms_norm(place, place.shape[-1:])
        return self._join(values, memory, place)

    def step(self, z: Tensor, dt: Tensor, parameters: Tensor) -> Tensor:
        """Advance tokens (B, N, W) by ``dt`` (B,) at ``parameters`` (B, P)."""
        values, memory, place = z.split(self.sizes, -1)
        condition = self.condition(condition_features(dt, parameters))[:, None]
        h = self._read(torch.cat((values, memory), -1), self.tokens_in)
        h = self.blocks((h + place + self.positions + condition).to(z.dtype))
        change = self.neighborhood.write(h, self.patches_out).to(z.dtype)
        return self._join(self.bound(values + change), self.next_memory(h), place)

    def decode(self, z: Tensor, points: Points) -> Tensor:
        """Decode tokens (B, N, W) into fields (B, P, C) at ``points``."""
        values, memory, place = z.split(self.sizes, -1)
        known = torch.cat((memory, place), -1)
        details = self.neighborhood.write(known, self.details_out).to(z.dtype)
        on_grid = torch.cat((self._nodes(values), self._nodes(details)), -1)
        at_points = read(on_grid, self.to_grid.finest.corners(points))
        return self.correct(*at_points.tensor_split([self.num_channels], -1), points.features)

    def muon_parameters(self) -> list[Tensor]:
        """The weight matrices of the blocks, which an optimizer may treat as matrices."""
        return block_matrices(self)

    def _cut(self, nodes: Tensor) -> Tensor:
        """Values at the nodes (B, nodes, C) as patches (B, N, values of a patch)."""
        return self.patches.cut(nodes.unflatten(1, self.to_grid.finest.tokens.shape))

    def _nodes(self, patches: Tensor) -> Tensor:
        """Patches (B, N, values of a patch) as values at the nodes (B, nodes, C)."""
        return self.patches.join(patches).flatten(1, -2)

    def _read(self, tokens: Tensor, layer: nn.Linear) -> Tensor:
        """What a layer makes of the tokens around each one."""
        return self.neighborhood.read(tokens, layer.weight, layer.bias)

    def _join(self, values: Tensor, memory: Tensor, place: Tensor) -> Tensor:
        bounded = soft_rms_clip(memory, self.memory_rms_limit)
        return torch.cat((values, bounded.to(values.dtype), place.to(values.dtype)), -1)


class DetailPooling(nn.Module):
    """Gathers messages of points at the nodes of the grid around them.

    A message is a small network of the point's values and of its offset from the node.

    Args:
        num_dims: number of dimensions D.
        num_values: number of values V of a point.
        num_channels: number of channels C of a message.
    """

    def __init__(self, num_dims: int, num_values: int, num_channels: int) -> None:
        super().__init__()
        self.values = nn.Linear(num_values, num_channels)
        self.offsets = nn.Linear(num_dims * (1 + 2 * NUM_WAVES), num_channels, bias=False)

    def forward(self, values: Tensor, corners: Corners, num_nodes: int) -> Tensor:
        """The means (B, N, C) at nodes of the messages of values (B, P, V) around them."""
        near = self.offsets(offset_features(corners.offset))
        messages = F.gelu(self.values(values)[:, :, None] + near)
        return mean_around(messages, corners, num_nodes)


class Correction(nn.Module):
    """Changes the interpolated field by what is known of a point.

    It multiplies the field and adds to it: a velocity near a wall is a part of that in the flow.
    Before training it hardly changes the field.

    Args:
        num_channels: number of channels C of the field.
        num_known: number of values K of what is known.
        hidden_channels: channels inside.
    """

    def __init__(self, num_channels: int, num_known: int, hidden_channels: int = 32) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_channels + num_known, hidden_channels)
        self.out = nn.Linear(hidden_channels, 2 * num_channels)
        # small, but not zero: the encoder would get no gradient from L_inv_enc at first
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)

    def forward(self, u: Tensor, *known: Tensor) -> Tensor:
        """Change fields (B, P, C) at points of which K values (B, P, K), in parts, are known."""
        h = F.gelu(self.hidden(torch.cat((u, *known), -1)))
        factor, shift = self.out(h).chunk(2, -1)
        return u + factor * u + shift
