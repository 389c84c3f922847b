"""Which weights a training leaves, and what its callbacks say and keep.

A small run in this process records every step. The average, the validation error and the choice
of the best epoch are computed again from the records.
"""

import json
import logging
import os
from types import SimpleNamespace
from typing import ClassVar

import h5py
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from conftest import TINY
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import ModelCheckpoint

import ups
from ups import pipeline
from ups.callbacks import CompileCachePruner, EpochSummary, TerminateOnNaN
from ups.callbacks.graceful_stop import TimeLimit
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.run import CONF
from ups.runs.training import build_simulator

BATCHES = 12  # an epoch: 24 trajectories with 4 windows each, in batches of 8
DECAY = 0.8


class Recorder(pl.Callback):
    """Notes the weights after every step and the error of every validation.

    The configuration of a run makes it. From epoch ``spoil`` on it blows the weights up as each
    epoch begins, so that validation gets worse.
    """

    made: ClassVar[list] = []

    def __init__(self, spoil=100):
        self.spoil = spoil
        self.weights, self.terms, self.errors, self.kept = [], [], {}, []
        self.made.append(self)

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch >= self.spoil:
            with torch.no_grad():
                for p in pl_module.parameters():
                    p.mul_(1.5)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        (last,) = (
            c for c in trainer.checkpoint_callbacks if getattr(c, "_every_n_train_steps", 0) > 0
        )
        path = f"{last.dirpath}/{last.filename}.ckpt"
        self.kept.append(torch.load(path)["global_step"] if os.path.exists(path) else None)
        self.options = {
            name: getattr(trainer, name)
            for name in (
                "max_epochs",
                "accumulate_grad_batches",
                "gradient_clip_val",
                "precision",
                "log_every_n_steps",
            )
        }

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights.append(
            {name: p.detach().double().clone() for name, p in pl_module.named_parameters()}
        )
        self.terms.append({name: value.item() for name, value in pl_module.terms.items()})

    def on_validation_end(self, trainer, pl_module):
        self.errors[trainer.current_epoch] = float(
            trainer.callback_metrics["validation/operator/nrmse"]
        )


def finished_run(folder, *overrides):
    """Train in ``folder``, without the test: the run's folder and what was recorded."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "test", lambda *args: None)
            patch.setattr(Recorder, "made", [])
            with initialize_config_dir(CONF, version_base="1.3"):
                cfg = compose(
                    "config",
                    [
                        *TINY,
                        "name=one",
                        "+callbacks.recorder._target_=test_weights.Recorder",
                        *overrides,
                    ],
                )
            pipeline.run(cfg)
            (recorder,) = Recorder.made
    finally:
        os.chdir(before)
    return folder / "outputs" / "one", recorder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Four epochs, the last of which is spoilt."""
    return finished_run(
        tmp_path_factory.mktemp("trained"),
        "trainer.max_epochs=4",
        f"callbacks.ema.decay={DECAY}",
        "loss.inverse_loss_frequency=5",
        "stage.operator.module.lr=0.01",
        "+callbacks.recorder.spoil=3",
    )


def averages(recorder):
    """Exponential averages of the recorded weights; they begin with those after the first step."""
    found = [recorder.weights[0]]
    for weights in recorder.weights[1:]:
        found.append(
            {name: DECAY * found[-1][name] + (1 - DECAY) * weights[name] for name in weights}
        )
    return found


def data_of(folder):
    """The run's trajectories (N, T, X, 1) for training, validation and test, as in its file."""
    (path,) = (folder.parent / "data").glob("*.hdf5")
    with h5py.File(path) as file:
        u = file["tensor"][:][..., None]
    assert len(u) == 24 + 4 + 6
    return u[:24], u[24:28], u[28:]


def written_out_error(simulator, u):
    """The latent rollout's mean relative error; a field's size is at least 0.01 of the std.

    Each trajectory is seen from a frame that moves with its mean by whole cells a step.
    """
    u = torch.from_numpy(u)
    unit = simulator.spec.grid.cell_size[0] / simulator.dt
    cells = (u[:, 0].mean((1, 2)) / unit).round().int().tolist()
    shifts = torch.tensor(cells)[:, None, None] * unit
    parameters = torch.full((len(u), 1), 0.001)
    errors = []
    with torch.no_grad():
        z = simulator.encode(u[:, 0] - shifts)
        for k in range(1, u.shape[1]):
            z = simulator.step(z, parameters)
            rows = [v.roll(n * k, 0) for v, n in zip(simulator.decode(z), cells, strict=True)]
            difference = (torch.stack(rows) + shifts).double() - u[:, k].double()
            size = u[:, k].double().square().mean((1, 2)).sqrt()
            floor = 0.01 * simulator.std.double()
            errors.append(difference.square().mean((1, 2)).sqrt() / torch.maximum(size, floor))
    return torch.stack(errors).mean().item()


