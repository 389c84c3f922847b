"""Checks a configuration before anything is written.

Each part is checked against the constructor that takes it. Here are the checks of several settings
together.
"""

from collections.abc import Callable, Mapping

import lightning.pytorch as pl
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ups.callbacks import EMAWeightAveraging
from ups.core.errors import UpsError, to_user_error
from ups.core.schema import arguments, locate, refusal, unknown_key, validate
from ups.core.settings import PlainDict, to_plain
from ups.datamodules import PointCloudDataModule
from ups.models import get_architecture
from ups.modules.base import check_takes_points
from ups.runs.launchers import usable_accelerator
from ups.runs.settings import (
    SECTIONS,
    CallbackSettings,
    EMASettings,
    LossSettings,
    ModelSettings,
    RunSettings,
    StageSettings,
    TrainerSettings,
    TTCSettings,
)
from ups.simulation.converter import convert_model_spec
from ups.simulation.guidance import lack_of_guide

# arguments of Lightning's Trainer that ``ups.runs.training.make_trainer`` sets itself
RESERVED = (
    "callbacks",
    "logger",
    "plugins",
    "default_root_dir",
    "num_sanity_val_steps",
    "use_distributed_sampler",
    "enable_model_summary",
    "enable_progress_bar",
)
# arguments with which a run would end without weights, or fail, and what does it instead
UNSUPPORTED = {
    "max_steps": "a training ends with an epoch, use max_epochs and data.samples_per_trajectory",
    "overfit_batches": "use data.num_train and data.fixed_windows=true",
    "fast_dev_run": "stage=preflight rehearses the command",
    "barebones": "it leaves out the checkpoints from which a run resumes",
    "enable_checkpointing": "checkpoints hold the weights, see callbacks.last",
    "limit_test_batches": "use data.num_test",
    "limit_val_batches": "validation chooses the weights, use data.num_validation",
}
STAGE_PARTS = ("module", "trainer", "data", "callbacks")
TESTED_WITH_TTC = ("all", "evaluate")  # stages of a command
# bounds on the arguments of Lightning's own callbacks
BOUNDS: dict[Callable[..., object], type] = {
    EMAWeightAveraging: EMASettings,
    callbacks.EMAWeightAveraging: EMASettings,
}


def validate_config(cfg: DictConfig) -> None:
    """Check a configuration before anything is written.

    Raises:
        UpsError: the first value that can't work. The message has the key, the value and what is
            allowed.
    """
    settings = _resolved(cfg)
    validate(RunSettings, settings, "", name="the configuration", required="all")
    validate(LossSettings, settings["loss"], "loss", required="all")
    validate(TTCSettings, settings["ttc"], "ttc", name="ups.simulation.guidance.TTC")
    if "enabled" not in settings["ttc"]:
        raise UpsError("`ttc.enabled` must be given.")
    _check_trainer(settings["trainer"], "trainer")
    _check_data(settings["data"])
    _check_model(settings["model"])
    _check_callbacks(settings["callbacks"])
    _check_target(settings["logger"], "logger", Logger)
    validate(StageSettings, settings["stage"], "stage", name="stage")
    for stage in ("operator", "diffusion", "consistency"):
        _check_stage(settings, stage)
    _check_data_modules(settings)


def _resolved(cfg: DictConfig) -> PlainDict:
    """The plain values, with all ${references} replaced."""
    try:
        missing = OmegaConf.missing_keys(cfg)
        settings = to_plain(cfg)
    except OmegaConfBaseException as error:
        reason = str(error).strip().splitlines()[0]
        raise UpsError(f"`{error.full_key}` can't be read: {reason}.") from None
    if missing:
        raise UpsError(f"`{min(missing)}` must be given.")
    return settings


def known_keys() -> list[str]:
    """All dotted keys of the default configuration that have a rule."""
    keys = {section.full(name) for section in SECTIONS for name in section.named}
    return sorted(key.removesuffix(".") for key in keys)


def _check_trainer(values: PlainDict, key: str, *, is_partial: bool = False) -> None:
    for name, instead in UNSUPPORTED.items():
        if name in values:
            raise UpsError(f"`{key}.{name}` is not supported: {instead}.")
    if not is_partial:
        for name in arguments(TrainerSettings).named:
            if name not in values:
                raise UpsError(f"`{key}.{name}` must be given.")
    if isinstance(values.get("accelerator"), str):
        usable_accelerator(values["accelerator"])
    validate(
        pl.Trainer,
        values,
        key,
        name="lightning.pytorch.Trainer",
        without=RESERVED,
        bounds=TrainerSettings,
    )


def _check_target(values: PlainDict, key: str, base: type, *, skip: int = 0) -> None:
    """Check the arguments of the class that ``_target_`` names."""
    path = values.get("_target_")
    target = locate(path, f"{key}._target_", base)
    validate(target, values, key, name=path, skip=skip, bounds=BOUNDS.get(target))


def _check_data(values: PlainDict) -> None:
    _check_target(values, "data", pl.LightningDataModule)


def _check_model(values: PlainDict) -> None:
    model = convert_model_spec(dict(values))
    common = arguments(ModelSettings).named
    validate(ModelSettings, {k: v for k, v in model.items() if k in common}, "model")
    architecture = get_architecture(model["architecture"])
    own = {k: v for k, v in model.items() if k not in common}
    validate(architecture, own, "model", skip=1)


