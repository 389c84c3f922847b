"""States from scattered, noisy readings: against closed forms, where everything is linear."""

import numpy as np
import pytest
import torch
from conftest import make_simulator
from torch import nn

import ups
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid, PointCloud
from ups.physics import burgers
from ups.simulation.simulator import Simulator

NOISE = 0.1


class Shift(nn.Module):
    """Tokens are the points of a grid, and a step moves them by a cell along the first axis."""

    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        self.size = nn.Parameter(torch.ones(()))  # a weight, whose gradient nobody needs
        self.num_tokens = spec.grid.num_points
        self.hidden_dim = self.num_dynamic_channels = spec.num_channels

    def encode(self, u):
        return u.flatten(1, -2) * self.size

    def step(self, z, dt, parameters):
        return self.decode(z).roll(1, 1).flatten(1, -2)

    def decode(self, z):
        return z.view(len(z), *self.spec.shape)


LINE = FieldSpec(Grid((16,), (1.0,)), dt=0.5, mean=(0.3,), std=(2.0,), is_homogeneous=True)
PLANE = FieldSpec(Grid((6, 4), (1.0, 2.0)), channels=("u", "v"), dt=0.5)


def toy(spec=LINE):
    return Simulator(Shift(spec), spec).double().eval()


def problem(spec, n=8, batch=2, steps=(1, 2, 4), points=5):
    """Background, initial fields, and noisy readings at points of the grid."""
    generator = torch.Generator().manual_seed(0)
    background = torch.randn(n, *spec.shape, generator=generator, dtype=torch.float64) + 1
    u0 = torch.randn(batch, *spec.shape, generator=generator, dtype=torch.float64) + 1
    index = torch.randperm(spec.grid.num_points, generator=generator)[:points]
    exact = read(u0, index, steps)
    noise = torch.randn(exact.shape, generator=generator, dtype=torch.float64)
    positions = spec.grid.positions().flatten(0, -2)[index]
    return background, u0, index, positions, exact + NOISE * noise


def read(u0, index, steps):
    """Readings (B, R, P, C) of shifted fields (B, *space, C)."""
    return torch.stack([u0.roll(step, 1).flatten(1, -2)[:, index] for step in steps], 1)


def posterior(background, index, readings, steps):
    """The closed form: mean (B, N) and covariance (N, N) of the weights, and the fields of
    weights.
    """
    n = len(background)
    mean = background.mean(0)
    deviations = (background - mean) / (n - 1) ** 0.5
    seen = read(deviations, index, steps).flatten(1)  # (N, readings)
    covariance = torch.linalg.inv(torch.eye(n, dtype=seen.dtype) + seen @ seen.T / NOISE**2)
    gap = (readings - read(mean[None], index, steps)).flatten(1)
    weights = gap @ seen.T @ covariance / NOISE**2

    def fields(weights):
        return mean + torch.tensordot(weights, deviations, 1)

    return weights, covariance, fields


@pytest.mark.parametrize(
    ("spec", "steps"), [(LINE, (1, 2, 4)), (PLANE, (2, 3))], ids=["line", "plane"]
)
def test_most_probable_state_equals_the_closed_form(spec, steps):
    background, _, index, positions, readings = problem(spec, steps=steps)
    weights, _, fields = posterior(background, index, readings, steps)
    analysis = toy(spec).assimilate(
        readings, positions, [step * spec.dt for step in steps], background=background, noise=NOISE
    )
    expected = fields(weights)
    assert torch.allclose(analysis.initial_fields(), expected, atol=1e-6)
    frames = [expected.roll(step, 1) for step in steps]
    assert torch.allclose(analysis.fields(), torch.stack(frames, 1), atol=1e-6)
    forecast = [expected.roll(steps[-1] + k, 1) for k in (1, 2, 3)]
    assert torch.allclose(analysis.rollout(3), torch.stack(forecast, 1), atol=1e-6)
    misfit = (read(expected, index, steps) - readings) / NOISE
    assert torch.allclose(analysis.misfit, misfit.square().mean((1, 2, 3)).sqrt(), atol=1e-6)


