"""Fit one stage: trainer, resume, and the two files of weights that say that it is finished."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from ups.callbacks import AtomicCheckpointIO, CompileCache, Progress, Stop
from ups.callbacks.stop import TimeLimit
from ups.datamodules import TrajectoryDataModule
from ups.errors import UpsError
from ups.models import build
from ups.modules import StageModule
from ups.parallel import is_first_process
from ups.rollout import Simulator, differing
from ups.stages import parent_hash, weights

Loggers = Logger | list[Logger]
COMPILE_CACHE = "compile_cache"  # in the run's folder
log = logging.getLogger(__name__)


def fit(
    cfg: DictConfig, stage: str, module: StageModule, data: pl.LightningDataModule, folder: Path, logger: Loggers, limit: TimeLimit
) -> None:
    """Train ``module``, or go on from the folder's last checkpoint, and write the stage's two files of weights.

    ``cfg`` is the stage's own configuration.

    Raises:
        Unfinished: stopped by the time limit or by a signal.
    """
    checkpoints = folder / "checkpoints"
    trainer = make_trainer(cfg, folder, logger, limit)
    last = checkpoints / f"{stage}-last.ckpt"
    if last.exists():
        refuse_other_checkpoint(last, module)
        log.info("resuming from %s", last)
    if cfg.compile:
        compile_simulator(module.simulator, folder)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=last if last.exists() else None)
    finally:
        module.close()
    best = checkpoints / f"{stage}-best.ckpt"
    monitor: Any = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor), None)
    if monitor is None or monitor.best_model_score is None:
        raise UpsError(f"stage {stage} ended without a validation by which callbacks.best could choose its weights; {last} is kept")
    if trainer.is_global_zero:
        export(best, folder, stage, module.simulator, float(monitor.best_model_score))
        for path in (best, last):
            path.unlink(missing_ok=True)
    trainer.strategy.barrier()
    stop = next(c for c in trainer.callbacks if isinstance(c, Stop))  # type: ignore[attr-defined]
    if (reason := stop.reason(f"at the end of stage {stage}")) is not None:
        raise reason


def refuse_other_checkpoint(last: Path, module: StageModule) -> None:
    """Refuse to go on from what is no checkpoint of this stage and these sizes; says which keys differ."""
    checkpoint = AtomicCheckpointIO().load_checkpoint(last)
    lacking = sorted({"state_dict", "optimizer_states", "loops", "callbacks"} - set(checkpoint if isinstance(checkpoint, dict) else ()))
    differ = [] if lacking else differing(module.state_dict(), checkpoint["state_dict"])
    if lacking or differ:
        why = f"it lacks {', '.join(lacking)}" if lacking else f"{len(differ)} keys differ: {', '.join(differ[:6])}"
        raise UpsError(f"{last} is no checkpoint that this stage can go on from ({why}); overwrite=true begins anew")


def goes_on_alone() -> bool:
    """After training: of several processes only the first goes on, alone."""
    first = is_first_process()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return first


def new_simulator(cfg: DictConfig, data: TrajectoryDataModule) -> Simulator:
    """An untrained simulator of the configured size."""
    spec: Any = OmegaConf.to_container(cfg.model, resolve=True)
    model = build(spec, points=data.points)
    return Simulator(model, data.x, data.dt, data.length, data.scale, spec=spec, equation=data.equation, nus=[nu for nu, _ in data.parts])


def make_trainer(cfg: DictConfig, folder: Path, logger: Loggers, limit: TimeLimit) -> pl.Trainer:
    """Lightning's Trainer by the names of conf/trainer, with the callbacks of conf/callbacks."""
    options: dict[str, Any] = OmegaConf.to_container(cfg.trainer, resolve=True)  # type: ignore[assignment]
    precision = options.pop("precision")
    del options["max_time"]  # Lightning's would be a limit on this stage; ``limit`` is on the whole call
    if precision == "auto":
        precision = "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"
    callbacks = [instantiate(node, _convert_="all") for node in cfg.callbacks.values() if isinstance(node, DictConfig)]
    callbacks.append(Stop(folder / "checkpoints" / f"{cfg.stage.name}-last.ckpt", limit))
    if cfg.compile:
        callbacks.append(CompileCache(folder / COMPILE_CACHE, cfg.compile_cache_limit))
    if sys.stdout.isatty():
        callbacks.append(Progress())
    try:
        return pl.Trainer(
            **options,
            precision=precision,
            callbacks=callbacks,
            logger=logger,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=folder,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the window sampler deals out the batches itself
            enable_model_summary=False,
            enable_progress_bar=sys.stdout.isatty(),
        )
    except (TypeError, ValueError, MisconfigurationException) as error:  # an argument or a value that it doesn't have
        raise UpsError(f"trainer: {error}") from None


def export(best: Path, folder: Path, stage: str, simulator: Simulator, score: float) -> None:
    """Write the best checkpoint's raw and averaged weights, of the whole simulator so far; ``ups.load`` reads both."""
    checkpoint: dict[str, Any] = AtomicCheckpointIO().load_checkpoint(best)
    common: dict[str, Any] = {
        key: checkpoint[key] for key in ("epoch", "global_step", "pytorch-lightning_version", "hyper_parameters") if key in checkpoint
    }
    common |= {"simulator": simulator.description(), "made_from": parent_hash(folder, stage), "validation_nrmse": score}
    raw = checkpoint.get("current_model_state", checkpoint["state_dict"])
    # the averaged file comes first: the raw one says that the stage is finished
    for path, state in ((weights(folder, stage), checkpoint["state_dict"]), (weights(folder, stage, raw=True), raw)):
        AtomicCheckpointIO().save_checkpoint({**common, "state_dict": state}, path)


def compile_simulator(simulator: Simulator, folder: Path) -> None:
    """Compile the model's three maps, with the kernels kept in the run's folder; stay eager where that fails."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / COMPILE_CACHE)
    model = simulator.model
    eager = {name: getattr(model, name) for name in ("encode", "step", "decode")}
    try:
        for name, method in eager.items():
            setattr(model, name, torch.compile(method))
        u = torch.zeros(2, len(simulator.x))
        simulator.decode(simulator.step(simulator.encode(u), torch.ones(2))).sum().backward()
        simulator.zero_grad()
        torch._dynamo.config.suppress_errors = True  # what can't be compiled later, for other sizes, runs eagerly too
    except Exception as error:  # whatever the compiler trips over, training goes on without it
        log.warning("compile=true: falling back to eager (%s)", str(error).strip().splitlines()[0])
        for name in eager:
            model.__dict__.pop(name, None)
