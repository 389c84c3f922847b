"""Correctors: conditional samplers of the operator's latent residual r = E(u_{t+1}) - A(E(u_t)).

The residual is nearly deterministic given the state. So it is modelled as in CorrDiff (Mardani et al., "Residual corrective diffusion
modeling", 2023): a first network call gives its conditional mean, and a diffusion model (Karras et al., "Elucidating the design space of
diffusion-based generative models", NeurIPS 2022: EDM) samples what the mean leaves unknown.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ups.errors import UpsError
from ups.models.denoiser import Denoiser

SIGMA_DATA = 0.5  # EDM's: the size of what the mean leaves, in units of the residual's standard deviation
Denoise = Callable[[Tensor, Tensor], Tensor]


class Corrector(nn.Module):
    """Draws the operator's residual, given the state and the operator's prediction.

    Args:
        tokens, width: N and C of the latent state.
        free: how many of them, from the first on, may be corrected; the others (a carried mean, say) stay as predicted.
        mean, noise: sizes of the two networks, see ``ups.models.denoiser.Denoiser``.
        sampler: "heun" integrates the probability-flow ODE in ``steps`` steps of Heun's method, 2 steps - 1 network calls;
            "consistency" jumps to its end, in one call.
        sigma_min, sigma_max: noise levels between which the sampler works, in units of the residual's standard deviation.
        rho: how strongly the levels gather at the small end.
        temperature: of the draws where none is given; 0 leaves their mean, 1 is the law that was learnt.
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
            "tokens": tokens, "width": width, "free": free, "mean": dict(mean), "noise": dict(noise), "sampler": sampler,
            "steps": steps, "sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho, "temperature": temperature,
        }  # fmt: skip
        self.free, self.sampler, self.steps, self.temperature = free, sampler, steps, temperature
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self.mean_network = Denoiser(tokens, 2 * width, free, **mean)
        self.noise_network = Denoiser(tokens, 2 * width + 2 * free, free, **noise)
        self.register_buffer("scale", torch.ones(free))  # the residual's standard deviation, set from the training data

    def matrices(self) -> list[Tensor]:
        """The blocks' weight matrices, which an optimiser may treat as such."""
        return self.mean_network.matrices() + self.noise_network.matrices()

    def mean(self, z: Tensor, pred: Tensor, dt: Tensor, nu: Tensor) -> Tensor:
        """The residual's conditional mean (B, N, free), in units of ``scale``; ``z``, ``pred`` (B, N, C), ``dt``, ``nu`` (B,)."""
        return self.mean_network((z, pred - z), torch.zeros_like(nu), dt, nu)

    def denoise(self, x: Tensor, sigma: Tensor, mean: Tensor, z: Tensor, pred: Tensor, dt: Tensor, nu: Tensor) -> Tensor:
        """EDM's denoiser (its table 1): the expected remainder y (B, N, free), given ``x`` = y + ``sigma`` (B,) times white noise."""
        s = sigma[:, None, None]
        size = (s.square() + SIGMA_DATA**2).sqrt()
        answer = self.noise_network((z, pred - z, mean, x / size), sigma.log(), dt, nu)
        return x * (SIGMA_DATA / size) ** 2 + answer * (s * SIGMA_DATA / size)

    def levels(self) -> list[float]:
        """The noise levels of the steps (EDM eq. 5), with the 0 at their end."""
        n = self.steps
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return [(high + i / max(1, n - 1) * (low - high)) ** self.rho for i in range(n)] + [0.0]

    def sample(
        self, z: Tensor, pred: Tensor, dt: Tensor, nu: Tensor, noise: Tensor, temperature: float | None = None, mean_first: bool = False
    ) -> Tensor:
        """Corrected states (B, M, N, C): ``pred`` plus draws of its residual, each made from white ``noise`` (B, M, N, free).

        ``temperature`` is the corrector's own where none is given. With ``mean_first`` there is one state more, (B, M + 1, N, C): before
        the draws ``pred`` plus the residual's mean.
        """
        temperature = self.temperature if temperature is None else temperature
        draws, mean = noise.shape[1], self.mean(z, pred, dt, nu)
        states = [self.add(pred, mean)[:, None]] if mean_first else []
        if draws:
            about = [t.repeat_interleave(draws, 0) for t in (mean, z, pred, dt, nu)]
            start = self.sigma_max * noise.flatten(0, 1)
            rest = SAMPLERS[self.sampler](lambda x, sigma: self.denoise(x, sigma, *about), start, self.levels())
            states.append(self.add(about[2], about[0] + temperature * rest).unflatten(0, (-1, draws)))
        return torch.cat(states, 1)

    def add(self, pred: Tensor, residual: Tensor) -> Tensor:
        """``pred`` (B, N, C) plus a ``residual`` (B, N, free) in units of ``scale``."""
        fixed = pred.new_zeros(()).expand(*pred.shape[:2], pred.shape[2] - self.free)
        return pred + torch.cat((residual * self.scale, fixed), -1)

    def residual(self, pred: Tensor, target: Tensor) -> Tensor:
        """What ``add`` would have to add to reach ``target``: (B, N, free), in units of ``scale``."""
        return (target - pred)[..., : self.free] / self.scale


def heun(denoise: Denoise, x: Tensor, levels: list[float]) -> Tensor:
    """EDM's deterministic sampler (its algorithm 1), from ``x`` (B, N, C) at the first level to the last, 0."""
    for high, low in pairwise(levels):
        x = heun_step(denoise, x, x.new_full(x.shape[:1], high), x.new_full(x.shape[:1], low))
    return x


def heun_step(denoise: Denoise, x: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """A step of Heun's method along dx/dsigma = (x - D(x, sigma)) / sigma, from level ``high`` (B,) to ``low``; Euler's where that is 0."""
    step, positive = (low - high)[:, None, None], (low > 0)[:, None, None]
    slope = (x - denoise(x, high)) / high[:, None, None]
    end = x + step * slope
    if not bool(positive.any()):
        return end
    level = torch.where(low > 0, low, high)  # where low is 0 the answer isn't used
    second = (end - denoise(end, level)) / level[:, None, None]
    return torch.where(positive, x + step * (slope + second) / 2, end)


def jump(denoise: Denoise, x: Tensor, levels: list[float]) -> Tensor:
    """A consistency model's sampler (Song et al., "Consistency models", ICML 2023): from ``x`` at the first level to the end at once."""
    return denoise(x, x.new_full(x.shape[:1], levels[0]))


SAMPLERS: dict[str, Callable[[Denoise, Tensor, list[float]], Tensor]] = {"heun": heun, "consistency": jump}
