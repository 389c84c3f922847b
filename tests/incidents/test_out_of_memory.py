"""Row 1: what doesn't fit into memory is found by the preflight, and taken in parts.

Row 10: no batch is ever skipped.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY
from helpers.commands import call

pytestmark = pytest.mark.integration  # starts processes, or whole runs

SMALL = [argument for argument in TINY if argument != "preflight=false"]


def run(folder, *args, memory=None, timeout=600):
    """``python -m ups.run`` in ``folder``, its address space limited to ``memory`` bytes."""

    def limit():
        if memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    command = [sys.executable, "-m", "ups.run", *SMALL, *args]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        "MALLOC_ARENA_MAX": "2",
    }  # else each thread takes 64 MB of addresses
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        preexec_fn=limit,
    )


@pytest.fixture(scope="module")
def enough(tmp_path_factory):
    """The address space, in bytes, that a process takes which has trained a tiny model."""
    folder = tmp_path_factory.mktemp("enough")
    Path(folder / "peak.py").write_text(
        "import runpy, sys\n"
        "sys.argv = ['ups.run', *sys.argv[1:]]\n"
        "runpy.run_module('ups.run', run_name='__main__', alter_sys=True)\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmPeak')))\n"
    )
    command = [sys.executable, "peak.py", *TINY, "trainer.max_epochs=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return 1024 * int(done.stdout.split("VmPeak:")[1].split()[0])


HUGE = ["data.batch_size=16384", "data.samples_per_trajectory=1365", "trainer.max_epochs=1"]


@pytest.mark.slow
def test_batches_are_taken_in_parts_when_they_do_not_fit(tmp_path, enough):
    done = run(tmp_path, "name=big", *HUGE, memory=enough + 2**29)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "stage operator: batches of 16384 windows don't fit into memory; they are taken in 2 parts"
        in done.stdout
    )
    parts = json.loads((tmp_path / "outputs/big/preflight.json").read_text())["operator"]["parts"]
    assert parts >= 2
    checkpoint = torch.load(tmp_path / "outputs/big/checkpoints/operator.ckpt", weights_only=True)
    assert checkpoint["global_step"] == round(
        24 * 1365 * parts // 16384 / parts + 0.49
    )  # the effective batch is what was asked for


@pytest.mark.slow
def test_batches_are_refused_with_what_may_fit_when_they_can_not_be_halved(tmp_path, enough):
    done = run(tmp_path, "name=odd", *HUGE, "data.batch_size=16383", memory=enough + 2**29)
    assert done.returncode == 2
    assert (
        "batches of 16383 windows don't fit into memory and can't be halved; 8191 may"
        in done.stdout
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.glob("outputs/odd/checkpoints/*"))


@pytest.mark.slow
def test_preflight_treats_oom_kill_as_out_of_memory(
    tmp_path,
):
    (tmp_path / "mine.py").write_text(
        "import os, signal\n"
        "from ups.models import MixerUPT\n"
        "class Greedy(MixerUPT):\n"
        "    def encode(self, u):\n"
        "        if self.training and len(u) > 3:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().encode(u)\n"
    )
    done = run(
        tmp_path,
        "model.architecture=mine.Greedy",
        "data.batch_size=8",
        "stage.operator.module.num_cpu_shards=1",
        "trainer.max_epochs=1",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "they are taken in 4 parts" in done.stdout


def test_batches_in_parts_train_like_whole_ones(tmp_path):
    """The same effective batches: the losses agree to rounding."""
    from hydra import compose, initialize_config_dir
    from lightning.pytorch.loggers import CSVLogger

    from ups.callbacks.graceful_stop import TimeLimit
    from ups.pipeline import train
    from ups.run import CONF
    from ups.simulation.checkpoint import load

    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose(
            "config",
            [*TINY, f"output_dir={tmp_path}", "lambda_inv=0.5", "loss.inverse_loss_frequency=2"],
        )
    states = []
    for parts in (1, 4):
        cfg.name = f"in-{parts}"
        folder = tmp_path / cfg.name
        train(cfg, "operator", folder, CSVLogger(folder), parts, TimeLimit())
        states.append(load(tmp_path / cfg.name).state_dict())
    for key, value in states[0].items():
        assert torch.allclose(value, states[1][key], atol=2e-3), key


def test_run_stops_when_training_is_out_of_memory(tmp_path):
    """Row 10: out of memory in the middle of training ends the run; nothing is skipped."""
    (tmp_path / "mine.py").write_text(
        "from ups.models import MixerUPT\n"
        "class Late(MixerUPT):\n"
        "    calls = 0\n"
        "    def encode(self, u):\n"
        "        Late.calls += self.training\n"
        "        if Late.calls == 20:\n"
        "            raise RuntimeError('DefaultCPUAllocator: not enough memory: "
        "you tried to allocate 1 bytes')\n"
        "        return super().encode(u)\n"
    )
    whole = "stage.operator.module.num_cpu_shards=1"
    done = call("ups.run", *TINY, "model.architecture=mine.Late", whole, "name=late", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "out of memory" in done.stdout
    assert not (tmp_path / "outputs/late/checkpoints/operator.ckpt").exists()