def test_exact_readings_recover_a_mixture_of_the_background():
    spec = PLANE
    background, *_ = problem(spec)
    u0 = (0.3 * background[0] + 0.7 * background[1])[None]
    index = torch.arange(spec.grid.num_points)
    positions = spec.grid.positions().flatten(0, -2)
    readings = read(u0, index, (1, 3))
    analysis = toy(spec).assimilate(
        readings, positions, [0.5, 1.5], background=background, noise=1e-4
    )
    assert torch.allclose(analysis.initial_fields(), u0, atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "points"), [((1, 2, 4), 5), ((2,), 2)], ids=["of readings", "mostly of the prior"]
)
def test_draws_have_the_mean_and_covariance_of_the_posterior(steps, points):
    background, _, index, positions, readings = problem(LINE, 4, 1, steps, points)
    weights, covariance, fields = posterior(background, index, readings, steps)
    torch.manual_seed(0)
    analysis = toy().assimilate(
        readings,
        positions,
        [step * LINE.dt for step in steps],
        background=background,
        noise=NOISE,
        num_draws=2000,
    )
    draws = analysis.initial_fields()[:, 0, :, 0]
    deviations = fields(torch.eye(4, dtype=torch.float64)) - background.mean(0)
    expected = deviations[..., 0].T @ covariance @ deviations[..., 0]
    size = expected.diagonal().max()
    # 2000 draws: mean and covariance are off by 1/45 and 1/32 of a standard deviation, or so
    assert (draws.mean(0) - fields(weights)[0, :, 0]).abs().max() < 0.1 * size.sqrt()
    assert (draws.T.cov() - expected).abs().max() < 0.15 * size
    assert analysis.misfit.shape == (2000, 1)
    assert analysis.rollout(2).shape == (2000, 1, 2, 16, 1)


def test_missing_readings_count_as_little_as_ones_left_out():
    background, _, _, positions, readings = problem(LINE)
    missing = readings.clone()
    missing[:, :, 2] = torch.nan
    kept = [0, 1, 3, 4]
    times = [0.5, 1.0, 2.0]
    options = {"background": background, "noise": NOISE}
    expected = toy().assimilate(readings[:, :, kept], positions[kept], times, **options)
    found = toy().assimilate(missing, positions, times, **options)
    assert torch.allclose(found.initial_fields(), expected.initial_fields(), atol=1e-6)
    assert torch.allclose(found.misfit, expected.misfit, atol=1e-6)


def test_noise_of_each_reading_counts():
    background, _, _, positions, readings = problem(LINE)
    options = {"background": background}
    times = [0.5, 1.0, 2.0]
    without = readings.clone()
    without[:, 1] = torch.nan
    expected = toy().assimilate(without, positions, times, noise=NOISE, **options)
    noise = torch.tensor([NOISE, 1e6, NOISE])[:, None, None]
    found = toy().assimilate(readings, positions, times, noise=noise, **options)
    assert torch.allclose(found.initial_fields(), expected.initial_fields(), atol=1e-5)


def test_sensors_may_move():
    background, u0, _, _, _ = problem(PLANE)
    index = torch.arange(8).view(2, 4)
    positions = PLANE.grid.positions().flatten(0, -2)[index]
    readings = torch.cat([read(u0, i, (step,)) for i, step in zip(index, (0, 2), strict=True)], 1)
    options = {"background": background, "noise": NOISE}
    found = toy(PLANE).assimilate(readings, positions, [0, 1], **options)
    # the same readings, with all positions at both times
    both = torch.full((2, 2, 8, 2), torch.nan, dtype=torch.float64)
    both[:, 0, :4], both[:, 1, 4:] = readings[:, 0], readings[:, 1]
    expected = toy(PLANE).assimilate(both, positions.flatten(0, 1), [0, 1], **options)
    assert torch.allclose(found.initial_fields(), expected.initial_fields(), atol=1e-6)
    assert torch.equal(found.fields()[:, 0], found.initial_fields())


def test_readings_off_the_grid_of_a_line():
    sim = toy(LINE)
    x = sim.x.double()
    background = torch.stack([torch.sin(2 * torch.pi * (x + k / 5)) for k in range(5)])
    positions = torch.tensor([0.01, 0.22, 0.4, 0.77], dtype=torch.float64)
    readings = sim.rollout(background[:1], 3, x_out=positions)
    found = sim.assimilate(readings, positions, [0.5, 1, 1.5], background=background, noise=1e-3)
    assert torch.allclose(found.initial_fields(), background[:1], atol=1e-3)
    assert found.misfit.item() < 0.1
    expected = sim.rollout(background[:1], 5, x_out=positions)[:, 3:]
    assert torch.allclose(found.rollout(2, x_out=positions), expected, atol=1e-3)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_weights_and_grad_mode_stay_as_they_were(mode):
    background, _, _, positions, readings = problem(LINE)
    sim = toy()
    with mode():
        before = torch.is_grad_enabled()
        analysis = sim.assimilate(
            readings, positions, [0.5, 1, 2], background=background, noise=NOISE, num_draws=2
        )
        assert torch.is_grad_enabled() == before
        forecast = analysis.rollout(1)
    assert sim.model.size.requires_grad
    assert sim.model.size.grad is None
    assert not analysis.tokens.requires_grad
    assert not analysis.initial_fields().requires_grad
    assert not analysis.fields().requires_grad
    assert not forecast.requires_grad


