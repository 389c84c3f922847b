"""Input channels that describe the points of a grid: their neighbors beyond it, their positions."""

import math

import torch
from torch import Tensor

from ups.core.fields import PERIODIC_AXIS, Boundary, FieldSpec, Grid


def place_channels(spec: FieldSpec) -> Tensor:
    """The input channels (K, *space) that describe the points of ``spec``'s grid.

    - If an axis is not periodic, two channels mark the points beside a wall and beside an open
      side by 1, so that a network can tell the two apart, and both from the interior.
    - If the field is not homogeneous, the positions: sine and cosine along a periodic axis, which
      have no jump where it closes, and numbers from -1 to 1 along another axis.

    A homogeneous field on a periodic grid has none (K = 0): all its points are equivalent.
    """
    grid = spec.grid
    channels = [torch.empty(0, *grid.shape)]
    if not grid.is_periodic:
        channels += [_points_beside(grid, kind) for kind in (Boundary.WALL, Boundary.OPEN)]
    if not spec.is_homogeneous:
        channels += [_positions(grid, d) for d in range(grid.num_dims)]
    return torch.cat(channels)


def _points_beside(grid: Grid, kind: Boundary) -> Tensor:
    """One channel (1, *space): 1 at the first and last points whose side is of ``kind``."""
    marks = torch.zeros(1, *grid.shape)
    for d, (lower, upper) in enumerate(grid.boundary):
        if lower is kind:
            marks.select(d + 1, 0).fill_(1)
        if upper is kind:
            marks.select(d + 1, -1).fill_(1)
    return marks


def _positions(grid: Grid, d: int) -> Tensor:
    """The position along axis ``d`` in one or two channels (K, *space)."""
    share = (grid.axis(d) - grid.edges[d][0]) / grid.extent[d]
    if grid.boundary[d] == PERIODIC_AXIS:
        angle = 2 * math.pi * share
        values = torch.stack((angle.sin(), angle.cos()))
    else:
        values = 2 * share[None] - 1
    along_axis = [1] * grid.num_dims
    along_axis[d] = -1
    return values.view(len(values), *along_axis).expand(-1, *grid.shape)
