"""A fork of the process that has imported everything is the command that it stands for."""

import os
import subprocess
import sys

import pytest
from helpers.commands import call

pytestmark = pytest.mark.integration  # starts processes

# what tests of commands look at; mine.py is found in the folder only
MINE = """
import atexit, os, pathlib, signal, sys, time
pathlib.Path("beside").touch()
assert __name__ == "__main__" and __spec__.name == "mine"
print(os.environ.get("MINE"), pathlib.Path(sys.argv[0]).name, *sys.argv[1:], sys.stdin.read())
print("words", file=sys.stderr)
atexit.register(print, "at the end")
if sys.argv[1] == "kill":
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "sleep":
    time.sleep(600)
sys.exit(3 if sys.argv[1] == "exit" else sys.argv[1])
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


@pytest.mark.parametrize(
    ("word", "code", "ends", "errors"),
    [
        ("exit", 3, "at the end\n", "words\n"),
        ("a sentence", 1, "at the end\n", "words\na sentence\n"),
        ("kill", -9, "", "words\n"),
    ],
)
def test_command_has_its_folder_arguments_environment_output_and_end(
    folder, word, code, ends, errors
):
    done = call("mine", word, 4, cwd=folder, env={"MINE": "mine"})
    assert done.returncode == code
    assert done.stdout == f"mine mine.py {word} 4 \n{ends}"
    assert done.stderr == errors
    assert (folder / "beside").exists()


def test_command_has_the_environment_of_the_tests(folder, monkeypatch):
    call("mine", "exit", cwd=folder)
    monkeypatch.setenv("MINE", "changed")
    assert call("mine", "exit", cwd=folder).stdout.startswith("changed mine.py exit")


def test_command_is_killed_at_its_timeout_and_the_next_one_runs(folder):
    with pytest.raises(subprocess.TimeoutExpired):
        call("mine", "sleep", cwd=folder, timeout=0.5)
    assert call("mine", "exit", cwd=folder).returncode == 3


def test_command_that_is_not_there_is_an_error(folder):
    done = call("not_there", cwd=folder)
    assert done.returncode == 1
    assert "No module named not_there" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="commands are new processes there")
def test_commands_are_forks_that_have_imported_everything(folder):
    (folder / "mine.py").write_text(
        "import os, sys; print(os.getppid(), 'lightning' in sys.modules)"
    )
    first, second = (call("mine", cwd=folder).stdout for _ in range(2))
    assert first == second
    assert first.endswith(" True\n")
    assert not first.startswith(f"{os.getpid()} ")
