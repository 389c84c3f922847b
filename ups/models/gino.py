"""The geometry-informed neural operator, with the parts of the neuraloperator package."""

import math
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec
from ups.core.optional_packages import import_optional
from ups.core.points import Points
from ups.core.schema import OneOrMore, PositiveFloat, PositiveInt
from ups.models.fno import FNO
from ups.models.lattice import NUM_WAVES, Lattice, offset_features


class GINO(nn.Module):
    """A Fourier neural operator on a latent grid, between two graph neural operators.

    Source: Li et al., "Geometry-informed neural operator for large-scale 3D PDEs", NeurIPS 2023.
    ``encode`` is the graph operator from the points to the grid, ``step`` adds what the Fourier
    operator makes of the grid, and ``decode`` is the graph operator from the grid to any points,
    and a projection. A latent rollout stays on the grid.

    The kernels see the offset between two positions, and not both. Where a node lies, the Fourier
    operator knows. Some channels of a token only hold what is known of the points, such as their
    distance from walls; no step changes them.

    Args:
        spec: describes the field, on points.
        num_points: number of nodes of the grid along each axis, at least 2, or about so many in all
            in cells that are nearly cubes.
        latent_channels: channels of a token that steps change.
        place_channels: channels of a token that steps keep.
        kernel_channels: channels inside the kernels.
        in_radius: distance in cells of the grid from which a node gathers points.
        out_radius: distance in cells from which a point gathers nodes.
        modes: number of Fourier modes; see ``FNO``.
        hidden_channels: channels of the Fourier operator and of the projection.
        num_layers: number of Fourier layers.

    Attributes:
        tokens: the grid.
        hidden_dim: channels W of a token.
        num_dynamic_channels: those that steps change, from the first.

    Raises:
        UpsError: the package is not installed, the field is not on points, or an argument does not
            fit.
    """

    def __init__(
        self,
        spec: FieldSpec,
        num_points: OneOrMore[PositiveInt] = 2048,
        latent_channels: PositiveInt = 32,
        place_channels: PositiveInt = 8,
        kernel_channels: PositiveInt = 32,
        in_radius: PositiveFloat = 2.5,
        out_radius: PositiveFloat = 1.8,
        modes: OneOrMore[PositiveInt] = 16,
        hidden_channels: PositiveInt = 32,
        num_layers: PositiveInt = 4,
    ) -> None:
        super().__init__()
        cloud = spec.point_cloud
        num_features = len(cloud.features)
        layers = import_optional("neuralop.layers.channel_mlp", "model=gino", "peers")
        lattice = Lattice(cloud, num_points, "model.num_points")
        half_diagonal = math.sqrt(cloud.num_dims) / 2
        if out_radius < half_diagonal:
            raise UpsError(
                f"`model.out_radius` must be at least {half_diagonal:.3g}, half the diagonal of a "
                f"cell, so that every point has a node; got {out_radius}."
            )
        self.tokens = lattice.tokens
        self.num_tokens = lattice.num_tokens
        self.hidden_dim = latent_channels + place_channels
        self.num_dynamic_channels = latent_channels

        inputs = cloud.num_dims * (1 + 2 * NUM_WAVES)
        widths = [inputs, kernel_channels, kernel_channels, self.hidden_dim]
        self.values = nn.Linear(spec.num_channels + num_features, latent_channels)
        self.places = nn.Linear(num_features + 1, place_channels, bias=False)
        self.to_grid = GraphOperator(lattice, in_radius, layers.LinearChannelMLP(widths))
        self.network = FNO(self._latent_spec(spec), modes, hidden_channels, num_layers)
        self.from_grid = GraphOperator(lattice, out_radius, layers.LinearChannelMLP(widths))
        self.projection = layers.LinearChannelMLP(
            [self.hidden_dim + num_features, 2 * hidden_channels, spec.num_channels]
        )
        for operator in (self.to_grid, self.from_grid):
            # kernels are about 1 at first, so that both integrals begin as local means: of small
            # random ones hardly anything of a field comes through both
            *_, bias = operator.kernel.parameters()
            nn.init.ones_(bias)

    def _latent_spec(self, spec: FieldSpec) -> FieldSpec:
        """Describes tokens as a field on the grid."""
        return replace(
            spec,
            domain=self.tokens,
            channels=tuple(f"latent_{i}" for i in range(self.hidden_dim)),
            mean=(),
            std=(),
            largest=(),
            conserves_mean=False,
            is_homogeneous=False,  # the positions of the nodes are inputs
        )

    def encode(self, u: Tensor, points: Points) -> Tensor:
        """Encode fields (B, P, C) of unit scale at ``points`` into tokens (B, N, W)."""
        known = points.features
        # beside the features a one, whose integral tells how the points lie around a node
        places = self.places(F.pad(known, (0, 1), value=1.0))
        values = torch.cat((self.values(torch.cat((u, known), -1)), places), -1)
        return self.to_grid.to_nodes(values, points)

    def step(self, z: Tensor, dt: Tensor, parameters: Tensor) -> Tensor:
        """Advance tokens (B, N, W) by ``dt`` (B,) at ``parameters`` (B, P)."""
        stepped = self.network.step(z, dt, parameters)
        dynamic = self.num_dynamic_channels
        return torch.cat((stepped[..., :dynamic], z[..., dynamic:]), -1)

    def decode(self, z: Tensor, points: Points) -> Tensor:
        """Decode tokens (B, N, W) into fields (B, P, C) at ``points``."""
        around = self.from_grid.to_points(z, points)
        u: Tensor = self.projection(torch.cat((around, points.features), -1))
        return u

    def muon_parameters(self) -> list[Tensor]:
        """The weights of the Fourier operator that the optimizer may treat as matrices."""
        return self.network.muon_parameters()


