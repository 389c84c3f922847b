"""Scores of ensembles: are draws as uncertain as they are wrong, and how close are they?

An ensemble is M >= 2 draws ``samples`` (M, ...) of what ``target`` (...) is one draw of. It is
calibrated if the target looks like another draw.

The scores are fair: their expectation does not depend on the number of draws, so that ensembles of
different sizes can be compared. torchmetrics' ``ContinuousRankedProbabilityScore`` is not used
because it is not: it is that of the M draws as a distribution, which improves as M grows, and it
holds all M^2 differences.
"""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, PointCloud
from ups.core.gradients import numbers
from ups.core.norms import negligible_size

COVERAGE_LEVEL = 0.9


def fair_crps(samples: Tensor, target: Tensor) -> Tensor:
    """The fair continuous ranked probability score of each value.

    mean_m |x_m - y| - sum_{m,n} |x_m - x_n| / (2 M (M - 1)), from Ferro, Quarterly Journal of the
    Royal Meteorological Society 2014. It takes O(M log M) time and O(M) memory, and may be
    negative. It is differentiable; the gradient at draws that are equal depends on their order.

    Args:
        samples: draws (M, ...).
        target: the truth (...).

    Returns:
        The scores (...), in the unit of the values; lower is better.

    Raises:
        UpsError: M < 2, or other shapes.
    """
    samples, target = _validate(samples, target)
    m = len(samples)
    # Of sorted draws sum_{m,n} |x_m - x_n| = 2 sum_i (2 i - M - 1) x_i. These weights sum to 0:
    # the target may be taken off first, which loses fewer digits of large values.
    deviations = (samples - target).sort(0).values
    ranks = torch.arange(1 - m, m, 2, dtype=deviations.dtype, device=deviations.device)
    weights = (ranks / (m * (m - 1))).view(-1, *[1] * target.ndim)
    # no matrix product: it would be rounded to TF32 or bfloat16 where these are allowed
    return (deviations.abs() / m - weights * deviations).sum(0)


def energy_score(
    samples: Tensor, target: Tensor, axes: tuple[int, ...], size: Tensor | float = 1.0
) -> Tensor:
    """The fair energy score of whole fields.

    mean_m |x_m - y| - sum_{m,n} |x_m - x_n| / (2 M (M - 1)) with root mean squares over ``axes`` as
    norms: the CRPS if ``axes`` have one value. From Gneiting and Raftery, Journal of the American
    Statistical Association 2007, section 4.3, made fair as ``fair_crps`` is. It is differentiable;
    the gradient of the norm of 0 is 0. It takes O(M^2) time and O(M) memory.

    Args:
        samples: draws (M, ...).
        target: the truth (...).
        axes: the axes of one field, counted from the end. If the last axis is that of channels,
            ``FieldSpec.space_axes`` for each channel on its own, ``(*spec.space_axes, -1)`` for all
            channels together.
        size: what the score is relative to, the root mean square of the target for example; it has
            the shape of the result or is one number.

    Returns:
        The scores (...), without ``axes``; lower is better.

    Raises:
        UpsError: M < 2, other shapes, or the target has no such axes.
    """
    samples, target = _validate(samples, target)
    m = len(samples)
    if not (isinstance(axes, tuple) and _are_last(axes, target.ndim)):
        raise UpsError(
            "`axes` must be counted from the end: different numbers from "
            f"{-target.ndim} to -1 in a tuple, got {axes!r}."
        )
    error = _root_mean_square(samples - target, axes).mean(0)
    between = torch.zeros_like(error)
    for k in range(1, m):
        between = between + _root_mean_square(samples[k:] - samples[:-k], axes).sum(0)
    return (error - between / (m * (m - 1))) / size


