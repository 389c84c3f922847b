"""Stage 2: train a diffusion model of the operator's latent residual."""

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ups.core.batch import Batch
from ups.core.norms import RELATIVE_ERROR_FLOOR, relative_l2_squared
from ups.modules.corrector import CorrectorModule
from ups.simulation.correctors import SIGMA_DATA, ResidualCorrector
from ups.simulation.residual_targets import ResidualTargets
from ups.simulation.simulator import Simulator


class DiffusionModule(CorrectorModule):
    """Trains the corrector "diffusion" on the operator's residuals along true windows.

    It is ``simulator.correctors["diffusion"]``; the operator is frozen. With r the residual in
    units of its standard deviation and mu its predicted mean (see
    ``ups.simulation.residual_targets.ResidualTargets``),

    loss = L_tokens + L_fields + L_noise,

    - L_tokens = |r - mu|^2;
    - L_fields = |D(A + mu) - u_{t+1}|^2 / |u_{t+1}|^2, the mean of two: unweighted and weighted by
      certainty, each relative to the same error of the operator;
    - L_noise is EDM's weighted denoising error of r - mu at log-normal noise levels.

    Args:
        simulator: a simulator with a trained operator.
        corrector: the arguments of ``ups.simulation.correctors.ResidualCorrector`` without the
            sizes of the tokens.
        gradient_steps: see ``CorrectorModule``.
        latent_cache: see ``CorrectorModule``.
        latent_cache_limit: see ``CorrectorModule``.
        level_mean: mean of the logarithm of the noise levels in training.
        level_std: standard deviation of that logarithm.

    The other arguments are those of ``BaseModule``.
    """

    stage = "diffusion"
    correct = "diffusion"

    def __init__(
        self,
        simulator: Simulator,
        *,
        corrector: dict[str, Any],
        gradient_steps: int = 3,
        latent_cache: str | None = None,
        latent_cache_limit: float = 4e9,
        level_mean: float = -1.0,
        level_std: float = 1.4,
        optimizer: str = "muon",
        lr: float = 3e-3,
        weight_decay: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
        warmup: float = 0.03,
        final_lr: float = 0.0,
        threads: int = 1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["simulator"], logger=False)
        simulator.requires_grad_(False)
        self.corrector = simulator.add_corrector("diffusion", corrector)
        self.simulator = simulator
        self.register_buffer("operator_errors", torch.zeros(2))  # 0: not measured yet
        self.operator_errors: Tensor

    def trainable_module(self) -> ResidualCorrector:
        return self.corrector

    @torch.no_grad()
    def on_fit_start(self) -> None:
        """Measure the operator's residual on training windows.

        This gives its standard deviation in each channel and its error in physical space.
        """
        super().on_fit_start()
        if bool((self.operator_errors > 0).all()):  # restored from the checkpoint of a resumed run
            return
        loader = self.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        first = islice(loader.sampler.iter_fixed_batches(loader.dataset), 50)
        u, nu, trajectory, window = (
            torch.cat(t).to(self.device)
            for t in zip(*(vars(b).values() for b in first), strict=True)
        )
        steps = self.steps(Batch(u, nu, trajectory, window))
        residual = (steps.target - steps.pred)[..., : self.corrector.free].square().mean((0, 1))
        errors = self.field_errors(steps, steps.pred)
        everywhere: Any = self.all_gather(torch.cat((residual, errors)))  # over all processes
        everywhere = everywhere.view(-1, everywhere.shape[-1]).mean(0)
        self.corrector.scale.copy_(everywhere[:-2].sqrt())
        self.operator_errors.copy_(everywhere[-2:])

    def sample_noise(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, ...]:
        noise = self.noise(batch, generator)
        return torch.randn(noise.shape[:2], generator=generator, device=self.device), noise

    def compute_losses(self, batch: Batch, *drawn: Tensor) -> dict[str, Tensor]:
        h: Any = self.hparams
        c = self.corrector
        steps = self.steps(batch)
        level, noise = (d.flatten(0, 1) for d in drawn)
        about = steps.state, steps.pred, torch.full_like(steps.nu, self.simulator.dt), steps.nu
        mean = c.predict_mean(*about)
        residual = c.residual(steps.pred, steps.target)
        tokens = (residual - mean).square().mean()
        fields = self.field_errors(steps, c.apply_residual(steps.pred, mean)) / self.operator_errors
        sigma = (h.level_mean + h.level_std * level).exp().clamp(c.sigma_min, c.sigma_max)
        # EDM's weight: all noise levels count equally
        weight = (sigma.square() + SIGMA_DATA**2) / (sigma * SIGMA_DATA).square()
        known = mean.detach()
        rest = residual - known
        denoised = c.denoise(rest + sigma[:, None, None] * noise, sigma, known, *about)
        noise_loss = (weight * (denoised - rest).square().mean((1, 2))).mean()
        return {
            "loss": tokens + fields.mean() + noise_loss,
            "L_tokens": tokens,
            "L_fields": fields.mean(),
            "L_noise": noise_loss,
        }

    def field_errors(self, steps: ResidualTargets, tokens: Tensor) -> Tensor:
        """The squared error of decoded ``tokens`` relative to the truth (2,).

        The first value is unweighted, the second is weighted by certainty.
        """
        weights, fields = (
            torch.stack((torch.ones_like(steps.certainty), steps.certainty)),
            self.simulator.decode(tokens),
        )
        return relative_l2_squared(
            weights * fields, weights * steps.field, RELATIVE_ERROR_FLOOR * self.simulator.scale
        ).mean(1)
