"""The reference solver against the exact solution, and the equations as data."""

import importlib.util
import itertools
import logging
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import pytest
import torch

from ups.core.errors import UpsError
from ups.core.fields import Grid
from ups.physics import (
    EQUATIONS,
    Law,
    advection,
    burgers,
    burgers_compiled,
    compilation,
    get_equation,
    periodic_1d,
)


def relative_l1(u, exact):
    return (u - exact).abs().mean(-1) / exact.abs().mean(-1)


@pytest.mark.parametrize(("nu", "allowed"), [(0.01, 1e-3), (0.001, 3e-3)])
def test_solve_is_exact_on_random_initial_conditions_with_shocks(nu, allowed):
    t = [0.1, 0.5, 1.0, 2.0]
    u0 = burgers.initial_conditions(20, burgers.cell_centers(1024), seed=7)
    assert relative_l1(burgers.solve(u0, t, nu), burgers.cole_hopf(u0, t, nu)).max() < allowed


def test_solve_converges_at_second_order_on_smooth_data():
    errors = []
    for points in (64, 128, 256):
        u0 = torch.sin(2 * math.pi * burgers.cell_centers(points).double())[None] + 0.3
        errors.append(
            relative_l1(burgers.solve(u0, [0.1], 0.02), burgers.cole_hopf(u0, [0.1], 0.02)).item()
        )
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert min(orders) > 1.8, (errors, orders)


@pytest.mark.parametrize("nu", [0.001, 0.01, 1.0, 4.0])
def test_solve_keeps_mass_and_the_maximum_principle(nu):
    u0 = burgers.initial_conditions(8, burgers.cell_centers(256), seed=1).double()
    u = burgers.solve(u0, [0.0, 0.05, 0.5, 2.0], nu)
    assert (u.mean(-1) - u0.mean(-1, keepdim=True)).abs().max() < 1e-13
    assert (u.amax(-1).diff(dim=1) <= 1e-12).all()
    assert (u.amin(-1).diff(dim=1) >= -1e-12).all()
    total_variation = u.diff(dim=-1).abs().sum(-1)
    assert (total_variation.diff(dim=1) <= 1e-12).all()


@pytest.mark.parametrize("nu", [0.001, 4.0])
def test_cole_hopf_is_stable_and_moves_with_a_mean(nu):
    u0 = burgers.initial_conditions(3, burgers.cell_centers(256), seed=2).double()
    u = burgers.cole_hopf(u0 + 0.7, [0.0, 0.01, 1.0], nu)
    assert torch.isfinite(u).all()
    assert torch.equal(u[:, 0], u0 + 0.7)
    # in a frame that moves at c, here 179 cells in unit time, the solution is the same plus c
    c = 179 / 256
    moved = burgers.cole_hopf(u0 + c, [1.0], nu)[:, 0]
    assert torch.allclose(
        moved, burgers.cole_hopf(u0, [1.0], nu)[:, 0].roll(179, -1) + c, atol=1e-9
    )


def test_cole_hopf_equals_closed_form():
    """A single-mode heat kernel has a closed form: phi = 1 + a cos(kx) exp(-mu k^2 t), u = -2 mu
    phi_x / phi.
    """
    nu, k, a = 0.3, 2 * math.pi, 0.6
    mu, x = nu / math.pi, burgers.cell_centers(128).double()

    def exact(t):
        decay = a * math.exp(-mu * k * k * t)
        return 2 * mu * k * decay * torch.sin(k * x) / (1 + decay * torch.cos(k * x))

    u = burgers.cole_hopf(exact(0.0)[None], [0.1, 0.4], nu)[0]
    assert torch.allclose(u, torch.stack([exact(0.1), exact(0.4)]), atol=1e-10)


def test_solve_keeps_the_dtype_of_u0():
    u0 = burgers.initial_conditions(4, burgers.cell_centers(256), seed=3)
    single, double = (
        burgers.solve(u0, [0.5], 0.001, dtype=torch.float32),
        burgers.solve(u0, [0.5], 0.001),
    )
    assert single.dtype == double.dtype == torch.float32
    assert torch.allclose(single, double, atol=2e-4)


