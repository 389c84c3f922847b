"""Runs that send themselves a signal at a given place, so that no test waits for the moment."""

import os
import signal

from helpers.commands import call

# counts how often its process comes by the place
KILLER = """
import os
from pathlib import Path

import lightning.pytorch as pl

PLACE, COUNT, SIGNAL = os.environ.get("KILLED_IN", "nowhere 0 9").split()
left = int(COUNT)


def come_by(place):
    global left
    left -= place == PLACE
    if place == PLACE and left == 0:
        os.kill(os.getpid(), int(SIGNAL))


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


def call_killed(folder, place, *words, sign=signal.SIGKILL):
    """A command with WITH_KILLER that gets a signal in its n-th step, validation or file.

    Args:
        folder: that of the command.
        place: for example "step 7", if it gets there.
        words: those after Python's -m.
        sign: the signal.
    """
    (folder / "killer.py").write_text(KILLER)
    environment = {**os.environ, "KILLED_IN": f"{place} {int(sign)}"}
    return call(*words, WITH_KILLER, cwd=folder, env=environment)
