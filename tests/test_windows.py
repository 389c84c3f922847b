"""Training windows, splits, thinning and generated data: what is drawn, from where, how often."""

import dataclasses
import hashlib
import inspect
import json
import math
from collections import Counter
from types import SimpleNamespace

import h5py
import hydra
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.fields import Grid
from ups.datamodules import BurgersDataModule, TrajectoryDataModule
from ups.datamodules.burgers import DEFAULT_NU
from ups.datamodules.readers.pdebench import TrajectoryFile, digest
from ups.datamodules.windows import WindowDataset, WindowIndices, WindowSampler
from ups.physics import advection, burgers, limiters, periodic_1d
from ups.run import CONF

FIELDS = ("number", "trajectory", "start", "translate", "reflect", "stride")
NO_AUGMENTATION = {"translate": False, "reflect": False}
# the values of windows then are those of the file
AT_REST = dataclasses.replace(burgers.EQUATION, boost=None)


def codes(trajectories, frames, points):
    """An array (N, T, X) of 4096 n + 64 t + x + 1, exact in float32: each tells its place."""
    n = np.arange(trajectories)[:, None, None]
    t = np.arange(frames)[:, None]
    x = np.arange(points)
    return (4096 * n + 64 * t + x + 1).astype(np.float32)


def trajectory_of(value):
    return int(value - 1) // 4096


def write_file(path, values, dt=0.01, length=1.0, extra=1):
    """A file in PDEBench's layout."""
    frames, points = values.shape[1:]
    with h5py.File(path, "w") as file:
        file["tensor"] = values.astype(np.float32)
        file["x-coordinate"] = ((np.arange(points) + 0.5) * length / points).astype(np.float32)
        file["t-coordinate"] = (np.arange(frames + extra) * dt).astype(np.float32)
    return path


def line(points, length=1.0):
    return Grid((points,), (length,))


def make_sampler(**changes):
    settings = {
        "num_trajectories": 100,
        "num_frames": 11,
        "unroll_steps": 3,
        "shape": (8,),
        "samples_per_trajectory": 200,
        "batch_size": 50,
        "translate": True,
        "reflect": True,
        "seed": 0,
    }
    return WindowSampler(**{**settings, **changes})


def drawn(sampler):
    """All windows of the sampler's next pass, as one array a field."""
    batches = list(sampler)
    found = {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in FIELDS}
    assert found["translate"].ndim == 2
    return {**found, "translate": found["translate"].squeeze(-1)}


def assert_frequencies(values, expected):
    """The counts of ``values`` are within five standard deviations of a binomial law's mean."""
    counts, n = Counter(values.tolist()), len(values)
    assert set(counts) <= set(expected)
    for value, probability in expected.items():
        deviation = math.sqrt(n * probability * (1 - probability))
        assert abs(counts[value] - n * probability) <= 5 * deviation, (value, counts[value])


def every_window(trajectories=2, frames=9, window=2, points=8, strides=(1, 2, 3)):
    """Hand-made windows: every trajectory, stride, first frame and reflection; shifts in turn."""
    rows = []
    for trajectory in range(trajectories):
        for stride in strides:
            for start in range(frames - window * stride):
                for reflect in (0, 1):
                    rows.append(
                        (len(rows) + 7, trajectory, start, len(rows) % points, reflect, stride)
                    )
    number, trajectory, start, translate, reflect, stride = np.array(rows).T
    return WindowIndices(number, trajectory, start, translate[:, None], reflect, stride, number)


def written_out(values, w, window, equation):
    """The windows of ``w`` (B, K+1, X, 1) of values (N, T, X), point by point.

    Without an equation they are neither translated nor reflected nor rescaled.
    """
    points = values.shape[-1]
    out = np.zeros((len(w.start), window + 1, points), np.float32)
    for row in range(len(w.start)):
        for k in range(window + 1):
            stride = w.stride[row] if equation else 1
            frame = values[w.trajectory[row], w.start[row] + k * stride]
            for x in range(points):
                seen = (x + w.translate[row, 0]) % points
                if equation is None:
                    out[row, k, x] = frame[x]
                elif equation is AT_REST:
                    # x -> -x and u -> -u; a times the field where time is rescaled
                    value = -frame[points - 1 - seen] if w.reflect[row] else frame[seen]
                    out[row, k, x] = value * w.stride[row]
                else:
                    out[row, k, x] = -frame[seen] if w.reflect[row] else frame[seen]
    return torch.from_numpy(out)[..., None]


# ---------------------------------------------------------------- which windows are drawn


def test_window_starts_are_uniform_over_valid_frames_when_start_time_bias_is_one():
    # frames 0..10, windows of frames s..s+3: the last valid start is 7
    start = drawn(make_sampler(start_time_bias=1.0))["start"]
    assert set(start.tolist()) == set(range(8))
    assert_frequencies(start, dict.fromkeys(range(8), 1 / 8))


@pytest.mark.parametrize("bias", [0.5, 2.0, 3.0])
def test_window_starts_follow_the_law_of_start_time_bias(bias):
    # floor(8 r^bias) = s where r lies from (s / 8)^(1 / bias) to ((s + 1) / 8)^(1 / bias)
    start = drawn(make_sampler(start_time_bias=bias))["start"]
    law = {s: ((s + 1) / 8) ** (1 / bias) - (s / 8) ** (1 / bias) for s in range(8)}
    assert set(start.tolist()) == set(range(8))
    assert_frequencies(start, law)


def test_window_starts_are_zero_when_a_window_is_as_long_as_the_trajectory():
    assert set(drawn(make_sampler(unroll_steps=10, start_time_bias=1.0))["start"].tolist()) == {0}


def test_window_starts_reach_the_last_valid_frame_of_every_stride():
    found = drawn(make_sampler(start_time_bias=1.0, max_time_rescale=np.full(100, 3)))
    for stride, valid in {1: 8, 2: 5, 3: 2}.items():
        start = found["start"][found["stride"] == stride]
        assert_frequencies(start, dict.fromkeys(range(valid), 1 / valid))


def test_sampler_takes_every_stride_of_a_trajectory_equally_often():
    stretch = np.repeat([1, 2, 3], [40, 30, 30])
    found = drawn(make_sampler(max_time_rescale=stretch))
    for largest in (1, 2, 3):
        strides = found["stride"][stretch[found["trajectory"]] == largest]
        assert_frequencies(strides, dict.fromkeys(range(1, largest + 1), 1 / largest))


def test_sampler_takes_every_trajectory_samples_per_trajectory_times_an_epoch():
    sampler = make_sampler(num_trajectories=7, samples_per_trajectory=6, batch_size=3)
    for position in (0, len(sampler)):
        sampler.start_batch = lambda position=position: position
        found = drawn(sampler)
        assert Counter(found["trajectory"].tolist()) == dict.fromkeys(range(7), 6)
        assert found["number"].tolist() == list(range(42))


def test_sampler_mixes_the_trajectories_of_a_batch():
    batches = list(make_sampler())
    # 50 of 100 trajectories with replacement hold about 40 different ones
    assert all(30 <= len(set(batch.trajectory.tolist())) <= 50 for batch in batches)


