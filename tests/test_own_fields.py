"""One's own fields in one, two and three dimensions: which axis is which, grids and channels."""

import pickle

import h5py
import numpy as np
import pytest
import torch
import xarray
from scipy.io import savemat

import ups
from ups.core.errors import UpsError
from ups.core.fields import Boundary
from ups.datamodules import OwnDataModule
from ups.datamodules.readers.arrays import ArrayFile

N, T = 12, 5
SIZES = {"x": 16, "y": 18, "z": 20}
SHAPES = {1: (16,), 2: (16, 18), 3: (16, 18, 20)}
WALL = (Boundary.WALL, Boundary.WALL)
OPEN = (Boundary.OPEN, Boundary.OPEN)
PERIODIC = (Boundary.PERIODIC, Boundary.PERIODIC)


def numbered(*shape):
    """An array whose every value is different, and says its indices."""
    return np.arange(np.prod(shape), dtype=np.float64).reshape(shape)


def fields(num_dims, channels=()):
    return numbered(N, T, *SHAPES[num_dims], *channels)


def positions(num_dims, offset=0.0):
    """Centers of cells of sizes 0.5, 1.0 and 1.5."""
    return {
        axis: offset + (np.arange(SIZES[axis]) + 0.5) * 0.5 * (k + 1)
        for k, axis in enumerate("xyz"[:num_dims])
    }


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def expected(u, num_dims):
    return u.reshape(N, T, *SHAPES[num_dims], -1).astype(np.float32)


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize("told_by", ["positions", "num_dims", "length", "boundary"])
def test_axes_are_told_apart_by_what_is_known(tmp_path, num_dims, channels, told_by):
    u = fields(num_dims, channels)
    known = {"dt": 0.1, "length": 2.0}
    arrays = {}
    if told_by == "positions":
        arrays = positions(num_dims)
        known.pop("length")
    elif told_by == "num_dims":
        known["num_dims"] = num_dims
    elif told_by == "length":
        known["length"] = [8.0, 18.0, 30.0][:num_dims]
    else:
        known["boundary"] = ["wall", "periodic", "open"][:num_dims]
    file = ArrayFile(saved(tmp_path / "x.npz", u=u, **arrays), **known)
    assert (file.trajectories, file.frames, file.grid.shape) == (N, T, SHAPES[num_dims])
    if told_by in ("positions", "length"):
        assert file.grid.extent == pytest.approx((8.0, 18.0, 30.0)[:num_dims])
    else:
        assert file.grid.extent == (2.0,) * num_dims
    if told_by == "boundary":
        assert file.grid.boundary == (WALL, PERIODIC, OPEN)[:num_dims]
    assert np.array_equal(file.read([7, 0]), expected(u, num_dims)[[7, 0]])
    assert np.array_equal(file.read([3], start=1, frames=2), expected(u, num_dims)[3:4, 1:3])


@pytest.mark.parametrize(
    ("shape", "num_dims", "channels"),
    [
        ((3, 4, 16), 1, 1),
        ((3, 4, 16, 2), 1, 2),
        ((3, 4, 32, 32), 2, 1),
        ((3, 4, 16, 17), 2, 1),
        ((3, 4, 16, 16, 8), 2, 8),
        ((3, 4, 16, 16, 32), 3, 1),
        ((3, 4, 9, 10, 11, 12), 3, 12),
    ],
)
def test_shape_says_the_dimensions_where_it_is_unambiguous(tmp_path, shape, num_dims, channels):
    np.save(tmp_path / "x.npy", numbered(*shape))
    file = ArrayFile(tmp_path / "x.npy", dt=1.0, length=1.0)
    assert file.grid.shape == shape[2 : 2 + num_dims]
    assert len(file.channels) == channels
    assert np.array_equal(file.read([1]).reshape(shape[1:]), numbered(*shape)[1])


