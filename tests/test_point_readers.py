"""Published fields on points: UPT's transient flows, and series of meshes.

The files are written to the public descriptions of their layouts.
"""

import re
import shutil

import numpy as np
import pytest
import torch

from ups.core.errors import UpsError
from ups.datamodules import PointCloudDataModule
from ups.datamodules.readers import POINT_READERS, open_reader
from ups.models import build
from ups.modules import OperatorModule
from ups.simulation.simulator import Simulator

meshio = pytest.importorskip("meshio", reason="pip install meshio")

SIZES = {1: 30, 2: 41, 10: 25, 11: 33}  # points of the simulation of each number
FRAMES = 6
TIMES = 0.5 * np.arange(FRAMES)


def fields(number):
    """Positions (P, 2), and velocity and pressure (T, P, 3), exact in float16."""
    rng = np.random.default_rng(number)
    positions = rng.integers(0, 512, (SIZES[number], 2)) / 512 - 0.5
    return positions, rng.integers(-64, 64, (FRAMES, SIZES[number], 3)) / 64


def write_transient_flows(folder):
    """`case_N` holds x.th, y.th (P,), 00000000_mesh.th ... (3, P), in half precision."""
    for number in SIZES:
        case = folder / f"case_{number}"
        case.mkdir(parents=True)
        positions, values = fields(number)
        for name, column in zip(("x", "y"), positions.T, strict=True):
            torch.save(torch.from_numpy(column).half(), case / f"{name}.th")
        for k, frame in enumerate(values):
            torch.save(torch.from_numpy(frame.T.copy()).half(), case / f"{k:08d}_mesh.th")
        torch.save(torch.tensor(0.01 * number), case / "U_init.th")
        torch.save(torch.tensor(2), case / "num_objects.th")
        torch.save(torch.zeros(30, 20, dtype=torch.bool), case / "object_mask.th")
    return folder


