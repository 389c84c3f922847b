"""Circles and ellipses: signed distances and crossings."""

import math

import numpy as np
import pytest

from ups.core.errors import UpsError
from ups.physics.ellipses import Ellipse, signed_distances

TILTED = Ellipse((0.3, -0.2), (1.0, 0.4), 0.7)


def points(n=400, seed=0):
    return np.random.default_rng(seed).uniform(-2, 2, (n, 2))


def test_distance_to_a_circle_is_exact():
    circle = Ellipse((0.5, 0.2), (0.7, 0.7))
    expected = np.linalg.norm(points() - [0.5, 0.2], axis=-1) - 0.7
    assert np.allclose(circle.signed_distance(points()), expected, atol=1e-9)
    assert circle.signed_distance(np.array([0.5, 0.2])) == pytest.approx(-0.7)


@pytest.mark.parametrize("axes", [(1.0, 0.4), (0.4, 1.0), (1.0, 0.25)])
def test_distance_to_an_ellipse_is_that_of_its_closest_point(axes):
    ellipse = Ellipse((0.3, -0.2), axes, 0.7)
    phase = np.linspace(0, 2 * math.pi, 4001)
    coarse = np.linalg.norm(points()[:, None] - ellipse.perimeter(phase), axis=-1).argmin(-1)
    near = phase[coarse][:, None] + np.linspace(-2e-3, 2e-3, 401)
    closest = np.linalg.norm(points()[:, None] - ellipse.perimeter(near), axis=-1).min(-1)
    distance = ellipse.signed_distance(points())
    assert np.allclose(np.abs(distance), closest, atol=1e-8, rtol=0)
    local = ellipse.rotate(points() - np.array(ellipse.center)) / axes
    assert ((distance < 0) == ((local**2).sum(-1) < 1)).all()
    assert 0.04 < (distance < 0).mean() < 0.2


def test_perimeter_lies_on_the_ellipse_and_within_its_extent():
    perimeter = TILTED.perimeter(np.linspace(0, 2 * math.pi, 2001))
    assert np.abs(TILTED.signed_distance(perimeter)).max() < 1e-6
    reach = np.abs(perimeter - TILTED.center).max(0)
    assert np.allclose(reach, TILTED.half_extent, atol=1e-5)
    # its first axis points along its angle
    tip = np.add(TILTED.center, (math.cos(0.7), math.sin(0.7)))
    assert TILTED.signed_distance(tip) == pytest.approx(0, abs=1e-6)


def test_first_crossing_is_where_the_way_enters():
    outside = points(2000)[TILTED.signed_distance(points(2000)) > 0.05]
    way = np.array(TILTED.center) - outside
    crossing = TILTED.first_crossing(outside, way)
    hit = outside + crossing[:, None] * way
    assert np.abs(TILTED.signed_distance(hit)).max() < 1e-6
    before = outside + 0.99 * crossing[:, None] * way
    assert (TILTED.signed_distance(before) > 0).all()


def test_distances_to_several_are_stacked():
    pair = (TILTED, Ellipse((0.0, 0.0), (0.1, 0.1)))
    both = signed_distances(pair, points(12).reshape(3, 4, 2))
    assert both.shape == (2, 3, 4)
    assert np.array_equal(both[1].ravel(), pair[1].signed_distance(points(12)))
    assert signed_distances((), points(12)).shape == (0, 12)


@pytest.mark.parametrize(
    "arguments", [((0.0, math.nan), (1.0, 1.0)), ((0.0, 0.0), (1.0, 0.0)), ((0, 0), (math.inf, 1))]
)
def test_impossible_ellipses_are_refused(arguments):
    with pytest.raises(UpsError, match=r"must be finite"):
        Ellipse(*arguments)
