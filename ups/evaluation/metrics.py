"""Metrics of rollouts, in physical space.

PDEBench's errors and physics checks; those of draws are in ``ups.evaluation.ensembles``.

Source of the errors: Takamoto et al., NeurIPS 2022 Datasets and Benchmarks (``metric_func`` of its
reference code).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ups.core.errors import UpsError
from ups.core.fields import PERIODIC_AXIS, FieldSpec, Grid, PointCloud
from ups.core.gradients import to_tensor
from ups.core.norms import NEGLIGIBLE, RELATIVE_ERROR_FLOOR, mean_over
from ups.core.points import Points
from ups.physics import Equation, Functional, Law

VRMSE_FLOOR = 1e-7  # added to a variance
ROUNDING = 1e-12  # of a constant field, in standard deviations
NAMES = ("rmse", "nrmse", "crmse", "brmse", "max_error", "frmse_low", "frmse_mid", "frmse_high")
# names of the correlation times above the usual threshold
STRICT_CORRELATIONS = {"correlation_time_90": 0.9, "correlation_time_95": 0.95}
_BANDS = {"frmse_low": (0, 4), "frmse_mid": (4, 12), "frmse_high": (12, None)}


class RolloutMetrics(Metric):
    """Accumulates PDEBench's metrics over batches of rollouts (B, T, *space, C).

    Rollouts exclude the initial frame, and fields are dimensionless. ``compute`` returns a dict of
    floats with the keys ``NAMES`` and ``vrmse``, means over channels, and ``nrmse_over_time``, a
    list of T values. Sums are in float64.

    ``vrmse`` is that of The Well (Ohana et al., NeurIPS 2024 Datasets and Benchmarks): relative to
    the fluctuation sqrt(mean (q - mean q)^2 + 1e-7) of the target q, so that a large mean does not
    make an error look small.

    Fields on points have ``rmse``, ``nrmse``, ``max_error`` and ``vrmse`` only, over the points of
    each sample. The others need a grid.

    Args:
        num_frames: number of frames T.
        spec: describes the field.
        floor: the smallest root mean square of a target in the nRMSE, in units of the channel's
            standard deviation; a smaller one counts as ``floor``. PDEBench has no floor.
    """

    full_state_update = False
    samples: Tensor
    rmse: Tensor
    nrmse: Tensor
    vrmse: Tensor
    mass: Tensor
    boundary: Tensor
    largest: Tensor
    power: Tensor

    def __init__(self, num_frames: int, spec: FieldSpec, floor: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        self.floor = floor
        frames = (num_frames, spec.num_channels)
        shapes: dict[str, tuple[int, ...]] = {
            "samples": (),
            "rmse": frames,
            "nrmse": frames,
            "vrmse": frames,
        }
        if isinstance(spec.domain, Grid):
            shapes["mass"] = frames
            shapes["boundary"] = frames
            shapes["power"] = (num_frames, *_spectrum_shape(spec.grid.shape), spec.num_channels)
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("largest", torch.zeros(frames, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        """Add rollouts.

        Args:
            pred: predicted frames (B, T, *space, C).
            target: true frames (B, T, *space, C).
            mask: where there is a point, for fields on points (B, P).
        """
        is_grid = isinstance(self.spec.domain, Grid)
        space = self.spec.grid.shape if is_grid else target.shape[2:3]
        sizes = (*space, self.spec.num_channels)
        if pred.shape != target.shape or tuple(pred.shape[2:]) != sizes:
            raise UpsError(
                f"rollouts must have one shape (B, T, {', '.join(str(n) for n in sizes)}), "
                f"got {tuple(pred.shape)} and {tuple(target.shape)}."
            )
        axes = self.spec.space_axes
        at = None if mask is None else mask[:, None]
        pred = pred.double()
        target = target.double()
        error = pred - target if at is None else torch.where(at[..., None], pred - target, 0)
        rmse = mean_over(error.square(), axes, at).sqrt()  # (B, T, C)
        floor = self.floor * torch.tensor(self.spec.std, dtype=rmse.dtype, device=rmse.device)
        mean_square = mean_over(target.square(), axes, at)
        mean = mean_over(target, axes, at).reshape(*rmse.shape[:2], *[1] * len(axes), -1)
        variance = mean_over((target - mean).square(), axes, at)
        self.samples += len(pred)
        self.rmse += rmse.sum(0)
        self.nrmse += (rmse / mean_square.sqrt().maximum(floor)).sum(0)
        self.vrmse += (rmse / (variance + VRMSE_FLOOR).sqrt()).sum(0)
        self.largest = torch.maximum(self.largest, error.abs().amax((0, *axes)))
        if is_grid:
            self.mass += error.sum(axes).square().sum(0)
            self.boundary += _boundary_mean_square(error, axes).sqrt().sum(0)
            self.power += _spectrum(error, axes).abs().square().sum(0)

    def compute(self) -> dict[str, float | list[float]]:
        nrmse = self.nrmse / self.samples
        values: dict[str, float | list[float]] = {
            "rmse": (self.rmse / self.samples).mean().item(),
            "nrmse": nrmse.mean().item(),
            "max_error": self.largest.mean().item(),
            "vrmse": (self.vrmse / self.samples).mean().item(),
        }
        if isinstance(self.spec.domain, Grid):
            values |= self._on_grid(self.spec.domain)
        names = [name for name in (*NAMES, "vrmse") if name in values]
        return {
            **{name: values[name] for name in names},
            "nrmse_over_time": nrmse.mean(-1).tolist(),
        }

    def _on_grid(self, grid: Grid) -> dict[str, float]:
        """The metrics that only fields on a grid have."""
        volume = math.prod(grid.extent)
        power = _sum_shells(self.power / self.samples, grid.shape)
        frequencies = power.sqrt() / grid.num_points * volume  # (T, F, C)
        bands = {name: frequencies[:, low:high] for name, (low, high) in _BANDS.items()}
        return {
            "crmse": ((self.mass / self.samples).sqrt() / grid.num_points).mean().item(),
            "brmse": (self.boundary / self.samples).mean().item(),
            **{name: band.sum().item() / max(1, band.numel()) for name, band in bands.items()},
        }


def pdebench_metrics(
    pred: Tensor,
    target: Tensor,
    length: float | Sequence[float] = 1.0,
    points: Points | None = None,
) -> dict[str, float]:
    """Compute PDEBench's metrics of one prediction.

    Args:
        pred: fields (B, T, X), (B, T, X, Y) or (B, T, X, Y, C) without the initial frame; at
            ``points`` (B, T, P) or (B, T, P, C).
        target: fields of the same shape.
        length: the length of the domain, one number or one for each axis.
        points: where the fields lie if that is not a grid; padded ones don't count.

    Returns:
        The metrics by name, with the keys ``NAMES``, means over channels. On points there are
        ``rmse``, ``nrmse`` and ``max_error``.

    Raises:
        UpsError: the shapes are others, or they differ.
    """
    pred = to_tensor(pred, None, None)
    target = to_tensor(target, None, None)
    if points is not None:
        return _metrics_on_points(pred, target, points)
    if pred.shape != target.shape or pred.ndim not in (3, 4, 5):
        raise UpsError(
            "`pred` and `target` must have one shape, (B, T, X), (B, T, X, Y) or (B, T, X, Y, C), "
            f"got {tuple(pred.shape)} and {tuple(target.shape)}."
        )
    if pred.ndim < 5:
        pred = pred.unsqueeze(-1)
        target = target.unsqueeze(-1)
    space = tuple(pred.shape[2:-1])
    extent = tuple(length) if isinstance(length, Sequence) else (length,) * len(space)
    channels = tuple(f"channel_{c}" for c in range(pred.shape[-1]))
    metrics = RolloutMetrics(pred.shape[1], FieldSpec(Grid(space, extent), channels))
    metrics.to(pred.device).update(pred, target)
    values = metrics.compute()
    return {name: values[name] for name in NAMES}  # type: ignore[misc]


def _metrics_on_points(pred: Tensor, target: Tensor, points: Points) -> dict[str, float]:
    places = (pred.shape[0], *pred.shape[2:3])
    if pred.shape != target.shape or pred.ndim not in (3, 4) or places != points.mask.shape:
        raise UpsError(
            "`pred` and `target` must have one shape at `points`, (B, T, P) or (B, T, P, C), "
            f"got {tuple(pred.shape)} and {tuple(target.shape)}."
        )
    if pred.ndim == 3:
        pred, target = pred.unsqueeze(-1), target.unsqueeze(-1)
    anywhere = PointCloud(((0.0, 1.0),) * points.positions.shape[-1])
    channels = tuple(f"channel_{c}" for c in range(pred.shape[-1]))
    metrics = RolloutMetrics(pred.shape[1], FieldSpec(anywhere, channels)).to(pred.device)
    metrics.update(pred, target, points.mask.to(pred.device))
    values = metrics.compute()
    return {name: values[name] for name in ("rmse", "nrmse", "max_error")}  # type: ignore[misc]


def _boundary_mean_square(error: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The mean square of errors (B, T, *space, C) over the points of all faces: (B, T, C)."""
    total = torch.zeros_like(error.mean(axes))
    points = 0
    for axis in axes:
        for side in (0, error.shape[axis] - 1):
            face = error.narrow(axis, side, 1).square()
            total = total + face.sum(axes)
            points += face[0, 0, ..., 0].numel()
    return total / points


