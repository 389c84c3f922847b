"""The resolvers of the configuration: ``${data_name:...}`` and such."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from omegaconf import OmegaConf


def folder_name(overrides: str) -> str:
    """The name of a sweep job's folder, from its overrides.

    File names have no slashes and at most 255 bytes.
    """
    name = overrides.replace("/", "_")
    return name if len(name) <= 120 else f"{name[:100]}-{sha256(name.encode()).hexdigest()[:8]}"


def data_name(data: object, generated: str | None = None) -> str:
    """The default name of a run: that of its data's files; without files ``generated``, or else the
    name of the equation that makes them, or of the data.
    """
    settings = data if isinstance(data, Mapping) else {}
    path = settings.get("path")
    files = [path] if isinstance(path, str) else list(path or ())
    default = generated or settings.get("equation") or settings.get("name") or "burgers"
    return folder_name("-".join(Path(str(file)).stem for file in files)) or str(default)


def experiment_name(experiment: str, data: object) -> str:
    """The default name of an experiment's run: with the data's, unless they are the default."""
    name = data_name(data)
    return experiment if name == "burgers" else f"{experiment}-{name}"


def unless(given: object, default: object) -> object:
    """``default``, or null if something else is ``given``."""
    return default if given is None else None


def register() -> None:
    """Register them; every process that reads a configuration needs them."""
    for resolver in (folder_name, data_name, experiment_name, unless):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
