"""A call in a separate process, which may be killed or run out of memory without harm."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from ups.core import resolvers
from ups.core.errors import is_out_of_memory, to_user_error

REFUSED, OUT_OF_MEMORY = 2, 4  # exit codes
# trains the stages of a configuration with their numbers of parts, and tests, in a folder
Rehearsal = Callable[[DictConfig, dict[str, int], Path], None]


def run_rehearsal(
    rehearse: Rehearsal, cfg: DictConfig, parts: dict[str, int], scratch: Path
) -> tuple[int | None, str]:
    """Call ``rehearse`` in a separate process.

    Returns:
        Its exit code, as that of ``multiprocessing.Process``, and what it wrote to stderr.
    """
    stderr = scratch / "stderr.txt"
    process = multiprocessing.get_context("spawn").Process(
        target=_rehearse_quietly, args=(stderr, rehearse, cfg, parts, scratch)
    )
    process.start()
    try:
        process.join()
    finally:
        process.kill()  # this process was interrupted
        process.join()
    return process.exitcode, stderr.read_text() if stderr.exists() else ""


def _rehearse_quietly(
    stderr: Path, rehearse: Rehearsal, cfg: DictConfig, parts: dict[str, int], scratch: Path
) -> None:
    for descriptor, path in ((1, os.devnull), (2, stderr)):
        with open(path, "w") as file:
            os.dup2(file.fileno(), descriptor)
    resolvers.register()  # this process may not have imported ups.run
    try:
        rehearse(cfg, parts, scratch)
    except Exception as error:
        stop = to_user_error(error)
        if stop is None:
            raise
        print(stop, file=sys.stderr)
        sys.exit(OUT_OF_MEMORY if is_out_of_memory(error) else REFUSED)