def _spectrum_shape(space: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the wave numbers that PDEBench's spectra have, see ``_spectrum``."""
    return (space[0] // 2 + 1,) if len(space) == 1 else tuple(n // 2 for n in space)


def _spectrum(error: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The Fourier coefficients of errors (B, T, *space, C) at wave numbers >= 0.

    On a line these are all of a real field; in more dimensions PDEBench takes those that are below
    half the number of points along each axis.
    """
    if len(axes) == 1:
        return torch.fft.rfft(error, dim=axes[0])
    spectrum = torch.fft.fftn(error, dim=axes)
    for axis in axes:
        spectrum = spectrum.narrow(axis, 0, spectrum.shape[axis] // 2)
    return spectrum


def _sum_shells(power: Tensor, space: tuple[int, ...]) -> Tensor:
    """Sum squares (T, *wave numbers, C) over shells of |k|, rounded down: (T, F, C)."""
    if len(space) == 1:
        return power
    axes = [torch.arange(n, device=power.device) for n in power.shape[1:-1]]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt().long()
    shells = min(n // 2 for n in space)
    inside = radius < shells
    out = power.new_zeros(len(power), shells, power.shape[-1])
    return out.index_add(1, radius[inside], power[:, inside])


class PhysicsChecks(Metric):
    """Accumulates violations of an equation's properties over batches of rollouts.

    ``compute`` returns a dict of floats:

    - ``<functional>_drift`` of each functional that the equation conserves: the mean over frames of
      |value - initial value|;
    - ``<functional>_growth`` of each functional that must not grow: the mean over steps of its
      relative growth, with 0 for a decrease;
    - ``maximum_principle_violation``, if the equation has that principle: the mean over frames of
      how far the field exceeds its initial range;
    - ``boundary_jump_error``, if an axis is periodic: the mean error of the jump from its last
      point to its first;
    - ``correlation_time``: the mean time for which the correlation with the target stays above
      ``threshold``, and ``correlation_time_90`` and ``correlation_time_95`` above 0.9 and 0.95.

    Without an equation only the jump error and the correlation times remain.

    Args:
        equation: the equation, or None.
        spec: describes the field.
        threshold: the lowest correlation of ``correlation_time``.
    """

    full_state_update = False
    samples: Tensor
    sums: Tensor

    def __init__(self, equation: Equation | None, spec: FieldSpec, threshold: float = 0.8) -> None:
        super().__init__()
        functionals = equation.functionals if equation else ()
        self.spec = spec
        self.thresholds = {"correlation_time": threshold, **STRICT_CORRELATIONS}
        self.conserved = [f for f in functionals if f.law is Law.CONSERVED]
        self.non_increasing = [f for f in functionals if f.law is Law.NON_INCREASING]
        self.has_maximum_principle = equation is not None and equation.has_maximum_principle
        sides = spec.domain.boundary if isinstance(spec.domain, Grid) else ()
        self.periodic_axes = [
            axis
            for axis, boundary in zip(spec.space_axes, sides, strict=False)
            if boundary == PERIODIC_AXIS
        ]
        self.names = [
            *(f"{functional.name}_drift" for functional in self.conserved),
            *["boundary_jump_error"][: len(self.periodic_axes)],
            *["maximum_principle_violation"][: self.has_maximum_principle],
            *(f"{functional.name}_growth" for functional in self.non_increasing),
            *self.thresholds,
        ]
        self.add_state("samples", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state(
            "sums", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum"
        )

    def update(self, u0: Tensor, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        """Add rollouts.

        Args:
            u0: initial fields (B, *space, C).
            pred: predicted frames (B, T, *space, C).
            target: true frames (B, T, *space, C).
            mask: where there is a point, for fields on points (B, P).
        """
        u0 = u0.double()[:, None]
        pred = pred.double()
        target = target.double()
        checks = self._equation_checks(u0, pred)
        if self.periodic_axes:
            jumps = [_jump(pred, axis) - _jump(target, axis) for axis in self.periodic_axes]
            checks["boundary_jump_error"] = torch.stack([_mean_size(jump) for jump in jumps]).mean(
                0
            )
        correlation = _correlation(pred, target, self.spec, mask)
        for name, threshold in self.thresholds.items():
            is_close = correlation > threshold
            frames = is_close.cumprod(1).sum(1, keepdim=True)
            checks[name] = frames.double() * self.spec.dt
        self.samples += len(pred)
        self.sums += torch.stack([checks[name].mean(1).sum() for name in self.names])

    def _equation_checks(self, u0: Tensor, pred: Tensor) -> dict[str, Tensor]:
        """The violations (B, T) by name, of frames (B, T, *space, C) from ``u0``."""
        checks = {}
        axes = self.spec.space_axes
        frames = torch.cat((u0, pred), 1)
        size = u0.square().mean((*axes, -1)).sqrt().clamp_min(NEGLIGIBLE * max(self.spec.std))
        for functional in self.conserved:
            values = functional.compute(frames, self.spec.grid)
            checks[f"{functional.name}_drift"] = (values[:, 1:] - values[:, :1]).abs()
        for functional in self.non_increasing:
            values = functional.compute(frames, self.spec.grid)
            floor = (RELATIVE_ERROR_FLOOR * size) ** functional.degree
            allowed = _largest_after(values, functional, self.spec.dt)
            checks[f"{functional.name}_growth"] = _growth(values, allowed, floor)
        if self.has_maximum_principle:
            above = (pred.amax(axes) - u0.amax(axes)).clamp_min(0)
            below = (u0.amin(axes) - pred.amin(axes)).clamp_min(0)
            checks["maximum_principle_violation"] = (above + below).mean(-1)
        return checks

    def compute(self) -> dict[str, float]:
        return dict(zip(self.names, (self.sums / self.samples).tolist(), strict=True))


def _jump(u: Tensor, axis: int) -> Tensor:
    """The jump from the last point of an axis to the first: (B, T, *other axes, C)."""
    return u.select(axis, 0) - u.select(axis, -1)


def _mean_size(values: Tensor) -> Tensor:
    """The mean of |values| (B, T, ...): (B, T)."""
    return values.abs().flatten(2).mean(2)


def _largest_after(values: Tensor, functional: Functional, dt: float) -> Tensor:
    """The largest values (B, T) that a force and an instability allow a time ``dt`` later."""
    if functional.growth_rate == functional.instability_rate == 0:
        return values
    roots = values.clamp_min(0) ** (1 / functional.degree)
    factor = math.exp(functional.instability_rate * dt)
    return (factor * (roots + functional.growth_rate * dt)) ** functional.degree


def _growth(values: Tensor, allowed: Tensor, floor: Tensor) -> Tensor:
    """The relative growth (B, T) of consecutive ``values`` (B, T + 1) beyond the ``allowed`` ones
    a step later, 0 where there is none.

    It is relative to the earlier value or to ``floor`` (B, 1), whichever is larger. The floor is
    for fields that are constant or have decayed to almost zero: round-off is not growth.
    """
    before = values[:, :-1]
    growth = (values[:, 1:] - allowed[:, :-1]).clamp_min(0)
    return growth / torch.maximum(before, floor)


def _correlation(a: Tensor, b: Tensor, spec: FieldSpec, mask: Tensor | None = None) -> Tensor:
    """Pearson's correlation over space, mean over channels: (B, T).

    It is not defined for two constant fields, and is set to 1 for them.
    """
    axes = spec.space_axes
    at = None if mask is None else mask[:, None]
    a, b = (_deviation(each, axes, at) for each in (a, b))
    size_a = a.square().sum(axes).sqrt()
    size_b = b.square().sum(axes).sqrt()
    rounding = ROUNDING * torch.tensor(spec.std, dtype=a.dtype, device=a.device)
    correlation = (a * b).sum(axes) / (size_a * size_b).maximum(rounding.square())
    is_constant = torch.maximum(size_a, size_b) < rounding
    return torch.where(is_constant, 1.0, correlation).mean(-1)


def _deviation(u: Tensor, axes: tuple[int, ...], mask: Tensor | None) -> Tensor:
    """Fields less their means over space; 0 where there is no point."""
    mean = mean_over(u, axes, mask)
    deviation = u - mean.view(*mean.shape[:-1], *[1] * len(axes), -1)
    return deviation if mask is None else torch.where(mask[..., None], deviation, 0)


def energy_spectrum(u: Tensor, spec: FieldSpec) -> Tensor:
    """The energy u^2/2 of fields (..., *space, C) by wave number |k|, rounded: (..., K).

    Wave numbers count the waves along the longest axis. The sum over them is the mean of u^2/2 over
    space, summed over channels (Parseval).
    """
    axes = spec.space_axes
    power = torch.fft.fftn(u.double(), dim=axes, norm="forward").abs().square().sum(-1) / 2
    longest = max(spec.grid.extent)
    numbers = [
        torch.fft.fftfreq(n, length / (n * longest), device=u.device)
        for n, length in zip(spec.grid.shape, spec.grid.extent, strict=True)
    ]
    radius = torch.stack(torch.meshgrid(*numbers, indexing="ij")).square().sum(0).sqrt()
    shells = radius.round().long().flatten()
    power = power.flatten(-spec.grid.num_dims)
    out = power.new_zeros(*power.shape[:-1], int(shells.max()) + 1)
    return out.index_add(-1, shells, power)