def test_translations_are_uniform_over_the_points_and_reflections_take_half():
    found = drawn(make_sampler())
    assert_frequencies(found["translate"], dict.fromkeys(range(8), 1 / 8))
    assert_frequencies(found["reflect"], {0: 0.5, 1: 0.5})
    assert_frequencies(found["translate"][found["reflect"] == 1], dict.fromkeys(range(8), 1 / 8))


@pytest.mark.parametrize("name", ["translate", "reflect"])
def test_augmentation_leaves_the_other_draws_alone_when_off(name):
    found, on = drawn(make_sampler(**{name: False})), drawn(make_sampler())
    assert set(found[name].tolist()) == {0}
    for other in set(FIELDS) - {name}:
        assert np.array_equal(found[other], on[other])


def test_epochs_are_repeated_only_when_windows_are_fixed():
    for repeat in (False, True):
        sampler = make_sampler(fixed_windows=repeat, samples_per_trajectory=2)
        epochs = []
        for epoch in range(3):
            sampler.start_batch = lambda epoch=epoch: epoch * 4
            epochs.append(drawn(sampler))
        for later in (1, 2):
            for name in ("trajectory", "start", "translate", "reflect"):
                assert np.array_equal(epochs[0][name], epochs[later][name]) == repeat
        if not repeat:
            assert not np.array_equal(epochs[1]["start"], epochs[2]["start"])


def test_sampler_continues_with_the_next_batch_when_windows_are_fixed():
    sampler = make_sampler(fixed_windows=True, samples_per_trajectory=2)
    whole = list(sampler)
    sampler.start_batch = lambda: 2 * 4 + 3
    rest = list(sampler)
    assert len(whole) == 4
    assert len(rest) == 1
    assert np.array_equal(rest[0].number, whole[3].number)
    assert np.array_equal(rest[0].start, whole[3].start)


def test_window_order_depends_on_the_seed():
    first, again, other = (drawn(make_sampler(seed=seed)) for seed in (0, 0, 1))
    for name in ("trajectory", "start", "translate", "reflect"):
        assert np.array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


def test_epochs_of_neighboring_seeds_differ():
    sampler = make_sampler(seed=0)
    sampler.start_batch = lambda: len(sampler)
    assert not np.array_equal(drawn(sampler)["start"], drawn(make_sampler(seed=1))["start"])


def test_sampler_length_is_the_windows_by_the_global_batch_rounded_down():
    sizes = {"num_trajectories": 5, "samples_per_trajectory": 5, "batch_size": 4}
    assert make_sampler(**sizes).num_windows == 25
    for world, batches in {1: 6, 2: 3, 3: 2}.items():
        sampler = make_sampler(**sizes, world=world)
        assert len(sampler) == batches
        assert len(list(sampler)) == batches


def test_windows_are_repeated_when_fewer_than_a_batch():
    (batch,) = make_sampler(num_trajectories=3, samples_per_trajectory=1, batch_size=7)
    assert batch.number.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert np.array_equal(batch.start[:3], batch.start[3:6])


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_a_global_batch_in_the_order_of_their_rank(world):
    sizes = {
        "num_trajectories": 10,
        "samples_per_trajectory": 6,
        "max_time_rescale": np.full(10, 2),
    }
    whole = list(make_sampler(**sizes, batch_size=2 * world))
    shares = [list(make_sampler(**sizes, batch_size=2, rank=r, world=world)) for r in range(world)]
    assert len(whole) == 60 // (2 * world)
    for batch, *parts in zip(whole, *shares, strict=True):
        for name in FIELDS:
            joined = np.concatenate([getattr(part, name) for part in parts])
            assert np.array_equal(joined, getattr(batch, name))


# ---------------------------------------------------------------- what a window holds


@pytest.mark.parametrize("equation", [AT_REST, advection.EQUATION])
def test_window_content_is_the_trajectory_at_start_and_every_stride(equation):
    values, w = codes(2, 9, 8), every_window()
    parameters = torch.tensor([[0.25], [0.5]])
    batch = WindowDataset([], values[..., None], 2, parameters, line(8), 0.1, equation)[w]
    assert torch.equal(batch.u, written_out(values, w, 2, equation))
    assert batch.u.dtype == torch.float32
    expected = [[0.25 * (i + 1) * k] for i, k in zip(w.trajectory, w.stride, strict=True)]
    assert batch.parameters.tolist() == expected
    assert batch.parameters.dtype == torch.float32
    assert batch.trajectory.tolist() == w.trajectory.tolist()
    assert batch.window.tolist() == w.number.tolist()
    # nothing was changed in place
    assert np.array_equal(values, codes(2, 9, 8))
    assert parameters.tolist() == [[0.25], [0.5]]


@pytest.mark.parametrize("equation", [None, dataclasses.replace(AT_REST, symmetries=())])
def test_window_content_is_the_trajectory_at_start_when_there_are_no_symmetries(equation):
    values, w = codes(2, 9, 8), every_window()
    parameters = torch.tensor([[0.25], [0.5]])
    batch = WindowDataset([], values[..., None], 2, parameters, line(8), 0.1, equation)[w]
    assert torch.equal(batch.u, written_out(values, w, 2, None))
    assert torch.equal(batch.parameters, parameters[w.trajectory])
    assert w.stride.max() == 3  # the sampler's own are left as they are


def test_windows_are_seen_from_a_frame_that_moves_with_their_mean_by_whole_cells():
    # cells of 1/8, frames 1/4 apart: a speed of 1/2 is a cell a frame, and 1/4 two frames a cell
    values = np.random.default_rng(0).integers(-4, 5, (2, 9, 8)).astype(np.float32)
    values -= values.mean(2, keepdims=True)
    values += np.array([0.5, -1.1], np.float32)[:, None, None]
    zeros = np.zeros(3, int)
    w = WindowIndices(
        np.arange(3), np.array([0, 1, 0]), np.array([1, 2, 0]), zeros[:, None], zeros,
        np.array([1, 1, 3]), zeros,
    )  # fmt: skip
    equation = dataclasses.replace(burgers.EQUATION, symmetries=())
    dataset = WindowDataset([], values[..., None], 2, torch.ones(2, 1), line(8), 0.25, equation)
    u = dataset[w].u[..., 0].numpy()
    for k in range(3):
        assert u[0, k] == pytest.approx(np.roll(values[0, 1 + k], -k) - 0.5)
        assert u[1, k] == pytest.approx(np.roll(values[1, 2 + k], 2 * k) + 1)
    # without symmetries a stride is 1
    assert u[2, 2] == pytest.approx(np.roll(values[0, 2], -2) - 0.5)
    rescaled = (
        WindowDataset([], values[..., None], 2, torch.ones(2, 1), line(8), 0.25, burgers.EQUATION)[
            w
        ]
        .u[..., 0]
        .numpy()
    )
    for k in range(3):  # seen first, three cells a step and 0.5 less; then three times as fast
        assert rescaled[2, k] == pytest.approx(3 * (np.roll(values[0, 3 * k], -3 * k) - 0.5))


