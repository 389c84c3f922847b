"""Commands of the package, each in a process of its own that doesn't import everything again.

Importing torch and lightning takes longer than most runs of the tests. So one process imports them,
``command_server``, and each command is a fork of it, with a folder, arguments, environment and
output of its own, and with the end of a process. What is read at import is that of the first
process: tests of ranks, limits, imports and compiled kernels start Python itself.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path


def run_python(*words, cwd, env=None, timeout=600):
    """A new Python, to its end, with its output captured.

    Args:
        words: those of its command line.
        cwd: the folder.
        env: all environment variables. None: those of this process.
        timeout: the seconds after which it is killed.
    """
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, env=env, timeout=timeout, capture_output=True, text=True
    )


def call(module, *args, cwd, env=None, timeout=600):
    """Like ``run_python("-m", module, *args)``, by a fork."""
    if sys.platform != "linux":  # a fork without an exec is not safe on macOS
        return run_python("-m", module, *args, cwd=cwd, env=env, timeout=timeout)
    words = [module, *map(str, args)]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        command = {
            "words": words,
            "cwd": str(cwd),
            "env": dict(os.environ if env is None else env),
            "outputs": list(map(str, outputs)),
        }
        code = fork(command, timeout)
        texts = [path.read_text() for path in outputs]
    return subprocess.CompletedProcess(words, code, *texts)


def fork(command, timeout):
    """Have the server fork; returns the exit code of the fork."""
    server().stdin.write(json.dumps(command).encode() + b"\n")
    pid = answer()
    try:
        if not select.select([server().stdout], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(command["words"], timeout)
    except BaseException:  # also when the tests are interrupted
        os.kill(pid, signal.SIGKILL)
        answer()
        raise
    return answer()


def answer():
    """The next number that the server prints."""
    line = server().stdout.readline()
    if not line:
        raise RuntimeError("The server of commands has ended; see its message above.")
    return int(line)


@cache
def server():
    """The process that has imported everything. Its input, and so it, ends with this process."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.command_server"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
