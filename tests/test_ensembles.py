"""Scores of ensembles: against other packages and closed forms, and of ensembles that are known."""

import math
from dataclasses import replace

import numpy as np
import properscoring
import pytest
import scoringrules
import torch
from torch.autograd import gradcheck

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid, PointCloud
from ups.metrics import (
    EnsembleMetrics,
    RolloutMetrics,
    calibrated_coverage,
    coverage,
    distance_to_mean,
    energy_score,
    fair_crps,
    rank_histogram,
    spread_skill,
)

SPEC = FieldSpec(Grid((5, 4), (2.0, 1.0)), ("u", "v"), std=(0.5, 20.0))
AXES = SPEC.space_axes
NUM_MEMBERS, NUM_FRAMES = 4, 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussians(num_members, num_values, dispersion=1.0, seed=0):
    """Draws (M, N), too wide by ``dispersion``, and truths (N,), about centers of their own."""
    rng = generator(seed)
    centers = 3 * torch.randn(num_values, generator=rng, dtype=torch.float64)
    truth = centers + torch.randn(num_values, generator=rng, dtype=torch.float64)
    noise = torch.randn(num_members, num_values, generator=rng, dtype=torch.float64)
    return centers + dispersion * noise, truth


def rollouts(num_trajectories=5, seed=0):
    """Draws (M, B, T, *space, C) and truths of channels of different sizes."""
    rng = generator(seed)
    target = torch.randn(num_trajectories, NUM_FRAMES, *SPEC.shape, generator=rng)
    noise = torch.randn(NUM_MEMBERS, *target.shape, generator=rng)
    growth = torch.linspace(0.2, 1.0, NUM_FRAMES).view(-1, 1, 1, 1)
    size = torch.tensor([1.0, 30.0])
    return size * (target + growth * noise + 0.1), size * target


def metrics_of(samples, target):
    metrics = EnsembleMetrics(NUM_FRAMES, SPEC, NUM_MEMBERS)
    metrics.update(samples, target)
    return metrics.compute()


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.allclose(found[name], values, rtol=1e-6, atol=1e-12), name


# --- the fair CRPS ---


@pytest.mark.parametrize("num_members", [2, 3, 10, 33])
def test_fair_crps_equals_that_of_scoringrules(num_members):
    samples, target = gaussians(num_members, 200)
    expected = scoringrules.crps_ensemble(
        target.numpy(), samples.numpy(), m_axis=0, estimator="fair", backend="numpy"
    )
    assert fair_crps(samples, target).numpy() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("num_members", [2, 5])
def test_fair_crps_is_properscorings_less_a_share_of_the_mean_difference(num_members):
    """That one divides the sum of differences by M^2, not by M (M - 1)."""
    samples, target = (each.view(*each.shape[:-1], 20, 10) for each in gaussians(num_members, 200))
    differences = (samples[:, None] - samples).abs().sum((0, 1))
    m = num_members
    plain = properscoring.crps_ensemble(target.numpy(), samples.numpy(), axis=0)
    expected = plain - (differences * (1 / (m * (m - 1)) - 1 / m**2) / 2).numpy()
    assert fair_crps(samples, target).numpy() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_fair_crps_of_many_gaussian_draws_is_the_closed_form():
    samples = torch.randn(200_000, 1, generator=generator(), dtype=torch.float64)
    target = torch.tensor([-2.0, -0.3, 0.0, 1.1, 4.0], dtype=torch.float64)
    found = fair_crps(1.5 * samples.expand(-1, 5) + 0.2, target)
    # Gneiting and Raftery 2007, equation 21 and the line after it
    z = (target - 0.2) / 1.5
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    distribution = torch.special.ndtr(z)
    expected = 1.5 * (z * (2 * distribution - 1) + 2 * density - 1 / math.sqrt(math.pi))
    assert found.tolist() == pytest.approx(expected.tolist(), rel=0.01)


@pytest.mark.parametrize("num_members", [2, 3, 20])
def test_fair_crps_expectation_does_not_depend_on_the_number_of_draws(num_members):
    """Of calibrated draws it is half the mean difference of two of them, 1/sqrt(pi)."""
    samples, target = gaussians(num_members, 50_000, seed=num_members)
    found = fair_crps(samples, target).mean().item()
    assert found == pytest.approx(1 / math.sqrt(math.pi), rel=0.02)


