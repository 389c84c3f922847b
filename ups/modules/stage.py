"""What the training stages share: sharded steps, logged terms, validation by rollouts in physical space, the optimiser."""

import math
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from ups.datamodules.windows import Batch
from ups.errors import UpsError
from ups.losses import FLOOR
from ups.metrics import RolloutMetrics
from ups.optim import Muon
from ups.parallel import sharded_loss
from ups.rollout import Simulator


class StageModule(pl.LightningModule):
    """Trains a part of a ``Simulator``. A stage gives ``loss_terms``, and ``draw`` where its loss needs random numbers.

    Hyperparameters that every stage has: optimizer, lr, weight_decay, betas, momentum, warmup, final_lr, threads (see conf/stage).
    Validation rolls out whole trajectories with ``correct``: ``validation/<stage>/nrmse`` picks the best weights.
    """

    stage: str
    correct: Literal["none", "diffusion", "consistency"] = "none"
    simulator: Simulator

    def loss_terms(self, batch: Batch, *drawn: Tensor) -> dict[str, Tensor]:
        """Each term of the loss as a mean over the batch, and "loss", the one that is trained on."""
        raise NotImplementedError

    def draw(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Random numbers for a batch, (B, ...) each; drawn before the batch is split over threads."""
        return ()

    def trained(self) -> torch.nn.Module:
        """The part of the simulator that this stage trains."""
        raise NotImplementedError

    def close(self) -> None:
        """Remove what is only needed while this stage trains, however that ends."""

    def on_fit_start(self) -> None:
        self.seed = torch.initial_seed()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        drawn = self.draw(batch, self._generator())
        shards = self.hparams["threads"] if self.device.type == "cpu" and not torch.is_autocast_enabled("cpu") else 1
        if shards > 1 and len(batch) % shards == 0:
            parts = list(zip(batch.shards(shards), *(d.chunk(shards) for d in drawn), strict=True))
            terms = sharded_loss(lambda part: self.loss_terms(*part), parts, [p for p in self.parameters() if p.requires_grad])
        else:
            terms = self.loss_terms(batch, *drawn)
        self.terms = {name: value.detach() for name, value in terms.items()}
        self.log_dict({f"training/{self.stage}/{name}": value for name, value in self.terms.items()}, batch_size=len(batch), sync_dist=True)
        return terms

    def _generator(self) -> torch.Generator:
        """Random numbers are a function of the seed and of how many batches the run has taken: a resumed run draws the same."""
        taken = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        seed = (self.seed * 1_000_003 + taken * self.trainer.world_size + self.trainer.global_rank) % 2**63
        return torch.Generator(self.device).manual_seed(seed)

    def on_validation_epoch_start(self) -> None:
        self.metrics: RolloutMetrics | None = None
        self.validation_rng = torch.random.fork_rng(devices=[])
        self.validation_rng.__enter__()
        torch.manual_seed(0)  # the same noise in every validation, so that epochs can be compared

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        target = batch.u[:, 1:]
        if self.metrics is None:
            # fields that have decayed to nothing, whose relative error is noise, don't choose the weights
            floor = FLOOR * float(self.simulator.scale)
            self.metrics = RolloutMetrics(target.shape[1], target.shape[2], self.simulator.length, floor).to(self.device)
        self.metrics.update(self.simulator.rollout(batch.u[:, 0], target.shape[1], nu=batch.nu, correct=self.correct), target)

    def on_validation_epoch_end(self) -> None:
        self.validation_rng.__exit__(None, None, None)
        assert self.metrics is not None
        values = self.metrics.compute()
        values["nrmse_final"] = values.pop("nrmse_over_time")[-1]
        self.log_dict({f"validation/{self.stage}/{name}": value for name, value in values.items()})

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of what this stage trains, by its hyperparameters."""
        h: Any = self.hparams
        parameters = [p for p in self.parameters() if p.requires_grad]
        if h.optimizer not in ("muon", "adamw"):
            raise UpsError(f"optimizer={h.optimizer!r}: allowed are muon, adamw")
        if h.optimizer == "adamw":
            return torch.optim.AdamW(parameters, h.lr, tuple(h.betas), weight_decay=h.weight_decay)
        matrices = list(self.trained().matrices())  # type: ignore[operator]
        known = {id(p) for p in matrices}
        return Muon(matrices, [p for p in parameters if id(p) not in known], h.lr, h.weight_decay, tuple(h.betas), h.momentum)

    def configure_optimizers(self) -> Any:
        h: Any = self.hparams
        optimizer = self.make_optimizer()
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, total, h.warmup, h.final_lr))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def warmup_cosine(step: int, total: int, warmup: float, final: float) -> float:
    """The learning rate's factor: linear up over the first ``warmup`` of the steps, then half a cosine down to ``final``."""
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    fall = min(1.0, (step - rise) / max(1, total - rise))
    return final + (1 - final) * (0.5 + 0.5 * math.cos(math.pi * fall))
