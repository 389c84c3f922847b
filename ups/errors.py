"""The exceptions that are meant for a person: a sentence that says what is wrong, where, and what is allowed."""

import errno


class UpsError(ValueError):
    """A mistake that the user can mend; `ups.run` prints it as one sentence, without a traceback, and exits with code 2."""


class Unfinished(BaseException):
    """Training stopped before its end, with a checkpoint from which the same command goes on; `ups.run` exits with code 3.

    A BaseException, like KeyboardInterrupt: nobody's `except Exception` takes it for a failure.
    """


class Interrupted(Unfinished):
    """By a signal, which ends a sweep too, and not only one of its jobs."""


def for_a_person(error: BaseException) -> UpsError | Unfinished | None:
    """What ``error``, or the one that it wraps as Hydra's do, says to a person; None where it is a fault of the program."""
    if isinstance(error, OSError) and disk_is_full(error):
        where = f" for {error.filename}" if error.filename else ""
        return UpsError(f"no space left on the disk{where}; all files are whole, and the same command goes on when there is room")
    if isinstance(error, OSError) and error.filename is not None:
        return UpsError(f"{error.filename} can't be read or written: {error.strerror}")
    if is_out_of_memory(error):
        return UpsError("out of memory; a smaller data.batch_size with a larger trainer.accumulate_grad_batches needs less")
    return next((e for e in (error, error.__cause__) if isinstance(e, UpsError | Unfinished)), None)


def disk_is_full(error: OSError) -> bool:
    """Whether ``error`` is that of a full disk or quota; HDF5 says it in words only."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or f"errno = {errno.ENOSPC}" in str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Of the process or of the GPU: torch says both by a RuntimeError, and Python that a thread's stack has no room."""
    words = ("out of memory", "allocate memory", "enough memory", "can't start new thread")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
