"""Metrics, physics checks, spectrum and spread against values by hand and by a second formula."""

import math

import numpy as np
import pytest
import torch
from conftest import line_spec

from ups.core.errors import UpsError
from ups.core.fields import Boundary, FieldSpec, Grid
from ups.evaluation.ensembles import spread_skill
from ups.evaluation.metrics import (
    NAMES,
    PhysicsChecks,
    RolloutMetrics,
    energy_spectrum,
    pdebench_metrics,
)
from ups.physics import advection, burgers, limiters, periodic_1d

CORRELATION_TIMES = {
    "correlation_time": 0.8,
    "correlation_time_90": 0.9,
    "correlation_time_95": 0.95,
}
# of Burgers; advection conserves the energy, which has "energy_drift" and no "energy_growth" then
CHECKS = (
    *("mass_drift", "boundary_jump_error", "maximum_principle_violation"),
    *("tv_growth", "energy_growth", *CORRELATION_TIMES),
)

# one trajectory by hand, 4 points: its initial field, three predicted frames, the true ones
U0 = torch.tensor([[0.0, 1.0, 2.0, 1.0]])
PRED = torch.tensor([[[0.0, 3.0, 2.0, -1.0], [1.0, 2.0, 3.0, 2.0], [2.0, 3.0, 1.0, 2.0]]])
TARGET = torch.tensor([[[0.0, 1.0, 2.0, 1.0], [3.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.5]]])


def make_checks(equation, points, length=1.0, dt=0.1, **settings):
    spec = FieldSpec(Grid((points,), (length,)), parameters=("nu",), dt=dt)
    return PhysicsChecks(equation, spec, **settings)


def add(metric, *fields):
    """Update a metric with fields of one channel without its axis."""
    metric.update(*(field[..., None] for field in fields))


def checks_of(u0, pred, target, equation=burgers.EQUATION, **settings):
    checks = make_checks(equation, u0.shape[-1], **settings)
    add(checks, u0, pred, target)
    return checks.compute()


def random_rollout(seed, samples=3, frames=6, points=8):
    """A target, and a prediction that moves away from it until their correlation drops."""
    generator = torch.Generator().manual_seed(seed)
    u0 = torch.randn(samples, points, generator=generator)
    target = torch.randn(samples, frames, points, generator=generator) + 0.5
    noise = torch.randn(samples, frames, points, generator=generator)
    pred = target + noise * torch.linspace(0.1, 1.2, frames)[:, None]
    return u0, pred, target


def checks_written_out(u0, pred, target, dt, length, threshold):
    """The checks of all conserved quantities, sample by sample and frame by frame, in numpy."""
    sums = dict.fromkeys(
        (
            *("mass_drift", "energy_drift", "boundary_jump_error", "maximum_principle_violation"),
            *("tv_growth", "energy_growth", *CORRELATION_TIMES),
        ),
        0.0,
    )
    thresholds = {**CORRELATION_TIMES, "correlation_time": threshold}
    samples, frames, points = pred.shape
    dx = length / points
    for n in range(samples):
        before = np.asarray(u0[n], dtype=float)
        start = before
        still_high = dict.fromkeys(thresholds, True)
        for k in range(frames):
            now, true = (np.asarray(field[n, k], dtype=float) for field in (pred, target))
            sums["mass_drift"] += abs(now.sum() - start.sum()) * dx / frames
            energies = [0.5 * (field**2).sum() * dx for field in (start, before, now)]
            sums["energy_drift"] += abs(energies[2] - energies[0]) / frames
            jump = (now[0] - now[-1]) - (true[0] - true[-1])
            sums["boundary_jump_error"] += abs(jump) / frames
            above = max(0.0, now.max() - start.max())
            below = max(0.0, start.min() - now.min())
            sums["maximum_principle_violation"] += (above + below) / frames
            variations = [
                sum(abs(field[(i + 1) % points] - field[i]) for i in range(points))
                for field in (before, now)
            ]
            sums["tv_growth"] += max(0.0, variations[1] / variations[0] - 1) / frames
            sums["energy_growth"] += max(0.0, energies[2] / energies[1] - 1) / frames
            for name, lowest in thresholds.items():
                still_high[name] = still_high[name] and np.corrcoef(now, true)[0, 1] > lowest
                sums[name] += dt * still_high[name]
            before = now
    return {name: total / samples for name, total in sums.items()}


# --- physics checks ---