@pytest.mark.parametrize("thin", [(1, 1), (2, 4)])
def test_streamed_windows_equal_those_in_memory_with_strides(tmp_path, thin):
    # trajectory 0 is row 3 of the one file, trajectory 1 row 0 of the other
    time_stride, space_stride = thin
    frames, points = 8 * time_stride + 1, 8 * space_stride
    files = []
    for name in ("a", "b"):
        path = write_file(tmp_path / name, codes(4, frames, points) + 1e5 * len(files))
        files.append(TrajectoryFile(path, *thin))
    sources = [(files[0], 3), (files[1], 0)]
    values = np.concatenate([file.read([row]) for file, row in sources])
    settings = (2, torch.tensor([[0.25], [0.5]]), line(8), 0.1, burgers.EQUATION)
    w = every_window()
    streamed = WindowDataset(sources, None, *settings)[w]
    loaded = WindowDataset(sources, values, *settings)[w]
    for name in ("u", "parameters", "trajectory", "window"):
        assert torch.equal(getattr(streamed, name), getattr(loaded, name))
    first = codes(4, frames, points)[3, ::time_stride, ::space_stride]
    assert np.array_equal(values[0, ..., 0], first)


@pytest.mark.parametrize("in_memory", [True, False])
def test_windows_are_rescaled_only_while_their_first_field_stays_within_the_cap(
    tmp_path, in_memory
):
    # the largest |u| of the first frame, which may stand anywhere and be negative
    sizes = [0.25, 0.375, 0.5, 0.625, 5.0]
    values = np.zeros((5, 9, 4), np.float32)
    values[:, 1:] = 9.0  # later frames don't count
    for row, size in enumerate(sizes):
        values[row, 0] = [0.0, -size, size / 2, 0.0]
    file = TrajectoryFile(write_file(tmp_path / "a", values))
    sources = [(file, row) for row in range(5)]
    dataset = WindowDataset(
        sources,
        values[..., None] if in_memory else None,
        1,
        torch.full((5, 1), 0.5),
        line(4),
        0.1,
        burgers.EQUATION,
        amplitude_cap=1.0,
    )
    expected = {3: [3, 2, 2, 1, 1], 2: [2, 2, 2, 1, 1], 1: [1, 1, 1, 1, 1]}
    for asked, strides in expected.items():
        zeros = np.zeros(5, int)
        each, still = np.arange(5), zeros[:, None]
        w = WindowIndices(each, each, zeros, still, zeros, np.full(5, asked), zeros)
        batch = dataset[w]
        assert batch.parameters.tolist() == [[0.5 * stride] for stride in strides]
        first = batch.u[:, 0, 1, 0].tolist()
        assert first == [-s * k for s, k in zip(sizes, strides, strict=True)]
        assert w.stride.tolist() == [asked] * 5  # the sampler's own are left as they are


def make_numbered_batch(n=6, space=(3,), num_parameters=2):
    u = torch.arange(2.0 * n * math.prod(space)).reshape(n, 2, *space, 1)
    parameters = torch.arange(float(n * num_parameters)).reshape(n, num_parameters)
    return Batch(u, parameters, torch.arange(n) + 10, torch.arange(n) + 20)


def test_batch_chunks_are_equal_parts_in_order():
    batch = make_numbered_batch()
    assert len(batch) == 6
    parts = batch.chunk(2)
    assert [part.window.tolist() for part in parts] == [[20, 21, 22], [23, 24, 25]]
    assert [part.trajectory.tolist() for part in parts] == [[10, 11, 12], [13, 14, 15]]
    assert parts[0].parameters.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert parts[1].parameters.tolist() == [[6.0, 7.0], [8.0, 9.0], [10.0, 11.0]]
    assert torch.equal(parts[1].u, batch.u[3:])
    assert [len(part) for part in batch.chunk(3)] == [2, 2, 2]


@pytest.mark.parametrize("space", [(3,), (3, 4)])
@pytest.mark.parametrize("num_parameters", [0, 2])
def test_batch_cat_undoes_chunk(space, num_parameters):
    batch = make_numbered_batch(6, space, num_parameters)
    joined = Batch.cat(iter(batch.chunk(3)))
    for name in ("u", "parameters", "trajectory", "window"):
        assert torch.equal(getattr(joined, name), getattr(batch, name))


def test_batch_cat_joins_batches_of_different_lengths_in_order():
    joined = Batch.cat([make_numbered_batch(2), make_numbered_batch(3), make_numbered_batch(1)])
    assert joined.u.shape == (6, 2, 3, 1)
    assert joined.trajectory.tolist() == [10, 11, 10, 11, 12, 10]
    assert joined.window.tolist() == [20, 21, 20, 21, 22, 20]
    assert joined.parameters[:, 0].tolist() == [0.0, 2.0, 0.0, 2.0, 4.0, 0.0]
    assert joined.u[:, 0, 0, 0].tolist() == [0.0, 6.0, 0.0, 6.0, 12.0, 0.0]


def test_batch_to_moves_every_tensor_and_leaves_the_batch_alone():
    batch = make_numbered_batch()
    moved = batch.to("meta")
    for name in ("u", "parameters", "trajectory", "window"):
        before, after = getattr(batch, name), getattr(moved, name)
        assert (before.device.type, after.device.type) == ("cpu", "meta")
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
    same = batch.to(torch.device("cpu"))
    assert torch.equal(same.u, batch.u)
    assert torch.equal(same.window, batch.window)


@pytest.mark.parametrize("name", ["u", "parameters", "trajectory", "window"])
def test_batch_is_refused_when_lengths_or_ranks_differ(name):
    parts = {
        "u": torch.zeros(3, 2, 4, 1),
        "parameters": torch.zeros(3, 1),
        "trajectory": torch.zeros(3, dtype=torch.int64),
        "window": torch.zeros(3, dtype=torch.int64),
    }
    Batch(**parts)
    Batch(**{**parts, "parameters": torch.zeros(3, 0)})
    # too short, and without the last axis
    for wrong in (parts[name][:2], parts[name][..., 0]):
        with pytest.raises(ValueError, match="a batch must be u"):
            Batch(**{**parts, name: wrong})


# ---------------------------------------------------------------- the datamodule: splits, scale