def rank_histogram(
    samples: Tensor, target: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """How often the truth has each rank among the draws. A NaN has no rank and is not counted.

    It is flat for calibrated draws, high at both ends if they are too close to each other, and high
    in the middle if they are too far apart (Hamill, Monthly Weather Review 2001).

    Args:
        samples: draws (M, ...).
        target: the truth (...).
        generator: draws the rank of a truth among draws that equal it, on the device of
            ``target``; default: torch's own.

    Returns:
        The counts (M + 1,); count k is of truths above k draws.

    Raises:
        UpsError: M < 2, or other shapes.
    """
    samples, target = _validate(samples, target)
    below, equal = _counts(samples, target)
    ranks = _ranks(below, equal, generator)[~_has_nan(samples, target)]
    return torch.bincount(ranks, minlength=len(samples) + 1)


def coverage(samples: Tensor, target: Tensor, level: float = COVERAGE_LEVEL) -> Tensor:
    """The share of truths in the ensemble's central interval.

    The interval is from the k-th smallest to the k-th largest draw, both included. For calibrated
    draws it has (M + 1 - 2 k)/(M + 1) of the truths on average, whatever their distribution; k is
    the number >= 1 for which this is closest to ``level``. Few draws can't reach a high level: 3
    draws have 1/2. Compare with ``calibrated_coverage``.

    Args:
        samples: draws (M, ...).
        target: the truth (...).
        level: the share that the interval should have, between 0 and 1.

    Returns:
        The share (), 0 to 1, or NaN if a value is.

    Raises:
        UpsError: M < 2, other shapes, or the level is out of its range.
    """
    samples, target = _validate(samples, target)
    is_covered = _is_covered(*_counts(samples, target), len(samples), level).double()
    return is_covered.masked_fill(_has_nan(samples, target), math.nan).mean()


def calibrated_coverage(num_members: int, level: float = COVERAGE_LEVEL) -> float:
    """The ``coverage`` that ``num_members`` calibrated draws have: 0.5 of 3, 0.9 of 19 for 0.9."""
    return 1 - 2 * _num_outside(num_members, level) / (num_members + 1)


def spread_skill(samples: Tensor, target: Tensor, spec: FieldSpec) -> Tensor:
    """The squared spread of samples and the squared error of their mean.

    For calibrated draws both are equal on average. The spread is the unbiased variance over the M
    draws times (M + 1)/M (Fortin et al., Journal of Hydrometeorology 2014). Both are relative to
    the mean square of the truth, and means over channels.

    Args:
        samples: draws (M, ..., *space, C).
        target: the truth (..., *space, C).
        spec: describes the field.

    Returns:
        Squared spread and squared error (..., 2).

    Raises:
        UpsError: M < 2, or other shapes.
    """
    samples, target = _validate(samples, target)
    _validate_fields(samples, "samples", spec, 1)
    squares = _relative_squares(samples.double(), target.double(), spec)
    return torch.stack(squares, -1).mean(-2).to(samples.dtype)


def distance_to_mean(samples: Tensor, spec: FieldSpec) -> Tensor:
    """How far each of several forecasts is from their mean.

    It ranks draws without the truth: if they are equally likely, the nearest one to the mean has
    the smallest expected error. For |x_m - y|^2 = |x_m - mean|^2 + |mean - y|^2 - 2 <x_m - mean,
    y - mean>, of which the second term is the same for all draws, and nothing is known of the
    third. Their mean is closer still, but smoother than any forecast.

    Args:
        samples: draws of rollouts (M, ..., T, *space, C).
        spec: describes the field.

    Returns:
        The distances (M, ...), relative to the size of the mean in each frame and channel, and
        averaged over both.

    Raises:
        UpsError: M < 2, or another shape.
    """
    samples = _floating(samples, "samples")
    _validate_fields(samples, "samples", spec, 2)
    _check_num_members(len(samples))
    axes = spec.space_axes
    draws = samples.double()
    mean = draws.mean(0)
    size = _mean_square(mean, spec)
    distances = ((draws - mean).square().mean(axes) / size).sqrt()
    return distances.mean((-2, -1)).to(samples.dtype)


class EnsembleMetrics(Metric):
    """Accumulates scores of ensembles over batches of rollouts (B, T, *space, C).

    Rollouts exclude the initial frame. ``compute`` returns a dict of tensors, in float64. Each
    score is there as a mean, "crps", and for each frame and channel, "crps_by_frame" (T, C):

    - ``crps``: the fair CRPS, mean over points, in units of the channel's standard deviation;
    - ``energy_score``: the fair energy score of each channel, relative to the target's root mean
      square. That of draws that are all equal is their nRMSE;
    - ``ensemble_nrmse``: the nRMSE of the mean over draws;
    - ``ensemble_spread``: the relative spread, see ``spread_skill``, averaged like the nRMSE;
    - ``spread_skill_ratio``: the quotient of the last two, 1 for calibrated draws;
    - ``spread_skill_ratio_rms``: that of root mean squares, which one trajectory may dominate;
    - ``coverage_90``: see ``coverage``; calibrated draws have ``calibrated_coverage(M)``;
    - ``rank_histogram``: the shares (M + 1,) of ranks, and (T, C, M + 1) by frame. Ranks among
      equal draws are random, from a fixed seed.

    Args:
        num_frames: number of frames T.
        spec: describes the field.
        num_members: number of draws M.

    Raises:
        UpsError: M < 2.
    """

    full_state_update = False
    trajectories: Tensor
    crps: Tensor
    energy_score: Tensor
    spread: Tensor
    error: Tensor
    squared_spread: Tensor
    squared_error: Tensor
    covered: Tensor
    ranks: Tensor

    def __init__(self, num_frames: int, spec: FieldSpec, num_members: int) -> None:
        super().__init__()
        _check_num_members(num_members)
        self.spec = spec
        self.num_members = num_members
        frames = (num_frames, spec.num_channels)
        shapes: dict[str, tuple[int, ...]] = {
            "trajectories": (),
            "crps": frames,
            "energy_score": frames,
            "spread": frames,
            "error": frames,
            "squared_spread": frames,
            "squared_error": frames,
            "covered": frames,
            "ranks": (*frames, num_members + 1),
        }
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, samples: Tensor, target: Tensor) -> None:
        """Add rollouts.

        Args:
            samples: draws (M, B, T, *space, C).
            target: the truth (B, T, *space, C).
        """
        self._check_shapes(samples, target)
        self.trajectories += len(target)
        # its own generator: the draws of whoever measures stay what they are
        generator = torch.Generator(target.device).manual_seed(0)
        for draws, truth in zip(samples.unbind(1), target, strict=True):
            self._add(draws.double(), truth.double(), generator)

    def _add(self, samples: Tensor, target: Tensor, generator: torch.Generator) -> None:
        """Add draws (M, T, *space, C) of one trajectory (T, *space, C)."""
        axes = self.spec.space_axes
        size = _mean_square(target, self.spec).sqrt()
        std = torch.tensor(self.spec.std, dtype=torch.float64, device=target.device)
        spread, error = _relative_squares(samples, target, self.spec)
        self.crps += fair_crps(samples, target).mean(axes) / std
        self.energy_score += energy_score(samples, target, axes, size)
        self.spread += spread.sqrt()
        self.error += error.sqrt()
        self.squared_spread += spread
        self.squared_error += error
        self._add_ranks(samples, target, generator)

    def _add_ranks(self, samples: Tensor, target: Tensor, generator: torch.Generator) -> None:
        axes = self.spec.space_axes
        below, equal = _counts(samples, target)
        has_nan = _has_nan(samples, target)
        is_covered = _is_covered(below, equal, self.num_members, COVERAGE_LEVEL).double()
        self.covered += is_covered.masked_fill(has_nan, math.nan).mean(axes)
        ranks = _ranks(below, equal, generator)
        for rank in range(self.num_members + 1):
            has_rank = (ranks == rank).double().masked_fill(has_nan, math.nan)
            self.ranks[..., rank] += has_rank.mean(axes)

    def compute(self) -> dict[str, Tensor]:
        by_frame = {
            "crps": self.crps,
            "energy_score": self.energy_score,
            "ensemble_nrmse": self.error,
            "ensemble_spread": self.spread,
            "coverage_90": self.covered,
        }
        by_frame = {name: total / self.trajectories for name, total in by_frame.items()}
        squared_ratio = self.squared_spread / self.squared_error
        mean_square_ratio = self.squared_spread.sum() / self.squared_error.sum()
        ranks = self.ranks / self.trajectories
        return {
            **{name: values.mean() for name, values in by_frame.items()},
            **{f"{name}_by_frame": values for name, values in by_frame.items()},
            "spread_skill_ratio": self.spread.sum() / self.error.sum(),
            "spread_skill_ratio_by_frame": self.spread / self.error,
            "spread_skill_ratio_rms": mean_square_ratio.sqrt(),
            "spread_skill_ratio_rms_by_frame": squared_ratio.sqrt(),
            "rank_histogram": ranks.mean((0, 1)),
            "rank_histogram_by_frame": ranks,
        }

    def _check_shapes(self, samples: Tensor, target: Tensor) -> None:
        frames = (len(self.crps), *self.spec.shape)
        is_target = target.shape[1:] == frames
        if not is_target or samples.shape != (self.num_members, *target.shape):
            sizes = ", ".join(str(n) for n in frames)
            raise UpsError(
                f"ensembles must have the shape ({self.num_members}, B, {sizes}) and targets "
                f"(B, {sizes}), got {tuple(samples.shape)} and {tuple(target.shape)}."
            )


