"""Rows 7 and 12: however a run is ended, the same command resumes, and ends with the very same
weights.
"""

import contextlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import TINY

import ups
from ups.datamodules.readers.pdebench import TrajectoryFile
from ups.evaluation.metrics import pdebench_metrics

pytestmark = pytest.mark.integration  # starts processes, or whole runs

# EMA, a scheduler, inverse losses in every third batch, accumulated batches, early stopping: all
# have a state that must survive.
# Saving every 3 steps meets the last batch of an epoch, too: the one place where going on would
# skip a validation.
ARGS = [
    *TINY, "callbacks.last.every_n_train_steps=3", "callbacks.ema.decay=0.9",
    "loss.inverse_loss_frequency=3", "trainer.accumulate_grad_batches=2",
    "callbacks=early_stopping", "callbacks.early_stopping.patience=500",
]  # fmt: skip


def command(name, epochs, *args):
    return [
        sys.executable,
        "-m",
        "ups.run",
        f"name={name}",
        *ARGS,
        f"trainer.max_epochs={epochs}",
        *args,
    ]


def finish(folder, *args):
    done = subprocess.run(command(*args), cwd=folder, capture_output=True, text=True, timeout=900)
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


def assert_trained(run, epochs):
    """It learned something, and its weights are those of the best of all its ``epochs``, by
    their own error on the validation split.
    """
    lines = re.findall(r"Epoch (\d+)/.* validation nRMSE ([\d.]+)", (run / "run.log").read_text())
    scores = {int(epoch): float(score) for epoch, score in lines}
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
    process = subprocess.Popen(
        command(*args), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        if "parameters to train" in line or "resuming from" in line:
            return process
    raise AssertionError("it never trained")


@pytest.mark.slow
def test_run_ends_with_the_same_weights_after_twenty_kills(calm, tmp_path):
    """In steps, in validation, while a checkpoint is written."""
    whole, rng, kills = calm(150), random.Random(0), 0
    while kills < 20:
        process = start(tmp_path, "killed", 150)
        time.sleep(rng.uniform(0, 0.8))
        assert process.poll() is None, f"finished after {kills} kills; it should take longer"
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=600)
        kills += 1
    finish(tmp_path, "killed", 150)
    assert_same(whole, tmp_path / "outputs/killed")
    assert_trained(tmp_path / "outputs/killed", 150)


@pytest.mark.slow
def test_run_ends_with_the_same_weights_after_kills_in_every_stage(tmp_path):
    """The later stages have a cache, measured scales and noise of their own."""
    lengths = [f"stage.{stage}.trainer.max_epochs=12" for stage in ("diffusion", "consistency")]
    arguments = ["stage=all", "data.num_test=2", *lengths]
    finish(tmp_path, "calm", 40, *arguments)
    rng, where, checkpoints = random.Random(1), set(), tmp_path / "outputs/killed/checkpoints"

    def saved():
        with contextlib.suppress(FileNotFoundError):  # the end of a stage removes its file
            return {(path, path.stat().st_mtime_ns) for path in checkpoints.glob("*-last.ckpt")}
        return set()

    while not (checkpoints / "consistency.ckpt").exists():
        before = saved()
        process = start(tmp_path, "killed", 40, *arguments)
        # each call gets at least one checkpoint further, however slow the machine is
        while not saved() - before and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=600)
        where |= {path.name.split("-")[0] for path, _ in saved()}
    finish(tmp_path, "killed", 40, *arguments)
    assert where == {"operator", "diffusion", "consistency"}
    for name in ("operator", "diffusion_residual", "consistency"):
        assert_same(tmp_path / "outputs/calm", tmp_path / "outputs/killed", name)


@pytest.mark.parametrize(
    "sign",
    [
        signal.SIGTERM,
        *(pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGKILL, signal.SIGINT)),
    ],
)
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


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [2, 12])  # 12: one step an epoch
def test_run_resumes_after_its_time_limit(calm, tmp_path, accumulate):
    epochs, codes, accumulated = 500, [], f"trainer.accumulate_grad_batches={accumulate}"
    # long enough for a busy machine to begin training within it, and much shorter than the training
    arguments = command("limited", epochs, accumulated, "trainer.max_time=00:00:00:12")
    while not codes or codes[-1] == 3:
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        codes.append(done.returncode)
        assert len(codes) < 40, done.stdout
    assert codes[0] == 3, done.stdout + done.stderr
    assert codes[-1] == 0, done.stdout + done.stderr
    if accumulate == 12:
        finish(tmp_path, "whole", epochs, accumulated)
    assert_same(
        calm(epochs) if accumulate == 2 else tmp_path / "outputs/whole",
        tmp_path / "outputs/limited",
    )


@pytest.mark.parametrize("when", ["solving", "testing"])
def test_signal_ends_the_call_outside_of_training(tmp_path, when):
    sizes = {
        "solving": ["data.num_train=4000", "data.reference_num_points=1024"],
        "testing": ["data.num_test=6000"],
    }[when]
    arguments = [*command("one", 1), *sizes]
    process = subprocess.Popen(
        arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
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
    sweep = [
        sys.executable,
        "-m",
        "ups.run",
        "-m",
        "seed=0,1,2",
        "name=sweep",
        *TINY,
        "trainer.max_epochs=5000",
    ]
    process = subprocess.Popen(
        sweep, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
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
    second = subprocess.run(
        command("one", 5000), cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert second.returncode == 2
    assert "another call is at work in outputs/one" in second.stdout + second.stderr
    first.kill()  # and with it its claim
    first.communicate(timeout=600)
    finish(tmp_path, "one", 1, "overwrite=true")