def set_weights(simulator, weights):
    own = {name.removeprefix("simulator."): value.float() for name, value in weights.items()}
    simulator.load_state_dict(own, strict=False)
    return simulator


def checkpoint(folder, name):
    return torch.load(folder / "checkpoints" / name)


def best_epoch(recorder):
    return min(recorder.errors, key=recorder.errors.get)


# --- the chosen weights ---


def test_recorded_run_has_a_best_epoch_between_the_first_and_the_last(trained):
    _, recorder = trained
    assert len(recorder.weights) == 4 * BATCHES
    assert sorted(recorder.errors) == [0, 1, 2, 3]
    assert best_epoch(recorder) in (1, 2)  # neither the first nor the last


def test_validation_error_of_every_epoch_is_that_of_the_averaged_weights_on_the_validation_split(
    trained,
):
    folder, recorder = trained
    simulator = ups.load(folder)
    training, validation, test = data_of(folder)
    averaged = averages(recorder)
    for epoch, error in recorder.errors.items():
        last = (epoch + 1) * BATCHES - 1
        set_weights(simulator, averaged[last])
        assert error == pytest.approx(written_out_error(simulator, validation), rel=1e-4), epoch
        # and of nothing else
        assert error != pytest.approx(written_out_error(simulator, training[:4]), rel=1e-2)
        assert error != pytest.approx(written_out_error(simulator, test), rel=1e-2)
        set_weights(simulator, recorder.weights[last])
        assert error != pytest.approx(written_out_error(simulator, validation), rel=1e-3)


def test_exported_files_hold_the_averaged_and_the_raw_weights_of_the_best_epoch(trained):
    folder, recorder = trained
    last = (best_epoch(recorder) + 1) * BATCHES - 1
    for name, expected in (
        ("operator_ema.ckpt", averages(recorder)[last]),
        ("operator.ckpt", recorder.weights[last]),
    ):
        held = checkpoint(folder, name)["state_dict"]
        assert expected.keys() <= held.keys()
        for key, value in expected.items():
            assert torch.allclose(held[key].double(), value, rtol=1e-4, atol=1e-5), (name, key)


def test_exported_validation_error_is_the_lowest_and_that_of_the_averaged_file(trained):
    folder, recorder = trained
    averaged, raw = (checkpoint(folder, name) for name in ("operator_ema.ckpt", "operator.ckpt"))
    own = written_out_error(ups.load(folder / "checkpoints/operator_ema.ckpt"), data_of(folder)[1])
    assert averaged["validation_nrmse"] == pytest.approx(own, rel=1e-5)
    assert averaged["validation_nrmse"] == pytest.approx(min(recorder.errors.values()), rel=1e-6)
    assert raw["validation_nrmse"] == averaged["validation_nrmse"]
    for file in (averaged, raw):
        assert file["epoch"] == best_epoch(recorder)
        assert file["global_step"] == (best_epoch(recorder) + 1) * BATCHES
        assert file["made_from"] is None
        assert file["hyper_parameters"]["lr"] == 0.01


def test_loaded_run_has_the_averaged_weights(trained):
    folder, recorder = trained
    last = (best_epoch(recorder) + 1) * BATCHES - 1
    state = ups.load(folder).state_dict()
    for name, value in averages(recorder)[last].items():
        assert torch.allclose(
            state[name.removeprefix("simulator.")].double(), value, rtol=1e-4, atol=1e-5
        ), name
    assert not ups.load(folder).training


def test_loaded_run_has_the_units_of_its_training_data(trained):
    folder, _ = trained
    simulator, training = ups.load(folder), data_of(folder)[0]
    assert simulator.std.tolist() == pytest.approx([np.std(training.astype(np.float64))], rel=1e-6)
    assert simulator.mean.tolist() == [0.0]
    assert (simulator.dt, simulator.spec.grid.extent) == (pytest.approx(0.05), (1.0,))
    assert (simulator.equation_name, simulator.equation.name) == ("burgers", "burgers")
    assert simulator.training_parameters == [[0.001]]
    assert torch.allclose(simulator.x[1:] - simulator.x[:-1], torch.tensor(1 / 32), atol=1e-6)
    assert len(simulator.x) == 32


