"""The Kuramoto-Sivashinsky solver: order, other solvers, laws, symmetries, and its data."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import TINY
from hydra import compose, initialize_config_dir
from scipy.integrate import solve_ivp

import ups
from ups.core.errors import Diverged, UpsError
from ups.core.fields import FieldSpec, Grid
from ups.core.stepper import predict
from ups.datamodules import TrajectoryDataModule
from ups.evaluation.baselines import coarse_solvers
from ups.evaluation.metrics import PhysicsChecks
from ups.hub.model_card import render_model_card
from ups.physics import kuramoto_sivashinsky as ks
from ups.run import CONF
from ups.runs.stages import stage_config

EQUATION = ks.EQUATION
SHORT = 22.0  # a line of few waves, for fast tests


def error(a, b):
    return ((a - b).norm() / b.norm()).item()


def smooth(points, length=SHORT):
    """Two fields of a few waves, of the size of those on the attractor."""
    x = 2 * math.pi * torch.arange(points, dtype=torch.float64) / points
    one = 1.5 * torch.sin(2 * x) + torch.cos(3 * x + 1)
    return torch.stack((one, torch.sin(x) - 1.2 * torch.cos(2 * x)))


@pytest.fixture(scope="module")
def attractor():
    """Fields (16, 64, 1) of the attractor, float64."""
    return EQUATION.initial_conditions["attractor"](16, EQUATION.grid(64), 0).double()


@pytest.mark.parametrize("nu", [1.0, 0.5, 2.0])
def test_small_waves_grow_at_their_linear_rates(nu):
    waves = torch.arange(1, 17, dtype=torch.float64)[:, None]
    u0 = 1e-9 * torch.cos(2 * math.pi * waves * torch.arange(64, dtype=torch.float64) / 64 + waves)
    times = torch.tensor([0.0, 0.7, 4.0], dtype=torch.float64)
    k = 2 * math.pi / 64 * waves
    factors = torch.exp((k**2 - nu * k**4) * times)
    u = ks.solve(u0, times, nu, length=64.0)
    assert torch.allclose(u, factors[..., None] * u0[:, None], rtol=0, atol=1e-15)
    assert factors.max() > 1.5
    assert factors.min() < 0.5


def test_viscosity_is_the_same_as_another_length():
    u0, nu = smooth(48), torch.tensor([0.5, 2.0], dtype=torch.float64)
    u = ks.solve(u0, [3.0], nu, SHORT, step=0.01)[:, 0]
    for i, root in enumerate(nu.sqrt().tolist()):
        rescaled = ks.solve(u0[i] * root, [3.0 / root**2], 1.0, SHORT / root, step=0.01)[0, 0]
        assert error(rescaled / root, u[i]) < 1e-6


def test_order_in_time_is_four():
    """Of waves that decay little in a step; if they decay fast, the order is between 3 and 4."""
    u0 = smooth(16)
    reference = ks.solve(u0, [4.0], length=SHORT, step=0.01)
    errors = [
        error(ks.solve(u0, [4.0], length=SHORT, step=step), reference) for step in (0.2, 0.1, 0.05)
    ]
    assert all(3.7 < math.log2(a / b) < 4.3 for a, b in pairwise(errors)), errors


def test_default_step_is_a_tenth_of_the_distance_of_two_points():
    u0 = smooth(44)
    default = ks.solve(u0, [0.5], length=SHORT)
    assert torch.equal(default, ks.solve(u0, [0.5], length=SHORT, step=0.05))
    assert not torch.equal(default, ks.solve(u0, [0.5], length=SHORT, step=0.04))


@pytest.mark.slow
def test_default_step_leaves_little_error_after_64_units_of_time():
    """At the size of the data; docs/equations.md holds the bound."""
    u0 = EQUATION.initial_conditions["attractor"](16, EQUATION.grid(256), 0)[..., 0].double()
    found, finer = (ks.solve(u0, [64.0], step=step)[:, 0] for step in (None, 0.0125))
    differences = (found - finer).norm(dim=1) / finer.norm(dim=1)
    assert 0 < differences.mean() < 2e-4


def test_errors_in_space_fall_faster_than_any_power():
    def solved(points):
        return ks.solve(smooth(points), [2.0], length=SHORT, step=0.02)[..., :: points // 24]

    errors = [error(solved(points), solved(192)) for points in (24, 48, 96)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders[0] > 4
    assert orders[1] > 2 * orders[0]
    assert errors[-1] < 1e-9


def test_solution_is_that_of_an_implicit_runge_kutta_scheme():
    """Radau of SciPy, on derivatives by a matrix, in the form u u_x, without dealiasing."""
    points, nu = 64, 0.8
    u0 = smooth(points)[0].numpy()
    k = np.fft.fftfreq(points, SHORT / points / (2 * math.pi))
    k[points // 2] = 0  # the wave of two points has no slope
    transform = np.fft.fft(np.eye(points), axis=0)
    slope = np.fft.ifft(1j * k[:, None] * transform, axis=0).real
    curvature = slope @ slope
    linear = -curvature - nu * curvature @ curvature
    found = solve_ivp(
        lambda t, u: linear @ u - u * (slope @ u),
        (0.0, 6.0),
        u0,
        "Radau",
        t_eval=[2.0, 6.0],
        rtol=1e-8,
        atol=1e-9,
        jac=lambda t, u: linear - np.diag(slope @ u) - u[:, None] * slope,
    )
    expected = torch.from_numpy(found.y.T)
    u = ks.solve(torch.from_numpy(u0), [2.0, 6.0], nu, SHORT, step=0.02)[0]
    assert error(u, expected) < 1e-6
    assert error(u[1], u[0]) > 0.5


def test_mean_is_conserved():
    u0 = smooth(32) + torch.tensor([[0.3], [-2.0]])
    u = ks.solve(u0, [1.0, 20.0], length=SHORT)
    assert (u.mean(-1) - u0.mean(-1, keepdim=True)).abs().max() < 1e-13
    flat, grid = torch.full((32, 1), 2.0), Grid((32,), (SHORT,))
    laws = {functional.name: functional.compute(flat, grid) for functional in EQUATION.functionals}
    assert laws == {"mass": 2 * SHORT, "energy": 2 * SHORT}


def test_symmetries_map_solutions_to_solutions(attractor):
    grid, times = EQUATION.grid(64), [0.0, 0.8, 4.0]
    u = EQUATION.solve(attractor[:3], times, [], grid, torch.float64)
    amounts = {"translate": torch.tensor([[3], [0], [-17]]), "reflect": torch.ones(3)}
    assert {symmetry.name for symmetry in EQUATION.symmetries} == amounts.keys()
    for symmetry in EQUATION.symmetries:
        moved = symmetry.fields(u, amounts[symmetry.name], grid)
        assert error(moved, u) > 0.1
        again = EQUATION.solve(moved[:, 0], times, [], grid, torch.float64)
        assert torch.allclose(again, moved, rtol=0, atol=1e-11)


def test_boost_maps_solutions_to_solutions():
    """From a frame that moves by 11 of 44 points in the time of 4, a wind of 11 / 8 is a calm."""
    calm, grid = smooth(44)[..., None], Grid((44,), (SHORT,))
    windy = calm + 11 / 8
    velocity = EQUATION.boost.velocity(windy)
    assert torch.allclose(velocity, torch.full((2, 1), 11 / 8, dtype=torch.float64))
    assert torch.allclose(EQUATION.boost.fields(windy, velocity), calm, atol=1e-12)
    calm, windy = (EQUATION.solve(u, [4.0], [], grid, torch.float64) for u in (calm, windy))
    assert error(windy - 11 / 8, calm.roll(11, 2)) < 1e-4


def energy_growth(u0, pred, dt):
    """The check of the energy of frames (B, T, X) that follow ``u0`` (B, X)."""
    spec = FieldSpec(Grid((u0.shape[-1],), (EQUATION.length,)), ("u",), dt=dt)
    checks = PhysicsChecks(EQUATION, spec)
    checks.update(u0[..., None], pred[..., None], pred[..., None])
    return checks.compute()["energy_growth"]


def test_energy_grows_no_faster_than_the_fastest_wave(attractor):
    u0 = attractor[..., 0]
    u = ks.solve(u0, [0.4 * i for i in range(1, 11)])
    energies = u.square().mean(-1)
    assert (energies[:, 1:] > energies[:, :-1]).any()
    assert energy_growth(u0, u, 0.4) == 0
    # the seventh wave of the line is the fastest, at 0.2493 of at most 0.25
    wave = 1e-6 * torch.sin(2 * math.pi * 7 * torch.arange(64, dtype=torch.float64) / 64)[None]
    allowed = ks.solve(wave, [2.0])
    assert energy_growth(wave, allowed, 2.0) == 0
    assert energy_growth(wave, 1.01 * allowed, 2.0) > 0
    expected = 1.7**2 - math.exp(2 * 0.25 * 2.0)
    assert energy_growth(u0, 1.7 * u0[:, None], 2.0) == pytest.approx(expected)


def test_initial_conditions_are_on_the_attractor(attractor):
    u0 = attractor[..., 0]
    assert u0.mean(-1).abs().max() < 1e-6
    sizes = u0.square().mean(-1).sqrt()
    assert sizes.square().mean().sqrt().item() == pytest.approx(1.3, abs=0.1)
    assert 0.9 < sizes.min() < sizes.max() < 1.7
    # as large as after another hundred units of time, and of the same waves
    later = ks.solve(u0, [100.0])[:, 0]
    assert later.square().mean().sqrt().item() == pytest.approx(1.3, abs=0.1)
    power, later_power = (torch.fft.rfft(u).abs().square().mean(0) for u in (u0, later))
    for low, high in ((1, 4), (4, 10), (10, 14)):
        share = power[low:high].sum() / power.sum()
        assert share.item() == pytest.approx(
            (later_power[low:high].sum() / later_power.sum()).item(), rel=0.35
        )


def test_initial_conditions_are_the_same_on_every_grid_and_at_given_positions():
    def drawn(x, seed=3):
        return ks.initial_conditions(2, x, seed)

    coarse, fine = (EQUATION.grid(points).axis(0) for points in (128, 256))
    u = drawn(fine)
    assert u.dtype == torch.float32
    assert torch.allclose(u[:, ::2], drawn(coarse), atol=1e-5)
    assert torch.allclose(u[:, 1::2], drawn(coarse + 0.25), atol=1e-5)
    # on few points, the waves that these can hold
    few = drawn(EQUATION.grid(32).axis(0))
    waves, all_waves = (torch.fft.rfft(field, norm="forward") for field in (few, u))
    assert torch.allclose(waves[:, :16], all_waves[:, :16], atol=1e-5)
    assert error(drawn(fine, seed=4), u) > 0.5
    assert error(u[:1], u[1:]) > 0.5
    short = Grid((64,), (32.0,), origin=(32.0,))
    once_around = ks.initial_conditions(2, short.axis(0) - 32, 3, 32.0)
    found = EQUATION.initial_conditions["attractor"](2, short, 3)
    assert torch.allclose(found[..., 0], once_around, atol=1e-5)


def test_transient_starts_from_ten_sines_of_one_and_two_waves():
    u = ks._sines(2000, torch.arange(16, dtype=torch.float64) / 16, 0)
    power = torch.fft.rfft(u, norm="forward").abs().square().mean(0)
    # a sine of amplitude a has a^2 / 4 there, and the mean square of an amplitude is 1 / 12
    expected = torch.tensor([5 / 48, 5 / 48], dtype=torch.float64)
    assert torch.allclose(power[1:3], expected, rtol=0.1)
    assert power[[0, *range(3, 9)]].max() < 1e-30


def test_result_does_not_depend_on_other_frames_or_fields():
    u0 = smooth(48)
    few = ks.solve(u0, [2.0], length=SHORT)
    many = ks.solve(u0, [0.0, 0.3, 0.3, 1.1, 2.0], length=SHORT)
    assert torch.equal(many[:, 0], u0)
    assert torch.equal(many[:, 1], many[:, 2])
    assert error(many[:, -1:], few) < 1e-6
    nu = torch.tensor([1.0, 0.7])
    together = ks.solve(u0, [2.0], nu, SHORT)
    alone = [ks.solve(u0[i], [2.0], nu[i].item(), SHORT) for i in range(2)]
    assert torch.allclose(together, torch.cat(alone), rtol=0, atol=1e-6)  # nu is of float32
    single = ks.solve(u0.float(), [2.0], length=SHORT, dtype=torch.float32)
    assert single.dtype == torch.float32
    assert error(single.double(), few) < 1e-5
    assert ks.solve(u0.float(), [2.0], length=SHORT).dtype == torch.float32


def test_waves_above_a_third_of_the_points_are_removed():
    x = 2 * math.pi * torch.arange(24, dtype=torch.float64) / 24
    kept, removed = (torch.sin(wave * x) for wave in (7, 8))
    u0 = 1e-6 * torch.stack((kept, kept + removed))
    assert torch.equal(ks.solve(u0, [0.0])[:, 0], u0)
    with_and_without = ks.solve(u0, [0.1])[:, 0]
    assert torch.allclose(*with_and_without, rtol=0, atol=1e-15)
    # nor does the product of two waves come back as a third one
    two = torch.sin(7 * x)
    slope = ks.solve(two, [1e-3])[0, 0] - ks.solve(1e-6 * two, [1e-3])[0, 0] * 1e6
    assert slope.abs().max() < 1e-5


def test_gradients_equal_finite_differences():
    u0 = smooth(16)[:1].requires_grad_()
    nu = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    weight, direction = torch.randn(2, 16, dtype=torch.float64, generator=generator)

    def value(u0, nu):
        return (ks.solve(u0, [1.0], nu, SHORT) * weight).sum()

    by_u0, by_nu = torch.autograd.grad(value(u0, nu), (u0, nu))
    h = 1e-5
    with torch.no_grad():
        along = (value(u0 + h * direction, nu) - value(u0 - h * direction, nu)) / (2 * h)
        over_nu = (value(u0, nu + h) - value(u0, nu - h)) / (2 * h)
    assert (by_u0 * direction).sum().item() == pytest.approx(along.item(), rel=1e-6)
    assert by_nu.item() == pytest.approx(over_nu.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"u0": torch.zeros(2, 3, 8)}, r"`u0` must be real fields of shape \(B, X\)"),
        ({"u0": torch.zeros(8, dtype=torch.long)}, "`u0` must be real fields"),
        ({"u0": torch.full((8,), math.nan)}, "`u0` must be finite"),
        ({"u0": 1e6 * smooth(8)}, "`u0` must be finite, and so small that steps of 0.8"),
        ({"t": [1.0, 0.5]}, "`t` must be finite times"),
        ({"nu": -1.0}, "`nu` must be one number >= 0"),
        ({"nu": torch.ones(3)}, "or one for each of the fields"),
        ({"step": 0.0}, "`step` must be a finite number > 0, got 0.0"),
        ({"step": math.nan}, "`step` must be a finite number > 0, got nan"),
        ({"length": 0.0}, "`length` must be a finite number > 0"),
        ({"dtype": torch.float16}, "`dtype` must be torch.float32 or torch.float64"),
    ],
)
def test_solver_refuses_what_it_cannot_solve(change, words):
    with pytest.raises(UpsError, match=words):
        ks.solve(**{"u0": torch.ones(2, 8), "t": [2.0]} | change)


@pytest.mark.parametrize("step", [5.0, 10.0, 100.0])
def test_solver_refuses_steps_that_are_not_stable_before_fields_are_infinite(attractor, step):
    """Advection keeps the mean square, so the norm grows by less than exp(t/4)."""
    with pytest.raises(Diverged, match=f"so small that steps of {step:g} are stable"):
        ks.solve(attractor[..., 0], [20.0], step=step)
    with pytest.raises(Diverged):  # infinite in the precision of the fields alone
        ks.solve(1e30 * attractor[..., 0].float(), [0.01], step=0.01)


def test_solution_of_no_fields_is_empty():
    assert ks.solve(torch.empty(0, 64), [1.0, 2.0]).shape == (0, 2, 64)


def test_baseline_that_diverges_is_not_a_number_and_ends_no_evaluation():
    """On 32 points all waves that are left grow."""
    grid = EQUATION.grid(128)
    spec = FieldSpec(grid, EQUATION.channels, dt=0.8)
    u0 = EQUATION.initial_conditions["attractor"](2, grid, 1)
    (solver,) = coarse_solvers(EQUATION, spec, [32])
    frames = predict(solver, u0, 480, torch.empty(2, 0))
    assert frames[:, 0].isfinite().all()
    assert frames[:, -1].isnan().all()


def test_coarse_solver_holds_the_waves_of_its_grid_and_is_a_baseline():
    grid = EQUATION.grid(128)
    spec = FieldSpec(grid, EQUATION.channels, dt=0.8)
    u0 = EQUATION.initial_conditions["attractor"](2, grid, 1)
    coarse = EQUATION.restrict(u0, 2)
    assert torch.allclose(EQUATION.restrict(EQUATION.prolong(coarse, 2), 2), coarse, atol=1e-5)
    assert error(EQUATION.prolong(coarse, 2), u0) < 0.005
    assert torch.allclose(EQUATION.prolong(coarse, 2)[:, ::2], coarse, atol=1e-5)
    assert torch.allclose(EQUATION.restrict(u0, 1), u0, atol=1e-5)
    (solver,) = coarse_solvers(EQUATION, spec, [64])
    parameters = torch.empty(2, 0)
    step = solver.decode(solver.step(solver.encode(u0, parameters), parameters))
    truth = EQUATION.solve(u0, [0.8], [], grid, torch.float64)[:, 0]
    assert error(step, truth) < 0.03
    assert error(u0, truth) > 0.2


SMALL = {
    "equation": "kuramoto_sivashinsky",
    "num_points": 64,
    "reference_num_points": None,
    "dt": 0.8,
    "num_frames": 4,
    "num_train": 5,
    "num_validation": 2,
    "num_test": 3,
    "unroll_steps": 2,
    "batch_size": 16,
}


def test_generated_data_are_solutions_from_the_attractor(tmp_path):
    data = TrajectoryDataModule(**SMALL, cache_dir=tmp_path)
    data.prepare_data()
    data.setup()
    assert data.path.name.startswith("kuramoto_sivashinsky-")
    spec = data.spec
    assert (spec.channels, spec.parameters) == (("u",), ())
    assert spec.dt == pytest.approx(0.8)
    assert (spec.grid.extent, spec.grid.origin) == ((64.0,), (0.0,))
    assert spec.conserves_mean
    assert spec.is_homogeneous
    u0 = ks.initial_conditions(3, EQUATION.grid(64).axis(0), 2)
    u = ks.solve(u0, [0.0, 0.8, 1.6, 2.4], step=0.1)
    assert torch.allclose(data.values["test"][..., 0], u, atol=1e-6)
    # windows are moved and mirrored, and solve the equation still
    (batch, *_) = data.train_dataloader()
    assert batch.parameters.shape == (16, 0)
    window = batch.u[..., 0]
    again = ks.solve(window[:, 0].double(), [0.8, 1.6])
    assert error(again, window[:, 1:].double()) < 1e-5


@pytest.mark.integration
def test_trains_by_the_same_command(ups_run, tmp_path):
    settings = [s for s in TINY if not s.startswith("data.reference_num_points")]
    small = ["data.num_points=64", "data.num_frames=6", "model.num_tokens=16"]
    ups_run("stage=operator", "data=kuramoto_sivashinsky", *settings, *small, "name=chaos")
    run = tmp_path / "outputs/chaos"
    rows = json.loads((run / "reports/eval_operator.json").read_text())["rows"]
    assert {"persistence", "solver-64"} < {row["model"] for row in rows}
    assert all(math.isfinite(row["nrmse"]) for row in rows)
    assert all(row["mass_drift"] < 1e-3 for row in rows)
    (solver,) = (row for row in rows if row["model"] == "solver-64")
    times = [solver[f"correlation_time{suffix}"] for suffix in ("", "_90", "_95")]
    assert times == pytest.approx([4.0, 4.0, 4.0])  # of the same points: all five steps
    assert "| validation decorrelated fraction, latent rollout |" in render_model_card(run, "chaos")
    simulator = ups.load(run)
    u0 = ks.initial_conditions(2, simulator.x, 0)
    assert simulator.rollout(u0, 3).shape == (2, 3, 64)


@pytest.mark.parametrize(
    ("settings", "score"),
    [
        (["data=kuramoto_sivashinsky"], "decorrelated_fraction"),
        (["data=kuramoto_sivashinsky", "loss=crps"], "crps"),
        (["data=burgers"], "nrmse"),
    ],
)
def test_validation_chooses_weights_of_chaotic_data_by_their_correlation(settings, score):
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", settings)
    assert stage_config(cfg, "operator").callbacks.best.monitor == f"validation/operator/{score}"
