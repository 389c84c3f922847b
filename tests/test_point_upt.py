"""The UPT on points: what must not matter does not, and what is decoded between the tokens."""

import math

import numpy as np
import pytest
import torch
from helpers.points import (
    CLOUD,
    PARAMETERS,
    SPEC,
    assert_order_does_not_matter,
    assert_padding_does_not_matter,
    assert_samples_do_not_see_each_other,
    draw_points,
    padded,
    simulator_of,
    waves,
)

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.core.norms import mean_over, relative_l2_squared
from ups.core.points import Points
from ups.evaluation.metrics import PhysicsChecks, RolloutMetrics
from ups.models import build
from ups.models.lattice import Lattice, Rotary, cubic_shape
from ups.models.mixer import soft_rms_clip
from ups.modules.losses import operator_errors
from ups.simulation.checkpoint import load
from ups.simulation.simulator import Simulator

MODEL = {
    "architecture": "point_upt",
    "num_tokens": [5, 3],
    "hidden_dim": 16,
    "num_heads": 2,
    "approximator_depth": 1,
}


def make_simulator(spec=SPEC, seed=0, **changes):
    return simulator_of({**MODEL, **changes}, spec, seed)


@pytest.fixture(scope="module")
def simulator():
    return make_simulator()


def test_order_of_points_changes_nothing(simulator):
    assert_order_does_not_matter(simulator)


def test_padding_changes_nothing(simulator):
    assert_padding_does_not_matter(simulator)
    points = draw_points(40)
    u = waves(points)
    more, longer = padded(points, u)
    # losses and metrics of windows
    window = torch.stack((u, waves(points, 0.2), waves(points, 0.4)), 1)
    _, padded_window = padded(points, window.transpose(1, 2).flatten(2))
    padded_window = padded_window.unflatten(2, (3, 2)).transpose(1, 2)
    errors = operator_errors(simulator, window, PARAMETERS, True, points)
    padded_errors = operator_errors(simulator, padded_window, PARAMETERS, True, more)
    for name, value in errors.items():
        assert torch.allclose(padded_errors[name], value, rtol=1e-4), name
    pred = window + 0.1 * torch.randn_like(window)
    wrong = torch.cat((pred, torch.full((3, 3, 7, 2), -4.0)), 2)
    metrics = [RolloutMetrics(3, SPEC) for _ in range(2)]
    metrics[0].update(pred, window)
    metrics[1].update(wrong, padded_window, more.mask)
    found, expected = (metric.compute() for metric in metrics)
    assert set(found) == {"rmse", "nrmse", "max_error", "vrmse", "nrmse_over_time"}
    for name, value in found.items():
        assert value == pytest.approx(expected[name]), name
    checks = [PhysicsChecks(None, SPEC) for _ in range(2)]
    checks[0].update(u, pred, window)
    checks[1].update(longer, wrong, padded_window, more.mask)
    assert checks[1].compute() == pytest.approx(checks[0].compute())


def test_samples_of_a_batch_do_not_see_each_other(simulator):
    assert_samples_do_not_see_each_other(simulator)


def test_decoded_field_is_continuous_between_and_across_cells(simulator):
    points = draw_points(40)
    z = simulator.encode(waves(points), None, points)
    # along a line through all cells, which has points on their sides
    x = torch.linspace(0, 2, 4001)
    positions = torch.stack((x, torch.full_like(x, 0.1)), -1).expand(3, -1, -1)
    u = simulator.decode(z, Points(positions, torch.full((3, 4001, 1), 0.4)))
    steps = u.diff(dim=1).abs().amax((1, 2))
    assert (steps < 0.02).all()
    assert (u.std(1) > 0.02).all()
    # it is no interpolation of values at the tokens: between two of them the field is curved
    cell = u[:, :1001]  # of the first cell
    chord = torch.lerp(cell[:, :1], cell[:, -1:], torch.linspace(0, 1, 1001)[:, None])
    assert (cell - chord).abs().max() > 0.01
    # what is known of a point counts too
    near_wall = simulator.decode(z, Points(positions, torch.zeros(3, 4001, 1)))
    assert (near_wall - u).abs().mean() > 1e-3


