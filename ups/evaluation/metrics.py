"""Metrics of rollouts, in physical space.

PDEBench's errors, physics checks, and the calibration of samples.

Source of the errors: Takamoto et al., NeurIPS 2022 Datasets and Benchmarks (``metric_func`` of its
reference code).
"""

import torch
from torch import Tensor
from torchmetrics import Metric

from ups.core.errors import UpsError
from ups.core.norms import RELATIVE_ERROR_FLOOR
from ups.physics import Equation

NAMES = ("rmse", "nrmse", "crmse", "brmse", "max_error", "frmse_low", "frmse_mid", "frmse_high")
_BANDS = {"frmse_low": (0, 4), "frmse_mid": (4, 12), "frmse_high": (12, None)}


class RolloutMetrics(Metric):
    """Accumulates PDEBench's metrics over batches of rollouts (B, T, X).

    Rollouts exclude the initial frame, and fields are dimensionless. ``compute`` returns a dict of
    floats with the keys ``NAMES``, and ``nrmse_over_time``, a list of T values. Sums are in
    float64.

    Args:
        frames: number of frames T.
        points: number of points X.
        length: the length of the periodic line.
        floor: the smallest root mean square of a target in the nRMSE; a smaller one counts as
            ``floor``. PDEBench has no floor.
    """

    full_state_update = False
    samples: Tensor
    rmse: Tensor
    nrmse: Tensor
    mass: Tensor
    boundary: Tensor
    largest: Tensor
    spectrum: Tensor

    def __init__(self, frames: int, points: int, length: float = 1.0, floor: float = 0.0) -> None:
        super().__init__()
        self.points, self.length, self.floor = points, length, floor
        for name, shape in {"samples": (), "rmse": (frames,), "nrmse": (frames,),
                            "mass": (frames,), "boundary": (frames,),
                            "spectrum": (frames, points // 2 + 1)}.items():  # fmt: skip
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("largest", torch.zeros(frames, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, pred: Tensor, target: Tensor) -> None:
        if pred.shape != target.shape or pred.ndim != 3:
            raise UpsError(
                "rollout metrics take two (B, T, X) tensors of one shape, "
                f"not {tuple(pred.shape)}, {tuple(target.shape)}"
            )
        pred, target = pred.double(), target.double()
        error = pred - target
        rmse = error.square().mean(-1).sqrt()  # (B, T)
        self.samples += len(pred)
        self.rmse += rmse.sum(0)
        self.nrmse += (rmse / target.square().mean(-1).sqrt().clamp_min(self.floor)).sum(0)
        self.mass += error.sum(-1).square().sum(0)
        self.boundary += ((error[..., 0].square() + error[..., -1].square()) / 2).sqrt().sum(0)
        self.spectrum += torch.fft.rfft(error).abs().square().sum(0)
        self.largest = torch.maximum(self.largest, error.abs().amax((0, 2)))

    def compute(self) -> dict:
        spectrum = (self.spectrum / self.samples).sqrt() / self.points * self.length
        nrmse = self.nrmse / self.samples
        return {
            "rmse": (self.rmse / self.samples).mean().item(),
            "nrmse": nrmse.mean().item(),
            "crmse": ((self.mass / self.samples).sqrt() / self.points).mean().item(),
            "brmse": (self.boundary / self.samples).mean().item(),
            "max_error": self.largest.mean().item(),
            **{
                name: spectrum[:, low:high].sum().item() / max(1, spectrum[:, low:high].numel())
                for name, (low, high) in _BANDS.items()
            },
            "nrmse_over_time": nrmse.tolist(),
        }


def pdebench_metrics(pred: Tensor, target: Tensor, length: float = 1.0) -> dict[str, float]:
    """Compute PDEBench's metrics of one prediction.

    Args:
        pred: fields (B, T, X) without the initial frame.
        target: fields (B, T, X).
        length: the length of the periodic line.

    Returns:
        The metrics by name, with the keys ``NAMES``.

    Raises:
        UpsError: the shapes are not (B, T, X), or they differ.
    """
    pred, target = torch.as_tensor(pred), torch.as_tensor(target)
    if pred.ndim != 3:
        raise UpsError(f"pdebench_metrics takes (B, T, X) tensors, not {tuple(pred.shape)}")
    metrics = RolloutMetrics(pred.shape[1], pred.shape[2], length).to(pred.device)
    metrics.update(pred, target)
    values = metrics.compute()
    return {name: values[name] for name in NAMES}


class PhysicsChecks(Metric):
    """Accumulates violations of the equation's properties over batches of rollouts (B, T, X).

    The rollouts start from ``u0`` (B, X). ``compute`` returns a dict of floats:

    - ``mass_gap`` and ``energy_gap``, if the equation conserves them: the mean over frames of |mass
      - initial mass|, and the same of the energy;
    - ``periodic_gap``: the mean error of the jump from the last point to the first;
    - ``maximum_violation``: the mean over frames of how far the field exceeds its initial range;
    - ``variation_growth`` and ``energy_growth``: the mean over steps of the relative growth of the
      total variation and of the energy, with 0 for a decrease;
    - ``correlation_time``: the mean time for which the correlation with the target stays above
      ``threshold``.

    Args:
        physics: the equation's module.
        dt: the time between frames.
        length: the length of the periodic line.
        threshold: the lowest correlation.
    """

    full_state_update = False
    samples: Tensor
    sums: Tensor
    NAMES = (
        "periodic_gap",
        "maximum_violation",
        "variation_growth",
        "energy_growth",
        "correlation_time",
    )

    def __init__(
        self, physics: Equation, dt: float, length: float = 1.0, threshold: float = 0.8
    ) -> None:
        super().__init__()
        self.physics, self.dt, self.length, self.threshold = physics, dt, length, threshold
        self.names = (*(f"{quantity}_gap" for quantity in physics.CONSERVED), *self.NAMES)
        self.add_state("samples", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state(
            "sums", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum"
        )

    def update(self, u0: Tensor, pred: Tensor, target: Tensor) -> None:
        u0, pred, target = u0.double()[:, None], pred.double(), target.double()
        frames = torch.cat((u0, pred), 1)
        beyond = (pred.amax(-1) - u0.amax(-1)).clamp_min(0) + (
            u0.amin(-1) - pred.amin(-1)
        ).clamp_min(0)
        jumps = pred[..., 0] - pred[..., -1] - (target[..., 0] - target[..., -1])
        high = (_correlation(pred, target) > self.threshold).cumprod(1).sum(1) * self.dt
        kept = (getattr(self.physics, quantity) for quantity in self.physics.CONSERVED)
        checks = (
            *((quantity(pred, self.length) - quantity(u0, self.length)).abs() for quantity in kept),
            jumps.abs(),
            beyond,
            _growth(
                self.physics.total_variation(frames),
                RELATIVE_ERROR_FLOOR * u0.square().mean(-1).sqrt(),
            ),
            _growth(
                self.physics.energy(frames, self.length),
                RELATIVE_ERROR_FLOOR**2 * self.physics.energy(u0, self.length),
            ),
            high[:, None],
        )
        self.samples += len(pred)
        self.sums += torch.stack([check.mean(1).sum() for check in checks])

    def compute(self) -> dict[str, float]:
        return dict(zip(self.names, (self.sums / self.samples).tolist(), strict=True))


def _growth(values: Tensor, floor: Tensor) -> Tensor:
    """The relative growth (B, T) between consecutive ``values`` (B, T + 1), 0 for a decrease.

    It is relative to the earlier value or to ``floor`` (B, 1), whichever is larger. The floor is
    for fields that are constant or have decayed to almost zero: round-off is not growth.
    """
    before, after = values[:, :-1], values[:, 1:]
    return (after - before).clamp_min(0) / torch.maximum(before, floor).clamp_min(1e-12)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation over space: (B, T, X), (B, T, X) -> (B, T).

    It is not defined for two constant fields, and is set to 1 for them.
    """
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    sizes = a.norm(dim=-1), b.norm(dim=-1)
    correlation = (a * b).sum(-1) / (sizes[0] * sizes[1]).clamp_min(1e-30)
    return torch.where(torch.maximum(*sizes) < 1e-12, 1.0, correlation)


def energy_spectrum(u: Tensor) -> Tensor:
    """The energy u^2/2 of fields (..., X) by wave number: (..., X/2 + 1).

    Its sum is the mean of u^2/2 (Parseval).
    """
    power = torch.fft.rfft(u.double(), norm="forward").abs().square()
    # a wave and its conjugate count; the mean and the finest wave have no conjugate
    both = torch.full_like(power, 2.0)
    both[..., 0] = 1.0
    if u.shape[-1] % 2 == 0:
        both[..., -1] = 1.0
    return both * power / 2


def spread_skill(samples: Tensor, target: Tensor) -> Tensor:
    """The squared spread of samples and the squared error of their mean.

    For calibrated draws both are equal on average (Fortin et al., J. Hydrometeorology 2014). The
    spread is the unbiased variance over the M draws times (M + 1)/M. Both are relative to the mean
    square of the truth.

    Args:
        samples: draws (M, ..., X).
        target: the truth (..., X).

    Returns:
        Squared spread and squared error (..., 2).
    """
    m, size = len(samples), target.square().mean(-1).clamp_min(1e-12)
    spread = samples.var(0).mean(-1) * (m + 1) / m
    return torch.stack((spread, (samples.mean(0) - target).square().mean(-1)), -1) / size[..., None]
