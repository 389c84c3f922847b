"""The one exception that is meant for a person: a sentence that says what is wrong, where, and what is allowed."""


class UpsError(ValueError):
    """A mistake that the user can mend; `ups.run` prints it as one sentence, without a traceback, and exits with code 2."""


class Unfinished(Exception):
    """Training stopped before its end, with a checkpoint from which the same command goes on; `ups.run` exits with code 3."""
