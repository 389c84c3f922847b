"""A size limit for compiled kernels on disk."""

import logging
import shutil
from pathlib import Path

import lightning.pytorch as pl

from ups.core.io import format_bytes

log = logging.getLogger(__name__)


class CompileCachePruner(pl.Callback):
    """Empties torch.compile's cache when it exceeds a limit.

    It checks before and after every epoch; kernels that are already loaded remain usable.

    Args:
        folder: folder of the cache.
        max_bytes: maximum size in bytes.
    """

    def __init__(self, folder: Path, max_bytes: float) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        used = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        if used > self.max_bytes:
            shutil.rmtree(self.folder, ignore_errors=True)
            log.info(
                "%s held %s, more than compile_cache_max_bytes allows (%s), and was emptied",
                self.folder,
                format_bytes(used),
                format_bytes(self.max_bytes),
            )

    on_train_epoch_end = on_train_epoch_start
