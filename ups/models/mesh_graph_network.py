"""A mesh graph network: messages between neighboring points, the peer that keeps all points."""

import math

import torch
from torch import Tensor, nn

from ups.core.fields import FieldSpec
from ups.core.points import Points
from ups.core.schema import Depth, PositiveInt
from ups.models.conditioning import condition_features
from ups.models.neighbors import nearest, take

UNIT_POINTS = 1000  # lengths of edges are in units of the spacing of so many points in the box
NUM_READ = 3  # points between which a field is interpolated
TINY = 1e-12  # in the same units; a point at a known position has the value there


class MeshGraphNetwork(nn.Module):
    """Steps a field at its own points by messages along the edges of a graph.

    Source: Pfaff et al., "Learning mesh-based simulation with graph networks", ICLR 2021, with
    edges to the nearest points instead of those of a mesh.

    A token is a point: its field, its position, its features, and the numbers of its neighbors.
    A step encodes points and edges, sends messages along the edges, and adds to the field what it
    decodes from the points. ``encode`` finds the neighbors. ``decode`` returns the field at the
    points where it is known, and elsewhere the mean of the nearest ones by their squared distance.
    Latent and physical rollouts at the same points are therefore the same, and the inverse losses
    must be off (``lambda_inv=0``).

    Args:
        spec: describes the field, on points.
        num_neighbors: number of nearest points that send messages to each, itself included.
        hidden_channels: channels of points and edges.
        depth: number of rounds of messages. They must reach as far as information travels in one
            step.

    Attributes:
        hidden_dim: channels W of a token.
        num_dynamic_channels: those of the field, from the first.

    Raises:
        UpsError: the field is not on points.
    """

    def __init__(
        self,
        spec: FieldSpec,
        num_neighbors: PositiveInt = 7,
        hidden_channels: PositiveInt = 32,
        depth: Depth = 6,
    ) -> None:
        super().__init__()
        cloud = spec.point_cloud
        self.num_dims = cloud.num_dims
        self.unit = (math.prod(cloud.extent) / UNIT_POINTS) ** (1 / cloud.num_dims)
        self.num_neighbors = num_neighbors
        self.num_dynamic_channels = spec.num_channels
        num_features = len(cloud.features)
        self.sizes = [spec.num_channels, cloud.num_dims, num_features, num_neighbors]
        self.hidden_dim = sum(self.sizes)
        inputs = spec.num_channels + num_features + 1 + len(spec.parameters)
        self.points_in = _mlp(inputs, hidden_channels)
        self.edges_in = _mlp(cloud.num_dims + 1, hidden_channels)
        self.rounds = nn.ModuleList(MessagePassing(hidden_channels) for _ in range(depth))
        self.out = nn.Sequential(
            nn.Linear(hidden_channels, hidden_channels),
            nn.GELU(),
            nn.Linear(hidden_channels, spec.num_channels),
        )

    def encode(self, u: Tensor, points: Points) -> Tensor:
        """Return fields (B, P, C) of unit scale at ``points`` as tokens (B, P, W)."""
        place = points.positions / self.unit
        number, _ = nearest(place, points.mask, place, self.num_neighbors)
        # numbers of points are exact as floats up to 2^24; whoever reads the mask finds it in them
        neighbors = torch.where(points.mask[..., None], number, -1)
        return torch.cat((u, place, points.features, neighbors.to(u.dtype)), -1)

    def step(self, z: Tensor, dt: Tensor, parameters: Tensor) -> Tensor:
        """Advance tokens (B, P, W) by ``dt`` (B,) at ``parameters`` (B, P)."""
        u, place, features, neighbors = z.split(self.sizes, -1)
        sender = neighbors.long().clamp_min(0)
        offset = take(place, sender) - place[:, :, None]
        length = offset.norm(dim=-1, keepdim=True)
        condition = condition_features(dt, parameters)[:, None].expand(-1, z.shape[1], -1)
        h = self.points_in(torch.cat((u, features, condition), -1))
        edges = self.edges_in(torch.cat((offset, length), -1))
        for each in self.rounds:
            h, edges = each(h, edges, sender)
        return torch.cat((u + self.out(h), z[..., self.num_dynamic_channels :]), -1)

    def decode(self, z: Tensor, points: Points) -> Tensor:
        """Interpolate the fields of tokens (B, P, W) at ``points``: (B, Q, C)."""
        u, place, _, neighbors = z.split(self.sizes, -1)
        is_point = neighbors[..., 0] >= 0
        number, square = nearest(place, is_point, points.positions / self.unit, NUM_READ)
        weight = 1 / (square + TINY)
        weight = weight / weight.sum(-1, keepdim=True)
        return (take(u, number) * weight[..., None]).sum(2)

    def muon_parameters(self) -> list[Tensor]:
        """The weight matrices of the rounds, which an optimizer may treat as matrices."""
        return [p for p in self.rounds.parameters() if p.ndim == 2]


class MessagePassing(nn.Module):
    """One round: edges change by the points at their ends, points by the sum of their edges.

    Args:
        channels: channels H of points and edges.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sender = nn.Linear(channels, channels, bias=False)
        self.receiver = nn.Linear(channels, channels, bias=False)
        self.edge = nn.Linear(channels, channels)
        self.edge_out = _after(channels)
        self.point = nn.Linear(2 * channels, channels)
        self.point_out = _after(channels)

    def forward(self, h: Tensor, edges: Tensor, sender: Tensor) -> tuple[Tensor, Tensor]:
        """Map points (B, P, H) and edges (B, P, k, H) to as many.

        Args:
            h: the points.
            edges: the edges to each point.
            sender: the points (B, P, k) from which they come.
        """
        # the first layer of the network of [edge, sender, receiver]; a point's part is computed
        # once, and not for each of its edges
        ends = take(self.sender(h), sender) + self.receiver(h)[:, :, None]
        edges = edges + self.edge_out(self.edge(edges) + ends)
        total = edges.sum(2)
        return h + self.point_out(self.point(torch.cat((h, total), -1))), edges


def _mlp(inputs: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, channels), *_after(channels))


def _after(channels: int) -> nn.Sequential:
    """What follows the first layer of a network."""
    return nn.Sequential(nn.GELU(), nn.Linear(channels, channels), nn.LayerNorm(channels))