def test_fair_crps_does_not_depend_on_the_order_of_the_draws():
    samples, target = gaussians(6, 50)
    order = torch.randperm(6, generator=generator())
    assert torch.allclose(fair_crps(samples[order], target), fair_crps(samples, target), rtol=1e-12)


def test_fair_crps_has_the_gradients_of_its_definition():
    samples, target = gaussians(5, 6)
    assert gradcheck(fair_crps, (samples.requires_grad_(), target.requires_grad_()))


def test_fair_crps_in_float32_has_exact_gradients_and_digits_of_large_values():
    samples, target = (each.float() for each in gaussians(5, 300))
    exact = fair_crps(samples.double(), target.double())
    assert torch.allclose(fair_crps(samples + 4096, target + 4096), exact.float(), atol=2e-3)
    assert torch.allclose(fair_crps(samples, target), exact.float(), atol=2e-6)
    single, double = samples.clone().requires_grad_(), samples.double().requires_grad_()
    fair_crps(single, target).sum().backward()
    fair_crps(double, target.double()).sum().backward()
    assert torch.allclose(single.grad, double.grad.float(), rtol=0, atol=1e-7)


def test_fair_crps_of_equal_draws_is_their_error_with_finite_gradients():
    samples = torch.full((3, 4), 2.0, requires_grad=True)
    found = fair_crps(samples, torch.tensor([2.0, 1.0, 0.0, 5.0]))
    assert found.tolist() == [0.0, 1.0, 2.0, 3.0]
    found.sum().backward()
    assert samples.grad.isfinite().all()


# --- the fair energy score ---


@pytest.mark.parametrize("num_members", [2, 3, 10])
def test_energy_score_equals_that_of_scoringrules(num_members):
    rng = generator()
    samples = torch.randn(num_members, 7, 12, generator=rng, dtype=torch.float64)
    target = torch.randn(7, 12, generator=rng, dtype=torch.float64)
    fair = scoringrules.es_ensemble(
        target.numpy(), samples.numpy(), m_axis=0, v_axis=-1, estimator="fair", backend="numpy"
    )
    found = energy_score(samples, target, (-1,)).numpy()
    assert found == pytest.approx(fair / math.sqrt(12), rel=1e-9)


def test_energy_score_of_single_values_is_the_fair_crps():
    samples, target = gaussians(7, 40)
    found = energy_score(samples[..., None], target[..., None], (-1,))
    assert torch.allclose(found, fair_crps(samples, target), rtol=1e-9)


def test_energy_score_is_of_the_axes_given_and_relative_to_the_size_given():
    samples, target = rollouts()
    size = target.square().mean(AXES).sqrt()
    found = energy_score(samples, target, AXES, size)
    assert found.shape == size.shape == (5, NUM_FRAMES, 2)
    one = energy_score(samples[:, 1, 2, ..., 1], target[1, 2, ..., 1], (-2, -1))
    assert found[1, 2, 1].item() == pytest.approx((one / size[1, 2, 1]).item(), rel=1e-5)
    whole = energy_score(samples, target, (-4, -3, -2, -1))
    flat = energy_score(samples.flatten(2), target.flatten(1), (-1,))
    assert torch.allclose(whole, flat)


def test_energy_score_has_the_gradients_of_its_definition():
    rng = generator()
    samples = torch.randn(4, 2, 3, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 3, 2, generator=rng, dtype=torch.float64)
    assert gradcheck(lambda x: energy_score(x, target, (-2, -1), 2.0), (samples,))


def test_energy_score_of_equal_draws_is_their_error_with_finite_gradients():
    samples = torch.ones(3, 2, 4, requires_grad=True)
    target = torch.tensor([[1.0], [0.5]]).expand(2, 4)
    found = energy_score(samples, target, (-1,))
    assert found.tolist() == [0.0, 0.5]
    found.sum().backward()
    assert samples.grad.isfinite().all()


# --- ranks and coverage ---


