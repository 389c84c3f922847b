"""Stage 2: a diffusion model of what the operator leaves, its latent residual."""

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ups.datamodules.windows import Batch
from ups.latents import Steps
from ups.losses import FLOOR, relative_l2_squared
from ups.modules.residual import ResidualModule
from ups.rollout import Simulator
from ups.sampling import SIGMA_DATA, Corrector


class DiffusionModule(ResidualModule):
    """Trains ``simulator.correctors["diffusion"]`` on what the operator leaves along windows of true frames; the operator is frozen.

    loss = L_tokens + L_fields + L_noise, with r the residual in units of its standard deviation and mu its predicted mean, see
    ``ups.latents.Steps``: L_tokens = |r - mu|^2; L_fields = |D(A + mu) - u_{t+1}|^2 / |u_{t+1}|^2, as it is and weighted by certainty,
    both relative to the operator's own; L_noise is EDM's weighted denoising error of r - mu, at log-normal noise levels.

    Args:
        corrector: arguments of ``ups.sampling.Corrector`` beside the tokens' sizes.
        level_mean, level_std: of the logarithm of the noise levels that are trained on.
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

    def trained(self) -> Corrector:
        return self.corrector

    @torch.no_grad()
    def on_fit_start(self) -> None:
        """Measure the operator's residual on training windows: its standard deviation in each channel, and its error in physical space."""
        super().on_fit_start()
        if bool((self.operator_errors > 0).all()):  # a resumed run has both in its checkpoint
            return
        loader = self.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        first = islice(loader.sampler.first_epoch(loader.dataset), 50)
        u, nu, trajectory, window = (torch.cat(t).to(self.device) for t in zip(*(vars(b).values() for b in first), strict=True))
        steps = self.steps(Batch(u, nu, trajectory, window))
        residual = (steps.target - steps.pred)[..., : self.corrector.free].square().mean((0, 1))
        errors = self.field_errors(steps, steps.pred)
        everywhere: Any = self.all_gather(torch.cat((residual, errors)))  # over processes
        everywhere = everywhere.view(-1, everywhere.shape[-1]).mean(0)
        self.corrector.scale.copy_(everywhere[:-2].sqrt())
        self.operator_errors.copy_(everywhere[-2:])

    def draw(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, ...]:
        noise = self.noise(batch, generator)
        return torch.randn(noise.shape[:2], generator=generator, device=self.device), noise

    def loss_terms(self, batch: Batch, *drawn: Tensor) -> dict[str, Tensor]:
        h: Any = self.hparams
        c = self.corrector
        steps = self.steps(batch)
        level, noise = (d.flatten(0, 1) for d in drawn)
        about = steps.state, steps.pred, torch.full_like(steps.nu, self.simulator.dt), steps.nu
        mean = c.mean(*about)
        residual = c.residual(steps.pred, steps.target)
        tokens = (residual - mean).square().mean()
        fields = self.field_errors(steps, c.add(steps.pred, mean)) / self.operator_errors
        sigma = (h.level_mean + h.level_std * level).exp().clamp(c.sigma_min, c.sigma_max)
        weight = (sigma.square() + SIGMA_DATA**2) / (sigma * SIGMA_DATA).square()  # EDM's: every level counts alike
        known = mean.detach()
        rest = residual - known
        denoised = c.denoise(rest + sigma[:, None, None] * noise, sigma, known, *about)
        noise_loss = (weight * (denoised - rest).square().mean((1, 2))).mean()
        return {"loss": tokens + fields.mean() + noise_loss, "L_tokens": tokens, "L_fields": fields.mean(), "L_noise": noise_loss}

    def field_errors(self, steps: Steps, tokens: Tensor) -> Tensor:
        """The squared error of decoded ``tokens`` relative to the truth: of all, and weighted by certainty (2,)."""
        weights, fields = torch.stack((torch.ones_like(steps.certainty), steps.certainty)), self.simulator.decode(tokens)
        return relative_l2_squared(weights * fields, weights * steps.field, FLOOR * self.simulator.scale).mean(1)
