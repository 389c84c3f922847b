"""What trajectories without an equation show of its laws."""

import numpy as np

from ups.core.fields import Grid

# of a mean that counts as conserved, in standard deviations of the data
LARGEST_MEAN_DRIFT = 1e-3
# of the variance over space of fields that are the same everywhere, in units of that which chance
# gives: if only two waves are large, more than 10 has a probability of exp(-10)
LARGEST_PATTERN = 10.0
MIN_TRAJECTORIES = 8  # fewer tell nothing
TINY = 1e-12  # of a variance: rounding


def conserves_mean(values: np.ndarray, std: np.ndarray) -> bool:
    """Whether the means of trajectories (N, T, *space, C) stay within ``LARGEST_MEAN_DRIFT``."""
    means = values.mean(tuple(range(2, values.ndim - 1)), dtype=np.float64)
    return bool((np.abs(means - means[:, :1]) <= LARGEST_MEAN_DRIFT * std).all())


def is_homogeneous(values: np.ndarray, grid: Grid) -> bool:
    """Whether trajectories (N, T, *space, C) look the same at all points of a periodic grid.

    Mean and mean square over time must not differ from place to place by more than those of as many
    independent trajectories do: their variance over space is compared with the variance over
    trajectories, divided by N.
    """
    if not grid.is_periodic:
        return False
    number, frames = values.shape[:2]
    if number < MIN_TRAJECTORIES:
        return True
    space = tuple(range(1, 1 + grid.num_dims))
    for moment in (
        values.mean(1, dtype=np.float64),
        np.einsum("nt...,nt...->n...", values, values, dtype=np.float64) / frames,
    ):
        pattern = moment - moment.mean(space, keepdims=True)
        over_space = pattern.mean(0, keepdims=True).var(space)
        by_chance = pattern.var(0, ddof=1, keepdims=True).mean(space) / number
        if (over_space > LARGEST_PATTERN * by_chance + TINY * moment.var()).any():
            return False
    return True
