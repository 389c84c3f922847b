"""The run's loggers: opened under the id that the run had before, told the configuration, and given the files at the end."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from ups.errors import UpsError
from ups.files import read_json, write_text
from ups.parallel import is_first_process

# by which argument each goes on with a run of its own; the CSV logger begins a file a call, so that none is lost
IDENTITY = {"WandbLogger": "id", "MLFlowLogger": "run_id", "TensorBoardLogger": "version"}
FILES = ("checkpoints/*_ema.ckpt", "reports/*", "config.yaml", "provenance.json")  # all that `ups.load` needs, and the results


def refuse_missing(cfg: DictConfig) -> None:
    """Refuse a logger whose package is not installed, before anything long; open_loggers says what else is wrong."""
    package = cfg.logger._target_.rpartition(".")[2].removesuffix("Logger").lower()
    if package in ("wandb", "mlflow", "tensorboard") and find_spec(package) is None:
        raise UpsError(f"{cfg.logger._target_} needs a package that is not installed; pip install 'ups[{package}]'")


@contextmanager
def open_loggers(cfg: DictConfig, folder: Path) -> Iterator[list[Logger]]:
    """The configured logger, and the CSV logger beside it; closed at the end, so that every job of a sweep has a run of its own.

    ``folder``/logger.json keeps the run's id with each service: the same command goes on with the same run, and overwrite=true begins
    a new one.

    Raises:
        UpsError: the logger's service refuses: no login, say.
    """
    kind = cfg.logger._target_.rpartition(".")[2]
    ids = folder / "logger.json"
    known = read_json(ids) if ids.exists() and not cfg.overwrite else {}
    again = {IDENTITY[kind]: known[kind]} if kind in known and cfg.logger.get(IDENTITY[kind]) is None else {}
    # two jobs of a sweep would both create MLflow's tables and experiment
    lock = FileLock(Path(cfg.output_dir) / ".mlflow.lock") if kind == "MLFlowLogger" else nullcontext()
    try:
        with lock:
            logger = instantiate(cfg.logger, **again)
            if is_first_process() and kind in IDENTITY:
                _ = logger.experiment
                write_text(ids, json.dumps({**known, kind: logger.version}) + "\n")
    except Exception as error:
        cause, package = error.__cause__ or error, kind.removesuffix("Logger").lower()
        if type(cause).__module__.partition(".")[0] == package:  # no login, no answer from its server, a run that was deleted there
            raise UpsError(f"{kind}: {cause}") from None
        raise
    status = "failed"
    try:
        loggers = [logger] if isinstance(logger, CSVLogger) else [logger, CSVLogger(folder, name="logs")]
        told: Any = OmegaConf.to_container(cfg, resolve=True)
        for each in loggers:
            if not (isinstance(each, MLFlowLogger) and (again or cfg.logger.run_id)):  # which refuses what has changed since, max_time say
                each.log_hyperparams(told)
        yield loggers
        if is_first_process():
            keep_files(logger, folder)
        status = "success"
    finally:
        logger.finalize(status)
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=int(status == "failed"))


def keep_files(logger: Logger, folder: Path) -> None:
    """Give the service the run's pictures, and where it keeps files its weights, evaluations, configuration and provenance."""
    files = [path for pattern in FILES for path in sorted(folder.glob(pattern)) if path.is_file()]
    pictures = [path for path in files if path.suffix == ".png"]
    if isinstance(logger, WandbLogger):
        import wandb

        for path in pictures:
            logger.log_image(f"test/{path.stem}", [str(path)])
        artifact: Any = wandb.Artifact(f"model-{logger.version}", type="model")
        for path in files:  # immutable: not copied to the user's home first
            artifact.add_file(str(path.resolve()), str(path.relative_to(folder)), skip_cache=True, policy="immutable")
        logger.experiment.log_artifact(artifact)
    elif isinstance(logger, MLFlowLogger):
        for path in files:
            within = path.relative_to(folder).parent
            logger.experiment.log_artifact(logger.run_id, str(path), str(within) if within.name else None)
    elif isinstance(logger, TensorBoardLogger):
        from matplotlib.image import imread

        for path in pictures:
            logger.experiment.add_image(f"test/{path.stem}", imread(path), dataformats="HWC")
