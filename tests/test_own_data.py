"""One's own arrays: what is read of them, how they are split, and what is not assumed of them."""

import dataclasses
import pickle

import h5py
import numpy as np
import pytest
import torch
import xarray
import zarr
from conftest import make_simulator

import ups
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.datamodules import OwnDataModule
from ups.datamodules.observed import is_homogeneous
from ups.datamodules.readers.arrays import ArrayFile
from ups.hub.model_card import render_model_card
from ups.models import build
from ups.modules.losses import operator_errors
from ups.simulation.simulator import Simulator

N, T, X = 20, 6, 16
PLACE = (np.arange(X) + 0.5) / X


def waves(n=N, t=T, x=X, channels=None, offset=0.0):
    """Travelling sines; each channel is faster than the one before."""
    k = np.arange(n)[:, None, None]
    phase = np.arange(x) / x - 0.03 * np.arange(t)[:, None] + 0.1 * k
    fields = [np.sin(2 * np.pi * phase * (c + 1)) + offset for c in range(channels or 1)]
    return fields[0] if channels is None else np.stack(fields, -1)


@pytest.fixture(params=["npy", "npz", "h5", "hdf5", "zarr", "nc"])
def written(request, tmp_path):
    """Writes fields, and other arrays where the format has a place for them."""

    def write(u, **others):
        path = tmp_path / f"x.{request.param}"
        arrays = {"u": u, **others}
        if request.param == "npy":
            np.save(path, u)
        elif request.param == "npz":
            np.savez(path, **arrays)
        elif request.param in ("h5", "hdf5"):
            with h5py.File(path, "w") as file:
                for name, array in arrays.items():
                    file[name] = array
        elif request.param == "zarr":
            group = zarr.open_group(str(path), mode="w")
            for name, array in arrays.items():
                group[name] = np.asarray(array)
        else:
            axes = {"t": ("t",), "x": ("x",), "u": ("n", "t", "x", "c")[: u.ndim]}
            found = {name: (axes.get(name, ("n",)), array) for name, array in arrays.items()}
            xarray.Dataset(found).to_netcdf(path, engine="h5netcdf")
        return path

    return write


@pytest.mark.parametrize("channels", [None, 2])
def test_every_format_gives_the_same_fields(written, channels):
    u = waves(channels=channels)
    file = ArrayFile(written(u), dt=0.5, length=3.0)
    assert (file.trajectories, file.frames, file.dt) == (N, T, 0.5)
    assert (file.grid.shape, file.grid.extent) == ((X,), (3.0,))
    expected = u.reshape(N, T, X, -1).astype(np.float32)
    assert np.array_equal(file.read([3, 0]), expected[[3, 0]])
    assert np.array_equal(file.read([1], start=2, frames=3), expected[1:2, 2:5])
    again = pickle.loads(pickle.dumps(file))
    assert np.array_equal(again.read([5]), expected[[5]])


def test_a_file_says_times_positions_and_parameters(tmp_path):
    t, x = np.float32(np.arange(T) * 0.2), 2 + 4 * PLACE
    np.savez(tmp_path / "x.npz", u=waves(), t=t, x=x, mach=np.linspace(0.1, 2, N))
    file = ArrayFile(tmp_path / "x.npz")
    assert file.dt == pytest.approx(0.2)
    assert file.grid.extent[0] == pytest.approx(4.0)
    assert file.grid.origin == pytest.approx((2 + 2 / X,))
    assert list(file.parameters) == ["mach"]
    assert file.parameters["mach"] == pytest.approx(np.linspace(0.1, 2, N))
    given = ArrayFile(tmp_path / "x.npz", dt=7.0, length=9.0)  # the user's word is final
    assert (given.dt, given.grid.extent) == (7.0, (9.0,))


def test_frames_and_points_are_thinned(tmp_path):
    u = waves(t=8)
    np.save(tmp_path / "x.npy", u)
    file = ArrayFile(tmp_path / "x.npy", 3, 4, dt=0.5, length=2.0)
    assert (file.frames, file.dt, file.grid.shape, file.grid.extent) == (3, 1.5, (4,), (2.0,))
    assert np.array_equal(file.read([2])[..., 0], u[2:3, ::3, ::4].astype(np.float32))
    assert np.array_equal(file.read([2], 1, 2)[..., 0], u[2:3, 3::3, ::4].astype(np.float32))


