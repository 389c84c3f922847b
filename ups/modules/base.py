"""What the training stages share: sharded steps, logging, validation and the optimizer.

Validation rolls out trajectories in physical space.
"""

import math
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.norms import RELATIVE_ERROR_FLOOR
from ups.evaluation.metrics import RolloutMetrics
from ups.modules.optim import Muon
from ups.modules.sharding import sharded_loss
from ups.simulation.simulator import Simulator


class BaseModule(pl.LightningModule):
    """Trains a part of a ``Simulator``.

    A stage implements ``compute_losses`` and ``trainable_module``, and ``sample_noise`` if its loss
    needs random numbers. Validation rolls out whole trajectories with the corrector ``correct``;
    ``validation/<stage>/nrmse`` selects the best weights.

    Hyperparameters:
        optimizer: "muon" or "adamw".
        lr: highest learning rate.
        weight_decay: decoupled weight decay.
        betas: decay rates of AdamW's moments.
        momentum: momentum of Muon.
        warmup: fraction of the steps over which the learning rate rises.
        final_lr: final learning rate as a fraction of ``lr``.
        threads: number of threads on a CPU, each with a shard of the batch.

    Attributes:
        stage: name of the stage, as in conf/stage.
        correct: corrector of the validation rollouts.
        simulator: the simulator that is trained.
    """

    stage: str
    correct: Literal["none", "diffusion", "consistency"] = "none"
    simulator: Simulator

    def compute_losses(self, batch: Batch, *drawn: Tensor) -> dict[str, Tensor]:
        """Compute the loss terms of a batch.

        Args:
            batch: a batch of windows.
            drawn: what ``sample_noise`` returned, or the part of it for this shard.

        Returns:
            Each term as a mean over the batch, and "loss", which the optimizer minimizes.
        """
        raise NotImplementedError

    def sample_noise(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw the random numbers of a batch, tensors (B, ...).

        They are drawn before the batch is split over threads, so they do not depend on the number
        of threads.
        """
        return ()

    def trainable_module(self) -> torch.nn.Module:
        """The part of the simulator that this stage trains."""
        raise NotImplementedError

    def clean_up(self) -> None:
        """Remove what only training needs; called however training ends."""

    def on_fit_start(self) -> None:
        self.seed = torch.initial_seed()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        drawn = self.sample_noise(batch, self._generator())
        shards = (
            self.hparams["threads"]
            if self.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
            else 1
        )
        if shards > 1 and len(batch) % shards == 0:
            parts = list(zip(batch.shards(shards), *(d.chunk(shards) for d in drawn), strict=True))
            terms = sharded_loss(
                lambda part: self.compute_losses(*part),
                parts,
                [p for p in self.parameters() if p.requires_grad],
            )
        else:
            terms = self.compute_losses(batch, *drawn)
        self.terms = {name: value.detach() for name, value in terms.items()}
        self.log_dict(
            {f"training/{self.stage}/{name}": value for name, value in self.terms.items()},
            batch_size=len(batch),
            sync_dist=True,
        )
        return terms

    def _generator(self) -> torch.Generator:
        """Seed random numbers by the seed and the number of batches that the run has taken.

        A resumed run therefore draws the same numbers.
        """
        taken = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        seed = (
            self.seed * 1_000_003 + taken * self.trainer.world_size + self.trainer.global_rank
        ) % 2**63
        return torch.Generator(self.device).manual_seed(seed)

    def on_validation_epoch_start(self) -> None:
        self.metrics: RolloutMetrics | None = None
        self.validation_rng = torch.random.fork_rng(devices=[])
        self.validation_rng.__enter__()
        torch.manual_seed(0)  # the same noise in every validation makes epochs comparable

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        target = batch.u[:, 1:]
        if self.metrics is None:
            # the relative error of fields that have decayed to almost zero is noise and must not
            # select the weights
            floor = RELATIVE_ERROR_FLOOR * float(self.simulator.scale)
            self.metrics = RolloutMetrics(
                target.shape[1], target.shape[2], self.simulator.length, floor
            ).to(self.device)
        self.metrics.update(
            self.simulator.rollout(
                batch.u[:, 0], target.shape[1], nu=batch.nu, correct=self.correct
            ),
            target,
        )

    def on_validation_epoch_end(self) -> None:
        self.validation_rng.__exit__(None, None, None)
        assert self.metrics is not None
        values = self.metrics.compute()
        values["nrmse_final"] = values.pop("nrmse_over_time")[-1]
        self.log_dict({f"validation/{self.stage}/{name}": value for name, value in values.items()})

    def build_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the trainable parameters, by the hyperparameters."""
        h: Any = self.hparams
        parameters = [p for p in self.parameters() if p.requires_grad]
        if h.optimizer not in ("muon", "adamw"):
            raise UpsError(f"optimizer={h.optimizer!r}: allowed are muon, adamw")
        if h.optimizer == "adamw":
            return torch.optim.AdamW(parameters, h.lr, tuple(h.betas), weight_decay=h.weight_decay)
        matrices = list(self.trainable_module().muon_parameters())  # type: ignore[operator]
        known = {id(p) for p in matrices}
        return Muon(
            matrices,
            [p for p in parameters if id(p) not in known],
            h.lr,
            h.weight_decay,
            tuple(h.betas),
            h.momentum,
        )

    def configure_optimizers(self) -> Any:
        h: Any = self.hparams
        optimizer = self.build_optimizer()
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, total, h.warmup, h.final_lr)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def warmup_cosine(step: int, total: int, warmup: float, final: float) -> float:
    """The factor on the learning rate at ``step``.

    It rises linearly during warmup, then falls along half a cosine.

    Args:
        step: the current step, from 0.
        total: number of steps.
        warmup: fraction of the steps that are warmup.
        final: the factor at the end.
    """
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    fall = min(1.0, (step - rise) / max(1, total - rise))
    return final + (1 - final) * (0.5 + 0.5 * math.cos(math.pi * fall))
