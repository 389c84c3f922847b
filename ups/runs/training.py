"""Fit one stage: the trainer, resuming, and the two files of weights that mark it as finished."""

import logging
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import lightning.pytorch as pl
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from ups.callbacks import AtomicCheckpointIO, CompileCachePruner, EpochProgressBar, GracefulStop
from ups.callbacks.graceful_stop import TimeLimit
from ups.core.compilation import compiled_or_eager
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec
from ups.core.settings import PlainDict, to_plain
from ups.datamodules import TrajectoryDataModule
from ups.models import build
from ups.modules import BaseModule
from ups.modules.sharding import sharded_strategy
from ups.runs.distributed import SingleProcess
from ups.runs.initial_weights import load_finished, load_weights, with_units_of
from ups.runs.launchers import (
    auto_precision,
    has_foreign_rank,
    trains_alone,
    usable_accelerator,
)
from ups.runs.stages import parent_hash, weights_path
from ups.simulation.checkpoint import mismatched_keys
from ups.simulation.converter import convert_model_spec
from ups.simulation.simulator import Simulator

Loggers = Logger | list[Logger]
COMPILE_CACHE = "compile_cache"  # in the run's folder
log = logging.getLogger(__name__)


def fit(
    cfg: DictConfig,
    stage: str,
    module: BaseModule,
    data: pl.LightningDataModule,
    folder: Path,
    logger: Loggers,
    limit: TimeLimit,
) -> None:
    """Train a stage, or resume it from the folder's last checkpoint, and write its weights.

    Args:
        cfg: the stage's own configuration.
        stage: the name of the stage.
        module: the module to train.
        data: the datamodule.
        folder: the run's folder.
        logger: the run's loggers.
        limit: the time limit on the call.

    Raises:
        RunIncomplete: the time limit or a signal interrupted training.
        UpsError: the checkpoint does not fit, or no validation took place.
    """
    checkpoints = folder / "checkpoints"
    trainer = make_trainer(cfg, folder, logger, limit)
    last = checkpoints / f"{stage}-last.ckpt"
    if last.exists():
        check_checkpoint_compatible(last, module)
        log.info("resuming from %s", last)
    if cfg.compile:
        compile_losses(module, folder)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=last if last.exists() else None)
    finally:
        module.clean_up()
    best = checkpoints / f"{stage}-best.ckpt"
    monitor = next(
        (c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor),
        None,
    )
    if monitor is None or monitor.best_model_score is None:
        raise UpsError(
            f"stage {stage} ended without a validation by which callbacks.best could choose its "
            f"weights; {last} is kept"
        )
    if trainer.is_global_zero:
        write_stage_weights(best, folder, stage, module.simulator, float(monitor.best_model_score))
        for path in (best, last):
            path.unlink(missing_ok=True)
    trainer.strategy.barrier()
    stop = next(c for c in trainer.callbacks if isinstance(c, GracefulStop))  # type: ignore[attr-defined]
    if (reason := stop.reason(f"at the end of stage {stage}")) is not None:
        raise reason


def check_checkpoint_compatible(last: Path, module: BaseModule) -> None:
    """Check that ``last`` is a checkpoint of this stage and these sizes.

    Raises:
        UpsError: it is not. The message lists the keys that differ.
    """
    checkpoint = AtomicCheckpointIO().load_checkpoint(last)
    lacking = sorted(
        {"state_dict", "optimizer_states", "loops", "callbacks"}
        - set(checkpoint if isinstance(checkpoint, dict) else ())
    )
    differ = [] if lacking else mismatched_keys(module.state_dict(), checkpoint["state_dict"])
    if lacking or differ:
        why = (
            f"it lacks {', '.join(lacking)}"
            if lacking
            else f"{len(differ)} keys differ: {', '.join(differ[:6])}"
        )
        raise UpsError(
            f"{last} is no checkpoint that this stage can go on from ({why}); "
            "overwrite=true starts over"
        )


def first_simulator(cfg: DictConfig, data: TrajectoryDataModule) -> Simulator:
    """The simulator that the operator stage trains: an untrained one, or that of ``init_from``."""
    if cfg.init_from is None:
        return build_simulator(cfg, data)
    finished = load_finished(cfg.init_from, data)
    simulator = build_simulator(cfg, data, with_units_of(data, finished))
    load_weights(simulator, finished, cfg.init_from)
    log.info("operator: begins with the weights of %s", cfg.init_from)
    return simulator


def build_simulator(
    cfg: DictConfig, data: TrajectoryDataModule, spec: FieldSpec | None = None
) -> Simulator:
    """Build an untrained simulator of the configured size.

    Args:
        cfg: the configuration.
        data: the training data.
        spec: describes their field in other units; default: in their own.
    """
    config = _current_names(to_plain(cfg.model))
    spec = data.spec if spec is None else spec
    trained = (data.training_parameters, data.input_range(spec))
    return Simulator(build(config, spec), spec, data.equation_name, config, *trained)