def read_module(path, **changes):
    settings = {
        "nu": 0.5,
        "num_train": 3,
        "num_validation": 2,
        "num_test": 4,
        "unroll_steps": 2,
        "batch_size": 6,
    }
    data = BurgersDataModule(path=path, **{**settings, **changes})
    data.equation = AT_REST
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("in_memory", [True, False])
def test_splits_of_a_file_are_train_first_test_last_validation_before_it(tmp_path, in_memory):
    path = str(write_file(tmp_path / "a.hdf5", codes(12, 5, 8)))
    data = read_module(path, in_memory=in_memory, eval_batch_size=3, augmentation=NO_AUGMENTATION)
    assert len(data.train_sources) == 3
    trained = torch.cat([batch.u for batch in data.train_dataloader()])
    assert {trajectory_of(value) for value in trained[:, 0, 0, 0].tolist()} == {0, 1, 2}
    for split, loader, rows, sizes in (
        ("validation", data.val_dataloader(), [6, 7], [2]),
        ("test", data.test_dataloader(), [8, 9, 10, 11], [3, 1]),
    ):
        batches = list(loader)
        assert [len(batch) for batch in batches] == sizes
        u = torch.cat([batch.u for batch in batches])
        assert torch.equal(u, torch.from_numpy(codes(12, 5, 8)[rows])[..., None])
        assert torch.equal(data.values[split], u)
        for name in ("trajectory", "window"):
            numbers = torch.cat([getattr(batch, name) for batch in batches])
            assert numbers.tolist() == list(range(len(rows)))
        parameters = torch.cat([batch.parameters for batch in batches])
        assert parameters.tolist() == [[0.5]] * len(rows)


@pytest.mark.parametrize("in_memory", [True, False])
def test_splits_of_two_files_hold_the_rows_and_parameter_of_each_file(tmp_path, in_memory):
    values = codes(12, 5, 8)
    paths = [
        str(write_file(tmp_path / f"Nu{nu}.hdf5", sign * values))
        for nu, sign in ((0.5, 1), (0.25, -1))
    ]
    data = read_module(
        paths,
        nu=None,
        in_memory=in_memory,
        eval_batch_size=3,
        augmentation={**NO_AUGMENTATION, "max_time_rescale": 1},
    )
    assert data.training_parameters == [[0.5], [0.25]]
    batches = list(data.test_dataloader())
    assert [(len(batch), batch.parameters.unique(dim=0).tolist()) for batch in batches] == [
        (3, [[0.5]]), (1, [[0.5]]), (3, [[0.25]]), (1, [[0.25]]),
    ]  # fmt: skip
    u = torch.cat([batch.u for batch in batches])
    expected = np.concatenate([values[8:], -values[8:]])[..., None]
    assert torch.equal(u, torch.from_numpy(expected))
    assert torch.cat([batch.trajectory for batch in batches]).tolist() == list(range(8))
    validation = torch.cat([batch.u for batch in data.val_dataloader()])
    expected = np.concatenate([values[6:8], -values[6:8]])[..., None]
    assert torch.equal(validation, torch.from_numpy(expected))
    seen = set()
    for batch in data.train_dataloader():
        for field, nu, trajectory in zip(batch.u, batch.parameters, batch.trajectory, strict=True):
            first = field[0, 0, 0].item()
            seen.add((first < 0, trajectory_of(abs(first)), nu.item(), trajectory.item()))
    assert seen == {(False, k, 0.5, k) for k in range(3)} | {
        (True, k, 0.25, 3 + k) for k in range(3)
    }
    assert {name: parameters.tolist() for name, parameters in data.parameters.items()} == {
        "train": [[0.5]] * 3 + [[0.25]] * 3,
        "validation": [[0.5]] * 2 + [[0.25]] * 2,
        "test": [[0.5]] * 4 + [[0.25]] * 4,
    }


def amplitudes():
    """Nine trajectories of three frames and four points, of sizes that grow fast, around 1."""
    rng = np.random.default_rng(3)
    return (1.0 + rng.normal(size=(9, 3, 4)) * 2.0 ** np.arange(9)[:, None, None]).astype(
        np.float32
    )


@pytest.mark.parametrize("in_memory", [True, False])
def test_std_is_that_of_the_training_trajectories_of_all_files(tmp_path, in_memory):
    values = amplitudes()
    paths = [str(write_file(tmp_path / f"Nu{nu}.hdf5", nu * values)) for nu in (0.5, 4)]
    for path, nu, parts in ((paths[0], 0.5, [0.5]), (paths, None, [0.5, 4.0])):
        data = read_module(path, nu=nu, in_memory=in_memory)
        known = np.concatenate([(part * values[:3]).astype(np.float64).ravel() for part in parts])
        mean = sum(known) / len(known)
        expected = math.sqrt(sum((value - mean) ** 2 for value in known) / len(known))
        assert data.spec.std == pytest.approx((expected,), rel=1e-6)
        assert data.spec.mean == (0.0,)  # the mean stays in the field


def test_amplitude_cap_is_the_four_fifths_quantile_of_the_largest_initial_values(tmp_path):
    values = amplitudes()
    values[:, 1:] *= 100  # only first frames count
    data = read_module(str(write_file(tmp_path / "a.hdf5", values)))
    small, middle, large = sorted(np.abs(values[:3, 0]).max(-1).tolist())
    assert small < middle < large
    # of three values the 0.8 quantile is 0.6 of the way from the second to the third
    assert data.amplitude_cap == pytest.approx(middle + 0.6 * (large - middle), rel=1e-6)
    assert data.train_dataloader().dataset.amplitude_cap == data.amplitude_cap


def test_streamed_std_is_taken_from_all_over_the_training_trajectories(tmp_path):
    # too many to read: some are. The first half is small, the second large
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1204, 2, 32))
    values[600:] *= 3.0
    values[1200:] *= 1000.0
    path = str(write_file(tmp_path / "a.hdf5", values))
    sizes = {"num_train": 1200, "num_validation": 2, "num_test": 2, "unroll_steps": 1}
    data = read_module(path, **sizes, in_memory=False, augmentation=NO_AUGMENTATION)
    assert data.spec.std == pytest.approx((math.sqrt((1 + 9) / 2),), rel=0.02)
    assert len(data.train_sources) == 1200
    # windows are those of all trajectories, not of the ones that were read
    windows = [
        data.train_dataloader().dataset[w] for w in list(data.train_dataloader().sampler)[:9]
    ]
    trajectory = torch.cat([batch.trajectory for batch in windows])
    assert trajectory.max() > 1000
    expected = torch.from_numpy(values.astype(np.float32))[trajectory][..., None]
    assert torch.equal(torch.cat([batch.u for batch in windows]), expected)


@pytest.mark.parametrize("size", [1e-13, 1e13])
def test_data_are_refused_when_their_std_is_too_small_or_too_large(tmp_path, size):
    path = str(write_file(tmp_path / "a.hdf5", amplitudes() * size))
    with pytest.raises(UpsError, match="standard deviation"):
        read_module(path)


def test_stride_of_a_trajectory_is_bounded_by_parameter_setting_and_length(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 9, 4))
    nus = (1.0, 3.0, 5.0, 9.0)
    paths = [str(write_file(tmp_path / f"Nu{nu:g}.hdf5", values)) for nu in nus]
    settings = {
        "nu": None,
        "num_train": 2,
        "num_validation": 1,
        "num_test": 1,
        "samples_per_trajectory": 200,
    }
    for window, stretch, expected in (
        (1, 20, [8, 3, 1, 1]),  # eight frames on: the ninth frame is the last
        (1, 4, [4, 3, 1, 1]),
        (4, 20, [2, 2, 1, 1]),
        (1, 1, [1, 1, 1, 1]),
    ):
        data = read_module(
            paths, **settings, unroll_steps=window, augmentation={"max_time_rescale": stretch}
        )
        found = drawn(data.train_dataloader().sampler)
        file = found["trajectory"] // 2
        largest = [int(found["stride"][file == k].max()) for k in range(4)]
        assert largest == expected
        assert (found["start"] + window * found["stride"]).max() == 8