@pytest.mark.parametrize("known", [{"length": 2.0}, {"x": np.linspace(0, 2, X + 1)}])
def test_a_last_point_that_repeats_the_first_is_left_out(tmp_path, known):
    u = waves()
    both = np.concatenate((u, u[..., :1]), -1)
    length = known.pop("length", None)
    np.savez(tmp_path / "x.npz", u=both, **known)
    file = ArrayFile(tmp_path / "x.npz", dt=1.0, length=length)
    assert (file.grid.shape, file.grid.extent) == ((X,), (pytest.approx(2.0),))
    assert np.array_equal(file.read(range(N))[..., 0], u.astype(np.float32))


CENTERS = (np.arange(32) + 0.5) / 32
NODES = np.linspace(0, 1, 32)


@pytest.mark.parametrize(
    ("u", "x", "length", "points", "extent"),
    [
        (np.cos(2 * np.pi * CENTERS), CENTERS, None, 32, 1.0),
        (np.cos(2 * np.pi * CENTERS), CENTERS, 1.0, 32, 1.0),
        (np.cos(2 * np.pi * CENTERS), None, 1.0, 32, 1.0),
        (np.cos(2 * np.pi * NODES), NODES, None, 31, 1.0),
        (np.cos(2 * np.pi * NODES), NODES, 1.0, 31, 1.0),
        (np.ones(32), np.arange(32) / 32, None, 32, 1.0),
        (np.exp(-((CENTERS - 0.5) ** 2) / 1e-3), CENTERS, None, 32, 1.0),
    ],
    ids=["cells", "cells-of-a-length", "a-length", "both-ends", "both-ends-of-a-length", "flat",
         "a-bump"],
)  # fmt: skip
def test_fields_that_are_their_own_mirror_images_keep_their_points(
    tmp_path, u, x, length, points, extent
):
    sizes = np.random.default_rng(0).uniform(1, 2, (N, T, 1))
    np.savez(tmp_path / "x.npz", u=sizes * u, **({} if x is None else {"x": x}))
    file = ArrayFile(tmp_path / "x.npz", dt=1.0, length=length)
    assert (file.grid.shape, file.grid.extent) == ((points,), (pytest.approx(extent),))


def test_equal_ends_that_nothing_explains_are_said_once(tmp_path, caplog):
    sizes = np.random.default_rng(0).uniform(1, 2, (N, T, 1))
    np.save(tmp_path / "x.npy", sizes * np.exp(-((NODES - 0.5) ** 2) / 1e-3))
    for _ in range(2):
        assert ArrayFile(tmp_path / "x.npy", dt=1.0, length=1.0).grid.shape == (32,)
    assert caplog.text.count("equal at both ends along x, and all points are kept") == 1


@pytest.mark.parametrize("kind", ["f2", "f4", ">f8", "i2", "u1"])
def test_real_numbers_of_every_kind_are_read(tmp_path, kind):
    u = np.round(100 + 50 * waves()).astype(kind)
    np.save(tmp_path / "x.npy", u)
    file = ArrayFile(tmp_path / "x.npy", dt=1.0, length=1.0)
    assert file.read([0]).dtype == np.float32
    assert np.array_equal(file.read([0])[0, ..., 0], u[0].astype(np.float32))