def _current_names(spec: PlainDict) -> PlainDict:
    """Convert the names of earlier versions in a user's own file, with a warning."""
    converted = convert_model_spec(spec)
    if converted != spec:
        old = {key: value for key, value in spec.items() if converted.get(key) != value}
        new = {key: value for key, value in converted.items() if spec.get(key) != value}
        log.warning("model: %s is read as %s; the next release reads the new names only", old, new)
    return converted


def make_callbacks(cfg: DictConfig) -> list[pl.Callback]:
    """Make the callbacks of conf/callbacks that are not null."""
    return [
        instantiate(node, _convert_="all")
        for node in cfg.callbacks.values()
        if isinstance(node, DictConfig)
    ]


def make_test_callbacks(cfg: DictConfig) -> list[pl.Callback]:
    """Make those callbacks of conf/callbacks that have a hook of testing."""
    hooks = [name for name in vars(pl.Callback) if name.startswith("on_test_")]
    return [
        callback
        for callback in make_callbacks(cfg)
        if any(getattr(type(callback), hook) is not getattr(pl.Callback, hook) for hook in hooks)
    ]


def make_trainer(cfg: DictConfig, folder: Path, logger: Loggers, limit: TimeLimit) -> pl.Trainer:
    """Make Lightning's Trainer from conf/trainer, with the callbacks of conf/callbacks.

    Args:
        cfg: the stage's own configuration.
        folder: the run's folder.
        logger: the run's loggers.
        limit: the time limit on the call.

    Raises:
        UpsError: the Trainer rejects an argument.
    """
    options = to_plain(cfg.trainer)
    precision = options.pop("precision")
    options["accelerator"] = usable_accelerator(options["accelerator"])
    # Lightning's max_time limits one stage; ``limit`` limits the whole call
    del options["max_time"]
    if precision == "auto":
        precision = auto_precision(options["accelerator"])
    placement = {key: options[key] for key in ("strategy", "accelerator", "devices", "num_nodes")}
    options["strategy"] = sharded_strategy(**placement)
    is_among_others = trains_alone(options) and has_foreign_rank()
    environment = [SingleProcess()] if is_among_others else []
    callbacks = make_callbacks(cfg)
    callbacks.append(GracefulStop(folder / "checkpoints" / f"{cfg.stage.name}-last.ckpt", limit))
    if cfg.compile:
        callbacks.append(CompileCachePruner(folder / COMPILE_CACHE, cfg.compile_cache_max_bytes))
    if sys.stdout.isatty():
        callbacks.append(EpochProgressBar())
    try:
        return pl.Trainer(
            **options,
            precision=precision,
            callbacks=callbacks,
            logger=logger,
            plugins=[AtomicCheckpointIO(), *environment],
            default_root_dir=folder,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the window sampler distributes the batches itself
            enable_model_summary=False,
            enable_progress_bar=sys.stdout.isatty(),
        )
    # an argument or a value that Lightning does not have
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UpsError(f"trainer: {error}") from None


def make_test_trainer(
    accelerator: str, callbacks: list[pl.Callback], logger: Loggers | bool = False
) -> pl.Trainer:
    """Make Lightning's Trainer for a test, which takes one device."""
    return pl.Trainer(
        callbacks=callbacks,
        accelerator=usable_accelerator(accelerator),
        devices=1,
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def write_stage_weights(
    best: Path, folder: Path, stage: str, simulator: Simulator, score: float
) -> None:
    """Write the raw and the averaged weights of the best checkpoint.

    Both files hold the whole simulator so far, and ``ups.load`` reads both.

    Args:
        best: the best checkpoint.
        folder: the run's folder.
        stage: the name of the stage.
        simulator: the simulator.
        score: its validation score, that of ``callbacks.best``.
    """
    checkpoint = AtomicCheckpointIO().load_checkpoint(best)
    common: dict[str, object] = {
        key: checkpoint[key]
        for key in ("epoch", "global_step", "pytorch-lightning_version", "hyper_parameters")
        if key in checkpoint
    }
    common |= {
        "simulator": simulator.config(),
        "made_from": parent_hash(folder, stage),
        "validation_nrmse": score,
    }
    raw = checkpoint.get("current_model_state", checkpoint["state_dict"])
    # the averaged file comes first, because the raw one marks the stage as finished
    for path, state in (
        (weights_path(folder, stage), checkpoint["state_dict"]),
        (weights_path(folder, stage, raw=True), raw),
    ):
        AtomicCheckpointIO().save_checkpoint({**common, "state_dict": state}, path)


def compile_losses(module: BaseModule, folder: Path) -> None:
    """Compile the module's losses as a whole and keep the kernels in the run's folder."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / COMPILE_CACHE)
    module.compute_losses = compiled_or_eager(module.compute_losses)  # type: ignore[method-assign]


def keep_kernels(rehearsed: Path, folder: Path) -> None:
    """Copy what was compiled for a run's rehearsal into its own folder, where that is possible."""
    with suppress(OSError):  # then they are compiled again
        shutil.copytree(rehearsed / COMPILE_CACHE, folder / COMPILE_CACHE, dirs_exist_ok=True)
