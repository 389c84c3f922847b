"""Grid models on points: the peers that interpolate to a grid, step it, and interpolate back."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, PointCloud
from ups.core.points import Points
from ups.core.schema import OneOrMore, PositiveInt, validate
from ups.models.base import GridModel
from ups.models.fno import FNO
from ups.models.lattice import Corners, Lattice, cubic_shape, sum_at
from ups.models.resnet import DilatedResNet
from ups.models.unet import UNet

NETWORKS: dict[str, type[GridModel]] = {"fno": FNO, "unet": UNet, "resnet": DilatedResNet}
# of PyTorch's ``interpolate`` by the number of dimensions
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
SMALLEST_WEIGHT = 0.01  # of all points around a node, one at the node having 1
# points along each axis, if only their number in all is given: a U-Net of three levels halves them
MULTIPLE = 8
REPEATS = 3  # corrections on the grid itself, which bring it closer to the values at the points


class InterpolatedGridModel(nn.Module):
    """A grid model for fields on points, between two interpolations without weights.

    ``encode`` interpolates the field and what is known of the points to the nodes of a regular grid
    (``ToGrid``), ``step`` is the grid model's, which sees the features of the points as channels
    that do not change, and ``decode`` is multilinear interpolation at any points. A latent rollout
    stays on the grid. The inverse losses train nothing and must be off (``lambda_inv=0``).

    Source: such interpolation is the usual baseline on irregular points, as in Li et al., "Fourier
    neural operator with learned deformations for PDEs on general geometries", JMLR 2023.

    Args:
        spec: describes the field, on points.
        network: the grid model: "fno", "unet" or "resnet".
        num_points: number of grid points along each axis, at least 2, or about so many in all in
            cells that are nearly cubes, a multiple of ``MULTIPLE`` along each axis.
        settings: the arguments of the grid model besides ``spec``; default: its own.

    Attributes:
        tokens: the grid.

    Raises:
        UpsError: the field is not on points, or an argument does not fit.
    """

    def __init__(
        self,
        spec: FieldSpec,
        network: Literal["fno", "unet", "resnet"] = "unet",
        num_points: OneOrMore[PositiveInt] = 2048,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        cloud = spec.point_cloud
        given = dict(settings or {})
        validate(NETWORKS[network], given, "model.settings", skip=1)
        self.to_grid = ToGrid(cloud, num_points)
        self.tokens = self.to_grid.finest.tokens
        self.num_tokens = self.tokens.num_points
        self.num_dynamic_channels = spec.num_channels
        self.hidden_dim = spec.num_channels + len(cloud.features)
        channels = (*spec.channels, *cloud.features)
        on_grid = replace(spec, domain=self.tokens, channels=channels, mean=(), std=(), largest=())
        self.network = NETWORKS[network](on_grid, **given)

    def encode(self, u: Tensor, points: Points) -> Tensor:
        """Interpolate fields (B, P, C) of unit scale at ``points`` to tokens (B, N, C + F): the
        fields on the grid, and the features of the points.
        """
        return self.to_grid(torch.cat((u, points.features), -1), points)

    def step(self, z: Tensor, dt: Tensor, parameters: Tensor) -> Tensor:
        """Advance tokens (B, N, C + F) by ``dt`` (B,) at ``parameters`` (B, P)."""
        stepped = self.network.step(z, dt, parameters)
        dynamic = self.num_dynamic_channels
        return torch.cat((stepped[..., :dynamic], z[..., dynamic:]), -1)

    def decode(self, z: Tensor, points: Points) -> Tensor:
        """Interpolate the fields of tokens (B, N, C + F) at ``points``: (B, P, C)."""
        corners = self.to_grid.finest.corners(points)
        return read(z[..., : self.num_dynamic_channels], corners)

    def muon_parameters(self) -> list[Tensor]:
        """The weights of the grid model that the optimizer may treat as matrices."""
        return self.network.muon_parameters()


class ToGrid(nn.Module):
    """Interpolates values at points to a grid by successive corrections.

    From the coarsest lattice of 2 nodes along each axis to the grid itself, each node takes the
    mean of what the field so far leaves over at the points around it, weighted by their distance.
    Nodes without points keep what coarser lattices gave them. Any number of points in any order is
    taken, constants are exact, and all steps are differentiable.

    Source: G. P. Cressman, "An operational objective analysis system", Monthly Weather Review 87,
    1959.

    Args:
        domain: where the points lie, in at most three dimensions.
        num_points: see ``InterpolatedGridModel``.

    Attributes:
        finest: the grid as a lattice.

    Raises:
        UpsError: the numbers do not fit the domain.
    """

    def __init__(self, domain: PointCloud, num_points: int | Sequence[int]) -> None:
        super().__init__()
        if domain.num_dims not in LINEAR:
            raise UpsError(
                f"points must have at most three dimensions for a grid model, "
                f"got {domain.num_dims}."
            )
        if isinstance(num_points, int):
            shape = cubic_shape(domain.extent, num_points)
            num_points = [MULTIPLE * max(1, round(n / MULTIPLE)) for n in shape]
        self.finest = Lattice(domain, num_points, "model.num_points")
        shape = self.finest.tokens.shape
        coarser = []
        while max(shape) > 2:
            shape = tuple(max(2, (n + 1) // 2) for n in shape)
            coarser.append(Lattice(domain, shape))
        self.lattices = nn.ModuleList([*reversed(coarser), *[self.finest] * REPEATS])
        self.mode = LINEAR[domain.num_dims]

    def forward(self, values: Tensor, points: Points) -> Tensor:
        """The values (B, N, C) at the nodes of values (B, P, C) at ``points``."""
        on_grid = self.finest.corners(points)
        shape = self.finest.tokens.shape
        field = values.new_zeros(values.shape[0], self.finest.num_tokens, values.shape[-1])
        for lattice in self.lattices:
            assert isinstance(lattice, Lattice)
            corners = on_grid if lattice is self.finest else lattice.corners(points)
            left = values - read(field, on_grid)
            means = mean_around(left[:, :, None], corners, lattice.num_tokens)
            nodes = means.mT.unflatten(-1, lattice.tokens.shape)
            # the nodes at the ends of all lattices lie on the faces of the box
            finer = F.interpolate(nodes, shape, mode=self.mode, align_corners=True)
            field = field + finer.flatten(2).mT
        return field


def read(field: Tensor, corners: Corners) -> Tensor:
    """Multilinear interpolation (B, P, C) of values at nodes (B, N, C); 0 at padding."""
    return (field.flatten(0, 1)[corners.token] * corners.weight[..., None]).sum(2)


def mean_around(values: Tensor, corners: Corners, num_nodes: int) -> Tensor:
    """The weighted means (B, N, C) around nodes of values (B, P, M, C); 0 where there are none.

    They fall to 0 where the weights do, so that a point at the edge of a cell makes no difference,
    whatever side rounding puts it on.

    Values (B, P, 1, C) are the same for all M corners.
    """
    size = values.shape[0] * num_nodes
    weight = corners.weight[..., None]
    total = sum_at(corners.token, weight, size)
    sums = sum_at(corners.token, values * weight, size)
    return (sums / total.clamp_min(SMALLEST_WEIGHT)).unflatten(0, (values.shape[0], num_nodes))
