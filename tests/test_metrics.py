"""Metrics against hand-computed values and against PDEBench's definitions written out."""

import math

import numpy as np
import pytest
import torch
from conftest import line_spec
from helpers.points import draw_points, padded, waves

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.evaluation.metrics import NAMES, RolloutMetrics, pdebench_metrics


def test_pdebench_metrics_equal_hand_computed_values():
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


def test_pdebench_metrics_equal_definitions_on_a_line():
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


def test_pdebench_metrics_on_points_leave_out_what_pads():
    points = draw_points(40)
    p, q = (waves(points, phase)[:, None].repeat(1, 3, 1, 1).double() for phase in (0.3, 0.0))
    longer, wide_p = padded(points, p[:, 0])
    wide_q = padded(points, q[:, 0])[1] + torch.rand(3, 47, 2) * ~longer.mask[..., None]
    wide_p, wide_q = (u[:, None].repeat(1, 3, 1, 1).double() for u in (wide_p, wide_q))
    square = (p - q).square().mean(2)
    expected = {
        "rmse": square.sqrt().mean().item(),
        "nrmse": (square / q.square().mean(2)).sqrt().mean().item(),
        "max_error": (p - q).abs().amax((0, 2)).mean().item(),
    }
    assert pdebench_metrics(p, q, points=points) == pytest.approx(expected)
    assert pdebench_metrics(wide_p, wide_q, points=longer) == pytest.approx(expected)
    wide_p[:, :, 40:] = math.nan
    assert pdebench_metrics(wide_p, wide_q, points=longer) == pytest.approx(expected)
    one = pdebench_metrics(p[..., 0], q[..., 0], points=points)
    assert one == pdebench_metrics(p[..., :1], q[..., :1], points=points)
    with pytest.raises(UpsError, match=r"one shape at `points`, \(B, T, P\)"):
        pdebench_metrics(p[0], q[0], points=points)


def test_rollout_metrics_add_up_over_batches():
    torch.manual_seed(0)
    p, q = torch.randn(7, 3, 16), torch.randn(7, 3, 16)
    metrics = RolloutMetrics(3, line_spec(16))
    for a, b in zip(p[..., None].split(3), q[..., None].split(3), strict=True):
        metrics.update(a, b)
    values = metrics.compute()
    assert len(values.pop("nrmse_over_time")) == 3
    variance = ((q - q.mean(-1, keepdim=True)) ** 2).mean(-1) + 1e-7
    vrmse = (((p - q) ** 2).mean(-1) / variance).sqrt().mean().item()
    assert values.pop("vrmse") == pytest.approx(vrmse)
    assert values == pytest.approx(pdebench_metrics(p, q))


def test_vrmse_does_not_count_the_mean_of_the_target():
    torch.manual_seed(0)
    p, q = torch.randn(2, 3, 4, 16, 1)
    found = []
    for mean in (0.0, 50.0):
        metrics = RolloutMetrics(4, line_spec(16))
        metrics.update(p + mean, q + mean)
        found.append(metrics.compute())
    assert found[1]["vrmse"] == pytest.approx(found[0]["vrmse"], rel=1e-4)
    assert found[1]["nrmse"] < 0.1 * found[0]["nrmse"]


@pytest.mark.parametrize(
    ("one", "other"),
    [((3, 4), (3, 4)), ((3, 4, 5), (3, 4, 6)), ((1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 6))],
)
def test_pdebench_metrics_refuse_other_shapes_with_a_sentence(one, other):
    with pytest.raises(UpsError, match=r"must have one shape, \(B, T, X\).* got \(") as refusal:
        pdebench_metrics(torch.zeros(one), torch.zeros(other))
    assert str(refusal.value).endswith(f"got {one} and {other}.")


def test_rollout_metrics_floor_keeps_decayed_fields_from_deciding():
    target = torch.cat((torch.randn(3, 2, 16), 1e-9 * torch.randn(1, 2, 16)))[..., None]
    pred = target + 1e-3
    values = {}
    for floor in (0.0, 0.01):
        metrics = RolloutMetrics(2, line_spec(16), floor=floor)
        metrics.update(pred, target)
        values[floor] = metrics.compute()["nrmse"]
    assert values[0.0] > 1e4
    assert values[0.01] < 0.1


def test_rollout_metrics_floor_is_in_units_of_each_channels_std():
    spec = FieldSpec(Grid((4,), (1.0,)), ("u", "v"), std=(2.0, 0.1))
    target = torch.zeros(1, 1, 4, 2)
    metrics = RolloutMetrics(1, spec, floor=0.5)
    metrics.update(target + 0.3, target)
    assert metrics.compute()["nrmse"] == pytest.approx((0.3 / 1.0 + 0.3 / 0.05) / 2, rel=1e-6)


# --- two dimensions ---