def test_physics_checks_equal_hand_computed_values():
    found = checks_of(U0, PRED, TARGET)
    assert set(found) == set(CHECKS)
    # means 1 at first, then 1, 2, 2
    assert found["mass_drift"] == pytest.approx((0 + 1 + 1) / 3)
    # jumps 1, -1, 0; true ones -1, 2, -0.5
    assert found["boundary_jump_error"] == pytest.approx((2 + 3 + 0.5) / 3)
    # the initial range is 0..2: 1 above and 1 below, 1 above, 1 above
    assert found["maximum_principle_violation"] == pytest.approx((2 + 1 + 1) / 3)
    # total variations 4, 8, 4, 4
    assert found["tv_growth"] == pytest.approx((1 + 0 + 0) / 3)
    # sums of squares 6, 14, 18, 18
    assert found["energy_growth"] == pytest.approx((8 / 6 + 4 / 14 + 0) / 3)


def test_physics_checks_mass_drift_counts_losses_as_gains():
    pred = torch.stack((U0 - 1.0, U0 + 1.0), 1)
    assert checks_of(U0, pred, pred)["mass_drift"] == pytest.approx(1.0)


def test_physics_checks_drifts_are_integrals_over_the_length():
    found = checks_of(U0, PRED, TARGET, advection.EQUATION, length=2.5)
    assert set(found) == {"energy_drift", *CHECKS} - {"energy_growth"}
    assert found["mass_drift"] == pytest.approx(2.5 * (0 + 1 + 1) / 3)
    # half the mean square times the length: mean squares 6/4 at first, then 14/4, 18/4, 18/4
    assert found["energy_drift"] == pytest.approx(2.5 / 2 * (8 + 12 + 12) / 4 / 3)
    # ratios and values at points know no length
    for equation in (burgers.EQUATION, advection.EQUATION):
        found = checks_of(U0, PRED, TARGET, equation, length=2.5)
        same = checks_of(U0, PRED, TARGET, equation)
        assert found.keys() == same.keys()
        for name in found.keys() - {"mass_drift", "energy_drift"}:
            assert found[name] == pytest.approx(same[name])


def test_physics_checks_energy_drift_counts_losses_too():
    pred = torch.stack((0.5 * U0, 2.0 * U0), 1)
    # half the mean square 6/4 is 0.75: a loss of 3/4 of it, a gain of 3 times it
    expected = 0.75 * (0.75 + 3) / 2
    assert checks_of(U0, pred, pred, advection.EQUATION)["energy_drift"] == pytest.approx(expected)


def test_physics_checks_boundary_jump_error_is_zero_for_any_jump_that_the_truth_has():
    pred = TARGET + 7.0
    pred[..., 1:3] -= 5.0  # inside
    assert checks_of(U0, pred, TARGET)["boundary_jump_error"] == pytest.approx(0.0, abs=1e-12)


def test_physics_checks_maximum_principle_violation_is_zero_within_the_initial_range():
    pred = U0[:, None] * torch.tensor([1.0, 0.5, 0.1])[:, None]
    assert checks_of(U0, pred, pred)["maximum_principle_violation"] == 0.0


@pytest.mark.parametrize(("change", "expected"), [(0.25, 0.25), (-0.5, 0.5)])
def test_physics_checks_maximum_principle_violation_sees_above_and_below(change, expected):
    pred = (U0 + change)[:, None]
    assert checks_of(U0, pred, pred)["maximum_principle_violation"] == pytest.approx(expected)


def test_physics_checks_growth_takes_each_step_from_the_frame_before():
    # amplitudes 1, then 2, 1, 3: growth of variation 1, 0, 2; of energy 3, 0, 8
    wave = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    pred = wave[:, None] * torch.tensor([2.0, 1.0, 3.0])[:, None]
    found = checks_of(wave, pred, pred)
    assert found["tv_growth"] == pytest.approx((1 + 0 + 2) / 3)
    assert found["energy_growth"] == pytest.approx((3 + 0 + 8) / 3)


def test_physics_checks_growth_is_relative_also_of_small_fields():
    wave = 1e-4 * torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    found = checks_of(wave, 1.5 * wave[:, None], wave[:, None])
    assert found["tv_growth"] == pytest.approx(0.5)
    assert found["energy_growth"] == pytest.approx(1.25)


@pytest.mark.parametrize("level", [0.0, 0.1, -3.0])
def test_physics_checks_of_a_constant_field_are_right_and_finite(level):
    u0 = torch.full((2, 6), level)
    pred = u0[:, None].expand(-1, 4, -1)
    for equation in (burgers.EQUATION, advection.EQUATION):
        found = checks_of(u0, pred, pred, equation)
        for name in CORRELATION_TIMES:
            assert found.pop(name) == pytest.approx(0.4)  # as alike as can be
        assert found == dict.fromkeys(found, pytest.approx(0.0, abs=1e-12))
        assert len(found) == 5


