"""Flows past random obstacles at random points: the file that is generated, and its reader."""

import dataclasses
import json
import pickle

import h5py
import numpy as np
import pytest
import torch

from ups.core.errors import Diverged, UpsError
from ups.datamodules import obstacles as ob
from ups.datamodules.point_sampling import NODE_TYPES, PointSampler, sample_points, signed_distance
from ups.datamodules.readers.point_clouds import PointCloudFile
from ups.physics import lattice_boltzmann as lb
from ups.physics.ellipses import Ellipse

TINY = ob.ObstacleFlows(
    num_train=2,
    num_validation=1,
    num_test=2,
    num_frames=3,
    start_time=0.5,
    length=8.0,
    height=4.0,
    resolution=8,
    reynolds=(20.0, 60.0),
    num_obstacles=(1, 2),
    num_points=(100, 200),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return ob.generate_obstacles(TINY, tmp_path_factory.mktemp("data"))


def test_file_has_the_documented_layout(path):
    with h5py.File(path) as file:
        n = len(file["offsets"]) - 1
        points = file["offsets"][-1]
        assert n == 5
        assert file["positions"].shape == (points, 2)
        assert file["signed_distance"].shape == file["node_type"].shape == (points,)
        assert file["fields"].shape == (3, points, 3)
        assert file["fields"].dtype == np.float32
        assert file["obstacles"].shape == (file["obstacle_offsets"][-1], 5)
        assert file["forces"].shape == (3, len(file["obstacles"]), 2)
        assert np.allclose(file["t-coordinate"], [0.0, 0.5, 1.0])
        sizes = np.diff(file["offsets"])
        assert (sizes >= 100).all()
        assert (sizes <= 200).all()
        assert len(set(sizes)) > 1
        counts = np.diff(file["obstacle_offsets"])
        assert set(counts) <= {1, 2}
        reynolds = file["parameters/reynolds"][:]
        assert (reynolds > 20).all()
        assert (reynolds < 60).all()
        assert json.loads(file.attrs["recipe"])["length"] == 8.0
    assert not path.with_suffix(".parts").exists()


def test_reader_reads_trajectories_of_their_own_points(path):
    file = PointCloudFile(path)
    assert (file.trajectories, file.frames, file.dt) == (5, 3, 0.5)
    assert file.channels == ("u", "v", "p")
    assert file.node_types == NODE_TYPES
    assert {k: list(v) for k, v in file.splits.items()} == {
        "train": [0, 1],
        "validation": [2],
        "test": [3, 4],
    }
    with h5py.File(path) as stored:
        offsets, fields = stored["offsets"][:], stored["fields"][:]
        positions = stored["positions"][:]
    third, first = file.read([3, 0], start=1, frames=2)
    assert np.array_equal(third, fields[1:3, offsets[3] : offsets[4]])
    assert np.array_equal(first, fields[1:3, : offsets[1]])
    assert np.array_equal(file.geometry(3).positions, positions[offsets[3] : offsets[4]])
    thinned = PointCloudFile(path, 2, 3)
    assert (thinned.frames, thinned.dt) == (2, 1.0)
    assert np.array_equal(thinned.read([3])[0], fields[::2, offsets[3] : offsets[4] : 3])
    assert np.array_equal(thinned.read([3], 1)[0], thinned.read([3])[0][1:])
    assert np.array_equal(thinned.geometry(3).positions, file.geometry(3).positions[::3])
    copy = pickle.loads(pickle.dumps(file))
    assert np.array_equal(copy.read([4])[0], file.read([4])[0])


def test_stored_trajectory_is_the_flow_at_its_points(path):
    part = ob.solve_trajectory(TINY, np.random.default_rng((2, 1)))
    file = PointCloudFile(path)
    assert np.array_equal(file.read([4])[0], part["fields"])
    assert file.parameters["reynolds"][4] == part["reynolds"]
    obstacles = [Ellipse((x, y), (a, b), angle) for x, y, a, b, angle in part["obstacles"].tolist()]
    grid = TINY.grid
    times = [0.5, 1.0, 1.5]
    u0 = ob.pushed(grid)
    flows = list(lb.solve(u0, times, float(part["reynolds"]), grid, obstacles))
    geometry = file.geometry(4)
    cells = (geometry.positions / grid.cell_size[0]).astype(int).clip(0, np.array(grid.shape) - 1)
    far = geometry.signed_distance > 0.5
    nearest = flows[2].fields.numpy()[cells[:, 0], cells[:, 1]]
    error = np.abs(part["fields"][2] - nearest)[far]
    assert far.sum() > 20
    assert error[:, :2].mean() < 0.05
    assert np.allclose(part["forces"][1], flows[1].forces, rtol=1e-3, atol=1e-3)


def test_walls_have_no_velocity_and_distances_are_the_obstacles(path):
    file = PointCloudFile(path)
    with h5py.File(path) as stored:
        bodies = stored["obstacles"][stored["obstacle_offsets"][1] : stored["obstacle_offsets"][2]]
    obstacles = [Ellipse((x, y), (a, b), angle) for x, y, a, b, angle in bodies.tolist()]
    positions, distance, kind = file.geometry(1)
    expected = signed_distance(positions.astype(float), obstacles, 4.0)
    assert np.allclose(distance, expected, atol=1e-5)
    (fields,) = file.read([1])
    for name in ("wall", "obstacle"):
        on_it = kind == NODE_TYPES.index(name)
        assert on_it.any()
        assert (fields[:, on_it, :2] == 0).all()
        assert np.abs(distance[on_it]).max() == 0
    assert (distance[kind == NODE_TYPES.index("fluid")] > 0).all()
    assert (positions[kind == NODE_TYPES.index("inflow"), 0] == 0).all()
    assert (positions[kind == NODE_TYPES.index("outflow"), 0] == 8).all()
    assert np.isfinite(fields).all()


def test_splits_do_not_depend_on_each_others_size(path, tmp_path):
    more = dataclasses.replace(TINY, num_train=1, num_validation=1, num_test=1)
    other = PointCloudFile(ob.generate_obstacles(more, tmp_path))
    file = PointCloudFile(path)
    for i, k in ((0, 0), (1, 2), (2, 3)):
        assert np.array_equal(other.read([i])[0], file.read([k])[0])
    trajectories = [file.geometry(i).positions[:5].tobytes() for i in range(5)]
    assert len(set(trajectories)) == 5


def test_no_seed_has_a_trajectory_of_another():
    seeds = [pair for n in range(4) for pair in dataclasses.replace(TINY, seed=n).seeds]
    assert len(set(seeds)) == 4 * 5


def test_an_interrupted_generation_continues(tmp_path, monkeypatch, path):
    solved = []
    solve = ob.solve_trajectory

    def interrupted(flows, rng):
        if len(solved) == 3:
            raise KeyboardInterrupt
        solved.append(1)
        return solve(flows, rng)

    monkeypatch.setattr(ob.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(ob, "solve_trajectory", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ob.generate_obstacles(TINY, tmp_path)
    assert not list(tmp_path.glob("*.h5"))
    solved.clear()
    again = ob.generate_obstacles(TINY, tmp_path)
    assert len(solved) == 2
    with h5py.File(again) as a, h5py.File(path) as b:
        assert a.attrs["hash"] == b.attrs["hash"]
        assert np.array_equal(a["fields"][:], b["fields"][:])


def test_obstacles_keep_apart_from_walls_and_each_other():
    flows = ob.ObstacleFlows(num_obstacles=(3, 3))
    ratios = []
    for seed in range(20):
        drawn = ob.draw_obstacles(flows, np.random.default_rng(seed))
        assert len(drawn) == 3
        for i, body in enumerate(drawn):
            a, b = body.semi_axes
            ratios.append(a / b)
            assert 0.8 <= 2 * (a * b) ** 0.5 <= 1.2
            perimeter = body.perimeter(np.linspace(0, 2 * np.pi, 200))
            assert perimeter[:, 1].min() > 0.49
            assert perimeter[:, 1].max() < 5.51
            for other in drawn[i + 1 :]:
                assert other.signed_distance(perimeter).min() > 0.49
    assert 0.3 < np.isclose(ratios, 1).mean() < 0.7
    assert max(ratios) > 1.6
    assert max(ratios) <= 2
    with pytest.raises(UpsError, match="20 obstacles do not fit into a channel"):
        ob.draw_obstacles(ob.ObstacleFlows(num_obstacles=(20, 20)), np.random.default_rng(0))


def test_points_are_denser_near_obstacles():
    body = Ellipse((4.0, 3.0), (0.5, 0.5))
    points = sample_points(4000, [body], 12.0, 6.0, np.random.default_rng(0))
    distance = body.signed_distance(points.positions.astype(float))
    near = (distance < 0.5).sum() / (np.pi * (1 - 0.25))
    far = (distance > 3).sum() / (72 - np.pi * 3.5**2)
    assert 2 < near / far < 4
    counts = np.bincount(points.node_type, minlength=len(NODE_TYPES))
    assert (counts > 0).all()
    assert counts[1:].sum() == 400
    assert (points.node_type[:400] == 0).mean() > 0.8  # in random order


def test_sampled_fields_are_exact_for_shear_flow_at_a_wall():
    """u proportional to the distance, and a linear pressure away from where cells are cut."""
    grid = lb.channel(6.0, 4.0, 8)
    nodes = grid.positions().double().numpy()
    points = sample_points(500, [], 6.0, 4.0, np.random.default_rng(1))
    distance = signed_distance(nodes, [], 4.0)
    fields = np.stack([distance, 2 * distance, 1 + nodes[..., 0]], -1)
    sampled = PointSampler(grid, points, distance)(fields)
    position = points.positions.astype(float)
    off_middle = np.abs(position[:, 1] - 2) > 0.2  # where the distance has a kink
    inner = off_middle & (position[:, 0] > 0.1) & (position[:, 0] < 5.9)
    assert (position[inner, 1] < 0.06).any()
    exact = np.minimum(position[:, 1], 4 - position[:, 1])
    assert np.allclose(sampled[inner, 0], exact[inner], atol=1e-5)
    assert np.allclose(sampled[inner, 1], 2 * exact[inner], atol=1e-5)
    assert np.allclose(sampled[inner, 2], 1 + position[inner, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reynolds": (100.0, 50.0)}, "`reynolds` must be a range of numbers > 0"),
        ({"num_points": (0, 50)}, "`num_points` must be a range of numbers > 0"),
        ({"num_test": 0}, "`num_test` must be an integer >= 1, got 0"),
        ({"reynolds": 100.0}, "`reynolds` must be .*, got 100.0"),
        ({"reynolds": (50.0,)}, "`reynolds` must be .*, got "),
        ({"num_frames": 2.5}, "`num_frames` must be an integer >= 1, got 2.5"),
        ({"length": 5.0}, "`length` must be a number >= 7"),
        ({"dt": 0.0}, "`dt` must be a number > 0, got 0"),
        ({"seed": -1}, "`seed` must be an integer >= 0"),
    ],
)
def test_impossible_settings_are_refused(change, words):
    with pytest.raises(UpsError, match=words):
        ob.ObstacleFlows(**change)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("positions", "there is no dataset 'positions'"),
        ("fields", "there is no dataset 'fields'"),
        ("offsets", "there is no dataset 'offsets'"),
    ],
)
def test_reader_refuses_files_that_lack_an_array(path, tmp_path, name, words):
    broken = tmp_path / "broken.h5"
    broken.write_bytes(path.read_bytes())
    with h5py.File(broken, "a") as file:
        del file[name]
    with pytest.raises(UpsError, match=words):
        PointCloudFile(broken)


@pytest.mark.parametrize(
    ("frames", "times", "words"),
    [
        (3, [0.0, 0.5, 1.5], "'t-coordinate' must be evenly spaced"),
        (3, [0.0, 0.5], "'t-coordinate' must be 3 finite, increasing numbers"),
        (1, [0.0], "'t-coordinate' must be at least 2 numbers, got 1"),
    ],
)
def test_reader_refuses_times_without_one_step(path, tmp_path, frames, times, words):
    broken = tmp_path / "broken.h5"
    broken.write_bytes(path.read_bytes())
    with h5py.File(broken, "a") as file:
        fields = file["fields"][:frames]
        for name, values in (("fields", fields), ("t-coordinate", times)):
            del file[name]
            file[name] = values
    with pytest.raises(UpsError, match=words):
        PointCloudFile(broken)


def test_reader_refuses_splits_of_another_number(path, tmp_path):
    broken = tmp_path / "broken.h5"
    broken.write_bytes(path.read_bytes())
    with h5py.File(broken, "a") as file:
        file.attrs["splits"] = (1, 1, 1)
    with pytest.raises(UpsError, match="'splits' must be three whole numbers > 0 whose sum is 5"):
        PointCloudFile(broken)
    with h5py.File(broken, "a") as file:
        del file.attrs["channels"]
    with pytest.raises(UpsError, match="no attribute 'channels'"):
        PointCloudFile(broken)


def test_a_flow_that_is_too_fast_for_the_lattice_is_solved_in_smaller_steps():
    """Half of the channel is blocked: the gaps are too fast for the usual steps."""
    blocking, times = [Ellipse((2.5, 2.0), (0.5, 1.1))], [2.0, 4.0]
    start = ob.pushed(TINY.grid)
    with pytest.raises(Diverged, match="before t = 4; a smaller lattice_speed"):
        list(lb.solve(start, times, 400.0, TINY.grid, blocking))
    found = ob.solve_flow(start, times, 400.0, TINY.grid, blocking)
    speed = lb.LATTICE_SPEED / 2
    expected = list(lb.solve(start, times, 400.0, TINY.grid, blocking, lattice_speed=speed))
    assert torch.equal(found[-1].fields, expected[-1].fields)
    with pytest.raises(Diverged):  # in the smallest ones too
        ob.solve_flow(start, times, 1e7, TINY.grid, blocking)
