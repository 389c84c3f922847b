"""Test-time conditioning: at every step of a rollout candidates are scored by physics, the best is kept and guided by the equation.

Choosing among candidates is a beam search with a receding horizon. Guidance takes a few gradient steps on the chosen tokens, down the
equation's residual in physical space, as in posterior sampling with diffusion models (Chung et al., ICLR 2023).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ups.errors import UpsError
from ups.losses import relative_l2_squared
from ups.physics import Equation

if TYPE_CHECKING:
    from ups.rollout import Simulator

TERMS = ("residual", "mass", "maximum", "variation", "energy", "halving")


@dataclass(frozen=True)
class TTC:
    """Settings of test-time conditioning; conf/ttc holds the same names.

    Args:
        candidates: from each state, the corrector's mean and draws; 1 without a corrector, whose step has one outcome.
        beam: states kept at each depth of the search.
        horizon: steps that the search looks ahead before it commits itself to one; 1 scores the candidates alone.
        evaluations: rewards computed a step and trajectory at most; the search goes no deeper than they allow.
        tolerance: a trajectory whose best candidate scores above -tolerance is searched no further and not guided.
        guidance_steps: gradient steps down the residual, each as long as an exact line search says, times
        guidance_strength: in [0, 1].
        refine: how much finer than the training grid the equation is integrated.
        jump, reach: where its answer is trusted, see ``certainty`` of the equation's module.
        weights: of the terms of the reward, see ``reward``.
    """

    candidates: int = 1
    beam: int = 5
    horizon: int = 1
    evaluations: int = 200
    tolerance: float = 0.0
    guidance_steps: int = 8
    guidance_strength: float = 1.0
    refine: int = 2
    jump: float = 0.03
    reach: int = 3
    weights: Mapping[str, float] = field(default_factory=lambda: {"residual": 1.0})

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(TERMS))
        if unknown:
            raise UpsError(f"ttc.weights.{unknown[0]}: allowed are {', '.join(TERMS)}")


class Conditioner:
    """One step of a rollout under test-time conditioning: tokens (B, N, C) -> tokens."""

    def __init__(self, simulator: "Simulator", nu: Tensor, correct: str) -> None:
        self.simulator, self.nu, self.correct, self.settings = simulator, nu, correct, simulator.ttc
        self.physics = simulator.physics

    def __call__(self, z: Tensor) -> Tensor:
        s = self.settings
        candidates, scores, expected = self.expand(z, self.nu)
        rows = (scores.amax(1) < -s.tolerance).nonzero()[:, 0]  # those that are not good enough yet
        if s.horizon > 1 and candidates.shape[1] > 1 and len(rows):
            scores = scores.index_copy(0, rows, self.look_ahead(candidates[rows], scores[rows], self.nu[rows]))
        chosen = candidates[torch.arange(len(z)), scores.argmax(1)]
        if s.guidance_steps and len(rows):
            weight = self.physics.certainty(expected[rows], s.jump, s.reach)
            guided = self.simulator.towards(chosen[rows], expected[rows], s.guidance_steps, s.guidance_strength, weight)
            chosen = chosen.index_copy(0, rows, guided)
        return chosen

    def expand(self, z: Tensor, nu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates (B, M, N, C) from states ``z`` (B, N, C), their rewards (B, M), and the fields (B, X) that the equation expects."""
        m = self.settings.candidates if self.correct != "none" else 1
        candidates = self.simulator.advance(z, nu, self.correct, draws=m, mean_first=True)
        u = self.simulator.decode(z)
        expected = self.physics.advance(u, self.simulator.dt, nu, self.simulator.length, self.settings.refine)
        fields = self.simulator.decode(candidates.flatten(0, 1)).unflatten(0, (len(z), m))
        certainty = self.physics.certainty(expected, self.settings.jump, self.settings.reach)
        halves = self.simulator.decode(self.halves(z, nu)) if self.settings.weights.get("halving") else None
        return candidates, reward(self.physics, u, fields, expected, certainty, self.settings.weights, halves), expected

    def halves(self, z: Tensor, nu: Tensor) -> Tensor:
        half = self.simulator.dt / 2
        return self.simulator.step(self.simulator.step(z, nu, half), nu, half)

    def look_ahead(self, candidates: Tensor, scores: Tensor, nu: Tensor) -> Tensor:
        """The best sum of rewards (B, M) that each first candidate reaches within the horizon; -inf where the beam has dropped it."""
        s = self.settings
        b, m = scores.shape
        spent, total, states = m, scores, candidates
        first = torch.arange(m, device=scores.device).expand(b, m)  # which first candidate a state comes from
        for _ in range(s.horizon - 1):
            kept = total.topk(min(s.beam, total.shape[1]), 1).indices
            width = kept.shape[1]
            if spent + width * m > s.evaluations:
                break
            spent += width * m
            states = states.gather(1, kept[..., None, None].expand(-1, -1, *states.shape[2:])).flatten(0, 1)
            states, more, _ = self.expand(states, nu.repeat_interleave(width))
            total = (total.gather(1, kept)[..., None] + more.unflatten(0, (b, width))).flatten(1)
            states = states.unflatten(0, (b, width)).flatten(1, 2)
            first = first.gather(1, kept)[..., None].expand(-1, -1, m).flatten(1)
        return torch.full_like(scores, -torch.inf).scatter_reduce(1, first, total, "amax")


def reward(
    physics: Equation,
    u: Tensor,
    candidates: Tensor,
    expected: Tensor,
    certainty: Tensor,
    weights: Mapping[str, float],
    halves: Tensor | None = None,
) -> Tensor:
    """Minus the weighted sum of what is wrong with the step from ``u`` (B, X) to each of ``candidates`` (B, M, X): (B, M), at most 0.

    residual: the squared distance from ``expected`` (B, X), where the equation, integrated over the step, leads, weighted by its
    ``certainty`` (B, X); mass: of the change of the mean; maximum: of what lies beyond the range of ``u``; halving: of the distance from
    ``halves`` (B, X), two steps of dt/2; each relative to the mean square of ``expected``. variation, energy: by how much each grew,
    relative to that of ``u``.
    """
    before = u[:, None]
    size = expected.square().mean(-1)[:, None].clamp_min(1e-12)
    beyond = (candidates - before.amax(-1, keepdim=True)).clamp_min(0) + (before.amin(-1, keepdim=True) - candidates).clamp_min(0)
    terms = {
        "residual": lambda: relative_l2_squared(certainty[:, None] * candidates, (certainty * expected)[:, None]),
        "mass": lambda: (physics.mass(candidates) - physics.mass(before)).square() / size,
        "maximum": lambda: beyond.square().mean(-1) / size,
        "variation": lambda: (physics.total_variation(candidates) / physics.total_variation(before).clamp_min(1e-12) - 1).clamp_min(0),
        "energy": lambda: (physics.energy(candidates) / physics.energy(before).clamp_min(1e-12) - 1).clamp_min(0),
        "halving": lambda: (candidates - halves[:, None]).square().mean(-1) / size,  # type: ignore[index]
    }
    total = torch.zeros_like(candidates[..., 0])
    for name, weight in weights.items():
        if weight:
            total = total - weight * terms[name]()
    return total
