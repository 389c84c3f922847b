"""Stage 2: train a diffusion model of the operator's latent residual."""

from itertools import islice
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor

from ups.core.batch import Batch
from ups.core.fields import PointCloud
from ups.core.norms import RELATIVE_ERROR_FLOOR, relative_l2_squared
from ups.core.schema import PositiveFloat, SettingsOf
from ups.modules.base import check_takes_points
from ups.modules.corrector import CorrectorModule
from ups.simulation.correctors import SIGMA_DATA, ResidualCorrector
from ups.simulation.residual_targets import ResidualTargets
from ups.simulation.simulator import Simulator

# a corrector's settings; its sizes are those of the latent state
CORRECTOR = SettingsOf(
    ResidualCorrector,
    without=("tokens", "hidden_dim", "num_dynamic_channels", "num_parameters"),
)


class DiffusionModule(CorrectorModule):
    """Trains the corrector "diffusion" on the operator's residuals along true windows.

    It is ``simulator.correctors["diffusion"]``; the operator is frozen. With r the residual in
    units of its standard deviation and mu its predicted mean (see
    ``ups.simulation.residual_targets.ResidualTargets``),

    loss = L_tokens + L_fields + L_noise,

    - L_tokens = |r - mu|^2;
    - L_fields = |D(A + mu) - u_{t+1}|^2 / |u_{t+1}|^2, the mean of two: unweighted and weighted by
      the solver's confidence, each relative to the same error of the operator;
    - L_noise is EDM's weighted denoising error of r - mu at log-normal noise levels.

    Args:
        simulator: a simulator with a trained operator.
        corrector: the arguments of ``ups.simulation.correctors.ResidualCorrector`` without the
            sizes of the tokens.
        P_mean: mean of the logarithm of the noise levels in training.
        P_std: standard deviation of that logarithm.

    The other arguments are those of ``CorrectorModule`` and ``BaseModule``.

    Raises:
        UpsError: the fields lie on points.
    """

    stage = "diffusion"
    correct = "diffusion"

    def __init__(
        self,
        simulator: Simulator,
        *,
        corrector: Annotated[dict[str, object], CORRECTOR],
        P_mean: Annotated[float, Ge(-100), Le(100)] = -1.0,
        P_std: PositiveFloat = 1.4,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if isinstance(simulator.spec.domain, PointCloud):
            check_takes_points(type(self))
        simulator.requires_grad_(False)
        self.corrector = simulator.add_corrector("diffusion", corrector)
        self.simulator = simulator
        self.register_buffer(
            "operator_errors", torch.zeros(2, dtype=torch.float32)
        )  # 0: not measured yet
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
        steps = self.steps(Batch.cat(first).to(self.device))
        residual = (steps.target - steps.pred)[..., : self.corrector.num_dynamic_channels]
        residual = residual.square().mean((0, 1))
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
        condition = steps.conditions(self.simulator.spec)
        mean = c.predict_mean(*condition)
        residual = c.residual(steps.pred, steps.target)
        tokens = (residual - mean).square().mean()
        fields = self.field_errors(steps, c.apply_residual(steps.pred, mean)) / self.operator_errors
        sigma = (h.P_mean + h.P_std * level).exp().clamp(c.sigma_min, c.sigma_max)
        # EDM's weight: all noise levels count equally
        weight = (sigma.square() + SIGMA_DATA**2) / (sigma * SIGMA_DATA).square()
        fixed_mean = mean.detach()
        remainder = residual - fixed_mean
        denoised = c.denoise(
            remainder + sigma[:, None, None] * noise, sigma, fixed_mean, *condition
        )
        noise_loss = (weight * (denoised - remainder).square().mean((1, 2))).mean()
        return {
            "loss": tokens + fields.mean() + noise_loss,
            "L_tokens": tokens,
            "L_fields": fields.mean(),
            "L_noise": noise_loss,
        }

    def field_errors(self, steps: ResidualTargets, tokens: Tensor) -> Tensor:
        """The squared error of decoded ``tokens`` relative to the truth (2,).

        The first value is unweighted, the second is weighted by confidence.
        """
        weights = torch.stack((torch.ones_like(steps.confidence), steps.confidence))
        return relative_l2_squared(
            weights * self.simulator.decode(tokens),
            weights * steps.field,
            self.simulator.spec.space_axes,
            RELATIVE_ERROR_FLOOR * self.simulator.std,
        ).mean(1)
