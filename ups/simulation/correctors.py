"""Correctors: conditional samplers of the operator's latent residual r = E(u_{t+1}) - A(E(u_t)).

The residual is almost deterministic given the state, so it is modeled as in CorrDiff (Mardani et
al., "Residual corrective diffusion modeling", 2023). One network call gives its conditional mean. A
diffusion model (Karras et al., "Elucidating the design space of diffusion-based generative models",
NeurIPS 2022: EDM) samples the remainder that the mean does not explain.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.models.denoiser import Denoiser

# EDM's sigma_data: the size of the remainder, in units of the residual's standard deviation
SIGMA_DATA = 0.5
Denoise = Callable[[Tensor, Tensor], Tensor]


class ResidualCorrector(nn.Module):
    """Draws the operator's residual, given the state and the operator's prediction.

    Args:
        tokens: N of the latent state.
        width: C of the latent state.
        free: number of channels, from the first, that may be corrected. The others (for example a
            conserved mean) keep the predicted values.
        mean: sizes of the network of the conditional mean, see ``ups.models.denoiser.Denoiser``.
        noise: sizes of the denoising network, see ``ups.models.denoiser.Denoiser``.
        sampler: "heun" integrates the probability-flow ODE with Heun's method, in 2 ``steps`` - 1
            network calls; "consistency" jumps to its end in one call.
        steps: number of steps of the sampler.
        sigma_min: lowest noise level of the sampler, in units of the residual's standard deviation.
        sigma_max: highest noise level, in the same units.
        rho: how strongly the noise levels cluster at the low end.
        temperature: default factor on the draws; 0 keeps their mean, 1 samples the learned
            distribution.
    """

    scale: Tensor

    def __init__(
        self,
        tokens: int,
        width: int,
        free: int,
        mean: Mapping[str, Any],
        noise: Mapping[str, Any],
        sampler: str = "heun",
        steps: int = 8,
        sigma_min: float = 0.02,
        sigma_max: float = 10.0,
        rho: float = 7.0,
        temperature: float = 0.25,
    ) -> None:
        super().__init__()
        if sampler not in SAMPLERS:
            raise UpsError(f"sampler={sampler!r}: allowed are {', '.join(SAMPLERS)}")
        self.spec = {
            "tokens": tokens, "width": width, "free": free, "mean": dict(mean),
            "noise": dict(noise), "sampler": sampler, "steps": steps, "sigma_min": sigma_min,
            "sigma_max": sigma_max, "rho": rho, "temperature": temperature,
        }  # fmt: skip
        self.free, self.sampler, self.steps, self.temperature = free, sampler, steps, temperature
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self.mean_network = Denoiser(tokens, 2 * width, free, **mean)
        self.noise_network = Denoiser(tokens, 2 * width + 2 * free, free, **noise)
        # the standard deviation of the residual; the diffusion stage sets it from the training data
        self.register_buffer("scale", torch.ones(free))

    def muon_parameters(self) -> list[Tensor]:
        """The weight matrices of the blocks, which an optimizer may treat as matrices."""
        return self.mean_network.muon_parameters() + self.noise_network.muon_parameters()

    def predict_mean(self, z: Tensor, pred: Tensor, dt: Tensor, nu: Tensor) -> Tensor:
        """Predict the conditional mean of the residual.

        Args:
            z: tokens of the state (B, N, C).
            pred: tokens that the operator predicts (B, N, C).
            dt: the time of the step (B,).
            nu: the equation's parameter (B,).

        Returns:
            The mean (B, N, free), in units of ``scale``.
        """
        return self.mean_network((z, pred - z), torch.zeros_like(nu), dt, nu)

    def denoise(
        self,
        x: Tensor,
        sigma: Tensor,
        mean: Tensor,
        z: Tensor,
        pred: Tensor,
        dt: Tensor,
        nu: Tensor,
    ) -> Tensor:
        """EDM's denoiser (its table 1): the expected remainder y of the residual.

        Args:
            x: y plus ``sigma`` times white noise (B, N, free).
            sigma: noise level (B,).
            mean: the predicted mean of the residual (B, N, free).
            z: tokens of the state (B, N, C).
            pred: tokens that the operator predicts (B, N, C).
            dt: the time of the step (B,).
            nu: the equation's parameter (B,).

        Returns:
            The expected remainder (B, N, free).
        """
        s = sigma[:, None, None]
        size = (s.square() + SIGMA_DATA**2).sqrt()
        answer = self.noise_network((z, pred - z, mean, x / size), sigma.log(), dt, nu)
        return x * (SIGMA_DATA / size) ** 2 + answer * (s * SIGMA_DATA / size)

    def sigma_schedule(self) -> list[float]:
        """The noise levels of the sampler's steps (EDM eq. 5), followed by 0."""
        n = self.steps
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return [(high + i / max(1, n - 1) * (low - high)) ** self.rho for i in range(n)] + [0.0]

    def sample(
        self,
        z: Tensor,
        pred: Tensor,
        dt: Tensor,
        nu: Tensor,
        noise: Tensor,
        temperature: float | None = None,
        mean_first: bool = False,
    ) -> Tensor:
        """Return corrected states: ``pred`` plus draws of its residual.

        Args:
            z: tokens of the state (B, N, C).
            pred: tokens that the operator predicts (B, N, C).
            dt: the time of the step (B,).
            nu: the equation's parameter (B,).
            noise: white noise (B, M, N, free), one draw each.
            temperature: factor on the draws; default: the corrector's own.
            mean_first: whether to put ``pred`` plus the mean of the residual before the draws.

        Returns:
            States (B, M, N, C), or (B, M + 1, N, C) with ``mean_first``.
        """
        temperature = self.temperature if temperature is None else temperature
        draws, mean = noise.shape[1], self.predict_mean(z, pred, dt, nu)
        states = [self.apply_residual(pred, mean)[:, None]] if mean_first else []
        if draws:
            about = [t.repeat_interleave(draws, 0) for t in (mean, z, pred, dt, nu)]
            start = self.sigma_max * noise.flatten(0, 1)
            rest = SAMPLERS[self.sampler](
                lambda x, sigma: self.denoise(x, sigma, *about), start, self.sigma_schedule()
            )
            states.append(
                self.apply_residual(about[2], about[0] + temperature * rest).unflatten(
                    0, (-1, draws)
                )
            )
        return torch.cat(states, 1)

    def apply_residual(self, pred: Tensor, residual: Tensor) -> Tensor:
        """Add a ``residual`` (B, N, free), in units of ``scale``, to ``pred`` (B, N, C)."""
        fixed = pred.new_zeros(()).expand(*pred.shape[:2], pred.shape[2] - self.free)
        return pred + torch.cat((residual * self.scale, fixed), -1)

    def residual(self, pred: Tensor, target: Tensor) -> Tensor:
        """The residual (B, N, free) from ``pred`` to ``target``, in units of ``scale``.

        ``apply_residual`` adds it.
        """
        return (target - pred)[..., : self.free] / self.scale


def heun_sampler(denoise: Denoise, x: Tensor, levels: list[float]) -> Tensor:
    """EDM's deterministic sampler (its algorithm 1).

    Args:
        denoise: maps (B, N, C) at noise levels (B,) to the expected clean values.
        x: the start (B, N, C), at the first level.
        levels: noise levels, decreasing to 0.

    Returns:
        The sample (B, N, C).
    """
    for high, low in pairwise(levels):
        x = heun_step(denoise, x, x.new_full(x.shape[:1], high), x.new_full(x.shape[:1], low))
    return x


def heun_step(denoise: Denoise, x: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """One step of Heun's method along dx/dsigma = (x - D(x, sigma)) / sigma.

    It goes from level ``high`` (B,) to ``low`` (B,). If ``low`` is 0 it is a step of Euler's
    method.
    """
    step, positive = (low - high)[:, None, None], (low > 0)[:, None, None]
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
