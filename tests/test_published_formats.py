"""The Well, PDEBench's files of several channels, and PDEArena: values, axes, splits, refusals."""

import json
import os
import pickle

import h5py
import numpy as np
import pytest
from helpers.published import (
    SIZES,
    T,
    X,
    Y,
    numbered,
    write_arena,
    write_flow,
    write_groups,
    write_incompressible,
    write_line,
    write_well,
)

from ups.core.errors import UpsError
from ups.core.fields import Boundary
from ups.datamodules import OwnDataModule
from ups.datamodules.readers import READERS, open_reader
from ups.datamodules.readers.pdearena import PDEArenaFiles
from ups.datamodules.readers.pdebench_2d import PDEBenchFiles
from ups.datamodules.readers.the_well import WellFiles

PERIODIC = (Boundary.PERIODIC, Boundary.PERIODIC)
WALL = (Boundary.WALL, Boundary.WALL)
OPEN = (Boundary.OPEN, Boundary.OPEN)
WELL_CHANNELS = (
    "density", "forcing", "height", "velocity_x", "velocity_y",
    "stress_xx", "stress_xy", "stress_yx", "stress_yy",
)  # fmt: skip


def write_well_splits(folder):
    """Two files of training, one each of the others; returns the channels of all trajectories."""
    return np.concatenate(
        [
            write_well(folder / "train/a.hdf5", 5),
            write_well(folder / "train/b.hdf5", 4, first=50_000, beta=5.0),
            write_well(folder / "valid/a.hdf5", 2, first=100_000),
            write_well(folder / "test/a.hdf5", 3, first=150_000),
        ]
    )


def write_arena_splits(folder):
    return np.concatenate(
        [
            write_arena(folder / "NavierStokes2D_train_1.h5", "train", 4),
            write_arena(folder / "NavierStokes2D_train_2.h5", "train", 5, first=30_000),
            write_arena(folder / "NavierStokes2D_valid_1.h5", "valid", 2, first=60_000),
            write_arena(folder / "NavierStokes2D_test_1.h5", "test", 3, first=90_000),
        ]
    )


def test_the_well_gives_every_field_of_every_kind(tmp_path):
    u = write_well_splits(tmp_path / "made_up/data")
    file = WellFiles(tmp_path / "made_up")
    assert (file.trajectories, file.frames) == (14, T)
    assert file.dt == pytest.approx(0.2)
    assert file.grid.shape == (X, Y)
    assert file.grid.extent == pytest.approx((8.0, 36.0))
    assert file.grid.origin == pytest.approx((0.25, 0.0))
    assert file.grid.boundary == (PERIODIC, (Boundary.WALL, Boundary.OPEN))
    assert file.channels == WELL_CHANNELS
    assert np.array_equal(file.read(range(14)), u)
    assert np.array_equal(file.read([11, 4, 5], 1, 3), u[[11, 4, 5], 1:4])
    assert file.splits == {"train": range(9), "validation": range(9, 11), "test": range(11, 14)}
    thin = WellFiles(tmp_path / "made_up", 2, 2)
    assert (thin.frames, thin.grid.shape, thin.grid.extent) == (3, (8, 9), file.grid.extent)
    assert np.array_equal(thin.read([6], 1, 2), u[[6], 2::2, ::2, ::2])


def test_constant_scalars_of_the_well_are_parameters(tmp_path, caplog):
    write_well_splits(tmp_path)
    file = WellFiles(tmp_path)
    assert list(file.parameters) == ["alpha", "beta", "kappa"]
    assert file.parameters["alpha"][[0, 4, 5, 13]].tolist() == [1, 5, 50_001, 150_003]
    assert file.parameters["beta"].tolist() == [3] * 5 + [5] * 4 + [3] * 5
    assert file.parameters["kappa"].tolist() == [7] * 14
    WellFiles(tmp_path)  # says it once only, however many files there are
    assert caplog.text.count("'inflow' is no parameter: it varies in time.") == 1
    assert caplog.text.count("'gravity' is no parameter: it is not positive, but from -9.81") == 1


def test_the_well_is_found_in_a_folder_of_splits_or_of_files(tmp_path):
    u = write_well_splits(tmp_path / "data")
    for path in (tmp_path, tmp_path / "data"):
        assert np.array_equal(WellFiles(path).read([13]), u[[13]])
    part = WellFiles(tmp_path / "data/train")
    assert (part.trajectories, part.splits) == (9, None)
    one = WellFiles(tmp_path / "data/train/b.hdf5")
    assert np.array_equal(one.read([0]), u[[5]])
    velocity = WellFiles(tmp_path, field=["velocity", "density"])
    assert velocity.channels == ("velocity_x", "velocity_y", "density")
    assert np.array_equal(velocity.read([6]), u[[6]][..., [3, 4, 0]])


