"""Row 7: `trainer.max_time` is one call's limit, whatever the call is doing when it is over."""

import re
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from helpers import commands
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from test_kills import STATES, assert_same

import ups
import ups.pipeline
import ups.run
from ups.callbacks import GracefulStop
from ups.callbacks.graceful_stop import TimeLimit
from ups.core.errors import RunIncomplete, UpsError

pytestmark = pytest.mark.integration  # starts processes, or whole runs

# a learning rate this high makes the best epoch one in the middle
WILD = [
    "stage.operator.module.lr=0.1",
    "stage.operator.module.min_lr_ratio=1",
    "callbacks.ema.decay=0",
    "loss.squared=true",  # wilder than the roots
    "trainer.max_epochs=8",
]


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Runs what `python -m ups.run` runs but the test, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ups.pipeline, "test", lambda *arguments: None)

    def call(*args):
        with initialize_config_dir(ups.run.CONF, version_base="1.3"):
            cfg = compose("config", [*TINY, *args])
        GlobalHydra.instance().clear()
        return ups.pipeline.run(cfg)

    return call


def stop_at_the_end_of(epoch):
    """A `Stop._stop_if_asked` that behaves as if the limit were over when ``epoch`` (from 0)
    ends.
    """
    stop_if_asked = GracefulStop._stop_if_asked

    def patched(self, trainer):
        is_end = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        self.signal = "SIGTERM" if is_end and trainer.current_epoch == epoch else None
        stop_if_asked(self, trainer)

    return patched


def test_stop_at_epoch_end_keeps_best_weights_of_that_epoch(call, tmp_path, monkeypatch):
    """The epoch that is over has been validated: a stop must not keep it from being chosen."""
    call("name=calm", *WILD)
    checkpoints = tmp_path / "outputs/calm/checkpoints"
    calm = torch.load(checkpoints / "operator_ema.ckpt", weights_only=True)
    assert calm["epoch"] < 7, "the best epoch must not be the last for this test to mean anything"
    with monkeypatch.context() as patch, pytest.raises(RunIncomplete):
        patch.setattr(GracefulStop, "_stop_if_asked", stop_at_the_end_of(calm["epoch"]))
        call("name=stopped", *WILD)
    call("name=stopped", *WILD)
    stopped = torch.load(
        tmp_path / "outputs/stopped/checkpoints/operator_ema.ckpt", weights_only=True
    )
    assert stopped["epoch"] == calm["epoch"]
    assert stopped["validation_nrmse"] == calm["validation_nrmse"]
    weights = calm["state_dict"]
    assert all(torch.equal(weights[key], stopped["state_dict"][key]) for key in weights)


def test_early_stopping_counts_the_epoch_at_whose_end_a_run_was_stopped(call, monkeypatch):
    patience = ["callbacks=early_stopping", "callbacks.early_stopping.patience=2"]
    endless = [*patience, "callbacks.early_stopping.min_delta=10", "trainer.max_epochs=50"]
    with monkeypatch.context() as patch, pytest.raises(RunIncomplete):
        patch.setattr(GracefulStop, "_stop_if_asked", stop_at_the_end_of(1))
        call("name=stopped", *endless)
    call("name=stopped", *endless)
    epochs = re.findall(r"Epoch (\d+)/50", Path("outputs/stopped/run.log").read_text())
    assert epochs == ["1", "2", "3"]  # the first is the best, and two without a gain follow


@pytest.mark.parametrize(("accumulate", "stops"), [(2, 2), (4, 1)])  # 4: one step an epoch
def test_run_resumes_after_its_time_limit(call, tmp_path, monkeypatch, accumulate, stops):
    """An hour, of which ten minutes are over whenever the run looks at the clock in training."""
    sizes = ["data.num_train=8", f"trainer.accumulate_grad_batches={accumulate}"]
    settings = [*STATES, *sizes, "trainer.max_epochs=10"]
    call(*settings, "name=calm")
    clock = SimpleNamespace(seconds=0.0, monotonic=lambda: clock.seconds)
    stop_if_asked = GracefulStop._stop_if_asked

    def ten_minutes_later(self, trainer):
        clock.seconds += 600
        stop_if_asked(self, trainer)

    monkeypatch.setattr("ups.callbacks.graceful_stop.time", clock)
    monkeypatch.setattr(GracefulStop, "_stop_if_asked", ten_minutes_later)
    num_stops = 0
    while not (tmp_path / "outputs/limited/checkpoints/operator.ckpt").exists():
        try:
            call(*settings, "trainer.max_time=00:01:00:00", "name=limited")
        except RunIncomplete as stop:
            assert "time limit 00:01:00:00 reached in epoch" in str(stop)
            num_stops += 1
    assert num_stops == stops
    assert_same(tmp_path / "outputs/calm", tmp_path / "outputs/limited")


def test_one_limit_counts_for_all_stages_and_rings_outside_of_training(call, monkeypatch):
    limits, alarms = [], {}

    def train(cfg, stage, folder, loggers, parts, limit):
        limits.append(limit)
        alarms[stage] = signal.getitimer(signal.ITIMER_REAL)[0]

    def test(cfg, folder, loggers):
        alarms["test"] = signal.getitimer(signal.ITIMER_REAL)[0]

    monkeypatch.setattr(ups.pipeline, "train", train)
    monkeypatch.setattr(ups.pipeline, "test", test)
    monkeypatch.setattr("ups.pipeline.validation_score", lambda folder: 0.0)
    call("stage=all", "trainer.max_time=00:01:00:00", "name=one")
    assert len(limits) == 3
    assert len({id(limit) for limit in limits}) == 1
    assert alarms.keys() == {"operator", "diffusion", "consistency", "test"}
    assert all(0 < seconds <= 3600 for seconds in alarms.values())
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    call("stage=all", "name=two")
    assert not limits[-1].is_over
    assert alarms["test"] == 0  # no limit, no alarm


@pytest.mark.parametrize(
    ("duration", "seconds"), [("00:00:00:07", 7), ("00:00:02:03", 123), ("01:02:00:00", 93600)]
)
def test_time_limit_counts_days_hours_minutes_seconds(duration, seconds, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("ups.callbacks.graceful_stop.time.monotonic", lambda: now)
    limit = TimeLimit(duration)
    now = 1000.0 + seconds - 0.5
    assert not limit.is_over
    now = 1000.0 + seconds + 0.5
    assert limit.is_over
    assert not TimeLimit().is_over


def test_alarm_ends_what_is_outside_of_training():
    limit = TimeLimit("00:00:00:00")
    before = signal.getsignal(signal.SIGALRM)
    with (
        pytest.raises(RunIncomplete, match="time limit 00:00:00:00 reached"),
        limit.outside_of_training(),
    ):
        threading.Event().wait(600)
    assert signal.getsignal(signal.SIGALRM) is before


def test_limit_of_one_stage_is_refused(call):
    with pytest.raises(UpsError, match=r"stage\.operator\.trainer\.max_time` must be null"):
        call("+stage.operator.trainer.max_time=00:00:00:10", "name=one")


def test_time_limit_ends_generation_of_data_with_its_exit_code(tmp_path):
    sizes = [
        "data.num_train=20000",
        "data.reference_num_points=1024",
        "trainer.max_time=00:00:00:02",
    ]
    done = commands.call("ups.run", *TINY, *sizes, "name=one", cwd=tmp_path)
    text = done.stdout + done.stderr
    assert done.returncode == 3, text
    assert "time limit 00:00:00:02 reached" in text
    assert "Traceback" not in text
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.rglob("*.hdf5"))
