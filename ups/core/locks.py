"""Locks between processes, and none on file systems that have no locks."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)
# what file systems without locks, or without a lock service, answer
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def file_lock(path: Path | str, *, waits: bool = True) -> Iterator[None]:
    """Hold the lock ``path``; the system releases it when the process dies.

    On a file system without locks the block runs without one, with a warning.

    Args:
        path: the lock's file.
        waits: whether to wait for another process that holds it.

    Raises:
        Timeout: another process holds it.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if waits else 0)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        log.warning("the file system of %s has no locks; don't start two calls there at once", path)
    try:
        yield
    finally:
        lock.release()
