"""A run's folder: opened, or refused where it holds another run; its log."""

import logging
import sys
import warnings
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ups import stages
from ups.files import write_text


def open_folder(cfg: DictConfig) -> Path:
    """Open ``<output_dir>/<name>`` for this run, start its log and write its config.yaml; sets ``cfg.name`` to a sweep job's own name.

    Raises:
        UpsError: the folder holds one of the stages to train with other settings, and ``overwrite`` is off.
    """
    if HydraConfig.initialized():
        cfg.name = Path(HydraConfig.get().runtime.output_dir).name
    folder = Path(cfg.output_dir) / cfg.name
    if cfg.overwrite:
        for stage in cfg.stage.train:
            stages.remove(folder, stage)
    stages.refuse_other_settings(cfg, folder)
    _log_to(folder / "run.log")
    write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    return folder


def _log_to(path: Path) -> None:
    """Plain lines to the terminal and, appended, to the run's log file; warnings that only concern developers stay out."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    for handler, form in (
        (logging.StreamHandler(sys.stdout), "%(message)s"),
        (logging.FileHandler(path), "%(asctime)s %(message)s"),
    ):
        handler.setFormatter(logging.Formatter(form, "%Y-%m-%d %H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