class Edges(NamedTuple):
    """The E pairs of a point and a node of the same sample within a radius.

    Args:
        point: which of the B P points of the batch (E,).
        node: which of the B N nodes of the batch (E,).
        offset: from the node to the point, in units of the radius (E, D).
    """

    point: Tensor
    node: Tensor
    offset: Tensor


class GraphOperator(nn.Module):
    """The integral over a ball of a kernel times a function, between points and nodes of a grid.

    It is the package's ``GNOBlock`` with ``transform_type="linear"``, computed in another way. The
    package measures all distances between the points and nodes of one sample, and without
    torch_scatter it sums in a Python loop over the nodes, or points, at which the integral is asked
    for: 20 seconds for a batch of eight and its gradient, and here 0.4. The nodes near a point of a
    regular grid are known without a search, and one ``index_add`` sums for all samples.

    Args:
        lattice: the grid.
        radius: the radius of the ball, in cells.
        kernel: maps features (E, D (1 + 2 NUM_WAVES)) of offsets to factors (E, W).
    """

    around: Tensor

    def __init__(self, lattice: Lattice, radius: float, kernel: nn.Module) -> None:
        super().__init__()
        self.lattice = lattice
        self.radius = radius
        self.kernel = kernel
        nodes = torch.tensor(_nodes_around(lattice.tokens.shape, radius))
        self.register_buffer("around", nodes, persistent=False)
        num_dims = lattice.tokens.num_dims
        self.ball = math.pi ** (num_dims / 2) / math.gamma(num_dims / 2 + 1) * radius**num_dims

    def edges(self, points: Points) -> Edges:
        """The nodes within the radius of each point."""
        lattice = self.lattice
        cell = (points.positions - lattice.lower) / lattice.spacing
        node = cell.detach().round().long()[:, :, None] + self.around
        offset = (cell[:, :, None] - node) / self.radius
        is_node = ((node >= 0) & (node < lattice.shape)).all(-1)
        is_near = is_node & (offset.square().sum(-1) <= 1) & points.mask[..., None]
        sample, point, _ = is_near.nonzero(as_tuple=True)
        number = (node * lattice.strides).sum(-1)[is_near]
        return Edges(
            sample * points.mask.shape[1] + point,
            sample * lattice.num_tokens + number,
            offset[is_near],
        )

    # the number of edges differs from batch to batch: each would be compiled again
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def to_nodes(self, values: Tensor, points: Points) -> Tensor:
        """The mean (B, N, W) over the points around each node of kernel times values (B, P, W).

        It is 0 where there are none.
        """
        edges = self.edges(points)
        number = values.shape[0] * self.lattice.num_tokens
        sums = self._sums(values, edges.point, edges.node, edges.offset, number)
        count = torch.bincount(edges.node, minlength=number).clamp_min(1)
        return (sums / count[:, None]).unflatten(0, (-1, self.lattice.num_tokens))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def to_points(self, values: Tensor, points: Points) -> Tensor:
        """The mean (B, P, W) over the ball around each point of kernel times values (B, N, W).

        On a grid this is the sum over the nodes in units of their usual number. Their true number
        changes with the position, and the field would have jumps.
        """
        edges = self.edges(points)
        shape = points.mask.shape
        sums = self._sums(values, edges.node, edges.point, edges.offset, math.prod(shape))
        return (sums / self.ball).unflatten(0, shape)

    def _sums(
        self, values: Tensor, source: Tensor, target: Tensor, offset: Tensor, number: int
    ) -> Tensor:
        """The sums (number, W) at each target of kernel times values (B, ., W) at the sources."""
        kernel = self.kernel(offset_features(offset))
        messages = kernel * values.flatten(0, 1).index_select(0, source)
        zeros = messages.new_zeros(number, messages.shape[-1])
        return zeros.index_add(0, target, messages)


def _nodes_around(shape: tuple[int, ...], radius: float) -> list[tuple[int, ...]]:
    """The offsets of the nodes that may lie within ``radius`` of a point, from its nearest node.

    Args:
        shape: number of nodes along each axis.
        radius: the radius, in cells.
    """
    # along each axis a point is at most half a cell away from its nearest node, and in the box no
    # node is farther from that than the whole axis
    reach = [min(math.floor(radius + 0.5), n - 1) for n in shape]
    offsets = product(*(range(-n, n + 1) for n in reach))
    return [each for each in offsets if math.hypot(*(max(0, abs(k) - 0.5) for k in each)) <= radius]