@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize(("word", "sides"), [("periodic", PERIODIC), ("trans", OPEN)])
def test_pdebench_flow_in_every_dimension(tmp_path, num_dims, word, sides):
    path = tmp_path / f"{num_dims}D_CFD_Rand_M0.1_Eta0.01_Zeta1e-08_{word}_128_Train.hdf5"
    u = write_flow(path, num_dims)
    file = PDEBenchFiles(path)
    assert (file.trajectories, file.frames, file.dt) == (12, T, pytest.approx(0.05))
    assert file.grid.shape == SIZES[:num_dims]
    assert file.grid.extent == pytest.approx((8.0, 18.0, 30.0)[:num_dims])
    assert file.grid.boundary == (sides,) * num_dims
    assert file.channels == ("density", "pressure", "Vx", "Vy", "Vz")[: num_dims + 2]
    assert np.array_equal(file.read([3, 11]), u[[3, 11]])
    assert np.array_equal(file.read([3], 2, 2), u[[3], 2:4])
    # M of one dimension is said by the name only
    values = {name: set(column.tolist()) for name, column in file.parameters.items()}
    assert values == {"eta": {0.01}, "zeta": {1e-8}, "M": {0.1}}


def test_pdebench_files_of_several_parameters_are_one_data_set(tmp_path):
    u = [
        write_flow(tmp_path / "a_periodic.hdf5", 2, 6),
        write_flow(tmp_path / "b_periodic.hdf5", 2, 6, first=50_000),
    ]
    with h5py.File(tmp_path / "b_periodic.hdf5", "r+") as file:
        file.attrs["eta"] = 0.1
    both = PDEBenchFiles(tmp_path, field="Vx", boundary=["open", "wall"])
    assert both.parameters["eta"].tolist() == [0.01] * 6 + [0.1] * 6
    assert (both.channels, both.splits) == (("Vx",), None)
    assert both.grid.boundary == (OPEN, WALL)
    assert np.array_equal(both.read([5, 6]), np.concatenate(u)[[5, 6]][..., 2:3])


@pytest.mark.parametrize(
    ("name", "num_dims", "channels", "sides"),
    [
        ("2D_diff-react_NA_NA.h5", 2, 2, WALL),
        ("2D_rdb_NA_NA.h5", 2, 1, OPEN),
        ("1D_other_NA_NA.h5", 1, 1, PERIODIC),
    ],
)
def test_pdebench_groups_are_trajectories(tmp_path, name, num_dims, channels, sides):
    u = write_groups(tmp_path / name, num_dims, channels)
    known = {"boundary": "periodic"} if "other" in name else {}
    file = PDEBenchFiles(tmp_path / name, 2, 2, **known)
    assert (file.trajectories, file.frames, file.dt) == (12, 3, pytest.approx(0.02))
    assert file.grid.extent == pytest.approx((8.0, 9.0)[:num_dims])
    assert file.grid.origin == pytest.approx((-0.75,) * num_dims)
    assert file.grid.boundary == (sides,) * num_dims
    assert file.channels == ("u", "u1")[:channels]
    thin = u[:, ::2, ::2, ::2] if num_dims == 2 else u[:, ::2, ::2]
    assert np.array_equal(file.read([11, 0]), thin[[11, 0]])
    assert np.array_equal(file.read([7], 1, 2), thin[[7], 1:3])


def test_pdebench_incompressible_flow_keeps_the_force(tmp_path):
    u = [
        write_incompressible(tmp_path / f"ns_incom_inhom_2d_512-{k}.h5", first=30_000 * k)
        for k in range(3)
    ]
    file = PDEBenchFiles(tmp_path)
    assert (file.trajectories, file.frames, file.dt) == (12, T, pytest.approx(0.005))
    assert (file.grid.shape, file.grid.extent) == ((X, Y), (1.0, 2.0))
    assert file.grid.boundary == (WALL, WALL)
    assert file.channels == ("velocity_x", "velocity_y", "particles", "force_x", "force_y")
    assert set(file.parameters["nu"].tolist()) == {0.01}
    assert np.array_equal(file.read([9, 2]), np.concatenate(u)[[9, 2]])
    unknown = tmp_path / "other/ns_incom.h5"
    unknown.parent.mkdir()
    write_incompressible(unknown, config="")
    with pytest.raises(UpsError, match=r"doesn't say its data\.length: give data\.length=\.\.\."):
        PDEBenchFiles(unknown)
    assert PDEBenchFiles(unknown, length=3.0).grid.extent == (3.0, 3.0)


