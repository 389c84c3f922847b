"""Plain and flat configurations, and how two of them differ."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

# plain values as yaml, JSON and checkpoints hold them: nested, and not checked yet
PlainDict = dict[str, Any]


def to_plain(cfg: DictConfig, *, resolve: bool = True) -> PlainDict:
    """The plain values of a configuration; ``resolve`` replaces all ${references}."""
    return cast(PlainDict, OmegaConf.to_container(cfg, resolve=resolve))


def override_keys(overrides: Iterable[str]) -> set[str]:
    """The keys that overrides of the command line name, like "data.nu" of "+data.nu=1"."""
    return {word.lstrip("+~").partition("=")[0] for word in overrides}


def quoted(value: object) -> str:
    """``value`` as a text that Hydra's overrides take for a text, whatever its characters."""
    text = str(value)
    is_plain = re.fullmatch(r"[a-z_./][\w./:+-]*", text, re.ASCII | re.IGNORECASE)
    if is_plain and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    return "'" + text.replace("'", r"\'") + "'"


def diff_configs(old: Mapping[str, object] | None, new: Mapping[str, object]) -> list[str]:
    """List the differences of two flat configurations, "key: old -> new" for each key.

    The list is empty if there is no old configuration.
    """
    if old is None:
        return []
    # lambda_inv before the keys that are derived from it
    keys = sorted(old.keys() | new.keys(), key=lambda key: (key.count("."), key))
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)
    ]


def flatten_config(cfg: DictConfig) -> dict[str, object]:
    """Flatten a configuration to one level: {"data.nu": 0.001, ...}, resolved."""

    def walk(node: object, prefix: str) -> dict[str, object]:
        if isinstance(node, dict):
            return {
                k: v
                for key, value in node.items()
                for k, v in walk(value, f"{prefix}{key}.").items()
            }
        return {prefix[:-1]: node}

    return walk(to_plain(cfg), "")
