"""One plain line for each epoch, for scripts that follow a run: grep -E "Epoch|L_inv|loss:"."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from ups.core.batch import Batch
from ups.core.io import read_json
from ups.core.schema import BOOKKEEPING_EVERYWHERE, PathStr

LABELS = {"nrmse": "nRMSE", "crps": "CRPS"}
log = logging.getLogger(__name__)


def format_duration(seconds: float) -> str:
    """Format a duration, for example "40 s" or "12.3 min"."""
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.1f} min"


def _validation_scores(trainer: pl.Trainer, stage: str) -> list[str]:
    """The last validation's nRMSE, and the score that selects the weights if it is another one."""
    monitored = [c.monitor for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    parts = []
    for key in dict.fromkeys([f"validation/{stage}/nrmse", *filter(None, monitored)]):
        if key not in trainer.callback_metrics:
            continue
        name, score = key.rpartition("/")[2], float(trainer.callback_metrics[key])
        # rollouts of chaotic data may diverge
        value = f"{score:.1e}" if score > 1e4 else f"{score:.4f}"
        parts.append(f"validation {LABELS.get(name, name.replace('_', ' '))} {value}")
    return parts


class EpochSummary(pl.Callback):
    """Logs loss terms, the last validation result, speed and time left at the end of each epoch.

    A loss term is the mean over the epoch, the speed is in steps per second.

    Args:
        dirpath: the run's folder. Its preflight.json holds how long the later stages and the test
            take.
        stages: the stages that the command trains.
    """

    def __init__(
        self, dirpath: Annotated[PathStr, BOOKKEEPING_EVERYWHERE], stages: Sequence[str]
    ) -> None:
        self.path = Path(dirpath) / "preflight.json"
        self.stages = list(stages)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found = read_json(self.path) if self.path.exists() else {}
        later = (
            [*self.stages[self.stages.index(str(pl_module.stage)) + 1 :], "test"]
            if pl_module.stage in self.stages
            else []
        )
        self.after = sum(found[stage]["seconds"] for stage in later if stage in found)
        # a run that resumes within an epoch does not call this hook for that epoch
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.started = time.monotonic()
        self.first_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: STEP_OUTPUT,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        for name, value in pl_module.terms.items():  # sums of tensors do not wait for the device
            self.sums[name] = self.sums.get(name, 0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        means = {
            name: float(trainer.strategy.reduce(value / self.counts[name]))
            for name, value in self.sums.items()
        }
        parts = [
            str(pl_module.stage),
            f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            f"loss: {means.pop('loss', float('nan')):.5f}",
        ]
        # of the operator always three: inverse losses may be computed in some batches only, or none
        forward = "L_crps" if "L_crps" in means else "L_forward"
        is_operator = pl_module.stage == "operator"
        names = (forward, "L_inv_enc", "L_inv_dec") if is_operator else tuple(means)
        parts += [f"{name} {means.get(name, 0.0):.5f}" for name in names]
        parts += _validation_scores(trainer, str(pl_module.stage))
        seconds = time.monotonic() - self.started
        parts.append(f"{(trainer.global_step - self.first_step) / seconds:.1f} steps/s")
        if trainer.max_epochs and trainer.max_epochs > 0:
            left = seconds * (trainer.max_epochs - trainer.current_epoch - 1)
            parts.append(
                f"{format_duration(left)} left"
                + (f", {format_duration(left + self.after)} in all" if self.after else "")
            )
        if trainer.is_global_zero:
            log.info("  ".join(parts))