def test_pdearena_files_hold_the_splits(tmp_path):
    u = write_arena_splits(tmp_path)
    file = PDEArenaFiles(tmp_path)
    # files are sorted by name within each split
    assert file.splits == {"train": range(9), "validation": range(9, 11), "test": range(11, 14)}
    assert (file.frames, file.dt) == (T, 1.5)
    assert (file.grid.shape, file.grid.extent) == ((X, Y), (32.0, 36.0))
    assert file.grid.boundary == (WALL, WALL)
    assert file.grid.origin == (1.0, 1.0)  # centers of cells
    assert file.channels == ("u", "vx", "vy")
    assert list(file.parameters) == ["buo_y"]
    assert file.parameters["buo_y"][[0, 4]] == pytest.approx([0.2, 30_000.2])
    assert np.array_equal(file.read([0, 5, 9, 13]), u[[0, 5, 9, 13]])
    whole = tmp_path / "one/all.h5"
    whole.parent.mkdir()
    parts = [write_arena(whole, split, 3, k) for k, split in enumerate(("test", "train", "valid"))]
    one = PDEArenaFiles(whole, field=["vy"])
    assert one.splits == {"train": range(3), "validation": range(3, 6), "test": range(6, 9)}
    assert np.array_equal(one.read([0, 3, 6])[..., 0], [p[0, ..., 2] for p in np.roll(parts, 2, 0)])


def test_pdearena_lines_are_periodic(tmp_path):
    u = write_line(tmp_path / "KS_train.h5", "train", 12, viscosity=numbered(12, first=1))
    file = PDEArenaFiles(tmp_path / "KS_train.h5")
    assert (file.trajectories, file.frames, file.dt, file.splits) == (12, T, 0.2, None)
    assert (file.grid.shape, file.grid.extent, file.grid.boundary) == ((X,), (4.0,), (PERIODIC,))
    assert (file.channels, list(file.parameters)) == (("u",), ["viscosity"])
    assert np.array_equal(file.read([7], 1, 3), u[[7], 1:4])
    write_line(tmp_path / "varied.h5", "train", 12, dt=numbered(12, first=1))
    with pytest.raises(UpsError, match=r"'train/dt' must be one number > 0 for all .* got 1 to 12"):
        PDEArenaFiles(tmp_path / "varied.h5")


# --- refusals ---


def well_with(**changes):
    def write(folder):
        write_well(folder / "a.hdf5", 12, **changes)

    return write


def two_wells(**changes):
    def write(folder):
        write_well(folder / "a.hdf5", 6)
        write_well(folder / "b.hdf5", 6, **changes)

    return write


def changed(write, *edit):
    """Files edited once they are written: each edit gets the open file."""

    def damaged(folder):
        write(folder)
        for path in folder.iterdir():
            with h5py.File(path, "r+") as file:
                for each in edit:
                    each(file)

    return damaged


def without(write, *names):
    return changed(write, *(lambda file, name=name: file.__delitem__(name) for name in names))


def replaced(write, name, values):
    return changed(write, node(name, values))


def attribute(name, value, node="/"):
    return lambda file: file[node].attrs.__setitem__(name, value)


def node(name, values):
    """A dataset in the place of what is there."""

    def edit(file):
        del file[name]
        file[name] = values

    return edit


def stretched(name, factor):
    return lambda file: file[name].__setitem__(..., factor * file[name][...])


def incompressible(folder):
    write_incompressible(folder / "ns_incom.h5")


def arena_line(folder):
    write_line(folder / "KS.h5", "train", 12)


def configured(text):
    return changed(incompressible, attribute("config", text))


def flow(folder):
    write_flow(folder / "2D_periodic.hdf5", 2)


def groups(folder):
    write_groups(folder / "2D_rdb.h5", 2, 1)


def arena(folder):
    write_arena(folder / "a.h5", "train", 12)


def two_flows(folder):
    flow(folder)
    write_flow(folder / "3D_periodic.hdf5", 3)


def unnamed_flow(folder):
    write_flow(folder / "2D_KH.hdf5", 2)