def test_corners_reproduce_linear_functions_of_the_position():
    lattice = Lattice(CLOUD, [5, 3])
    points = draw_points(200)
    points.positions[0, :4] = torch.tensor([[0.0, -0.5], [2.0, 0.5], [2.0, -0.5], [1.0, 0.0]])
    corners = lattice.corners(points)
    places = lattice.tokens.positions().flatten(0, 1)
    assert places[[0, -1]].tolist() == [[0.0, -0.5], [2.0, 0.5]]
    assert torch.allclose(corners.weight.sum(-1), torch.ones(3, 200))
    number = corners.token - 15 * torch.arange(3)[:, None, None]
    assert number.min() >= 0
    assert number.max() == 14
    mean = (places[number] * corners.weight[..., None]).sum(2)
    assert torch.allclose(mean, points.positions, atol=1e-5)
    offset = (points.positions[:, :, None] - places[number]) / torch.tensor([0.5, 0.5])
    assert torch.allclose(corners.offset, offset, atol=1e-4)


def test_points_beyond_the_box_have_the_tokens_at_its_face():
    lattice = Lattice(CLOUD, [5, 3])
    beyond = torch.tensor([[[-9.0, 0.0], [0.7, 3.0]]])
    at_face = torch.tensor([[[0.0, 0.0], [0.7, 0.5]]])
    corners = [lattice.corners(Points(p, torch.zeros(1, 2, 0))) for p in (beyond, at_face)]
    for one, other in zip(*corners, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("number", [[5], [5, 1], [5, 3, 2]])
def test_tokens_that_do_not_fit_the_domain_are_refused(number):
    with pytest.raises(UpsError, match=r"`model.num_tokens` must be one number, or 2 integers"):
        make_simulator(num_tokens=number)


def test_number_of_tokens_makes_nearly_cubic_cells():
    assert cubic_shape((12.0, 6.0), 128) == (16, 8)
    assert cubic_shape((1.0,), 64) == (64,)
    assert cubic_shape((9.0, 0.1), 16) == (38, 2)


@pytest.mark.parametrize("domain", [CLOUD, Grid((8, 8), (2.0, 1.0))])
def test_attention_depends_on_relative_places(domain):
    lattice = Lattice(domain, [6, 4])
    rotary = Rotary(lattice, 8)
    q, k = torch.randn(2, 8)
    rotated = [rotary(each.expand(1, 1, 24, 8))[0, 0].unflatten(0, (6, 4)) for each in (q, k)]
    products = torch.einsum("abw,cdw->abcd", *rotated)
    # the same offsets from another token
    assert torch.allclose(products[0, 1, 2, 2], products[3, 2, 5, 3], atol=1e-5)
    assert not torch.allclose(products[0, 1, 2, 2], products[0, 1, 3, 2], atol=1e-3)
    if isinstance(domain, Grid):  # around the circle too
        assert torch.allclose(products[1, 0, 5, 0], products[3, 0, 1, 0], atol=1e-5)


def test_shift_by_a_cell_on_a_periodic_grid_is_a_shift_of_the_tokens():
    grid = Grid((12, 8), (3.0, 2.0))
    sim = make_simulator(FieldSpec(grid, ("u",), (), std=(2.0,)), num_tokens=[6, 4])
    u = torch.randn(2, 12, 8, 1)
    z = sim.encode(u)
    shifted = sim.encode(u.roll((2, 4), (1, 2)))
    expected = z.unflatten(1, (6, 4)).roll((1, 2), (1, 2)).flatten(1, 2)
    assert torch.allclose(shifted, expected, atol=1e-4)
    parameters = torch.empty(2, 0)
    moved = sim.decode(sim.step(shifted, parameters))
    stayed = sim.decode(sim.step(z, parameters))
    assert torch.allclose(moved, stayed.roll((2, 4), (1, 2)), atol=1e-4)
    assert sim.rollout(u, 3).shape == (2, 3, 12, 8, 1)


def test_grid_with_walls_knows_what_lies_beyond():
    grid = Grid((6, 6), (1.0, 1.0), (("wall", "open"), ("periodic", "periodic")))
    sim = make_simulator(FieldSpec(grid, ("u",), ()), num_tokens=[3, 3])
    assert sim.model.grid_features.sum(0).tolist() == [6.0, 6.0]
    assert sim.rollout(torch.randn(2, 6, 6), 2).shape == (2, 2, 6, 6)


def test_untrained_step_is_the_identity_within_the_limit():
    torch.manual_seed(0)
    model = build(MODEL, SPEC)
    z = torch.randn(2, 15, 16)
    stepped = model.step(z, torch.tensor([0.5, 0.5]), torch.tensor([[1.0], [2.0]]))
    assert torch.allclose(stepped, soft_rms_clip(z, 3.0))


def test_gradients_of_all_losses_reach_all_parts():
    simulator = make_simulator()
    inputs, queries = draw_points(30, seed=1), draw_points(20, seed=2)
    window = torch.stack([waves(queries, 0.2 * k) for k in range(3)], 1)
    start = (waves(inputs), inputs)
    errors = operator_errors(simulator, window, PARAMETERS, True, queries, start)
    assert errors["L_forward"].shape == (3, 2)
    parts = ("pool", "encoder", "condition", "approximator", "decoder", "read")
    # of the window's own start only the maps that it takes part in get a gradient
    reached = {"L_forward": parts, "L_inv_enc": ("pool", "read"), "L_inv_dec": parts}
    for name, names in reached.items():
        simulator.zero_grad()
        errors[name].mean().backward(retain_graph=True)
        for part in names:
            weights = getattr(simulator.model, part).parameters()
            assert any(p.grad is not None and bool(p.grad.any()) for p in weights), (name, part)


def test_losses_on_points_are_those_of_their_definition(simulator):
    inputs, queries = draw_points(30, seed=1), draw_points(20, seed=2)
    window = torch.stack([waves(queries, 0.2 * k) for k in range(3)], 1)
    with torch.no_grad():
        errors = operator_errors(
            simulator, window, PARAMETERS, True, queries, (waves(inputs), inputs)
        )
        z = [simulator.encode(waves(inputs), None, inputs)]
        for _ in range(2):
            z.append(simulator.step(z[-1], PARAMETERS))
        decoded = [simulator.decode(each, queries) for each in z]
        again = simulator.encode(decoded[2], None, queries)
    for k in (1, 2):
        error = relative_l2_squared(
            decoded[k] - simulator.mean, window[:, k] - simulator.mean, (-2,)
        )
        assert torch.allclose(errors["L_forward"][:, k - 1], error, rtol=1e-4)
    error = relative_l2_squared(decoded[0] - simulator.mean, window[:, 0] - simulator.mean, (-2,))
    assert torch.allclose(errors["L_inv_enc"], error, rtol=1e-4)
    distance = (again - z[2]).square().mean((1, 2)) / z[2].var((1, 2))
    assert torch.allclose(errors["L_inv_dec"], distance, rtol=1e-4)


def test_mean_over_points_leaves_out_what_is_none():
    values = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [4.0], [6.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert mean_over(values, (-2,), mask)[:, 0].tolist() == [2.0, 4.0]
    assert mean_over(values, (-2,))[1, 0] == 4.0
    values[0, 2] = math.nan
    assert mean_over(values, (-2,), mask)[:, 0].tolist() == [2.0, 4.0]


def test_gradients_of_errors_are_finite_where_padding_is_nan():
    pred = torch.randn(2, 3, 1, requires_grad=True)
    target = torch.randn(2, 3, 1)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    target[0, 2] = math.nan
    relative_l2_squared(pred, target, (-2,), mask=mask).sum().backward()
    assert pred.grad.isfinite().all()
    assert pred.grad[0, 2] == 0


@pytest.mark.parametrize("mode", ["latent", "physical"])
def test_rollout_gives_frames_at_any_points(simulator, mode):
    points, queries = draw_points(40), draw_points(25, seed=3)
    u0 = waves(points)
    options = {"parameters": {"re": PARAMETERS[:, 0]}, "mode": mode, "x": points}
    frames = simulator.rollout(u0, 3, **options)
    assert frames.shape == (3, 3, 40, 2)
    elsewhere = simulator.rollout(u0, 3, **options, x_out=queries)
    assert elsewhere.shape == (3, 3, 25, 2)
    # the frames at other points are of the same rollout
    with torch.no_grad():
        z = simulator.encode(u0, None, points)
        for k in range(3):
            z = simulator.step(z, PARAMETERS)
            assert torch.allclose(frames[:, k], simulator.decode(z, points), atol=1e-5)
            assert torch.allclose(elsewhere[:, k], simulator.decode(z, queries), atol=1e-5)
            if mode == "physical":
                z = simulator.encode(simulator.decode(z, points), None, points)
    both = torch.cat((points.positions, queries.positions), 1)
    features = torch.cat((points.features, queries.features), 1)
    joined = simulator.rollout(u0, 3, **options, x_out=Points(both, features))
    assert torch.allclose(joined[:, :, 40:], elsewhere, atol=1e-5)
    strided = simulator.rollout(u0, 3, **options, x_out=queries, stride=3)
    assert torch.allclose(strided[:, 0], elsewhere[:, 2], atol=1e-5)


def test_positions_and_features_of_points_have_gradients(simulator):
    points, queries = draw_points(40), draw_points(5, seed=3)
    u0 = waves(points)

    def value(positions, features=queries.features, **options):
        out = Points(positions, features)
        options = {"parameters": {"re": PARAMETERS[:, 0]}, "x": points, **options}
        return simulator.rollout(u0, 2, **options, x_out=out).square().sum()

    expected = torch.func.grad(lambda p: value(p, grad=True))(queries.positions)
    assert expected.abs().amax() > 1e-3
    assert torch.allclose(torch.func.grad(value)(queries.positions), expected)
    positions = queries.positions.clone().requires_grad_()
    value(positions).backward()
    assert torch.allclose(positions.grad, expected)
    seen = points.features.clone().requires_grad_()
    value(queries.positions, x=Points(points.positions, seen)).backward()
    assert seen.grad.abs().amax() > 0


@pytest.mark.parametrize("dtype", [">f4", "<f8"])
def test_points_take_arrays_of_numpy_in_any_order_of_bytes(dtype):
    points = Points(np.ones((1, 3, 2), dtype), np.zeros((1, 3, 1), dtype))
    assert points.positions.eq(1).all()
    with pytest.raises(UpsError, match="`positions` must be real numbers"):
        Points(torch.zeros(1, 3, 2) + 1j, torch.zeros(1, 3, 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, "`x` must be the points of `u0`, got None"),
        ({"x": torch.zeros(40, 2)}, "`x` must be ups.Points, got Tensor"),
        (
            {"x": Points(torch.zeros(3, 40, 2), torch.zeros(3, 40, 2))},
            r"`x` must have positions \(B, P, 2\) and features \(B, P, 1\): distance; got 2 and 2",
        ),
        (
            {"x": Points(torch.full((3, 40, 2), 2.2), torch.zeros(3, 40, 1))},
            "`x` must lie from 0 to 2 along axis 0, the box of the training data; got 2.2 to 2.2",
        ),
        (
            {"x": Points(torch.full((3, 40, 2), math.nan), torch.zeros(3, 40, 1))},
            "`x` must be finite",
        ),
        (
            {"x": Points(torch.zeros(3, 40, 2), torch.zeros(3, 40, 1), torch.eye(3, 40) > 1)},
            "each sample of `x` must have a point",
        ),
        ({"x_out": draw_points(9, num_samples=2)}, "`x_out` must have as many samples as `x`, 3"),
        ({"x": draw_points(40, num_samples=2)}, "`u0` must be as many fields as `x` has samples"),
        ({"x": draw_points(39)}, r"`u0` must have shape \(B, 39, 2\)"),
    ],
)
def test_rollout_refuses_points_that_do_not_fit(simulator, changes, message):
    points = draw_points(40)
    arguments = {"x": points, "parameters": {"re": 100.0}, **changes}
    with pytest.raises(UpsError, match=message):
        simulator.rollout(waves(points), 1, **arguments)


def test_rollout_takes_padding_that_is_nan(simulator):
    points, u0 = padded(draw_points(40), waves(draw_points(40)))
    expected = simulator.rollout(u0, 2, x=points, parameters={"re": 100.0})
    is_none = ~points.mask
    for values in (points.positions, points.features, u0):
        values[is_none] = math.nan
    found = simulator.rollout(u0, 2, x=points, parameters={"re": 100.0})
    assert torch.equal(found[:, :, :40], expected[:, :, :40])


def test_points_are_refused_on_a_grid():
    sim = make_simulator(FieldSpec(Grid((8,), (1.0,)), ("u",), ()), num_tokens=4)
    with pytest.raises(UpsError, match=r"`x` must be positions, got ups\.Points"):
        sim.rollout(torch.zeros(1, 8), 1, x=Points(torch.zeros(1, 8, 1), torch.zeros(1, 8, 0)))


def test_points_must_agree_in_their_shapes():
    with pytest.raises(UpsError, match="points must be positions"):
        Points(torch.zeros(3, 40, 2), torch.zeros(3, 39, 1))
    with pytest.raises(UpsError, match="points must be positions"):
        Points(torch.zeros(40, 2), torch.zeros(40, 1))
    with pytest.raises(UpsError, match=r"the mask of points must be of bool, got torch\.float32"):
        Points(torch.zeros(3, 40, 2), torch.zeros(3, 40, 1), torch.ones(3, 40))


def test_points_may_be_arrays(simulator):
    points = draw_points(40)
    arrays = Points(*(each.numpy() for each in (points.positions, points.features, points.mask)))
    options = {"steps": 2, "parameters": {"re": 100.0}}
    found = simulator.rollout(waves(points).numpy(), x=arrays, **options)
    assert torch.equal(found, simulator.rollout(waves(points), x=points, **options))


def test_simulator_on_points_survives_its_folder(simulator, tmp_path):
    simulator.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    points = draw_points(40)
    z = simulator.encode(waves(points), None, points)
    assert torch.equal(loaded.encode(waves(points), None, points), z)
    assert loaded.spec == SPEC
    assert "2D cloud of points" in repr(loaded)


def test_half_of_the_points_gives_nearly_the_same_tokens_after_a_short_training():
    torch.manual_seed(0)
    simulator = Simulator(build(MODEL, SPEC), SPEC)
    optimizer = torch.optim.AdamW(simulator.parameters(), 5e-3)

    def token_gap():
        points = draw_points(200, seed=99)
        half = Points(points.positions[:, :100], points.features[:, :100])
        with torch.no_grad():
            z = simulator.encode(waves(points), None, points)
            fewer = simulator.encode(waves(half), None, half)
        return ((fewer - z).square().mean() / z.var()).item()

    before = token_gap()
    for k in range(150):
        inputs, queries = draw_points(100, seed=2 * k), draw_points(60, seed=2 * k + 1)
        window = torch.stack((waves(queries), waves(queries)), 1)
        errors = operator_errors(
            simulator, window, PARAMETERS, True, queries, (waves(inputs), inputs)
        )
        optimizer.zero_grad()
        sum((error + 1e-8).sqrt().mean() for error in errors.values()).backward()
        optimizer.step()
    assert errors["L_forward"].mean() < 0.1
    assert token_gap() < min(0.05, before)
