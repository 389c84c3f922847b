"""Metrics against hand-computed values and against PDEBench's definitions written out."""

import math

import pytest
import torch

from ups.core.errors import UpsError
from ups.evaluation.metrics import NAMES, RolloutMetrics, pdebench_metrics


def test_hand_computed():
    target = torch.tensor([[[1.0, -1.0, 1.0, -1.0]], [[2.0, 2.0, 2.0, 2.0]]])  # (2, 1, 4)
    pred = target + torch.tensor([[[1.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, -2.0]]])
    values = pdebench_metrics(pred, target)
    assert set(values) == set(NAMES)
    assert values["rmse"] == pytest.approx((0.5 + 1.0) / 2)
    assert values["nrmse"] == pytest.approx((0.5 + 0.5) / 2)
    assert values["crmse"] == pytest.approx(math.sqrt((1 + 4) / 2) / 4)
    assert values["max_error"] == pytest.approx(2.0)
    assert values["brmse"] == pytest.approx((math.sqrt(0.5) + math.sqrt(2.0)) / 2)
    # a unit impulse has |P - Q| = 1 at every frequency: sqrt((1 + 4) / 2) / 4
    assert values["frmse_low"] == pytest.approx(math.sqrt(2.5) / 4)


def test_definitions():
    torch.manual_seed(0)
    p, q = torch.randn(5, 3, 64, dtype=torch.float64), torch.randn(5, 3, 64, dtype=torch.float64)
    spectrum = ((torch.fft.rfft(p) - torch.fft.rfft(q)).abs() ** 2).mean(0).sqrt() / 64
    expected = {
        "rmse": ((p - q) ** 2).mean(-1).sqrt().mean(),
        "nrmse": (((p - q) ** 2).mean(-1) / (q**2).mean(-1)).sqrt().mean(),
        "crmse": ((p.sum(-1) - q.sum(-1)) ** 2).mean(0).sqrt().mean() / 64,
        "brmse": (((p - q)[..., [0, -1]] ** 2).sum(-1) / 2).sqrt().mean(),
        "max_error": (p - q).abs().amax(-1).amax(0).mean(),
        "frmse_low": spectrum[:, :4].mean(),
        "frmse_mid": spectrum[:, 4:12].mean(),
        "frmse_high": spectrum[:, 12:].mean(),
    }
    values = pdebench_metrics(p, q)
    for name, value in expected.items():
        assert values[name] == pytest.approx(value.item()), name


def test_batches_add_up():
    torch.manual_seed(0)
    p, q = torch.randn(7, 3, 16), torch.randn(7, 3, 16)
    metrics = RolloutMetrics(3, 16)
    for a, b in zip(p.split(3), q.split(3), strict=True):
        metrics.update(a, b)
    values = metrics.compute()
    assert len(values.pop("nrmse_over_time")) == 3
    assert values == pytest.approx(pdebench_metrics(p, q))


def test_shapes_are_refused_with_a_sentence():
    with pytest.raises(UpsError, match=r"\(B, T, X\)"):
        pdebench_metrics(torch.zeros(3, 4), torch.zeros(3, 4))
    with pytest.raises(UpsError, match="one shape"):
        pdebench_metrics(torch.zeros(3, 4, 5), torch.zeros(3, 4, 6))


def test_a_floor_keeps_fields_that_have_decayed_from_deciding():
    target = torch.cat((torch.randn(3, 2, 16), 1e-9 * torch.randn(1, 2, 16)))
    pred = target + 1e-3
    values = {}
    for floor in (0.0, 0.01):
        metrics = RolloutMetrics(2, 16, floor=floor)
        metrics.update(pred, target)
        values[floor] = metrics.compute()["nrmse"]
    assert values[0.0] > 1e4
    assert values[0.01] < 0.1