def test_physics_checks_of_a_constant_start_do_not_count_rounding_as_growth():
    u0 = torch.ones(1, 64)
    noise = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0))
    found = checks_of(u0, u0[:, None] + 1e-6 * noise, u0[:, None].expand(1, 3, 64))
    assert found["tv_growth"] < 0.01  # 64 differences of 1e-6, of a hundredth of the size
    assert found["energy_growth"] < 1e-5


def test_physics_checks_correlation_time_is_zero_where_one_field_alone_is_constant():
    waves = torch.sin(torch.arange(8.0))[None, None].expand(1, 3, 8)
    flat = torch.ones(1, 3, 8)
    assert checks_of(waves[:, 0], flat, waves)["correlation_time"] == 0.0
    assert checks_of(waves[:, 0], waves, flat)["correlation_time"] == 0.0


def rotated(cosines):
    """Frames whose correlation with a sine is as told, of other sizes and levels: (1, T, 16)."""
    x = 2 * math.pi * torch.arange(16, dtype=torch.float64) / 16
    target = x.sin().expand(1, len(cosines), 16)
    c = torch.tensor(cosines, dtype=torch.float64)[:, None]
    pred = 3.0 * (c * x.sin() + (1 - c.square()).sqrt() * x.cos()) + 5.0
    return pred[None], target


@pytest.mark.parametrize(
    ("cosines", "frames"),
    [
        ([0.99, 0.81, 0.79, 0.99], 2),  # the first drop ends it
        ([0.79, 0.99, 0.99], 0),
        ([0.99, 0.95, 0.9], 3),
        ([0.9, -0.99, 0.9], 1),  # the opposite is no likeness
    ],
)
def test_physics_checks_correlation_time_ends_at_the_first_drop(cosines, frames):
    pred, target = rotated(cosines)
    found = checks_of(target[:, 0], pred, target, dt=0.3)
    assert found["correlation_time"] == pytest.approx(0.3 * frames)


def test_physics_checks_threshold_sets_the_lowest_correlation():
    pred, target = rotated([0.6, 0.55, 0.45])
    found = checks_of(target[:, 0], pred, target, threshold=0.5)
    assert found["correlation_time"] == pytest.approx(0.2)


def test_physics_checks_stricter_correlation_times_have_thresholds_of_their_own():
    pred, target = rotated([0.99, 0.96, 0.94, 0.91, 0.89, 0.85, 0.81, 0.79])
    found = checks_of(target[:, 0], pred, target, dt=0.5, threshold=0.6)
    assert found["correlation_time_95"] == pytest.approx(2 * 0.5)
    assert found["correlation_time_90"] == pytest.approx(4 * 0.5)
    assert found["correlation_time"] == pytest.approx(8 * 0.5)
    assert checks_of(target[:, 0], pred, target)["correlation_time"] == pytest.approx(7 * 0.1)


@pytest.mark.parametrize(
    ("equation", "other"), [(burgers, "energy_drift"), (advection, "energy_growth")]
)
def test_physics_checks_equal_written_out_formulas_over_uneven_batches(equation, other):
    u0, pred, target = random_rollout(3, samples=7)
    checks = make_checks(equation.EQUATION, 8, length=1.7, dt=0.07, threshold=0.9)
    for rows in (slice(0, 4), slice(4, 5), slice(5, 7)):
        add(checks, u0[rows], pred[rows], target[rows])
    expected = checks_written_out(u0, pred, target, 0.07, 1.7, 0.9)
    del expected[other]
    assert 0 < expected["correlation_time"] < 0.07 * 6
    assert checks.compute() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("unit", [1e-14, 1e-7, 1e12])
def test_relative_checks_do_not_depend_on_the_unit(unit):
    fields = random_rollout(3)
    spec = FieldSpec(Grid((8,), (1.0,)), parameters=("nu",), std=(unit,))
    checks = PhysicsChecks(burgers.EQUATION, spec)
    add(checks, *(unit * field for field in fields))
    found, expected = checks.compute(), checks_of(*fields)
    expected_times = {name: 10 * expected[name] for name in CORRELATION_TIMES}  # dt is 1 here
    assert {name: found[name] for name in CORRELATION_TIMES} == pytest.approx(expected_times)
    for name in ("tv_growth", "energy_growth"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)


def test_physics_checks_of_two_processes_merge():
    u0, pred, target = random_rollout(5)
    parts = [make_checks(burgers.EQUATION, 8) for _ in range(2)]
    for part, rows in zip(parts, (slice(0, 1), slice(1, 3)), strict=True):
        add(part, u0[rows], pred[rows], target[rows])
    parts[0].merge_state(parts[1])
    assert parts[0].compute() == pytest.approx(checks_of(u0, pred, target))


