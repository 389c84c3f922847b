"""Correctors: conditional samplers of the operator's latent residual.

It is the least move of the predicted tokens after which they decode to the true next field, see
``residual_targets``.

The residual is almost deterministic given the state, so it is modeled as in CorrDiff (Mardani et
al., "Residual corrective diffusion modeling", 2023). One network call gives its conditional mean. A
diffusion model (Karras et al., "Elucidating the design space of diffusion-based generative models",
NeurIPS 2022: EDM) samples the remainder that the mean does not explain.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.core.fields import Grid
from ups.core.schema import NonNegativeFloat, PositiveFloat, PositiveInt, SettingsOf
from ups.core.settings import PlainDict
from ups.models.denoiser import Denoiser

# EDM's sigma_data: the size of the remainder, in units of the residual's standard deviation
SIGMA_DATA = 0.5
# what a corrector's networks get from the latent state
NETWORK = SettingsOf(Denoiser, without=("tokens", "in_channels", "out_channels", "num_parameters"))
Denoise = Callable[[Tensor, Tensor], Tensor]


class ResidualCorrector(nn.Module):
    """Draws the operator's residual, given the state and the operator's prediction.

    Args:
        tokens: the grid of the N tokens of the latent state.
        hidden_dim: W of the latent state.
        num_dynamic_channels: number of channels, from the first, that may be corrected. The others
            (for example a conserved mean) keep the predicted values.
        mean_network: sizes of the network that predicts the conditional mean, see
            ``ups.models.denoiser.Denoiser``.
        denoiser: sizes of the denoising network, likewise.
        num_parameters: number of parameters P of the equation.
        sampler: "heun" integrates the probability-flow ODE with Heun's method, in
            2 ``num_steps`` - 1 network calls; "consistency" jumps to its end in one call.
        num_steps: number of steps of the sampler.
        sigma_min: lowest noise level of the sampler, in units of the residual's standard deviation.
        sigma_max: highest noise level, in the same units.
        rho: how strongly the noise levels cluster at the low end.
        temperature: default factor on the draws; 0 keeps their mean, 1 samples the learned
            distribution.
    """

    scale: Tensor

    def __init__(
        self,
        tokens: Grid,
        hidden_dim: int,
        num_dynamic_channels: int,
        mean_network: Annotated[PlainDict, NETWORK],
        denoiser: Annotated[PlainDict, NETWORK],
        num_parameters: int = 1,
        sampler: Literal["heun", "consistency"] = "heun",
        num_steps: PositiveInt = 8,
        sigma_min: PositiveFloat = 0.02,
        sigma_max: PositiveFloat = 10.0,
        rho: PositiveFloat = 7.0,
        temperature: NonNegativeFloat = 0.25,
    ) -> None:
        super().__init__()
        if sampler not in SAMPLERS:
            raise UpsError(f"`sampler` must be one of {', '.join(SAMPLERS)}, got {sampler!r}.")
        self.spec = {
            "hidden_dim": hidden_dim,
            "num_dynamic_channels": num_dynamic_channels,
            "mean_network": dict(mean_network),
            "denoiser": dict(denoiser),
            "num_parameters": num_parameters,
            "sampler": sampler,
            "num_steps": num_steps,
            "sigma_min": sigma_min,
            "sigma_max": sigma_max,
            "rho": rho,
            "temperature": temperature,
        }
        self.num_dynamic_channels = num_dynamic_channels
        self.sampler = sampler
        self.num_steps = num_steps
        self.temperature = temperature
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.rho = rho
        state_channels = 2 * hidden_dim
        self.mean_network = Denoiser(
            tokens,
            state_channels,
            num_dynamic_channels,
            num_parameters=num_parameters,
            **mean_network,
        )
        self.denoiser = Denoiser(
            tokens,
            state_channels + 2 * num_dynamic_channels,
            num_dynamic_channels,
            num_parameters=num_parameters,
            **denoiser,
        )
        # the standard deviation of the residual; the diffusion stage sets it from the training data
        self.register_buffer("scale", torch.ones(num_dynamic_channels))

    def muon_parameters(self) -> list[Tensor]:
        """The weight matrices of the blocks, which an optimizer may treat as matrices."""
        return self.mean_network.muon_parameters() + self.denoiser.muon_parameters()

    def predict_mean(self, z: Tensor, pred: Tensor, dt: Tensor, parameters: Tensor) -> Tensor:
        """Predict the conditional mean of the residual.

        Args:
            z: tokens of the state (B, N, W).
            pred: tokens that the operator predicts (B, N, W).
            dt: the time of the step (B,).
            parameters: the equation's parameters (B, P).

        Returns:
            The mean (B, N, num_dynamic_channels), in units of ``scale``.
        """
        return self.mean_network((z, pred - z), torch.zeros_like(dt), dt, parameters)

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor,
        mean: Tensor,
        z: Tensor,
        pred: Tensor,
        dt: Tensor,
        parameters: Tensor,
    ) -> Tensor:
        """EDM's denoiser (its table 1): the expected remainder y of the residual.

        Args:
            x: y plus ``sigma`` times white noise (B, N, num_dynamic_channels).
            sigma: noise level (B,).
            mean: the predicted mean of the residual (B, N, num_dynamic_channels).
            z: tokens of the state (B, N, W).
            pred: tokens that the operator predicts (B, N, W).
            dt: the time of the step (B,).
            parameters: the equation's parameters (B, P).

        Returns:
            The expected remainder (B, N, num_dynamic_channels).
        """
        s = sigma[:, None, None]
        size = (s.square() + SIGMA_DATA**2).sqrt()
        answer = self.denoiser((z, pred - z, mean, x / size), sigma.log(), dt, parameters)
        return x * (SIGMA_DATA / size) ** 2 + answer * (s * SIGMA_DATA / size)

    def sigma_schedule(self) -> list[float]:
        """The noise levels of the sampler's steps (EDM eq. 5), followed by 0."""
        n = self.num_steps
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return [(high + i / max(1, n - 1) * (low - high)) ** self.rho for i in range(n)] + [0.0]

    def sample(
        self,
        z: Tensor,
        pred: Tensor,
        dt: Tensor,
        parameters: Tensor,
        noise: Tensor,
        temperature: float | None = None,
        include_mean: bool = False,
    ) -> Tensor:
        """Return corrected states: ``pred`` plus draws of its residual.

        Args:
            z: tokens of the state (B, N, W).
            pred: tokens that the operator predicts (B, N, W).
            dt: the time of the step (B,).
            parameters: the equation's parameters (B, P).
            noise: white noise (B, M, N, num_dynamic_channels), one draw each.
            temperature: factor on the draws; default: the corrector's own.
            include_mean: whether to put ``pred`` plus the mean of the residual before the draws.

        Returns:
            States (B, M, N, W), or (B, M + 1, N, W) with ``include_mean``.
        """
        temperature = self.temperature if temperature is None else temperature
        num_samples = noise.shape[1]
        mean = self.predict_mean(z, pred, dt, parameters)
        states = [self.apply_residual(pred, mean)[:, None]] if include_mean else []
        if num_samples:
            mean, z, pred, dt, parameters = (
                t.repeat_interleave(num_samples, 0) for t in (mean, z, pred, dt, parameters)
            )
            remainder = SAMPLERS[self.sampler](
                lambda x, sigma: self.denoise(x, sigma, mean, z, pred, dt, parameters),
                self.sigma_max * noise.flatten(0, 1),
                self.sigma_schedule(),
            )
            samples = self.apply_residual(pred, mean + temperature * remainder)
            states.append(samples.unflatten(0, (-1, num_samples)))
        return torch.cat(states, 1)

    def apply_residual(self, pred: Tensor, residual: Tensor) -> Tensor:
        """Add a residual in units of ``scale`` to a prediction.

        Args:
            pred: tokens that the operator predicts (B, N, W).
            residual: the residual (B, N, num_dynamic_channels).
        """
        fixed = pred.new_zeros(()).expand(
            *pred.shape[:2], pred.shape[2] - self.num_dynamic_channels
        )
        return pred + torch.cat((residual * self.scale, fixed), -1)

    def residual(self, pred: Tensor, target: Tensor) -> Tensor:
        """The residual from ``pred`` to ``target``, in units of ``scale``.

        ``apply_residual`` adds it.

        Returns:
            The residual (B, N, num_dynamic_channels).
        """
        return (target - pred)[..., : self.num_dynamic_channels] / self.scale


