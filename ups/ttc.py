"""Test-time conditioning: at every step of a rollout candidates are scored by physics, the best is kept and guided by the equation.

Guidance takes a few gradient steps on the chosen tokens, down the equation's residual in physical space, as in posterior sampling with
diffusion models (Chung et al., ICLR 2023).
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
        tolerance: a trajectory whose best candidate scores at least -tolerance is not guided.
        guidance_steps: gradient steps down the residual, each as long as an exact line search says, times
        guidance_strength: in [0, 1].
        refine: how much finer than the training grid the equation is integrated.
        jump, reach: where its answer is trusted, see ``certainty`` of the equation's module.
        weights: of the terms of the reward, see ``reward``.
    """

    candidates: int = 1
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
    """One step of a rollout under test-time conditioning: tokens (B, N, C) -> tokens.

    Every ``alike`` states in a row are one field on several grids: they share the draws' noise and the choice among the candidates.
    ``temperature`` of the draws: the corrector's own where none is given.
    """

    def __init__(self, simulator: "Simulator", nu: Tensor, correct: str, temperature: float | None = None, alike: int = 1) -> None:
        self.simulator, self.nu, self.correct, self.settings = simulator, nu, correct, simulator.ttc
        self.physics, self.temperature, self.alike = simulator.physics, temperature, alike

    def __call__(self, z: Tensor) -> Tensor:
        s = self.settings
        candidates, scores, expected = self.expand(z)
        scores = scores.unflatten(0, (-1, self.alike)).mean(1).repeat_interleave(self.alike, 0)
        chosen = candidates[torch.arange(len(z)), scores.argmax(1)]
        rows = (scores.amax(1) < -s.tolerance).nonzero()[:, 0]
        if s.guidance_steps and len(rows):
            weight = self.physics.certainty(expected[rows], s.jump, s.reach)
            guided = self.simulator.towards(chosen[rows], expected[rows], s.guidance_steps, s.guidance_strength, weight)
            chosen = chosen.index_copy(0, rows, guided)
        return chosen

    def expand(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates (B, M, N, C) from states ``z`` (B, N, C), their rewards (B, M), and the fields (B, X) that the equation expects."""
        s = self.settings
        m = s.candidates if self.correct != "none" else 1
        candidates = self.simulator.advance(z, self.nu, self.correct, m, self.temperature, mean_first=True, alike=self.alike)
        u = self.simulator.decode(z)
        expected = self.physics.advance(u, self.simulator.dt, self.nu, self.simulator.length, s.refine)
        fields = self.simulator.decode(candidates.flatten(0, 1)).unflatten(0, (len(z), m))
        certainty = self.physics.certainty(expected, s.jump, s.reach)
        halves = self.simulator.decode(self.halves(z)) if s.weights.get("halving") else None
        return candidates, reward(self.physics, u, fields, expected, certainty, s.weights, halves), expected

    def halves(self, z: Tensor) -> Tensor:
        """Tokens two steps of half a dt on."""
        half = self.simulator.dt / 2
        return self.simulator.step(self.simulator.step(z, self.nu, half), self.nu, half)


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