@pytest.mark.parametrize(
    "shape", [(3, 4, 16, 16), (3, 4, 16, 16, 9), (3, 4, 2, 64), (3, 4, 1, 64, 64)]
)
def test_ambiguous_shape_is_refused_with_what_to_give(tmp_path, shape):
    np.save(tmp_path / "x.npy", numbered(*shape))
    with pytest.raises(UpsError, match=r"`data\.num_dims` must be given: 'u' \(3, 4, .* may be in"):
        ArrayFile(tmp_path / "x.npy", dt=1.0, length=1.0)


def test_ambiguous_shape_is_read_as_said(tmp_path):
    np.save(tmp_path / "x.npy", numbered(3, 4, 16, 16))
    line = ArrayFile(tmp_path / "x.npy", dt=1.0, length=1.0, num_dims=1)
    assert (line.grid.shape, len(line.channels)) == ((16,), 16)
    plane = ArrayFile(tmp_path / "x.npy", dt=1.0, length=1.0, num_dims=2)
    assert (plane.grid.shape, plane.channels) == ((16, 16), ("u",))


def test_missing_position_does_not_make_channels_of_an_axis(tmp_path):
    path = saved(tmp_path / "x.npz", u=fields(2), x=positions(2)["x"])
    with pytest.raises(UpsError, match=r"`data\.num_dims` must be given"):
        ArrayFile(path, dt=1.0)
    with pytest.raises(UpsError, match=r"doesn't say its data\.length: give data\.length=\.\.\."):
        ArrayFile(path, dt=1.0, num_dims=2)
    wrong = saved(tmp_path / "y.npz", u=fields(2), x=positions(2)["x"], y=np.arange(17.0))
    with pytest.raises(UpsError, match=r"'y' must be 18 finite, increasing numbers"):
        ArrayFile(wrong, dt=1.0, num_dims=2)


@pytest.mark.parametrize("kind", ["nc", "zarr3", "zarr2"])
@pytest.mark.parametrize(
    "order", [("run", "time", "x", "y", "channel"), ("channel", "y", "x", "time", "run")]
)
def test_names_of_dimensions_say_the_axes_in_any_order(tmp_path, kind, order):
    u = fields(2, (2,))
    data = xarray.DataArray(u, dims=("run", "time", "x", "y", "channel")).transpose(*order)
    coordinates = {**positions(2), "time": np.arange(T) * 0.25, "channel": ["rho", "p"]}
    strength = ("run", np.arange(1.0, N + 1))
    dataset = xarray.Dataset(
        {"state": data, "strength": strength}, {**coordinates, "run": range(N)}
    )
    path = tmp_path / ("x.nc" if kind == "nc" else "x.zarr")
    if kind == "nc":
        dataset.to_netcdf(path, engine="h5netcdf")
    else:
        dataset = dataset.drop_vars("channel")  # of zarr, texts depend on the version
        dataset.to_zarr(path, zarr_format=int(kind[-1]), consolidated=False)
    file = ArrayFile(path)
    assert (file.trajectories, file.frames, file.dt) == (N, T, 0.25)
    assert (file.grid.shape, file.grid.extent) == ((16, 18), (8.0, 18.0))
    assert file.channels == (("rho", "p") if kind == "nc" else ("state", "state1"))
    assert list(file.parameters) == ["strength"]
    assert np.array_equal(file.read([11, 2], 1, 3), expected(u, 2)[[11, 2], 1:4])
    again = pickle.loads(pickle.dumps(file))
    assert np.array_equal(again.read([4]), expected(u, 2)[[4]])


def test_plane_of_x_and_z_has_two_dimensions(tmp_path):
    u = numbered(N, T, 20, 16)
    data = {"u": (("n", "t", "z", "x"), u), "t": ("t", np.arange(T) * 1.0)}
    place = {"x": np.arange(16) * 0.5, "z": np.arange(20) * 2.0}
    xarray.Dataset(data, place).to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    file = ArrayFile(tmp_path / "x.nc")
    assert (file.grid.shape, file.grid.extent) == ((16, 20), (8.0, 40.0))
    assert np.array_equal(file.read([1])[0, ..., 0], u[1].swapaxes(1, 2))