def heun_sampler(denoise: Denoise, x: Tensor, levels: list[float]) -> Tensor:
    """EDM's deterministic sampler (its algorithm 1).

    Args:
        denoise: maps (B, N, W) at noise levels (B,) to the expected clean values.
        x: the start (B, N, W), at the first level.
        levels: noise levels, decreasing to 0.

    Returns:
        The sample (B, N, W).
    """
    for high, low in pairwise(levels):
        x = heun_step(denoise, x, x.new_full(x.shape[:1], high), x.new_full(x.shape[:1], low))
    return x


def heun_step(denoise: Denoise, x: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """One step of Heun's method along dx/dsigma = (x - D(x, sigma)) / sigma.

    It goes from level ``high`` (B,) to ``low`` (B,). If ``low`` is 0 it is a step of Euler's
    method.
    """
    step = (low - high)[:, None, None]
    positive = (low > 0)[:, None, None]
    slope = (x - denoise(x, high)) / high[:, None, None]
    end = x + step * slope
    if not bool(positive.any()):
        return end
    level = torch.where(low > 0, low, high)  # the result for low = 0 is not used
    second = (end - denoise(end, level)) / level[:, None, None]
    return torch.where(positive, x + step * (slope + second) / 2, end)


def consistency_sampler(denoise: Denoise, x: Tensor, levels: list[float]) -> Tensor:
    """Sampler of a consistency model: from the first level to the end in one call.

    ``x`` is at the first level. Source: Song et al., "Consistency models", ICML 2023.
    """
    return denoise(x, x.new_full(x.shape[:1], levels[0]))


SAMPLERS: dict[str, Callable[[Denoise, Tensor, list[float]], Tensor]] = {
    "heun": heun_sampler,
    "consistency": consistency_sampler,
}
