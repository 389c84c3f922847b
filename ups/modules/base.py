"""What the training stages share: steps, logging, validation and the optimizer.

Validation rolls out trajectories in physical space.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import lightning.pytorch as pl
import torch
from annotated_types import Ge, Lt
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.norms import RELATIVE_ERROR_FLOOR
from ups.core.schema import (
    BOOKKEEPING_EVERYWHERE,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    plain,
    validate_arguments,
)
from ups.evaluation.metrics import PhysicsChecks, RolloutMetrics
from ups.modules.optim import Muon
from ups.simulation.simulator import Simulator

# decay rate of a moment of AdamW
Beta = Annotated[float, Ge(0), Lt(1)]


def check_takes_points(module: Callable[..., object]) -> None:
    """Check that the module of a stage can train on fields on points.

    Raises:
        UpsError: it takes none.
    """
    if not getattr(module, "takes_points", True):
        raise UpsError(
            f"`data` must be fields on a grid: {module.__name__} does not take points yet; on "
            "points only stage=operator without loss=crps trains."
        )


class BaseModule(pl.LightningModule):
    """Trains a part of a ``Simulator``.

    A stage implements ``compute_losses`` and ``trainable_module``, and ``sample_noise`` if its loss
    needs random numbers. Validation rolls out whole trajectories with the corrector ``correct``;
    ``validation/<stage>/nrmse`` selects the best weights. Where all rollouts end far from the
    truth, as in chaos, ``validation/<stage>/decorrelated_fraction`` can: the fraction of a rollout
    that comes after its correlation with the truth has first fallen to 0.8, see ``PhysicsChecks``.

    The arguments are in ``hparams``, with those of the subclass.

    Args:
        optimizer: "muon" or "adamw".
        lr: highest learning rate.
        weight_decay: decoupled weight decay.
        betas: decay rates of AdamW's moments.
        muon_momentum: momentum of Muon.
        warmup_fraction: fraction of the steps over which the learning rate rises.
        min_lr_ratio: final learning rate as a fraction of ``lr``.
        num_cpu_shards: number of shards of a batch on a CPU; read by ``ups.modules.sharding``.

    Attributes:
        stage: name of the stage, as in conf/stage.
        takes_points: whether the fields may lie on points.
        correct: corrector of the validation rollouts.
        simulator: the simulator that is trained.
    """

    stage: str
    takes_points = False
    correct: Literal["none", "diffusion", "consistency"] = "none"
    simulator: Simulator

    def __init__(
        self,
        *,
        optimizer: Literal["muon", "adamw"] = "muon",
        lr: PositiveFloat = 3e-3,
        weight_decay: NonNegativeFloat = 1e-4,
        betas: tuple[Beta, Beta] = (0.9, 0.99),
        muon_momentum: Fraction = 0.95,
        warmup_fraction: Fraction = 0.03,
        min_lr_ratio: Fraction = 0.0,
        num_cpu_shards: Annotated[PositiveInt, BOOKKEEPING_EVERYWHERE] = 2,
    ) -> None:
        super().__init__()
        # also saves the arguments of the subclass that calls this
        self.save_hyperparameters(ignore=["simulator"], logger=False)
        # checkpoints can't hold numbers of numpy
        self.hparams.update({key: plain(value) for key, value in self.hparams.items()})
        validate_arguments(type(self), self.hparams, "", skip=1)

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

        ``compute_losses`` takes them as arguments; on a CPU it may be called for a shard of the
        batch, with the shard's part of them.
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
        spec = self.simulator.spec
        if self.metrics is None:
            # the relative error of fields that have decayed to almost zero is noise and must not
            # select the weights
            metrics = RolloutMetrics(target.shape[1], spec, RELATIVE_ERROR_FLOOR)
            self.metrics = metrics.to(self.device)
            self.checks = PhysicsChecks(None, spec).to(self.device)
            self.rollout_time = target.shape[1] * spec.dt
        mask = None if batch.points is None else batch.points.mask
        stepper = self.simulator.stepper(self.correct, points=batch.points)
        pred = self.simulator.predict(stepper, batch.u[:, 0], target.shape[1], batch.parameters)
        self.metrics.update(pred, target, mask)
        self.checks.update(batch.u[:, 0], pred, target, mask)

    def on_validation_epoch_end(self) -> None:
        self.validation_rng.__exit__(None, None, None)
        assert self.metrics is not None
        values: dict[str, Any] = self.metrics.compute()
        values["nrmse_final"] = values.pop("nrmse_over_time")[-1]
        correlation_time = self.checks.compute()["correlation_time"]
        values["decorrelated_fraction"] = 1 - correlation_time / self.rollout_time
        self.log_dict({f"validation/{self.stage}/{name}": value for name, value in values.items()})

    def build_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the trainable parameters, by the hyperparameters."""
        h: Any = self.hparams
        parameters = [p for p in self.parameters() if p.requires_grad]
        if h.optimizer == "adamw":
            return torch.optim.AdamW(parameters, h.lr, tuple(h.betas), weight_decay=h.weight_decay)
        matrices = list(self.trainable_module().muon_parameters())  # type: ignore[operator]
        matrix_ids = {id(p) for p in matrices}
        return Muon(
            matrices,
            [p for p in parameters if id(p) not in matrix_ids],
            h.lr,
            h.weight_decay,
            tuple(h.betas),
            h.muon_momentum,
        )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        h: Any = self.hparams
        optimizer = self.build_optimizer()
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, total, h.warmup_fraction, h.min_lr_ratio)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def warmup_cosine(step: int, total: int, warmup_fraction: float, min_lr_ratio: float) -> float:
    """The factor on the learning rate at ``step``.

    It rises linearly during warmup, then falls along half a cosine.

    Args:
        step: the current step, from 0.
        total: number of steps.
        warmup_fraction: fraction of the steps that are warmup.
        min_lr_ratio: the factor at the end.
    """
    rise = max(1, round(warmup_fraction * total))
    if step < rise:
        return (step + 1) / rise
    fall = min(1.0, (step - rise) / max(1, total - rise))
    return min_lr_ratio + (1 - min_lr_ratio) * (0.5 + 0.5 * math.cos(math.pi * fall))
