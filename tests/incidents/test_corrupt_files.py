"""Row 16: whatever is damaged is refused with one sentence that names the file and the fault, or
read as it was. Nothing hangs.
"""

import random
import re
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch
from conftest import TINY, damaged, make_simulator
from helpers.commands import call
from helpers.published import pdebench_file

import ups
from ups.callbacks import AtomicCheckpointIO
from ups.core.errors import UpsError
from ups.datamodules import BurgersDataModule
from ups.datamodules.readers.pdebench import TrajectoryFile

pytestmark = pytest.mark.integration  # starts processes, or whole runs

INPUTS = 1000  # in all: a half of data files, a half of checkpoints


class Hangs(Exception):
    pass


@pytest.fixture
def no_hang():
    def stop(*_):
        raise Hangs

    signal.signal(signal.SIGALRM, stop)
    yield lambda: signal.alarm(10)
    signal.alarm(0)


def test_damaged_data_files_are_refused(tmp_path, no_hang):
    path = pdebench_file(
        tmp_path / "1D_Burgers_Sols_Nu0.01.hdf5", trajectories=4, frames=5, points=32
    )
    good, truth = path.read_bytes(), TrajectoryFile(path).read(range(4))
    rng, refused, read = random.Random(1), 0, 0
    for i in range(INPUTS // 2):
        path = tmp_path / f"1D_Burgers_Sols_Nu0.01_{i}.hdf5"
        path.write_bytes(damaged(good, rng))
        no_hang()
        try:
            file = TrajectoryFile(path)
            values = file.read(range(file.trajectories))
        except UpsError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
            refused += 1
        else:
            assert values.dtype == np.float32
            assert np.isfinite(values).all()
            read += 1
        path.unlink()
    assert refused + read == INPUTS // 2
    assert refused > INPUTS // 10
    assert truth.shape == (4, 5, 32, 1)


def test_damaged_checkpoints_are_refused(tmp_path, no_hang):
    from ups.runs.training import write_stage_weights

    simulator, folder = make_simulator(), tmp_path / "run"
    AtomicCheckpointIO().save_checkpoint(
        {"state_dict": {f"simulator.{k}": v for k, v in simulator.state_dict().items()}},
        tmp_path / "best.ckpt",
    )
    write_stage_weights(tmp_path / "best.ckpt", folder, "operator", simulator, 0.1)
    good, u = (folder / "checkpoints/operator_ema.ckpt").read_bytes(), torch.randn(2, 32)
    rng, refused = random.Random(2), 0
    for i in range(INPUTS // 2):
        path = tmp_path / f"{i}.ckpt"
        path.write_bytes(damaged(good, rng))
        no_hang()
        try:
            loaded = ups.load(path)
            assert all(
                torch.equal(a, b)
                for a, b in zip(
                    loaded.state_dict().values(), simulator.state_dict().values(), strict=True
                )
            )
            assert loaded.rollout(u, 1, nu=0.01).shape == (2, 1, 32)
        except UpsError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
            refused += 1
        path.unlink()
    assert refused > INPUTS // 4


def test_generated_data_are_refused_when_one_bit_has_changed(tmp_path):
    sizes = {
        "num_points": 32,
        "reference_num_points": 64,
        "num_frames": 11,
        "num_train": 24,
        "num_validation": 4,
        "num_test": 6,
        "cache_dir": str(tmp_path),
    }
    data = BurgersDataModule(**sizes)
    data.prepare_data()
    with h5py.File(data.path, "r+") as file:
        file["tensor"][3, 2, 1] += np.float32(1e-6)
    with pytest.raises(UpsError, match="are not those that were written"):
        data.setup()


def test_checkpoint_of_another_stage_or_program_is_refused(runs, tmp_path):
    shutil.copytree(runs / "stopped", tmp_path, dirs_exist_ok=True)
    last = tmp_path / "outputs/one/checkpoints/operator-last.ckpt"
    whole = AtomicCheckpointIO().load_checkpoint(last)
    name = next(iter(whole["state_dict"]))
    others = {
        "it lacks callbacks": {"a": 1},
        f"1 keys differ: {name}": {
            **whole,
            "state_dict": {**whole["state_dict"], name: torch.ones(3)},
        },
    }
    for words, other in others.items():
        AtomicCheckpointIO().save_checkpoint(other, last)
        done = call(*RUNS["stopped"], cwd=tmp_path)
        assert done.returncode == 2, done.stdout + done.stderr
        assert words in done.stdout
        assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "where", ["output_dir=file", "output_dir=file/deeper", "data.cache_dir=file"]
)
def test_path_that_can_not_be_written_is_named(tmp_path, where):
    (tmp_path / "file").touch()
    done = call(*RUNS["finished"], where, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search("file.* can't be read or written", done.stdout + done.stderr)
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.check_val_every_n_epoch=5", "at most stage operator's max_epochs=1, got 5."),
        ("trainer.accelerator=abc", "trainer: "),
        ("trainer.devices=0", "trainer: "),
        (
            "model.encoder_depth=-1",
            "`model.encoder_depth` must be an integer >= 0 and <= 1000, got -1.",
        ),
        ("callbacks.finite_loss=abc", "`callbacks.finite_loss` must be a mapping"),
        ("callbacks.best=null", "without a validation by which callbacks.best"),
        ("data.dt=1e30", "a number > 0 and <= 1000"),
    ],
)
def test_invalid_config_value_rejected(tmp_path, override, words):
    done = call(*RUNS["finished"], override, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


YAML = [
    *(
        "{",
        "trainer: [",
        "data: 3\n",
        "\tname: x",
        "stage: {operator: {module: null}}",
        "defaults: [nowhere]",
        "? ?",
        "\x00",
        "&a [*a]",
    ),
    *("lambda_invv: 3", "trainer: {max_epoch: 3}", "data: {pints: 3}"),
    *("name: !!python/object/apply:os.system ['touch hacked']", "data: {nu: .nan}", "seed: 1e400"),
]


@pytest.mark.parametrize("text", YAML)
def test_damaged_yaml_is_refused(tmp_path, text):
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text(f"# @package _global_\n{text}")
    done = call("ups.run", "--config-dir", "conf", *TINY, "experiment=mine", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert (done.stdout + done.stderr).strip()
    assert not (tmp_path / "hacked").exists()
    assert not list(tmp_path.rglob("*.ckpt"))


ONE = ["ups.run", *TINY, "name=one"]
RUNS = {
    "finished": [*ONE, "trainer.max_epochs=1"],
    "stopped": [*ONE, "trainer.max_epochs=5000", "callbacks.last.every_n_train_steps=5"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name in RUNS:
        (folder / name).mkdir()
    done = call(*RUNS["finished"], cwd=folder / "finished")
    assert done.returncode == 0, done.stdout + done.stderr
    process = subprocess.Popen(
        [sys.executable, "-m", *RUNS["stopped"]],
        cwd=folder / "stopped", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    last = folder / "stopped/outputs/one/checkpoints/operator-last.ckpt"
    while process.poll() is None and not last.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 3
    return folder


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("finished", "operator_ema.ckpt"),
        ("finished", "operator.json"),
        ("finished", "../preflight.json"),
        ("stopped", "operator-last.ckpt"),
    ],
)
def test_damaged_file_of_a_run_is_named(runs, tmp_path, run, name):
    shutil.copytree(runs / run, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "outputs/one/checkpoints" / name
    path.write_bytes(b"{damaged")
    (tmp_path / "outputs/one/reports/eval_operator.json").unlink(missing_ok=True)
    done = call(*RUNS[run], cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert path.name in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_killed_generation_leaves_no_data_file(tmp_path):
    command = [
        sys.executable,
        "-m",
        "ups.run",
        *TINY,
        "data.num_train=3000",
        "data.reference_num_points=512",
        "trainer.max_epochs=1",
        "name=one",
    ]
    for wait in (0.2, 0.8):
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not list(tmp_path.glob("outputs/data/*.lock")) and process.poll() is None:
            time.sleep(0.02)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait(600)
        assert not list(tmp_path.glob("outputs/data/*.hdf5"))
    shutil.rmtree(tmp_path / "outputs")
