"""Test-time conditioning: score candidates by physics, keep the best one and guide it.

This happens at every step of a rollout, with the equation as the guide.

Guidance takes a few gradient steps on the chosen tokens, down the equation's residual in physical
space, as in posterior sampling with diffusion models (Chung et al., ICLR 2023).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.norms import relative_l2_squared
from ups.core.schema import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from ups.physics import Equation
from ups.simulation.latent import LatentStepper, Wrapped, project_to_field


@dataclass(frozen=True)
class TTC:
    """Settings of test-time conditioning; conf/ttc holds the same names.

    Args:
        num_candidates: number of candidates from each state: the corrector's mean and draws, or
            draws of an operator with noise; one if neither draws.
        score_threshold: a trajectory whose best candidate scores at least -score_threshold is not
            guided.
        guidance_steps: gradient steps down the residual; an exact line search sets their length.
        guidance_strength: factor on the length of each gradient step, in [0, 1].
        refinement_factor: how much finer than the training grid the equation is integrated.
        shock_threshold: see ``solver_confidence`` of the equation; it says where the solver is
            trusted.
        shock_radius: see ``solver_confidence`` of the equation.
    """

    num_candidates: PositiveInt = 1
    score_threshold: NonNegativeFloat = 0.0
    guidance_steps: NonNegativeInt = 8
    guidance_strength: Fraction = 1.0
    refinement_factor: PositiveInt = 2
    shock_threshold: PositiveFloat = 0.03
    shock_radius: NonNegativeInt = 3


def lack_of_guide(equation: Equation | None) -> str | None:
    """Why ``equation`` can't guide a rollout, in words; None if it can."""
    if equation is None:
        return "these data have no equation to condition on"
    if equation.solver_step is None:
        return f"the equation {equation.name} has no solver_step to condition on"
    return None


class Guided(Wrapped):
    """A stepper that keeps the best candidate of another one, and guides it by the equation.

    Args:
        stepper: proposes candidates.
        equation: scores and guides them.
        settings: how.
        group_size: number of consecutive states that hold one field on several grids. They share
            the choice among the candidates.

    Raises:
        UpsError: there is no equation, or it has no ``solver_step``.
    """

    def __init__(
        self, stepper: LatentStepper, equation: Equation | None, settings: TTC, group_size: int = 1
    ) -> None:
        if equation is None or equation.solver_step is None:
            raise UpsError(f"`ttc` must be False: {lack_of_guide(equation)}.")
        super().__init__(stepper)
        self.solver_step = equation.solver_step
        self.solver_confidence = equation.solver_confidence
        self.settings = settings
        self.group_size = group_size

    def step(self, state: Tensor, parameters: Tensor) -> Tensor:
        s = self.settings
        expected, confidence = self.predict(state, parameters)
        candidates = self.stepper.propose(state, parameters, s.num_candidates)
        scores = self.score(candidates, expected, confidence)
        shared = scores.unflatten(0, (-1, self.group_size)).mean(1)
        shared = shared.repeat_interleave(self.group_size, 0)
        chosen = candidates[torch.arange(len(state)), shared.argmax(1)]
        rows = (shared.amax(1) < -s.score_threshold).nonzero()[:, 0]
        if not (s.guidance_steps and len(rows)):
            return chosen
        guided = project_to_field(
            self.stepper,
            chosen[rows],
            expected[rows],
            s.guidance_steps,
            s.guidance_strength,
            confidence[rows],
        )
        return chosen.index_copy(0, rows, guided)

    def predict(self, state: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Integrate the equation over one step.

        Returns:
            The fields (B, *space, C) that it leads to, and how far they can be trusted
            (B, *space, 1), from 0 to 1.
        """
        s = self.settings
        spec = self.stepper.spec
        expected = self.solver_step(
            self.stepper.decode(state), spec.dt, parameters, spec.grid, s.refinement_factor
        )
        confidence = self.solver_confidence(expected, spec.grid, s.shock_threshold, s.shock_radius)
        return expected, confidence

    def score(self, candidates: Tensor, expected: Tensor, confidence: Tensor) -> Tensor:
        """The reward (B, M) of candidates (B, M, N, W).

        It is minus the squared distance of their fields from ``expected``, weighted by
        ``confidence`` and relative to the weighted ``expected``, so it is at most 0.
        """
        fields = self.stepper.decode(candidates.flatten(0, 1)).unflatten(0, candidates.shape[:2])
        weight = confidence[:, None]
        target = weight * expected[:, None]
        return -relative_l2_squared(weight * fields, target, self.stepper.spec.space_axes)
