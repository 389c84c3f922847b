"""The walls of a lattice Boltzmann flow as a list of links from fluid nodes through them.

Channel walls lie half-way between nodes, so what leaves comes back (half-way bounce-back). At an
obstacle the true distance along each link counts (interpolated bounce-back of Bouzidi, Firdaouss
and Lallemand, Physics of Fluids 13, 2001).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ups.core.fields import Boundary, Grid
from ups.physics.ellipses import Ellipse
from ups.physics.lattice_boltzmann_compiled import CX, CY, Links

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

# what a node is: fluid, beyond a periodic or open side, beyond a wall, or a body's number >= 0
FLUID, GHOST, WALL = -1, -2, -3


def _positions(grid: Grid, nodes: Integers) -> Array:
    """The positions (N, 2) of nodes (N, 2), counted with the ghosts."""
    return (nodes - 0.5) * np.array(grid.cell_size)


def node_kinds(grid: Grid, obstacles: Sequence[Ellipse]) -> Integers:
    """What each node (X + 2, Y + 2) is, ghosts included."""
    kind = np.full([n + 2 for n in grid.shape], GHOST)
    kind[1:-1, 1:-1] = FLUID
    nodes = _positions(grid, np.argwhere(kind == FLUID))
    for body, obstacle in enumerate(obstacles):
        is_inside = obstacle.signed_distance(nodes) < 0
        kind[1:-1, 1:-1][is_inside.reshape(grid.shape)] = body
    if grid.boundary[1][0] is Boundary.WALL:
        kind[:, [0, -1]] = WALL
    return kind


def make_links(grid: Grid, obstacles: Sequence[Ellipse], kind: Integers, dtype: str) -> Links:
    """The links of all fluid nodes.

    Args:
        grid: the grid of the nodes.
        obstacles: the bodies.
        kind: what each node is, see ``node_kinds``.
        dtype: the precision of the factors.

    Returns:
        The links. Walls are the last body.
    """
    parts = [_links_along(k, grid, obstacles, kind) for k in range(1, 9)]
    joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    return Links(*(a.astype(dtype) if a.dtype.kind == "f" else a for a in joined))


def _links_along(k: int, grid: Grid, obstacles: Sequence[Ellipse], kind: Integers) -> Links:
    """The links along velocity ``k``."""
    opposite = k + 1 if k % 2 == 1 else k - 1
    step = np.array([CX[k], CY[k]])
    fluid = np.argwhere(kind == FLUID)
    nodes = fluid[~np.isin(_at(kind, fluid + step), (FLUID, GHOST))]
    beyond = _at(kind, nodes + step)
    fraction = _fluid_fraction(grid, obstacles, nodes, step, beyond)
    # two obstacles may leave one node between them: no second population, so half-way
    is_near = (fraction < 0.5) & (_at(kind, nodes - step) == FLUID)
    fraction = np.where(is_near, fraction, fraction.clip(0.5))
    behind = _index(kind, k, nodes - step)
    return Links(
        leaving=_index(kind, k, nodes),
        second=np.where(is_near, behind, _index(kind, opposite, nodes)),
        returning=_index(kind, opposite, nodes + step),
        direct=np.where(is_near, 2 * fraction, 1 / (2 * fraction.clip(0.5))),
        direction=np.full(len(nodes), k),
        body=np.where(beyond >= 0, beyond, len(obstacles)),
    )


def _fluid_fraction(
    grid: Grid, obstacles: Sequence[Ellipse], nodes: Integers, step: Integers, beyond: Integers
) -> Array:
    """The part (L,) of each link that lies in the fluid."""
    fraction = np.full(len(nodes), 0.5)
    for body, obstacle in enumerate(obstacles):
        hits = beyond == body
        start = _positions(grid, nodes[hits])
        way = np.broadcast_to(step * np.array(grid.cell_size), start.shape)
        fraction[hits] = obstacle.first_crossing(start, way)
    return fraction


def _at(kind: Integers, nodes: Integers) -> Integers:
    return kind[nodes[:, 0], nodes[:, 1]]


def _index(kind: Integers, k: int, nodes: Integers) -> Integers:
    """Indices (N,) of population ``k`` of nodes (N, 2) in flat populations (9, X + 2, Y + 2)."""
    index: Integers = k * kind.size + np.ravel_multi_index((nodes[:, 0], nodes[:, 1]), kind.shape)
    return index
