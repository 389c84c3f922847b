"""Does the physics reward of test-time conditioning rank candidates like the true error does, and what does choosing by it gain?

    python benchmarks/ranking.py RUN [RUN ...]       writes benchmarks/results/ranking.json; RUN: folders with all stages, one a seed

At every step of rollouts over the test set 16 candidates are drawn from the diffusion corrector, and each term of the reward is set
against the candidates' true error by Spearman's rank correlation, averaged over steps and trajectories. Then the same rollouts are made
with the best candidate by the reward, with a random one (the control), and with guidance.
"""

import dataclasses
import json
import statistics
import sys
from pathlib import Path

import torch
import yaml
from torch import Tensor

import ups
from ups.datamodules import BurgersDataModule
from ups.losses import relative_l2_squared
from ups.metrics import pdebench_metrics
from ups.provenance import hardware
from ups.rollout import Simulator
from ups.ttc import TERMS, TTC, Conditioner, reward

CANDIDATES = 16


def ranks(values: Tensor) -> Tensor:
    return values.argsort(-1).argsort(-1).double()


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Over the last dimension; ties are in the order that they come in."""
    a, b = (ranks(x) - (x.shape[-1] - 1) / 2 for x in (a, b))
    return (a * b).mean(-1) / a.square().mean(-1)


@torch.no_grad()
def correlations(sim: Simulator, u: Tensor, nu: Tensor) -> dict[str, float]:
    """Along rollouts with the diffusion corrector: the mean rank correlation of each term with the true error."""
    sim.ttc = TTC(candidates=CANDIDATES, guidance_steps=0)
    found: dict[str, list[Tensor]] = {term: [] for term in (*TERMS, "residual without certainty")}
    z = sim.encode(u[:, 0])
    for k in range(1, u.shape[1]):
        conditioner = Conditioner(sim, nu, "diffusion")
        candidates, _, expected = conditioner.expand(z, nu)
        fields = sim.decode(candidates.flatten(0, 1)).unflatten(0, candidates.shape[:2])
        error = relative_l2_squared(fields, u[:, k, None])
        certainty = conditioner.physics.certainty(expected, sim.ttc.jump, sim.ttc.reach)
        halves = sim.decode(conditioner.halves(z, nu))
        for name in found:
            weight, term = (torch.ones_like(certainty), "residual") if name not in TERMS else (certainty, name)
            score = reward(conditioner.physics, sim.decode(z), fields, expected, weight, {term: 1.0}, halves)
            found[name].append(spearman(score, -error))
        z = candidates[:, 0]
    return {term: torch.cat(values).mean().item() for term, values in found.items()}


def main(runs: list[str]) -> None:
    result: dict = {"hardware": hardware(), "candidates": CANDIDATES, "runs": {}}
    for run in runs:
        cfg = yaml.safe_load((Path(run) / "config.yaml").read_text())["data"]
        data = BurgersDataModule(**{key: value for key, value in cfg.items() if key != "_target_"})
        data.prepare_data()
        data.setup()
        sim = ups.load(run, data)
        u = data.values["test"]
        nu = torch.full((len(u),), data.nu)
        torch.manual_seed(0)
        row: dict = {"spearman": correlations(sim, u, nu)}
        base = TTC(candidates=CANDIDATES)
        ways = {
            "one draw": None,
            "a random one of 16": dataclasses.replace(base, weights={}, guidance_steps=0),  # all score alike: the first draw is taken
            "the best of 16": dataclasses.replace(base, guidance_steps=0),
            "one draw, guided": dataclasses.replace(base, candidates=1),
            "the best of 16, guided": base,
        }
        for name, settings in ways.items():
            torch.manual_seed(1)
            sim.ttc = settings or base
            pred = sim.rollout(u[:, 0], u.shape[1] - 1, nu=data.nu, correct="diffusion", ttc=settings is not None)
            row[name] = pdebench_metrics(pred, u[:, 1:])["nrmse"]
            print(run, name, row[name], flush=True)
        result["runs"][run] = row
    for key in next(iter(result["runs"].values())):
        values = [row[key]["residual"] if key == "spearman" else row[key] for row in result["runs"].values()]
        result[f"{key}, mean"] = statistics.mean(values)
        result[f"{key}, stdev"] = statistics.stdev(values) if len(values) > 1 else None
    print(json.dumps(result, indent=1))
    (Path(__file__).parent / "results" / "ranking.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
