"""Rows 7 and 12: however a run is ended, the same command resumes, and ends with the very same
weights.
"""

import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import TINY
from helpers.commands import call
from helpers.killing import WITH_KILLER, call_killed

import ups
from ups.datamodules.readers.pdebench import TrajectoryFile
from ups.evaluation.metrics import pdebench_metrics

pytestmark = pytest.mark.integration  # starts processes, or whole runs

# EMA, a scheduler, inverse losses in every third batch, accumulated batches, early stopping: all
# have a state that must survive.
# Saving every 3 steps meets the last batch of an epoch, too: the one place where going on would
# skip a validation.
STATES = [
    "callbacks.last.every_n_train_steps=3", "callbacks.ema.decay=0.9",
    "loss.inverse_loss_frequency=3", "trainer.accumulate_grad_batches=2",
    "callbacks=early_stopping", "callbacks.early_stopping.patience=500",
]  # fmt: skip
ARGS = [*TINY, *STATES]


def command(name, epochs, *args):
    """The words after Python's -m."""
    return ["ups.run", f"name={name}", *ARGS, f"trainer.max_epochs={epochs}", *args]


def start_python(folder, *words):
    """A new process, whose output is read by the caller."""
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(folder, *args):
    done = call(*command(*args), cwd=folder, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """Runs that nothing interrupts, by their epochs."""
    folder, made = tmp_path_factory.mktemp("calm"), {}

    def make(epochs):
        if epochs not in made:
            finish(folder, f"calm{epochs}", epochs)
            made[epochs] = folder / f"outputs/calm{epochs}"
        return made[epochs]

    return make


def assert_same(a, b, name="operator"):
    for suffix in ("", "_ema"):
        one, other = (
            ups.load(run / f"checkpoints/{name}{suffix}.ckpt").state_dict() for run in (a, b)
        )
        assert all(torch.equal(one[key], other[key]) for key in one), suffix


def validation_scores(run):
    """The score of each epoch that has been validated."""
    lines = re.findall(r"Epoch (\d+)/.* validation nRMSE ([\d.]+)", (run / "run.log").read_text())
    return {int(epoch): float(score) for epoch, score in lines}


def assert_trained(run, epochs):
    """It learned something, and its weights are those of the best of all its ``epochs``, by
    their own error on the validation split.
    """
    scores = validation_scores(run)
    assert sorted(scores) == list(range(1, epochs + 1))
    assert min(scores.values()) < 0.5 * scores[1]
    chosen = torch.load(run / "checkpoints/operator_ema.ckpt", weights_only=True)
    assert chosen["validation_nrmse"] == pytest.approx(min(scores.values()), abs=6e-5)
    (path,) = (run.parent / "data").glob("*.hdf5")
    u = torch.from_numpy(TrajectoryFile(path).read(range(24, 28)))
    pred = ups.load(run).rollout(u[:, 0], 10, nu=0.001)
    assert pdebench_metrics(pred, u[:, 1:])["nrmse"] == pytest.approx(
        chosen["validation_nrmse"], rel=1e-3
    )


def start(folder, *args):
    """A run that trains."""
    process = start_python(folder, *command(*args))
    for line in process.stdout:
        if "parameters to train" in line or "resuming from" in line:
            return process
    raise AssertionError("it never trained")


# where a run is killed, and how often it comes by there at most before: in less than two epochs
PLACES = {"step": 20, "validation": 2, "file": 8}


def draw_place(rng):
    place = rng.choice(list(PLACES))
    return f"{place} {rng.randint(1, PLACES[place])}"


@pytest.mark.slow
def test_run_ends_with_the_same_weights_after_twenty_kills(calm, tmp_path):
    """In steps, in validation, while a checkpoint is written."""
    whole, rng = calm(30), random.Random(0)
    for _ in range(20):
        done = call_killed(tmp_path, draw_place(rng), *command("killed", 30))
        assert done.returncode == -9, done.stdout + done.stderr
    finish(tmp_path, "killed", 30, WITH_KILLER)
    assert_same(whole, tmp_path / "outputs/killed")
    assert_trained(tmp_path / "outputs/killed", 30)


@pytest.mark.slow
def test_run_ends_with_the_same_weights_after_kills_in_every_stage(tmp_path):
    """The later stages have a cache, measured scales and noise of their own."""
    lengths = [f"stage.{stage}.trainer.max_epochs=4" for stage in ("diffusion", "consistency")]
    arguments = ["stage=all", "data.num_test=2", *lengths]
    finish(tmp_path, "calm", 6, *arguments)
    killed = tmp_path / "outputs/killed/checkpoints"
    rng, where, code = random.Random(1), set(), -9
    while code == -9:
        done = call_killed(tmp_path, draw_place(rng), *command("killed", 6, *arguments))
        code = done.returncode
        where |= {path.name.split("-")[0] for path in killed.glob("*-last.ckpt")}
    assert code == 0, done.stdout + done.stderr
    assert where == {"operator", "diffusion", "consistency"}
    for name in ("operator", "diffusion_residual", "consistency"):
        assert_same(tmp_path / "outputs/calm", tmp_path / "outputs/killed", name)


@pytest.mark.parametrize(
    ("sign", "step", "epoch"),
    [
        (signal.SIGTERM, 12, 1),  # the last batch before a validation
        (signal.SIGTERM, 17, 2),  # amid accumulated batches
        (signal.SIGKILL, 14, None),  # a checkpoint in the last batch of epoch 1 would be the last
    ],
)
def test_run_with_a_signal_in_a_step_resumes_to_the_same_weights(calm, tmp_path, sign, step, epoch):
    done = call_killed(tmp_path, f"step {step}", *command("stopped", 3), sign=sign)
    assert done.returncode == (-9 if sign == signal.SIGKILL else 3), done.stdout + done.stderr
    assert epoch is None or f"stopped by SIGTERM in epoch {epoch}" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "resuming from" in finish(tmp_path, "stopped", 3, WITH_KILLER)
    assert_same(calm(3), tmp_path / "outputs/stopped")
    assert sorted(validation_scores(tmp_path / "outputs/stopped")) == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_stopped_run_resumes_to_the_same_weights(calm, tmp_path, sign):
    process = start(tmp_path, "stopped", 30)
    while not (tmp_path / "outputs/stopped/checkpoints/operator-last.ckpt").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(sign)
    text, _ = process.communicate(timeout=600)
    if sign == signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 3, text
        assert f"stopped by {sign.name} in epoch " in text
        assert "Traceback" not in text
    assert "resuming from" in finish(tmp_path, "stopped", 30)
    assert_same(calm(30), tmp_path / "outputs/stopped")
    assert_trained(tmp_path / "outputs/stopped", 30)


@pytest.mark.parametrize("when", ["solving", "testing"])
def test_signal_ends_the_call_outside_of_training(tmp_path, when):
    sizes = {
        "solving": ["data.num_train=4000", "data.reference_num_points=1024"],
        "testing": ["data.num_test=6000"],
    }[when]
    process = start_python(tmp_path, *command("one", 1), *sizes)
    if when == "testing":
        for line in process.stdout:
            if "testing" in line:
                break
    else:
        while not list(tmp_path.glob("outputs/data/*.lock")) and process.poll() is None:
            time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 3, text
    assert "stopped by SIGTERM" in text
    assert not list((tmp_path / "outputs").rglob("*.part"))


def test_signal_ends_a_whole_sweep(tmp_path):
    sweep = ["-m", "seed=0,1,2", "name=sweep", *TINY, "trainer.max_epochs=5000"]
    process = start_python(tmp_path, "ups.run", *sweep)
    for line in process.stdout:
        if "parameters to train" in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 3, text
    assert "parameters to train" not in text  # of one more job


def test_run_dir_lock_rejects_second_process(tmp_path):
    first = start(tmp_path, "one", 5000)
    second = call(*command("one", 5000), cwd=tmp_path)
    assert second.returncode == 2
    assert "another call is at work in outputs/one" in second.stdout + second.stderr
    first.kill()  # and with it its claim
    first.communicate(timeout=600)
    finish(tmp_path, "one", 1, "overwrite=true")