def _floating(values: Tensor, name: str) -> Tensor:
    """Values as real numbers of a floating type; others become float64."""
    values = numbers(values, name)
    return values if values.is_floating_point() else values.double()


def _validate(samples: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """An ensemble and its target, of floating types."""
    samples, target = _floating(samples, "samples"), _floating(target, "target")
    if samples.ndim == 0 or samples.shape[1:] != target.shape:
        raise UpsError(
            "`samples` must have the shape (M, ...) if `target` has the shape (...), "
            f"got {tuple(samples.shape)} and {tuple(target.shape)}."
        )
    _check_num_members(len(samples))
    return samples, target


def _validate_fields(values: Tensor, name: str, spec: FieldSpec, num_leading: int) -> None:
    """Check that values are fields on the grid of ``spec``, with so many axes before."""
    if isinstance(spec.domain, PointCloud):
        raise UpsError("`spec` must describe a field on a grid; this one lies on points.")
    shape = spec.shape
    if values.ndim < num_leading + len(shape) or values.shape[-len(shape) :] != shape:
        sizes = ", ".join(map(str, shape))
        raise UpsError(
            f"`{name}` must be fields ({sizes}) with their channels after the axes of draws and "
            f"frames, got {tuple(values.shape)}."
        )


def _are_last(axes: tuple[int, ...], ndim: int) -> bool:
    """Whether ``axes`` are different ones, counted from the end."""
    are_axes = all(isinstance(axis, int) and -ndim <= axis < 0 for axis in axes)
    return are_axes and 0 < len(axes) == len(set(axes))


def _mean_square(target: Tensor, spec: FieldSpec) -> Tensor:
    """The mean square over space (..., C) that squares are relative to; see ``ups.core.norms``."""
    smallest = negligible_size(spec).square().to(target.device)
    return target.square().mean(spec.space_axes).maximum(smallest)


def _check_num_members(num_members: int) -> None:
    if num_members < 2:
        raise UpsError(f"an ensemble must have at least 2 members, got {num_members}.")


def _root_mean_square(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The root mean square over ``axes``, whose gradient at 0 is 0."""
    num_values = math.prod(values.shape[axis] for axis in axes)
    return torch.linalg.vector_norm(values, dim=axes) / math.sqrt(num_values)


def _relative_squares(samples: Tensor, target: Tensor, spec: FieldSpec) -> tuple[Tensor, Tensor]:
    """Squared spread and squared error of the mean, relative to the target's mean square.

    Args:
        samples: draws (M, ..., *space, C).
        target: the truth (..., *space, C).
        spec: describes the field.

    Returns:
        Squared spread (..., C) and squared error (..., C) of each channel.
    """
    m = len(samples)
    axes = spec.space_axes
    size = _mean_square(target, spec)
    # the mean of M draws is itself off by a share 1/M of their variance
    mean = samples.mean(0)
    variance = (samples - mean).square().sum(0) / (m - 1)
    spread = variance.mean(axes) * (m + 1) / m
    error = (mean - target).square().mean(axes)
    return spread / size, error / size


def _counts(samples: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """How many draws are below the truth (...), and how many equal it (...)."""
    return (samples < target).sum(0), (samples == target).sum(0)


def _has_nan(samples: Tensor, target: Tensor) -> Tensor:
    """Whether a draw or the truth (...) is NaN."""
    return samples.isnan().any(0) | target.isnan()


def _ranks(below: Tensor, equal: Tensor, generator: torch.Generator | None) -> Tensor:
    """The number of draws (...) below the truth, at random among equal ones; see ``_counts``."""
    is_tied = equal > 0
    ties = equal[is_tied]
    # float32 would be rounded up to 1 now and then, and the rank be one too high
    shares = torch.rand(ties.shape, generator=generator, dtype=torch.float64, device=ties.device)
    return below.masked_scatter(is_tied, below[is_tied] + (shares * (ties + 1)).long())


def _num_outside(num_members: int, level: float) -> int:
    """The number k >= 1: the central interval is from the k-th smallest to the k-th largest draw.

    Of M + 1 equally probable ranks 2 k are outside.
    """
    _check_num_members(num_members)
    if not 0 < level < 1:
        raise UpsError(f"`level` must be a number between 0 and 1, got {level}.")
    nearest = round((1 - level) / 2 * (num_members + 1))
    return min(max(1, nearest), num_members // 2)


def _is_covered(below: Tensor, equal: Tensor, num_members: int, level: float) -> Tensor:
    """Whether truths (...) are in the central interval of ``coverage``; see ``_counts``."""
    k = _num_outside(num_members, level)
    return (below + equal >= k) & (below <= num_members - k)
