"""Row 8: a command at the very end, on success and on failure alike, which can't fail the run."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import TINY
from helpers.commands import call

from ups.runs.hydra_callbacks import finish

pytestmark = pytest.mark.integration  # starts processes, or whole runs


def run(folder, *args, code=0):
    done = call("ups.run", *args, *TINY, "trainer.max_epochs=1", cwd=folder)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def at_the_end(words="over"):
    """A command that notes what stood there when it ran."""
    return (
        f'callbacks.on_finish="ls outputs/*/reports/*.json >> {words}; '
        f'tail -n 1 outputs/one/run.log >> {words}"'
    )


def test_on_finish_runs_once_after_everything_else(tmp_path):
    run(tmp_path, "name=one", at_the_end())
    noted = (tmp_path / "over").read_text()
    assert noted.count("outputs/one/reports/eval_operator.json") == 1
    assert "next: ups.load" in noted  # the log's last line


def test_on_finish_runs_when_the_run_fails(tmp_path):
    run(tmp_path, "name=one", "data.nu=-1", "callbacks.on_finish='echo x >> over'", code=2)
    assert (tmp_path / "over").read_text() == "x\n"


def test_on_finish_runs_once_for_a_sweep(tmp_path):
    run(tmp_path, "-m", "seed=0,1", "name=sweep", "callbacks.on_finish='echo x >> over'")
    assert (tmp_path / "over").read_text() == "x\n"


@pytest.mark.slow
def test_on_finish_runs_when_the_run_is_stopped(tmp_path):
    command = [
        sys.executable,
        "-m",
        "ups.run",
        *TINY,
        "trainer.max_epochs=5000",
        "name=one",
        "callbacks.on_finish='echo x >> over'",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list(tmp_path.glob("outputs/one/checkpoints/*-best.ckpt")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(600) == 3
    assert (tmp_path / "over").read_text() == "x\n"


def test_on_finish_runs_when_a_second_signal_arrives(tmp_path):
    command = [
        sys.executable,
        "-m",
        "ups.run",
        *TINY,
        "trainer.max_epochs=5000",
        "name=one",
        "callbacks.on_finish='sleep 1; echo x >> over'",
    ]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not list(tmp_path.glob("outputs/one/checkpoints/*-best.ckpt")) and process.poll() is None:
        time.sleep(0.05)
    for _ in range(2):  # to the whole group, as a terminal does
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.6)
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 3, text
    assert "Traceback" not in text
    assert (tmp_path / "over").read_text() == "x\n"


def test_run_succeeds_when_on_finish_fails(tmp_path):
    run(tmp_path, "name=one", "callbacks.on_finish='echo x >> over; exit 5'")
    assert (tmp_path / "over").read_text() == "x\n" * 3


@pytest.mark.parametrize("command", ["sleep 500", "exit 1", "/nowhere/at/all"])
def test_on_finish_is_tried_three_times_with_a_timeout(tmp_path, command, caplog):
    finish(f"echo x >> {tmp_path}/tries; {command}", timeout=1.5)
    assert (tmp_path / "tries").read_text() == "x\n" * 3
    assert caplog.text.count("callbacks.on_finish, try") == 3
