"""Configuration keys of the previous release, which are still read for one release.

``RENAMED`` and ``RENAMED_CHOICES`` are applied to the command line before Hydra composes it, to a
user's own yaml after Hydra has composed it, and to the settings and the config.yaml in the run
directories of the previous release. Recorded settings also lack keys that have been ``ADDED``.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf, open_dict

from ups.core.settings import PlainDict, override_keys, to_plain

# Older dotted key: key. A key also matches below stage.<stage>, and with further parts behind it:
# "data.window" stands for "stage.diffusion.data.window" too, "a.b" for "a.b.c".
RENAMED = {
    "data.early": "data.start_time_bias",
    "data.shift": "data.augmentation.translate",
    "data.mirror": "data.augmentation.reflect",
    "data.stretch": "data.augmentation.max_time_rescale",
    "data.repeat": "data.fixed_windows",
    "data.window": "data.unroll_steps",
    "data.windows_per_trajectory": "data.samples_per_trajectory",
    "data.train": "data.num_train",
    "data.validation": "data.num_validation",
    "data.test": "data.num_test",
    "data.points": "data.num_points",
    "data.solver_points": "data.reference_num_points",
    "data.frames": "data.num_frames",
    "data.time_stride": "data.temporal_downsampling",
    "data.space_stride": "data.spatial_downsampling",
    "data.directory": "data.cache_dir",
    "data.order_seed": "data.sampler_seed",
    "ttc.candidates": "ttc.num_candidates",
    "ttc.tolerance": "ttc.score_threshold",
    "ttc.refine": "ttc.refinement_factor",
    "ttc.jump": "ttc.shock_threshold",
    "ttc.reach": "ttc.shock_radius",
    "model.tokens": "model.num_tokens",
    "model.width": "model.hidden_dim",
    "model.hidden": "model.mlp_ratio",
    "model.distances": "model.dilations",
    "model.encoder": "model.encoder_depth",
    "model.approximator": "model.approximator_depth",
    "model.decoder": "model.decoder_depth",
    "model.patch": "model.patch_overlap",
    "model.limit": "model.latent_rms_limit",
    "model.conserve": "model.conserve_mean",
    "model.patches": "model.num_patches",
    "model.heads": "model.num_heads",
    "model.layers": "model.num_layers",
    "model.levels": "model.num_levels",
    "model.blocks": "model.num_blocks",
    "module.threads": "module.num_cpu_shards",
    "module.warmup": "module.warmup_fraction",
    "module.final_lr": "module.min_lr_ratio",
    "module.momentum": "module.muon_momentum",
    "module.gradient_steps": "module.projection_steps",
    "module.latent_cache": "module.latent_cache_dtype",
    "module.latent_cache_limit": "module.latent_cache_max_bytes",
    "module.level_mean": "module.P_mean",
    "module.level_std": "module.P_std",
    "module.corrector.mean": "module.corrector.mean_network",
    "module.corrector.noise": "module.corrector.denoiser",
    "module.corrector.steps": "module.corrector.num_steps",
    "module.corrector.mean_network.width": "module.corrector.mean_network.hidden_dim",
    "module.corrector.mean_network.hidden": "module.corrector.mean_network.mlp_ratio",
    "module.corrector.mean_network.distances": "module.corrector.mean_network.dilations",
    "module.corrector.denoiser.width": "module.corrector.denoiser.hidden_dim",
    "module.corrector.denoiser.hidden": "module.corrector.denoiser.mlp_ratio",
    "module.corrector.denoiser.distances": "module.corrector.denoiser.dilations",
    "compile_cache_limit": "compile_cache_max_bytes",
}
# model: {older key: key}, rows of RENAMED that differ for this choice or architecture of a model
RENAMED_BY_MODEL: dict[str, dict[str, str]] = {
    model: {"model.width": "model.hidden_channels"} for model in ("fno", "unet", "resnet")
}
# group: {older choice: choice}
RENAMED_CHOICES: dict[str, dict[str, str]] = {
    "model": {
        "tiny": "mixer_tiny",
        "small": "mixer_small",
        "medium": "mixer_medium",
        "large": "mixer_large",
        "paper": "mixer_paper",
        "upt_absolute": "upt",
    },
}
# key: {older value: value}, in the recorded settings of the previous release only
RENAMED_VALUES: dict[str, dict[str, str]] = {
    "callbacks.ema._target_": {
        "lightning.pytorch.callbacks.EMAWeightAveraging": "ups.callbacks.EMAWeightAveraging"
    },
    "callbacks.finite_loss._target_": {"ups.callbacks.FiniteLoss": "ups.callbacks.TerminateOnNaN"},
    "callbacks.last._target_": {"ups.callbacks.LastCheckpoint": "ups.callbacks.ResumeCheckpoint"},
    "model.architecture": {
        "upt": "mixer",
        "upt_absolute": "upt",
    },
    "model.name": {
        "upt-tiny": "mixer-tiny",
        "upt-small": "mixer-small",
        "upt-medium": "mixer-medium",
        "upt-large": "mixer-large",
        "upt-paper": "mixer-paper",
        "upt-absolute": "upt",
    },
}

# key: the value that means what a release without it did, in recorded settings
ADDED: PlainDict = {
    "loss.adaptive_inv_dec": False,
    "stage.operator.module.adaptive_inv_dec": False,
}

_PREFIX = re.compile(r"stage\.\w+\.")
_OVERRIDE = re.compile(r"(?P<mark>\+\+|\+|~)?(?P<key>[\w./@$-]+)(?P<value>=.*)?", re.DOTALL)


def rename_key(key: str, model: str | None = None) -> str:
    """The name of today of a dotted key; a key that has not been renamed is returned as it is.

    Args:
        key: the key.
        model: the choice or the architecture of the model, for keys whose new name depends on it.
    """
    table = RENAMED | RENAMED_BY_MODEL.get(model or "", {})
    if "." in (model or ""):  # "package.module.Class": the arguments of a user's own model
        table = {old: new for old, new in table.items() if not old.startswith("model.")}
    found = _PREFIX.match(key)
    for prefix in ("", found[0]) if found else ("",):
        parts = key.removeprefix(prefix).split(".")
        # the longest match first; a part behind it may have been renamed too, so again from there
        for length in range(len(parts), 0, -1):
            new = table.get(".".join(parts[:length]))
            if new is not None:
                return rename_key(prefix + ".".join([new, *parts[length:]]), model)
    return key


def rename_flat(settings: PlainDict) -> PlainDict:
    """A flat configuration of this or the previous release under the names of today."""
    model = settings.get("model.architecture")
    renamed = {rename_key(key, model): value for key, value in settings.items()}
    if renamed.keys() != settings.keys():  # of the previous release, whose values differ too
        for key, values in RENAMED_VALUES.items():
            if key in renamed:
                renamed[key] = values.get(renamed[key], renamed[key])
    return renamed


def rename_arguments(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """Rename keys and choices on the command line.

    Args:
        arguments: the words of the command, with Hydra's own options.

    Returns:
        The words under the names of today, and one warning for each name that has changed.
    """
    arguments = list(arguments)
    model = next((word[6:] for word in arguments if word.startswith("model=")), None)
    words, warnings = [], []
    for word in arguments:
        new = _rename_override(word, model)
        if new != word:
            old_name, new_name = (w.lstrip("+~").partition("=")[0] for w in (word, new))
            if old_name == new_name:  # a choice
                old_name, new_name = word, new
            warnings.append(warning(old_name, new_name))
        words.append(new)
    return words, warnings


def _rename_override(word: str, model: str | None) -> str:
    found = _OVERRIDE.fullmatch(word)
    if found is None or word.startswith("-"):
        return word
    mark, key, value = found["mark"] or "", found["key"], found["value"] or ""
    if value and key in RENAMED_CHOICES:
        choices = value[1:].split(",")  # a sweep lists several
        value = "=" + ",".join(RENAMED_CHOICES[key].get(choice, choice) for choice in choices)
    return f"{mark}{rename_key(key, model)}{value}"


def rename_config(cfg: DictConfig, given: Iterable[str] = ()) -> list[str]:
    """Move the values of renamed keys in a composed configuration, in place.

    A user's own yaml may hold them. Its value replaces the one under the name of today, which is
    the default's.

    Args:
        cfg: the configuration.
        given: overrides of the command line, under the names of today. They take precedence.

    Returns:
        One warning for each key.
    """
    on_command_line = override_keys(given)
    model = OmegaConf.select(cfg, "model.architecture")
    warnings = []
    with open_dict(cfg):
        for key, value in _leaves(to_plain(cfg, resolve=False)):
            new = rename_key(key, model)
            if new == key:
                continue
            _delete(cfg, key)
            if new not in on_command_line:
                OmegaConf.update(cfg, new, value, force_add=True)
            warnings.append(warning(key, new))
    return warnings


def _leaves(node: PlainDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The dotted keys and values of nested mappings; an empty mapping is a value."""
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _delete(cfg: DictConfig, key: str) -> None:
    """Delete a key, and the renamed mappings around it that are empty then."""
    group, _, leaf = key.rpartition(".")
    parent = OmegaConf.select(cfg, group) if group else cfg
    del parent[leaf]
    if not parent and rename_key(group) != group:
        _delete(cfg, group)


def load_config(path: Path) -> DictConfig:
    """Read the config.yaml of a run of this or the previous release, under the names of today."""
    cfg = OmegaConf.load(path)
    if isinstance(cfg, DictConfig):
        rename_config(cfg)
    return cast(DictConfig, cfg)


def warning(old: str, new: str) -> str:
    """The sentence for a name that has changed."""
    return f"`{old}` is now `{new}`. The old name is read in this release only."
