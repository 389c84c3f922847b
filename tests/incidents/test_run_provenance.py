"""Row 9: what a result was made by stands beside it, from the first minute on, and a run can
insist on it.
"""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import TINY
from helpers.commands import call, run_python
from helpers.published import pdebench_file

pytestmark = pytest.mark.integration  # starts processes, or whole runs

ROOT = Path(__file__).parents[2]
RUN = ["ups.run", *TINY, "trainer.max_epochs=1", "name=one"]
# a run without an equation: a copy of the code would compile its solver
OF_A_FILE = [
    "ups.run", "data=pdebench", "data.path=waves.hdf5", "data.equation=null", "name=one",
    "data.num_train=8", "data.num_validation=2", "data.num_test=4", "data.batch_size=8",
    "model=mixer_tiny", "model.num_tokens=8", "trainer.max_epochs=1", "preflight=false",
]  # fmt: skip
DYING = """
import os, signal
from ups.models import MixerUPT

class Dying(MixerUPT):
    def encode(self, u):
        if self.training:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(u)
"""
TOLD = ("commit", "dirty", "config_hash", "data_hash", "hardware", "seed", "versions")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository of its own that holds this code, and its commit."""
    folder = tmp_path_factory.mktemp("repository")
    for part in ("ups", "conf", "pyproject.toml"):
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / part)
    (folder / ".gitignore").write_text("outputs/\n__pycache__/\n*.hdf5\n")
    pdebench_file(folder / "waves.hdf5", trajectories=16, frames=31, points=128)

    def git(*args):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *who, *args], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "one")
    return folder, git("rev-parse", "HEAD")


def run(folder, *args):
    environment = {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"}
    return run_python("-m", *OF_A_FILE, *args, cwd=folder, env=environment)


def test_provenance_is_in_the_run_and_in_the_leaderboard(repository):
    folder, commit = repository
    done = run(folder, f"expect.commit='{commit[:8]}'")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((folder / "outputs/one/provenance.json").read_text())
    assert set(TOLD) <= told.keys()
    assert (told["commit"], told["dirty"]) == (commit, False)
    assert {"python", "torch", "lightning", "hydra-core", "ups"} <= told["versions"].keys()
    with (folder / "outputs/leaderboard.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    for name in ("commit", "dirty", "config_hash", "data_hash", "hardware", "seed"):
        assert row[name] == str(told[name])
    assert row["version.torch"] == told["versions"]["torch"]


def assert_refused(done, key):
    assert done.returncode == 2
    assert f"expect.{key}=0123456, but this is " in done.stdout + done.stderr
    assert "Epoch" not in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_run_is_refused_before_training_when_the_commit_is_not_the_expected_one(repository):
    assert_refused(run(repository[0], "name=other", "expect.commit='0123456'"), "commit")


@pytest.mark.parametrize("key", ["config_hash", "data_hash"])
def test_run_is_refused_before_training_when_its_hash_is_not_the_expected_one(tmp_path, key):
    assert_refused(call(*RUN, f"expect.{key}='0123456'", cwd=tmp_path), key)


@pytest.mark.slow
def test_run_repeats_when_it_expects_its_own_provenance(tmp_path):
    """With every stage, whose settings differ, and the preflight, whose data are few."""
    short = [
        "stage=all",
        "preflight=true",
        "data.num_test=12",
        *(f"stage.{s}.trainer.max_epochs=1" for s in ("diffusion", "consistency")),
    ]
    done = call(*RUN, *short, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "outputs/one/provenance.json").read_text())
    again = [f"expect.{key}='{told[key]}'" for key in ("config_hash", "data_hash")]
    done = call(*RUN, *short, *again, "name=two", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_run_is_refused_when_files_differ_from_the_expected_commit(repository):
    folder, commit = repository
    (folder / "conf/config.yaml").write_text(
        (folder / "conf/config.yaml").read_text() + "# changed\n"
    )
    done = run(folder, "name=dirty", f"expect.commit='{commit}'")
    assert done.returncode == 2
    assert "files of the repository have been changed since" in done.stdout + done.stderr


def test_provenance_is_written_before_training_ends(tmp_path):
    (tmp_path / "dying.py").write_text(DYING)
    done = call(*RUN, "model.architecture=dying.Dying", cwd=tmp_path)
    assert done.returncode == -9, done.stdout + done.stderr
    assert json.loads((tmp_path / "outputs/one/provenance.json").read_text())["config_hash"]
