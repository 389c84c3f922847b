"""Atomic writes, and checks of free disk space and memory.

A file is complete or absent: it is written under a temporary name in the same folder, flushed to
disk, then renamed.
"""

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.serialization import MAP_LOCATION

from ups.core.errors import UpsError, disk_is_full
from ups.core.settings import PlainDict


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces ``path`` on a clean exit.

    The temporary file is flushed and renamed on success, and removed otherwise.

    Raises:
        UpsError: the disk is full. A previous file at ``path`` is untouched.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("r+b") as file:  # Windows flushes writable files only
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if not disk_is_full(error):
            raise
        before = "; the file that stood there before is whole" if path.exists() else ""
        raise UpsError(f"no space left on the disk while {path} was written{before}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write ``content`` to ``path``, completely or not at all."""
    check_disk_space(path, len(content), path.name)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, completely or not at all."""
    write_bytes(path, text.encode())


def unreadable(path: Path, error: Exception, kind: str) -> UpsError:
    """Say why ``path`` could not be read: the system's reason, or else its content.

    Args:
        path: the file.
        error: what the attempt to read it raised.
        kind: what it must be, for example "an HDF5 file".
    """
    found = _system_error(path, error)
    text = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
    if isinstance(found, FileNotFoundError):
        return UpsError(f"there is no file {path}")
    if isinstance(found, IsADirectoryError):
        return UpsError(f"{path} must be {kind}, got a folder.")
    if isinstance(found, PermissionError):
        return UpsError(f"{path} can't be read: no permission.")
    if isinstance(found, BlockingIOError) or "already open for write" in text:
        return UpsError(
            f"{path} is locked: another process has it open for writing, or ended while it did. "
            "Wait until it is closed, or write it again."
        )
    if found is not None:
        return UpsError(f"{path} can't be read: {found.strerror}.")
    if "signature not found" in text:
        return UpsError(
            f"{path} is not {kind} and can't be read: it is of another kind, or damaged at its "
            "start."
        )
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return UpsError(
        f"{path} is not {kind}, or is damaged or truncated, and can't be read ({reason})"
    )


def _system_error(path: Path, error: Exception) -> OSError | None:
    """The system's error in opening ``path``: ``error``, or what opening it again raises.

    Libraries report a missing permission as damage, or a folder as a wrong file.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error
    if Path(path).is_dir():  # as some formats are
        return None
    try:
        with Path(path).open("rb"):
            return None
    except OSError as found:
        return found


def read_json(path: Path) -> PlainDict:
    """Read the mapping in the file ``path``.

    Raises:
        UpsError: the file is damaged, or can't be read.
        FileNotFoundError: there is none.
    """
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"a mapping is expected, not {type(content).__name__}")
        return content
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error, "a JSON file") from None
    except ValueError as error:
        raise UpsError(
            f"{path} is damaged ({error}); without it the run doesn't know what it has done"
        ) from None


def read_tensors(path: Path, map_location: MAP_LOCATION = "cpu") -> PlainDict:
    """Read tensors and plain values that ``torch.save`` wrote to ``path``.

    The checksums in the file verify every byte.

    Raises:
        ValueError: a byte has changed.
    """
    with zipfile.ZipFile(path) as file:
        if (changed := file.testzip()) is not None:
            raise ValueError(f"{changed} is not as it was written")
    return torch.load(path, map_location=map_location, weights_only=True)


def check_disk_space(path: Path, planned: int, what: str) -> None:
    """Check that the disk under ``path`` has room.

    Args:
        path: where to write.
        planned: bytes to write.
        what: name of the data in the message.

    Raises:
        UpsError: the disk has less space. The message has both numbers.
    """
    free = shutil.disk_usage(_existing(path)).free
    if planned > free:
        raise UpsError(
            f"{what} needs {format_bytes(planned)} at {path}, "
            f"but only {format_bytes(free)} are free there"
        )


def check_memory(planned: int, what: str) -> None:
    """Check that the system has memory, if the system reports it (Linux).

    Args:
        planned: bytes to allocate.
        what: name of the data in the message.

    Raises:
        UpsError: less memory is free. The message has both numbers.
    """
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    free = next(
        (1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None
    )
    if free is not None and planned > free:
        raise UpsError(
            f"{what} needs {format_bytes(planned)} of memory, "
            f"but only {format_bytes(free)} are free"
        )


def same_disk(a: Path, b: Path) -> bool:
    """Whether two paths, which need not exist yet, are on the same filesystem."""
    return _existing(a).stat().st_dev == _existing(b).stat().st_dev


def _existing(path: Path) -> Path:
    return next(p for p in (Path(path), *Path(path).resolve().parents) if p.exists())


def format_bytes(count: float) -> str:
    """Format a number of bytes, for example "12.3 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.{0 if unit == 'B' else 1}f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