def test_rank_histogram_counts_hand_made_ranks():
    samples = torch.tensor([[3.0] * 5, [1.0] * 5])
    found = rank_histogram(samples, torch.tensor([0.0, 2.0, 2.5, 9.0, 0.5]))
    assert found.tolist() == [2, 2, 1]
    assert rank_histogram(samples, torch.zeros(5)).tolist() == [5, 0, 0]


def test_rank_histogram_breaks_ties_at_random():
    samples = torch.tensor([0.0, 1.0, 1.0]).view(3, 1).expand(3, 30_000)
    target = torch.ones(30_000)
    found = rank_histogram(samples, target, generator())
    assert found[0] == 0
    assert (found[1:] / 30_000).tolist() == pytest.approx([1 / 3] * 3, abs=0.01)
    assert torch.equal(rank_histogram(samples, target, generator()), found)
    assert not torch.equal(rank_histogram(samples, target, generator(1)), found)


def test_rank_histogram_is_flat_of_calibrated_draws_alone():
    shares = {}
    for dispersion in (0.5, 1.0, 2.0):
        samples, target = gaussians(4, 50_000, dispersion)
        shares[dispersion] = rank_histogram(samples, target) / 50_000
        assert shares[dispersion].sum() == pytest.approx(1.0)
    assert shares[1.0].tolist() == pytest.approx([0.2] * 5, abs=0.01)
    assert shares[0.5][[0, 4]].min() > 0.3  # too close to each other
    assert shares[2.0][[0, 4]].max() < 0.13  # too far apart


@pytest.mark.parametrize(
    ("num_members", "level", "expected"),
    [(3, 0.9, 1 / 2), (19, 0.9, 0.9), (32, 0.9, 29 / 33), (15, 0.8, 3 / 4), (2, 0.1, 1 / 3)],
)
def test_coverage_of_calibrated_draws_is_what_their_number_allows(num_members, level, expected):
    assert calibrated_coverage(num_members, level) == pytest.approx(expected)
    samples, target = gaussians(num_members, 50_000)
    assert coverage(samples, target, level).item() == pytest.approx(expected, abs=0.01)
    # another distribution, far from Gaussian
    assert coverage(samples.exp(), target.exp(), level).item() == pytest.approx(expected, abs=0.01)


def test_coverage_of_draws_that_are_too_close_is_too_low():
    close, target = gaussians(19, 20_000, dispersion=0.5)
    wide, _ = gaussians(19, 20_000, dispersion=2.0)
    assert coverage(close, target).item() < 0.7
    assert coverage(wide, target).item() > 0.97


def test_coverage_is_of_the_draws_central_interval_ends_included():
    samples = torch.arange(1.0, 20.0).view(19, 1).flip(0)  # 1 to 19: of 90 % all, of 80 % 2 to 18
    target = torch.tensor([0.9, 1.0, 1.9, 2.0, 18.0, 18.1, 19.0, 19.1])
    inside = [
        [coverage(samples, value[None], level).item() for value in target] for level in (0.9, 0.8)
    ]
    assert inside == [[0, 1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 1, 1, 0, 0, 0]]


# --- the distance from the mean ---


def test_values_that_are_nan_have_no_rank_and_no_coverage():
    samples, target = gaussians(4, 6)
    samples[2, 1] = target[3] = math.nan
    assert rank_histogram(samples, target).sum() == 4
    assert coverage(samples, target).isnan()


def test_ensemble_metrics_of_a_draw_that_is_nan_are_nan_where_it_is():
    samples, target = rollouts()
    samples[1, 0, 2] = math.nan
    metrics = EnsembleMetrics(NUM_FRAMES, SPEC, NUM_MEMBERS)
    metrics.update(samples, target)
    scores = metrics.compute()
    for name in ("crps", "energy_score", "ensemble_nrmse", "coverage_90", "rank_histogram"):
        assert scores[name].isnan().any()
        is_nan = scores[f"{name}_by_frame"].isnan().flatten(1)
        assert (is_nan == torch.tensor([[False], [False], [True]])).all()


