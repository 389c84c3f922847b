"""Random latent tokens, by which a simulator draws an ensemble of forecasts."""

import torch
from torch import Tensor, nn

from ups.core.schema import PositiveInt
from ups.simulation.latent import LatentStepper, Wrapped


class LatentNoise(nn.Module):
    """Scales and shifts tokens by linear maps of white noise.

    z -> z (1 + S xi) + B xi with xi ~ N(0, 1). S and B are zero at first, so that the training of
    an ensemble begins with the forecast that is known.

    With ``shared`` noise all tokens of a field have the same xi. A score of single values then
    teaches whole fields: a draw can't differ here without differing everywhere (Alet et al.,
    "Skillful joint probabilistic weather forecasting from marginals", 2025). Otherwise tokens draw
    independently, and the steps learn how draws of neighbors become one field.

    Args:
        num_dynamic_channels: number of channels of a token, from the first, that may change.
        num_channels: number of values R of white noise.
        shared: whether all tokens of a field have the same noise.
    """

    def __init__(
        self, num_dynamic_channels: int, num_channels: PositiveInt = 16, shared: bool = False
    ) -> None:
        super().__init__()
        self.num_dynamic_channels = num_dynamic_channels
        self.num_channels = num_channels
        self.shared = shared
        self.settings = {"num_channels": num_channels, "shared": shared}
        self.scale_and_shift = nn.Linear(num_channels, 2 * num_dynamic_channels, bias=False)
        nn.init.zeros_(self.scale_and_shift.weight)

    def shape(self, num_tokens: int) -> tuple[int, int]:
        """The shape of the white noise for one field of so many tokens."""
        return (1 if self.shared else num_tokens, self.num_channels)

    def forward(self, z: Tensor, noise: Tensor) -> Tensor:
        """Change tokens (B, N, W) by white noise (B, N, R), or (B, 1, R) if all share it."""
        scale, shift = self.scale_and_shift(noise).chunk(2, -1)
        dynamic = z[..., : self.num_dynamic_channels]
        changed = dynamic + scale * dynamic + shift
        return torch.cat((changed.to(z.dtype), z[..., self.num_dynamic_channels :]), -1)


class Noisy(Wrapped):
    """The latent steps of a network from tokens with noise.

    Noise uses torch's global random numbers.

    Args:
        stepper: the network.
        noise: changes its tokens before each step.
        temperature: factor on the noise; 1 draws members of the ensemble that was trained.
        noise_group_size: number of consecutive states that share their noise.
    """

    def __init__(
        self,
        stepper: LatentStepper,
        noise: LatentNoise,
        temperature: float = 1.0,
        noise_group_size: int = 1,
    ) -> None:
        super().__init__(stepper)
        self.noise = noise
        self.temperature = temperature
        self.noise_group_size = noise_group_size

    def step(self, state: Tensor, parameters: Tensor) -> Tensor:
        return self.stepper.step(self._with_noise(state), parameters)

    def propose(self, state: Tensor, parameters: Tensor, num_candidates: int) -> Tensor:
        """Draws of the next tokens (B, num_candidates, N, W)."""
        repeated = state.repeat_interleave(num_candidates, 0)
        return self.step(repeated, parameters.repeat_interleave(num_candidates, 0)).unflatten(
            0, (len(state), num_candidates)
        )

    def _with_noise(self, z: Tensor) -> Tensor:
        groups = len(z) // self.noise_group_size
        shape = (groups, *self.noise.shape(z.shape[1]))
        noise = torch.randn(shape, dtype=z.dtype, device=z.device)
        shared = noise.repeat_interleave(self.noise_group_size, 0)
        return self.noise(z, self.temperature * shared)