def test_physics_checks_reset_forgets():
    u0, pred, target = random_rollout(6)
    checks = make_checks(burgers.EQUATION, 8)
    add(checks, u0, 2 * pred, target)
    checks.reset()
    add(checks, u0, pred, target)
    assert checks.compute() == pytest.approx(checks_of(u0, pred, target))


def test_physics_checks_keep_what_needs_no_equation_when_there_is_none():
    u0, pred, target = random_rollout(7)
    found = checks_of(u0, pred, target, None, dt=0.3)
    whole = checks_of(u0, pred, target, dt=0.3)
    assert set(found) == {"boundary_jump_error", *CORRELATION_TIMES}
    assert found == pytest.approx({name: whole[name] for name in found})
    assert 0 < found["correlation_time"] < 0.3 * 6


WALLS = (Boundary.WALL, Boundary.OPEN)
CIRCLE = (Boundary.PERIODIC, Boundary.PERIODIC)


@pytest.mark.parametrize(
    ("boundary", "periodic"),
    [((CIRCLE, CIRCLE), (0, 1)), ((CIRCLE, WALLS), (0,)), ((WALLS, CIRCLE), (1,))],
)
def test_physics_checks_equal_loops_on_a_plane_of_two_channels(boundary, periodic):
    samples, frames, nx, ny = 3, 4, 5, 6
    rng = np.random.default_rng(0)
    target = rng.normal(size=(samples, frames, nx, ny, 2))
    pred = target + np.linspace(0.1, 1.4, frames)[:, None, None, None] * rng.normal(
        size=target.shape
    )
    spec = FieldSpec(Grid((nx, ny), (1.0, 2.0), boundary), ("u", "v"), dt=0.2)
    checks = PhysicsChecks(None, spec)
    checks.update(*(torch.from_numpy(a) for a in (target[:, 0], pred, target)))
    jump_error = 0.0
    times = dict.fromkeys(CORRELATION_TIMES, 0.0)
    for p, q in zip(pred, target, strict=True):
        still_high = dict.fromkeys(CORRELATION_TIMES, True)
        for a, b in zip(p, q, strict=True):
            jumps = [(a - b)[0] - (a - b)[-1], (a - b)[:, 0] - (a - b)[:, -1]]
            size = sum(np.abs(jumps[axis]).mean() for axis in periodic) / len(periodic)
            jump_error += size / samples / frames
            correlation = [np.corrcoef(a[..., c].ravel(), b[..., c].ravel())[0, 1] for c in (0, 1)]
            for name, lowest in CORRELATION_TIMES.items():
                still_high[name] = still_high[name] and sum(correlation) / 2 > lowest
                times[name] += 0.2 * still_high[name] / samples
    assert checks.compute() == pytest.approx({"boundary_jump_error": jump_error, **times})
    assert 0 < times["correlation_time"] < 0.2 * frames


def test_physics_checks_know_no_boundary_jump_where_no_axis_is_periodic():
    spec = FieldSpec(Grid((4, 4), (1.0, 1.0), (WALLS, WALLS)), dt=0.5)
    checks = PhysicsChecks(None, spec)
    u = torch.randn(2, 3, 4, 4, 1, generator=torch.Generator().manual_seed(0))
    checks.update(u[:, 0], u, u)
    assert checks.compute() == dict.fromkeys(CORRELATION_TIMES, pytest.approx(1.5))


# --- PDEBench's errors ---


