"""How a model does on inputs unlike its training data, and what warns of them.

    python benchmarks/shifts.py [MODEL]     writes benchmarks/results/shifts.json

MODEL: what ``ups.load`` reads; default: the model that comes with UPS. Inputs are those of its
training recipe, larger, smaller, moving, with more modes, other shapes, and at larger nu. Beside
the model stand the same model without the equation's symmetries, the same in a frame of exactly the
fields' mean (whose frames are moved between the points of the grid by their Fourier series), and
the solver on as many points. Truth is the solver on four times as many.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from ranking import spearman
from runs import save
from torch import Tensor

import ups
from ups.core.norms import relative_l2_squared
from ups.core.stepper import predict
from ups.evaluation.baselines import SolverStepper
from ups.evaluation.metrics import pdebench_metrics
from ups.physics import burgers
from ups.simulation.input_range import input_size
from ups.simulation.simulator import Simulator

FIELDS, STEPS, NU, FINER = 64, 40, 0.001, 4
Rollout = Callable[[Simulator, Tensor, float], Tensor]


def modes(x: Tensor, largest: int) -> Tensor:
    """Equal random power in the wave numbers 1 to ``largest``."""
    generator = torch.Generator().manual_seed(largest)
    amplitude, phase = torch.randn(2, FIELDS, largest, 1, generator=generator)
    k = torch.arange(1, largest + 1)[:, None]
    u = (amplitude * torch.sin(2 * math.pi * (k * x + phase))).sum(1)
    return 0.6 * u / u.square().mean(1, keepdim=True).sqrt()


def bumps(x: Tensor) -> Tensor:
    center, width = torch.rand(2, FIELDS, 1, generator=torch.Generator().manual_seed(1))
    distance = (x - center + 0.5) % 1 - 0.5
    return torch.exp(-((distance / (0.03 + 0.07 * width)) ** 2) / 2)


def inputs(x: Tensor) -> dict[str, tuple[Tensor, float]]:
    """Initial fields (FIELDS, X) and nu by what is special about them."""
    seed = 10_001  # of no split
    paper = burgers.initial_conditions(FIELDS, x, seed, as_published=False)
    published = burgers.initial_conditions(FIELDS, x, seed)
    fields = {
        "PDEBench, as in the paper": paper,
        "PDEBench, as published": published,
        **{f"amplitude x {a:g}": a * paper for a in (0.1, 0.3, 1.5, 2.0, 3.0, 4.0)},
        **{f"mean {mean:+g}": paper + mean for mean in (1.0, -2.0)},
        **{f"modes to {k}": modes(x, k) for k in (4, 8, 16, 32)},
        "bumps": bumps(x),
        "steps": 0.6 * modes(x, 2).sign(),
    }
    return {
        **{name: (u, NU) for name, u in fields.items()},
        **{f"nu x {factor}": (published, factor * NU) for factor in (2, 4, 8)},
    }


def without_symmetries(sim: Simulator, u0: Tensor, nu: float) -> Tensor:
    return predict(sim, u0[..., None], STEPS, torch.full((len(u0), 1), nu))[..., 0]


def in_an_exact_frame(sim: Simulator, u0: Tensor, nu: float) -> Tensor:
    mean = u0.mean(1, keepdim=True)
    u = torch.fft.rfft(without_symmetries(sim, u0 - mean, nu))
    k = 2j * math.pi / sim.spec.grid.extent[0] * torch.arange(u.shape[-1])
    times = sim.dt * torch.arange(1, STEPS + 1)[:, None]
    return torch.fft.irfft(u * torch.exp(-k * mean[:, None] * times), u0.shape[1]) + mean[:, None]


def solver(sim: Simulator, u0: Tensor, nu: float) -> Tensor:
    assert sim.equation is not None
    stepper = SolverStepper(sim.equation, sim.spec, u0.shape[1])
    return predict(stepper, u0[..., None], STEPS, torch.full((len(u0), 1), nu))[..., 0]


ROLLOUTS: dict[str, Rollout] = {
    "model": lambda sim, u0, nu: sim.rollout(u0, STEPS, nu=nu),
    "without symmetries": without_symmetries,
    "in an exact frame": in_an_exact_frame,
    "solver": solver,
}


def measure(sim: Simulator, fine: Tensor, nu: float) -> dict[str, Any]:
    """The errors of all rollouts from ``fine`` (FIELDS, X * FINER), and what might warn of them."""
    times = [sim.dt * k for k in range(STEPS + 1)]
    truth = burgers.solve(fine.double(), times, nu)[..., ::FINER].float()
    u0 = truth[:, 0]
    found = {
        name: pdebench_metrics(rollout(sim, u0, nu), truth[:, 1:])["nrmse"]
        for name, rollout in ROLLOUTS.items()
    }
    seen = sim.moving_frame(u0[..., None]).enter(u0[:, None, :, None])[:, 0]
    power = torch.fft.rfft(seen[..., 0])[:, 1:].abs().square()
    k = torch.arange(1, power.shape[1] + 1)
    candidates = {
        **input_size(seen, sim.spec),
        "mean": u0.mean(1).abs(),
        "root mean square": seen.square().mean((1, 2)).sqrt(),
        "total variation": (seen.roll(-1, 1) - seen).abs().sum((1, 2)),
        "mean wave number": (k * power).sum(1) / power.sum(1),
    }
    beyond = torch.stack([candidates[name] / limit for name, limit in sim.input_range.items()])
    candidates["beyond the range"] = beyond.amax(0)
    error = (
        relative_l2_squared(ROLLOUTS["model"](sim, u0, nu)[..., None], truth[:, 1:, :, None], (-2,))
        .sqrt()
        .mean(1)
    )
    return {
        "nrmse": found,
        "warned": (beyond.amax(0) > 1).float().mean().item(),
        "errors": error,
        "candidates": candidates,
    }


def main(model: str) -> None:
    sim = ups.load(model)
    x = burgers.cell_centers(FINER * sim.spec.grid.shape[0])
    given = inputs(x)
    cases = {name: measure(sim, fine, nu) for name, (fine, nu) in given.items()}
    errors = {name: case.pop("errors") for name, case in cases.items()}
    candidates = {name: case.pop("candidates") for name, case in cases.items()}
    at_trained_nu = [name for name, (_, nu) in given.items() if nu == NU]
    predicted = {
        number: spearman(
            torch.cat([candidates[name][number] for name in at_trained_nu]),
            torch.cat([errors[name] for name in at_trained_nu]),
        ).item()
        for number in candidates[at_trained_nu[0]]
    }
    save("shifts", {"model": model, "cases": cases, "rank_correlation_with_error": predicted})
    for name, case in cases.items():
        print(f"{name:26}", {k: round(v, 4) for k, v in case["nrmse"].items()}, case["warned"])
    print(predicted)


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else "burgers-small")
