"""What is to happen when everything is over: stop the rented machine, say."""

import atexit
import logging
import os
import subprocess
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

TRIES, TIMEOUT = 3, 60.0  # seconds a try
log = logging.getLogger("ups")


class OnFinish(Callback):
    """A Hydra callback that runs the shell command ``callbacks.on_finish`` once, as the last thing that the process does.

    That is after the run or the whole sweep, finished, failed or stopped, when all files are flushed and all loggers closed. Only SIGKILL
    forestalls it. Its failure changes nothing. Of several processes the first on each machine runs it.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        command = config.callbacks.get("on_finish")
        local_rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0))
        if command and int(local_rank) == 0:
            atexit.register(finish, command)

    on_multirun_start = on_run_start


def finish(command: str, tries: int = TRIES, timeout: float = TIMEOUT) -> None:
    """Run ``command`` until it succeeds, at most ``tries`` times; never raises. One more Ctrl-C, say, doesn't reach it."""
    for attempt in range(1, tries + 1):
        try:
            code: object = subprocess.run(command, shell=True, timeout=timeout, start_new_session=True).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            code = error
        if code == 0:
            return
        log.warning("callbacks.on_finish, try %d of %d: %s", attempt, tries, code if isinstance(code, Exception) else f"exit code {code}")
