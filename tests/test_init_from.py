"""``init_from``: the operator's training begins with the weights of a finished model."""

import csv
import json
import logging
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, line_spec, make_simulator, stop_after
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import ups
from ups import pipeline
from ups.core.errors import RunIncomplete, UpsError
from ups.core.fields import FieldSpec, Grid
from ups.hub.model_card import render_model_card
from ups.models import build
from ups.run import CONF
from ups.runs.initial_weights import content_hash
from ups.runs.training import first_simulator
from ups.simulation.input_range import largest_input
from ups.simulation.simulator import Simulator

POINTS = 32


def composed(*overrides):
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", list(overrides))
    GlobalHydra.instance().clear()
    return cfg


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Runs what `python -m ups.run` runs, in this process and a fresh folder."""
    monkeypatch.chdir(tmp_path)

    def call(*args):
        return pipeline.run(composed(*TINY, *args))

    return call


@pytest.fixture
def finished(tmp_path):
    """The folder of a model, as exported, of random weights."""
    folder = tmp_path / "finished"
    make_simulator(POINTS, seed=5).save(folder)
    return folder


def model_overrides(folder):
    config = {**ups.load(folder).model_config}
    config.pop("architecture")
    return ["model=mixer_small", *(f"model.{key}={value}" for key, value in config.items())]


def fake_data(**changes):
    """What a data module tells of its data, which are larger and of another nu than before."""
    spec = line_spec(POINTS, **{"std": (2.5,), **changes})
    u = torch.randn(4, POINTS, 1, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(
        spec=spec, path="new.hdf5", equation_name="burgers", training_parameters=[[0.02]],
        inputs=u, input_range=partial(largest_input, u),
    )  # fmt: skip


def test_training_begins_with_the_very_function_of_the_finished_model(finished):
    before = ups.load(finished)
    data = fake_data()
    cfg = composed(*model_overrides(finished), f"init_from={finished}")
    simulator = first_simulator(cfg, data)
    u0 = torch.randn(3, POINTS, generator=torch.Generator().manual_seed(1))
    # the nu of the training data of both, so that no solution is taken for a slower one
    before.training_parameters = simulator.training_parameters
    assert torch.equal(simulator.rollout(u0, 4, nu=0.02), before.rollout(u0, 4, nu=0.02))
    assert simulator.spec.std == before.spec.std != data.spec.std
    assert simulator.training_parameters == [[0.02]]  # but warnings are of the new data
    assert simulator.input_range == largest_input(data.inputs, simulator.spec)
    assert simulator.input_range["largest value"] == pytest.approx(
        data.input_range(data.spec)["largest value"] * 2.5 / before.spec.std[0]
    )


def test_units_of_time_parameters_and_mean_stay_those_of_the_finished_model(tmp_path):
    own = {"parameters": ("re",), "dt": 0.5, "time_unit": 0.5}
    spec = FieldSpec(Grid((POINTS,), (1.0,)), **own, mean=(3.0,), parameter_units=(50.0,))
    config = {"architecture": "memory_upt", "num_tokens": 8, "depth": 2, "hidden_channels": 8}
    Simulator(build(config, spec), spec, None, config).save(tmp_path / "finished")
    data = fake_data(
        **own, mean=(4.0,), parameter_units=(80.0,), conserves_mean=False, largest=(7.0,)
    )
    data.equation_name = None
    overrides = [f"model.{key}={value}" for key, value in config.items()]
    cfg = composed(*overrides, f"init_from={tmp_path}/finished")
    found = first_simulator(cfg, data).spec
    assert (found.mean, found.std, found.parameter_units) == ((3.0,), (1.0,), (50.0,))
    assert not found.conserves_mean  # a law of the data, which no model of them may break
    assert found.largest == (8.0,)  # of the new data, from the mean that stays


@pytest.mark.parametrize("before", [True, False])
def test_a_model_sees_positions_if_it_has_learned_to(tmp_path, before):
    spec = line_spec(POINTS, is_homogeneous=before)
    config = {"architecture": "memory_upt", "num_tokens": 8, "depth": 2, "hidden_channels": 8}
    Simulator(build(config, spec), spec, None, config).save(tmp_path / "finished")
    data = fake_data(is_homogeneous=not before)
    data.equation_name = None
    overrides = [f"model.{key}={value}" for key, value in config.items()]
    simulator = first_simulator(composed(*overrides, f"init_from={tmp_path}/finished"), data)
    assert simulator.spec.is_homogeneous == before
    assert (simulator.model.positions is None) == before


@pytest.mark.parametrize(
    ("known", "new", "looks_like"),
    [
        ([[1e-3]], [[4e-3]], 1e-3),  # the one value whose effect the model has learned
        ([[1e-3]], [[2e-3], [8e-3]], 1e-3),  # of several their usual value
        ([[1e-3], [2e-3]], [[4e-3]], 4e-3),  # a model of several values knows what they do
        ([], [[4e-3]], 4e-3),
    ],
)
def test_a_parameter_that_never_varied_looks_as_in_the_finished_training(
    tmp_path, known, new, looks_like
):
    before = make_simulator(POINTS)
    before.training_parameters = known
    before.save(tmp_path / "finished")
    data = fake_data()
    data.training_parameters = new
    cfg = composed(*model_overrides(tmp_path / "finished"), f"init_from={tmp_path}/finished")
    found = first_simulator(cfg, data).spec.condition(torch.tensor([[4e-3]]))
    assert found[1].item() == pytest.approx(looks_like)
    assert found[0].item() == pytest.approx(0.05)


def test_without_init_from_weights_are_random(finished):
    cfg = composed(*model_overrides(finished))
    simulator = first_simulator(cfg, fake_data())
    assert simulator.spec.std == (2.5,)
    key = "model.patches_in"
    assert not torch.equal(simulator.state_dict()[key], ups.load(finished).state_dict()[key])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dt": 0.1}, r"`dt` must be 0.05, got 0.1"),
        ({"channels": ("u", "v"), "std": (1, 1)}, r"`channels` must be 1, got 2"),
        ({"domain": Grid((64,), (1.0,))}, r"`points` must be 32, got 64"),
        ({"domain": Grid((POINTS,), (2.0,))}, r"`length` must be 1, got 2"),
        ({"parameters": ()}, r"`parameters` must be nu, got none"),
    ],
)
def test_data_of_another_field_are_refused_in_one_sentence(finished, changes, words):
    domain = changes.pop("domain", None)
    data = fake_data(**changes)
    if domain is not None:
        data.spec = data.spec.with_domain(domain)
    cfg = composed(*model_overrides(finished), f"init_from={finished}")
    with pytest.raises(UpsError, match="`data` must be of the field that init_from") as refusal:
        first_simulator(cfg, data)
    assert refusal.match(words)
    assert "\n" not in str(refusal.value)


def test_channels_may_have_other_names(finished):
    cfg = composed(*model_overrides(finished), f"init_from={finished}")
    data = fake_data(channels=("velocity",))
    assert first_simulator(cfg, data).spec.channels == ("velocity",)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["init_from=nothing"], "nothing is neither a run directory nor a checkpoint file"),
        (["init_from=burgers-small", "model=mixer_tiny"],
         r"=burgers-small; give the model=\.\.\. of its training: `model.architecture` must be "
         r"memory_upt, got mixer\."),
        (["init_from=burgers-small", "model.hidden_channels=16", "model.depth=4"],
         "`model.hidden_channels` must be 48, got 16, `model.depth` must be 8, got 4"),
        (["init_from=burgers-small", "model.dilations=[1,2,4]"],
         r"training: `model.dilations` must be 1 x 2 x 4 x 1, got 1 x 2 x 4\."),
        (["init_from=3"], "`init_from` must be a path, or null, got 3"),
    ],
)  # fmt: skip
def test_what_can_not_be_begun_with_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, settings, words
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UpsError, match=words) as refusal:
        pipeline.run(composed(*settings))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.integration
def test_a_run_records_its_beginning_and_resumes_from_no_other(call, tmp_path, monkeypatch):
    call("name=first", "trainer.max_epochs=1")
    call("name=second", "seed=1", "trainer.max_epochs=1")
    shutil.copytree(tmp_path / "outputs/first", tmp_path / "start")
    arguments = ["init_from=start", "data.nu=0.002", "seed=3"]
    call("name=whole", *arguments)

    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(RunIncomplete):
            call("name=stopped", *arguments)
    shutil.rmtree("start")
    shutil.copytree("outputs/second", "start")
    with pytest.raises(UpsError, match=r"stage operator with other settings .init_from: "):
        call("name=stopped", *arguments)
    with pytest.raises(UpsError, match=r"stage operator with other settings .init_from: .* None"):
        call("name=stopped", *arguments[1:])
    shutil.copytree("outputs/first", "moved")  # where it lies doesn't count
    call("name=stopped", "init_from=moved", *arguments[1:])
    one, other = (ups.load(f"outputs/{name}").state_dict() for name in ("whole", "stopped"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    known = content_hash("moved")
    record = json.loads((tmp_path / "outputs/stopped/checkpoints/operator.json").read_text())
    assert record["settings"]["init_from"] == known
    told = json.loads((tmp_path / "outputs/stopped/provenance.json").read_text())
    assert (told["init_from"], told["init_hash"]) == ("moved", known)
    card = render_model_card(tmp_path / "outputs/stopped", "mine")
    assert f"- init_from: moved ({known})" in card
    with (tmp_path / "outputs/leaderboard.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows["stopped"]["init_hash"] == rows["whole"]["init_hash"] == known
    assert rows["first"]["init_hash"] == ""


@pytest.mark.integration
def test_training_beats_training_from_scratch_in_as_many_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "test", lambda *arguments: None)
    few = ["data.nu=0.002", "data.num_train=32", "data.num_validation=8", "data.num_test=4",
           "data.samples_per_trajectory=4", "trainer.max_epochs=1",
           "stage.operator.module.lr=0.0001", "preflight=false"]  # fmt: skip
    scratch = pipeline.run(composed("name=scratch", *few))
    started = pipeline.run(composed("name=started", "init_from=burgers-small", *few))
    assert started < 0.1
    assert started < 0.2 * scratch


@pytest.mark.slow
@pytest.mark.integration
def test_the_preflight_begins_with_the_finished_model_too(ups_run, tmp_path):
    tiny = [word for word in TINY if not word.startswith("preflight")]
    ups_run("name=first", *tiny, "preflight=false", "trainer.max_epochs=1")
    ups_run("name=next", *tiny, "init_from=outputs/first", "trainer.max_epochs=1")
    log = (tmp_path / "outputs/next/run.log").read_text()
    assert "operator: begins with the weights of outputs/first" in log
    done = ups_run("name=other", *tiny, "init_from=outputs/first", "data.dt=0.1", check=False)
    assert done.returncode == 2
    assert "preflight: `data` must be of the field that init_from=outputs/first" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.integration
def test_fit_begins_with_a_finished_model(tmp_path, caplog):
    k = np.arange(20)[:, None, None]
    u = np.sin(2 * np.pi * (np.arange(16) / 16 - 0.03 * np.arange(6)[:, None] + 0.1 * k))
    settings = ["trainer.max_epochs=1", "model.num_tokens=8", "model.depth=2",
                "model.hidden_channels=8", "data.batch_size=4", "preflight=false"]  # fmt: skip
    options = {"dt": 0.5, "length": 2.0, "output_dir": tmp_path, "overrides": settings}
    first = ups.fit(u, **options, name="first")
    slow = [*settings, "stage.operator.module.lr=1e-9"]
    arguments = {**options, "overrides": slow, "init_from": tmp_path / "first"}
    with caplog.at_level(logging.INFO):
        again = ups.fit(2 * u, **arguments, name="again")
    assert again.spec.std == first.spec.std
    weights = first.state_dict()
    assert all(
        torch.allclose(value, weights[key], atol=1e-5) for key, value in again.state_dict().items()
    )
