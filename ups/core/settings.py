"""Flat configurations: how two of them differ, and which keys decide a result."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

# keys that may differ between two calls that continue one run
BOOKKEEPING_KEYS = (
    *(
        "name",
        "output_dir",
        "overwrite",
        "preflight",
        "expect",
        "compile_cache_limit",
        "logger",
        "callbacks.on_finish",
    ),
    *("callbacks.epoch_log", "trainer.max_time", "trainer.log_every_n_steps"),
    *("data.directory", "data.num_workers", "data.in_memory", "data.eval_batch_size"),
)


def diff_configs(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> list[str]:
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


def flatten_config(cfg: DictConfig) -> dict[str, Any]:
    """Flatten a configuration to one level: {"data.nu": 0.001, ...}, resolved."""

    def walk(node: Any, prefix: str) -> dict[str, Any]:
        if isinstance(node, dict):
            return {
                k: v
                for key, value in node.items()
                for k, v in walk(value, f"{prefix}{key}.").items()
            }
        return {prefix[:-1]: node}

    return walk(OmegaConf.to_container(cfg, resolve=True), "")


def is_bookkeeping_key(key: str) -> bool:
    """Whether ``key`` may differ between two calls that continue one run."""
    return any(
        key == free or key.startswith(f"{free}.") for free in BOOKKEEPING_KEYS
    ) or key.endswith((".dirpath", ".save_dir", ".threads"))