def test_stride_reaches_a_parameter_that_is_a_whole_multiple_but_for_rounding(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 9, 4))
    paths = [str(write_file(tmp_path / f"Nu{nu}.hdf5", values)) for nu in (0.3, 0.9)]
    assert np.float32(0.9) / np.float32(0.3) < 3
    data = read_module(
        paths, nu=None, num_train=2, num_validation=1, num_test=1, samples_per_trajectory=60
    )
    found = drawn(data.train_dataloader().sampler)
    assert set(found["stride"][found["trajectory"] < 2].tolist()) == {1, 2, 3}
    assert set(found["stride"][found["trajectory"] >= 2].tolist()) == {1}


def test_settings_of_the_datamodule_arrive_in_its_sampler(tmp_path):
    path = str(write_file(tmp_path / "a.hdf5", np.random.default_rng(0).normal(size=(30, 11, 8))))
    sizes = {"num_train": 20, "unroll_steps": 3, "samples_per_trajectory": 50, "batch_size": 10}
    first = drawn(read_module(path, **sizes).train_dataloader().sampler)
    assert len(first["start"]) == 1000
    # the default draws early frames more often: floor(8 r^2)
    law = {s: ((s + 1) / 8) ** 0.5 - (s / 8) ** 0.5 for s in range(8)}
    assert_frequencies(first["start"], law)
    assert_frequencies(first["translate"], dict.fromkeys(range(8), 1 / 8))
    even = drawn(read_module(path, **sizes, start_time_bias=1.0).train_dataloader().sampler)
    assert_frequencies(even["start"], dict.fromkeys(range(8), 1 / 8))
    for name in ("translate", "reflect"):
        off = drawn(
            read_module(path, **sizes, augmentation={name: False}).train_dataloader().sampler
        )
        assert not off[name].any()
    other_order = drawn(read_module(path, **sizes, sampler_seed=1).train_dataloader().sampler)
    assert not np.array_equal(other_order["start"], first["start"])
    other_data = drawn(read_module(path, **sizes, seed=1).train_dataloader().sampler)
    assert np.array_equal(other_data["start"], first["start"])
    by_hand = drawn(
        make_sampler(
            num_trajectories=20,
            samples_per_trajectory=50,
            batch_size=10,
            start_time_bias=2.0,
            seed=1,
        )
    )
    for name in FIELDS:
        assert np.array_equal(other_order[name], by_hand[name])


def test_sampler_of_a_trainer_takes_its_position_rank_and_world(tmp_path):
    path = str(write_file(tmp_path / "a.hdf5", codes(12, 5, 8)))
    sizes = {"samples_per_trajectory": 8, "batch_size": 2}
    for repeat in (False, True):
        data = read_module(path, **sizes, fixed_windows=repeat)
        total = SimpleNamespace(ready=7)
        loop = SimpleNamespace(batch_progress=SimpleNamespace(total=total))
        data.trainer = SimpleNamespace(
            fit_loop=SimpleNamespace(epoch_loop=loop), global_rank=1, world_size=2
        )
        sampler = data.train_dataloader().sampler
        # 24 windows in global batches of 4: six an epoch; batch 7 is the second of the second epoch
        by_hand = make_sampler(
            num_trajectories=3, num_frames=5, unroll_steps=2, samples_per_trajectory=8,
            batch_size=2, start_time_bias=2.0,
            fixed_windows=repeat, rank=1, world=2, start_batch=lambda: 7,
        )  # fmt: skip
        found, expected = drawn(sampler), drawn(by_hand)
        assert len(found["start"]) == 5 * 2
        for name in FIELDS:
            assert np.array_equal(found[name], expected[name])
        total.ready = 11  # read anew at each pass
        assert len(drawn(sampler)["start"]) == 1 * 2


def test_fixed_batches_hold_every_window_by_its_number_at_any_position(tmp_path):
    path = str(write_file(tmp_path / "a.hdf5", codes(12, 9, 8)))
    loader = read_module(path, fixed_windows=True, samples_per_trajectory=8).train_dataloader()
    loader.sampler.start_batch = lambda: 2
    numbered = torch.cat(
        [batch.window for batch in loader.sampler.iter_fixed_batches(loader.dataset)]
    )
    assert numbered.tolist() == list(range(24))
    loader.sampler.start_batch = lambda: (
        8
    )  # the third epoch of four batches: the same windows again
    epochs = list(loader.sampler.iter_fixed_batches(loader.dataset)), list(loader)
    for a, b in zip(*epochs, strict=True):
        assert torch.equal(a.u, b.u)
        assert torch.equal(a.window, b.window)


# ---------------------------------------------------------------- files: thinning, hashes


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize(("time_stride", "space_stride"), [(1, 1), (3, 2), (5, 4)])
def test_downsampling_picks_frames_points_and_coordinates(
    tmp_path, time_stride, space_stride, extra
):
    values = codes(3, 12, 16)
    path = write_file(tmp_path / "a.hdf5", values, dt=0.01, length=2.0, extra=extra)
    file = TrajectoryFile(path, time_stride, space_stride)
    frames = list(range(0, 12, time_stride))
    points = list(range(0, 16, space_stride))
    assert (file.trajectories, file.frames) == (3, len(frames))
    assert file.grid.shape == (len(points),)
    expected = values[:, frames][:, :, points][..., None]
    assert np.array_equal(file.read([2, 0]), expected[[2, 0]])
    assert np.array_equal(file.read([1], 1), expected[[1], 1:])
    assert np.array_equal(file.read([1], 1, 2), expected[[1], 1:3])
    assert np.array_equal(file.read([1], 0, 1), expected[[1], :1])
    assert file.read([0]).dtype == np.float32
    assert file.dt == pytest.approx(0.01 * time_stride, rel=1e-5)
    assert file.grid.extent == (2.0,)
    assert file.grid.is_periodic
    assert file.grid.origin == pytest.approx((1 / 16,), rel=1e-6)
    assert file.grid.axis(0).tolist() == pytest.approx(
        [(i + 0.5) * 2.0 / 16 for i in points], rel=1e-6
    )
    assert file.t == pytest.approx([0.01 * i for i in frames], abs=1e-8)


def test_downsampled_data_arrive_in_the_module(tmp_path):
    values = codes(9, 12, 16)
    path = str(write_file(tmp_path / "a.hdf5", values, dt=0.02, length=2.0))
    data = read_module(path, temporal_downsampling=5, spatial_downsampling=4)
    grid = data.spec.grid
    assert (data.num_frames, data.spec.shape, grid.extent) == (3, (4, 1), (2.0,))
    assert data.spec.dt == pytest.approx(0.1, rel=1e-5)
    assert grid.axis(0).tolist() == pytest.approx([0.0625, 0.5625, 1.0625, 1.5625])
    assert torch.equal(data.values["test"], torch.from_numpy(values[5:, ::5, ::4])[..., None])
    assert np.array_equal(data.train_values, values[:3, ::5, ::4, None])
    assert data.dataset == {
        "name": "burgers-nu0.5",
        "hash": data.dataset["hash"],
        "split": "test",
        "trajectories": 4,
        "points": 4,
        "frames": 3,
        "nu": 0.5,
    }