def test_distance_to_mean_equals_its_written_out_definition():
    samples, _ = rollouts()
    found = distance_to_mean(samples, SPEC)
    assert found.shape == samples.shape[:2]
    draws = samples.double().numpy()
    for m, b in np.ndindex(*found.shape):
        expected = [
            np.sqrt(((draws[m, b, t, ..., c] - mean) ** 2).mean() / (mean**2).mean())
            for t in range(NUM_FRAMES)
            for c in range(2)
            for mean in [draws[:, b, t, ..., c].mean(0)]
        ]
        assert found[m, b].item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_nearest_draw_to_the_mean_has_a_smaller_error_on_average():
    # each draw is off by as much as the truth is, some by more: of any of these the truth is one
    rng = generator()
    sizes = torch.rand(9, 200, 1, 1, 1, 1, generator=rng)
    off = sizes * torch.randn(9, 200, 1, *SPEC.shape, generator=rng)
    samples, truth = 2 + off[:8], 2 + off[8]
    errors = (samples - truth).square().flatten(2).mean(2).sqrt()
    nearest = distance_to_mean(samples, SPEC).argmin(0, keepdim=True)
    assert errors.gather(0, nearest).mean() < 0.9 * errors.mean()


def test_distance_to_mean_is_zero_of_equal_draws_and_finite_around_zero():
    samples = torch.zeros(3, 2, NUM_FRAMES, *SPEC.shape)
    assert distance_to_mean(samples, SPEC).eq(0).all()
    samples[0], samples[1] = 1.0, -1.0
    assert distance_to_mean(samples, SPEC).isfinite().all()


# --- what is refused ---


@pytest.mark.parametrize(
    "score",
    [
        fair_crps,
        lambda x, y: energy_score(x, y, (-1,)),
        rank_histogram,
        coverage,
        lambda x, y: spread_skill(x, y, SPEC),
    ],
)
def test_scores_refuse_a_single_draw_and_other_shapes(score):
    field = torch.zeros(SPEC.shape)
    with pytest.raises(UpsError, match=r"must have at least 2 members, got 1\.$"):
        score(field[None], field)
    with pytest.raises(
        UpsError, match=r"^`samples` must have the shape \(M, \.\.\.\).*\(3, 5, 4, 2"
    ):
        score(torch.zeros(3, *SPEC.shape), field[0])


def test_scores_refuse_levels_axes_and_sizes_out_of_range():
    samples, target = gaussians(3, 4)
    for level in (0.0, 1.0, 90):
        with pytest.raises(
            UpsError, match=f"^`level` must be a number between 0 and 1, got {level}"
        ):
            coverage(samples, target, level)
    for axes in ((), (0,), (-1, 1)):
        with pytest.raises(UpsError, match=r"^`axes` must be counted from the end"):
            energy_score(samples, target, axes)
    single = torch.zeros(1, NUM_FRAMES, *SPEC.shape)
    for refused in (
        lambda: EnsembleMetrics(2, SPEC, 1),
        lambda: calibrated_coverage(1),
        lambda: distance_to_mean(single, SPEC),
    ):
        with pytest.raises(UpsError, match=r"must have at least 2 members, got 1\.$"):
            refused()


def test_energy_score_refuses_axes_that_the_target_lacks():
    field = torch.zeros(64)  # without the axis of channels that the axes of a spec count
    for axes in ((-2,), (-1, -1), (-3, -2), -1, [-1]):
        with pytest.raises(UpsError, match=r"numbers from -1 to -1 in a tuple, got"):
            energy_score(torch.zeros(5, 64), field, axes)


@pytest.mark.parametrize(
    "shape", [(4, 3, 10, 5, 4), (4, 3, 10, 5, 3, 2), (4, 5, 4, 2)], ids=["channels", "grid", "time"]
)
def test_distances_and_spreads_refuse_what_is_no_field_of_the_spec(shape):
    samples = torch.randn(shape)
    with pytest.raises(UpsError, match=r"^`samples` must be fields \(5, 4, 2\) with"):
        distance_to_mean(samples, SPEC)
    if shape[-3:] != SPEC.shape:
        with pytest.raises(UpsError, match=r"^`samples` must be fields \(5, 4, 2\)"):
            spread_skill(samples, samples[0], SPEC)
    on_points = FieldSpec(PointCloud(((0.0, 1.0), (0.0, 1.0))), ("u", "v"), std=(1.0, 1.0))
    for refused in (
        lambda: distance_to_mean(samples, on_points),
        lambda: spread_skill(samples, samples[0], on_points),
    ):
        with pytest.raises(UpsError, match="must describe a field on a grid"):
            refused()