def two_arena_splits(folder):
    arena(folder)
    write_arena(folder / "b.h5", "valid", 12)


def empty(folder):
    pass


@pytest.mark.parametrize(
    ("reader", "write", "words"),
    [
        ("the_well", empty, r"must hold files that end with \.h5 or \.hdf5"),
        (
            "the_well",
            well_with(grid_type="spherical"),
            "its grid_type must be cartesian, got spher",
        ),
        (
            "the_well",
            well_with(time=np.arange(T) ** 2.0),
            "'dimensions/time' must be evenly spaced",
        ),
        (
            "the_well",
            well_with(time=np.zeros(1)),
            "'dimensions/time' must be at least 2 numbers, got 1",
        ),
        (
            "the_well",
            well_with(time=np.arange(4.0)),
            r"density' must have the shape \(12, 4, 16, 18",
        ),
        (
            "the_well",
            well_with(fields={"q": numbered(3, 4)}),
            "'t0_fields/q' must be a .* 4 dimens",
        ),
        (
            "the_well",
            well_with(kind="slip"),
            "bc_type of a boundary must be periodic, wall, open, g",
        ),
        ("the_well", well_with(kind="PERIODIC"), "periodic on both sides or on none"),
        (
            "the_well",
            without(well_with(), "dimensions/y"),
            "no dataset 'dimensions/y', which its lay",
        ),
        (
            "the_well",
            without(well_with(), "dimensions"),
            "there is no 'dimensions'; The Well's lay",
        ),
        (
            "the_well",
            two_wells(time=np.arange(T) * 0.3),
            r"must agree; in .*b\.hdf5 `dt` must be 0\.2",
        ),
        (
            "the_well",
            two_wells(fields={"q": numbered(6, T, X, Y)}),
            "must agree; in .* `fields` must",
        ),
        ("the_well", two_wells(dimensions={"x": np.arange(X)}), r"in .* `length` must be 8 x 36"),
        ("pdebench_2d", empty, r"must hold files that end with \.h5 or \.hdf5"),
        (
            "pdebench_2d",
            unnamed_flow,
            r"`data\.boundary` must be given: the name of .*KH\.hdf5 says no",
        ),
        ("pdebench_2d", without(flow, "y-coordinate"), "there is no dataset 'y-coordinate'"),
        (
            "pdebench_2d",
            without(flow, "density"),
            "must hold density, pressure, Vx, .* or groups wit",
        ),
        (
            "pdebench_2d",
            replaced(flow, "Vx", numbered(12, T, X, X)),
            r"'Vx' must have the shape \(12, 5",
        ),
        (
            "pdebench_2d",
            replaced(flow, "density", numbered(12, T)),
            "'density' must be .* 3 or 4 or 5",
        ),
        (
            "pdebench_2d",
            replaced(groups, "0007/data", numbered(T, X, Y, 2)),
            r"'0007/data' must have t",
        ),
        ("pdebench_2d", without(groups, "0000/grid/t"), "there is no dataset '0000/grid/t'"),
        ("pdebench_2d", two_flows, r"must agree; in .*3D_periodic\.hdf5 `fields` must"),
        ("pdearena", flow, r"must hold a group train, valid, test, .* got Vx, Vy, density"),
        ("pdearena", without(arena, "train/x"), "there is no dataset 'train/x'"),
        (
            "pdearena",
            without(arena, "train/u", "train/vx", "train/vy"),
            "'train/' must hold u, vx, v",
        ),
        (
            "pdearena",
            replaced(arena, "train/vy", numbered(12, T, X)),
            "'train/vy' must be .* 4 dimen",
        ),
        (
            "pdearena",
            two_arena_splits,
            "must have trajectories of train, valid, test, got none of te",
        ),
    ],
)
def test_faulty_files_are_refused_in_one_sentence(tmp_path, reader, write, words):
    folder = tmp_path / "files"
    folder.mkdir()
    write(folder)
    with pytest.raises(UpsError, match=words) as refusal:
        READERS[reader](folder)
    assert "\n" not in str(refusal.value)


WALL_OF_Y = "boundary_conditions/y_wall"