def written_out_hash(values):
    shape = "(" + ", ".join(map(str, values.shape)) + ")"
    content = shape.encode() + values.astype("<f4").tobytes()
    return hashlib.sha256(content).hexdigest()[:12]


def test_digest_equals_a_hash_of_shape_and_bytes_for_any_parts():
    values = codes(5, 3, 4)
    expected = written_out_hash(values)
    assert digest([values]) == expected
    assert digest([values[:2], values[2:]]) == expected
    assert digest([np.asfortranarray(values)]) == expected
    assert digest([values[..., None]]) == expected  # an axis of one channel does not count
    assert digest([values.reshape(5, 4, 3)]) != expected
    assert digest([np.stack([values, values], -1)]) != digest(
        [np.concatenate([values, values], -1)]
    )
    assert digest([values[::-1]]) != expected
    for place in ((0, 0, 0), (4, 2, 3)):
        changed = values.copy()
        changed[place] = np.nextafter(changed[place], np.float32(np.inf))
        assert digest([changed]) != expected


def test_data_hash_is_that_of_the_downsampled_test_set_alone(tmp_path):
    values = codes(9, 5, 8)

    def hash_of(changed):
        path = str(write_file(tmp_path / f"{len(list(tmp_path.iterdir()))}.hdf5", changed))
        return read_module(path, temporal_downsampling=2, spatial_downsampling=2).dataset["hash"]

    expected = written_out_hash(values[5:, ::2, ::2])
    assert hash_of(values) == expected
    for place, same in (
        ((5, 0, 0), False),
        ((8, 4, 6), False),
        ((8, 4, 7), True),
        ((4, 0, 0), True),
    ):
        changed = values.copy()
        changed[place] += 1
        assert (hash_of(changed) == expected) == same, place


@pytest.mark.parametrize(
    ("name", "nu"),
    [
        ("1D_Burgers_Sols_Nu0.02.hdf5", 0.02),
        ("x_nu1e-3_b.hdf5", 0.001),
        ("nu2.hdf5", 2.0),
        ("NU1.5E-2", 0.015),
    ],
)
def test_parameter_is_read_from_the_name_of_the_file(name, nu):
    assert BurgersDataModule(path=name, nu=None).training_parameters == [[nu]]
    assert BurgersDataModule(path=name, nu=nu).training_parameters == [[nu]]
    assert BurgersDataModule(path=name, nu=2 * nu).training_parameters == [[2 * nu]]


def test_parameter_of_advection_is_its_beta():
    path = "1D_Advection_Sols_beta0.4_nu3.hdf5"
    read = TrajectoryDataModule(path=path, nu=None, equation="advection")
    assert read.training_parameters == [[0.4]]
    made = TrajectoryDataModule(nu=[0.4, 1.0], equation="advection")
    assert [path.name.rpartition("-")[0] for _, path in made.parts] == [
        "advection-beta0.4",
        "advection-beta1",
    ]


# ---------------------------------------------------------------- generated data

SMALL = {
    "num_points": 16,
    "reference_num_points": 32,
    "num_frames": 4,
    "dt": 0.03,
    "num_train": 40,
    "num_validation": 5,
    "num_test": 6,
    "unroll_steps": 2,
}
SIZES = {"train": 40, "validation": 5, "test": 6}


def make_module(folder, **changes):
    data = BurgersDataModule(cache_dir=str(folder), **{**SMALL, **changes})
    data.prepare_data()
    data.setup()
    return data


