"""Fields at positions off the training grid."""

import torch
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.fields import Grid, PointCloud
from ups.core.gradients import needs_gradients
from ups.models.interpolation import (
    axes_of,
    interpolate,
    interpolate_on_grid,
    interpolate_to_axes,
    merge_coincident,
    wrap,
)

ON_GRID = 1e-3  # positions that are closer to a point of the grid than this, in cells, are on it


class GridOutput:
    """Gives predicted fields on a grid of any dimension at any positions (Q, D).

    Args:
        grid: where the fields lie.
        x_out: positions (Q, D) of the predicted fields.
    """

    num_grids = 1

    def __init__(self, grid: Grid, x_out: Tensor) -> None:
        self.grid = grid
        self.x_out = x_out
        # along axes, the gradient of all positions would fall on a few of them
        self.axes = None if needs_gradients(x_out) else axes_of(x_out)

    def to_grids(self, u0: Tensor) -> Tensor:
        """The initial fields (B, *space, C) as they are."""
        return u0

    def from_grids(self, u: Tensor) -> Tensor:
        """Predicted fields (B, *space, C) at the positions of the output: (B, Q, C)."""
        if self.axes is None:
            return interpolate_on_grid(u, self.grid, self.x_out)
        return interpolate_to_axes(u, self.grid, self.axes).flatten(1, -2)


def resampling(
    domain: Grid | PointCloud, x: Tensor | None, x_out: Tensor | None
) -> "LineResampling | GridOutput":
    """What takes initial fields at positions ``x``, and gives predicted ones at ``x_out``.

    Args:
        domain: where the training data lie.
        x: positions (P, D) of the initial fields, on a periodic line only; None: the domain's.
        x_out: positions (Q, D) of the predicted fields; None: the domain's.

    Raises:
        UpsError: the domain is not such that positions can be taken.
    """
    is_line = isinstance(domain, Grid) and domain.is_periodic_line
    if is_line or (x is None and x_out is None):
        return LineResampling(domain, *(None if p is None else p[:, 0] for p in (x, x_out)))
    if x is not None:
        raise UpsError("`x` must be None: the domain is not a periodic line.")
    if not isinstance(domain, Grid) or x_out is None:
        raise UpsError("`x_out` must be None: the domain is not a grid.")
    return GridOutput(domain, x_out)


class LineResampling:
    """Takes initial fields at any positions of a periodic line, and gives predicted ones at any.

    Grid values do not determine where between two points a shock lies. For output off the training
    grid a field is therefore rolled out on several grids: the training grid, and one with an offset
    of half a cell. Consecutive states then hold the same field on the different grids.

    Args:
        domain: where the training data lie; a periodic line if positions are given.
        x: positions (P,) of the initial fields; default: those of the domain. A whole number of
            periods makes no difference. Values at the same position are averaged, for example those
            at both ends of the line.
        x_out: positions (Q,) of the predicted fields, likewise; default: those of the domain.

    Attributes:
        num_grids: number of grids on which a field is rolled out.
    """

    def __init__(self, domain: Grid | PointCloud, x: Tensor | None, x_out: Tensor | None) -> None:
        self.x = None
        self.x_out = None
        self.num_grids = 1
        if not isinstance(domain, Grid) or (x is None and x_out is None):
            return
        grid = domain
        self.length = grid.extent[0]
        self.x = None if x is None else wrap(x, self.length)
        self.x_out = None if x_out is None else wrap(x_out, self.length)
        cell = grid.cell_size[0]
        if x_out is not None:
            cells = (x_out.detach().double() - grid.origin[0]) / cell
            is_on_grid = (cells - cells.round()).abs() < ON_GRID
            self.num_grids = 1 if bool(is_on_grid.all()) else 2
        offsets = [k * cell / self.num_grids for k in range(self.num_grids)]
        given = [positions for positions in (x, x_out) if positions is not None]
        points = grid.axis(0).to(given[0])
        self.points = torch.stack([wrap(points + offset, self.length) for offset in offsets], -1)

    def to_grids(self, u0: Tensor) -> Tensor:
        """Initial fields (B, P, C) on the grids: (B * num_grids, X, C)."""
        if self.x is None and self.num_grids == 1:
            return u0
        x = self.points[:, 0] if self.x is None else self.x
        u = self._interpolate(*merge_coincident(u0, x), self.points)
        return u.unflatten(1, (-1, self.num_grids)).transpose(1, 2).flatten(0, 1)

    def from_grids(self, u: Tensor) -> Tensor:
        """Predicted fields (B * num_grids, X, C) at the positions of the output: (B, Q, C)."""
        if self.x_out is None:
            return u
        frames = u.unflatten(0, (-1, self.num_grids)).transpose(1, 2).flatten(1, 2)
        return self._interpolate(frames, self.points, self.x_out)

    def _interpolate(self, u: Tensor, x: Tensor, query: Tensor) -> Tensor:
        """Interpolate fields (B, P, C) from positions ``x`` to ``query``: (B, Q, C)."""
        channels = u.shape[-1]
        rows = u.transpose(1, 2).flatten(0, 1)
        out = interpolate(rows, x.flatten(), query.flatten(), self.length)
        return out.unflatten(0, (-1, channels)).transpose(1, 2)
