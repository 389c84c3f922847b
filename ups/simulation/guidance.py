"""Test-time conditioning: score candidates by physics, keep the best one and guide it.

This happens at every step of a rollout, with the equation as the guide.

Guidance takes a few gradient steps on the chosen tokens, down the equation's residual in physical
space, as in posterior sampling with diffusion models (Chung et al., ICLR 2023).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.norms import relative_l2_squared
from ups.physics import Equation

TERMS = ("residual", "mass", "maximum", "variation", "energy", "halving")


@dataclass(frozen=True)
class TTC:
    """Settings of test-time conditioning; conf/ttc holds the same names.

    Args:
        candidates: number of candidates from each state, the corrector's mean and draws; 1 without
            a corrector, because its step has one outcome.
        tolerance: a trajectory whose best candidate scores at least -tolerance is not guided.
        guidance_steps: gradient steps down the residual; an exact line search sets their length.
        guidance_strength: factor on the length of each gradient step, in [0, 1].
        refine: how much finer than the training grid the equation is integrated.
        jump: see ``shock_weight`` of the equation's module; it says where the solver is trusted.
        reach: see ``shock_weight`` of the equation's module.
        weights: weight of each term of the reward, see ``score``.
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


class Guidable(Protocol):
    """What guidance needs from a simulator; see ``ups.simulation.simulator.Simulator``."""

    dt: float
    length: float
    ttc: TTC

    @property
    def physics(self) -> Equation: ...

    def step(self, z: Tensor, nu: Tensor, dt: float | None = None) -> Tensor: ...

    def decode(self, z: Tensor) -> Tensor: ...

    def sample_step(
        self,
        z: Tensor,
        nu: Tensor,
        correct: str = "none",
        draws: int = 1,
        temperature: float | None = None,
        mean_first: bool = False,
        alike: int = 1,
    ) -> Tensor: ...

    def project_to_field(
        self,
        z: Tensor,
        field: Tensor,
        steps: int,
        strength: float = 1.0,
        weight: Tensor | None = None,
    ) -> Tensor: ...


class GuidedStepper:
    """One step of a rollout under test-time conditioning: tokens (B, N, C) -> (B, N, C).

    Args:
        simulator: the simulator to step.
        nu: the equation's parameter (B,).
        correct: the name of a corrector, or "none".
        temperature: temperature of the draws; default: the corrector's own.
        alike: number of consecutive states that hold one field on several grids. They share the
            noise of the draws and the choice among the candidates.
    """

    def __init__(
        self,
        simulator: Guidable,
        nu: Tensor,
        correct: str,
        temperature: float | None = None,
        alike: int = 1,
    ) -> None:
        self.simulator, self.nu, self.correct, self.settings = simulator, nu, correct, simulator.ttc
        self.physics, self.temperature, self.alike = simulator.physics, temperature, alike

    def __call__(self, z: Tensor) -> Tensor:
        s = self.settings
        candidates, scores, expected = self.propose(z)
        scores = scores.unflatten(0, (-1, self.alike)).mean(1).repeat_interleave(self.alike, 0)
        chosen = candidates[torch.arange(len(z)), scores.argmax(1)]
        rows = (scores.amax(1) < -s.tolerance).nonzero()[:, 0]
        if s.guidance_steps and len(rows):
            weight = self.physics.shock_weight(expected[rows], s.jump, s.reach)
            guided = self.simulator.project_to_field(
                chosen[rows], expected[rows], s.guidance_steps, s.guidance_strength, weight
            )
            chosen = chosen.index_copy(0, rows, guided)
        return chosen

    def propose(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Propose candidates from states ``z`` (B, N, C).

        Returns:
            The candidates (B, M, N, C), their rewards (B, M), and the fields (B, X) that the
            equation predicts.
        """
        s = self.settings
        m = s.candidates if self.correct != "none" else 1
        candidates = self.simulator.sample_step(
            z, self.nu, self.correct, m, self.temperature, mean_first=True, alike=self.alike
        )
        u = self.simulator.decode(z)
        expected = self.physics.solver_step(
            u, self.simulator.dt, self.nu, self.simulator.length, s.refine
        )
        fields = self.simulator.decode(candidates.flatten(0, 1)).unflatten(0, (len(z), m))
        certainty = self.physics.shock_weight(expected, s.jump, s.reach)
        halves = self.simulator.decode(self.two_half_steps(z)) if s.weights.get("halving") else None
        return (
            candidates,
            score(self.physics, u, fields, expected, certainty, s.weights, halves),
            expected,
        )

    def two_half_steps(self, z: Tensor) -> Tensor:
        """Advance tokens (B, N, C) by two steps of dt/2."""
        half = self.simulator.dt / 2
        return self.simulator.step(self.simulator.step(z, self.nu, half), self.nu, half)


def score(
    physics: Equation,
    u: Tensor,
    candidates: Tensor,
    expected: Tensor,
    certainty: Tensor,
    weights: Mapping[str, float],
    halves: Tensor | None = None,
) -> Tensor:
    """The reward (B, M) of the step from ``u`` to each of the candidates.

    The reward is minus a weighted sum of errors, so it is at most 0. The terms are

    - residual: the squared distance from ``expected``, weighted by ``certainty``, relative to the
      mean square of the weighted ``expected``;
    - mass: the squared change of the mean, relative to the mean square of ``expected``;
    - maximum: the mean square of what exceeds the range of ``u``, relative to the same;
    - halving: the squared distance from ``halves``, relative to the same;
    - variation, energy: the growth of the total variation and of the energy, relative to their
      values in ``u``.

    Args:
        physics: the equation.
        u: the fields before the step (B, X).
        candidates: the fields after the step (B, M, X).
        expected: the fields that the equation, integrated over the step, predicts (B, X).
        certainty: how far ``expected`` can be trusted (B, X), from 0 to 1.
        weights: the weight of each term by name; a missing term counts as 0.
        halves: the fields after two steps of dt/2 (B, X); only the term "halving" needs them.
    """
    before = u[:, None]
    size = expected.square().mean(-1)[:, None].clamp_min(1e-12)
    beyond = (candidates - before.amax(-1, keepdim=True)).clamp_min(0) + (
        before.amin(-1, keepdim=True) - candidates
    ).clamp_min(0)
    terms = {
        "residual": lambda: relative_l2_squared(
            certainty[:, None] * candidates, (certainty * expected)[:, None]
        ),
        "mass": lambda: (physics.mass(candidates) - physics.mass(before)).square() / size,
        "maximum": lambda: beyond.square().mean(-1) / size,
        "variation": lambda: (
            physics.total_variation(candidates) / physics.total_variation(before).clamp_min(1e-12)
            - 1
        ).clamp_min(0),
        "energy": lambda: (
            physics.energy(candidates) / physics.energy(before).clamp_min(1e-12) - 1
        ).clamp_min(0),
        "halving": lambda: (candidates - halves[:, None]).square().mean(-1) / size,  # type: ignore[index]
    }
    total = torch.zeros_like(candidates[..., 0])
    for name, weight in weights.items():
        if weight:
            total = total - weight * terms[name]()
    return total