def first_frames(data):
    """(split, nu) -> initial conditions (N, X) of a generated data set of one channel."""
    found = {}
    train = torch.from_numpy(data.train_values)
    for split, values in {"train": train, **data.values}.items():
        for (nu, _), part in zip(data.parts, values.split(SIZES[split]), strict=True):
            found[split, nu] = part[:, 0, :, 0]
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Generated data of two viscosities."""
    return make_module(tmp_path_factory.mktemp("two"), nu=[0.01, 0.3])


def test_generated_initial_conditions_are_pairwise_different_over_splits_and_parameters(two):
    fields = torch.cat(list(first_frames(two).values()))
    assert len(fields) == 2 * (40 + 5 + 6)
    distance = torch.cdist(fields, fields) + 100 * torch.eye(len(fields))
    assert distance.min() > 0.02


def test_generated_initial_conditions_are_those_of_the_seeds_of_the_recipe(two):
    # of file p, split i: seed 3 (data.seed + p) + i, on the fine grid; every second point is kept
    x = (torch.arange(32) + 0.5) / 32
    for part, nu in enumerate((0.01, 0.3)):
        for i, split in enumerate(("train", "validation", "test")):
            fine = periodic_1d.initial_conditions(SIZES[split], x, 3 * part + i)
            assert torch.allclose(first_frames(two)[split, nu], fine[:, ::2], atol=1e-7)


def test_generated_data_seed_changes_every_initial_condition(two, tmp_path):
    other = make_module(tmp_path, nu=0.01, seed=7)
    mine, others = first_frames(two), first_frames(other)
    for split in SIZES:
        fine = periodic_1d.initial_conditions(
            SIZES[split], periodic_1d.cell_centers(32), 21 + list(SIZES).index(split)
        )
        assert torch.allclose(others[split, 0.01], fine[:, ::2], atol=1e-7)
    fields = torch.cat(list(mine.values()))
    assert torch.cdist(fields, torch.cat(list(others.values()))).min() > 0.02
    assert other.path != two.path
    assert other.dataset["hash"] != two.dataset["hash"]


def test_generated_trajectories_are_solved_with_their_own_parameter_and_stay_in_order(two):
    found = torch.from_numpy(two.train_values)[..., 0]
    assert found.shape == (80, 4, 16)
    for part, nu in enumerate((0.01, 0.3)):
        fine = periodic_1d.initial_conditions(40, periodic_1d.cell_centers(32), 3 * part)
        u = burgers.solve(fine, [0.0, 0.03, 0.06, 0.09], nu)[..., ::2]
        assert torch.allclose(found[40 * part : 40 * part + 40], u, atol=1e-6)


def test_generated_file_holds_its_splits_in_order_with_recipe_and_hash(two):
    for part, (nu, path) in enumerate(two.parts):
        with h5py.File(path) as file:
            values = file["tensor"][:]
            assert values.shape == (51, 4, 16)
            assert file["tensor"].dtype == np.float32
            fine = (np.arange(32) + 0.5) / 32
            assert file["x-coordinate"][:] == pytest.approx(fine[::2])
            assert file["t-coordinate"][:] == pytest.approx([0.0, 0.03, 0.06, 0.09, 0.12])
            assert file.attrs["hash"] == written_out_hash(values)
            assert json.loads(file.attrs["recipe"]) == {
                "equation": "burgers", "version": 2, "initial_conditions": "published",
                "nu": nu, "seed": part, "points": 16,
                "solver_points": 32, "dt": 0.03, "frames": 4,
                "train": 40, "validation": 5, "test": 6,
            }  # fmt: skip
        own = values[..., None]
        assert np.array_equal(two.train_values[40 * part : 40 * part + 40], own[:40])
        assert np.array_equal(two.values["validation"][5 * part : 5 * part + 5], own[40:45])
        assert np.array_equal(two.values["test"][6 * part : 6 * part + 6], own[45:])
    tests = two.values["test"].numpy()[..., 0]
    assert two.dataset["hash"] == written_out_hash(tests)
    assert two.dataset["trajectories"] == 12
    assert (two.spec.dt, two.spec.grid.extent) == (pytest.approx(0.03), (1.0,))
    x = two.spec.grid.axis(0).tolist()
    assert x == pytest.approx([(2 * i + 0.5) / 32 for i in range(16)])


@pytest.mark.parametrize("row", [0, 39, 40, 44, 45, 50])
def test_changed_value_of_a_generated_file_is_refused_in_every_split(two, tmp_path, row):
    data = BurgersDataModule(cache_dir=str(tmp_path), **SMALL, nu=[0.01, 0.3])
    for (_, path), (_, source) in zip(data.parts, two.parts, strict=True):
        path.write_bytes(source.read_bytes())
    with h5py.File(data.parts[1][1], "r+") as file:
        value = file["tensor"][row, 3, 15]
        file["tensor"][row, 3, 15] = np.nextafter(value, np.float32(9))
    with pytest.raises(UpsError, match="not those that were written"):
        data.setup()


def test_planned_bytes_are_those_of_the_missing_files(two, tmp_path):
    with h5py.File(two.path) as file:
        each = file["tensor"].size * file["tensor"].dtype.itemsize
    data = BurgersDataModule(cache_dir=str(tmp_path), **SMALL, nu=[0.01, 0.3])
    assert data.to_be_made() == 2 * 2 * each  # files, and what they are put together of
    data.parts[0][1].touch()
    assert data.to_be_made() == 2 * each
    assert two.to_be_made() == 0
    assert BurgersDataModule(path="nu0.5", nu=None).to_be_made() == 0


def test_memory_and_disk_checks_get_the_training_data_and_the_missing_files(monkeypatch, tmp_path):
    asked = {"check_memory": [], "check_disk_space": []}
    for name, calls in asked.items():
        monkeypatch.setattr(
            f"ups.datamodules.trajectories.{name}", lambda *args, calls=calls: calls.append(args)
        )
    data = make_module(tmp_path, nu=[0.01, 0.3])
    each = (40 + 5 + 6) * 4 * 16 * 4
    assert [planned for _, planned, _ in asked["check_disk_space"]] == [4 * each, 2 * each]
    assert [path for path, _, _ in asked["check_disk_space"]] == [path for _, path in data.parts]
    held_out = sum(values.nbytes for values in data.values.values())
    assert [planned for planned, _ in asked["check_memory"]] == [data.train_values.nbytes, held_out]
    assert data.train_values.nbytes == 2 * 40 * 4 * 16 * 4
    make_module(tmp_path, nu=[0.01, 0.3], in_memory=False)
    assert len(asked["check_disk_space"]) == 2
    # the other splits are in memory in any case
    assert [planned for planned, _ in asked["check_memory"][2:]] == [held_out]


def test_generated_file_is_named_by_what_decides_its_values():
    def name(**changes):
        settings = {"equation": "burgers", "nu": 0.001, **SMALL, **changes}
        return TrajectoryDataModule(**settings).path.name

    deciding = {
        "num_points": 8, "reference_num_points": 64, "num_frames": 5, "dt": 0.04,
        "num_train": 41, "num_validation": 6, "num_test": 7,
        "nu": 0.5, "seed": 1, "equation": "advection", "initial_conditions": "paper",
        "start_time": 1.0,
    }  # fmt: skip
    others = {
        "unroll_steps": 1, "samples_per_trajectory": 3, "batch_size": 1, "eval_batch_size": 1,
        "augmentation": {**NO_AUGMENTATION, "max_time_rescale": 1},
        "start_time_bias": 1.0, "fixed_windows": True,
        "in_memory": False, "num_workers": 1, "sampler_seed": 1, "observed_points": 4,
    }  # fmt: skip
    names = {name(**{key: value}) for key, value in deciding.items()}
    assert len(names | {name()}) == len(deciding) + 1
    assert {name(**{key: value}) for key, value in others.items()} == {name()}


def test_burgers_data_module_differs_from_the_common_one_by_its_defaults_alone():
    common = inspect.signature(TrajectoryDataModule).parameters
    defaults = {name: value.default for name, value in common.items() if name != "equation"}
    own = {"equation": "burgers", "nu": DEFAULT_NU, "start_time_bias": 2.0}
    assert dict(BurgersDataModule().hparams) == {**defaults, **own}
    changed = {"path": "Nu0.1.hdf5", "nu": 0.1, "augmentation": {"translate": False}}
    changed["observed_points"] = 64
    for key, default in defaults.items():
        if key == "initial_conditions":
            changed[key] = "paper"
        elif key not in changed:
            changed[key] = f"{default}/x" if isinstance(default, str) else default + 1
    data = BurgersDataModule(**changed)
    assert dict(data.hparams) == {**changed, "equation": "burgers"}  # each arrives as itself
    assert BurgersDataModule("Nu0.1.hdf5", nu=None).training_parameters == [[0.1]]
    with pytest.raises(TypeError, match="equation"):
        TrajectoryDataModule(nu=0.1)
    with pytest.raises(TypeError, match="equation"):
        BurgersDataModule(equation="advection")


def test_generated_points_must_divide_those_of_the_solver():
    words = r"`data\.num_points` must be a divisor of data\.reference_num_points=64, got 48"
    with pytest.raises(UpsError, match=words):
        BurgersDataModule(num_points=48, reference_num_points=64)
    with pytest.raises(UpsError, match=r"`data\.path` must be a PDEBench file, .*; got null"):
        TrajectoryDataModule(equation="burgers", nu=None)


# ---------------------------------------------------------------- the equations' common line


def test_cell_centers_are_half_a_cell_from_the_ends():
    assert periodic_1d.cell_centers(4).tolist() == [0.125, 0.375, 0.625, 0.875]
    assert periodic_1d.cell_centers(4, 2.0).tolist() == [0.25, 0.75, 1.25, 1.75]


def test_initial_conditions_equal_the_written_out_sum():
    n, length, seed = 60, 2.0, 5
    x = [0.05, 0.4, 0.9, 1.3, 1.95]
    rng = np.random.default_rng(seed)
    numbers = rng.integers(1, 5, size=(n, 2))
    amplitude = rng.uniform(0, 1, (n, 4))
    phase = rng.uniform(0, 2 * np.pi, (n, 4))
    absolute = rng.uniform(size=n) < 0.1
    sign = rng.choice([-1.0, 1.0], size=n)
    rng.uniform(size=(2, n))  # the ends of the windows of the paper
    place = rng.uniform(size=n)
    left, right, windowed = 0.1 + 0.35 * place, 0.55 + 0.35 * place, place < 0.1
    assert absolute.any()
    assert windowed.any()
    expected = np.zeros((n, len(x)))
    for row in range(n):
        for column, position in enumerate(x):
            value = 0.0
            for k in (1, 2, 3, 4):
                times = list(numbers[row]).count(k)  # if none, it adds a constant
                angle = 2 * math.pi * k * times * position / length + phase[row, k - 1]
                value += amplitude[row, k - 1] * math.sin(angle)
            value = sign[row] * (abs(value) if absolute[row] else value)
            if windowed[row]:
                rise = math.tanh((position / length - left[row]) / 0.01)
                fall = math.tanh((position / length - right[row]) / 0.01)
                value *= (rise - fall) / 2
            expected[row, column] = value
    found = periodic_1d.initial_conditions(n, torch.tensor(x), seed, length)
    assert found.numpy() == pytest.approx(expected, abs=3e-6)


def test_initial_conditions_have_the_frequencies_of_their_description():
    n, x = 6000, periodic_1d.cell_centers(128)
    u = periodic_1d.initial_conditions(n, x, seed=11, as_published=False).double()

    def assert_share(found, total, share):
        assert abs(int(found) - total * share) < 5 * math.sqrt(total * share * (1 - share))

    one_signed = (u >= -1e-6).all(1) | (u <= 1e-6).all(1)
    # a window keeps at least the middle tenth, and nothing at the ends
    windowed = (u[:, :4].abs().amax(1) < 1e-4) & (u[:, -4:].abs().amax(1) < 1e-4)
    assert_share(windowed.sum(), n, 0.1)
    unwindowed = u[~windowed]
    absolute = one_signed[~windowed]
    assert_share(absolute.sum(), len(unwindowed), 0.1)
    positive = unwindowed[absolute].mean(1) > 0
    assert_share(positive.sum(), int(absolute.sum()), 0.5)
    plain = unwindowed[~absolute]
    waves = 2 * torch.fft.rfft(plain, norm="forward")  # a sin(kx + p): |waves[k]| = a
    present = waves.abs()[:, :9] > 1e-4
    single = present.sum(1) == 1
    assert_share(single.sum(), len(plain), 0.25)
    # a number drawn twice doubles the wave number
    number = present[single].double().argmax(1)
    for k in (2, 4, 6, 8):
        assert_share((number == k).sum(), len(number), 0.25)
    assert set(number.tolist()) == {2, 4, 6, 8}
    double = present[~single]
    assert not double[:, 5:].any()
    for k in (1, 2, 3, 4):
        assert_share(double[:, k].sum(), len(double), 0.5)
    amplitude = waves.abs()[:, :9][present]
    phase = waves.angle()[:, :9][present]
    for quarter in range(4):
        inside = (amplitude >= quarter / 4) & (amplitude < (quarter + 1) / 4)
        assert_share(inside.sum(), len(amplitude), 0.25)
        inside = ((phase + math.pi) / (2 * math.pi) * 4).long().clamp(0, 3) == quarter
        assert_share(inside.sum(), len(phase), 0.25)


def test_integrals_of_the_line_equal_sums():
    u = torch.tensor([[1.0, -2.0, 4.0, 0.5], [0.0, 0.0, 3.0, 0.0]])
    assert periodic_1d.mass(u, 2.0).tolist() == [3.5 / 4 * 2, 3.0 / 4 * 2]
    assert periodic_1d.mass(u).tolist() == [3.5 / 4, 3.0 / 4]
    assert periodic_1d.energy(u, 2.0).tolist() == [21.25 / 4, 9.0 / 4]
    assert periodic_1d.energy(u).tolist() == [21.25 / 8, 9.0 / 8]
    assert periodic_1d.total_variation(u).tolist() == [3 + 6 + 3.5 + 0.5, 6.0]


def test_half_slopes_are_those_of_van_leer_where_neighbors_agree():
    a = torch.tensor([1.0, -1.0, 1.0, 0.0, 2.0])
    b = torch.tensor([3.0, -3.0, -3.0, 2.0, 2.0])
    # half of the harmonic mean 2ab / (a + b)
    assert limiters.van_leer_half_slopes(a, b).tolist() == pytest.approx(
        [0.75, -0.75, 0.0, 0.0, 1.0]
    )


# ---------------------------------------------------------------- configuration


@pytest.fixture(scope="module")
def composed():
    """The data's part of the configuration by choice."""
    with initialize_config_dir(CONF, version_base="1.3"):
        choices = ("burgers", "advection", "pdebench", "pdebench_advection")
        found = {
            name: compose("config", [f"data={name}", "seed=5", "data.path=Nu0.5_beta0.4"]).data
            for name in choices
        }
    hydra.core.global_hydra.GlobalHydra.instance().clear()
    return found


