"""The rules for values of a configuration, and the message for a value that breaks one.

Hydra itself rejects unknown keys.
"""

import re
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ups.core.errors import UpsError

# Hydra does not check the keys of a user's own file
KEYS = (
    *(
        "name",
        "seed",
        "output_dir",
        "overwrite",
        "preflight",
        "expect",
        "compile",
        "compile_cache_limit",
        "lambda_inv",
    ),
    *("stage", "model", "loss", "data", "trainer", "callbacks", "ttc", "logger"),
)


def _whole(low: int, high: int = 2**40) -> tuple[Callable[[Any], bool], str]:
    words = f"a whole number of at least {low}" + (f" and at most {high}" if high < 2**40 else "")
    return lambda v: type(v) is int and low <= v <= high, words


def _real(
    low: float, high: float = float("inf"), *, above: bool = False
) -> tuple[Callable[[Any], bool], str]:
    def test(v: Any) -> bool:
        return (
            type(v) in (int, float)
            and (v > low if above else v >= low)
            and v <= high
            and v < float("inf")
        )

    words = f"a number {'above' if above else 'of at least'} {low:g}" + (
        f" and at most {high:g}" if high < float("inf") else ""
    )
    return test, words


def _none_or(rule: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    return lambda v: v is None or rule[0](v), f"{rule[1]}, or null"


def _one_or_more(rule: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    return (
        lambda v: len(v) > 0 and all(map(rule[0], v)) if isinstance(v, ListConfig) else rule[0](v),
        f"{rule[1]}, or a list of such",
    )


def _switch() -> tuple[Callable[[Any], bool], str]:
    return lambda v: type(v) is bool, "true or false"


def _text(pattern: str, words: str) -> tuple[Callable[[Any], bool], str]:
    return lambda v: isinstance(v, str) and re.fullmatch(pattern, v) is not None, words


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": _text(r"[^/\x00]*[^/.\x00][^/\x00]*", "a folder's name without '/'"),
    "seed": _whole(0),
    "lambda_inv": _real(0),
    "compile": _switch(),
    "compile_cache_limit": _real(0),
    "overwrite": _switch(),
    "preflight": _switch(),
    **{
        f"expect.{name}": _none_or(
            _text(r"[0-9a-f]{7,}", "a hash of at least 7 hex digits, in quotes")
        )
        for name in ("commit", "config_hash", "data_hash")
    },
    "callbacks.on_finish": _none_or(_text(r".+", "a shell command")),
    "loss.lambda_inv_enc": _real(0),
    "loss.lambda_inv_dec": _real(0),
    "loss.inverse_loss_frequency": _whole(1),
    "data.equation": _text(r"[\w.]+", "the name of an equation's module"),
    "data.nu": _none_or(_one_or_more(_real(0, above=True))),
    "data.points": _whole(2),
    "data.solver_points": _whole(4),
    "data.dt": _real(0, 1000, above=True),
    "data.frames": _whole(2),
    "data.train": _whole(1),
    "data.validation": _whole(1),
    "data.test": _whole(1),
    "data.time_stride": _whole(1),
    "data.space_stride": _whole(1),
    "data.window": _whole(1),
    "data.windows_per_trajectory": _whole(1),
    "data.batch_size": _whole(1),
    "data.eval_batch_size": _whole(1),
    "data.repeat": _switch(),
    "data.stretch": _whole(1),
    "data.early": _real(0, above=True),
    "data.shift": _switch(),
    "data.mirror": _switch(),
    "data.in_memory": _switch(),
    "data.num_workers": _whole(0),
    "data.seed": _whole(0),
    "trainer.max_epochs": _whole(1),
    "trainer.max_time": _none_or(_text(r"\d\d:\d\d:\d\d:\d\d", "DD:HH:MM:SS")),
    "trainer.accumulate_grad_batches": _whole(1),
    "trainer.gradient_clip_val": _none_or(_real(0)),
    "trainer.log_every_n_steps": _whole(1),
    "trainer.check_val_every_n_epoch": _whole(1),
    "trainer.precision": _text(
        r"auto|32-true|bf16-mixed|16-mixed", "auto, 32-true, bf16-mixed or 16-mixed"
    ),
    "callbacks.ema.decay": _real(0, 1),
    "callbacks.last.every_n_train_steps": _whole(1),
    "callbacks.inverse_loss_frequency.every": _whole(1),
    "output_dir": _text(r"[^\x00]+", "a folder"),
    "model.tokens": _whole(1),
    "model.width": _whole(2),
    "model.name": _text(r"[^\x00]+", "a name"),
    "model.patch": _whole(1),
    "model.distances": _one_or_more(_whole(0)),
    **{f"model.{part}": _whole(0, 1000) for part in ("encoder", "approximator", "decoder")},
    "model.hidden": _real(0, above=True),
    "model.limit": _real(0, above=True),
    **{
        f"stage.{stage}.{key}": rule
        for stage in ("operator", "diffusion", "consistency")
        for key, rule in {
            "module.momentum": _real(0, 1),
            "module.lr": _real(0, above=True),
            "module.weight_decay": _real(0),
            "module.warmup": _real(0, 1),
            "module.final_lr": _real(0, 1),
            "module.threads": _whole(1),
            "module.betas": _one_or_more(_real(0, 1)),
            "module.gradient_steps": _whole(1, 1000),
            "module.latent_cache": _none_or(_text("float16|float32", "float16 or float32")),
            "data.windows_per_trajectory": _none_or(_whole(1)),
            "trainer.max_epochs": _none_or(_whole(1)),
            "data.window": _none_or(_whole(1)),
            "data.batch_size": _none_or(_whole(1)),
        }.items()
    },
    **{
        f"stage.{stage}.module.latent_cache_limit": _real(0)
        for stage in ("diffusion", "consistency")
    },
    "stage.diffusion.module.level_mean": _real(-100, 100),
    "stage.diffusion.module.level_std": _real(0, above=True),
    "stage.diffusion.module.corrector.rho": _real(0, above=True),
    **{
        f"stage.diffusion.module.corrector.{network}.{key}": rule
        for network in ("mean", "noise")
        for key, rule in {
            "width": _whole(1),
            "hidden": _real(0, above=True),
            "depth": _whole(0, 1000),
            "distances": _one_or_more(_whole(0)),
        }.items()
    },
    "stage.diffusion.module.corrector.steps": _whole(1),
    "stage.diffusion.module.corrector.sigma_min": _real(0, above=True),
    "stage.diffusion.module.corrector.sigma_max": _real(0, above=True),
    "stage.diffusion.module.corrector.temperature": _real(0),
    "ttc.enabled": _switch(),
    "ttc.candidates": _whole(1),
    "ttc.tolerance": _real(0),
    "ttc.guidance_steps": _whole(0),
    "ttc.guidance_strength": _real(0, 1),
    "ttc.refine": _whole(1),
    "ttc.jump": _real(0, above=True),
    "ttc.reach": _whole(0),
    **{
        f"ttc.weights.{term}": _real(0)
        for term in ("residual", "mass", "maximum", "variation", "energy", "halving")
    },
}


def validate_config(cfg: DictConfig) -> None:
    """Check a configuration before anything is written.

    Raises:
        UpsError: the first value that can't work. The message has the key, the value and what is
            allowed.
    """
    for key, (test, allowed) in RULES.items():
        group, _, leaf = key.rpartition(".")
        within = OmegaConf.select(cfg, group) if group else cfg
        if within is None or leaf not in within:
            # a group that is off, for example callbacks.ema=null, or a model without such a key
            continue
        value = OmegaConf.select(cfg, key, default=None, throw_on_missing=False)
        if not test(value):
            raise UpsError(f"{key}={value!r} is not allowed: {allowed} is")
    unknown = sorted(set(cfg) - set(KEYS))
    if unknown:
        raise UpsError(
            f"{unknown[0]} is not a key of the configuration; these are: {', '.join(KEYS)}"
        )
    for name in cfg.callbacks:
        if name != "on_finish" and not isinstance(cfg.callbacks[name], DictConfig | None):
            raise UpsError(
                f"callbacks.{name}={cfg.callbacks[name]!r} is not allowed: "
                "a mapping with the callback's class in _target_, or null, is"
            )
    for stage in cfg.stage.train:
        own = cfg.stage[stage]
        if not isinstance(OmegaConf.select(cfg, f"stage.{stage}.module._target_"), str):
            raise UpsError(
                f"stage.{stage}.module must be a mapping with the module's class in _target_"
            )
        if not all(isinstance(own[part], DictConfig) for part in ("trainer", "data")):
            raise UpsError(
                f"stage.{stage}.trainer and stage.{stage}.data must be mappings of what differs "
                "from trainer and data"
            )
        if own.trainer.get("max_time") is not None:
            raise UpsError(
                f"stage.{stage}.trainer.max_time is not allowed: trainer.max_time, "
                "the limit on the whole call, is"
            )
        every, last = (
            {**cfg.trainer, **own.trainer}[key] for key in ("check_val_every_n_epoch", "max_epochs")
        )
        if every > last:
            raise UpsError(
                f"trainer.check_val_every_n_epoch={every} is not allowed: "
                f"at most stage {stage}'s max_epochs={last} is"
            )
    missing = OmegaConf.missing_keys(cfg)
    if missing:
        raise UpsError(f"{', '.join(sorted(missing))} must be given")