def test_initial_conditions_have_the_statistics_of_the_published_code():
    """Those of 10000 fields by PDEBench's ``init_multi`` at k_tot=4 and six keys."""
    u = burgers.initial_conditions(10000, burgers.cell_centers(1024), seed=0)
    mean = u.mean(1)
    assert mean.abs().mean().item() == pytest.approx(0.477, abs=0.012)  # 0.472 to 0.482
    assert abs(mean.mean().item()) < 0.02
    assert mean.square().mean().item() == pytest.approx(0.360, abs=0.02)  # 0.350 to 0.368
    assert u.std().item() == pytest.approx(0.793, abs=0.015)  # 0.788 to 0.797
    assert u.square().mean(1).sqrt().mean().item() == pytest.approx(0.728, abs=0.012)
    assert (u.amin(1) > -1e-6).float().mean().item() == pytest.approx(0.173, abs=0.02)
    windowed = u[u[:, [0, 1, -1]].abs().amax(1) < 1e-4].abs()
    assert len(windowed) / 10000 == pytest.approx(0.1, abs=0.02)
    inside = windowed > 0.02 * windowed.amax(1, keepdim=True)
    left = inside.float().argmax(1) / 1024
    right = 1 - inside.flip(1).float().argmax(1) / 1024
    assert left.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist() == pytest.approx(
        [0.085, 0.103, 0.121], abs=0.004
    )
    assert right.median().item() == pytest.approx(0.583, abs=0.004)


def test_initial_conditions_of_the_paper_have_the_drawn_wave_numbers_alone():
    x = burgers.cell_centers(256)
    u = burgers.initial_conditions(4000, x, 0, as_published=False)
    assert u.shape == (4000, 256)
    assert u.dtype == torch.float32
    assert torch.equal(u, burgers.initial_conditions(4000, x, 0, as_published=False))
    assert not torch.equal(u, burgers.initial_conditions(4000, x, 1, as_published=False))
    power = torch.fft.rfft(u).abs()
    plain = power[:, 9:].amax(1) < 1e-3  # neither absolute value nor window: wave numbers 1..8 only
    assert 0.76 < plain.float().mean() < 0.86  # 0.9 * 0.9
    present = (power[plain][:, 1:9] > 1e-3 * 256).sum(1)
    assert set(present.tolist()) <= {0, 1, 2}
    assert 0.2 < (present == 1).float().mean() < 0.3  # the same number twice: a quarter
    assert power[plain][:, 0].max() < 1e-3
    assert u.abs().max() < 2


def test_get_equation_finds_equations_by_name(monkeypatch):
    assert {name: get_equation(name) for name in EQUATIONS} == EQUATIONS
    assert {"burgers", "advection"} <= EQUATIONS.keys()
    assert EQUATIONS["burgers"] is burgers.EQUATION
    mine = ModuleType("mine_of_a_test")
    monkeypatch.setitem(sys.modules, "mine_of_a_test", mine)
    for value in (None, "burgers", burgers):
        mine.EQUATION = value
        with pytest.raises(UpsError, match=r"got 'mine_of_a_test': .* no ups\.physics\.Equation"):
            get_equation("mine_of_a_test")
    mine.EQUATION = burgers.EQUATION
    assert get_equation("mine_of_a_test") is burgers.EQUATION


@pytest.mark.parametrize("name", ["line", "", "no.such", ".burgers", "periodic_1d"])
def test_get_equation_refuses_unknown_names(name):
    with pytest.raises(UpsError, match=r"`data\.equation` must be one of .*burgers.*, got '"):
        get_equation(name)


def test_get_equation_refuses_modules_without_an_equation():
    with pytest.raises(UpsError, match=r"got 'ups\.physics\.periodic_1d': the module's EQUATION"):
        get_equation("ups.physics.periodic_1d")


