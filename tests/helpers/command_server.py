"""A process that has imported all that runs import, and forks for each command: see ``commands``.

Each line of its input is a command, as JSON. It prints the number of the fork, and its exit code.
"""

import gc
import json
import os
import runpy
import sys

import matplotlib.backends.backend_agg  # noqa: F401
import numba
from hydra.core.plugins import Plugins

# with all that these import, but for the modules that are commands: Python's -m must find them new
import ups.pipeline
import ups.runs.hydra_callbacks  # noqa: F401
from tests.helpers import pictures


def import_late_parts():
    """Have imported what is imported at a first use only."""
    Plugins.instance()
    numba.njit(lambda: 0)()


def serve():
    """Fork for each command. Returns it, in the fork, and None when there are no more."""
    gc.collect()
    gc.freeze()  # forks leave alone what is there, and so begin and end sooner
    for line in sys.stdin.buffer:
        threads = os.listdir("/proc/self/task")
        if len(threads) > 1:  # a fork has only the one that forks, and waits for locks of others
            sys.exit(f"OMP_NUM_THREADS must be 1, else there are {len(threads)} threads to fork.")
        pid = os.fork()
        if pid == 0:
            return json.loads(line)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return None


def become(command):
    """Be the process that Python's -m would have been."""
    for descriptor, path in enumerate((os.devnull, *command["outputs"])):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(command["env"])
    if not pictures.is_drawn():
        pictures.blank()
    os.chdir(command["cwd"])
    sys.path[0] = command["cwd"]
    sys.argv = command["words"]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    import_late_parts()
    if (command := serve()) is not None:
        become(command)
