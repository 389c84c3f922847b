"""The scaling symmetry at work: a parameter above the training range, solved as a slower solution.

If u(x, t) is a solution at a parameter p and the equation can be rescaled in time, then its
rescaled field m u(x, m t) (Burgers) is one at m p. A rollout at m p is therefore one at p that
takes m steps instead of each. Only whole factors m end on the frames that were asked for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ups.core.fields import Grid, PointCloud
from ups.physics.equation import Equation

LARGEST_FACTOR = 8  # so many times as many steps
TOLERANCE = 1e-3  # of a parameter, relative to the training range


def is_trained(parameters: Tensor, trained: Sequence[Sequence[float]]) -> Tensor:
    """Whether parameters (B, P) lie within the range of the ``trained`` ones (N, P): (B, P).

    All do if none are known.
    """
    if not trained:
        return torch.ones_like(parameters, dtype=torch.bool)
    known = parameters.new_tensor(trained)
    low, high = (1 - TOLERANCE) * known.amin(0), (1 + TOLERANCE) * known.amax(0)
    return (low <= parameters) & (parameters <= high)


def time_factors(
    equation: Equation | None,
    domain: Grid | PointCloud,
    parameters: Tensor,
    trained: Sequence[Sequence[float]],
) -> Tensor:
    """The smallest factors (B,) that bring parameters (B, P) into the range of the trained ones.

    A factor is 1 where none does, and if the equation is unknown, can't be rescaled or is not
    solved on a grid.
    """
    parameters = parameters.detach()
    factors = torch.ones(len(parameters), dtype=torch.long, device=parameters.device)
    symmetry = equation.symmetry("rescale_time") if equation else None
    is_open = ~is_trained(parameters, trained).all(1)
    if symmetry is None or not isinstance(domain, Grid) or not is_open.any():
        return factors
    for factor in range(2, LARGEST_FACTOR + 1):
        slower = symmetry.parameters(parameters, torch.full_like(parameters[:, 0], 1 / factor))
        fits = is_open & is_trained(slower, trained).all(1)
        factors[fits] = factor
        is_open &= ~fits
    return factors


def rescale(
    equation: Equation | None,
    grid: Grid | PointCloud,
    u: Tensor,
    parameters: Tensor,
    factors: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fields (B, *space, C) and parameters (B, P) of solutions ``factors`` (B,) times as fast."""
    symmetry = equation.symmetry("rescale_time") if equation else None
    if symmetry is None or not isinstance(grid, Grid) or bool((factors == 1).all()):
        return u, parameters
    return (
        symmetry.fields(u[:, None], factors, grid)[:, 0],
        symmetry.parameters(parameters, factors),
    )
