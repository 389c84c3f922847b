"""Data on points of their own: windows at random points, statistics, and a whole run."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers.killing import WITH_KILLER, call_killed
from hydra import compose, initialize_config_dir
from test_obstacles import TINY

import ups
from ups import pipeline
from ups.core.errors import UpsError
from ups.datamodules import PointCloudDataModule
from ups.datamodules import obstacles as ob
from ups.datamodules.own import OwnDataModule
from ups.datamodules.point_clouds import SIZES
from ups.datamodules.readers.point_clouds import PointCloudFile
from ups.hub.model_card import render_model_card
from ups.models import build
from ups.modules import DiffusionModule, OperatorModule
from ups.modules.evaluation import MeasurementModule, measure_baselines, measure_simulator
from ups.run import CONF
from ups.runs.data_defaults import with_default_model, without_generated_sizes
from ups.simulation.simulator import Simulator


def composed(*overrides):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", list(overrides))


FLOWS = {name: value for name, value in asdict(TINY).items() if name not in SIZES}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return ob.generate_obstacles(TINY, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def data(path):
    module = PointCloudDataModule(
        path=str(path), input_points=150, query_points=60, unroll_steps=1, batch_size=4
    )
    module.setup()
    return module


def batches(module, epoch_batches=None):
    return list(module.train_dataloader())[:epoch_batches]


def find(positions, point):
    """The index of a point among positions (P, D)."""
    (rows,) = np.nonzero((positions == point).all(1))
    assert len(rows) >= 1
    return rows[0]


def test_windows_hold_the_values_of_their_points(data, path):
    file = PointCloudFile(path)
    (batch,) = batches(data, 1)
    start, start_points = batch.start
    assert batch.u.shape == (4, 2, 60, 3)
    assert start.shape == (4, 150, 3)
    assert batch.parameters.shape == (4, 1)
    for b, i in enumerate(batch.trajectory.tolist()):
        geometry = file.geometry(i)
        (fields,) = file.read([i])
        assert batch.parameters[b].item() == pytest.approx(file.parameters["reynolds"][i])
        frames = []
        for q in (0, 7, 59):
            row = find(geometry.positions, batch.points.positions[b, q].numpy())
            distance, *types = batch.points.features[b, q].tolist()
            assert distance == geometry.signed_distance[row]
            assert types.index(1.0) == geometry.node_type[row]
            values = batch.u[b, :, q].numpy()
            frames.append(next(k for k in range(2) if np.array_equal(fields[k, row], values[0])))
            assert np.array_equal(fields[frames[-1] + 1, row], values[1])
        assert len(set(frames)) == 1
        row = find(geometry.positions, start_points.positions[b, 0].numpy())
        assert np.array_equal(fields[frames[0], row], start[b, 0].numpy())


def test_trajectories_with_fewer_points_are_padded(data, path):
    sizes = [len(PointCloudFile(path).geometry(i).positions) for i in range(5)]
    for batch in batches(data, 2):
        _, points = batch.start
        counts = points.mask.sum(1).tolist()
        assert counts == [min(150, sizes[i]) for i in batch.trajectory.tolist()]
        assert not points.positions[~points.mask].any()
    held_out = data.points["test"].mask.sum(1).tolist()
    assert held_out == [sizes[3], sizes[4]]
    assert data.values["test"].shape == (2, 3, max(held_out), 3)


def test_encoder_and_decoder_have_draws_of_their_own_that_a_repeated_epoch_repeats(data):
    (batch,) = batches(data, 1)
    (again,) = batches(data, 1)
    assert torch.equal(batch.points.positions, again.points.positions)
    _, points = batch.start
    _, points_again = again.start
    assert torch.equal(points.positions, points_again.positions)
    assert not torch.equal(points.positions[:, :60], batch.points.positions)
    same = [
        (a == b).all(1).float().mean()
        for a, b in zip(batch.points.positions[:2], batch.points.positions[2:], strict=True)
    ]
    assert max(same) < 1
    # another epoch has other points
    sampler = data.train_dataloader().sampler
    first, second = (next(sampler._epoch(epoch, 0)) for epoch in (0, 1))
    assert not np.array_equal(first.seed, second.seed)


def test_decoder_may_be_asked_at_the_points_of_the_encoder(path):
    data = PointCloudDataModule(path=str(path), input_points=150, query_points=None, unroll_steps=1)
    data.setup()
    (batch,) = batches(data, 1)
    u_0, points = batch.start
    assert batch.u.shape == (8, 2, 150, 3)
    assert torch.equal(u_0, batch.u[:, 0])
    assert points is batch.points
    assert not torch.equal(points.positions[0], points.positions[2])


def test_statistics_are_of_the_training_split(data, path):
    file = PointCloudFile(path)
    values = np.concatenate([each.reshape(-1, 3) for each in file.read([0, 1])]).astype(float)
    assert data.spec.mean == pytest.approx(values.mean(0), rel=1e-5, abs=1e-7)
    assert data.spec.std == pytest.approx(values.std(0), rel=1e-3)
    distances = np.concatenate([file.geometry(i).signed_distance for i in (0, 1)]).astype(float)
    units = (np.sqrt((distances**2).mean()), *(1.0 for _ in file.node_types))
    assert data.spec.domain.edges == ((0.0, 8.0), (0.0, 4.0))
    assert data.spec.domain.features == ("signed_distance", *file.node_types)
    assert data.spec.domain.feature_units == pytest.approx(units, rel=1e-6)
    assert (data.spec.channels, data.spec.parameters) == (("u", "v", "p"), ("reynolds",))
    assert data.spec.dt == 0.5
    reynolds = file.parameters["reynolds"][:2]
    assert data.training_parameters == [[reynolds.min()], [reynolds.max()]]
    largest = (np.abs(values).max(0) / np.array(data.spec.std)).max()
    assert data.input_range(data.spec)["largest value"] == pytest.approx(largest, rel=1e-5)
    distances = np.abs(values - values.mean(0)).max(0)
    assert data.spec.largest == pytest.approx(distances, rel=1e-5)


ON_POINTS = {
    "point_memory_upt": {"num_points": [16, 8], "hidden_channels": 8, "depth": 1},
    "point_upt": {"num_tokens": 12, "hidden_dim": 16, "num_heads": 2, "approximator_depth": 1},
    "upt": {"num_supernodes": 20, "num_tokens": 6, "hidden_dim": 16, "num_heads": 2},
}


@pytest.mark.parametrize("unit", [1e-7, 1e3])
@pytest.mark.parametrize("architecture", ON_POINTS)
def test_rollouts_do_not_depend_on_the_unit_of_length(data, path, tmp_path, architecture, unit):
    other = tmp_path / "other.h5"
    shutil.copy(path, other)
    with h5py.File(other, "a") as file:
        for name in ("positions", "signed_distance"):
            file[name][...] *= unit
    scaled = PointCloudDataModule(path=str(other), unroll_steps=1)
    scaled.setup()
    frames = []
    for module in (data, scaled):
        torch.manual_seed(0)
        model = build({"architecture": architecture, **ON_POINTS[architecture]}, module.spec)
        for p in model.parameters():
            p.data.add_(0.05 * torch.randn_like(p))
        sim = Simulator(model, module.spec).eval()
        options = {"parameters": {"reynolds": 100.0}, "x": module.points["test"]}
        frames.append(sim.rollout(module.values["test"][:, 0], 2, **options))
    assert frames[0].std() > 0.1
    assert torch.allclose(*frames, atol=1e-3)


def test_flows_are_generated_once_and_are_those_of_the_settings(path, tmp_path):
    module = PointCloudDataModule(
        cache_dir=str(tmp_path),
        flows=FLOWS,
        num_frames=3,
        num_train=2,
        num_validation=1,
        num_test=2,
        unroll_steps=1,
    )
    assert module.path.name == path.name
    assert module.open_files() == []
    assert module.to_be_made() == 2 * 4 * 5 * 3 * 200 * 3
    assert module.train_bytes() == 4 * 2 * 3 * 200 * 3
    module.prepare_data()
    module.setup()
    assert module.to_be_made() == 0
    other = PointCloudDataModule(path=str(path), unroll_steps=1)
    other.setup()
    assert module.dataset["hash"] == other.dataset["hash"]
    assert module.dataset["name"] == "obstacles"
    assert (module.dataset["trajectories"], module.dataset["frames"]) == (2, 3)


def test_splits_may_be_smaller_than_those_of_the_file(path):
    module = PointCloudDataModule(path=str(path), num_train=1, num_test=1, unroll_steps=1)
    module.setup()
    assert len(module.train) == 1
    assert len(module.values["test"]) == 1
    with pytest.raises(UpsError, match=r"`data.num_train` must be at most 2"):
        PointCloudDataModule(path=str(path), num_train=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"path": "nowhere.h5"},
            r"`data.path` must be a file or a folder: there is no nowhere\.h5",
        ),
        ({"input_points": 0}, r"`data.input_points` must be an integer >= 1, got 0"),
        ({"flows": {"reynolds": [9.0, 2.0]}}, "`reynolds` must be a range of numbers > 0"),
        ({"flows": {"hight": 4.0}}, r"`data.flows.hight` is not a key"),
    ],
)
def test_invalid_settings_are_refused(changes, message):
    with pytest.raises(UpsError, match=message):
        PointCloudDataModule(**changes)


def test_generated_fields_that_have_changed_are_refused(path, tmp_path):
    arguments = {"cache_dir": str(tmp_path), "flows": FLOWS, "unroll_steps": 1}
    sizes = {name: getattr(TINY, name) for name in SIZES}
    module = PointCloudDataModule(**arguments, **sizes)
    shutil.copy(path, module.path)
    module.setup()
    with h5py.File(module.path, "a") as file:
        file["fields"][0, 5, 1] += 1e-3
    with pytest.raises(UpsError, match="the values of 'fields' are not those that were written"):
        PointCloudDataModule(**arguments, **sizes).setup()
    thinned = PointCloudDataModule(**arguments, **sizes, temporal_downsampling=2)
    thinned.setup()  # no hash is known of a part


@pytest.fixture
def edited(path, tmp_path):
    """The file of flows with another array or attribute."""

    def edit(name, change):
        copied = Path(shutil.copy(path, tmp_path / "edited.hdf5"))
        with h5py.File(copied, "a") as file:
            if name in file.attrs:
                file.attrs[name] = change(file.attrs[name])
            else:
                values, attributes = file[name][...], dict(file[name].attrs)
                del file[name]
                file[name] = change(values)
                file[name].attrs.update(attributes)
        return PointCloudDataModule(path=str(copied), unroll_steps=1)

    return edit


@pytest.mark.parametrize("name", ["fields", "positions", "signed_distance"])
def test_a_test_set_is_another_if_one_of_its_numbers_is(edited, path, name):
    def hash_with(change):
        module = edited(name, change)
        module.setup()
        return module.dataset["hash"]

    def changed_at(point):
        def change(values):
            values = values.copy()
            (values if values.ndim < 3 else values.swapaxes(0, 1))[point] += 0.01
            return values

        return change

    before = hash_with(lambda v: v)
    assert hash_with(changed_at(0)) == before  # of the training set
    assert hash_with(changed_at(-1)) != before


@pytest.mark.parametrize("kind", ["f2", "f8", ">f4", "i4"])
def test_numbers_of_every_kind_are_float32_inside(edited, path, kind):
    module = edited("fields", lambda u: np.round(100 * u).astype(kind))
    module.setup()
    assert {each.dtype for each in PointCloudFile(module.path).read([0, 3])} == {np.dtype("f4")}
    (batch, *_) = module.test_dataloader()
    assert {batch.u.dtype, batch.points.positions.dtype} == {torch.float32}
    assert all(fields.dtype == torch.float32 for fields, _, _ in module.train)
    assert batches(module, 1)[0].u.dtype == torch.float32
    (exact,) = PointCloudFile(path).read([3])
    expected = torch.from_numpy(np.round(100 * exact).astype(kind).astype(np.float32))
    assert torch.equal(batch.u[0][:, batch.points.mask[0]], expected)


def with_value(value, *place):
    """A change of one number of an array."""

    def change(values):
        values = values.copy()
        values[place] = value
        return values

    return change


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("fields", with_value(np.nan, 1, -1, 2), "the fields of trajectory 4 must be finite"),
        ("fields", with_value(np.inf, 0, 0, 0), "the fields of trajectory 0 must be finite"),
        ("fields", with_value(0.1, ..., 1), "the standard deviation of the training data must be"),
        ("positions", with_value(np.nan, 0, 1), "the positions of trajectory 0 must be finite"),
        ("signed_distance", with_value(np.nan, -1), "the features of trajectory 4 must be"),
        ("parameters/reynolds", with_value(0.0, 4), "'reynolds' must be positive .* trajectory 4"),
        ("parameters/reynolds", with_value(np.nan, 1), "'reynolds' must be .* got nan for"),
        ("parameters/reynolds", lambda v: v[:3], r"must have the shape \(5,\), got \(3,\)"),
        ("node_type", with_value(9, 3), "'node_type' must be whole numbers, each an index of the"),
        ("node_type", lambda v: v.astype("i4") - 1, "'node_type' must be whole numbers"),
        ("node_type", lambda v: v.astype("f4"), "'node_type' must be whole numbers"),
        (
            "channels",
            lambda v: ["a", "b", "a"],
            "channels of .* must have different names, got a, b",
        ),
        (
            "node_types",
            lambda v: [v[0]] * len(v),
            "node_types of .* must have different names, got",
        ),
        ("t-coordinate", lambda v: np.tile(v, (2, 1)), "'t-coordinate' must be .* the 5 trajector"),
        ("splits", lambda v: np.array([5, 0, 0]), "'splits' must be three whole numbers > 0"),
        ("splits", lambda v: np.array([3.0, 1.0, 1.0]), "'splits' must be three whole numbers"),
        ("splits", lambda v: np.array([7, -1, -1]), "'splits' must be three whole numbers"),
        ("splits", lambda v: "two, one, two", "'splits' must be three whole numbers"),
    ],
)
def test_a_fault_of_a_file_is_named(edited, name, change, words):
    with pytest.raises(UpsError, match=words) as refusal:
        edited(name, change).setup()
    assert "edited.hdf5" in str(refusal.value)


def test_a_file_without_splits_is_refused(path, tmp_path):
    copied = Path(shutil.copy(path, tmp_path / "flows.hdf5"))
    with h5py.File(copied, "a") as file:
        del file.attrs["splits"]
    with pytest.raises(UpsError, match="there is no attribute 'splits'"):
        PointCloudDataModule(path=str(copied))


def test_parameters_that_are_no_group_are_refused(path, tmp_path):
    copied = Path(shutil.copy(path, tmp_path / "flows.hdf5"))
    with h5py.File(copied, "a") as file:
        del file["parameters"]
        file["parameters"] = 1.0
    with pytest.raises(UpsError, match="'parameters' must be a group, got <HDF5 dataset"):
        PointCloudFile(copied)


def test_a_file_of_points_is_not_of_a_grid(path):
    with pytest.raises(UpsError, match=f"of points, which data=obstacles data.path={path} reads"):
        OwnDataModule(path=str(path))


def test_windows_longer_than_a_trajectory_are_refused(path):
    with pytest.raises(UpsError, match=r"`data.unroll_steps` must be at most 2"):
        PointCloudDataModule(path=str(path), unroll_steps=3).setup()


def test_model_follows_data_on_points():
    changed = with_default_model(composed("data=obstacles"), [])
    assert changed.model == {
        "name": "point-memory-upt",
        "architecture": "point_memory_upt",
    }
    cfg = composed("data=obstacles", "experiment=smoke", "stage=operator")
    changed = with_default_model(without_generated_sizes(cfg, []), [])
    assert changed.model.architecture == "point_memory_upt"
    assert changed.model.num_points == 512
    assert "default_model" not in changed
    assert "num_points" not in changed.data
    assert changed.data.flows.resolution == 8
    named = with_default_model(cfg, ["model=mixer_tiny"])
    assert named.model == cfg.model
    assert "default_model" not in named
    kept = with_default_model(cfg, ["model.hidden_dim=16"]).model
    assert kept.hidden_dim == cfg.model.hidden_dim
    line = composed("experiment=smoke")
    assert with_default_model(line, []) is line
    assert without_generated_sizes(line, []) is line
    assert "flows" not in line.data


def relative_errors(pred, target, points):
    """Relative errors (B, T, C), without what only pads a sample."""
    mask = points.mask[:, None, :, None]
    square = ((pred - target).square() * mask).sum(2) / (target.square() * mask).sum(2)
    return square.double().sqrt()


@pytest.fixture(scope="module")
def simulator(data):
    torch.manual_seed(0)
    sizes = {"num_tokens": 18, "hidden_dim": 16, "num_heads": 2, "approximator_depth": 1}
    model = build({"architecture": "point_upt", **sizes}, data.spec)
    return Simulator(model, data.spec).eval()


def test_a_corrector_of_fields_on_points_is_refused(simulator):
    network = {"hidden_dim": 8, "depth": 1, "mlp_ratio": 1.0, "dilations": [1]}
    networks = {"mean_network": network, "denoiser": network}
    with pytest.raises(UpsError, match="`data` must be fields on a grid: DiffusionModule does"):
        DiffusionModule(simulator, corrector=networks)


def test_validation_leaves_out_what_only_pads(data, simulator):
    (batch,) = list(data.test_dataloader())
    assert not batch.points.mask.all()
    module = OperatorModule(simulator)
    module.metrics = None
    module.validation_step(batch, 0)
    frames = simulator.rollout(
        batch.u[:, 0], 2, parameters={"reynolds": batch.parameters[:, 0]}, x=batch.points
    )
    expected = relative_errors(frames, batch.u[:, 1:], batch.points).mean().item()
    assert module.metrics.compute()["nrmse"] == pytest.approx(expected, rel=1e-4)


def test_evaluation_on_points_has_what_needs_no_grid(data, simulator):
    (batch,) = list(data.test_dataloader())
    measurements = measure_simulator(simulator, "mine", ["none"])
    measurements += measure_baselines(data.spec, None)
    module = MeasurementModule(data.spec, measurements)
    module.on_test_start()
    module.test_step(batch, 0)
    module.on_test_epoch_end()
    assert [row.label for row in module.rows] == ["mine, latent", "mine, physical", "persistence"]
    latent, physical, persistence = module.rows
    target = batch.u[:, 1:]
    before = batch.u[:, :-1]
    errors = relative_errors(batch.u[:, :1], target, batch.points)
    assert persistence["nrmse"] == pytest.approx(errors.mean().item(), rel=1e-5)
    assert persistence["nrmse_over_time"] == pytest.approx(errors.mean((0, 2)).tolist(), rel=1e-5)
    errors = relative_errors(before, target, batch.points)
    assert persistence["one_step_nrmse"] == pytest.approx(errors.mean().item(), rel=1e-5)
    options = {"parameters": {"reynolds": batch.parameters[:, 0]}, "x": batch.points}
    for row, mode in ((latent, "latent"), (physical, "physical")):
        frames = simulator.rollout(batch.u[:, 0], 2, mode=mode, **options)
        errors = relative_errors(frames, target, batch.points)
        assert row["nrmse"] == pytest.approx(errors.mean().item(), rel=1e-4)
        if mode == "latent":
            by_channel = errors.mean(0).numpy()
            assert module.channel_nrmse.numpy() == pytest.approx(by_channel, rel=1e-4)
        step = torch.stack([simulator(u, **options) for u in before.unbind(1)], 1)
        errors = relative_errors(step, target, batch.points)
        assert row["one_step_nrmse"] == pytest.approx(errors.mean().item(), rel=1e-4)
    best, median, worst = module.examples.values()
    assert len({len(each.points.positions[0]) for each in (best, worst)}) == 2
    assert median.truth.shape == median.pred.shape == (2, len(median.points.positions[0]), 3)
    assert len(module.errors_by_distance.distance) > 4
    assert module.spectra is None


@pytest.mark.usefixtures("drawn")
@pytest.mark.slow
def test_a_run_on_points_trains_tests_and_loads(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = [
        "stage=operator",
        "data=obstacles",
        f"data.path={path}",
        "data.unroll_steps=1",
        "data.batch_size=2",
        "data.samples_per_trajectory=4",
        "data.input_points=64",
        "data.query_points=64",
        "model=point_upt",
        "model.num_tokens=18",
        "model.hidden_dim=16",
        "model.num_heads=2",
        "trainer.max_epochs=2",
        "name=points",
    ]
    score = pipeline.run(composed(*overrides), overrides)
    assert 0 < score < 10
    found = json.loads(Path("outputs/points/reports/eval_operator.json").read_text())
    labels = [(row["model"], row["mode"]) for row in found["rows"]]
    assert labels == [
        ("point-upt", "latent"),
        ("point-upt", "physical"),
        ("persistence", "physical"),
    ]
    for row in found["rows"]:
        assert row["nrmse"] > 0
        assert len(row["nrmse_over_time"]) == 2
        assert not {"crmse", "brmse", "frmse_low"} & set(row)
    page = Path("outputs/points/reports/report.html").read_text()
    assert "error over time of each channel" in page
    assert "energy spectrum" not in page
    assert "distance from the nearest wall" in page
    assert page.count("data:image/webp") == 9
    assert Path("outputs/points/reports/eval_operator.png").exists()
    sim = ups.load("outputs/points")
    data = PointCloudDataModule(path=str(path))
    data.setup()
    points = data.points["test"]
    frames = sim.rollout(data.values["test"][:, 0], 2, parameters={"reynolds": 40.0}, x=points)
    assert frames.shape == data.values["test"][:, 1:].shape
    sim.save("model", render_model_card(Path("outputs/points"), "points"))
    card = Path("model/README.md").read_text()
    assert 'steps=2, parameters={"reynolds": ...}, x=x)    # u0 (B, P, 3) at x, ups.Points' in card
    assert "points in [0, 8] x [0, 4], on initial conditions" in card
    assert torch.equal(
        ups.load("model").rollout(data.values["test"][:, 0], 2, nu=40.0, x=points), frames
    )


RUN = [
    "stage=operator",
    "data=obstacles",
    "data.samples_per_trajectory=4",
    "data.batch_size=2",
    "data.unroll_steps=1",
    "data.input_points=64",
    "data.query_points=64",
    "model=point_memory_upt",
    "model.num_points=128",
    "model.hidden_channels=16",
    "loss.inverse_loss_frequency=1",
    "trainer.max_epochs=3",
    "preflight=false",
]


@pytest.mark.slow
@pytest.mark.integration
def test_killed_run_on_points_resumes_to_the_same_weights(ups_run, path, tmp_path):
    settings = [*RUN, f"data.path={path}", "callbacks.last.every_n_train_steps=1"]
    ups_run(*settings, "name=whole")
    done = call_killed(tmp_path, "step 6", "ups.run", *settings, "name=killed")
    assert done.returncode == -9, done.stdout + done.stderr
    assert "resuming from" in ups_run(*settings, "name=killed", WITH_KILLER).stdout
    ups_run(*settings, "name=without", "lambda_inv=0")
    whole, killed, without = (
        ups.load(tmp_path / f"outputs/{name}/checkpoints/operator.ckpt").state_dict()
        for name in ("whole", "killed", "without")
    )
    assert all(torch.equal(whole[key], killed[key]) for key in whole)
    # the inverse losses change what is learned
    assert any(not torch.equal(whole[key], without[key]) for key in whole)