# --- numbers of any type and unit ---


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.bool])
def test_scores_of_whole_numbers_are_exact(dtype):
    samples, target = torch.tensor([[0], [1], [1], [0]]).to(dtype), torch.tensor([1]).to(dtype)
    expected = fair_crps(samples.double(), target.double())
    assert fair_crps(samples, target).tolist() == expected.tolist()
    assert energy_score(samples, target, (-1,)).item() == pytest.approx(expected.item())
    large = torch.tensor([[30000], [20000]], dtype=torch.int16)
    assert fair_crps(large, -large[0]).item() == pytest.approx(50000)


def test_scores_take_arrays_of_numpy_and_refuse_complex_numbers():
    samples, target = gaussians(4, 6)
    for score in (fair_crps, coverage, rank_histogram):
        torch.manual_seed(0)
        found = score(samples.numpy(), target.numpy())
        torch.manual_seed(0)
        assert found.tolist() == score(samples, target).tolist()
    with pytest.raises(UpsError, match=r"^`samples` must be real numbers, got complex"):
        fair_crps(samples + 0j, target)


@pytest.mark.parametrize("unit", [1e-12, 1e-7, 1e7, 1e12])
def test_ensemble_scores_do_not_depend_on_the_unit(unit):
    samples, target = rollouts()
    spec = replace(SPEC, std=tuple(unit * std for std in SPEC.std))
    metrics = EnsembleMetrics(NUM_FRAMES, spec, NUM_MEMBERS)
    metrics.update(unit * samples, unit * target)
    expected = metrics_of(samples, target)
    for name, score in metrics.compute().items():
        assert torch.allclose(score, expected[name], rtol=1e-4), name
    found = spread_skill(unit * samples, unit * target, spec)
    assert torch.allclose(found, spread_skill(samples, target, SPEC), rtol=1e-4)
    found = distance_to_mean(unit * samples, spec)
    assert torch.allclose(found, distance_to_mean(samples, SPEC), rtol=1e-4)


def test_squares_of_half_precision_do_not_overflow():
    samples, target = rollouts()
    expected = distance_to_mean(samples, SPEC)
    found = distance_to_mean((300 * samples).half(), replace(SPEC, std=(150.0, 6000.0)))
    assert found.dtype == torch.float16
    assert torch.allclose(found.float(), expected, rtol=1e-2)
    assert spread_skill((300 * samples).half(), (300 * target).half(), SPEC).isfinite().all()


# --- several scores at once ---


def test_ensemble_metrics_refuse_other_shapes():
    samples, target = rollouts()
    for wrong in (
        (samples[1:], target),
        (samples[:, :, 1:], target[:, 1:]),
        (samples[..., :1], target[..., :1]),
        (samples, target[1:]),
    ):
        with pytest.raises(UpsError, match=r"^ensembles must have the shape \(4, B, 3, 5, 4, 2\)"):
            metrics_of(*wrong)


# --- accumulated over rollouts ---


