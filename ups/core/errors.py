"""Exceptions whose messages are for users: what is wrong, where, and what is allowed."""

import errno

from omegaconf.errors import ConfigAttributeError, ConfigKeyError


class UpsError(ValueError):
    """A mistake that the user can correct.

    `ups.run` prints it as one sentence without a traceback and exits with code 2.
    """


class Diverged(UpsError):
    """A numerical solution does not stay finite."""


class RunIncomplete(BaseException):
    """Training was interrupted; the same command resumes from its checkpoint.

    `ups.run` exits with code 3. It is a BaseException, like KeyboardInterrupt, so that no `except
    Exception` treats it as a failure.
    """


class Interrupted(RunIncomplete):
    """Interrupted by a signal, which ends a whole sweep and not only one of its jobs."""


def to_user_error(error: BaseException) -> UpsError | RunIncomplete | None:
    """Convert ``error``, or the error that it wraps as Hydra's do, to an error for the user.

    Returns:
        The error with its message, or None if ``error`` is a fault of the program.
    """
    if isinstance(error, OSError) and disk_is_full(error):
        where = f" for {error.filename}" if error.filename else ""
        return UpsError(
            f"no space left on the disk{where}; all files are whole, "
            "and the same command resumes when there is room"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return UpsError(f"{error.filename} can't be read or written: {error.strerror}")
    if isinstance(error, ConfigAttributeError | ConfigKeyError) and error.full_key:
        return UpsError(f"`{error.full_key}` must be given.")
    if is_out_of_memory(error):
        return UpsError(
            "out of memory; a smaller data.batch_size with a larger "
            "trainer.accumulate_grad_batches needs less"
        )
    return next(
        (e for e in (error, error.__cause__) if isinstance(e, UpsError | RunIncomplete)), None
    )


def disk_is_full(error: OSError) -> bool:
    """Whether ``error`` means a full disk or quota; HDF5 only says so in its message."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or f"errno = {errno.ENOSPC}" in str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means that the process, the GPU or a thread's stack is out of memory.

    Torch raises a RuntimeError for the first two, and Python one for the third.
    """
    words = ("out of memory", "allocate memory", "enough memory", "can't start new thread")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
