"""The initial field and nu behind noisy readings of a rollout's last frames: by a model and by the
differentiable solver.

    python benchmarks/inverse_problem.py        writes benchmarks/results/inverse_problem.json

A model over several nu is trained, if there is none. Then 20 trajectories of fields and nu that it
has not seen are read at every 4th point of the frames 6 to 10, with noise of 2 % of the readings.
The estimate is the most probable one: the initial field has the spectrum of the training data as
its prior, a Gaussian for each wave number, and nu a log-normal one. Adam finds it, from the first
reading as the guess, by the gradient through all steps. Only the forward map differs: the model, in
both modes, and the solver on 64, 128 and 256 points. The time is that of one core.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from runs import save, ups_run
from torch import Tensor

import ups
from ups.core.norms import relative_l2_squared
from ups.physics import burgers
from ups.physics.periodic_1d import cell_averages, limited_linear_reconstruction
from ups.simulation.simulator import Simulator

RUN = Path("outputs/inverse_problem")
NU = (0.001, 0.002, 0.004, 0.008)
TRAIN = [
    "stage=operator",
    f"name={RUN.name}",
    f"data.nu=[{','.join(map(str, NU))}]",
    "data.samples_per_trajectory=3",
    "trainer.max_epochs=8",
]
SEED = 20_001  # of no split
FIELDS, STEPS, FINER = 20, 10, 4
READ_FRAMES, READ_EVERY, NOISE = 5, 4, 0.02
MODES = 32
ITERATIONS, LEARNING_RATE = 300, 0.1
# frames (B, STEPS, X) after fields (B, X) with nu (B,)
Forward = Callable[[Tensor, Tensor], Tensor]
Mode = Literal["latent", "physical"]


class Prior:
    """Independent Gaussians of the Fourier modes of fields (B, X) and of log nu.

    An unknown is a tensor (B, 2 * MODES + 3), one standard deviation each.
    """

    def __init__(self, x: Tensor) -> None:
        self.points = len(x)
        modes = self.modes(burgers.initial_conditions(1000, x, seed=0))
        self.deviation = modes.square().mean((0, 2)).sqrt()[:, None]
        low, high = math.log(NU[0]), math.log(NU[-1])
        self.log_nu = (low + high) / 2
        self.log_nu_deviation = (high - low) / math.sqrt(12)  # of a uniform distribution

    def modes(self, u: Tensor) -> Tensor:
        """Real and imaginary parts (B, MODES + 1, 2) of the Fourier modes of fields."""
        return torch.view_as_real(torch.fft.rfft(u, norm="forward")[:, : MODES + 1])

    def unknowns(self, u: Tensor) -> Tensor:
        """Those of fields (B, X) and the most probable nu."""
        modes = self.modes(u) / self.deviation
        return torch.cat((modes.flatten(1), torch.zeros(len(u), 1)), 1)

    def field(self, unknowns: Tensor) -> Tensor:
        modes = unknowns[:, :-1].unflatten(1, (-1, 2)) * self.deviation
        return torch.fft.irfft(torch.view_as_complex(modes), self.points, norm="forward")

    def nu(self, unknowns: Tensor) -> Tensor:
        return torch.exp(self.log_nu + self.log_nu_deviation * unknowns[:, -1])


def solver(u0: Tensor, nu: Tensor, dt: float, points: int) -> Tensor:
    factor = u0.shape[1] // points
    times = [dt * k for k in range(1, STEPS + 1)]
    u = burgers.solve(cell_averages(u0, factor), times, nu, dtype=torch.float32)
    return limited_linear_reconstruction(u, factor)


def read(u: Tensor) -> Tensor:
    """The last frames (B, READ_FRAMES, X / READ_EVERY) at the points that are read."""
    return u[:, -READ_FRAMES:, ::READ_EVERY]


def guess(readings: Tensor, prior: Prior) -> Tensor:
    """The first frame that was read, as the initial field."""
    modes = torch.fft.rfft(readings[:, 0], norm="forward")[:, :-1]
    u = torch.fft.irfft(modes, prior.points, norm="forward")
    return prior.unknowns(u)


def invert(forward: Forward, readings: Tensor, noise: Tensor, prior: Prior) -> Tensor:
    """The most probable unknowns, given readings with the noise's standard deviation (B, 1, 1)."""
    unknowns = guess(readings, prior).requires_grad_()
    optimizer = torch.optim.Adam([unknowns], LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ITERATIONS)
    for _ in range(ITERATIONS):
        misfit = (read(forward(prior.field(unknowns), prior.nu(unknowns))) - readings) / noise
        loss = misfit.square().sum() + unknowns.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return unknowns.detach()


def errors(unknowns: Tensor, prior: Prior, u0: Tensor, nu: Tensor) -> dict[str, Any]:
    """Medians and quartiles over trajectories: the relative L2 error of the initial field, and the
    absolute error of log nu.
    """
    field = relative_l2_squared(prior.field(unknowns)[..., None], u0[..., None], (-2,)).sqrt()
    log_nu = (prior.nu(unknowns) / nu).log().abs()
    quartiles = torch.tensor((0.25, 0.5, 0.75))
    return {
        "initial_field": field.flatten().quantile(quartiles).tolist(),
        "log_nu": log_nu.quantile(quartiles).tolist(),
    }


def truth(dt: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """Trajectories (FIELDS, STEPS + 1, X), by a solver on a finer grid, and their nu (FIELDS,)."""
    generator = torch.Generator().manual_seed(SEED)
    nu = NU[0] * (NU[-1] / NU[0]) ** torch.rand(FIELDS, generator=generator)
    fine = burgers.initial_conditions(FIELDS, burgers.cell_centers(FINER * len(x)), SEED)
    u = burgers.solve(fine.double(), [dt * k for k in range(STEPS + 1)], nu.double())
    return u[..., ::FINER].float(), nu


def main() -> None:
    ups_run(TRAIN)
    torch.set_num_threads(1)
    sim: Simulator = ups.load(RUN).requires_grad_(False)
    u, nu = truth(sim.dt, sim.x)
    exact = read(u)
    noise = NOISE * exact.square().mean((1, 2), keepdim=True).sqrt()
    generator = torch.Generator().manual_seed(SEED)
    readings = exact + noise * torch.randn(exact.shape, generator=generator)
    prior = Prior(sim.x)
    modes: tuple[Mode, Mode] = ("latent", "physical")
    forwards: dict[str, Forward] = {
        f"{sim.model_config['name']}, {mode}": partial(predict_with, sim, mode=mode)
        for mode in modes
    }
    for points in (64, 128, 256):
        forwards[f"solver-{points}"] = partial(solver, dt=sim.dt, points=points)
    found = {"the guess": {**errors(guess(readings, prior), prior, u[:, 0], nu), "seconds": 0.0}}
    for name, forward in forwards.items():
        began = time.process_time()
        unknowns = invert(forward, readings, noise, prior)
        seconds = (time.process_time() - began) / FIELDS
        predicted = forward(prior.field(unknowns), prior.nu(unknowns))
        misfit = ((read(predicted) - readings) / noise).square().mean().sqrt().item()
        found[name] = {**errors(unknowns, prior, u[:, 0], nu), "misfit": misfit, "seconds": seconds}
        print(name, found[name])
        save("inverse_problem", {"iterations": ITERATIONS, "ways": found})


def predict_with(sim: Simulator, u0: Tensor, nu: Tensor, mode: Mode) -> Tensor:
    return sim.rollout(u0, STEPS, nu=nu, mode=mode)


if __name__ == "__main__":
    main()
