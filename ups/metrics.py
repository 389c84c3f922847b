"""PDEBench's error metrics of rollouts, in physical space.

Source: Takamoto et al., NeurIPS 2022 Datasets and Benchmarks (``metric_func`` of its reference code).
"""

import torch
from torch import Tensor
from torchmetrics import Metric

from ups.errors import UpsError

NAMES = ("rmse", "nrmse", "crmse", "brmse", "max_error", "frmse_low", "frmse_mid", "frmse_high")
_BANDS = {"frmse_low": (0, 4), "frmse_mid": (4, 12), "frmse_high": (12, None)}


class RolloutMetrics(Metric):
    """Accumulates PDEBench's metrics over batches of (B, T, X) rollouts, whose first frame is not the initial one.

    ``compute`` gives a dict of floats: the keys of ``NAMES`` and ``nrmse_over_time``, a list of T values.
    Fields are dimensionless, x has length ``length``. Sums are kept in float64.
    """

    full_state_update = False
    samples: Tensor
    rmse: Tensor
    nrmse: Tensor
    mass: Tensor
    boundary: Tensor
    largest: Tensor
    spectrum: Tensor

    def __init__(self, frames: int, points: int, length: float = 1.0) -> None:
        super().__init__()
        self.points, self.length = points, length
        for name, shape in {"samples": (), "rmse": (frames,), "nrmse": (frames,), "mass": (frames,), "boundary": (frames,),
                            "spectrum": (frames, points // 2 + 1)}.items():  # fmt: skip
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("largest", torch.zeros(frames, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, pred: Tensor, target: Tensor) -> None:
        if pred.shape != target.shape or pred.ndim != 3:
            raise UpsError(f"rollout metrics take two (B, T, X) tensors of one shape, not {tuple(pred.shape)}, {tuple(target.shape)}")
        pred, target = pred.double(), target.double()
        error = pred - target
        rmse = error.square().mean(-1).sqrt()  # (B, T)
        self.samples += len(pred)
        self.rmse += rmse.sum(0)
        self.nrmse += (rmse / target.square().mean(-1).sqrt()).sum(0)
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
            **{name: spectrum[:, low:high].sum().item() / max(1, spectrum[:, low:high].numel()) for name, (low, high) in _BANDS.items()},
            "nrmse_over_time": nrmse.tolist(),
        }


def pdebench_metrics(pred: Tensor, target: Tensor, length: float = 1.0) -> dict[str, float]:
    """PDEBench's metrics of one (B, T, X) prediction, T without the initial frame: a dict with the keys of ``NAMES``."""
    if pred.ndim != 3:
        raise UpsError(f"pdebench_metrics takes (B, T, X) tensors, not {tuple(pred.shape)}")
    metrics = RolloutMetrics(pred.shape[1], pred.shape[2], length).to(pred.device)
    metrics.update(pred, target)
    values = metrics.compute()
    return {name: values[name] for name in NAMES}
