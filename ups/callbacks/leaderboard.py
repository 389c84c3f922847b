"""The leaderboard follows every test."""

from pathlib import Path

import lightning.pytorch as pl

from ups.core.schema import PathStr
from ups.evaluation import leaderboard


class LeaderboardWriter(pl.Callback):
    """Writes ``<output_dir>/leaderboard.csv`` and ``.html`` when a test has ended.

    Both are derived from the evaluation files of all runs in ``output_dir``, so the run's own must
    be written before.

    Args:
        output_dir: the folder of the runs.
    """

    def __init__(self, output_dir: PathStr) -> None:
        self.output_dir = Path(output_dir)

    def write(self) -> None:
        leaderboard.write(self.output_dir)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.write()
