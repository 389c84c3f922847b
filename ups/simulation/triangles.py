"""Triangles between the points of a plane, as pictures of fields on points need them."""

import numpy as np
from matplotlib.tri import Triangulation
from numpy.typing import NDArray

from ups.core.fields import FieldSpec
from ups.core.points import SIGNED_DISTANCE, Points

Array = NDArray[np.float64]

# the least slope of the distance to walls, which is 1 beside a wall, in a triangle that is drawn:
# with it nothing is drawn inside of obstacles, and little of the fluid beside them is left out
MIN_SLOPE = 0.9


def has_triangles(points: Points) -> bool:
    """Whether the points (1, P, 2) of one sample span a plane."""
    offsets = (points.positions[0] - points.positions[0, 0]).numpy(force=True).astype(np.float64)
    smallest = 1e-6 * np.abs(offsets).max()
    return bool(np.linalg.matrix_rank(offsets, tol=smallest) == 2)


def triangulate(points: Points, spec: FieldSpec) -> Triangulation:
    """Delaunay triangles between the points of one sample, without those behind walls.

    Without the feature ``SIGNED_DISTANCE`` nothing tells where walls are, and none is left out.

    Args:
        points: the points (1, P, 2), without padding.
        spec: describes the field.
    """
    positions = points.positions[0].numpy(force=True).astype(np.float64)
    triangulation = Triangulation(*positions.T)
    names = spec.point_cloud.features
    if SIGNED_DISTANCE in names:
        distance = points.features[0, :, names.index(SIGNED_DISTANCE)].numpy(force=True)
        corners = positions[triangulation.triangles]
        triangulation.set_mask(_is_behind_wall(corners, distance[triangulation.triangles]))
    return triangulation


def _is_behind_wall(corners: Array, distance: Array) -> NDArray[np.bool_]:
    """Which triangles with these corners (N, 3, 2) and distances to walls (N, 3) cross a wall.

    Two signs say that a triangle does not: its centroid is closer to a corner than any wall is, or
    the distance grows across it as it does beside a wall. Across an obstacle it does not grow,
    because the corners on both sides are equally close to a wall.
    """
    to_centroid = np.linalg.norm(corners - corners.mean(1, keepdims=True), axis=-1)
    is_clear = (to_centroid < distance).any(-1)
    one, two = (corners[:, k] - corners[:, 0] for k in (1, 2))
    rise_one, rise_two = (distance[:, k] - distance[:, 0] for k in (1, 2))
    # twice the area, and the gradient of the linear function times it
    double_area = np.abs(one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0])
    slope = np.linalg.norm(rise_one[:, None] * two - rise_two[:, None] * one, axis=-1)
    return ~is_clear & (slope < MIN_SLOPE * double_area)


def outline(triangulation: Triangulation) -> Array:
    """The edges (N, 2, 2) of what is drawn: the outer ones, and those of obstacles."""
    triangles = triangulation.get_masked_triangles()
    edges = np.concatenate([triangles[:, [k, (k + 1) % 3]] for k in range(3)])
    # an edge within belongs to two triangles
    found, counts = np.unique(np.sort(edges), axis=0, return_counts=True)
    edges = found[counts == 1]
    segments: Array = np.stack([triangulation.x[edges], triangulation.y[edges]], -1)
    return segments
