"""Does the physics reward rank candidates as the true error does, and what does it gain?

    python benchmarks/ranking.py RUN [RUN ...]

It writes benchmarks/results/ranking.json. RUN: folders with all stages, one for each seed.

At every step of rollouts of 16 test trajectories there are 16 candidates of the diffusion
corrector, its mean and 15 draws, and the reward is compared with the candidates' true error by
Spearman's rank correlation, averaged over steps and trajectories. Then the same rollouts
are made with the best candidate by the reward, with a random one (the control), and with guidance;
and, beside a draw, with the corrector's mean at every step and as the mean of eight drawn rollouts.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from runs import data_of, save, spread
from torch import Tensor

import ups
from ups.core.norms import relative_l2_squared
from ups.evaluation.metrics import pdebench_metrics
from ups.simulation.corrected import Corrected
from ups.simulation.guidance import TTC, Guided
from ups.simulation.simulator import Simulator

CANDIDATES, ENSEMBLE, TRAJECTORIES = 16, 8, 16


def ranks(values: Tensor) -> Tensor:
    return values.argsort(-1).argsort(-1).double()


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Over the last dimension; ties are in the order that they come in."""
    a, b = (ranks(x) - (x.shape[-1] - 1) / 2 for x in (a, b))
    return (a * b).mean(-1) / a.square().mean(-1)


def proposals(sim: Simulator) -> Guided:
    """The guided stepper that proposes candidates, without guiding them."""
    settings = TTC(num_candidates=CANDIDATES, guidance_steps=0)
    assert sim.equation is not None
    corrector: Any = sim.correctors["diffusion"]
    corrected = Corrected(sim, corrector)
    return Guided(corrected, sim.equation, settings)


@torch.no_grad()
def correlations(sim: Simulator, u: Tensor, parameters: Tensor) -> dict[str, float]:
    """Mean rank correlation of the reward with the true error, along rollouts with draws."""
    guided = proposals(sim)
    found: dict[str, list[Tensor]] = {"residual": [], "residual without certainty": []}
    z = sim.encode(u[:, 0])
    for k in range(1, u.shape[1]):
        candidates = guided.stepper.propose(z, parameters, CANDIDATES)
        expected, confidence = guided.predict(z, parameters)
        fields = sim.decode(candidates.flatten(0, 1)).unflatten(0, candidates.shape[:2])
        error = relative_l2_squared(fields, u[:, k, None], sim.spec.space_axes)
        for name, weight in zip(found, (confidence, torch.ones_like(confidence)), strict=True):
            rewards = guided.score(candidates, expected, weight)
            found[name].append(spearman(rewards, -error))
        z = candidates[:, 1]  # a draw
    return {term: torch.cat(values).mean().item() for term, values in found.items()}


@torch.no_grad()
def chosen(
    sim: Simulator, u: Tensor, parameters: Tensor, choose: Callable[[Tensor], Tensor]
) -> Tensor:
    """Rollouts (B, T, X, 1) that take the candidates that ``choose`` picks by rewards (B, M)."""
    guided = proposals(sim)
    z = sim.encode(u[:, 0])
    frames = []
    for _ in range(u.shape[1] - 1):
        candidates = guided.stepper.propose(z, parameters, CANDIDATES)
        scores = guided.score(candidates, *guided.predict(z, parameters))
        z = candidates[torch.arange(len(z)), choose(scores)]
        frames.append(sim.decode(z))
    return torch.stack(frames, 1)


def at_random(scores: Tensor) -> Tensor:
    return torch.randint(scores.shape[1], scores.shape[:1])


def main(runs: list[str]) -> None:
    result: dict = {"candidates": CANDIDATES, "runs": {}}
    for run in runs:
        data = data_of(Path(run))
        sim = ups.load(run, data)
        u = data.values["test"][:TRAJECTORIES]
        frame = sim.moving_frame(u[:, 0])
        seen = frame.enter(u)
        parameters = data.parameters["test"][:TRAJECTORIES]
        nu = data.training_parameters[0][0]
        torch.manual_seed(0)
        row: dict = {"spearman": correlations(sim, seen, parameters)}

        def rolled(sim: Simulator = sim, u: Tensor = u, nu: float = nu, **how: Any) -> Tensor:
            return sim.rollout(u[:, 0], u.shape[1] - 1, nu=nu, **{"correct": "diffusion", **how})

        preds = {"the operator alone": rolled(correct="none")}
        torch.manual_seed(1)
        draws = [rolled(temperature=1.0) for _ in range(ENSEMBLE)]
        preds |= {
            "a draw at temperature 1": draws[0],
            f"the mean of {ENSEMBLE} such": torch.stack(draws).mean(0),
        }
        preds |= {
            "a draw, as by default": rolled(),
            "the corrector's mean at every step": rolled(temperature=0.0),
        }
        choices: dict[str, Callable[[Tensor], Tensor]] = {
            "a random one of 16": at_random,
            "the best of 16": partial(torch.argmax, dim=1),
        }
        for name, choose in choices.items():
            torch.manual_seed(1)
            preds[name] = frame.leave(chosen(sim, seen, parameters, choose))
        for name, candidates in {
            "the mean, guided": 1,
            "the best of 16, guided": CANDIDATES,
        }.items():
            torch.manual_seed(1)
            sim.ttc = TTC(num_candidates=candidates)
            preds[name] = rolled(ttc=True)
        for name, pred in preds.items():
            row[name] = pdebench_metrics(pred[..., 0], u[:, 1:, :, 0])["nrmse"]
            print(run, name, row[name], flush=True)
        result["runs"][run] = row
    for key in next(iter(result["runs"].values())):
        rows = [row[key] for row in result["runs"].values()]
        result[key] = (
            {term: spread([row[term] for row in rows]) for term in rows[0]}
            if key == "spearman"
            else spread(rows)
        )
        print(key, result[key])
    save("ranking", result)


if __name__ == "__main__":
    main(sys.argv[1:])
