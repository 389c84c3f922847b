"""Runs that kill themselves at a given place, so that no test waits for the moment to do it."""

import os
import signal

from helpers.commands import call

# counts down to the kill, the n-th time that its process comes by a place
KILLER = """
import os, signal
from pathlib import Path

import lightning.pytorch as pl

PLACE, _, COUNT = os.environ.get("KILLED_IN", "nowhere 0").partition(" ")
left = int(COUNT)


def come_by(place):
    global left
    left -= place == PLACE
    if place == PLACE and left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def replace(path, target, before=Path.replace):
    come_by("file")  # it is written whole, and has not got its name
    return before(path, target)


Path.replace = replace


class Killer(pl.Callback):
    def on_train_batch_end(self, *arguments):
        come_by("step")

    def on_validation_batch_end(self, *arguments):
        come_by("validation")
"""
WITH_KILLER = "+callbacks.killer._target_=killer.Killer"


def call_killed(folder, place, *words):
    """A command with WITH_KILLER that is killed in the n-th step, validation or file it writes.

    Args:
        folder: that of the command.
        place: for example "step 7".
        words: those after Python's -m.

    Returns:
        Whether it was killed. Else it came to its end before.
    """
    (folder / "killer.py").write_text(KILLER)
    done = call(*words, WITH_KILLER, cwd=folder, env={**os.environ, "KILLED_IN": place})
    assert done.returncode in (0, -signal.SIGKILL), done.stdout + done.stderr
    return done.returncode != 0
