"""Interpolation: between point sets of a periodic line, and from grids of any dimension."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ups.core.fields import PERIODIC_AXIS, Grid


def wrap(x: Tensor, length: float) -> Tensor:
    """Positions on a periodic line of ``length``, moved by whole periods into [0, length)."""
    x = x % length
    return torch.where(x < length, x, x - x)  # rounding may lead to the end: -1e-9 % 1 is 1


def merge_coincident(u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Fields (B, P, C) at positions (P,), with the mean of all values at the same position."""
    places, index = x.detach().unique(return_inverse=True)
    if len(places) == len(x):
        return u, x
    of_place = torch.nn.functional.one_hot(index, len(places)).to(u)  # (P, places)
    weights = of_place / of_place.sum(0)
    return torch.einsum("bpc,pq->bqc", u, weights), x @ weights


def interpolate(u: Tensor, x: Tensor, query: Tensor, length: float) -> Tensor:
    """Periodic interpolation of ``u`` at other positions.

    Cubics with Akima's slopes (H. Akima, J. ACM 17, 1970, with the second term that keeps them from
    ringing beside flat stretches, as in MATLAB's makima); each secant is weighted for uneven
    spacing. They are of third order if the field is smooth, and do not overshoot beside shocks.

    Args:
        u: values (B, X).
        x: their positions (X,) in [0, length), in any order.
        query: positions (Q,) in [0, length), in any order. At a known position the value is copied.
        length: the length of the periodic line.

    Returns:
        Values (B, Q).
    """
    x, order = x.sort()
    u = u[:, order]
    gap = (x.roll(-1) - x) % length
    gap = torch.where(gap == 0, length, gap)  # a single point is its own neighbor, one period ahead
    after = (u.roll(-1, -1) - u) / gap
    before = after.roll(1, -1)
    bend_after = _bend(after, after.roll(-1, -1)) * gap
    bend_before = _bend(before, after.roll(2, -1)) * gap.roll(1)
    bend = (bend_after + bend_before).clamp_min(1e-30)
    slope = (bend_after * before + bend_before * after) / bend
    right = torch.searchsorted(x, query.contiguous(), right=True)
    left = (right - 1) % len(x)
    right = right % len(x)
    h = gap[left]
    t = ((query - x[left]) % length) / h
    ends = torch.lerp(u[:, left], u[:, right], t * t * (3 - 2 * t))
    return ends + t * (1 - t) * h * ((1 - t) * slope[:, left] - t * slope[:, right])


def _bend(a: Tensor, b: Tensor) -> Tensor:
    """How much a line bends from slope ``a`` to slope ``b``.

    The second, smaller term decides if there is no bend at all.
    """
    return (a - b).abs() + (a + b).abs() / 2


def interpolate_on_grid(u: Tensor, grid: Grid, query: Tensor) -> Tensor:
    """Interpolation of fields on a grid by the cubic kernel of R. G. Keys (IEEE TASSP 29, 1981).

    It is of third order, and uses the four nearest points along each axis; beyond a side that is
    not periodic the last point is repeated.

    Args:
        u: fields (B, *space, C).
        grid: where they lie.
        query: positions (Q, D).

    Returns:
        Values (B, Q, C).
    """
    index = torch.zeros(len(query), 1, dtype=torch.long, device=query.device)
    weight = torch.ones_like(query[:, :1])
    for d, n in enumerate(grid.shape):
        nearest, share = _nearest(query[:, d], grid, d)
        index = (index[:, :, None] * n + nearest[:, None]).flatten(1)
        weight = (weight[:, :, None] * share[:, None]).flatten(1)
    return (u.flatten(1, -2)[:, index] * weight[..., None]).sum(2)


def interpolate_to_axes(u: Tensor, grid: Grid, axes: Sequence[Tensor]) -> Tensor:
    """``interpolate_on_grid`` at the points of a grid of ``axes``, one axis after the other.

    Args:
        u: fields (B, *space, C).
        grid: where they lie.
        axes: the positions (Q_d,) along each axis.

    Returns:
        Values (B, Q_1, ..., Q_D, C).
    """
    for d, x in enumerate(axes):
        nearest, share = _nearest(x, grid, d)
        matrix = share.new_zeros(len(x), grid.shape[d]).scatter_add(1, nearest, share)
        u = torch.tensordot(u, matrix, ([d + 1], [1])).movedim(-1, d + 1)
    return u


def axes_of(query: Tensor) -> list[Tensor] | None:
    """The axes (Q_d,) of the grid whose points positions (Q, D) are, the last axis fastest.

    None if they are not the points of a grid in this order.
    """
    if not len(query):
        return None
    shape, rest = [], len(query)
    for x in query.T[:-1]:
        others = (x[:rest] != x[0]).nonzero()
        same = int(others[0]) if len(others) else rest  # positions with the first value of the axis
        if rest % same:
            return None
        shape.append(rest // same)
        rest = same
    each = query.T.unflatten(1, (*shape, rest))
    axes = [x.movedim(d, 0).reshape(x.shape[d], -1)[:, 0] for d, x in enumerate(each)]
    mesh = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return axes if torch.equal(mesh, each) else None


def _nearest(x: Tensor, grid: Grid, axis: int) -> tuple[Tensor, Tensor]:
    """Of positions (Q,) the indices (Q, 4) of the nearest points of an axis, and their weights."""
    n = grid.shape[axis]
    cells = (x - grid.origin[axis]) / grid.cell_size[axis]
    first = cells.detach().floor()
    nearest = first.long()[:, None] + torch.arange(-1, 3, device=x.device)
    is_periodic = grid.boundary[axis] == PERIODIC_AXIS
    nearest = nearest % n if is_periodic else nearest.clamp(0, n - 1)
    return nearest, _keys_weights(cells - first)


def _keys_weights(t: Tensor) -> Tensor:
    """The weights (Q, 4) of the points around positions ``t`` (Q,) between the second and third."""
    s = 1 - t
    return torch.stack(
        (
            -0.5 * t * s * s,
            1 + t * t * (1.5 * t - 2.5),
            1 + s * s * (1.5 * s - 2.5),
            -0.5 * s * t * t,
        ),
        -1,
    )
