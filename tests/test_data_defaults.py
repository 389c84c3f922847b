"""What the settings leave open follows the data: names of runs, sizes of splits, tokens."""

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

import ups
import ups.pipeline
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.models import build
from ups.run import CONF
from ups.runs.data_defaults import follow_data, nearest_number, without_generated_sizes


def composed(*overrides):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", list(overrides))


@pytest.fixture
def waves(tmp_path):
    """The path of an array of 24 trajectories on 100 points, and the overrides that read it."""
    path = tmp_path / "waves.npy"
    phase = np.arange(24)[:, None, None] + 0.1 * np.arange(8)[:, None] + np.arange(100) * 0.02
    np.save(path, np.sin(np.pi * phase))
    return ["data=own", f"data.path={path}", "data.dt=0.1", "data.length=1"]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "burgers"),
        (["data.nu=[0.001,0.01]"], "burgers"),
        (["data=advection"], "advection"),
        (["data=navier_stokes"], "navier_stokes"),
        (["data=navier_stokes_1e-5"], "navier_stokes_1e-5"),
        (["data=navier_stokes_uncertain"], "navier_stokes_uncertain"),
        (["data=navier_stokes_1e-5", "data.path=a/flow.hdf5"], "flow"),
        (["data=own", "data.path=a/waves.npy"], "waves"),
        (["data=pdebench", "data.path=a/1D_Burgers_Nu0.01.hdf5"], "1D_Burgers_Nu0.01"),
        (["data=pdebench", "data.path=[a_Nu0.1.hdf5,b_Nu1.hdf5]"], "a_Nu0.1-b_Nu1"),
        (["data=pdebench_advection", "data.path=c_beta0.4.hdf5"], "c_beta0.4"),
        (["data.path=made.hdf5"], "made"),
        (["data=own", "data.path=a/waves.npy", "name=mine"], "mine"),
        (["data=pdebench", "data.path=x.hdf5", "experiment=burgers_upt"], "burgers_upt"),
        (["experiment=smoke"], "smoke"),
        (["experiment=smoke", "data=advection"], "smoke-advection"),
        (["experiment=smoke", "data=own", "data.path=a/waves.npy"], "smoke-waves"),
    ],
)
def test_run_is_named_by_its_data(overrides, name):
    assert composed(*overrides).name == name


@pytest.mark.parametrize("name", ["burgers", "navier_stokes", "shallow_water"])
def test_data_of_an_experiment_are_made_as_they_are_composed(name):
    data = instantiate(composed("experiment=smoke", f"data={name}").data, _convert_="all")
    assert data.hparams["num_train"] == 128


@pytest.mark.parametrize(
    ("space", "target", "number"),
    [
        ((256,), 64, 64),
        ((100,), 64, 50),
        ((100,), 32, 25),
        ((101,), 64, 101),
        ((202,), 64, 101),
        ((96,), 64, 48),
        ((64, 64), 64, 64),
        ((5, 7), 64, 35),
        ((30, 7), 64, 70),  # 10 x 7
        ((8, 8, 16), 32, 32),
    ],
)
def test_nearest_number_of_tokens_is_nearest_as_a_ratio(space, target, number):
    assert nearest_number(space, target) == number


@pytest.mark.parametrize(
    ("space", "target", "fewest", "number"),
    [
        ((8, 8, 16), 32, 3, 64),  # 2 x 4 x 4 would leave an axis with two
        ((128, 128, 8), 64, 1, 64),
        ((64, 64), 4, 3, 16),
        ((2, 64), 4, 3, 64),  # 2 x 32: two points have two
    ],
)
def test_nearest_number_of_tokens_leaves_room_for_windows(space, target, fewest, number):
    assert nearest_number(space, target, fewest) == number


@pytest.mark.parametrize(
    ("model", "key", "value"),
    [
        ("mixer_small", "num_tokens", 50),
        ("mixer_tiny", "num_tokens", 25),
        ("upt", "num_patches", 50),
    ],
)
def test_tokens_divide_the_points_of_a_file(waves, model, key, value):
    cfg = composed(*waves, f"model={model}")
    assert follow_data(cfg, waves).model[key] == value
    assert follow_data(cfg, [*waves, f"model.{key}=64"]).model[key] == cfg.model[key]


@pytest.mark.parametrize("model", ["memory_upt", "patch_stepper"])
def test_tokens_without_a_number_have_four_points(waves, model):
    cfg = composed(*waves, f"model={model}")
    assert follow_data(cfg, waves).model.num_tokens is None
    spec = FieldSpec(Grid((100,), (1.0,)), ("u",), ())
    assert build(OmegaConf.to_container(cfg.model), spec).num_tokens == 25
    # an experiment's number follows the data
    with_number = composed(*waves, f"model={model}", "model.num_tokens=64")
    assert follow_data(with_number, waves).model.num_tokens == 50


def test_tokens_divide_the_points_of_generated_data():
    cfg = composed("model=mixer_small", "data.num_points=100", "data.reference_num_points=400")
    assert follow_data(cfg, []).model.num_tokens == 50
    assert follow_data(composed(), []) == composed()


def test_latent_tokens_of_the_paper_need_not_divide_the_points(waves):
    assert follow_data(composed(*waves, "model=upt"), waves).model.num_tokens == 64


def test_patches_given_for_each_axis_are_left_as_they_are(waves):
    cfg = composed(*waves, "model=upt", "model.num_patches=[30]")
    assert follow_data(cfg, waves).model.num_patches == [30]


def test_split_without_a_size_is_a_share(waves):
    data = follow_data(composed(*waves, "data.num_test=5"), waves).data
    assert (data.num_train, data.num_validation, data.num_test) == (17, 2, 5)


def test_sizes_of_an_experiment_are_left_out_if_the_data_are_a_file(waves):
    words = [*waves, "experiment=smoke"]
    data = without_generated_sizes(composed(*words), words).data
    assert {"num_points", "reference_num_points", "num_frames"}.isdisjoint(data)
    assert (data.num_train, data.num_validation, data.num_test) == (None, None, None)
    assert data.samples_per_trajectory == 8
    words.append("data.num_train=12")
    assert without_generated_sizes(composed(*words), words).data.num_train == 12
    words = [*waves, "data.num_train=12"]
    assert without_generated_sizes(composed(*words), words) == composed(*words)


def test_size_of_generated_data_is_refused_if_the_command_names_it(waves):
    words = [*waves, "experiment=smoke", "data.num_points=50"]
    with pytest.raises(UpsError, match=r"`data\.num_points` is not a key of .*OwnDataModule"):
        ups.pipeline.run(composed(*words), words)


@pytest.mark.integration
def test_smoke_runs_every_stage_on_a_file_of_100_points(ups_run, waves, tmp_path):
    ups_run(*waves, "experiment=smoke", "preflight=false", "trainer.max_epochs=1")
    sim = ups.load(tmp_path / "outputs/smoke-waves")
    assert (len(sim.x), sim.model.num_tokens) == (100, 25)


@pytest.mark.integration
def test_two_arrays_are_fitted_without_names_for_their_runs(tmp_path):
    settings = [
        "trainer.max_epochs=1", "model.depth=2", "model.hidden_channels=8", "preflight=false",
        "data.samples_per_trajectory=2",
    ]  # fmt: skip
    u = np.random.default_rng(0).normal(size=(20, 6, 100))
    for array in (u, 2 * u):
        sim = ups.fit(array, dt=0.5, length=2.0, output_dir=tmp_path, overrides=settings)
        assert sim.model.num_tokens == 25
    assert len(list(tmp_path.glob("fit-*/config.yaml"))) == 2
