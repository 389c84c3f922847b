"""The benchmark of finished runs on flows past obstacles, in small."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ups.core.points import Points
from ups.datamodules import obstacles as ob
from ups.datamodules.point_sampling import PointSampler

ROOT = Path(__file__).parents[1]
FLOWS = ob.ObstacleFlows(
    num_train=1,
    num_validation=1,
    num_test=2,
    num_frames=3,
    start_time=1.0,
    resolution=8,
    num_points=(60, 90),
)
SMALL = [
    "experiment=smoke",
    "data=obstacles",
    "stage=operator",
    "output_dir=outputs",
    "name=run",
    "preflight=false",
    "trainer.max_epochs=1",
    "data.flows.length=12",
    "data.flows.height=6",
    "data.num_train=2",
    "data.num_validation=1",
    "data.num_test=2",
]


@pytest.fixture
def bench(monkeypatch):
    """The benchmark, whose name is that of the data's module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return pytest.importorskip("obstacles")


@pytest.fixture(scope="module")
def drawn():
    return ob.draw_trajectory(FLOWS, np.random.default_rng(FLOWS.seeds[-1]))


def test_half_keeps_half_of_the_points_of_each_sample(bench):
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    points = Points(torch.rand(2, 7, 2), torch.rand(2, 7, 1), mask)
    kept = bench.half(points)
    assert kept.mask.sum(1).tolist() == [4, 2]
    assert bool((kept.mask <= mask).all())


def test_first_frame_is_that_of_the_test_set(bench, tmp_path):
    (test,) = bench.first_frames(replace(FLOWS, num_test=1))
    part = ob.solve_trajectory(FLOWS, np.random.default_rng((2, 0)))
    distance = bench.node_distance(FLOWS.grid, test.drawn)
    sample = PointSampler(FLOWS.grid, test.drawn.points, distance)
    assert np.allclose(sample(test.first.numpy()), part["fields"][0], atol=1e-6)
    assert np.array_equal(test.drawn.points.positions, part["positions"])
    u, points = bench.new_points(FLOWS, [test], 2)
    assert points.mask.sum() == 2 * len(part["positions"])
    assert points.features.shape == (*u.shape[:2], 6)
    assert u[0][:, 0].mean().item() == pytest.approx(part["fields"][0][:, 0].mean(), abs=0.15)


def test_coarse_start_is_the_fine_frame_between_its_nodes(bench, drawn):
    fine = FLOWS.grid
    x, y = fine.positions().unbind(-1)
    linear = torch.stack((0 * x, 0 * y, 1 + 2 * x - 3 * y), -1)  # of the pressure: no wall cuts it
    grid = replace(FLOWS, resolution=4).grid
    start = bench.coarse_start(fine, grid, bench.TestFlow(drawn, linear, 0.0))
    distance = torch.from_numpy(bench.node_distance(grid, drawn))
    x, y = grid.positions().unbind(-1)
    far = distance > 0.5
    assert torch.allclose(start[..., 2][far], (1 + 2 * x - 3 * y)[far], atol=1e-4)
    assert bool((start[distance <= 0] == 0).all())
    same = bench.coarse_start(fine, fine, bench.TestFlow(drawn, linear, 0.0))
    inside = torch.from_numpy(bench.node_distance(fine, drawn)) > 0
    assert torch.allclose(same[inside], linear[inside], atol=1e-5)


def test_other_obstacles_are_none_of_the_training_sets(bench):
    for name, changes in bench.other_obstacles(FLOWS).items():
        for key, (low, high) in changes.items():
            seen = getattr(FLOWS, key)
            assert high < seen[0] or low > seen[1], name
            other = replace(FLOWS, **{key: (low, high)})
            for seed in range(20):
                ob.draw_obstacles(other, np.random.default_rng(seed))  # they fit


@pytest.mark.slow
def test_the_benchmark_of_obstacles_runs_in_small(tmp_path):
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")  # it writes beside itself
    shutil.rmtree(tmp_path / "benchmarks/results")
    (tmp_path / "benchmarks/results").mkdir()
    (tmp_path / "docs/pictures").mkdir(parents=True)
    for command in (
        ["-m", "ups.run", *SMALL],
        ["benchmarks/obstacles.py", "outputs/run"],
        ["benchmarks/results.py"],
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "benchmarks/results/obstacles.json").read_text())
    errors = {name: each["mean"] for name, each in found["errors"].items()}
    assert len(errors) == 7
    assert all(math.isfinite(value) for value in errors.values()), errors
    assert len(set(errors.values())) == 7
    ordered = [row["error"] for row in found["costs"]["solvers"]]
    assert ordered == sorted(ordered, reverse=True)
    assert ordered[-1] < 0.1  # the data's own lattice
    page = (tmp_path / "docs/results.md").read_text()
    assert "| more obstacles |" in page
    assert "| solver-8 |" in page