def test_dimensions_without_trajectories_are_refused(tmp_path):
    data = {"u": (("time", "x", "y"), numbered(20, 16, 18))}
    xarray.Dataset(data).to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    with pytest.raises(UpsError, match=r"dimensions of trajectories, .* got time, x, y\."):
        ArrayFile(tmp_path / "x.nc", dt=1.0, length=1.0)


@pytest.mark.parametrize("version", [5, 7])
@pytest.mark.parametrize("num_dims", [1, 2, 3])
def test_matlab_files_have_the_time_last(tmp_path, version, num_dims):
    u = fields(num_dims)
    a, last = u[:, 0], np.moveaxis(u, 1, -1)  # (N, *space, T)
    t = np.arange(1.0, T + 1)[None] * 0.5  # a row
    if version == 5:
        savemat(tmp_path / "x.mat", {"a": a, "u": last, "t": t})
    else:
        with h5py.File(tmp_path / "x.mat", "w") as file:
            for name, array in (("a", a), ("u", last), ("t", t)):
                file[name] = array.T  # MATLAB's axes are reversed
    file = ArrayFile(tmp_path / "x.mat", length=1.0)
    assert (file.trajectories, file.frames, file.dt) == (N, T, 0.5)
    assert file.grid.shape == SHAPES[num_dims]
    assert np.array_equal(file.read([5, 1]), expected(u, num_dims)[[5, 1]])
    again = pickle.loads(pickle.dumps(file))
    assert np.array_equal(again.read([9], 2, 2), expected(u, num_dims)[[9], 2:4])


def test_several_arrays_are_the_channels_of_one_field(tmp_path):
    u, v, w = fields(2), fields(2, (2,)) + 0.5, -fields(2)
    path = saved(tmp_path / "x.npz", u=u, v=v, w=w, other=fields(1), **positions(2))
    file = ArrayFile(path, dt=1.0, field=["w", "v"])
    assert file.channels == ("w", "v", "v1")
    assert np.array_equal(file.read([3])[0], np.concatenate([w[3, ..., None], v[3]], -1))
    named = ArrayFile(path, dt=1.0, field=["w", "v"], channels=["a", "b", "c"])
    assert named.channels == ("a", "b", "c")
    with pytest.raises(UpsError, match=r"`data\.channels` must name the 3 channels of .* got 2"):
        ArrayFile(path, dt=1.0, field=["w", "v"], channels=["a", "b"])
    with pytest.raises(UpsError, match=r"must have different names, got a, a, b"):
        ArrayFile(path, dt=1.0, field=["w", "v"], channels=["a", "a", "b"])
    with pytest.raises(UpsError, match=r"`data\.field` must name an array .* got 'q'"):
        ArrayFile(path, dt=1.0, field=["w", "q"])
    with pytest.raises(UpsError, match=r"the same trajectories, frames and points .* other \(12"):
        ArrayFile(path, dt=1.0, length=1.0, field=["w", "other"])


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_file_names_its_channels(tmp_path, kind):
    u, names = fields(2, (2,)), ["rho", "p"]
    if kind == "npz":
        np.savez(tmp_path / "x.npz", u=u, channels=names, **positions(2))
    else:
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["u"], file["channels"] = u, names
            file.update(positions(2))
    assert ArrayFile(tmp_path / f"x.{kind}", dt=1.0).channels == ("rho", "p")


@pytest.mark.parametrize("axis", [0, 1])
def test_last_points_that_repeat_the_first_are_left_out_along_periodic_axes_only(tmp_path, axis):
    u = np.concatenate([fields(2), fields(2).take([0], axis + 2)], axis + 2)
    place = positions(2)
    name = "xy"[axis]
    place[name] = np.append(place[name], 2 * place[name][-1] - place[name][-2])
    path = saved(tmp_path / "x.npz", u=u, **place)
    file = ArrayFile(path, dt=1.0)
    assert (file.grid.shape, file.grid.extent) == ((16, 18), pytest.approx((8.0, 18.0)))
    assert np.array_equal(file.read(range(N)), expected(fields(2), 2))
    sides = ["wall", "wall"]
    sides[1 - axis] = "periodic"
    walled = ArrayFile(path, dt=1.0, boundary=sides)
    assert walled.grid.shape[axis] == SHAPES[2][axis] + 1
    assert walled.grid.boundary[axis] == WALL
    cell = 0.5 * (axis + 1)
    assert walled.grid.extent[axis] == pytest.approx(walled.grid.shape[axis] * cell)
    assert walled.grid.edges[axis][0] == 0  # cells around the points
    assert np.array_equal(walled.read([2])[0, ..., 0], u[2].astype(np.float32))