def test_axes_are_those_of_the_readings():
    background, _, _, positions, readings = problem(LINE)
    sim = toy()
    options = {"background": background, "noise": NOISE, "iterations": 3}
    times = np.array([0.5, 1, 2])
    flat = sim.assimilate(readings[..., 0].numpy(), positions[:, 0], times, **options)
    assert flat.initial_fields().shape == (2, 16)
    assert flat.fields().shape == (2, 3, 16)
    single = sim.assimilate(readings[0, ..., 0], positions, times, **options)
    assert single.rollout(4).shape == (1, 4, 16)
    draws = sim.assimilate(readings, positions, times, num_draws=3, **options)
    assert draws.tokens.shape == (3, 2, 16, 1)
    assert draws.fields().shape == (3, 2, 3, 16, 1)
    assert draws.initial_fields().std(0).min() > 0


def test_float64_input_of_a_float32_simulator():
    background, _, _, positions, readings = problem(LINE)
    options = {"background": background, "noise": torch.tensor(NOISE).double()}
    found = toy().float().assimilate(readings, positions, [0.5, 1, 2], **options)
    expected = toy().assimilate(readings, positions, [0.5, 1, 2], **options)
    assert found.tokens.dtype == torch.float32
    assert torch.allclose(found.tokens.double(), expected.tokens, atol=1e-3)


def test_each_trajectory_has_its_parameter():
    sim = make_simulator().eval()
    background = burgers.initial_conditions(6, sim.x, seed=0)
    nu = torch.tensor([0.001, 0.004])
    positions = sim.x[::4]
    readings = sim.rollout(background[:2], 3, nu=nu)[:, :, ::4]
    options = {"background": background, "noise": 0.1, "iterations": 2}
    times = [0.05, 0.1, 0.15]
    both = sim.assimilate(readings, positions, times, nu=nu, num_draws=2, **options)
    again = sim.rollout(both.initial_fields()[1], 4, nu=nu)[:, 3:]
    assert torch.allclose(both.rollout(1)[1], again, atol=1e-5)


def test_trajectories_do_not_depend_on_each_other():
    sim = make_simulator().eval()
    background = burgers.initial_conditions(6, sim.x, seed=0)
    nu = torch.tensor([0.001, 0.004])
    readings = sim.rollout(background[:2], 2, nu=nu)[:, :, ::4]
    options = {"background": background, "noise": 0.1, "iterations": 4}
    both = sim.assimilate(readings, sim.x[::4], [0.05, 0.1], nu=nu, **options)
    for i in range(2):
        alone = sim.assimilate(readings[i], sim.x[::4], [0.05, 0.1], nu=nu[i], **options)
        assert torch.allclose(both.tokens[i], alone.tokens[0], atol=1e-6)
        assert torch.allclose(both.misfit[i], alone.misfit[0], rtol=1e-5)


def test_shipped_model_finds_a_field_that_moves():
    """The field has a mean: its network sees it from a frame that moves along."""
    sim = ups.load("burgers-small")
    background = burgers.initial_conditions(20, sim.x, seed=3)
    background = background - background.mean(1, keepdim=True) + 1.0
    u0, positions = background[:1], sim.x[::2]
    frames = sim.rollout(u0, 8, nu=0.001)
    times = [sim.dt * k for k in range(1, 5)]
    found = sim.assimilate(
        frames[:, :4, ::2], positions, times, background=background, noise=0.01, nu=0.001
    )
    error = (found.rollout(4) - frames[:, 4:]).square().mean().sqrt() / frames.std()
    assert error < 0.03
    encoded = sim.decode(sim.encode(u0[..., None]))[..., 0]
    own = (encoded - u0).square().mean().sqrt()
    assert (found.initial_fields() - u0).square().mean().sqrt() < 2 * own + 0.02


def test_defaults_are_the_initial_conditions_of_the_equation_and_usual_noise():
    sim = make_simulator().eval()
    u0 = burgers.initial_conditions(2, sim.x, seed=7)
    readings = sim.rollout(u0, 2, nu=0.001)[:, :, ::4]
    arguments = (readings, sim.x[::4], [0.05, 0.1])
    found = sim.assimilate(*arguments, nu=0.001, iterations=3)
    background = burgers.initial_conditions(1000, sim.x, seed=0)
    options = {"background": background, "noise": 0.05 * sim.std}
    expected = sim.assimilate(*arguments, **options, nu=0.001, iterations=3)
    assert torch.allclose(found.tokens, expected.tokens, atol=1e-5)


