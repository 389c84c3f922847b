"""A run's folder: opened, or refused where it holds another run; its log."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ups import leaderboard, stages
from ups.errors import UpsError
from ups.files import write_text
from ups.parallel import is_first_process

OVERRIDES = "overrides.yaml"  # what the command said


@contextmanager
def open_folder(cfg: DictConfig) -> Iterator[Path]:
    """Open ``<output_dir>/<name>`` for this run, start its log and write its config.yaml; sets ``cfg.name`` to a sweep job's own name.

    Raises:
        UpsError: another call is at work in the folder; or it holds one of the stages to train with other settings, and ``overwrite`` is
            off.
    """
    job = HydraConfig.get() if HydraConfig.initialized() else None
    if job is not None and job.mode == RunMode.MULTIRUN:
        cfg.name = Path(job.runtime.output_dir).name
    folder = Path(cfg.output_dir) / cfg.name
    if not is_first_process():  # of several processes that train together only the first writes
        _log_to(None)
        yield folder
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _only_call(folder):
        if cfg.overwrite:
            for stage in cfg.stage.train:
                stages.remove(folder, stage)
        stages.refuse_other_settings(cfg, folder)
        leaderboard.read(folder.parent / "leaderboard.csv")  # refuses a damaged one before the work
        _log_to(folder / "run.log")
        write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        write_text(folder / OVERRIDES, OmegaConf.to_yaml(job.overrides.task if job is not None else []))
        yield folder


@contextmanager
def _only_call(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock")  # the system takes it back from a process that dies
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UpsError(f"another call is at work in {folder}; give another name=..., or wait for its end") from None
    try:
        yield
    finally:
        lock.release()


class _Terminal(logging.StreamHandler):
    """Writes to what sys.stdout is now: a progress bar puts itself there, so that lines stand whole above it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)


def _log_to(path: Path | None) -> None:
    """Plain lines to the terminal and, appended, to the run's log file; warnings that only concern developers stay out.

    Without a path errors only, to the terminal.
    """
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    handlers: list[tuple[logging.Handler, str]] = [(_Terminal(sys.stdout), "%(message)s")]
    if path is not None:
        handlers.append((logging.FileHandler(path), "%(asctime)s %(message)s"))
    for handler, form in handlers:
        handler.setFormatter(logging.Formatter(form, "%Y-%m-%d %H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.ERROR if path is None else logging.INFO)
    logging.raiseExceptions = False  # a full disk, say, must not fill the terminal with tracebacks
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
