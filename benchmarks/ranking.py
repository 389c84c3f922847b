"""Do rewards rank candidates as the true error does, and what does choosing by them gain?

    python benchmarks/ranking.py RUN [RUN ...]

It writes benchmarks/results/ranking.json, or ranking_navier_stokes.json for runs on those data.
RUN: folders with a diffusion stage, or trained with ``loss=crps``, one for each seed.

**Steps.** At every step of rollouts of 16 test trajectories there are 8 candidates: the diffusion
corrector's mean and 7 draws, or 8 draws of an operator with noise. Rewards are compared with the
candidates' true error by Spearman's rank correlation, averaged over steps and trajectories. The
same rollouts are made with the best candidate by the reward of test-time conditioning, with a
random one (the control), and with guidance.

**Forecasts.** The candidates are 8 whole rollouts of draws at temperature 1, and their error is the
nRMSE over all frames. The control is the mean over the 8.

Beside each correlation is the ratio that bounds it: the standard deviation of the candidates'
errors over the error of the reward's own solve. A reward that is less exact than the candidates
differ can't rank them.
"""

import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from runs import data_of, save, spread
from torch import Tensor

import ups
from ups.core.fields import FieldSpec
from ups.core.norms import relative_l2_squared
from ups.core.stepper import predict
from ups.evaluation.baselines import coarse_solvers
from ups.metrics import distance_to_mean
from ups.simulation.guidance import TTC, Guided
from ups.simulation.simulator import Simulator

CANDIDATES, TRAJECTORIES = 8, 16
Scores = dict[str, Tensor]


def ranks(values: Tensor) -> Tensor:
    return values.argsort(-1).argsort(-1).double()


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Over the last dimension; ties are in the order that they come in."""
    a, b = (ranks(x) - (x.shape[-1] - 1) / 2 for x in (a, b))
    return (a * b).mean(-1) / a.square().mean(-1)


def smoothed(u: Tensor, spec: FieldSpec) -> Tensor:
    """Fields (..., *space, C) whose L2 norm is the norm of ``u`` in H^-1.

    Each wave k is divided by sqrt(1 + |k|^2). On a periodic grid.
    """
    axes = spec.space_axes
    square = torch.zeros(())
    for axis, n, length in zip(axes, spec.grid.shape, spec.grid.extent, strict=True):
        k = 2 * math.pi * torch.fft.fftfreq(n, length / n)
        square = square + k.square().view(-1, *[1] * (-axis - 1))
    coefficients = torch.fft.fftn(u, dim=axes) / (1 + square).sqrt()
    return torch.fft.ifftn(coefficients, dim=axes).real


def proposals(sim: Simulator, temperature: float | None = None) -> Guided:
    """The guided stepper that proposes candidates, without guiding them."""
    corrector = "diffusion" if "diffusion" in sim.correctors else "none"
    if corrector == "none":
        temperature = 1.0  # of an operator with noise
    stepper: Any = sim.stepper(corrector, temperature=temperature)
    settings = TTC(num_candidates=CANDIDATES, guidance_steps=0)
    return Guided(stepper, sim.equation, settings)


def step_rewards(guided: Guided, fields: Tensor, expected: Tensor, confidence: Tensor) -> Scores:
    """Rewards (B, M) of candidates' fields (B, M, *space, C) by where the equation leads."""
    spec = guided.spec

    def reward(pred: Tensor, target: Tensor) -> Tensor:
        return -relative_l2_squared(pred, target[:, None], spec.space_axes)

    weight = confidence[:, None]
    return {
        "residual": reward(weight * fields, confidence * expected),
        "residual, without confidence": reward(fields, expected),
        "residual in H^-1": reward(
            smoothed(weight * fields, spec), smoothed(confidence * expected, spec)
        ),
        "residual in H^-1, without confidence": reward(
            smoothed(fields, spec), smoothed(expected, spec)
        ),
        "distance to the candidates' mean": reward(fields, fields.mean(1)),
    }


