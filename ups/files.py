"""Files are whole or absent: written under a temporary name in the same folder, flushed to disk, then renamed.

And whether there is room.
"""

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ups.errors import UpsError, disk_is_full


@contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on a clean exit it is flushed and renamed to ``path``, otherwise removed.

    Raises:
        UpsError: the disk is full; names ``path`` and both sizes. What stood at ``path`` before is untouched.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
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
    """Write ``content`` to ``path``, whole or not at all."""
    require_space(path, len(content), path.name)
    with whole_or_absent(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    write_bytes(path, text.encode())


def read_json(path: Path) -> dict[str, Any]:
    """The mapping that the file ``path`` holds; an UpsError where it is damaged."""
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError(f"a mapping is expected, not {type(found).__name__}")
        return found
    except ValueError as error:
        raise UpsError(f"{path} is damaged ({error}); without it the run doesn't know what it has done") from None


def read_tensors(path: Path, map_location: Any = "cpu") -> Any:
    """What ``torch.save`` wrote to ``path``: tensors and plain values only, each byte as it was written, by the file's own checksums."""
    import torch

    with zipfile.ZipFile(path) as file:
        if (changed := file.testzip()) is not None:
            raise ValueError(f"{changed} is not as it was written")
    return torch.load(path, map_location=map_location, weights_only=True)


def require_space(path: Path, planned: int, what: str) -> None:
    """Refuse a planned write of ``planned`` bytes that the disk under ``path`` can't hold, naming both numbers."""
    stat = os.statvfs(_existing(path))
    free = stat.f_bavail * stat.f_frsize
    if planned > free:
        raise UpsError(f"{what} needs {size(planned)} at {path}, but only {size(free)} are free there")


def require_memory(planned: int, what: str) -> None:
    """Refuse what the system's memory can't hold now, naming both numbers, where the system tells (Linux)."""
    told = Path("/proc/meminfo")
    lines = told.read_text().splitlines() if told.exists() else []
    free = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)
    if free is not None and planned > free:
        raise UpsError(f"{what} needs {size(planned)} of memory, but only {size(free)} are free")


def same_disk(a: Path, b: Path) -> bool:
    """Whether two paths, which need not exist yet, are on one filesystem."""
    return _existing(a).stat().st_dev == _existing(b).stat().st_dev


def _existing(path: Path) -> Path:
    return next(p for p in (Path(path), *Path(path).resolve().parents) if p.exists())


def size(count: float) -> str:
    """Bytes in words: "12.3 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.{0 if unit == 'B' else 1}f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def sha256(path: Path) -> str:
    """The hash of a file's content, 64 hex digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