def metrics_written_out(pred, target, length=1.0, floor=0.0):
    """PDEBench's definitions, in numpy; rollouts (B, T, X)."""
    p, q = (np.asarray(field, dtype=float) for field in (pred, target))
    points = p.shape[2]
    error = p - q
    rmse = np.sqrt((error**2).mean(2))
    size = np.maximum(np.sqrt((q**2).mean(2)), floor)
    # the discrete Fourier transform as a matrix, wave numbers 0..X/2
    waves = np.exp(-2j * np.pi * np.outer(np.arange(points), np.arange(points // 2 + 1)) / points)
    amplitude = np.sqrt((np.abs(error @ waves) ** 2).mean(0)) / points * length
    bands = {"low": amplitude[:, :4], "mid": amplitude[:, 4:12], "high": amplitude[:, 12:]}
    return {
        "rmse": rmse.mean(),
        "nrmse": (rmse / size).mean(),
        "vrmse": (rmse / np.sqrt(q.var(2) + 1e-7)).mean(),
        "crmse": (np.sqrt((error.sum(2) ** 2).mean(0)) / points).mean(),
        "brmse": np.sqrt((error[:, :, 0] ** 2 + error[:, :, -1] ** 2) / 2).mean(),
        "max_error": np.abs(error).max(2).max(0).mean(),
        **{f"frmse_{name}": band.mean() if band.size else 0.0 for name, band in bands.items()},
        "nrmse_over_time": (rmse / size).mean(0).tolist(),
    }


def random_pair(points, seed=0, samples=7, frames=3):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(samples, frames, points, generator=generator) + 0.3
    noise = torch.randn(samples, frames, points, generator=generator)
    # other sizes in every frame and sample, so that no mean over the wrong axis is the same
    sizes = (
        torch.linspace(0.2, 2.0, samples)[:, None, None] * torch.tensor([0.1, 1.0, 3.0])[:, None]
    )
    return target + sizes * (noise + 0.4), target * torch.tensor([1.0, 0.5, 2.0])[:, None]


# 40: all bands; 33: odd; 16: no high band; 9: odd, one wave number in the middle band; 5: low alone
@pytest.mark.parametrize("points", [40, 33, 16, 9, 5])
def test_pdebench_metrics_equal_written_out_definitions(points):
    pred, target = random_pair(points)
    found = pdebench_metrics(pred, target, 1.6)
    expected = metrics_written_out(pred, target, 1.6)
    assert tuple(found) == NAMES
    assert found == pytest.approx({name: expected[name] for name in NAMES}, rel=1e-6)
    assert pdebench_metrics(pred, target)["frmse_low"] == pytest.approx(found["frmse_low"] / 1.6)


def test_pdebench_metrics_have_empty_bands_of_zero_on_a_short_grid():
    pred, target = random_pair(6)
    found = pdebench_metrics(pred, target)
    assert (found["frmse_mid"], found["frmse_high"]) == (0.0, 0.0)


def test_pdebench_metrics_take_arrays():
    pred, target = random_pair(12)
    found = pdebench_metrics(pred.numpy(), target.numpy())
    assert found == pytest.approx(pdebench_metrics(pred, target))


@pytest.mark.parametrize("wave", [0, 3, 4, 11, 12, 20])
def test_pdebench_metrics_put_a_single_wave_into_its_band(wave):
    x = torch.arange(40, dtype=torch.float64) / 40
    error = (2 * math.pi * wave * x).cos().expand(1, 2, 40)
    found = pdebench_metrics(torch.ones(1, 2, 40) + error, torch.ones(1, 2, 40))
    # the transform of a cosine is X/2 at its wave number; X at the mean and at the finest wave
    height = 1.0 if wave in (0, 20) else 0.5
    widths = {"frmse_low": 4, "frmse_mid": 8, "frmse_high": 9}  # wave numbers 0..3, 4..11, 12..20
    own = "frmse_low" if wave < 4 else "frmse_mid" if wave < 12 else "frmse_high"
    expected = {name: height / width if name == own else 0.0 for name, width in widths.items()}
    assert {name: found[name] for name in widths} == pytest.approx(expected, abs=1e-12)


def test_rollout_metrics_equal_written_out_definitions_over_uneven_batches():
    pred, target = random_pair(20)
    metrics = RolloutMetrics(3, FieldSpec(Grid((20,), (2.5,))))
    for rows in (slice(0, 4), slice(4, 5), slice(5, 7)):
        add(metrics, pred[rows], target[rows])
    found, expected = metrics.compute(), metrics_written_out(pred, target, 2.5)
    assert found.pop("nrmse_over_time") == pytest.approx(expected.pop("nrmse_over_time"), rel=1e-6)
    assert found == pytest.approx(expected, rel=1e-6)


def test_rollout_metrics_largest_error_is_over_all_batches_for_each_frame():
    target = torch.ones(4, 2, 4)
    pred = target.clone()
    pred[0, 0, 1] += 5.0  # the largest of the first frame: in the first batch
    pred[1, 1, 2] += 1.0
    pred[2, 0, 3] -= 2.0
    pred[3, 1, 0] -= 3.0  # the largest of the second frame: in the second, and negative
    metrics = RolloutMetrics(2, line_spec(4))
    add(metrics, pred[:2], target[:2])
    add(metrics, pred[2:], target[2:])
    assert metrics.compute()["max_error"] == pytest.approx((5 + 3) / 2)


def test_rollout_metrics_floor_stands_below_small_targets_only():
    # root mean squares 0.001, which the floor replaces, and 2.0, which it does not; errors 0.1
    target = torch.tensor([0.001, 2.0]).view(1, 2, 1) * torch.tensor([1.0, -1.0, 1.0, -1.0])
    metrics = RolloutMetrics(2, line_spec(4), floor=0.5)
    add(metrics, target + 0.1, target)
    found = metrics.compute()
    assert found["nrmse_over_time"] == pytest.approx([0.1 / 0.5, 0.1 / 2.0], rel=1e-5)
    assert found["nrmse"] == pytest.approx((0.1 / 0.5 + 0.1 / 2.0) / 2, rel=1e-5)
    assert found["rmse"] == pytest.approx(0.1, rel=1e-5)


def test_rollout_metrics_have_no_floor_by_default():
    target = torch.full((1, 1, 4), 1e-6)
    metrics = RolloutMetrics(1, line_spec(4))
    add(metrics, 1.5 * target, target)
    assert metrics.compute()["nrmse"] == pytest.approx(0.5, rel=1e-5)


def test_rollout_metrics_are_relative_to_the_target_and_not_to_the_prediction():
    target = torch.tensor([[[4.0, 4.0]]])
    metrics = RolloutMetrics(1, line_spec(2))
    add(metrics, 3 * target, target)
    assert metrics.compute()["nrmse"] == pytest.approx(2.0)


def test_rollout_metrics_of_two_processes_merge():
    pred, target = random_pair(10)
    parts = [RolloutMetrics(3, line_spec(10)) for _ in range(2)]
    for part, rows in zip(parts, (slice(0, 2), slice(2, 7)), strict=True):
        add(part, pred[rows], target[rows])
    parts[0].merge_state(parts[1])
    found, expected = parts[0].compute(), metrics_written_out(pred, target)
    assert found.pop("nrmse_over_time") == pytest.approx(expected.pop("nrmse_over_time"), rel=1e-6)
    assert found == pytest.approx(expected, rel=1e-6)


def test_rollout_metrics_sum_in_double_precision():
    # in single precision a thousandth is lost beside 20000
    target = torch.full((1, 1, 2), 20000.0, dtype=torch.float64)
    metrics = RolloutMetrics(1, line_spec(2))
    add(metrics, target + 1e-4, target)
    assert metrics.compute()["rmse"] == pytest.approx(1e-4, rel=1e-6)


def test_rollout_metrics_refuse_fields_without_time():
    with pytest.raises(UpsError, match=r"one shape \(B, T, 4, 1\), got \(3, 4, 1\)"):
        RolloutMetrics(3, line_spec(4)).update(torch.zeros(3, 4, 1), torch.zeros(3, 4, 1))


# --- energy spectrum ---


@pytest.mark.parametrize("points", [2, 7, 8, 33])
def test_energy_spectrum_sums_to_the_mean_energy(points):
    u = torch.randn(3, 2, points, generator=torch.Generator().manual_seed(1)) + 0.4
    spectrum = energy_spectrum(u[..., None], line_spec(points))
    assert spectrum.shape == (3, 2, points // 2 + 1)
    assert torch.allclose(spectrum.sum(-1), u.double().square().mean(-1) / 2, rtol=1e-12)


@pytest.mark.parametrize("points", [8, 9])
@pytest.mark.parametrize("wave", [1, 2, 3])
def test_energy_spectrum_of_a_single_wave_is_a_quarter_in_its_place(points, wave):
    x = torch.arange(points, dtype=torch.float64) / points
    u = 3.0 * (2 * math.pi * wave * x + 0.7).sin() + 5.0
    expected = torch.zeros(points // 2 + 1, dtype=torch.float64)
    expected[0] = 25 / 2
    expected[wave] = 9 / 4  # the mean of sin^2 is a half, and so is the factor of the energy
    assert torch.allclose(energy_spectrum(u[:, None], line_spec(points)), expected, atol=1e-12)


def test_energy_spectrum_finest_wave_counts_once_where_the_points_are_even():
    u = 3.0 * torch.tensor([1.0, -1.0] * 4)
    found = energy_spectrum(u[:, None], line_spec(8))
    assert found.tolist() == pytest.approx([0, 0, 0, 0, 9 / 2], abs=1e-12)


@pytest.mark.parametrize("space", [(8, 6), (5, 7)])
def test_energy_spectrum_equals_loops_on_a_plane_of_two_channels(space):
    nx, ny = space
    u = torch.randn(2, *space, 2, generator=torch.Generator().manual_seed(2)) + 0.4
    found = energy_spectrum(u, FieldSpec(Grid(space, (1.0, 1.0)), ("u", "v")))
    largest = math.hypot(nx // 2, ny // 2)
    expected = np.zeros((2, round(largest) + 1))
    for n in range(2):
        for c in range(2):
            power = np.abs(np.fft.fft2(u[n, ..., c].double().numpy()) / (nx * ny)) ** 2 / 2
            for i in range(nx):
                for j in range(ny):
                    k = math.hypot(min(i, nx - i), min(j, ny - j))
                    expected[n, round(k)] += power[i, j]
    assert found.numpy() == pytest.approx(expected, rel=1e-9)
    mean_energy = u.double().square().sum(-1).mean((1, 2)) / 2
    assert torch.allclose(found.sum(-1), mean_energy, rtol=1e-12)


# --- spread and error ---


def spread_of(samples, target):
    """Of fields of one channel without its axis."""
    return spread_skill(samples[..., None], target[..., None], line_spec(target.shape[-1]))


def test_spread_skill_equals_hand_computed_values():
    # three draws of two trajectories of two points
    first = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 3.0]])
    second = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    target = torch.tensor([[4.0, 2.0], [1.0, 3.0]])
    found = spread_of(torch.stack((first, second), 1), target)
    # unbiased variances 1 and 3, mean 2, times 4/3; means (2, 1): errors 4 and 1; mean square 10
    assert found[0].tolist() == pytest.approx([2 * (4 / 3) / 10, 2.5 / 10])
    # no spread; errors 0 and 4; mean square 5
    assert found[1].tolist() == pytest.approx([0.0, 2 / 5])


def test_spread_skill_keeps_the_leading_dimensions_in_order():
    samples = torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(2))
    target = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(3))
    found = spread_of(samples, target)
    assert found.shape == (2, 3, 2)
    for b in range(2):
        for t in range(3):
            draws, truth = samples[:, b, t].numpy(), target[b, t].numpy()
            spread = draws.var(0, ddof=1).mean() * 5 / 4
            error = ((draws.mean(0) - truth) ** 2).mean()
            size = (truth**2).mean()
            assert found[b, t].tolist() == pytest.approx([spread / size, error / size], rel=1e-5)


@pytest.mark.parametrize("draws", [3, 10])
@pytest.mark.parametrize("dispersion", [0.5, 1.0, 2.0])
def test_spread_skill_ratio_is_the_dispersion_of_the_draws(draws, dispersion):
    """Truth and draws from Gaussians about a common centre; calibrated draws have the ratio 1."""
    generator = torch.Generator().manual_seed(10)
    centre = 5.0 * torch.randn(4000, 16, generator=generator)
    truth = centre + torch.randn(4000, 16, generator=generator)
    noise = torch.randn(draws, 4000, 16, generator=generator)
    spread, error = spread_of(centre + dispersion * noise, truth).mean(0).tolist()
    # the mean of M draws misses the truth by 1 + d^2/M, their spread is d^2 (1 + 1/M)
    expected = dispersion**2 * (1 + 1 / draws) / (1 + dispersion**2 / draws)
    assert spread / error == pytest.approx(expected, rel=0.02)
    if dispersion == 1.0:
        assert spread / error == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_spread_skill_spread_grows_with_the_draws_while_the_error_does_not(factor):
    generator = torch.Generator().manual_seed(11)
    target = torch.randn(6, 8, generator=generator) + 2
    noise = torch.randn(3, 6, 8, generator=generator)
    noise = noise - noise.mean(0)  # the mean of the draws stays where it is
    plain = spread_of(target + 0.3 + noise, target)
    wider = spread_of(target + 0.3 + factor * noise, target)
    ratio = (wider[:, 0] / wider[:, 1]).sqrt() / (plain[:, 0] / plain[:, 1]).sqrt()
    assert torch.allclose(ratio, torch.full((6,), factor), rtol=1e-4)
    assert torch.allclose(plain[:, 1], 0.09 / target.square().mean(-1), rtol=1e-4)


def test_spread_skill_is_finite_when_the_truth_is_zero():
    found = spread_of(torch.zeros(3, 2, 4), torch.zeros(2, 4))
    assert found.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_spread_skill_is_the_mean_over_channels_of_relative_squares():
    generator = torch.Generator().manual_seed(4)
    samples = torch.randn(4, 3, 5, 2, generator=generator) * torch.tensor([1.0, 100.0])
    target = torch.randn(3, 5, 2, generator=generator) * torch.tensor([1.0, 100.0])
    spec = FieldSpec(Grid((5,), (1.0,)), ("u", "v"))
    one, other = (spread_of(samples[..., c], target[..., c]) for c in (0, 1))
    assert torch.allclose(spread_skill(samples, target, spec), (one + other) / 2, rtol=1e-5)


# --- integrals and the equation itself ---


def test_line_integrals_equal_hand_computed_values():
    u = torch.tensor([[1.0, -2.0, 3.0, 6.0]])
    assert periodic_1d.mass(u).tolist() == [2.0]
    assert periodic_1d.mass(u, 3.0).tolist() == [6.0]
    assert periodic_1d.energy(u).tolist() == [50 / 8]
    assert periodic_1d.energy(u, 3.0).tolist() == [3 * 50 / 8]
    assert periodic_1d.total_variation(u).tolist() == [
        3.0 + 5.0 + 3.0 + 5.0
    ]  # the last: back to the first


@pytest.mark.parametrize("module", [burgers, advection])
def test_equation_modules_hand_on_the_integrals_of_the_line(module):
    u = torch.tensor([[1.0, -2.0, 3.0, 6.0]])
    assert module.mass(u, 3.0).tolist() == [6.0]
    assert module.energy(u, 3.0).tolist() == [3 * 50 / 8]
    assert module.total_variation(u).tolist() == [16.0]


def test_van_leer_half_slopes_equal_hand_computed_values():
    a, b = torch.tensor([1.0, -1.0, 2.0, 0.0, 1.0]), torch.tensor([1.0, -3.0, -1.0, 4.0, 3.0])
    # the harmonic mean a b / (a + b), 0 where the signs differ
    assert limiters.van_leer_half_slopes(a, b).tolist() == pytest.approx(
        [0.5, -0.75, 0.0, 0.0, 0.75]
    )


def test_burgers_solve_moves_a_shock_by_the_mean_of_its_sides():
    """From 2 to 0 a shock moves at 1; the fan from 0 to 2 spreads as x / t."""
    x = periodic_1d.cell_centers(400).double()
    u0 = torch.where((x > 0.2) & (x < 0.5), 2.0, 0.0)[None]
    u = burgers.solve(u0, [0.1, 0.2], 1e-9)[0]
    for k, t in enumerate((0.1, 0.2)):
        exact = torch.where(x < 0.5 + t, ((x - 0.2) / t).clamp(0, 2), 0.0)
        assert (u[k] - exact).abs().mean() < 3e-3


def test_burgers_solve_handles_waves_to_the_left_and_sonic_fans():
    x = periodic_1d.cell_centers(400).double()
    u0 = torch.where((x > 0.4) & (x < 0.7), 1.0, -1.0)[None]
    u = burgers.solve(u0, [0.1], 1e-9)[0, 0]
    # a fan through zero at 0.4 from -1 to 1, a shock at rest at 0.7
    exact = torch.where(x < 0.7, ((x - 0.4) / 0.1).clamp(-1, 1), -1.0)
    assert (u - exact).abs().mean() < 3e-3


@pytest.mark.parametrize("nu", [0.3, 6.0])
def test_burgers_solve_diffuses_a_faint_wave_at_nu_over_pi(nu):
    x = periodic_1d.cell_centers(64).double()
    k = 2 * math.pi
    u0 = 1e-5 * (k * x).sin()[None]
    times = [0.0, 0.02, 0.1]
    decay = torch.tensor([math.exp(-nu / math.pi * k * k * t) for t in times], dtype=torch.float64)
    u = burgers.solve(u0, times, nu)[0]
    assert torch.allclose(u, decay[:, None] * u0, rtol=0, atol=2e-8)


@pytest.mark.parametrize("solve", [burgers.solve, burgers.cole_hopf])
def test_burgers_solutions_of_another_length_are_scaled_ones(solve):
    """u(x, t) on [0, L) at nu is u(x / L, t / L) on [0, 1) at nu / L."""
    u0 = periodic_1d.initial_conditions(2, periodic_1d.cell_centers(64), seed=4).double()
    long = solve(u0, [0.25, 0.5], 0.1, length=2.5)
    assert torch.allclose(long, solve(u0, [0.1, 0.2], 0.04), atol=1e-10)
    assert not torch.allclose(long, solve(u0, [0.25, 0.5], 0.1), atol=1e-2)


def test_burgers_solve_goes_on_from_any_frame():
    u0 = periodic_1d.initial_conditions(2, periodic_1d.cell_centers(64), seed=5).double()
    at_once = burgers.solve(u0, [0.1, 0.3], 0.05)
    again = burgers.solve(at_once[:, 0], [0.2], 0.05)[:, 0]
    assert torch.allclose(at_once[:, 1], again, atol=1e-3)
    assert not torch.allclose(at_once[:, 1], at_once[:, 0], atol=5e-2)


def test_burgers_residual_is_what_is_added_to_the_step():
    u = periodic_1d.initial_conditions(2, periodic_1d.cell_centers(32), seed=6).double()
    nu = torch.tensor([0.05, 0.05], dtype=torch.float64)
    v = burgers.solver_step(u, 0.1, nu, 1.5, 2)
    extra = torch.full_like(v, 0.25)
    assert torch.allclose(burgers.residual(u, v + extra, 0.1, nu, 1.5, 2), extra, atol=1e-12)


def test_reflections_and_time_rescalings_equal_hand_computed_values():
    u = torch.tensor([[1.0, 2.0, -3.0]])
    assert burgers.reflect(u).tolist() == [[3.0, -2.0, -1.0]]
    assert advection.reflect(u).tolist() == [[-1.0, -2.0, 3.0]]
    assert burgers.rescale_time(u, 3).tolist() == [[3.0, 6.0, -9.0]]
    assert advection.rescale_time(u, 3).tolist() == [[1.0, 2.0, -3.0]]
