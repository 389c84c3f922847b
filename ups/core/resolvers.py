"""The resolvers of the configuration: ``${stem:...}`` and such."""

from hashlib import sha256
from pathlib import Path

from omegaconf import OmegaConf


def folder_name(overrides: str) -> str:
    """The name of a sweep job's folder, from its overrides.

    File names have no slashes and at most 255 bytes.
    """
    name = overrides.replace("/", "_")
    return name if len(name) <= 120 else f"{name[:100]}-{sha256(name.encode()).hexdigest()[:8]}"


def stem(path: str | None) -> str:
    """The name of a run on one's own data: that of their file."""
    return Path(path).stem if path else "own"


def unless(given: object, default: object) -> object:
    """``default``, or null if something else is ``given``."""
    return default if given is None else None


def register() -> None:
    """Register them; every process that reads a configuration needs them."""
    for resolver in (folder_name, stem, unless):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