def test_every_axis_is_thinned_and_the_grid_keeps_its_place(tmp_path):
    u = fields(2, (2,))
    file = ArrayFile(saved(tmp_path / "x.npz", u=u, **positions(2, 3.0)), 2, 2, dt=0.5)
    assert (file.frames, file.dt, file.grid.shape) == (3, 1.0, (8, 9))
    assert (file.grid.extent, file.grid.origin) == ((8.0, 18.0), (3.25, 3.5))
    assert np.array_equal(file.read([6], 1, 2), u[[6], 2::2, ::2, ::2])
    with pytest.raises(UpsError, match=r"`data\.spatial_downsampling` must divide the 18 points"):
        ArrayFile(tmp_path / "x.npz", 1, 4, dt=0.5)


@pytest.fixture
def read_shapes(monkeypatch):
    """The shapes of all that is read from HDF5 files."""
    read = h5py.Dataset.__getitem__
    shapes = []

    def recorded(dataset, index, **options):
        values = read(dataset, index, **options)
        shapes.append(values.shape)
        return values

    monkeypatch.setattr(h5py.Dataset, "__getitem__", recorded)
    return shapes


def test_trajectories_that_lie_interleaved_are_read_at_once(tmp_path, read_shapes):
    u = fields(2)
    with h5py.File(tmp_path / "x.mat", "w") as file:
        file["u"] = np.moveaxis(u, 1, -1).T
    file = ArrayFile(tmp_path / "x.mat", dt=1.0, length=1.0)
    read_shapes.clear()
    assert np.array_equal(file.read([9, 2, 5], 1, 2), expected(u, 2)[[9, 2, 5], 1:3])
    assert read_shapes == [(2, 18, 16, 8)]


def test_slice_reads_only_what_it_needs(tmp_path, read_shapes):
    shapes = read_shapes
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["u"] = fields(2)
        file.update(positions(2))
    file = ArrayFile(tmp_path / "x.h5", 2, dt=1.0)
    shapes.clear()
    file.read([3, 8], start=1, frames=2)
    assert shapes == [(1, 2, 16, 18)] * 2  # of each trajectory two frames, and not the one between
    shapes.clear()
    ArrayFile(tmp_path / "x.h5", dt=1.0)
    assert max(map(np.prod, shapes)) < fields(2).size / 10


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"num_dims": 3}, r"`data\.num_dims` must be 2, as the axes of 'u' \(12, 5, 16, 18\) in"),
        ({"boundary": ["wall"] * 3}, r"`data\.num_dims` must be 2"),
        (
            {"boundary": ["wall"] * 3, "num_dims": 2},
            r"`data\.boundary` must be one value, or one f",
        ),
        ({"length": [1.0], "num_dims": 2}, r"`data\.length` must be one value, .* 2 axes .* got 1"),
    ],
)
def test_what_does_not_fit_the_axes_is_refused_in_one_sentence(tmp_path, known, words):
    np.save(tmp_path / "x.npy", fields(2))
    with pytest.raises(UpsError, match=words) as refusal:
        ArrayFile(tmp_path / "x.npy", **{"dt": 1.0, "length": 1.0, **known})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (
            {"boundary": "mirror"},
            r"`data\.boundary` must be one of periodic, wall, open, or a list",
        ),
        (
            {"boundary": ["wall", "x"]},
            r"`data\.boundary` must be one of periodic, wall, open, or a",
        ),
        ({"num_dims": 4}, r"`data\.num_dims` must be an integer >= 1 and <= 3, or null, got 4"),
        ({"length": [1.0, -1.0]}, r"`data\.length` must be a number > 0, or a list of such"),
        ({"channels": []}, r"`data\.channels` must be a non-empty list of strings"),
        ({"reader": "nope"}, r"`data\.reader` must be one of arrays, .*, got 'nope'"),
        (
            {"reader": "pdebench"},
            r"`data\.dt` must be null: data\.reader=pdebench has no use for it",
        ),
    ],
)
def test_settings_of_own_data_are_checked_before_the_file_is_read(tmp_path, known, words):
    np.save(tmp_path / "x.npy", fields(2))
    with pytest.raises(UpsError, match=words):
        OwnDataModule(str(tmp_path / "x.npy"), **{"dt": 1.0, "length": 1.0, **known})


