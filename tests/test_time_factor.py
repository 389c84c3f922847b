"""Time factors: a parameter above the trained ones is that of a slower solution, exactly."""

import pytest
import torch
from conftest import make_simulator

from ups.core.fields import Grid, PointCloud
from ups.physics import advection, burgers
from ups.physics.time_factor import is_trained, time_factors
from ups.simulation.simulator import Simulator

LINE = Grid((32,), (1.0,))
TRAINED = [[0.001], [0.004]]


@pytest.fixture
def trained():
    simulator = make_simulator().eval()
    simulator.training_parameters = TRAINED
    return simulator


def column(*values):
    return torch.tensor(values)[:, None]


def fields(n=3, points=32):
    """They have a mean, so that frames move too."""
    return 2 * burgers.initial_conditions(n, burgers.cell_centers(points), 0)


def test_the_smallest_factor_that_reaches_the_trained_range_is_taken():
    nu = column(0.001, 0.004, 0.00401, 0.008, 0.0121, 0.032, 0.04, 0.0005)
    factors = time_factors(burgers.EQUATION, LINE, nu, TRAINED)
    # 0.004, but for rounding, counts as trained; 0.04 / 8 is too large, and nothing slows 0.0005
    assert factors.tolist() == [1, 1, 2, 2, 4, 8, 1, 1]


def test_a_single_trained_value_is_reached_by_its_multiples_only():
    nu = column(0.002, 0.0025, 0.003, 0.0030029)
    assert time_factors(burgers.EQUATION, LINE, nu, [[0.001]]).tolist() == [2, 1, 3, 3]


def test_all_parameters_must_be_reached_by_the_same_factor():
    nu = torch.tensor([[0.002, 0.2], [0.002, 0.1], [0.001, 0.1]])
    assert time_factors(burgers.EQUATION, LINE, nu, [[0.001, 0.1]]).tolist() == [2, 1, 1]
    assert is_trained(nu, [[0.001, 0.1]]).tolist() == [[False, False], [False, True], [True, True]]


@pytest.mark.parametrize(
    ("equation", "domain", "known"),
    [
        (None, LINE, TRAINED),
        (burgers.EQUATION, PointCloud(((0.0, 1.0),)), TRAINED),
        (burgers.EQUATION, LINE, []),
    ],
)
def test_there_is_no_factor_without_the_symmetry_a_grid_and_a_range(equation, domain, known):
    assert time_factors(equation, domain, column(0.008), known).tolist() == [1]


@pytest.mark.parametrize("mode", ["latent", "physical"])
@pytest.mark.parametrize("options", [{}, {"ttc": True}])
def test_a_rollout_above_the_range_is_that_of_the_slower_solution(trained, mode, options):
    u0 = fields()
    slow = trained.rollout(u0 / 3, 6, nu=0.003, mode=mode, **options)
    found = trained.rollout(u0, 2, nu=0.009, mode=mode, **options)
    assert torch.allclose(found, 3 * slow[:, 2::3], atol=1e-5)
    plain = make_simulator().eval()  # the same weights; it does not know what it was trained for
    without = plain.rollout(u0, 2, nu=0.009, mode=mode, **options)
    assert not torch.allclose(found, without, atol=1e-3)


def test_an_advected_field_keeps_its_size():
    simulator = Simulator(
        make_simulator().model, make_simulator().spec, "advection", training_parameters=TRAINED
    ).eval()
    u0 = fields()
    assert advection.EQUATION.boost is None
    slow = simulator.rollout(u0, 6, nu=0.004)
    assert torch.allclose(simulator.rollout(u0, 3, nu=0.008), slow[:, 1::2], atol=1e-5)


def test_each_field_has_a_factor_of_its_own(trained):
    u0, nu = fields(4), torch.tensor([0.012, 0.002, 0.008, 0.012])
    together = trained.rollout(u0, 3, nu=nu)
    for u, value, own in zip(u0, nu, together, strict=True):
        assert torch.allclose(trained.rollout(u[None], 3, nu=value)[0], own, atol=1e-5)


def test_positions_off_the_grid_and_evaluations_are_slowed_too(trained):
    u0, nu = fields(), torch.tensor([0.008, 0.002, 0.008])
    at = torch.tensor([0.2, 0.31, 0.7])
    off_grid = trained.rollout(u0, 3, nu=nu, x_out=at)
    each = [trained.rollout(u0[i : i + 1], 3, nu=nu[i], x_out=at) for i in range(3)]
    assert torch.allclose(off_grid, torch.cat(each), atol=1e-5)
    predicted = trained.predict(trained.stepper(), u0[..., None], 3, nu[:, None])
    assert torch.allclose(predicted[..., 0], trained.rollout(u0, 3, nu=nu), atol=1e-6)


def test_only_what_no_factor_reaches_warns(trained, caplog):
    u0 = fields() - fields().mean(1, keepdim=True)  # no frame moves
    trained.input_range = {"largest value": (u0 / trained.std).abs().max().item() / 2}
    trained.rollout(u0, 1, nu=0.008)  # half the field is within the range, too
    assert not caplog.records
    trained.rollout(u0, 1, nu=torch.tensor([0.008, 0.05, 0.0001]))
    assert "nu = 0.0001 to 0.05 is outside the training range (0.001, 0.004)" in caplog.text
    assert "largest value of `u0`" in caplog.text
