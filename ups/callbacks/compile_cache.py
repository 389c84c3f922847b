"""Compiled kernels on disk, within bounds."""

import logging
import shutil
from pathlib import Path

import lightning.pytorch as pl

from ups.files import size

log = logging.getLogger(__name__)


class CompileCache(pl.Callback):
    """Empties torch.compile's cache ``folder`` before and after an epoch in which it has outgrown ``limit`` bytes; loaded kernels stay."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        used = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        if used > self.limit:
            shutil.rmtree(self.folder, ignore_errors=True)
            log.info("%s held %s, more than compile_cache_limit allows (%s), and was emptied", self.folder, size(used), size(self.limit))

    on_train_epoch_end = on_train_epoch_start