ERRORS = {
    "`readings` must have shape \\(B, 2, 3\\)": {"readings": torch.zeros(2, 4)},
    "`readings` must be an array of numbers, got 'many'": {"readings": "many"},
    "`readings` must be real numbers, got complex ones": {"readings": torch.zeros(2, 3) + 1j},
    "`positions` must be real numbers, got complex ones": {"positions": np.full(3, 0.1 + 1j)},
    "`readings` must have a number for each trajectory": {
        "readings": torch.full((2, 3), torch.nan)
    },
    "`readings` must be finite, or NaN": {"readings": torch.full((2, 3), torch.inf)},
    "`positions` must have shape": {"positions": torch.zeros(3, 2)},
    "`positions` must be finite": {"positions": torch.tensor([0.1, torch.nan, 0.2])},
    "`positions` must be those of all times or of 2 times, got 4": {
        "positions": torch.zeros(4, 3, 1)
    },
    "`times` must be increasing multiples of dt = 0.5": {"times": [0.5, 0.7]},
    "from 0, the time of the initial state, got \\[-0.5, 0.5\\]": {"times": [-0.5, 0.5]},
    "`times` must be .* got \\[1.0, 0.5\\]": {"times": [1.0, 0.5]},
    "`times` must be an array of numbers": {"times": ["now", "then"]},
    "`noise` must be an array of numbers, got 'little'": {"noise": "little"},
    "`noise` must be positive and finite, got 0": {"noise": 0.0},
    "`noise` must be one number, or have a shape": {"noise": torch.ones(7)},
    "`background` must be at least 2 fields": {"background": torch.zeros(1, 16)},
    "`background` must have shape \\(B, 16\\), the points of the training grid; got": {
        "background": torch.zeros(3, 15)
    },
    "`background` must be fields .*: there is no equation to draw them from.": {"background": None},
    "`background` must be finite": {"background": torch.full((3, 16), torch.nan)},
    "`num_draws` must be an integer >= 1, got 0": {"num_draws": 0},
    "`iterations` must be an integer >= 1, got 1.5": {"iterations": 1.5},
    "`nu` must be None": {"nu": 0.1},
}


@pytest.mark.parametrize("message", ERRORS)
def test_invalid_argument_is_refused(message):
    arguments = {
        "readings": torch.zeros(2, 3),
        "positions": torch.tensor([0.1, 0.2, 0.3]),
        "times": [0.5, 1.0],
        "background": torch.randn(4, 16),
        "noise": 1.0,
        **ERRORS[message],
    }
    with pytest.raises(UpsError, match=message):
        toy().assimilate(**arguments)


def test_field_on_points_is_refused():
    sim = Simulator(nn.Identity(), FieldSpec(PointCloud(((0.0, 1.0),))))
    with pytest.raises(UpsError, match="this needs a field on a grid"):
        sim.assimilate(torch.zeros(1, 1), [0.1], [1.0], background=torch.zeros(2, 2), noise=1.0)


def test_invalid_option_of_a_forecast_is_refused():
    background, _, _, positions, readings = problem(LINE)
    options = {"background": background, "noise": NOISE, "iterations": 1}
    analysis = toy().assimilate(readings, positions, [0.5, 1, 2], **options)
    with pytest.raises(UpsError, match="`steps` must be an integer >= 1, got 0"):
        analysis.rollout(0)
    with pytest.raises(UpsError, match="`stride` must be 1 in a forecast, got 2"):
        analysis.rollout(4, stride=2)
    for name in ("x", "nu", "parameters"):
        with pytest.raises(UpsError, match=f"`{name}` must not be given: the analysis has its own"):
            analysis.rollout(4, **{name: torch.ones(16)})


def test_readings_of_one_trajectory_may_have_the_axis_of_their_one_channel():
    background, _, _, positions, readings = problem(LINE)
    options = {"background": background, "noise": NOISE, "iterations": 2}
    plain = toy().assimilate(readings[0, ..., 0], positions, [0.5, 1, 2], **options)
    found = toy().assimilate(readings[0], positions, [0.5, 1, 2], **options)
    assert torch.equal(found.tokens, plain.tokens)
    assert torch.equal(found.rollout(2), plain.rollout(2)[..., None])


def test_noise_of_readings_that_are_missing_does_not_count():
    background, _, _, positions, readings = problem(LINE)
    readings[0, 1, 0] = torch.nan
    noise = torch.full_like(readings, NOISE)
    options = {"background": background, "iterations": 2}
    expected = toy().assimilate(readings, positions, [0.5, 1, 2], noise=noise, **options)
    noise[0, 1, 0] = torch.nan
    found = toy().assimilate(readings, positions, [0.5, 1, 2], noise=noise, **options)
    assert torch.equal(found.tokens, expected.tokens)