def test_burgers_solver_step_gives_point_values():
    u0 = torch.sin(2 * math.pi * burgers.cell_centers(64).double())[None] + 0.3
    exact = burgers.cole_hopf(u0, [0.05], 0.02)[:, 0]
    step = burgers.solver_step(u0, 0.05, torch.tensor([0.02]), 1.0, 4)
    assert relative_l1(step, exact).max() < 2e-3


# --- compiled and in torch: each field takes its own steps ---

TIMES = [0.0, 0.01, 0.05, 0.05, 0.2]
VISCOSITIES = [0, 0.001, 0.01, 1.0, 4.0]


def fields_of_all_sizes(points):
    """Fields (13, X) of very different sizes, some with a mean; one is zero."""
    u = burgers.initial_conditions(3, burgers.cell_centers(points), seed=3).double()
    return torch.cat((u, u / 100, 3 * u + 1.5, 1e-6 * u, torch.zeros(1, points)))


def in_torch(monkeypatch, *arguments, **options):
    """``burgers.solve`` without numba."""
    with monkeypatch.context() as patch:
        patch.setattr(compilation, "is_available", lambda: False)
        return burgers.solve(*arguments, **options)


@pytest.mark.parametrize("nu", VISCOSITIES)
@pytest.mark.parametrize("points", [32, 100, 256, 1024])
def test_compiled_solver_equals_that_in_torch(points, nu):
    u0 = fields_of_all_sizes(points)
    mu = np.full(len(u0), nu / math.pi)
    compiled = burgers._solve_compiled(u0, TIMES, mu, 1 / points, burgers.CFL)
    expected = burgers._solve_in_torch(u0, TIMES, torch.from_numpy(mu), 1 / points, burgers.CFL)
    size = u0.abs().amax(-1)[:, None, None]
    assert ((compiled - expected).abs() <= 1e-12 * size).all()
    assert torch.equal(compiled[:, 0], u0)
    assert torch.equal(compiled[:, 2], compiled[:, 3])
    alone = burgers._solve_in_torch(
        u0[:1], TIMES, torch.from_numpy(mu[:1]), 1 / points, burgers.CFL
    )
    assert ((compiled[:1] - alone).abs() <= 1e-12 * size[:1]).all()


@pytest.mark.parametrize("nu", [0.001, 0.01])
def test_compiled_solver_in_single_precision_is_near_that_in_double(nu):
    u0 = fields_of_all_sizes(128)
    double = burgers.solve(u0, TIMES, nu)
    single = burgers.solve(u0, TIMES, nu, dtype=torch.float32)
    assert not torch.equal(single, double)
    size = u0.abs().amax(-1)[:, None, None]
    assert ((single - double).abs() <= 1e-3 * size).all()


@pytest.mark.parametrize("nu", VISCOSITIES)
def test_solve_gives_a_field_that_does_not_depend_on_its_batch(monkeypatch, nu):
    u0 = fields_of_all_sizes(64)
    together = burgers.solve(u0, TIMES, nu)
    together_in_torch = in_torch(monkeypatch, u0, TIMES, nu)
    for row in range(len(u0)):
        alone = burgers.solve(u0[row : row + 1], TIMES, nu)
        assert torch.equal(together[row], alone[0])
        alone = in_torch(monkeypatch, u0[row : row + 1], TIMES, nu)
        assert torch.allclose(together_in_torch[row], alone[0], rtol=0, atol=1e-13)


def test_solve_takes_a_viscosity_for_each_field(monkeypatch):
    u0 = fields_of_all_sizes(256)
    nu = torch.tensor(VISCOSITIES, dtype=torch.float64).repeat(3)[: len(u0)]  # both ways to solve
    found = burgers.solve(u0, TIMES, nu)
    for row in range(len(u0)):
        assert torch.equal(found[row], burgers.solve(u0[row], TIMES, float(nu[row]))[0])
    assert torch.allclose(found, in_torch(monkeypatch, u0, TIMES, nu), rtol=0, atol=1e-11)


@pytest.mark.parametrize("nu", [torch.ones(2), torch.ones(0), -1.0, math.nan, math.inf])
def test_solve_refuses_other_viscosities(nu):
    with pytest.raises(UpsError, match="`nu` must be one number >= 0, or one for each"):
        burgers.solve(torch.zeros(3, 8), [0.1], nu)


