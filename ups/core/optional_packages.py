"""Packages that only some features need: each is an extra in pyproject.toml."""

from importlib import import_module
from types import ModuleType

from ups.core.errors import UpsError


def import_optional(module: str, feature: str, extra: str) -> ModuleType:
    """Import a module that may not be installed.

    Args:
        module: its dotted name.
        feature: what needs it, the first words of the message.
        extra: the extra of UPS that installs it.

    Raises:
        UpsError: it is not installed. The message has the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise missing_package(feature, extra) from None


def missing_package(feature: str, extra: str) -> UpsError:
    """The error for a package that is not installed; see ``import_optional``."""
    return UpsError(f"{feature} needs a package that is not installed; pip install 'ups[{extra}]'")
