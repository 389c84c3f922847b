"""Descriptions of data: numbers agree approximately, everything else exactly."""

import pytest

from ups.core.agreement import disagreements
from ups.core.fields import Boundary, FieldSpec, Grid, PointCloud


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (0.05, 0.05000000074505806, None),
        (0.05, 0.0500001, None),
        (0.05, 0.0501, "`v` must be 0.05, got 0.0501"),
        (0.123456789, 0.1235, "`v` must be 0.123457, got 0.1235"),
        (1e-9, 2e-9, "`v` must be 1e-09, got 2e-09"),
        ((1.0, 2.0), (1.0, 2.000001), None),
        ((1.0, 2.0), (1.0, 2.1), "`v` must be 1 x 2, got 1 x 2.1"),
        ((1.0,), (1.0, 2.0), "`v` must be 1, got 1 x 2"),
        (256, 257, "`v` must be 256, got 257"),
        (("nu",), (), "`v` must be nu, got none"),
        ("burgers", "none", "`v` must be burgers, got none"),
    ],
)
def test_numbers_agree_within_their_rounding(a, b, words):
    assert disagreements({"v": a, "w": 1}, {"v": b, "w": 1}) == ([] if words is None else [words])


def test_numbers_that_print_alike_are_told_apart():
    (words,) = disagreements({"dt": 100000.4}, {"dt": 100049.9})
    assert words == "`dt` must be 100000, got 100050"
    (words,) = disagreements({"dt": 1.0}, {"dt": 1.0001001})
    assert words == "`dt` must be 1, got 1.0001"


def test_essentials_of_fields_are_compared():
    spec = FieldSpec(Grid((8,), (1.0,)), parameters=("nu",), dt=0.05)
    sides = (Boundary.WALL, Boundary.WALL)
    same = FieldSpec(Grid((8,), (1.0,), origin=(-0.4,)), parameters=("nu",), dt=0.05, std=(3.0,))
    assert not disagreements(spec.essentials(), same.essentials())
    for domain, name in (
        (Grid((8,), (1.0,), (sides,)), "boundary"),
        (Grid((8,), (1.1,)), "length"),
        (Grid((9,), (1.0,)), "points"),
    ):
        (words,) = disagreements(spec.essentials(), spec.with_domain(domain).essentials())
        assert words.startswith(f"`{name}` must be ")
    cloud = FieldSpec(PointCloud(((0.0, 0.5),), ("distance",)))
    other = cloud.with_domain(PointCloud(((0.01, 0.52),), ("distance",)))  # a draw of other points
    assert not disagreements(cloud.essentials(), other.essentials())
    for name, domain in (
        ("box", PointCloud(((0.0, 0.6),), ("distance",))),
        ("box", PointCloud(((-0.03, 0.5),), ("distance",))),
        ("features", PointCloud(((0.0, 0.5),))),
    ):
        (words,) = disagreements(cloud.essentials(), cloud.with_domain(domain).essentials())
        assert words.startswith(f"`{name}` must be ")