def _check_callbacks(values: PlainDict) -> None:
    common = arguments(CallbackSettings).named
    validate(CallbackSettings, {k: v for k, v in values.items() if k in common}, "callbacks")
    for name, callback in values.items():
        if name == "on_finish" or callback is None:
            continue
        if not isinstance(callback, dict):
            allowed = "a mapping with the callback's class in _target_, or null"
            raise refusal(f"callbacks.{name}", allowed, callback)
        _check_target(callback, f"callbacks.{name}", pl.Callback)
        # a user's own is made once only: its constructor may do anything
        if callback["_target_"].partition(".")[0] in ("lightning", "ups"):
            _make(callback, f"callbacks.{name}")


def _check_stage(settings: PlainDict, stage: str) -> None:
    own = settings["stage"][stage]
    key = f"stage.{stage}"
    is_trained = stage in settings["stage"]["train"]
    for name in own:
        if name not in STAGE_PARTS:
            raise unknown_key(name, STAGE_PARTS, f"{key}.", key)
    for part in ("trainer", "data"):
        if not isinstance(own.get(part), Mapping):
            allowed = f"a mapping of what differs from `{part}`"
            raise refusal(f"{key}.{part}", allowed, own.get(part))
    module = own.get("module")
    if isinstance(module, dict):
        _check_target(module, f"{key}.module", pl.LightningModule, skip=1)
    elif is_trained or module is not None:
        raise refusal(f"{key}.module", "a mapping with the module's class in _target_", module)
    _check_trainer(own["trainer"], f"{key}.trainer", is_partial=True)
    data = locate(settings["data"]["_target_"], "data._target_", pl.LightningDataModule)
    name = settings["data"]["_target_"]
    validate(data, own["data"], f"{key}.data", name=name, required="none")
    for part in ("trainer", "data", "callbacks"):
        # a stage's own value replaces a general one
        for name in own.get(part) or {}:
            if name not in settings[part]:
                raise UpsError(
                    f"`{part}.{name}` must be given, because `{key}.{part}.{name}` replaces it in "
                    "one stage."
                )
    if own["trainer"].get("max_time") is not None:
        raise UpsError(
            f"`{key}.trainer.max_time` must be null, got {own['trainer']['max_time']!r}; use "
            "trainer.max_time, the limit on the whole call."
        )
    for name, changes in (own.get("callbacks") or {}).items():
        general = settings["callbacks"][name] or {}
        _check_callbacks({name: {**general, **changes}})
    if is_trained:
        _check_validation_epochs(settings, stage)
        _check_cache(settings, stage)


def _check_validation_epochs(settings: PlainDict, stage: str) -> None:
    trainer = {**settings["trainer"], **settings["stage"][stage]["trainer"]}
    every = trainer["check_val_every_n_epoch"]
    last = trainer["max_epochs"]
    if every > last:
        allowed = f"at most stage {stage}'s max_epochs={last}"
        raise refusal("trainer.check_val_every_n_epoch", allowed, every)


def _check_cache(settings: PlainDict, stage: str) -> None:
    data = _stage_data(settings, stage)
    dtype = settings["stage"][stage]["module"].get("latent_cache_dtype")
    if dtype is not None and data.get("fixed_windows") is False:
        raise UpsError(
            f"`stage.{stage}.data.fixed_windows` must be true, got false: "
            f"latent_cache_dtype={dtype} needs the same windows in every epoch; "
            f"or use stage.{stage}.module.latent_cache_dtype=null."
        )


def _check_data_modules(settings: PlainDict) -> None:
    """Make the data modules, which check their settings together and read no files yet."""
    stages = settings["stage"]["train"] or [None]
    for stage in stages:
        data = _stage_data(settings, stage)
        made = _make(data, "data")
        if not isinstance(made, pl.LightningDataModule):
            allowed = "the path of a LightningDataModule"
            raise refusal("data._target_", allowed, data["_target_"])
        _check_unroll_steps(data)
        if stage and isinstance(made, PointCloudDataModule):
            key = f"stage.{stage}.module._target_"
            target = settings["stage"][stage]["module"]["_target_"]
            check_takes_points(locate(target, key, pl.LightningModule))
        asks_for_ttc = settings["ttc"]["enabled"] and settings["stage"]["name"] in TESTED_WITH_TTC
        if asks_for_ttc and hasattr(made, "equation") and (lack := lack_of_guide(made.equation)):
            raise UpsError(f"`ttc.enabled` must be false, got true: {lack}.")


def _check_unroll_steps(data: PlainDict) -> None:
    """Check that generated trajectories are long enough; a file's length is in the file."""
    steps = data.get("unroll_steps")
    frames = data.get("num_frames")
    if data.get("path") is not None or not isinstance(steps, int) or not isinstance(frames, int):
        return
    if steps >= frames:
        raise refusal("data.unroll_steps", f"less than data.num_frames={frames}", steps)


def _make(values: PlainDict, key: str) -> object:
    """Make what ``_target_`` names; its constructor checks its settings together.

    Raises:
        UpsError: the constructor refuses them.
    """
    try:
        return instantiate(OmegaConf.create(dict(values)), _convert_="all")
    except InstantiationException as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise to_user_error(error) or UpsError(f"`{key}` can't be made: {reason}.") from None


def _stage_data(settings: PlainDict, stage: str | None) -> PlainDict:
    """The settings of a stage's data; those of the test without a stage."""
    own = settings["stage"][stage]["data"] if stage else {}
    return {**settings["data"], **own}