def metrics_on_a_plane(pred, target, extent):
    """PDEBench's definitions, point by point and wave by wave; rollouts (B, T, X, Y, C)."""
    samples, frames, nx, ny, channels = pred.shape
    edges = [(side, j) for side in (0, nx - 1) for j in range(ny)]
    edges += [(i, side) for side in (0, ny - 1) for i in range(nx)]  # corners are on two edges
    shells = min(nx, ny) // 2
    sums = dict.fromkeys(("rmse", "nrmse", "crmse", "brmse", "max_error"), 0.0)
    shell_values = np.zeros((frames, channels, shells))
    for t in range(frames):
        for c in range(channels):
            p, q = pred[:, t, ..., c], target[:, t, ..., c]
            mass, largest, squares = 0.0, 0.0, np.zeros((samples, shells))
            for n in range(samples):
                error = p[n] - q[n]
                root = math.sqrt((error**2).sum() / (nx * ny))
                sums["rmse"] += root / samples
                sums["nrmse"] += root / math.sqrt((q[n] ** 2).sum() / (nx * ny)) / samples
                mass += error.sum() ** 2 / samples
                outside = sum(error[i, j] ** 2 for i, j in edges) / len(edges)
                sums["brmse"] += math.sqrt(outside) / samples
                largest = max(largest, np.abs(error).max())
                spectrum = np.fft.fft2(p[n]) - np.fft.fft2(q[n])
                for i in range(nx // 2):
                    for j in range(ny // 2):
                        shell = math.floor(math.sqrt(i**2 + j**2))
                        if shell < shells:
                            squares[n, shell] += abs(spectrum[i, j]) ** 2
            sums["crmse"] += math.sqrt(mass) / (nx * ny)
            sums["max_error"] += largest
            amplitude = np.sqrt(squares.mean(0)) / (nx * ny) * extent[0] * extent[1]
            shell_values[t, c] = amplitude
    found = {name: value / (frames * channels) for name, value in sums.items()}
    bands = {"low": (0, 4), "mid": (4, 12), "high": (12, shells)}
    for name, (low, high) in bands.items():
        band = shell_values[..., low:high]
        found[f"frmse_{name}"] = band.mean() if band.size else 0.0
    return found


def random_plane(shape, seed=0):
    """Rollouts (B, T, X, Y, C) of another size in every sample, frame and channel."""
    rng = np.random.default_rng(seed)
    samples, frames, *_, channels = shape
    sizes = rng.uniform(0.2, 3.0, (samples, frames, 1, 1, channels))
    target = sizes * rng.normal(size=shape) + 0.3
    return target + rng.uniform(0.1, 1.0, sizes.shape) * (rng.normal(size=shape) + 0.4), target


# 28 x 26: all bands; 9 x 12: odd, and one shell in the middle band; 12 x 6: low alone
@pytest.mark.parametrize("space", [(28, 26), (9, 12), (12, 6)])
@pytest.mark.parametrize("channels", [1, 2])
def test_pdebench_metrics_equal_loops_on_a_plane(space, channels):
    pred, target = random_plane((3, 2, *space, channels))
    extent = (1.5, 0.8)
    found = pdebench_metrics(pred, target, extent)
    assert tuple(found) == NAMES
    assert found == pytest.approx(metrics_on_a_plane(pred, target, extent), rel=1e-9)
    one_number = pdebench_metrics(pred, target, 1.5)
    assert one_number == pytest.approx(metrics_on_a_plane(pred, target, (1.5, 1.5)), rel=1e-9)


def test_pdebench_metrics_channel_axis_may_be_left_out_on_a_plane():
    pred, target = random_plane((3, 2, 8, 10, 1))
    found = pdebench_metrics(pred[..., 0], target[..., 0])
    assert found == pdebench_metrics(pred, target)


def test_pdebench_metrics_are_means_over_channels():
    pred, target = random_plane((3, 2, 8, 10, 2))
    both = pdebench_metrics(pred, target)
    one, other = (pdebench_metrics(pred[..., [c]], target[..., [c]]) for c in range(2))
    assert both == pytest.approx({name: (one[name] + other[name]) / 2 for name in NAMES})


@pytest.mark.parametrize(("wave", "shell"), [((0, 0), 0), ((2, 2), 2), ((3, 3), 4), ((0, 7), 7)])
def test_pdebench_metrics_put_a_single_wave_of_a_plane_into_its_shell(wave, shell):
    i, j = np.meshgrid(np.arange(16), np.arange(16), indexing="ij")
    error = np.cos(2 * np.pi * (wave[0] * i + wave[1] * j) / 16)[None, None]
    found = pdebench_metrics(1 + error, np.ones((1, 1, 16, 16)))
    height = 1.0 if wave == (0, 0) else 0.5
    expected = {"frmse_low": 0.0, "frmse_mid": 0.0, "frmse_high": 0.0}
    expected["frmse_low" if shell < 4 else "frmse_mid"] = height / 4  # 4 of the 8 shells each
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_rollout_metrics_refuse_fields_of_another_grid():
    metrics = RolloutMetrics(2, FieldSpec(Grid((4, 6), (1.0, 1.0)), ("u", "v")))
    wrong = torch.zeros(3, 2, 6, 4, 2)
    with pytest.raises(UpsError, match=r"must have one shape \(B, T, 4, 6, 2\), got \(3, 2, 6"):
        metrics.update(wrong, wrong)