@pytest.mark.parametrize("solve", [burgers.solve, advection.solve])
@pytest.mark.parametrize(
    "change", [{"length": -1.0}, {"length": 0}, {"cfl": -1.0}, {"cfl": 5.0}, {"cfl": math.nan}]
)
def test_solvers_refuse_lengths_and_steps_out_of_range(solve, change):
    (name,) = change
    with pytest.raises(UpsError, match=f"`{name}` must be a finite number > 0"):
        solve(torch.zeros(3, 8), [0.1], 0.01, **change)


@pytest.mark.parametrize("x", [64, torch.zeros(8, 1), "here", []])
def test_initial_conditions_refuse_what_is_no_line_of_positions(x):
    with pytest.raises(UpsError, match="`x` must be"):
        burgers.initial_conditions(1, x, 0)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"length": -1.0}, "length"), ({"u0": torch.full((8,), math.inf)}, "u0"), ({"nu": "a"}, "nu")],
)
def test_cole_hopf_refuses_what_it_cannot_solve(change, word):
    with pytest.raises(UpsError, match=f"`{word}` must be"):
        burgers.cole_hopf(**{"u0": torch.zeros(8), "t": [0.1], "nu": 0.01} | change)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e12])
def test_solve_refuses_fields_that_take_too_many_steps(monkeypatch, value):
    u0 = torch.zeros(2, 64)
    u0[1, 5] = value
    with pytest.raises(UpsError, match="`u0` must be finite, and so small"):
        burgers.solve(u0, [0.1], 0.01)
    with pytest.raises(UpsError, match="`u0` must be finite, and so small"):
        in_torch(monkeypatch, u0, [0.1], 0.01)


def test_solve_takes_fields_that_are_not_contiguous_and_leaves_them_as_they_are():
    u0 = fields_of_all_sizes(64)
    kept = u0.clone()
    expected = burgers.solve(u0, TIMES, 0.01)
    assert torch.equal(u0, kept)
    assert torch.equal(burgers.solve(u0.T.contiguous().T, TIMES, 0.01), expected)
    assert torch.equal(burgers.solve(u0.repeat_interleave(2, -1)[:, ::2], TIMES, 0.01), expected)


def test_solve_in_threads_equals_solve_in_turn():
    u0 = burgers.initial_conditions(8, burgers.cell_centers(256), seed=4)
    expected = burgers.solve(u0, TIMES, 0.001)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda part: burgers.solve(part, TIMES, 0.001), u0.split(1)))
    assert torch.equal(torch.cat(found), expected)


@pytest.mark.parametrize("nu", [0.0, 0.01, 1.0])
def test_solve_has_gradients(nu):
    # the fields take different numbers of steps; no two values are equal, as in a kink of the
    # limiter
    wave = torch.sin(2 * math.pi * burgers.cell_centers(32).double() + 0.1)
    u0 = wave * torch.tensor([[0.3], [0.5]]) + torch.tensor([[0.05], [0.6]])
    weight = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(0)).double()

    def value(u):
        return (burgers.solve(u, [0.05, 0.1], nu) * weight).sum()

    u = u0.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(u), u)
    with torch.no_grad():
        assert value(u).item() == pytest.approx(value(u0).item(), rel=1e-12)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        direction = torch.randn(2, 32, generator=generator).double()
        # max |u|, which sets the steps, stays the same
        direction[torch.arange(2), u0.abs().argmax(-1)] = 0.0
        h = 1e-7
        difference = (value(u0 + h * direction) - value(u0 - h * direction)) / (2 * h)
        assert (gradient * direction).sum().item() == pytest.approx(difference.item(), rel=1e-5)