def at_points(number):
    """What a mesh holds: positions in the plane z = 0, and data by name."""
    positions, values = fields(number)
    points = np.pad(positions, [(0, 0), (0, 1)])
    data = [{"U": np.pad(f[:, :2], [(0, 0), (0, 1)]), "p": f[:, 2]} for f in values]
    cells = [("triangle", np.arange(3 * (len(points) // 3)).reshape(-1, 3))]
    return points, cells, data


def write_vtk(folder):
    """A folder for each simulation, with a file for each frame."""
    for number in SIZES:
        case = folder / f"run{number}"
        case.mkdir(parents=True)
        points, cells, data = at_points(number)
        for k, each in enumerate(data):
            meshio.Mesh(points, cells, point_data=each).write(case / f"flow_{k + 5}.vtu")
    return folder


def write_xdmf(folder, times=TIMES):
    """A file for each simulation, with its times."""
    folder.mkdir()
    for number in SIZES:
        points, cells, data = at_points(number)
        path = folder / f"run{number}.xdmf"
        with meshio.xdmf.TimeSeriesWriter(path, data_format="XML") as writer:
            writer.write_points_cells(points, cells)
            for time, each in zip(times, data, strict=False):
                writer.write_data(time, point_data=each)
    return folder


CASES = {
    "transient_flow": (write_transient_flows, "transient_flow", {"dt": 0.5}),
    "vtk": (write_vtk, "meshes", {"dt": 0.5}),
    "xdmf": (write_xdmf, "meshes", {}),
}


@pytest.fixture(params=CASES)
def written(request, tmp_path):
    write, reader, settings = CASES[request.param]
    return write(tmp_path / "flows"), reader, settings


def test_values_are_those_that_were_written(written):
    folder, name, settings = written
    file = open_reader(name, POINT_READERS, folder, (1, 1), settings)
    assert (file.trajectories, file.frames, file.dt) == (4, FRAMES, pytest.approx(0.5))
    assert len(file.channels) == 3
    assert file.splits is None
    for i, number in enumerate(sorted(SIZES)):
        positions, values = fields(number)
        found, features = file.points(i)
        assert np.array_equal(found, positions.astype(np.float32))
        assert features.shape == (SIZES[number], 0)
        (read,) = file.read([i])
        assert read.dtype == np.float32
        assert np.array_equal(read, values.astype(np.float32))
    two = file.read([2, 0], 1, 3)
    assert np.array_equal(two[0], fields(10)[1][1:4].astype(np.float32))
    assert np.array_equal(two[1], fields(1)[1][1:4].astype(np.float32))


def test_frames_and_points_are_thinned(written):
    folder, name, settings = written
    file = open_reader(name, POINT_READERS, folder, (2, 3), settings)
    positions, values = fields(2)
    assert (file.frames, file.dt) == (3, pytest.approx(1.0))
    assert np.array_equal(file.points(1)[0], positions[::3].astype(np.float32))
    assert np.array_equal(file.read([1], 1, 2)[0], values[2::2, ::3].astype(np.float32))


def test_an_operator_trains_on_points_without_features(written):
    folder, name, settings = written
    data = PointCloudDataModule(
        path=str(folder), reader=name, unroll_steps=1, input_points=20, query_points=16, **settings
    )
    data.setup()
    assert {split: len(rows) for split, rows in data.values.items()} == {"validation": 1, "test": 1}
    assert len(data.train) == 2
    assert data.spec.domain.features == ()
    torch.manual_seed(0)
    sizes = {"num_tokens": 16, "hidden_dim": 16, "num_heads": 2, "approximator_depth": 1}
    sim = Simulator(build({"architecture": "point_upt", **sizes}, data.spec), data.spec)
    batch = next(iter(data.train_dataloader()))
    losses = OperatorModule(sim).compute_losses(batch)
    assert all(torch.isfinite(value) for value in losses.values())
    losses["loss"].backward()
    assert all(p.grad is not None for p in sim.parameters())


def test_the_speed_of_the_inflow_is_a_parameter(tmp_path):
    file = open_reader(
        "transient_flow", POINT_READERS, write_transient_flows(tmp_path / "a"), (1, 1), {"dt": 1.0}
    )
    assert file.channels == ("u", "v", "p")
    assert file.parameters["U_init"] == pytest.approx([0.01, 0.02, 0.1, 0.11])


def test_channels_are_the_components_in_the_plane(tmp_path):
    folder = write_vtk(tmp_path / "flows")
    assert open_reader("meshes", POINT_READERS, folder, (1, 1), {"dt": 1.0}).channels == (
        "U_x",
        "U_y",
        "p",
    )
    one = open_reader("meshes", POINT_READERS, folder, (1, 1), {"dt": 1.0, "field": "p"})
    assert one.channels == ("p",)
    assert np.array_equal(one.read([0])[0][..., 0], fields(1)[1][..., 2].astype(np.float32))


def without_a_frame(folder):
    next((folder / "case_10").glob("00000003*")).unlink()


def with_other_points(folder):
    torch.save(torch.zeros(7), folder / "case_2/x.th")


def with_a_damaged_frame(folder):
    (folder / "case_1/00000000_mesh.th").write_bytes(b"no tensor")


def renamed(pattern, name):
    """Give the files of every folder other names, each of its number."""

    def change(folder):
        for file in sorted(folder.glob(f"*/{pattern}")):
            number = int(re.search(r"\d+", file.name)[0])
            file.rename(file.with_name(f"new_{name(number)}"))
        for file in folder.glob("*/new_*"):
            file.rename(file.with_name(file.name.removeprefix("new_")))

    return change


def moved(file, other):
    return lambda folder: (folder / file).rename(folder / other)


def without_frame(pattern):
    """No folder has that frame."""

    def change(folder):
        for file in folder.glob(f"*/{pattern}"):
            file.unlink()

    return change


def without_simulations(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("damage", "settings", "message"),
    [
        (lambda folder: None, {}, "`data.dt` must be given"),
        (without_a_frame, {"dt": 1.0}, "case_10 has 5, .*case_1 has 6"),
        (with_other_points, {"dt": 1.0}, "x.th and y.th must agree"),
        (with_a_damaged_frame, {"dt": 1.0}, "00000000_mesh.th is not a tensor"),
        (without_simulations, {"dt": 1.0}, "must hold a folder for each simulation"),
        (
            without_frame("00000003_mesh.th"),
            {"dt": 1.0},
            "case_1: .* spaced, but from 00000002_mesh.th to 00000004_mesh.th is a step of 2",
        ),
        (
            moved("case_2/00000005_mesh.th", "case_2/00000006_mesh.th"),
            {"dt": 1.0},
            "case_2: .* from 00000004_mesh.th to 00000006_mesh.th is a step of 2, not 1",
        ),
        (
            moved("case_2/00000005_mesh.th", "case_2/4_mesh.th"),
            {"dt": 1.0},
            "case_2: .* from 00000004_mesh.th to 4_mesh.th is a step of 0, not 1",
        ),
        (lambda folder: None, {"dt": 1.0, "field": "p"}, "`data.field` must be null"),
        (
            lambda folder: (folder / "case_2" / "U_init.th").unlink(),
            {"dt": 1.0},
            "case_2/U_init.th must be there, as it is in other folders",
        ),
        (
            lambda folder: torch.save(torch.ones(30) + 1j, folder / "case_1" / "x.th"),
            {"dt": 1.0},
            "x.th must hold a tensor of 1 dimensions of real numbers",
        ),
    ],
)
def test_faults_of_transient_flows_are_said(tmp_path, damage, settings, message):
    folder = write_transient_flows(tmp_path / "flows")
    damage(folder)
    with pytest.raises(UpsError, match=message):
        file = open_reader("transient_flow", POINT_READERS, folder, (1, 1), settings)
        for i in range(4):
            file.points(i)
        file.read(range(4))


def with_moving_points(folder):
    points, cells, data = at_points(2)
    meshio.Mesh(points + 0.1, cells, point_data=data[3]).write(folder / "run2/flow_8.vtu")


def with_another_field(folder):
    points, cells, data = at_points(2)
    mesh = meshio.Mesh(points, cells, point_data={"q": data[3]["p"]})
    mesh.write(folder / "run2/flow_8.vtu")


def with_a_damaged_mesh(folder):
    (folder / "run1/flow_5.vtu").write_text("<VTKFile>")


@pytest.mark.parametrize(
    ("damage", "settings", "message"),
    [
        (lambda folder: None, {}, "`data.dt` must be given"),
        (lambda folder: None, {"dt": 1.0, "field": ["p", "T"]}, "are U, p; got T"),
        (with_moving_points, {"dt": 1.0}, "run2: the points must be the same in all frames"),
        (with_another_field, {"dt": 1.0}, "run2: a mesh has no data U, p"),
        (with_a_damaged_mesh, {"dt": 1.0}, "flow_5.vtu is not a mesh"),
        (without_simulations, {"dt": 1.0}, "must hold an XDMF file for each trajectory"),
        (lambda folder: None, {"dt": 1.0, "field": ["p", "p"]}, "different names, got p, p"),
        (
            without_frame("flow_7.vtu"),
            {"dt": 1.0},
            r"run1: .* from flow_6\.vtu to flow_8\.vtu is a step of 2, not 1",
        ),
        (
            moved("run10/flow_10.vtu", "run10/flow_20.vtu"),
            {"dt": 1.0},
            r"run10: .* from flow_9\.vtu to flow_20\.vtu is a step of 11, not 1",
        ),
    ],
)
def test_faults_of_meshes_are_said(tmp_path, damage, settings, message):
    folder = write_vtk(tmp_path / "flows")
    damage(folder)
    with pytest.raises(UpsError, match=message):
        open_reader("meshes", POINT_READERS, folder, (1, 1), settings).read(range(4))


NAMES = {
    "every 10th": lambda k: f"{10 * k}",
    "decimal times": lambda k: f"{0.25 * k:.2f}",
    "a point before the number": lambda k: f"2.{k}",
    "rounded decimal times": lambda k: f"{k / 3:.2f}",
    "rounded times": lambda k: f"{100 * k / 3:.0f}",
    "uneven counts of a solver's steps": lambda k: f"{100 * k + 7 * k * k}",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_frames_are_in_the_order_of_their_numbers(tmp_path, name):
    flows = write_transient_flows(tmp_path / "flows")
    renamed("*_mesh.th", lambda k: f"{7 * k}_mesh.th")(flows)
    meshes = write_vtk(tmp_path / "meshes")
    renamed("*.vtu", lambda k: f"flow{name(k)}.vtu")(meshes)
    for reader, folder in (("transient_flow", flows), ("meshes", meshes)):
        file = open_reader(reader, POINT_READERS, folder, (1, 1), {"dt": 1.0})
        assert np.array_equal(file.read([1])[0], fields(2)[1].astype(np.float32))


def test_of_several_numbers_the_one_that_varies_counts(tmp_path):
    folder = write_vtk(tmp_path / "flows")
    renamed("*.vtu", lambda k: f"step{k}_re100.vtu")(folder)
    file = open_reader("meshes", POINT_READERS, folder, (1, 1), {"dt": 1.0})
    assert np.array_equal(file.read([1])[0], fields(2)[1].astype(np.float32))
    without_frame("step7_re100.vtu")(folder)
    with pytest.raises(UpsError, match=r"from step6_re100\.vtu to step8_re100\.vtu is a step of 2"):
        open_reader("meshes", POINT_READERS, folder, (1, 1), {"dt": 1.0})


def test_a_file_without_a_number_among_frames_is_refused(tmp_path):
    folder = write_vtk(tmp_path / "flows")
    for case in folder.iterdir():
        shutil.copy(case / "flow_5.vtu", case / "boundary.vtu")
    with pytest.raises(UpsError, match=r"boundary\.vtu must have a number in its name"):
        open_reader("meshes", POINT_READERS, folder, (1, 1), {"dt": 1.0})


def test_axes_are_those_of_all_trajectories_but_for_rounding(tmp_path):
    folder = write_vtk(tmp_path / "flows")

    def move(case, size):
        for path in case.iterdir():
            mesh = meshio.read(path)
            mesh.points[:, 2] = size * np.linspace(-1, 1, len(mesh.points))
            mesh.write(path)

    move(folder / "run1", 1e-9)
    file = open_reader("meshes", POINT_READERS, folder, (1, 1), {"dt": 1.0})
    assert file.channels == ("U_x", "U_y", "p")
    move(folder / "run10", 1.0)
    file = open_reader("meshes", POINT_READERS, folder, (1, 1), {"dt": 1.0})
    assert file.channels == ("U_x", "U_y", "U_z", "p")
    assert file.points(0)[0].shape[1] == 3


def test_names_without_numbers_are_in_the_order_of_the_alphabet(tmp_path):
    folder = write_vtk(tmp_path / "flows")
    renamed("*.vtu", lambda k: f"run2_{'abcdefghijk'[k]}.vtu")(folder)
    file = open_reader("meshes", POINT_READERS, folder, (1, 1), {"dt": 1.0})
    assert np.array_equal(file.read([1])[0], fields(2)[1].astype(np.float32))


def test_decimal_times_in_another_order_are_refused(tmp_path):
    folder = write_vtk(tmp_path / "flows")
    renamed("*.vtu", lambda k: f"flow{0.25 * k}.vtu")(folder)  # 1.5 comes before 1.25
    with pytest.raises(UpsError, match=r"from flow1\.5\.vtu to flow1\.25\.vtu .* as many dig"):
        open_reader("meshes", POINT_READERS, folder, (1, 1), {"dt": 1.0})


def test_frames_have_the_same_step_in_all_trajectories(tmp_path):
    folder = write_vtk(tmp_path / "flows")
    renamed("run10/*.vtu", lambda k: f"flow_{2 * k}.vtu")(folder.parent)
    with pytest.raises(UpsError, match=r"same step in all .* in .*run10 it is 2, in .*run1 1\.$"):
        open_reader("meshes", POINT_READERS, folder, (1, 1), {"dt": 1.0})


def test_numbers_of_frames_are_compared_before_they_are_thinned(tmp_path):
    folder = write_transient_flows(tmp_path / "flows")
    (folder / "case_2/00000005_mesh.th").unlink()
    with pytest.raises(UpsError, match=r"case_2 has 5, .*case_1 has 6"):
        open_reader("transient_flow", POINT_READERS, folder, (2, 1), {"dt": 1.0})


def test_series_have_the_same_time_between_frames(tmp_path):
    folder = write_xdmf(tmp_path / "flows")
    other = write_xdmf(tmp_path / "others", 2 * TIMES)
    shutil.copy(other / "run2.xdmf", folder / "run2.xdmf")
    with pytest.raises(UpsError, match=r"same in all trajectories: in .*run2.xdmf it is 1, in .*r"):
        open_reader("meshes", POINT_READERS, folder, (1, 1), {})


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.0, 0.5, 1.5], "run1.xdmf: 'time' must be evenly spaced"),
        ([0.0, 0.5, 0.5], "run1.xdmf: 'time' must be 3 finite, increasing numbers"),
        ([0.5], "run1.xdmf: 'time' must be at least 2 numbers, got 1"),
    ],
)
def test_times_of_a_series_without_one_step_are_refused(tmp_path, times, message):
    folder = write_xdmf(tmp_path / "flows", times)
    with pytest.raises(UpsError, match=message):
        open_reader("meshes", POINT_READERS, folder, (1, 1), {})


def test_a_reader_of_files_needs_a_path():
    with pytest.raises(UpsError, match=r"`data.path` must be given: data.reader=meshes reads it"):
        PointCloudDataModule(reader="meshes")
    with pytest.raises(UpsError, match=r"`data.path` must be a file or a folder"):
        PointCloudDataModule(reader="meshes", path="nowhere")
    with pytest.raises(UpsError, match=r"`data.reader` must be one of point_clouds, transient_flo"):
        PointCloudDataModule(reader="mesh", path=".")