def test_finished_run_keeps_no_checkpoint_to_resume_from(trained, without_average):
    for folder, _ in (trained, without_average):
        kept = sorted(p.name for p in (folder / "checkpoints").glob("*.ckpt"))
        assert kept == ["operator.ckpt", "operator_ema.ckpt"]


def test_new_simulator_takes_spec_equation_and_parameters_from_the_data():
    spec = FieldSpec(
        Grid((16,), (4.0,), origin=(0.0,)), parameters=("beta",), dt=0.02, mean=(0.4,), std=(1.7,)
    )
    data = SimpleNamespace(
        spec=spec,
        equation_name="advection",
        training_parameters=[[0.3], [0.5]],
        input_range=lambda spec: {"largest value": 2.0},
    )
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", ["model=mixer_tiny", "model.num_tokens=8", "model.hidden_dim=12"])
    simulator = build_simulator(cfg, data)
    assert (simulator.spec, simulator.dt, simulator.equation_name) == (spec, 0.02, "advection")
    assert simulator.training_parameters == [[0.3], [0.5]]
    assert simulator.input_range == {"largest value": 2.0}
    assert simulator.mean.tolist() == pytest.approx([0.4])
    assert simulator.std.tolist() == pytest.approx([1.7])
    assert torch.equal(simulator.x, torch.arange(16) * 0.25)
    assert (simulator.model.num_tokens, simulator.model.hidden_dim) == (8, 12)
    assert simulator.model_config["dilations"] == [1, 2, 1]


def test_configured_inverse_loss_frequency_selects_the_batches_with_the_terms(trained):
    _, recorder = trained
    for i, terms in enumerate(recorder.terms):
        names = (
            {"loss", "L_forward", "L_inv_enc", "L_inv_dec"}
            if i % BATCHES in (0, 5, 10)
            else {"loss", "L_forward"}
        )
        assert terms.keys() == names, i


def test_configured_trainer_options_arrive(trained):
    expected = {
        "max_epochs": 4,
        "accumulate_grad_batches": 1,
        "gradient_clip_val": 1.0,
        "precision": "32-true",
        "log_every_n_steps": 50,
    }
    assert trained[1].options == expected


def test_epoch_lines_hold_the_means_of_their_epoch(trained):
    folder, recorder = trained
    lines = [line for line in (folder / "run.log").read_text().splitlines() if "Epoch" in line]
    assert len(lines) == 4
    for epoch, line in enumerate(lines):
        terms = recorder.terms[epoch * BATCHES : (epoch + 1) * BATCHES]
        words = [f"operator  Epoch {epoch + 1}/4"]
        for name, label in {
            "loss": "loss:",
            "L_forward": "L_forward",
            "L_inv_enc": "L_inv_enc",
            "L_inv_dec": "L_inv_dec",
        }.items():
            # a term's mean is over the batches that have it
            mean = np.mean([own[name] for own in terms if name in own])
            found = float(line.split(f"  {label} ")[1].split()[0])
            assert found == pytest.approx(mean, abs=1.1e-5), (epoch, name)
        words.append(f"validation nRMSE {recorder.errors[epoch]:.4f}")
        assert all(word in line for word in words), line


# --- other ways to choose ---


@pytest.fixture(scope="module")
def without_average(tmp_path_factory):
    """Four epochs without an average, two batches a step, a validation every other epoch."""
    return finished_run(
        tmp_path_factory.mktemp("without_average"),
        "trainer.max_epochs=4",
        "trainer.check_val_every_n_epoch=2",
        "trainer.accumulate_grad_batches=2",
        "trainer.gradient_clip_val=0.5",
        "callbacks.ema=null",
        "callbacks.last.every_n_train_steps=1",
        "+callbacks.recorder.spoil=2",
    )


def test_run_exports_the_raw_weights_of_the_best_epoch_twice_when_there_is_no_average(
    without_average,
):
    folder, recorder = without_average
    assert sorted(recorder.errors) == [1, 3]
    assert best_epoch(recorder) == 1
    for name in ("operator_ema.ckpt", "operator.ckpt"):
        held = checkpoint(folder, name)["state_dict"]
        for key, value in recorder.weights[2 * BATCHES - 1].items():
            assert torch.equal(held[key].double(), value), (name, key)
    own = written_out_error(ups.load(folder), data_of(folder)[1])
    assert recorder.errors[1] == pytest.approx(own, rel=1e-5)


