"""A stepper whose steps are corrected by draws of a learned residual."""

import torch
from torch import Tensor

from ups.simulation.correctors import ResidualCorrector
from ups.simulation.latent import LatentStepper, Wrapped


class Corrected(Wrapped):
    """The latent steps of a network, corrected by draws of their residual.

    Draws use torch's global random numbers.

    Args:
        stepper: the network.
        corrector: draws its residual.
        temperature: factor on the draws. 1 samples the learned distribution, 0 takes its mean;
            default: the corrector's own.
        noise_group_size: number of consecutive states that share their noise.
    """

    def __init__(
        self,
        stepper: LatentStepper,
        corrector: ResidualCorrector,
        temperature: float | None = None,
        noise_group_size: int = 1,
    ) -> None:
        super().__init__(stepper)
        self.corrector = corrector
        self.temperature = temperature
        self.noise_group_size = noise_group_size

    def step(self, state: Tensor, parameters: Tensor) -> Tensor:
        return self._sample(state, parameters, 1, include_mean=False)[:, 0]

    def propose(self, state: Tensor, parameters: Tensor, num_candidates: int) -> Tensor:
        """The step with the mean residual and draws around it (B, num_candidates, N, C)."""
        return self._sample(state, parameters, num_candidates - 1, include_mean=True)

    def _sample(
        self, z: Tensor, parameters: Tensor, num_samples: int, include_mean: bool
    ) -> Tensor:
        pred = self.stepper.step(z, parameters)
        noise = torch.randn(
            len(z) // self.noise_group_size,
            num_samples,
            z.shape[1],
            self.num_dynamic_channels,
            dtype=z.dtype,
            device=z.device,
        ).repeat_interleave(self.noise_group_size, 0)
        dt, scaled = self.spec.condition(parameters)
        return self.corrector.sample(z, pred, dt, scaled, noise, self.temperature, include_mean)
