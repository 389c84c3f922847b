"""Files are whole or absent: written under a temporary name in the same folder, flushed to disk, then renamed."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ups.errors import UpsError


@contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on a clean exit it is flushed and renamed to ``path``, otherwise removed.

    Raises OSError naming ``path`` when the disk is full; what stood at ``path`` before is then untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    with whole_or_absent(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def require_space(path: Path, planned: int, what: str) -> None:
    """Refuse a planned write of ``planned`` bytes that the disk under ``path`` can't hold, naming both numbers."""
    folder = next(p for p in (Path(path), *Path(path).resolve().parents) if p.exists())
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if planned > free:
        raise UpsError(f"{what} needs {planned / 1e6:.1f} MB at {path}, but only {free / 1e6:.1f} MB are free there")


def sha256(path: Path) -> str:
    """The hash of a file's content, 64 hex digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