def test_configured_data_arrive_in_the_module(composed):
    for config in composed.values():
        data = instantiate({**config, "nu": None}, _convert_="all")
        assert isinstance(data, TrajectoryDataModule)
        for key, value in config.items():
            if key not in ("_target_", "nu"):
                assert data.hparams[key] == value, key
        assert config.sampler_seed == 5
        assert config.seed == 0
        assert data.equation_name == config.get("equation", "burgers")
        assert data.equation.name == data.equation_name


def test_configured_files_downsample_pdebench_to_the_grid_of_generated_data(composed):
    # PDEBench: 10000 trajectories, 201 frames of 0.01, 1024 points
    made, read = composed["burgers"], composed["pdebench"]
    assert made.num_frames == len(range(0, 201, read.temporal_downsampling)) == 41
    assert made.num_points == 1024 // read.spatial_downsampling == 256
    assert made.dt == pytest.approx(0.01 * read.temporal_downsampling)
    assert made.reference_num_points == 1024
    assert read.num_train + read.num_validation + read.num_test == 10000
    assert (read.num_train, read.num_validation, read.num_test) == (8900, 100, 1000)
    assert (made.num_train, made.num_validation, made.num_test) == (1000, 100, 128)
    assert (made.temporal_downsampling, made.spatial_downsampling) == (1, 1)
    # of data in a file the file says it
    assert {config.nu for config in composed.values()} == {None}
    assert (made.in_memory, read.in_memory) == (True, False)
    assert composed["pdebench_advection"].temporal_downsampling == read.temporal_downsampling
    assert composed["pdebench"].equation == "burgers"
    for name in ("advection", "pdebench_advection"):
        assert composed[name].equation == "advection"
    earlier = {name: config.start_time_bias for name, config in composed.items()}
    assert earlier == {
        "burgers": 2.0, "pdebench": 2.0, "advection": 1.0, "pdebench_advection": 1.0,
    }  # fmt: skip
    for config in composed.values():
        assert config.augmentation == {"translate": True, "reflect": True, "max_time_rescale": 3}
        assert not config.fixed_windows
        assert (config.unroll_steps, config.samples_per_trajectory) == (3, 10)