def test_weights_change_after_every_other_batch_when_two_are_accumulated(without_average):
    _, recorder = without_average
    assert recorder.options["accumulate_grad_batches"] == 2
    assert recorder.options["gradient_clip_val"] == 0.5
    moved = [
        any(not torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(recorder.weights[: BATCHES - 1], recorder.weights[1:BATCHES], strict=True)
    ]
    assert moved == [True, False] * 5 + [True]


def test_last_checkpoint_is_of_whole_steps_and_not_of_the_last_batch_of_an_epoch(without_average):
    _, recorder = without_average
    # step n + 1 is saved after batch 2n + 1; step 6 ends with the epoch, before its validation
    first = [None, None, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    second = [5, 5, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11]
    assert recorder.kept[: 2 * BATCHES] == first + second


def epochs_until_stopped(errors, patience):
    """How many epochs there are: until ``patience`` in a row have not been better than the best."""
    best, waited = float("inf"), 0
    for epoch, error in enumerate(errors, 1):
        waited = 0 if error < best else waited + 1
        best = min(best, error)
        if waited == patience:
            return epoch
    return None


def test_early_stopping_waits_for_its_patience(tmp_path):
    overrides = [
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=2",
        "callbacks.ema.decay=0.5",
    ]
    folder, recorder = finished_run(
        tmp_path, *overrides, "trainer.max_epochs=9", "+callbacks.recorder.spoil=2"
    )
    errors = [recorder.errors[epoch] for epoch in sorted(recorder.errors)]
    assert len(errors) < 9
    assert len(errors) == epochs_until_stopped(errors, 2)
    assert checkpoint(folder, "operator_ema.ckpt")["epoch"] == best_epoch(recorder)


def test_early_stopping_has_the_documented_defaults():
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", ["callbacks=early_stopping"])
        own = cfg.callbacks.early_stopping
        assert (own.patience, own.min_delta) == (5, 0.0)
        assert cfg.callbacks.last.every_n_train_steps == 500
        assert cfg.callbacks.ema.decay == 0.99
        assert compose("config").callbacks.early_stopping is None


# --- the plain line of an epoch ---


class Clock:
    """In the place of the module ``time``."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


def make_trainer(**options):
    usual = {
        "global_step": 0,
        "current_epoch": 0,
        "max_epochs": 5,
        "is_global_zero": True,
        "callback_metrics": {"validation/operator/nrmse": torch.tensor(0.123456)},
        "checkpoint_callbacks": [],
        "strategy": SimpleNamespace(reduce=lambda value: value),
    }
    return SimpleNamespace(**{**usual, **options})


def write_preflight(folder, **seconds):
    found = {stage: {"seconds": value} for stage, value in seconds.items()}
    (folder / "preflight.json").write_text(json.dumps(found))


def epoch_line(monkeypatch, caplog, folder, module, trainer, steps, seconds, stages):
    clock = Clock()
    monkeypatch.setattr("ups.callbacks.epoch_summary.time", clock)
    log = EpochSummary(str(folder), stages)
    log.on_train_start(trainer, module)
    log.on_train_epoch_start(trainer, module)
    for terms in steps:
        module.terms = {name: torch.tensor(value) for name, value in terms.items()}
        log.on_train_batch_end(trainer, module, None, None, 0)
    trainer.global_step += 6
    clock.now += seconds
    with caplog.at_level(logging.INFO):
        log.on_train_epoch_end(trainer, module)
    return caplog.messages[-1]


def test_epoch_summary_has_the_score_that_selects_the_weights(monkeypatch, caplog, tmp_path):
    monitors = ["validation/operator/lost_share", "validation/operator/nrmse", None]
    trainer = make_trainer(
        callback_metrics={
            "validation/operator/nrmse": torch.tensor(3.21e18),
            "validation/operator/lost_share": torch.tensor(0.25),
            "validation/operator/crps": torch.tensor(0.5),
        },
        checkpoint_callbacks=[ModelCheckpoint(monitor=monitor) for monitor in monitors],
    )
    module = SimpleNamespace(stage="operator")
    steps = [{"loss": 1.0}]
    line = epoch_line(monkeypatch, caplog, tmp_path, module, trainer, steps, 20.0, ["operator"])
    found = [part for part in line.split("  ") if part.startswith("validation")]
    assert found == ["validation nRMSE 3.2e+18", "validation lost share 0.2500"]


def test_epoch_summary_gives_speed_and_time_left(monkeypatch, caplog, tmp_path):
    write_preflight(tmp_path, operator=1000, diffusion=300, consistency=60, test=30)
    module = SimpleNamespace(stage="operator")
    steps = [{"loss": 1.0, "L_forward": 0.5, "L_inv_enc": 3.0}, {"loss": 2.0, "L_forward": 1.0}]
    # 6 steps in 4 s; 3 epochs to come at 20 s each, and then 300, 60 and 30 s
    trainer = make_trainer(current_epoch=1, global_step=50)
    stages = ["operator", "diffusion", "consistency"]
    line = epoch_line(monkeypatch, caplog, tmp_path, module, trainer, steps, 20.0, stages)
    parts = [
        "operator",
        "Epoch 2/5",
        "loss: 1.50000",
        "L_forward 0.75000",
        "L_inv_enc 3.00000",
        "L_inv_dec 0.00000",
        "validation nRMSE 0.1235",
        "0.3 steps/s",
        "1.0 min left, 7.5 min in all",
    ]
    assert line == "  ".join(parts)


def test_epoch_summary_counts_the_later_stages(monkeypatch, caplog, tmp_path):
    write_preflight(tmp_path, operator=1000, diffusion=300, consistency=20, test=10)
    module = SimpleNamespace(stage="diffusion")
    steps = [{"loss": 1.0, "L_noise": 0.25}]
    trainer = make_trainer(max_epochs=2)
    line = epoch_line(
        monkeypatch,
        caplog,
        tmp_path,
        module,
        trainer,
        steps,
        4.0,
        ["operator", "diffusion", "consistency"],
    )
    losses = "diffusion  Epoch 1/2  loss: 1.00000  L_noise 0.25000"
    assert line == f"{losses}  1.5 steps/s  4 s left, 34 s in all"


def test_epoch_summary_gives_the_time_of_its_stage_when_there_was_no_preflight(
    monkeypatch, caplog, tmp_path
):
    module = SimpleNamespace(stage="operator")
    line = epoch_line(
        monkeypatch, caplog, tmp_path, module, make_trainer(), [{"loss": 1.0}], 30.0, ["operator"]
    )
    assert line.endswith("0.2 steps/s  2.0 min left")


# --- guards ---


@pytest.mark.parametrize(("limit", "emptied"), [(99, True), (100, False), (101, False)])
def test_compile_cache_is_emptied_when_larger_than_its_limit(tmp_path, limit, emptied):
    folder = tmp_path / "cache"
    (folder / "deep").mkdir(parents=True)
    (folder / "one").write_bytes(b"x" * 60)
    (folder / "deep" / "two").write_bytes(b"x" * 40)
    callback = CompileCachePruner(folder, limit)
    callback.on_train_epoch_end(None, None)
    assert folder.exists() is not emptied
    if emptied:
        folder.mkdir()
        (folder / "three").write_bytes(b"x" * 200)
        callback.on_train_epoch_start(None, None)
        assert not folder.exists()


def test_terminate_on_nan_names_the_first_term_that_is_not_finite_and_the_trajectories():
    callback, trainer = TerminateOnNaN(), SimpleNamespace(global_step=7)
    batch = SimpleNamespace(trajectory=torch.arange(100, 120))
    terms = {"loss": torch.nan, "L_forward": 1.0, "L_inv_enc": torch.inf, "L_inv_dec": torch.nan}
    module = SimpleNamespace(terms={name: torch.tensor(value) for name, value in terms.items()})
    callback.on_train_batch_start(trainer, module, batch, 0)
    callback.on_before_backward(
        trainer, module, torch.tensor(1.0)
    )  # nothing is wrong with this one
    with pytest.raises(UpsError) as refusal:
        callback.on_before_backward(trainer, module, module.terms["loss"])
    rows = ", ".join(str(row) for row in range(100, 116))
    assert str(refusal.value).startswith(f"step 7: L_inv_enc is not finite (trajectories {rows})")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_terminate_on_nan_finds_one_gradient_among_many(bad):
    callback, trainer = TerminateOnNaN(), SimpleNamespace(global_step=3)
    callback.trajectories = [5]
    module = torch.nn.Linear(3, 2)
    module.weight.grad = torch.ones(2, 3)
    callback.on_before_optimizer_step(trainer, module, None)  # the bias has none
    module.bias.grad = torch.tensor([0.0, bad])
    with pytest.raises(UpsError, match=r"step 3: the gradient is not finite \(trajectories 5\)"):
        callback.on_before_optimizer_step(trainer, module, None)


def test_time_limit_counts_days_hours_minutes_and_seconds(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("ups.callbacks.graceful_stop.time", clock)
    limit = TimeLimit("01:02:03:04")
    seconds = 1 * 86400 + 2 * 3600 + 3 * 60 + 4
    clock.now = 100.0 + seconds - 0.5
    assert not limit.is_over
    clock.now = 100.0 + seconds + 0.5
    assert limit.is_over
    assert not TimeLimit(None).is_over
