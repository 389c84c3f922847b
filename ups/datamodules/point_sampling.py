"""Random points in a flow past obstacles, and its fields there."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ups.core.fields import Grid
from ups.datamodules.readers.point_clouds import Geometry
from ups.physics.ellipses import Ellipse, signed_distances

Array = NDArray[np.float64]

NODE_TYPES = ("fluid", "inflow", "outflow", "wall", "obstacle")
ON_BOUNDARIES = 0.1  # this part of the points
# the density of points falls with the distance to obstacles, down to this part
LEAST_DENSITY = 0.25
TINY = 1e-9
NEAREST = 0.01  # in cells; nodes that are closer to a wall count as this close


def signed_distance(points: Array, obstacles: Sequence[Ellipse], height: float) -> Array:
    """Distances (...) of points (..., 2) to the nearest obstacle or channel wall."""
    y = points[..., 1]
    return np.minimum(_to_obstacles(points, obstacles), np.minimum(y, height - y))


def _to_obstacles(points: Array, obstacles: Sequence[Ellipse]) -> Array:
    far = np.full((1, *points.shape[:-1]), np.inf)
    distances: Array = np.concatenate([far, signed_distances(obstacles, points)]).min(0)
    return distances


def sample_points(
    n: int,
    obstacles: Sequence[Ellipse],
    length: float,
    height: float,
    rng: np.random.Generator,
) -> Geometry:
    """Draw ``n`` points in a channel, more of them near obstacles, and some on all boundaries."""
    pieces = _boundary_points(max(1, round(n * ON_BOUNDARIES)), obstacles, length, height, rng)
    left = n - sum(map(len, pieces.values()))
    pieces["fluid"] = _fluid_points(left, obstacles, length, height, rng)
    positions = np.concatenate(list(pieces.values()))
    types = np.concatenate(
        [np.full(len(piece), NODE_TYPES.index(name)) for name, piece in pieces.items()]
    )
    order = rng.permutation(n)
    distance = signed_distance(positions, obstacles, height)
    distance[(types == NODE_TYPES.index("wall")) | (types == NODE_TYPES.index("obstacle"))] = 0
    return Geometry(
        positions[order].astype(np.float32),
        distance[order].astype(np.float32),
        types[order].astype(np.uint8),
    )


def _fluid_points(
    n: int, obstacles: Sequence[Ellipse], length: float, height: float, rng: np.random.Generator
) -> Array:
    found = np.empty((0, 2))
    while len(found) < n:
        points = rng.uniform((0, 0), (length, height), (4 * n, 2))
        distance = _to_obstacles(points, obstacles)
        density = np.maximum(1 / (1 + distance.clip(0)), LEAST_DENSITY) * (distance > 0)
        found = np.concatenate([found, points[rng.uniform(size=4 * n) < density]])
    return found[:n]


def _boundary_points(
    n: int, obstacles: Sequence[Ellipse], length: float, height: float, rng: np.random.Generator
) -> dict[str, Array]:
    """Draw ``n`` points on the boundaries, as many on each as its length demands."""
    perimeters = [np.pi * sum(obstacle.semi_axes) for obstacle in obstacles]  # nearly
    sizes = np.array([height, height, length, length, *perimeters])
    side = rng.choice(len(sizes), n, p=sizes / sizes.sum())
    where = rng.uniform(size=n)
    corners = {"inflow": (0, 0.0), "outflow": (1, length)}
    pieces = {
        name: np.stack([np.full((side == k).sum(), x), height * where[side == k]], -1)
        for name, (k, x) in corners.items()
    }
    on_wall = (side == 2) | (side == 3)
    pieces["wall"] = np.stack([length * where, height * (side == 3)], -1)[on_wall]
    around = [
        obstacle.perimeter(2 * np.pi * where[side == 4 + k]) for k, obstacle in enumerate(obstacles)
    ]
    pieces["obstacle"] = np.concatenate([np.empty((0, 2)), *around])
    return pieces


class PointSampler:
    """Interpolates the fields of a grid of nodes at points, where walls cut the cells of the grid.

    Only nodes in the fluid count. In a cell that a wall cuts, the velocity divided by the distance
    to the wall is interpolated, so that it is zero on the wall.

    Args:
        grid: the grid of the nodes.
        points: positions and distances to walls of the points.
        node_distance: signed distances (X, Y) of the nodes to walls.
    """

    def __init__(self, grid: Grid, points: Geometry, node_distance: Array) -> None:
        place = points.positions.astype(np.float64) / np.array(grid.cell_size) - 0.5
        last = np.array(grid.shape) - 1
        lower = np.floor(place).astype(int)
        weights = []
        nodes = []
        for corner in np.ndindex(2, 2):
            node = lower + corner
            # not zero: a point on an obstacle may have a node of the fluid only at the far edge
            weight = (1 - np.abs(place - node)).prod(-1)
            is_inside = ((node >= 0) & (node <= last)).all(-1)
            nodes.append(np.ravel_multi_index(tuple(node.clip(0, last).T), grid.shape))
            weights.append((weight + TINY) * is_inside)
        self.nodes = np.stack(nodes, -1)
        distance = node_distance.ravel()[self.nodes]
        weight = np.stack(weights, -1) * (distance >= 0)
        self.weights = weight / weight.sum(-1, keepdims=True)
        is_cut = (weight == 0).any(-1, keepdims=True)
        nearest = np.maximum(distance, NEAREST * grid.cell_size[0])
        ratio = points.signed_distance.astype(np.float64)[:, None] / nearest
        self.velocity_weights = self.weights * np.where(is_cut, ratio, 1.0)

    def __call__(self, fields: Array) -> Array:
        """Values (P, 3) of fields (X, Y, 3) of two velocities and the pressure."""
        values = fields.reshape(-1, fields.shape[-1])[self.nodes]
        velocity = (self.velocity_weights[..., None] * values[..., :2]).sum(1)
        pressure = (self.weights[..., None] * values[..., 2:]).sum(1)
        return np.concatenate([velocity, pressure], -1)