def test_ensemble_metrics_equal_written_out_definitions():
    samples, target = rollouts()
    found = metrics_of(samples, target)
    x, y = samples.double().numpy(), target.double().numpy()
    crps = scoringrules.crps_ensemble(y, x, m_axis=0, estimator="fair", backend="numpy").mean(
        (0, 2, 3)
    )
    size = np.sqrt((y**2).mean((2, 3)))
    flat = [np.moveaxis(each, -1, -3).reshape(*each.shape[:-3], 2, 20) for each in (x, y)]
    energy = scoringrules.es_ensemble(
        flat[1], flat[0], m_axis=0, v_axis=-1, estimator="fair", backend="numpy"
    )
    spread = np.sqrt(x.var(0, ddof=1).mean((2, 3)) * (NUM_MEMBERS + 1) / NUM_MEMBERS) / size
    error = np.sqrt(((x.mean(0) - y) ** 2).mean((2, 3))) / size
    ranks = (x < y).sum(0)
    inside = (ranks > 0) & (ranks < NUM_MEMBERS)
    by_frame = {
        "crps": crps / SPEC.std,
        "energy_score": (energy / math.sqrt(20) / size).mean(0),
        "ensemble_nrmse": error.mean(0),
        "ensemble_spread": spread.mean(0),
        "coverage_90": inside.mean((0, 2, 3)),
    }
    expected = {name: values.mean() for name, values in by_frame.items()}
    expected["spread_skill_ratio"] = spread.mean() / error.mean()
    expected["spread_skill_ratio_rms"] = math.sqrt((spread**2).mean() / (error**2).mean())
    by_frame["spread_skill_ratio"] = spread.mean(0) / error.mean(0)
    by_frame["spread_skill_ratio_rms"] = np.sqrt((spread**2).mean(0) / (error**2).mean(0))
    shares = np.stack([(ranks == k).mean((0, 2, 3)) for k in range(NUM_MEMBERS + 1)], -1)
    histogram = {"rank_histogram": shares.mean((0, 1)), "rank_histogram_by_frame": shares}
    expected |= {f"{name}_by_frame": values for name, values in by_frame.items()} | histogram
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].shape == np.shape(values), name
        assert found[name].numpy() == pytest.approx(values, rel=1e-5), name


def test_ensemble_metrics_of_equal_draws_are_the_errors_of_one():
    samples, target = rollouts()
    found = metrics_of(samples[:1].expand_as(samples), target)
    one = RolloutMetrics(NUM_FRAMES, SPEC)
    one.update(samples[0], target)
    nrmse = one.compute()["nrmse"]
    assert found["ensemble_nrmse"].item() == pytest.approx(nrmse, rel=1e-5)
    assert found["energy_score"].item() == pytest.approx(nrmse, rel=1e-5)
    mean_error = (samples[0] - target).abs().mean((0, 1, 2, 3)) / torch.tensor(SPEC.std)
    assert found["crps"].item() == pytest.approx(mean_error.mean().item(), rel=1e-5)
    assert found["spread_skill_ratio"].item() == pytest.approx(0.0, abs=1e-6)
    assert found["coverage_90"].item() == 0.0


def test_ensemble_metrics_add_up_over_uneven_batches():
    samples, target = rollouts()
    metrics = EnsembleMetrics(NUM_FRAMES, SPEC, NUM_MEMBERS)
    for batch in (slice(0, 3), slice(3, 4), slice(4, 5)):
        metrics.update(samples[:, batch], target[batch])
    assert_equal(metrics.compute(), metrics_of(samples, target))
    metrics.reset()
    metrics.update(samples[:, :2], target[:2])
    assert_equal(metrics.compute(), metrics_of(samples[:, :2], target[:2]))


def test_ensemble_metrics_of_two_processes_merge():
    samples, target = rollouts()
    parts = [EnsembleMetrics(NUM_FRAMES, SPEC, NUM_MEMBERS) for _ in range(2)]
    for part, batch in zip(parts, (slice(0, 3), slice(3, 5)), strict=True):
        part.update(samples[:, batch], target[batch])
    parts[0].merge_state(parts[1])
    assert_equal(parts[0].compute(), metrics_of(samples, target))


def test_ensemble_metrics_leave_the_draws_of_others_as_they_are():
    samples, target = rollouts()
    samples[0] = target  # ties everywhere
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    found = metrics_of(samples, target)
    assert torch.equal(torch.rand(3), expected)
    assert_equal(metrics_of(samples, target), found)


def test_ensemble_metrics_rank_the_truth_at_random_among_equal_draws():
    _, target = rollouts()
    found = metrics_of(target.expand(NUM_MEMBERS, *target.shape), target)
    assert found["rank_histogram"].tolist() == pytest.approx([0.2] * 5, abs=0.06)
    assert found["coverage_90"].item() == 1.0


def test_ensemble_metrics_are_finite_when_the_truth_is_zero():
    zero = torch.zeros(2, NUM_FRAMES, *SPEC.shape)
    samples = 1e-3 * torch.randn(NUM_MEMBERS, *zero.shape, generator=generator())
    found = metrics_of(samples, zero)
    assert all(values.isfinite().all() for values in found.values())
