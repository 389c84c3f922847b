"""Row 9: what a result was made by stands beside it, from the first minute on, and a run can
insist on it.
"""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY

pytestmark = pytest.mark.integration  # starts processes, or whole runs

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, "-m", "ups.run", *TINY, "trainer.max_epochs=1", "name=one"]
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
    (folder / ".gitignore").write_text("outputs/\n__pycache__/\n")

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
    return subprocess.run(
        [*RUN, *args],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=600,
    )


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


@pytest.mark.parametrize("key", ["commit", "config_hash", "data_hash"])
def test_run_is_refused_before_training_when_provenance_is_not_the_expected_one(repository, key):
    folder, _ = repository
    done = run(folder, "name=other", f"expect.{key}='0123456'")
    assert done.returncode == 2
    assert f"expect.{key}=0123456, but this is " in done.stdout + done.stderr
    assert "Epoch" not in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_run_repeats_when_it_expects_its_own_provenance(repository):
    """With every stage, whose settings differ, and the preflight, whose data are few."""
    folder, _ = repository
    shutil.rmtree(folder / "outputs", ignore_errors=True)
    short = [
        "stage=all",
        "preflight=true",
        "data.num_test=12",
        *(f"stage.{s}.trainer.max_epochs=1" for s in ("diffusion", "consistency")),
    ]
    assert run(folder, *short).returncode == 0
    told = json.loads((folder / "outputs/one/provenance.json").read_text())
    again = [f"expect.{key}='{told[key]}'" for key in ("config_hash", "data_hash")]
    done = run(folder, *short, *again, "name=two")
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
    done = subprocess.run(
        [*RUN, "trainer.max_epochs=5000", "trainer.max_time=00:00:00:05"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 3
    assert json.loads((tmp_path / "outputs/one/provenance.json").read_text())["config_hash"]