@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize("in_memory", [True, False])
def test_data_module_describes_and_windows_fields_of_every_dimension(tmp_path, num_dims, in_memory):
    u = fields(num_dims, (2,))
    path = saved(tmp_path / "x.npz", u=u, channels=["a", "b"], **positions(num_dims))
    data = OwnDataModule(
        str(path), dt=0.5, in_memory=in_memory, num_workers=0 if in_memory else 1, unroll_steps=2
    )
    data.setup()
    assert data.spec.channels == ("a", "b")
    assert data.spec.grid.shape == SHAPES[num_dims]
    assert data.space() == SHAPES[num_dims]
    rows = data.rows(N)
    train = expected(u, num_dims)[rows["train"]]
    assert data.spec.mean == pytest.approx(train.mean(tuple(range(num_dims + 2)), np.float64))
    assert np.array_equal(data.values["test"], expected(u, num_dims)[rows["test"]])
    assert data.train_bytes() == train.nbytes
    for batch in data.train_dataloader():
        assert batch.u.shape[1:] == (3, *SHAPES[num_dims], 2)
        for window, row in zip(batch.u.numpy(), batch.trajectory, strict=True):
            starts = [np.array_equal(window, train[row, s : s + 3]) for s in range(T - 2)]
            assert sum(starts) == 1


def test_fit_hands_on_what_it_is_told_about_the_axes(tmp_path, monkeypatch):
    made = {}

    def run(cfg, overrides):
        made.update(cfg.data)

    monkeypatch.setattr("ups.fitting.pipeline.run", run)
    monkeypatch.setattr("ups.fitting.load", lambda path: path)
    arguments = {"dt": 0.1, "output_dir": tmp_path, "name": "a"}
    ups.fit(
        torch.zeros(12, 5, 16, 16, 2), **arguments, length=(2, 3.5), num_dims=2,
        boundary=["wall", "periodic"], channels=("a b", "null"),
    )  # fmt: skip
    assert made["length"] == [2, 3.5]
    assert (made["num_dims"], made["boundary"]) == (2, ["wall", "periodic"])
    assert made["channels"] == ["a b", "null"]
    ups.fit(np.zeros((12, 5, 16)), **arguments, length=1)
    assert (made["length"], made["num_dims"], made["boundary"]) == (1, None, "periodic")
    assert made["channels"] is None


class Bare:
    """A reader that knows neither channels nor parameters nor splits."""

    def __init__(self, path, temporal_downsampling=1, spatial_downsampling=1):
        pass


class Named(ArrayFile):
    """A reader with a setting of its own kind."""

    def __init__(self, path, temporal_downsampling=1, spatial_downsampling=1, length=1.0):
        super().__init__(path, temporal_downsampling, spatial_downsampling, dt=3.0, length=length)


def test_reader_of_another_package_reads_own_data(tmp_path):
    np.save(tmp_path / "x.npy", fields(1))
    path, here = str(tmp_path / "x.npy"), __name__
    data = OwnDataModule(path, reader=f"{here}.Named", length=2.0)
    assert (data.file.dt, data.file.grid.extent) == (3.0, (2.0,))
    with pytest.raises(UpsError, match=r"`data\.field` must be null: data\.reader=.*Named has no"):
        OwnDataModule(path, reader=f"{here}.Named", field="u")
    with pytest.raises(UpsError, match=r"a class with the attributes channels, parameters, splits"):
        OwnDataModule(path, reader=f"{here}.Bare")
