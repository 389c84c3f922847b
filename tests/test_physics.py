"""The reference solver against the exact solution."""

import itertools
import math
import sys
from types import ModuleType

import pytest
import torch

from ups.core.errors import UpsError
from ups.physics import EQUATIONS, burgers, get_equation


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
def test_cole_hopf_is_stable_and_takes_a_mean(nu):
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


def test_cole_hopf_solves_the_equation():
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


def test_solve_runs_in_float32_and_returns_the_type_it_got():
    u0 = burgers.initial_conditions(4, burgers.cell_centers(256), seed=3)
    single, double = (
        burgers.solve(u0, [0.5], 0.001, dtype=torch.float32),
        burgers.solve(u0, [0.5], 0.001),
    )
    assert single.dtype == double.dtype == torch.float32
    assert torch.allclose(single, double, atol=2e-4)


def test_initial_conditions_follow_pdebench():
    x = burgers.cell_centers(256)
    u = burgers.initial_conditions(4000, x, seed=0)
    assert u.shape == (4000, 256)
    assert u.dtype == torch.float32
    assert torch.equal(u, burgers.initial_conditions(4000, x, seed=0))
    assert not torch.equal(u, burgers.initial_conditions(4000, x, seed=1))
    power = torch.fft.rfft(u).abs()
    plain = power[:, 9:].amax(1) < 1e-3  # neither absolute value nor window: wave numbers 1..8 only
    assert 0.76 < plain.float().mean() < 0.86  # 0.9 * 0.9
    present = (power[plain][:, 1:9] > 1e-3 * 256).sum(1)
    assert set(present.tolist()) <= {0, 1, 2}
    assert 0.2 < (present == 1).float().mean() < 0.3  # the same number twice: a quarter
    assert power[plain][:, 0].max() < 1e-3
    assert u.abs().max() < 2


def test_equations_are_found_by_their_modules_name(monkeypatch):
    assert {name: get_equation(name) for name in EQUATIONS} == EQUATIONS
    assert EQUATIONS["burgers"] is burgers
    mine = ModuleType("mine_of_a_test")
    monkeypatch.setitem(sys.modules, "mine_of_a_test", mine)
    with pytest.raises(UpsError, match=r"lacks PARAMETER, .*initial_conditions.*total_variation"):
        get_equation("mine_of_a_test")
    vars(mine).update(vars(burgers))
    assert get_equation("mine_of_a_test") is mine
    for name in ("line", "", "no.such", ".burgers"):
        with pytest.raises(UpsError, match=r"allowed are .*burgers"):
            get_equation(name)


@pytest.mark.parametrize("name", ["burgers", "advection"])
def test_a_hastened_solution_solves_the_equation_at_as_many_times_the_parameter(name):
    physics = get_equation(name)
    u0 = physics.initial_conditions(3, physics.cell_centers(128), 0).double()
    slow = physics.solve(u0, [0.05, 0.1, 0.2], 0.01)
    fast = physics.solve(physics.rescale_time(u0, 2), [0.025, 0.05, 0.1], 0.02)
    assert torch.allclose(fast, physics.rescale_time(slow, 2), atol=1e-10)
