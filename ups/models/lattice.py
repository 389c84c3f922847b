"""Tokens at the nodes of a coarse lattice, between which points of any number and place lie."""

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.core.fields import PERIODIC_AXIS, Boundary, Grid, PointCloud
from ups.core.points import Points

NUM_WAVES = 2  # sines and cosines that describe where in a cell a point lies, along each axis


class Corners(NamedTuple):
    """The M = 2^D tokens at the corners of the cell in which each of B x P points lies.

    Args:
        token: which tokens (B, P, M) of the B N tokens of the batch.
        offset: from each token to the point, in cells (B, P, M, D).
        weight: how close the point is: multilinear weights (B, P, M), whose sum is 1; 0 for what
            only pads a sample.
    """

    token: Tensor
    offset: Tensor
    weight: Tensor


class Lattice(nn.Module):
    """A lattice of tokens over the box of a domain, with tokens on its faces.

    Args:
        domain: where fields lie.
        num_tokens: number of tokens along each axis, at least 2, or about so many in all.
        key: the setting that ``num_tokens`` is of.

    Attributes:
        tokens: the lattice as a grid.
        num_tokens: the number of tokens N.

    Raises:
        UpsError: the numbers do not fit the domain.
    """

    lower: Tensor
    spacing: Tensor
    shape: Tensor
    strides: Tensor
    is_open: Tensor
    cell_corners: Tensor

    def __init__(
        self,
        domain: Grid | PointCloud,
        num_tokens: int | Sequence[int],
        key: str = "model.num_tokens",
    ) -> None:
        super().__init__()
        extent = domain.extent
        shape = cubic_shape(extent, num_tokens) if isinstance(num_tokens, int) else num_tokens
        if len(shape) != len(extent) or min(shape) < 2:
            raise UpsError(
                f"`{key}` must be one number, or {len(extent)} integers >= 2, one for "
                f"each axis; got {list(shape)}."
            )
        open_sides = ((Boundary.OPEN, Boundary.OPEN),) * domain.num_dims
        boundary = domain.boundary if isinstance(domain, Grid) else open_sides
        self.is_periodic = tuple(sides == PERIODIC_AXIS for sides in boundary)
        # around a circle there are as many cells as tokens, between two ends one fewer
        cells = [n if closed else n - 1 for n, closed in zip(shape, self.is_periodic, strict=True)]
        spacing = [length / n for length, n in zip(extent, cells, strict=True)]
        lower = [first for first, _ in domain.edges]
        reach = [n * width for n, width in zip(shape, spacing, strict=True)]
        self.tokens = Grid(tuple(shape), tuple(reach), boundary, tuple(lower))
        self.num_tokens = math.prod(shape)
        corners = list(product((0, 1), repeat=len(shape)))
        strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]  # the last axis is fastest
        for name, values in (
            ("lower", torch.tensor(lower)),
            ("spacing", torch.tensor(spacing)),
            ("shape", torch.tensor(self.tokens.shape)),
            ("strides", torch.tensor(strides)),
            ("is_open", ~torch.tensor(self.is_periodic)),
            ("cell_corners", torch.tensor(corners)),
        ):
            self.register_buffer(name, values, persistent=False)

    def corners(self, points: Points) -> Corners:
        """The tokens around each point. Points beyond the box have those at its face."""
        last = self.shape - 1
        cell = (points.positions - self.lower) / self.spacing
        cell = torch.where(self.is_open, cell.clamp_min(0).minimum(last), cell)
        first = cell.detach().floor().long()
        # a point on the upper face lies in the last cell, and not in one behind it
        first = torch.where(self.is_open, first.minimum(last - 1), first)
        node = first[:, :, None] + self.cell_corners
        offset = cell[:, :, None] - node
        weight = (1 - offset.abs()).clamp_min(0).prod(-1)
        weight = weight * points.mask[..., None]
        number = (node % self.shape * self.strides).sum(-1)
        # not len(): that would fix the number of samples of an exported graph
        sample = torch.arange(number.shape[0], device=number.device)[:, None, None]
        return Corners(number + sample * self.num_tokens, offset, weight)


def sum_at(index: Tensor, values: Tensor, number: int) -> Tensor:
    """The sums (number, W) of values (B, P, M, W) of the same index (B, P, M)."""
    rows = values.flatten(0, 2)
    at = index.flatten()[:, None].expand_as(rows)
    # not index_add: onnxruntime adds what it becomes in parallel, without care for equal indices
    return rows.new_zeros(number, rows.shape[-1]).scatter_add(0, at, rows)


def cubic_shape(extent: Sequence[float], number: int) -> tuple[int, ...]:
    """The numbers of tokens along axes of lengths ``extent`` so that cells are nearly cubes."""
    edge = (math.prod(extent) / number) ** (1 / len(extent))
    return tuple(max(2, round(length / edge)) for length in extent)


def offset_features(offset: Tensor) -> Tensor:
    """Features (..., D (1 + 2 NUM_WAVES)) of offsets (..., D) from -1 to 1."""
    angles = [math.pi * (k + 1) * offset for k in range(NUM_WAVES)]
    waves = [wave for angle in angles for wave in (angle.sin(), angle.cos())]
    return torch.cat((offset, *waves), -1)


class Rotary(nn.Module):
    """Rotary position embedding of tokens on a lattice.

    Products of rotated queries and keys depend on the offset between their tokens only. The axes
    take the channels of a head in turn; around a circle the angles are whole turns.

    Source: Su et al., "RoFormer", 2021.

    Args:
        lattice: where the tokens lie.
        head_dim: number of channels of a head; even.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, lattice: Lattice, head_dim: int) -> None:
        super().__init__()
        shape = lattice.tokens.shape
        axes = torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij")
        pairs = head_dim // 2
        angles = []
        for i in range(pairs):
            d = i % len(shape)
            step = i // len(shape)
            if lattice.is_periodic[d]:
                rate = 2 * math.pi * (step + 1) / shape[d]
            else:  # from a turn in two tokens to one in four times the axis, in equal ratios
                rate = math.pi * (2 * shape[d]) ** (-step / max(1, pairs // len(shape) - 1))
            angles.append(rate * axes[d].flatten())
        table = torch.stack(angles, -1)
        self.register_buffer("cosine", table.cos(), persistent=False)
        self.register_buffer("sine", table.sin(), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        """Rotate queries or keys (B, heads, N, head_dim)."""
        real, imaginary = h.chunk(2, -1)
        return torch.cat(
            (
                real * self.cosine - imaginary * self.sine,
                real * self.sine + imaginary * self.cosine,
            ),
            -1,
        )
