"""A run's folder and its log. A folder that holds another run is rejected."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ups.core.errors import UpsError
from ups.core.io import write_text
from ups.core.locks import file_lock
from ups.runs import stages
from ups.runs.distributed import is_first_process
from ups.runs.initial_weights import check_not_own_folder
from ups.simulation import model_folder

OVERRIDES = "overrides.yaml"  # the overrides of the command line


@contextmanager
def run_directory(cfg: DictConfig) -> Iterator[Path]:
    """Open ``<output_dir>/<name>`` for this run, start its log and write its config.yaml.

    In a sweep it sets ``cfg.name`` to the name of the job.

    Raises:
        UpsError: another process uses the folder, or the folder holds an exported model, the
            weights of ``init_from``, or a stage to train with other settings and ``overwrite`` is
            off.
    """
    job = HydraConfig.get() if HydraConfig.initialized() else None
    if job is not None and job.mode == RunMode.MULTIRUN:
        cfg.name = Path(job.runtime.output_dir).name
    folder = Path(cfg.output_dir) / cfg.name
    if not is_first_process():  # only the first of several processes writes
        _log_to(None)
        yield folder
        return
    model_folder.check_not_model_folder(folder)
    check_not_own_folder(cfg, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _only_call(folder):
        if cfg.overwrite:
            for stage in cfg.stage.train:
                stages.remove_stage(folder, stage)
        stages.check_settings_unchanged(cfg, folder)
        _log_to(folder / "run.log")
        write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        write_text(
            folder / OVERRIDES, OmegaConf.to_yaml(job.overrides.task if job is not None else [])
        )
        yield folder


@contextmanager
def _only_call(folder: Path) -> Iterator[None]:
    """Lock the folder against other processes."""
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(folder / ".lock", waits=False))
        except Timeout:
            raise UpsError(
                f"another call is at work in {folder}; give another name=..., or wait for its end"
            ) from None
        yield


class _Terminal(logging.StreamHandler):
    """Writes to the current sys.stdout.

    A progress bar replaces sys.stdout so that lines are printed above the bar.
    """

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)


class _RunLog(logging.FileHandler):
    """The run's log file."""


def _log_to(path: Path | None) -> None:
    """Log plain lines to the terminal and append them to the run's log file.

    Warnings for developers are suppressed. Without a path only errors are logged, to the terminal.
    """
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        if isinstance(handler, _RunLog):  # of a sweep's previous job
            handler.close()
    handlers: list[tuple[logging.Handler, str]] = [(_Terminal(sys.stdout), "%(message)s")]
    if path is not None:
        handlers.append((_RunLog(path), "%(asctime)s %(message)s"))
    for handler, form in handlers:
        handler.setFormatter(logging.Formatter(form, "%Y-%m-%d %H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.ERROR if path is None else logging.INFO)
    logging.raiseExceptions = False  # a full disk must not fill the terminal with tracebacks
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