@pytest.mark.parametrize(
    ("arrays", "given", "words"),
    [
        ({"u": waves()}, {}, "doesn't say its data.dt and data.length: give data.dt=... data.leng"),
        ({"u": waves()}, {"dt": 1.0}, "doesn't say its data.length"),
        ({"u": waves()[0]}, {"dt": 1.0, "length": 1.0}, "it holds u \\(6, 16\\)"),
        ({"a": waves(), "b": waves()}, {}, "`data.field` must name .* got None; it holds a \\(20"),
        ({"a": waves()}, {"field": "v"}, "got 'v'"),
        ({"u": waves() + 1j}, {}, "must be real numbers .* got complex128"),
        (
            {"u": np.zeros((3, 4, 16, 12))},
            {},
            "`data.num_dims` must be given: .* in 1D with 12 channels, or in 2D without",
        ),
        ({"u": np.zeros((3, 4, 4, 4, 4, 4, 4))}, {"field": "u"}, "must be real numbers with the"),
        ({"u": np.zeros((0, 4, 32))}, {}, "must be real numbers with the axes"),
        (
            {"u": waves(), "t": np.arange(T) ** 2.0 + 1},
            {"length": 1.0},
            "'t' must be evenly spaced",
        ),
        ({"u": waves(), "t": np.arange(4.0)}, {"length": 1.0}, "'t' must be 6 finite, increasing"),
        (
            {"u": waves(), "re": np.linspace(-1, 1, N)},
            {"dt": 1.0, "length": 1.0},
            "the parameter 're' must be positive and finite, got -1 to 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path, arrays, given, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UpsError, match=words) as refusal:
        ArrayFile(tmp_path / "x.npz", **given)
    assert "\n" not in str(refusal.value)


def test_values_that_are_not_finite_are_refused_when_they_are_read(tmp_path):
    u = waves()
    u[4, 2, 3] = np.nan
    np.save(tmp_path / "x.npy", u)
    file = ArrayFile(tmp_path / "x.npy", dt=1.0, length=1.0)
    assert np.isfinite(file.read([3])).all()
    with pytest.raises(UpsError, match="'u' must be finite in float32; trajectory 4 is not"):
        file.read([3, 4])


@pytest.mark.parametrize("name", ["x.csv", "x.npy", "broken.npz", "broken.h5"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    if name.startswith("broken"):
        (tmp_path / name).write_text("no array")
    with pytest.raises(UpsError, match=r"must end with one of|there is no data file|can't be read"):
        ArrayFile(tmp_path / name)


def own(tmp_path, u, name="x.npz", dt=1.0, length=1.0, others=None, **settings):
    np.savez(tmp_path / name, u=u, **(others or {}))
    data = OwnDataModule(str(tmp_path / name), dt, length, **settings)
    data.setup()
    return data


def test_splits_are_drawn_at_random_and_hold_each_trajectory_once(tmp_path):
    u = np.arange(N)[:, None, None] + 0.1 * waves()
    data = own(tmp_path, u)
    first = [data.train_values, data.values["validation"].numpy(), data.values["test"].numpy()]
    rows = [np.round(part.mean((1, 2, 3))).astype(int).tolist() for part in first]
    assert [len(part) for part in rows] == [16, 2, 2]
    assert sorted(row for part in rows for row in part) == list(range(N))
    assert rows[0] != list(range(16))  # sorted data would leave the test beyond the training
    other = own(tmp_path, u, seed=1)
    assert not torch.equal(other.values["test"], data.values["test"])
    fewer = own(tmp_path, u, num_train=5, num_validation=3, num_test=4)
    assert [len(fewer.train_values), *(len(v) for v in fewer.values.values())] == [5, 3, 4]
    with pytest.raises(UpsError, match=r"holds 20 trajectories, too few for data.num_train=18"):
        own(tmp_path, u, num_train=18)
    with pytest.raises(UpsError, match="holds 2 trajectories, too few for"):
        own(tmp_path, u[:2])


def test_each_trajectory_keeps_its_own_parameters(tmp_path):
    strength = np.linspace(1, 5, N)
    data = own(tmp_path, strength[:, None, None] + 0.1 * waves(), others={"strength": strength})
    assert data.spec.parameters == ("strength",)
    for split in ("validation", "test"):
        means = data.values[split].mean((1, 2, 3))
        assert data.parameters[split][:, 0] == pytest.approx(means, abs=1e-5)
    for batch in data.train_dataloader():
        assert batch.parameters[:, 0] == pytest.approx(batch.u.mean((1, 2, 3)), abs=1e-5)
    low, high = data.training_parameters
    trained = data.parameters["train"]
    assert (low, high) == (trained.amin(0).tolist(), trained.amax(0).tolist())


def test_no_equation_no_symmetry_and_no_law_are_assumed(tmp_path):
    u = waves(offset=300.0)
    data = own(tmp_path, u)
    assert data.equation is None
    assert data.dataset["name"] == "x"
    for batch in data.train_dataloader():  # windows are those of the file
        for window, row in zip(batch.u[..., 0].numpy(), batch.trajectory, strict=True):
            frames = data.train_values[row, ..., 0]
            starts = [np.array_equal(window, frames[s : s + len(window)]) for s in range(T)]
            assert any(starts)
    assert data.spec.mean[0] == pytest.approx(300, abs=0.1)
    assert data.spec.conserves_mean
    growing = own(tmp_path, u + np.arange(T)[:, None])
    assert not growing.spec.conserves_mean


@pytest.mark.parametrize("architecture", ["memory_upt", "patch_stepper", "mixer", "resnet"])
def test_a_model_keeps_the_mean_only_of_fields_that_keep_it(architecture):
    spec = make_simulator().spec
    u = torch.randn(2, 32, 1, generator=torch.Generator().manual_seed(0))
    for conserves in (True, False):
        torch.manual_seed(0)
        own_spec = FieldSpec(spec.domain, parameters=("nu",), conserves_mean=conserves)
        config = {"architecture": architecture}
        config |= {} if architecture == "resnet" else {"num_tokens": 8}
        simulator = Simulator(build(config, own_spec), own_spec)
        out = simulator.decode(simulator.step(simulator.encode(u), torch.full((2, 1), 1e-3)))
        assert torch.allclose(out.mean(1), u.mean(1), atol=1e-5) == conserves


def test_networks_are_told_dt_and_parameters_in_the_units_of_the_data():
    spec = make_simulator().spec
    usual = FieldSpec(spec.domain, parameters=("a", "b"), dt=0.05)
    dt, parameters = usual.condition(torch.tensor([[2e-3, 5.0]]))
    assert dt.tolist() == pytest.approx([0.05])
    assert parameters.tolist() == [pytest.approx([2e-3, 5.0])]
    own_units = FieldSpec(
        spec.domain, parameters=("a", "b"), dt=30.0, time_unit=30.0, parameter_units=(1e-3, 5.0)
    )
    dt, parameters = own_units.condition(torch.tensor([[2e-3, 5.0]]))
    assert dt.tolist() == pytest.approx([0.05])
    assert parameters.tolist() == [pytest.approx([2e-3, 1e-3])]
    again = FieldSpec.from_dict(own_units.to_dict())
    assert again == own_units


def test_units_are_those_of_the_training_data(tmp_path):
    data = own(tmp_path, waves(), dt=30.0, others={"a": np.full(N, 8.0), "b": np.full(N, 0.5)})
    assert data.spec.time_unit == 30.0
    assert data.spec.parameter_units == pytest.approx((8.0, 0.5))
    dt, parameters = data.spec.condition(data.parameters["test"])
    assert dt == pytest.approx(torch.full((2,), 0.05))
    assert parameters == pytest.approx(torch.full((2, 2), 1e-3))


@torch.no_grad()
def test_losses_are_relative_to_the_fields_without_the_mean_of_the_data():
    simulator = make_simulator()
    u = torch.randn(3, 3, 32, 1, generator=torch.Generator().manual_seed(1))
    plain = operator_errors(simulator, u, torch.full((3, 1), 1e-3), inverse=True)
    spec = simulator.spec
    moved_spec = dataclasses.replace(spec, mean=(300.0,))
    moved = Simulator(simulator.model, moved_spec)
    found = operator_errors(moved, u + 300, torch.full((3, 1), 1e-3), inverse=True)
    for name, error in plain.items():
        assert found[name] == pytest.approx(error, rel=1e-2)


@pytest.mark.integration
def test_fit_trains_tests_and_returns_a_simulator(tmp_path):
    tmp_path = tmp_path / "runs (2), a=b {c}'s"
    u = waves(offset=10.0)
    settings = [
        "trainer.max_epochs=2", "model.num_tokens=8", "model.depth=2", "model.hidden_channels=8",
        "data.batch_size=4", "data.samples_per_trajectory=2", "preflight=false",
    ]  # fmt: skip
    arguments = {"dt": 0.5, "length": 2.0, "output_dir": tmp_path, "name": "waves"}
    sim = ups.fit(u, **arguments, parameters={"a": np.full(N, 2.0)}, overrides=settings)
    assert (sim.equation, sim.dt, sim.spec.parameters) == (None, 0.5, ("a",))
    out = sim.rollout(torch.from_numpy(u[:2, 0]), 3, parameters={"a": 2.0})
    assert out.shape == (2, 3, X)
    again = ups.fit(u, **arguments, parameters={"a": np.full(N, 2.0)}, overrides=settings)
    assert torch.equal(again.rollout(u[:2, 0], 3, parameters={"a": 2.0}), out)
    rows = (tmp_path / "waves/reports/eval_operator.json").read_text()
    assert "solver" not in rows
    assert "persistence" in rows
    card = render_model_card(tmp_path / "waves", "mine")
    assert "# in Python, with the settings above: ups.fit or ups.pipeline.run" in card
    assert "Burgers" not in card
    with pytest.raises(UpsError, match="`parameters` must be arrays \\(20,\\)"):
        ups.fit(u, **arguments, parameters={"a": [1.0, 2.0]})
    with pytest.raises(UpsError, match=r"settings of a run: `optimiser` is not a key .*\.$"):
        ups.fit(u, **arguments, overrides=["optimiser=adam"])
    with pytest.raises(UpsError, match="`array` must be trajectories of one shape"):
        ups.fit([[1.0, 2.0], [3.0]], **arguments)


@pytest.mark.parametrize(
    "array", ["waves.npy", None, np.ones((9, 5, 16), complex)], ids=["path", "none", "complex"]
)
def test_what_is_no_array_of_real_numbers_is_not_fitted(tmp_path, array):
    with pytest.raises(UpsError, match="`array` must be an array of real numbers, got "):
        ups.fit(array, dt=0.1, length=1.0, output_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_rollout_is_drawn_in_one_call(tmp_path):
    spec = dataclasses.replace(make_simulator().spec, dt=0.5)
    simulator = Simulator(make_simulator().model, spec)
    u = torch.randn(3, 4, 32)
    truth = u + 0.1
    figure = simulator.plot(u, truth.numpy(), sample=2)
    pictures = {axis.get_title(): axis.images[0] for axis in figure.axes if axis.images}
    assert np.array_equal(pictures["rollout"].get_array(), u[2].numpy())
    assert np.allclose(pictures["error"].get_array(), -0.1, atol=1e-6)
    assert pictures["truth"].get_extent() == [0.0, 1.0, 0.5, 2.0]
    assert pictures["truth"].get_clim() == pictures["rollout"].get_clim()
    assert figure._repr_png_().startswith(b"\x89PNG")
    alone = simulator.plot(u[..., None] ** 2)
    (picture,) = [axis.images[0] for axis in alone.axes if axis.images]
    assert np.array_equal(picture.get_array(), u[0].numpy() ** 2)
    assert picture.get_clim() == pytest.approx((float((u[0] ** 2).min()), float((u[0] ** 2).max())))
    with pytest.raises(UpsError, match="must have one shape"):
        simulator.plot(u, truth[:, :2])
    with pytest.raises(UpsError, match=r"\(B, T, 32\)"):
        simulator.plot(u[0])
    with pytest.raises(UpsError, match=r"\(B, T, 32\)"):
        simulator.plot(u[..., :5])


def drifting_waves(number=30, points=32, seed=0):
    """Waves (N, 5, X, 1) of random phases on a line, the same everywhere."""
    phase = 2 * np.pi * np.random.default_rng(seed).random((number, 1, 2))
    t = np.arange(5)[:, None] / 10
    x = 2 * np.pi * np.arange(points) / points
    parts = (np.sin(k * (x - t) + phase[..., k - 1 : k, None]) for k in (1, 2))
    return np.float32(sum(parts).reshape(number, 5, points, 1))


def test_data_are_homogeneous_if_no_place_differs_from_the_others():
    x = 2 * np.pi * np.arange(32) / 32
    line = Grid((32,), (1.0,))
    assert sum(is_homogeneous(drifting_waves(seed=seed), line) for seed in range(50)) >= 48
    waves = drifting_waves(200)
    assert is_homogeneous(waves + 5, line)
    forced = waves + 0.7 * np.float32(np.sin(x))[:, None]
    assert not is_homogeneous(forced, line)
    medium = waves * np.float32(1 + 0.7 * np.sin(x))[:, None]  # the mean is zero everywhere
    assert not is_homogeneous(medium, line)
    assert is_homogeneous(forced[:5], line)  # too few to tell
    assert not is_homogeneous(waves, Grid((32,), (1.0,), (("wall", "open"),)))
    assert is_homogeneous(np.zeros_like(waves), line)


def test_one_channel_that_differs_from_place_to_place_is_enough():
    plane = Grid((16, 8), (1.0, 1.0))
    rng = np.random.default_rng(0)
    u = np.float32(rng.normal(size=(40, 3, 16, 8, 2)))
    assert is_homogeneous(u, plane)
    u[..., 1] += np.float32(np.cos(2 * np.pi * np.arange(16) / 16))[:, None]
    assert not is_homogeneous(u, plane)


def test_an_interrupted_fit_leaves_no_half_written_array(tmp_path, monkeypatch):
    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ups.fit(drifting_waves(), dt=0.1, length=1, output_dir=tmp_path)
    assert not list(tmp_path.rglob("*.npz*"))