@torch.no_grad()
def rank_steps(sim: Simulator, u: Tensor, parameters: Tensor) -> dict[str, Any]:
    """Rank correlations of rewards with the true error, along rollouts with draws."""
    guided = proposals(sim)
    axes = sim.spec.space_axes
    correlations: dict[str, list[Tensor]] = {}
    errors, solve_errors = [], []
    z = sim.encode(u[:, 0])
    for k in range(1, u.shape[1]):
        candidates = guided.stepper.propose(z, parameters, CANDIDATES)
        fields = sim.decode(candidates.flatten(0, 1)).unflatten(0, candidates.shape[:2])
        expected, confidence = guided.predict(z, parameters)
        errors.append(relative_l2_squared(fields, u[:, k, None], axes).sqrt())
        solve_errors.append(relative_l2_squared(expected, u[:, k], axes).sqrt())
        for name, rewards in step_rewards(guided, fields, expected, confidence).items():
            correlations.setdefault(name, []).append(spearman(rewards, -errors[-1]))
        z = candidates[:, 1]  # a draw
    return {
        "spearman": {name: torch.cat(each).mean().item() for name, each in correlations.items()},
        **ratio(torch.cat(errors), torch.cat(solve_errors)),
    }


def ratio(errors: Tensor, solve_errors: Tensor) -> dict[str, float]:
    """The spread of errors (N, M) of candidates, over the errors (N,) of the reward's solve.

    Beside it the error of the best candidate in units of the mean one, which bounds the gain.
    """
    return {
        "spread / error of the solve": (errors.std(1).mean() / solve_errors.mean()).item(),
        "best / random": (errors.amin(1).mean() / errors.mean()).item(),
    }


