"""Forecasts from scattered, noisy readings: the initial state that fits them, or draws of it.

The initial state is unknown. A priori its tokens are Gaussian, with the mean and the covariance of
the tokens of N ``background`` fields; readings are those of its rollout, with Gaussian errors. The
most probable tokens z = mean + sum_i a_i (z_i - mean) / sqrt(N - 1) have the weights a that
minimize

    |a|^2 / 2 + sum over readings of ((rollout from D(z)) - reading)^2 / (2 noise^2).

This is variational data assimilation in time, 4D-Var (Le Dimet and Talagrand, Tellus A 1986), with
the covariance of an ensemble (Liu, Xiao and Wang, Monthly Weather Review 2008), in latent space.
Draws are minima for readings to which errors are added once more and for a mean that is drawn from
the prior: randomized maximum likelihood (Kitanidis, Water Resources Research 1995). They are draws
of the posterior if the rollout is linear, otherwise nearly.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec
from ups.core.stepper import FIELDS_PER_DECODE
from ups.physics import Equation
from ups.simulation.arguments import validate_count
from ups.simulation.latent import LatentStepper
from ups.simulation.readings import Readings
from ups.simulation.resampling import resampling
from ups.simulation.symmetric_rollout import symmetric_rollout

USUAL_NOISE = 0.05  # of readings, in standard deviations of the field
NUM_BACKGROUND = 1000  # draws of an equation's initial conditions
HISTORY = 60  # steps that the search remembers; with 20 it needs more of them


class Surrogate(LatentStepper, Protocol):
    """What this needs of a ``Simulator``."""

    equation: Equation | None
    training_parameters: list[list[float]]

    @property
    def rollout(self) -> Callable[..., Tensor]: ...


@dataclass(frozen=True)
class Analysis:
    """The initial states that fit readings, and forecasts from them.

    Without ``num_draws`` the shapes that follow have no axis M.

    Attributes:
        tokens: tokens of the initial states (M, B, N, W), at time 0.
        misfit: root mean square (M, B) of prediction less reading, in units of the noise. It should
            be about 1. If it is far above, the search has stopped short, the rollout is not
            accurate enough, or no mixture of the background fields fits.
    """

    tokens: Tensor
    misfit: Tensor
    simulator: Surrogate
    parameters: Tensor
    readings: Readings

    def initial_fields(self) -> Tensor:
        """The initial states (M, B, *space, C) on the training grid."""
        return self._as_given(self._decoded())

    @torch.no_grad()
    def fields(self) -> Tensor:
        """The fields (M, B, R, *space, C) at the times of the readings, on the training grid."""
        u0 = self._decoded()
        frames = _frames_at(self.simulator, u0, self._parameters(), self.readings.steps)
        return self._as_given(torch.stack(list(frames), 1))

    def rollout(self, steps: int, **options: Any) -> Tensor:
        """A forecast: the fields (M, B, steps, *space, C) after the last reading.

        Args:
            steps: number of steps, at least 1.
            options: options of ``Simulator.rollout``, such as ``x_out``; the initial state, its
                places ``x`` and parameters are those of the analysis, and ``stride`` is 1.

        Raises:
            UpsError: an argument is out of its range.
        """
        validate_count(steps, "steps")
        if options.get("stride", 1) != 1:
            # frames are counted from the initial state
            raise UpsError(f"`stride` must be 1 in a forecast, got {options['stride']!r}.")
        for name in ("x", "nu", "parameters"):
            if options.get(name) is not None:
                raise UpsError(f"`{name}` must not be given: the analysis has its own.")
        options.pop("parameters", None)
        last = self.readings.steps[-1]
        names = self.simulator.spec.parameters
        values = dict(zip(names, self._parameters().unbind(-1), strict=True))
        u = self.simulator.rollout(self._decoded(), last + steps, parameters=values, **options)
        return self._as_given(u[:, last:])

    def _decoded(self) -> Tensor:
        """The initial states with all draws in one axis: (M * B, *space, C)."""
        with torch.no_grad():
            return self.simulator.decode(self.tokens.flatten(0, -3))

    def _parameters(self) -> Tensor:
        num_draws = self.tokens.shape[:-2].numel() // len(self.parameters)
        return self.parameters.repeat(num_draws, 1)

    def _as_given(self, u: Tensor) -> Tensor:
        """Fields (M * B, ...) with the axes of draws and channels that they should have."""
        u = u.unflatten(0, self.tokens.shape[:-2])
        return u if self.readings.has_channels else u.squeeze(-1)


def assimilate(
    simulator: Surrogate,
    readings: Readings,
    background: Tensor,
    parameters: Tensor,
    num_draws: int | None,
    iterations: int,
) -> Analysis:
    """Find the most probable initial tokens, or draws of them; see ``Simulator.assimilate``.

    Args:
        simulator: the forward map, on the device of the tensors.
        readings: the readings of B trajectories.
        background: fields (N, *space, C), N >= 2.
        parameters: parameters of the equation (B, P).
        num_draws: number of draws M; None for the most probable tokens.
        iterations: largest number of steps of a search.
    """
    with torch.no_grad():
        parts = background.split(FIELDS_PER_DECODE)
        known = torch.cat([simulator.encode(u, parameters[:1]) for u in parts])
    mean = known.mean(0)
    deviations = (known - mean).flatten(1) / math.sqrt(len(known) - 1)
    # one after the other: a search of several takes steps that suit all, and needs more of them
    found = [
        _fit(simulator, one, mean, deviations, values[None], num_draws, iterations)
        for one, values in zip(readings.trajectories(), parameters, strict=True)
    ]
    tokens = torch.cat([tokens for tokens, _ in found], -3)
    misfit = torch.cat([misfit for _, misfit in found], -1)
    if not bool(misfit.isfinite().all()):
        raise UpsError("the search has diverged; check the units of `readings` and `noise`.")
    return Analysis(tokens, misfit, simulator, parameters, readings)


def _fit(
    simulator: Surrogate,
    readings: Readings,
    mean: Tensor,
    deviations: Tensor,
    parameters: Tensor,
    num_draws: int | None,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """The tokens of one trajectory (1, N, W) or (M, 1, N, W), and the misfit (1,) or (M, 1).

    Args:
        simulator: see ``assimilate``, and likewise ``num_draws`` and ``iterations``.
        readings: readings of the trajectory.
        mean: the mean of the background's tokens (N, W).
        deviations: deviations from it, of which the prior's covariance is the sum of squares.
        parameters: parameters of the equation (1, P).
    """

    def tokens(weights: Tensor) -> Tensor:
        return mean + (weights @ deviations).unflatten(-1, mean.shape)

    def misfit(weights: Tensor) -> Tensor:
        z = tokens(weights)
        # Decoded and encoded again, tokens are ones that the encoder makes, and the rollout may use
        # the symmetries of fields.
        u0 = simulator.decode(z.flatten(0, -3))
        predicted = _predict(simulator, u0, parameters.expand(len(u0), -1), readings)
        return readings.misfit(predicted.unflatten(0, z.shape[:-2]))

    start = deviations.new_zeros(1, len(deviations))
    weights = _most_probable(misfit, start, start, 0.0, iterations)
    if num_draws is not None:
        start = weights.expand(num_draws, -1, -1)
        errors = torch.randn_like(readings.values.expand(num_draws, -1, -1, -1, -1))
        weights = _most_probable(misfit, start, torch.randn_like(start), errors, iterations)
    with torch.no_grad():
        squares = misfit(weights).square().sum((-3, -2, -1))
        count = (readings.weights > 0).sum((-3, -2, -1)).clamp_min(1)
        return tokens(weights), (squares / count).sqrt()


def _most_probable(
    misfit: Callable[[Tensor], Tensor],
    start: Tensor,
    center: Tensor,
    errors: Tensor | float,
    iterations: int,
) -> Tensor:
    """The weights (..., N) that minimize |a - center|^2 + |misfit(a) - errors|^2."""
    weights = start.detach().clone().requires_grad_()
    search = torch.optim.LBFGS(
        [weights], max_iter=iterations, history_size=HISTORY, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        total = (weights - center).square().sum() + (misfit(weights) - errors).square().sum()
        # of the weights alone: those of the model keep what they have
        (weights.grad,) = torch.autograd.grad(total / 2, weights)
        return total.detach() / 2

    search.step(loss)
    return weights.detach()


def _predict(simulator: Surrogate, u0: Tensor, parameters: Tensor, readings: Readings) -> Tensor:
    """What readings of the rollouts from ``u0`` (B, *space, C) would be: (B, R, P, C)."""
    positions = readings.positions
    frames = _frames_at(simulator, u0, parameters, readings.steps, positions.flatten(0, 1))
    seen = [
        u.unflatten(1, positions.shape[:2])[:, r % len(positions)] for r, u in enumerate(frames)
    ]
    return torch.stack(seen, 1)


def _frames_at(
    simulator: Surrogate,
    u0: Tensor,
    parameters: Tensor,
    steps: Sequence[int],
    positions: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yield the fields of a latent rollout at some steps, of which 0 is ``u0`` itself.

    Args:
        simulator: the forward map.
        u0: initial fields (B, *space, C).
        parameters: parameters of the equation (B, P).
        steps: the steps, increasing.
        positions: positions (Q, D), for values (B, Q, C) there; None for the training grid.
    """
    sampling = resampling(simulator.spec.domain, None, positions)
    u = sampling.to_grids(u0)
    stride = math.gcd(*steps) or 1
    frames = symmetric_rollout(
        simulator,
        u,
        steps[-1],
        parameters.repeat_interleave(sampling.num_grids, 0),
        spec=simulator.spec,
        equation=simulator.equation,
        trained=simulator.training_parameters,
        group_size=sampling.num_grids,
        frames_per_decode=max(1, FIELDS_PER_DECODE // len(u)),
        stride=stride,
    )
    for k, field in enumerate(chain([u], frames)):
        if k * stride in steps:
            yield sampling.from_grids(field)


def draw_background(equation: Equation | None, spec: FieldSpec) -> Tensor:
    """Initial conditions (N, *space, C) of the equation, to say what initial states look like.

    Raises:
        UpsError: there is no equation that has any.
    """
    if equation is None or not equation.initial_conditions:
        raise UpsError(
            "`background` must be fields that say what initial states look like: there is no "
            "equation to draw them from."
        )
    draw = next(iter(equation.initial_conditions.values()))
    return draw(NUM_BACKGROUND, spec.grid, 0)
