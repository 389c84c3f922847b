"""What equations of a scalar on a periodic line share.

The grid, PDEBench's random initial conditions, limited slopes, integrals, and ``scalar_equation``,
which makes an ``Equation`` of functions on (..., X).

Everything is dimensionless. Fields are (B, X) or (B, T, X) on a uniform periodic grid of X points.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.fields import Grid
from ups.core.gradients import needs_gradients, numbers, to_tensor
from ups.physics.equation import (
    TRANSLATE,
    Boost,
    Equation,
    Functional,
    Law,
    Symmetry,
    trusted_everywhere,
)
from ups.physics.limiters import van_leer_half_slopes
from ups.physics.solver_inputs import validate_positions, validate_times

Numbers = Sequence[float]


def cell_centers(points: int, length: float = 1.0) -> Tensor:
    """The cell centers (points,) of a uniform periodic grid on [0, length)."""
    return (torch.arange(points, dtype=torch.float64) + 0.5).mul(length / points).float()


def initial_conditions(
    n: int, x: Tensor, seed: int, length: float = 1.0, as_published: bool = True
) -> Tensor:
    """Draw PDEBench's random initial conditions.

    Each is a sum over the wave numbers k = 1..4 of a sin(2 pi k c x / L + phi). The count c says
    how often k occurs in two draws with replacement; a is uniform in [0, 1) and phi in [0, 2 pi).
    With probability 0.1 the absolute value is taken; the sign is flipped at random; with
    probability 0.1 the field is multiplied by a smooth window.

    The code that made PDEBench's published files (its ``init_multi``) differs from its paper in two
    places. A wave number that was not drawn has c = 0 and adds the constant a sin(phi), so that
    fields have a mean, of 0.475 in absolute value on average. And the ends of a window come from
    the random number that decided that there is one: they are 0.1 + 0.35 r and 0.55 + 0.35 r, with
    r uniform in [0, 0.1).

    Args:
        n: number of fields.
        x: positions (X,).
        seed: the same seed gives the same fields.
        length: the length of the periodic line.
        as_published: whether to follow the code of the published files. Otherwise, as in the paper,
            a wave number that was not drawn is absent, and each end has its own r, uniform in
            [0, 1).

    Returns:
        Fields (n, X), float32.
    """
    rng = np.random.default_rng(seed)
    position = validate_positions(x).numpy() / length
    k = np.arange(1, 5)
    count = (rng.integers(1, 5, size=(n, 2))[:, :, None] == k).sum(1)  # (n, 4)
    amplitude = rng.uniform(0, 1, (n, 4))
    phase = rng.uniform(0, 2 * np.pi, (n, 4))
    if not as_published:
        amplitude *= count > 0
    u = np.einsum(
        "nk,nkx->nx",
        amplitude,
        np.sin(2 * np.pi * (k * count)[:, :, None] * position + phase[:, :, None]),
    )
    u = np.where(rng.uniform(size=(n, 1)) < 0.1, np.abs(u), u)
    u *= rng.choice([-1.0, 1.0], size=(n, 1))
    left, right = rng.uniform(0.1, 0.45, (n, 1)), rng.uniform(0.55, 0.9, (n, 1))
    has_window = rng.uniform(size=(n, 1))
    if as_published:
        left, right = 0.1 + 0.35 * has_window, 0.55 + 0.35 * has_window
    window = 0.5 * (np.tanh((position - left) / 0.01) - np.tanh((position - right) / 0.01))
    u = np.where(has_window < 0.1, u * window, u)
    return torch.from_numpy(u).float()


def validate_solver_inputs(
    u0: object, t: object, nu: float | Tensor
) -> tuple[Tensor, list[float], float, float | Tensor]:
    """Check the arguments of a solver with one parameter for all fields, and convert them.

    Args:
        u0: fields (B, X), or (X,) for a single sample.
        t: times (T,).
        nu: the equation's parameter.

    Returns:
        Fields (B, X), times, the parameter, and the parameter once more with its gradient: a tensor
        () of float64 if it has one, otherwise the same number.

    Raises:
        UpsError: ``u0`` has another shape or type, the times do not increase from 0, or the
            parameter is not one number >= 0.
    """
    u0, times = validate_fields_and_times(u0, t)
    value = numbers(nu, "nu", torch.float64)
    number = value.item() if value.numel() == 1 else math.nan
    if not 0 <= number < math.inf:
        raise UpsError(f"`nu` must be one finite number >= 0, got {nu}.")
    if not needs_gradients(nu):
        return u0, times, number, number
    return u0, times, number, to_tensor(nu, torch.float64, u0.device).reshape(())


def validate_fields_and_times(u0: object, t: object) -> tuple[Tensor, list[float]]:
    """Check the fields (B, X), or (X,), and the times (T,) of a solver, and convert them.

    Returns:
        Fields (B, X) and times.

    Raises:
        UpsError: ``u0`` has another shape or type, or the times do not increase from 0.
    """
    u0 = numbers(u0, "u0")
    u0 = u0[None] if u0.ndim == 1 else u0
    if u0.ndim != 2 or u0.shape[1] < 1 or not u0.is_floating_point():
        raise UpsError(
            f"`u0` must be real fields of shape (B, X) or (X,), got {u0.dtype} of shape "
            f"{tuple(u0.shape)}."
        )
    return u0, validate_times(t)


def mass(u: Tensor, length: float = 1.0) -> Tensor:
    """The integral of u over the domain: (..., X) -> (...)."""
    return u.mean(-1) * length


def energy(u: Tensor, length: float = 1.0) -> Tensor:
    """Half the integral of u^2: (..., X) -> (...)."""
    return u.square().mean(-1) * (length / 2)


def total_variation(u: Tensor) -> Tensor:
    """The sum of |u_{i+1} - u_i| around the domain: (..., X) -> (...)."""
    return (u.roll(-1, -1) - u).abs().sum(-1)


def cell_averages(u: Tensor, factor: int) -> Tensor:
    """The averages (..., X / factor) over cells of ``factor`` points of a field (..., X)."""
    return u.unflatten(-1, (-1, factor)).mean(-1)


def limited_linear_reconstruction(u: Tensor, factor: int) -> Tensor:
    """Reconstruct a finer grid from cell averages, with a line in each cell.

    It keeps the averages; the slope of a line is van Leer's limited one. Of the mass-conserving
    ways that were tested to go down to a coarse grid and back, averages and these lines have the
    smallest error.

    Args:
        u: cell averages (..., X).
        factor: how much finer the grid becomes.

    Returns:
        Values (..., X * factor).
    """
    if factor == 1:
        return u
    left = u - u.roll(1, -1)
    right = u.roll(-1, -1) - u
    slope = 2 * van_leer_half_slopes(left, right)  # its gradient is finite at extrema, too
    inside = (torch.arange(factor, device=u.device) + 0.5) / factor - 0.5
    return torch.addcmul(u[..., None], slope[..., None], inside).flatten(-2)


def scalar_equation(
    name: str,
    title: str,
    parameter: str,
    *,
    solve: Callable[..., Tensor] | None = None,
    draw: Callable[..., Tensor] | None = None,
    solver_step: Callable[..., Tensor] | None = None,
    shock_weight: Callable[..., Tensor] | None = None,
    reflect: Callable[[Tensor], Tensor] | None = None,
    rescale_time: Callable[[Tensor, Tensor], Tensor] | None = None,
    boost: Boost | None = None,
    laws: Mapping[str, Law] | None = None,
    has_maximum_principle: bool = False,
) -> Equation:
    """Make the equation of a scalar u on a periodic line from functions of (..., X).

    It is the same after a shift. Everything else that is not given is not assumed.

    Args:
        name: see ``Equation``.
        title: see ``Equation``.
        parameter: the name of its one parameter.
        solve: (u0, t, nu, length, dtype) -> (B, T, X).
        draw: initial conditions, (n, x, seed, length) -> (n, X); None for PDEBench's.
        solver_step: (u, dt, nu, length, refinement_factor) -> (B, X).
        shock_weight: (u, threshold, radius) -> (B, X).
        reflect: x -> -x, as a map of values (..., X) -> (..., X) at the same points.
        rescale_time: the field of a solution that runs a times as fast: (..., X), a -> (..., X). It
            must have a times the parameter.
        boost: see ``Equation``.
        laws: what "mass", "tv" (the total variation) and "energy" do. Models keep the mean of the
            field if mass is conserved.
        has_maximum_principle: see ``Equation``.
    """

    return Equation(
        name=name,
        title=title,
        channels=("u",),
        parameters=(parameter,),
        num_dims=1,
        initial_conditions=_initial_conditions(draw),
        solve=None if solve is None else partial(_solve_field, solve),
        restrict=lambda u, factor: cell_averages(u[..., 0], factor)[..., None],
        prolong=lambda u, factor: limited_linear_reconstruction(u[..., 0], factor)[..., None],
        solver_step=None if solver_step is None else partial(_step_field, solver_step),
        symmetries=_symmetries(reflect, rescale_time),
        boost=boost,
        functionals=_functionals(laws or {}),
        has_maximum_principle=has_maximum_principle,
        solver_confidence=trusted_everywhere
        if shock_weight is None
        else partial(_confidence, shock_weight),
    )


def _initial_conditions(
    draw: Callable[..., Tensor] | None,
) -> dict[str, Callable[[int, Grid, int], Tensor]]:
    def drawn(n: int, grid: Grid, seed: int, function: Callable[..., Tensor]) -> Tensor:
        return function(n, grid.axis(0), seed, grid.extent[0])[..., None]

    if draw is not None:
        return {"default": partial(drawn, function=draw)}
    paper = partial(initial_conditions, as_published=False)
    return {
        "published": partial(drawn, function=initial_conditions),
        "paper": partial(drawn, function=paper),
    }


def _solve_field(
    solve: Callable[..., Tensor],
    u0: Tensor,
    times: Numbers,
    parameters: Numbers,
    grid: Grid,
    dtype: torch.dtype,
) -> Tensor:
    (nu,) = parameters
    return solve(u0[..., 0], times, nu, grid.extent[0], dtype)[..., None]


def _step_field(
    solver_step: Callable[..., Tensor],
    u: Tensor,
    dt: float,
    parameters: Tensor,
    grid: Grid,
    refinement_factor: int,
) -> Tensor:
    nu = parameters[:, 0]
    return solver_step(u[..., 0], dt, nu, grid.extent[0], refinement_factor)[..., None]


def _confidence(
    shock_weight: Callable[..., Tensor], u: Tensor, grid: Grid, threshold: float, radius: int
) -> Tensor:
    return shock_weight(u[..., 0], threshold, radius)[..., None]


def _symmetries(
    reflect: Callable[[Tensor], Tensor] | None,
    rescale_time: Callable[[Tensor, Tensor], Tensor] | None,
) -> tuple[Symmetry, ...]:
    found = [TRANSLATE]
    if reflect is not None:
        found.append(Symmetry("reflect", partial(_reflect_field, reflect)))
    if rescale_time is not None:
        fields = partial(_rescale_field, rescale_time)
        found.append(Symmetry("rescale_time", fields, lambda nu, factor: nu * factor[:, None]))
    return tuple(found)


def _reflect_field(
    reflect: Callable[[Tensor], Tensor], u: Tensor, amount: Tensor, grid: Grid
) -> Tensor:
    return reflect(u[..., 0])[..., None]


def _rescale_field(
    rescale_time: Callable[[Tensor, Tensor], Tensor], u: Tensor, factor: Tensor, grid: Grid
) -> Tensor:
    return rescale_time(u, factor.to(u.dtype).reshape(-1, *(1 for _ in u.shape[1:])))


def _functionals(laws: Mapping[str, Law]) -> tuple[Functional, ...]:
    """The functionals that have a law.

    Raises:
        UpsError: a law is of another functional.
    """
    known: dict[str, tuple[Callable[[Tensor, Grid], Tensor], int]] = {
        "mass": (lambda u, grid: mass(u[..., 0], grid.extent[0]), 1),
        "tv": (lambda u, grid: total_variation(u[..., 0]), 1),
        "energy": (lambda u, grid: energy(u[..., 0], grid.extent[0]), 2),
    }
    if unknown := laws.keys() - known:
        raise UpsError(f"`laws` must be of {', '.join(known)}, got {', '.join(sorted(unknown))}.")
    return tuple(
        Functional(name, compute, laws[name], degree)
        for name, (compute, degree) in known.items()
        if name in laws
    )