def test_a_side_of_the_well_is_a_wall_if_it_is_one_in_all_trajectories(tmp_path):
    mask = np.zeros((12, Y), bool)
    mask[:, 0] = True
    mask[0, -1] = True
    varies = attribute("sample_varying", True, WALL_OF_Y)
    edits = node(f"{WALL_OF_Y}/mask", mask), varies
    changed(well_with(), *edits)(tmp_path)
    assert WellFiles(tmp_path).grid.boundary[1] == (Boundary.WALL, Boundary.OPEN)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (attribute("n_trajectories", "many"), "'n_trajectories' must be a number, got 'many'"),
        (attribute("n_trajectories", [3, 4]), r"'n_trajectories' must be a number, got \[3, 4\]"),
        (attribute("n_trajectories", 2.5), "'n_trajectories' must be a whole number > 0, got 2.5"),
        (attribute("n_trajectories", 0), "'n_trajectories' must be a whole number > 0, got 0"),
        (attribute("n_trajectories", h5py.Empty("i4")), "'n_trajectories' must be a number"),
        (attribute("grid_type", ["a", "b"]), "grid_type must be cartesian, got a, b"),
        (attribute("spatial_dims", ["x", "x"], "dimensions"), "different names, got x, x"),
        (attribute("spatial_dims", list("xyzw"), "dimensions"), "one to three .*, got x, y, z, w"),
        (node("boundary_conditions", [1.0]), "'boundary_conditions' must be a group, got <HDF5 da"),
        (node(WALL_OF_Y, [1.0]), "'/boundary_conditions/y_wall' must have the attribute 'bc_type'"),
        (lambda file: file.__delitem__(f"{WALL_OF_Y}/mask"), "there is no '.*y_wall/mask'"),
        (node(f"{WALL_OF_Y}/mask", np.zeros(0, bool)), r"mask' must be truth values .*\(18,\)"),
        (node(f"{WALL_OF_Y}/mask", np.ones((3, 3, 3))), r"\(18,\), .* got float64 \(3, 3, 3\)"),
        (node(f"{WALL_OF_Y}/mask", np.ones((12, Y))), r"\(18,\), .* got float64 \(12, 18\)"),
        (node(f"{WALL_OF_Y}/mask", ["a"] * Y), r"mask' must be truth values .* got object \(18,\)"),
        (attribute("associated_dims", ["w"], WALL_OF_Y), "associated_dims of .* of x, y, got w"),
        (attribute("associated_dims", ["x", "y"], WALL_OF_Y), r"the shape \(16, 18\), as its axes"),
        (attribute("bc_type", ["wall", "open"], WALL_OF_Y), "bc_type .* got wall, open"),
        (attribute("bc_type", np.bytes_(b"\xff"), WALL_OF_Y), "bc_type of a boundary must be"),
        (attribute("sample_varying", [True, False], "t0_fields/density"), "must be 1 truth values"),
        (attribute("time_varying", "yes", "t0_fields/density"), "must be 1 truth values, got"),
        (attribute("dim_varying", [True], "t0_fields/density"), r"2 truth values, got \[True\]"),
        (lambda file: file.__delitem__("scalars/beta"), "there is no 'scalars/beta'"),
    ],
)
def test_damaged_metadata_of_the_well_are_refused_in_one_sentence(tmp_path, edit, words):
    changed(well_with(), edit)(tmp_path)
    with pytest.raises(UpsError, match=words) as refusal:
        WellFiles(tmp_path)
    assert str(tmp_path / "a.hdf5") in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_scalar_of_the_well_must_be_a_dataset(tmp_path):
    def edit(file):
        del file["scalars/beta"]
        file.create_group("scalars/beta").attrs["time_varying"] = False

    changed(well_with(), edit)(tmp_path)
    with pytest.raises(UpsError, match="'scalars/beta' must be a dataset, got <HDF5 group"):
        WellFiles(tmp_path)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (changed(flow, attribute("eta", "abc")), "the attribute 'eta' must be a number, got 'abc'"),
        (changed(flow, attribute("M", h5py.Empty("f4"))), "the attribute 'M' must be a number"),
        (changed(flow, attribute("zeta", [1, 2])), r"'zeta' must be a number, got \[1, 2\]"),
        (configured("NU: ["), "'config' must be yaml, but can't be read"),
        (configured("5"), r"'config' must be yaml, but can't be read \(it is none\)"),
        (configured("NU: ${foo"), "'config' must be yaml, but can't be read"),
        (configured("{domain_size: 1, NU: abc}"), "'NU' of .*'config' must be a number, got 'abc'"),
        (configured("{domain_size: 1, NU: [1, 2]}"), r"'NU' of .* must be a number, got \[1, 2\]"),
        (configured("domain_size: abc"), "'domain_size' of .* must be a number, got 'abc'"),
        (configured("domain_size: ${foo}"), r"'domain_size' of .* must be a number, got '\${foo}'"),
        (configured("domain_size: [1, 2, 3]"), r"for each of the 2 axes, got \[1, 2, 3\]"),
        (configured("domain_size: -1"), "'domain_size' of .* must be a number > 0, .* got -1"),
        (without(flow, "Vy"), "there is no dataset 'Vy', which its layout has"),
        (without(flow, "pressure"), "there is no dataset 'pressure', which its layout has"),
        (replaced(incompressible, "t", numbered(2, T)), r"'t' must be .* of the 4 traj.*\(2, 5\)"),
        (replaced(incompressible, "t", numbered(5, T)), r"'t' must be .* of the 4 traj.*\(5, 5\)"),
        (without(groups, "0003/data"), "there is no dataset '0003/data'"),
        (without(groups, "0000/data"), "there is no dataset '0000/data'"),
        (changed(groups, lambda file: file.create_group("more")), "no dataset 'more/data'"),
        (without(groups, "0000/grid"), "there is no dataset '0000/grid/x'"),
        (without(groups, "0004/grid"), "there is no dataset '0004/grid/x'"),
        (without(groups, "0000/grid/y"), "there is no dataset '0000/grid/y'"),
        (changed(groups, stretched("0007/grid/t", 2)), "'0007/grid/t' must be as '0000/grid/t'"),
        (changed(groups, stretched("0011/grid/y", 1.01)), "'0011/grid/y' must be as '0000/grid/y'"),
        (replaced(groups, "0002/grid/x", numbered(X + 1)), "'0002/grid/x' must be 16 finite"),
    ],
)
def test_damaged_pdebench_files_are_refused_in_one_sentence(tmp_path, write, words):
    write(tmp_path)
    (path,) = tmp_path.iterdir()
    with pytest.raises(UpsError, match=words) as refusal:
        PDEBenchFiles(tmp_path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_groups_may_differ_by_the_rounding_of_float32(tmp_path):
    changed(groups, stretched("0007/grid/x", 1 + 2e-7), stretched("0007/grid/t", 1 - 2e-7))(
        tmp_path
    )
    assert PDEBenchFiles(tmp_path).trajectories == 12


@pytest.mark.parametrize("write", [flow, groups])
def test_a_length_is_refused_where_the_file_says_its_positions(tmp_path, write):
    write(tmp_path)
    with pytest.raises(UpsError, match=r"`data\.length` must be null: .* says its positions"):
        PDEBenchFiles(tmp_path, length=1.0)


def test_a_velocity_across_the_plane_is_a_channel_too(tmp_path):
    changed(flow, lambda file: file.update({"Vz": numbered(12, T, X, Y)}))(tmp_path)
    assert PDEBenchFiles(tmp_path).channels == ("density", "pressure", "Vx", "Vy", "Vz")
    assert PDEBenchFiles(tmp_path, field="Vx").channels == ("Vx",)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (without(arena, "train/vx"), "there is no dataset 'train/vx'"),
        (without(arena, "train/vy"), "there is no dataset 'train/vy'"),
        (without(arena, "train/u"), "there is no dataset 'train/u'"),
        (replaced(arena, "train", numbered(3)), "'train' must be a group, got <HDF5 dataset"),
        (replaced(arena, "train/t", numbered(2, T)), "'train/t' must be .* of the 12 trajectories"),
        (replaced(arena, "train/y", numbered(2, Y)), "'train/y' must be .* of the 12 trajectories"),
        (replaced(arena_line, "train/dx", np.ones(2)), r"'train/dx' must have the shape \(12,\)"),
        (replaced(arena_line, "train/dt", np.ones(2)), r"'train/dt' must have the shape \(12,\)"),
    ],
)
def test_damaged_pdearena_files_are_refused_in_one_sentence(tmp_path, write, words):
    write(tmp_path)
    (path,) = tmp_path.iterdir()
    with pytest.raises(UpsError, match=words) as refusal:
        PDEArenaFiles(tmp_path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("reader", ["the_well", "pdebench_2d", "pdearena"])
def test_absent_files_and_unknown_fields_are_refused(tmp_path, reader):
    with pytest.raises(UpsError, match=r"there is no data file .*nowhere"):
        READERS[reader](tmp_path / "nowhere")
    write = {"the_well": well_with(), "pdebench_2d": flow, "pdearena": arena}[reader]
    write(tmp_path)
    with pytest.raises(UpsError, match=r"`data\.field` must be of the fields of .*, got|; got 'q'"):
        open_reader(reader, READERS, tmp_path, (1, 1), {"field": "q"})
    with pytest.raises(
        UpsError, match=r"`data\.dt` must be null: data\.reader=.* has no use for it"
    ):
        open_reader(reader, READERS, tmp_path, (1, 1), {"dt": 1.0})


@pytest.mark.parametrize(
    ("reader", "write", "name"),
    [
        ("the_well", well_with(), "t1_fields/velocity"),
        ("pdebench_2d", flow, "pressure"),
        ("pdebench_2d", groups, "0002/data"),
        ("pdearena", arena, "train/vx"),
    ],
)
def test_values_that_are_not_finite_are_refused_when_they_are_read(tmp_path, reader, write, name):
    write(tmp_path)
    (path,) = tmp_path.iterdir()
    with h5py.File(path, "r+") as file:
        array = file[name]
        array[(2, 1) if name != "0002/data" else (1,)] = np.nan
    opened = READERS[reader](tmp_path)
    assert np.isfinite(opened.read([3])).all()
    with pytest.raises(UpsError, match=rf"'{name}' must be finite in float32; trajectory"):
        opened.read([3, 2])


# --- how they are read ---

WRITTEN = [
    ("the_well", write_well_splits, {}),
    ("pdebench_2d", lambda folder: write_flow(folder / "2D_periodic.hdf5", 2), {}),
    ("pdebench_2d", lambda folder: write_groups(folder / "2D_rdb.h5", 2, 2), {}),
    ("pdebench_2d", lambda folder: write_incompressible(folder / "ns_incom.h5", 12), {}),
    ("pdearena", write_arena_splits, {}),
]


@pytest.mark.parametrize(("reader", "write", "settings"), WRITTEN)
def test_slice_reads_only_what_it_needs(tmp_path, monkeypatch, reader, write, settings):
    write(tmp_path)
    file = READERS[reader](tmp_path, 2, **settings)
    read = h5py.Dataset.__getitem__
    values = []

    def recorded(dataset, index, **options):
        found = read(dataset, index, **options)
        values.append(found.size)
        return found

    monkeypatch.setattr(h5py.Dataset, "__getitem__", recorded)
    out = file.read([3, 8], start=1, frames=2)
    assert sum(values) <= out.size  # less where fields are constant in time
    values.clear()
    READERS[reader](tmp_path)
    assert sum(values) < 1000  # opening reads no fields


@pytest.mark.parametrize(("reader", "write", "settings"), WRITTEN)
def test_handles_are_opened_once_in_each_process(tmp_path, monkeypatch, reader, write, settings):
    u = write(tmp_path)
    file = READERS[reader](tmp_path, **settings)
    file.read([11])
    again = pickle.loads(pickle.dumps(file))
    assert again.files._files == {}
    assert np.array_equal(again.read([11]), u[[11]])
    before = dict(file.files._files)
    monkeypatch.setattr(os, "getpid", lambda: -2)  # as after a fork
    assert np.array_equal(file.read([11]), u[[11]])
    for path, handle in file.files._files.items():
        assert handle is not before[path]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(("reader", "write", "settings"), WRITTEN)
def test_data_module_describes_and_windows_published_data(
    tmp_path, reader, write, settings, in_memory
):
    u = write(tmp_path)
    data = OwnDataModule(
        str(tmp_path), reader=reader, unroll_steps=2, batch_size=4, in_memory=in_memory,
        num_workers=0 if in_memory else 1, **settings,
    )  # fmt: skip
    data.setup()
    rows = data.rows(len(u))
    assert sorted(row for split in rows.values() for row in split) == list(range(len(u)))
    train = u[rows["train"]]
    axes = (0, 1, 2, 3)
    assert data.spec.channels == data.file.channels
    assert data.spec.mean == pytest.approx(train.mean(axes, np.float64), rel=1e-6)
    assert data.spec.std == pytest.approx(train.std(axes, dtype=np.float64), rel=1e-5)
    assert data.spec.parameters == tuple(data.file.parameters)
    for split in ("validation", "test"):
        assert np.array_equal(data.values[split], u[rows[split]])
        for column, name in enumerate(data.spec.parameters):
            expected = data.file.parameters[name][rows[split]]
            assert data.parameters[split][:, column].numpy() == pytest.approx(expected)
    for batch in data.train_dataloader():
        assert batch.u.shape == (4, 3, X, Y, u.shape[-1])
        assert batch.parameters.shape == (4, len(data.spec.parameters))
        for window, row in zip(batch.u.numpy(), batch.trajectory, strict=True):
            starts = [np.array_equal(window, train[row, s : s + 3]) for s in range(T - 2)]
            assert sum(starts) == 1


def test_splits_of_the_files_are_kept_and_can_be_shortened(tmp_path):
    write_arena_splits(tmp_path)
    data = OwnDataModule(str(tmp_path), reader="pdearena", num_train=6, num_test=1)
    rows = data.rows(14)
    assert [len(rows[split]) for split in ("train", "validation", "test")] == [6, 2, 1]
    assert set(rows["train"]) < set(range(9))
    assert rows["train"] != list(range(6))  # those of one file may be alike
    assert rows["validation"] == [9, 10]
    assert set(rows["test"]) < {11, 12, 13}
    assert data.hparams["num_validation"] == 2
    with pytest.raises(UpsError, match=r"`data\.num_test` must be at most 3, .* got 4"):
        OwnDataModule(str(tmp_path), reader="pdearena", num_test=4)


def test_statistics_of_large_fields_are_of_fewer_trajectories(tmp_path, monkeypatch):
    u = write_arena_splits(tmp_path)
    monkeypatch.setattr("ups.datamodules.statistics.STATISTICS_VALUES", 3 * u[0].size)
    for in_memory in (True, False):
        data = OwnDataModule(str(tmp_path), reader="pdearena", in_memory=in_memory)
        data.setup()
        expected = u[:9:3].mean((0, 1, 2, 3), np.float64)
        assert data.spec.mean == pytest.approx(expected, rel=1e-6)


def test_all_channels_of_all_splits_must_fit_into_memory(tmp_path, monkeypatch):
    u = write_arena_splits(tmp_path)
    planned = {}
    monkeypatch.setattr(
        "ups.datamodules.trajectories.check_memory", lambda size, what: planned.update({what: size})
    )
    OwnDataModule(str(tmp_path), reader="pdearena", in_memory=True).setup()
    assert planned == {
        "data.in_memory=true": u[:9].nbytes,
        "data.num_validation + data.num_test": u[9:].nbytes,
    }


@pytest.mark.integration
@pytest.mark.parametrize("choice", ["the_well", "pdebench_2d", "pdearena"])
def test_choice_of_data_has_its_reader(ups_run, choice):
    printed = ups_run(f"data={choice}", "data.path=a", "--cfg", "job").stdout
    assert f"reader: {choice}" in printed
    assert "enabled: false" in printed[printed.index("\nttc:") :]
    refused = ups_run(f"data={choice}", check=False)
    assert refused.returncode == 2
    assert "`data.path` must be a path, got null" in refused.stderr


@pytest.mark.integration
def test_published_data_train_and_test_a_model(ups_run, tmp_path):
    write_well_splits(tmp_path / "made_up/data")
    ups_run(
        "stage=operator", "data=the_well", "data.path=made_up", "data.field=[density,velocity]",
        "data.num_train=4", "data.batch_size=4", "data.samples_per_trajectory=1",
        "model=resnet", "model.hidden_channels=8", "trainer.max_epochs=1", "preflight=false",
    )  # fmt: skip
    results = json.loads((tmp_path / "outputs/made_up/reports/eval_operator.json").read_text())
    assert results["dataset"]["trajectories"] == 3
    rows = {row["model"]: row for row in results["rows"]}
    assert set(rows) == {"resnet", "persistence"}
    assert all(np.isfinite(row["nrmse"]) for row in rows.values())


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize(("reader", "write", "settings"), WRITTEN)
def test_smoke_runs_every_stage_on_published_data(ups_run, tmp_path, reader, write, settings):
    (tmp_path / "files").mkdir()
    write(tmp_path / "files")
    ups_run(
        "experiment=smoke", f"data={reader}", "data.path=files", "preflight=false", "name=smoke",
        "data.num_train=4", "data.num_validation=2", "data.num_test=2", "data.batch_size=4",
        "data.samples_per_trajectory=2", "trainer.max_epochs=1", "model.patch_overlap=1",
    )  # fmt: skip
    results = json.loads((tmp_path / "outputs/smoke/reports/eval_baseline.json").read_text())
    assert {row["correct"] for row in results["rows"]} == {"none", "diffusion", "consistency"}
    assert all(np.isfinite(row["nrmse"]) for row in results["rows"])
