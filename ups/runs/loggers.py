"""The run's loggers.

They are opened with the run's previous id, get the configuration, and upload the files at the end.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path

from hydra.utils import instantiate
from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from matplotlib.image import imread
from omegaconf import DictConfig

from ups.core.errors import UpsError
from ups.core.io import read_json, write_text
from ups.core.locks import file_lock
from ups.core.optional_packages import import_optional, missing_package
from ups.core.settings import to_plain
from ups.runs.distributed import is_first_process

# the argument with which each logger continues a run; the CSV logger starts a file in each call
RUN_ID_ARGUMENT = {"WandbLogger": "id", "MLFlowLogger": "run_id", "TensorBoardLogger": "version"}
# everything that `ups.load` needs, and the results
FILES = ("checkpoints/*_ema.ckpt", "reports/*", "config.yaml", "provenance.json")


def check_logger_installed(cfg: DictConfig) -> None:
    """Check early that the package of the logger is installed.

    ``open_loggers`` reports other problems.

    Raises:
        UpsError: it is not installed.
    """
    package = cfg.logger._target_.rpartition(".")[2].removesuffix("Logger").lower()
    if package in ("wandb", "mlflow", "tensorboard") and find_spec(package) is None:
        raise missing_package(cfg.logger._target_, package)


@contextmanager
def open_loggers(cfg: DictConfig, folder: Path) -> Iterator[list[Logger]]:
    """Open the configured logger and the CSV logger; close them at the end.

    Every job of a sweep has its own run with the service. ``folder``/logger.json stores the run's
    id: the same command continues that run, and overwrite=true starts a new one.

    Args:
        cfg: the configuration.
        folder: the run's folder.

    Raises:
        UpsError: the logger's service refuses, for example without a login.
    """
    kind = cfg.logger._target_.rpartition(".")[2]
    ids = folder / "logger.json"
    recorded_ids = read_json(ids) if ids.exists() and not cfg.overwrite else {}
    again = (
        {RUN_ID_ARGUMENT[kind]: recorded_ids[kind]}
        if kind in recorded_ids and cfg.logger.get(RUN_ID_ARGUMENT[kind]) is None
        else {}
    )
    # without a lock two jobs of a sweep would both create MLflow's tables and experiment
    needs_lock = kind == "MLFlowLogger"
    try:
        with file_lock(Path(cfg.output_dir) / ".mlflow.lock") if needs_lock else nullcontext():
            logger = instantiate(cfg.logger, **again)
            if is_first_process() and kind in RUN_ID_ARGUMENT:
                _ = logger.experiment
                write_text(ids, json.dumps({**recorded_ids, kind: logger.version}) + "\n")
    except Exception as error:
        cause = error.__cause__ or error
        package = kind.removesuffix("Logger").lower()
        # for example no login, no answer from the server, or a run that was deleted there
        if type(cause).__module__.partition(".")[0] == package:
            raise UpsError(f"{kind}: {cause}") from None
        raise
    status = "failed"
    try:
        loggers = (
            [logger] if isinstance(logger, CSVLogger) else [logger, CSVLogger(folder, name="logs")]
        )
        settings = to_plain(cfg)
        for each in loggers:
            # MLflow rejects parameters that have changed since, for example max_time
            if not (isinstance(each, MLFlowLogger) and (again or cfg.logger.run_id)):
                each.log_hyperparams(settings)
        yield loggers
        if is_first_process():
            upload_artifacts(logger, folder)
        status = "success"
    finally:
        logger.finalize(status)
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=int(status == "failed"))


def upload_artifacts(logger: Logger, folder: Path) -> None:
    """Upload the run's images and, if the service stores files, its results.

    The results are weights, evaluations, configuration and provenance.
    """
    files = [path for pattern in FILES for path in sorted(folder.glob(pattern)) if path.is_file()]
    pictures = [path for path in files if path.suffix == ".png"]
    if isinstance(logger, WandbLogger):
        for path in pictures:
            logger.log_image(f"test/{path.stem}", [str(path)])
        wandb = import_optional("wandb", "logger=wandb", "wandb")
        artifact = wandb.Artifact(f"model-{logger.version}", type="model")
        for path in files:  # immutable avoids a copy in the user's home
            artifact.add_file(
                str(path.resolve()),
                str(path.relative_to(folder)),
                skip_cache=True,
                policy="immutable",
            )
        logger.experiment.log_artifact(artifact)
    elif isinstance(logger, MLFlowLogger):
        for path in files:
            within = path.relative_to(folder).parent
            logger.experiment.log_artifact(
                logger.run_id, str(path), str(within) if within.name else None
            )
    elif isinstance(logger, TensorBoardLogger):
        for path in pictures:
            logger.experiment.add_image(f"test/{path.stem}", imread(path), dataformats="HWC")