@pytest.mark.parametrize("nu", [0.001, 1.0])
def test_solver_in_torch_keeps_mass_and_the_maximum_principle(monkeypatch, nu):
    u0 = fields_of_all_sizes(64)
    u = in_torch(monkeypatch, u0, [0.0, 0.05, 0.5], nu)
    assert (u.mean(-1) - u0.mean(-1, keepdim=True)).abs().max() < 1e-13
    assert (u.amax(-1).diff(dim=1) <= 1e-12).all()
    assert (u.amin(-1).diff(dim=1) >= -1e-12).all()


@pytest.fixture(params=["numba", "rocket_fft"])
def without_numba(request, monkeypatch):
    """A copy of the module ``compilation``, imported where a package is not installed."""
    monkeypatch.setitem(sys.modules, request.param, None)
    spec = importlib.util.spec_from_file_location("a_copy", compilation.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_numba_the_solver_runs_in_torch_and_says_so_once(
    monkeypatch, caplog, without_numba
):
    u0 = fields_of_all_sizes(64)
    expected = burgers.solve(u0, TIMES, 0.01)
    monkeypatch.setattr(burgers, "compilation", without_numba)
    monkeypatch.setattr(burgers_compiled, "solve_rows", None)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = burgers.solve(u0, TIMES, 0.01)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    said = [record.message for record in caplog.records if "numba" in record.message]
    assert len(said) == 1
    assert said[0].startswith("numba or rocket-fft is not installed: solvers run in torch")


def test_without_a_folder_for_its_cache_numba_compiles_without(monkeypatch):
    calls = []

    def njit(function, cache=False, **options):
        calls.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return function

    monkeypatch.setattr(compilation.numba, "njit", njit)
    assert compilation.compiled(abs) is abs
    assert calls == [True, False]


# --- equations as data: the functions of a line (B, X) on fields (B, *space, C) of a grid ---

MODULES = {"burgers": burgers, "advection": advection}
LINE = Grid((128,), (2.0,))
both_equations = pytest.mark.parametrize("name", sorted(MODULES))


def line_fields(n=3, points=128, length=2.0):
    x = periodic_1d.cell_centers(points, length)
    return periodic_1d.initial_conditions(n, x, 0, length)


@both_equations
def test_equation_says_its_names(name):
    equation = get_equation(name)
    assert (equation.name, equation.channels, equation.num_dims) == (name, ("u",), 1)
    assert equation.parameters == ({"burgers": "nu", "advection": "beta"}[name],)
    assert equation.has_maximum_principle
    laws = {functional.name: functional.law for functional in equation.functionals}
    energy = {"burgers": Law.NON_INCREASING, "advection": Law.CONSERVED}[name]
    assert laws == {"mass": Law.CONSERVED, "tv": Law.NON_INCREASING, "energy": energy}
    assert equation.symmetry("rotate") is None


@both_equations
def test_equation_initial_conditions_are_those_of_the_line(name):
    found = get_equation(name).initial_conditions["published"](3, LINE, 0)
    assert torch.equal(found, line_fields()[..., None])


@both_equations
def test_equation_solve_equals_its_modules(name):
    u0 = line_fields().double()
    times = [0.0, 0.1, 0.2]
    found = get_equation(name).solve(u0[..., None], times, [0.3], LINE, torch.float64)
    assert torch.equal(found, MODULES[name].solve(u0, times, 0.3, 2.0)[..., None])
    single = get_equation(name).solve(u0[..., None], times, [0.3], LINE, torch.float32)
    expected = MODULES[name].solve(u0, times, 0.3, 2.0, dtype=torch.float32)
    assert torch.equal(single, expected[..., None])
    assert not torch.equal(single, found)


@both_equations
def test_equation_solver_step_equals_its_modules(name):
    u0 = line_fields()
    nu = torch.tensor([0.1, 0.3, 0.1])
    found = get_equation(name).solver_step(u0[..., None], 0.1, nu[:, None], LINE, 2)
    assert torch.equal(found, MODULES[name].solver_step(u0, 0.1, nu, 2.0, 2)[..., None])


@both_equations
def test_equation_solver_confidence_is_the_shock_weight(name):
    u0 = line_fields()
    for threshold, radius in ((0.03, 3), (0.1, 1)):
        found = get_equation(name).solver_confidence(u0[..., None], LINE, threshold, radius)
        assert torch.equal(found, MODULES[name].shock_weight(u0, threshold, radius)[..., None])


@both_equations
def test_equation_restrict_and_prolong_equal_hand_computed_values(name):
    equation = get_equation(name)
    u = torch.tensor([[0.0, 2.0, 1.0, 1.0, 4.0, 2.0, 3.0, 3.0]])[..., None]
    coarse = equation.restrict(u, 2)
    assert coarse[..., 0].tolist() == [[1.0, 1.0, 3.0, 3.0]]
    # every cell is beside a flat one, so lines are flat; 4 points: extrema too
    assert equation.prolong(coarse, 2)[..., 0].tolist() == [[1.0] * 4 + [3.0] * 4]
    rising = torch.tensor([[0.0, 1.0, 3.0, 3.0]])[..., None]
    # slope 2 * 1 * 2 / 3 in the second cell
    expected = [0.0, 0.0, 1 - 1 / 3, 1 + 1 / 3, 3.0, 3.0, 3.0, 3.0]
    assert equation.prolong(rising, 2)[0, :, 0].tolist() == pytest.approx(expected)


@both_equations
def test_equation_functionals_equal_hand_computed_values(name):
    u = torch.tensor([[1.0, -2.0, 3.0, 6.0]])[..., None]
    grid = Grid((4,), (3.0,))
    values = {f.name: f.compute(u, grid).tolist() for f in get_equation(name).functionals}
    assert values == {"mass": [6.0], "energy": [3 * 50 / 8], "tv": [16.0]}


@both_equations
def test_equation_functionals_grow_with_their_degree(name):
    u = line_fields()[..., None]
    for functional in get_equation(name).functionals:
        grown = functional.compute(3 * u, LINE)
        expected = 3**functional.degree * functional.compute(u, LINE)
        assert torch.allclose(grown, expected, rtol=1e-5, atol=1e-6), functional.name


@both_equations
@pytest.mark.parametrize("symmetry", ["translate", "reflect"])
def test_equation_symmetry_maps_solutions_to_solutions(name, symmetry):
    equation = get_equation(name)
    symmetry = equation.symmetry(symmetry)
    points = torch.tensor([[3], [0], [127]])
    u0 = line_fields().double()[..., None]
    times = [0.1, 0.2]
    solved = equation.solve(u0, times, [0.05], LINE, torch.float64)
    moved = symmetry.fields(u0[:, None], points, LINE)[:, 0]
    found = equation.solve(moved, times, [0.05], LINE, torch.float64)
    assert torch.allclose(found, symmetry.fields(solved, points, LINE), atol=1e-12)
    parameters = torch.tensor([[0.05]] * 3)
    assert torch.equal(symmetry.parameters(parameters, points), parameters)


def test_equation_translation_equals_rolls():
    u = torch.arange(24.0).view(2, 3, 4, 1)
    moved = burgers.EQUATION.symmetry("translate").fields(
        u, torch.tensor([[1], [3]]), Grid((4,), (1.0,))
    )
    assert torch.equal(moved, torch.stack((u[0].roll(-1, -2), u[1].roll(-3, -2))))


@both_equations
def test_equation_time_rescaling_solves_it_at_as_many_times_the_parameter(name):
    equation = get_equation(name)
    symmetry = equation.symmetry("rescale_time")
    grid = Grid((128,), (1.0,))
    factor = torch.tensor([2, 2, 2])
    u0 = equation.initial_conditions["published"](3, grid, 0).double()
    slow = equation.solve(u0, [0.05, 0.1, 0.2], [0.01], grid, torch.float64)
    faster = symmetry.fields(u0[:, None], factor, grid)[:, 0]
    parameters = symmetry.parameters(torch.full((3, 1), 0.01), factor)
    assert torch.equal(parameters, torch.full((3, 1), 0.02))
    fast = equation.solve(faster, [0.025, 0.05, 0.1], [0.02], grid, torch.float64)
    assert torch.allclose(fast, symmetry.fields(slow, factor, grid), atol=1e-10)
