"""Settings by what they decide: files by their content, words by their meaning on this machine."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from ups.core.io import sha256
from ups.core.settings import flatten_config
from ups.runs.launchers import auto_accelerators, auto_precision, num_devices
from ups.runs.settings import is_bookkeeping_key

CONTENT = "content "  # what replaces a path starts with it
# a file of more bytes is read in so many blocks, or a folder of terabytes would take hours
WHOLE = 2**28
NUM_BLOCKS, BLOCK = 64, 2**16


def deciding_settings(cfg: DictConfig) -> dict[str, object]:
    """The keys that decide a result, flat, each by its meaning.

    Two configurations with the same of these give the same results.
    """
    settings = by_meaning(flatten_config(cfg))
    if settings.get("data.path") is not None and "data.nu" in settings:
        # what is not given is in the files
        data = instantiate(cfg.data, _convert_="all")
        parameters = getattr(data, "training_parameters", [])
        settings["data.nu"] = _single([row[0] if row else None for row in parameters])
    return settings


def by_meaning(settings: Mapping[str, object]) -> dict[str, object]:
    """Replace flat settings by their meaning; twice is the same as once.

    A default word stands for every value that it means on this machine, so that a record of "auto"
    is that of another machine too.
    """
    found = {key: value for key, value in settings.items() if not is_bookkeeping_key(key)}
    if "data.nu" in found:
        found["data.nu"] = _single(found["data.nu"])
    if found.get("data.path") is not None:
        paths = found["data.path"]
        found["data.path"] = _single([_content(str(path)) for path in _listed(paths)])
    accelerator = found.get("trainer.accelerator")
    if found.get("trainer.precision") == auto_precision(accelerator):
        found["trainer.precision"] = "auto"
    if "trainer.devices" in found:
        found["trainer.devices"] = num_devices(found["trainer.devices"], accelerator)
    if accelerator in auto_accelerators():
        found["trainer.accelerator"] = "auto"
    if found.get("trainer.gradient_clip_val") == 0:
        found["trainer.gradient_clip_val"] = None  # neither clips
    return found


def _listed(values: object) -> list[object]:
    return list(values) if isinstance(values, list | tuple) else [values]


def _single(values: object) -> object:
    """The only one of several values, or all."""
    listed = _listed(values)
    return listed[0] if len(listed) == 1 else listed


def _content(path: str) -> str:
    """A hash of a file's content, or of a folder's; the path itself if nothing is there."""
    where = Path(path)
    if not where.exists():
        return path
    if where.is_file():
        return f"{CONTENT}{_file_hash(where)[:12]}"
    files = sorted(file for file in where.rglob("*") if file.is_file())
    listed = [(file.relative_to(where).as_posix(), _file_hash(file)) for file in files]
    return f"{CONTENT}{hashlib.sha256(repr(listed).encode()).hexdigest()[:12]}"


def _file_hash(path: Path) -> str:
    """A hash of a file's content, computed once a process unless the file changes."""
    status = path.stat()
    return _hash_of_state(path.resolve(), status.st_size, status.st_mtime_ns)


@cache
def _hash_of_state(path: Path, size: int, modified: int) -> str:
    return sha256(path) if size <= WHOLE else _sampled_hash(path, size)


def _sampled_hash(path: Path, size: int) -> str:
    """The SHA-256 of a file's size and of blocks from its beginning to its end."""
    content = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for i in range(NUM_BLOCKS):
            file.seek((size - BLOCK) * i // (NUM_BLOCKS - 1))
            content.update(file.read(BLOCK))
    return content.hexdigest()