@torch.no_grad()
def rank_forecasts(sim: Simulator, u: Tensor, parameters: Tensor) -> dict[str, Any]:
    """Rank correlations of rewards of whole forecasts, and the error of those that they choose.

    The rewards are minus the distances to the forecasts' mean and to forecasts of the solver, on
    the data's points and on half as many. Their costs are in calls of the former.
    """
    stepper: Any = proposals(sim, temperature=1.0).stepper
    steps = u.shape[1] - 1
    draws = [sim.predict(stepper, u[:, 0], steps, parameters) for _ in range(CANDIDATES)]
    fields = torch.stack(draws, 1)
    axes = sim.spec.space_axes

    def distances(target: Tensor) -> Tensor:
        return relative_l2_squared(fields, target[:, None], axes).sqrt().mean(-1)

    truth = u[:, 1:]
    errors = distances(truth)
    nrmses = {
        "a random one": errors.mean().item(),
        "their mean": nrmse(fields.mean(1), truth, sim.spec),
    }
    started = time.perf_counter()
    rewards = {"distance to their mean": -distance_to_mean(fields.movedim(1, 0), sim.spec).T}
    seconds = {"distance to their mean": time.perf_counter() - started}
    points = sim.spec.shape[0]
    for solver in coarse_solvers(sim.equation, sim.spec, (points // 2, points)):
        predict(solver, u[:, 0], 1, parameters)  # the first call compiles it
        started = time.perf_counter()
        solved = predict(solver, u[:, 0], steps, parameters)
        seconds[f"distance to {solver.name}'s"] = time.perf_counter() - started
        rewards[f"distance to {solver.name}'s"] = -distances(solved)
        nrmses[f"{solver.name}'s"] = nrmse(solved, truth, sim.spec)
    for name, reward in rewards.items():
        chosen = errors.gather(1, reward.argmax(1, keepdim=True))
        nrmses[f"the best by {name}"] = chosen.mean().item()
    call = seconds[f"distance to solver-{points}'s"]
    return {
        "spearman": {name: spearman(r, -errors).mean().item() for name, r in rewards.items()},
        "nrmse": nrmses,
        "calls of the solver": {name: each / call for name, each in seconds.items()},
        **ratio(errors, relative_l2_squared(solved, truth, axes).sqrt().mean(1)),
    }


@torch.no_grad()
def chosen(
    sim: Simulator,
    u0: Tensor,
    steps: int,
    parameters: Tensor,
    choose: Callable[[Tensor], Tensor],
) -> Tensor:
    """Rollouts (B, T, *space, C) with the candidates that ``choose`` picks by rewards (B, M)."""
    guided = proposals(sim)
    z = sim.encode(u0)
    frames = []
    for _ in range(steps):
        candidates = guided.stepper.propose(z, parameters, CANDIDATES)
        scores = guided.score(candidates, *guided.predict(z, parameters))
        z = candidates[torch.arange(len(z)), choose(scores)]
        frames.append(sim.decode(z))
    return torch.stack(frames, 1)


def at_random(scores: Tensor) -> Tensor:
    return torch.randint(scores.shape[1], scores.shape[:1])


def rollouts(sim: Simulator, u: Tensor, parameters: Tensor) -> dict[str, float]:
    """The nRMSE of rollouts in which each step is chosen or guided."""
    frames = u.shape[1] - 1
    moving = sim.moving_frame(u[:, 0])
    start = moving.enter(u[:, :1])
    has_corrector = "diffusion" in sim.correctors
    ways: dict[str, Any] = {"the operator alone": sim.stepper()}
    if has_corrector:
        ways["a draw, as by default"] = sim.stepper("diffusion")
        ways["the corrector's mean at every step"] = sim.stepper("diffusion", temperature=0.0)
    ways["a draw at temperature 1"] = proposals(sim, temperature=1.0).stepper
    preds = {}
    for name, stepper in ways.items():
        torch.manual_seed(1)
        preds[name] = predict(stepper, start[:, 0], frames, parameters)
    choices: dict[str, Callable[[Tensor], Tensor]] = {
        f"a random one of {CANDIDATES}": at_random,
        f"the best of {CANDIDATES}": partial(torch.argmax, dim=1),
    }
    for name, choose in choices.items():
        torch.manual_seed(1)
        preds[name] = chosen(sim, start[:, 0], frames, parameters, choose)
    corrector = "diffusion" if has_corrector else "none"
    first = "the mean" if has_corrector else "a draw"
    for name, candidates in {first: 1, f"the best of {CANDIDATES}": CANDIDATES}.items():
        torch.manual_seed(1)
        sim.ttc = TTC(num_candidates=candidates)
        stepper = sim.stepper(corrector, ttc=True, temperature=None if has_corrector else 1.0)
        preds[f"{name}, guided"] = predict(stepper, start[:, 0], frames, parameters)
    return {name: nrmse(moving.leave(pred), u[:, 1:], sim.spec) for name, pred in preds.items()}


def nrmse(pred: Tensor, target: Tensor, spec: FieldSpec) -> float:
    return relative_l2_squared(pred, target, spec.space_axes).sqrt().mean().item()


def over_runs(rows: list[Any]) -> Any:
    """Mean and spread of each number in dicts of dicts."""
    if isinstance(rows[0], dict):
        return {key: over_runs([row[key] for row in rows]) for key in rows[0]}
    return spread(rows)


def main(runs: list[str]) -> None:
    result: dict[str, Any] = {"candidates": CANDIDATES, "runs": {}}
    for run in runs:
        data = data_of(Path(run))
        sim = ups.load(run, data)
        u = data.values["test"][:TRAJECTORIES]
        parameters = data.parameters["test"][:TRAJECTORIES]
        torch.manual_seed(0)
        result["runs"][run] = {
            "steps": rank_steps(sim, sim.moving_frame(u[:, 0]).enter(u), parameters),
            "forecasts": rank_forecasts(sim, u, parameters),
            "rollouts": rollouts(sim, u, parameters),
        }
        print(run, result["runs"][run], flush=True)
    result |= over_runs(list(result["runs"].values()))
    is_burgers = sim.equation_name == "burgers"
    save("ranking" if is_burgers else f"ranking_{sim.equation_name}", result)


if __name__ == "__main__":
    main(sys.argv[1:])
