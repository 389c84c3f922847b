"""The mesh graph network: its graph, how far messages reach, and what it reads between points."""

import pytest
import torch
from helpers.points import (
    PARAMETERS,
    SPEC,
    assert_samples_do_not_see_each_other,
    draw_points,
    padded,
    simulator_of,
    waves,
)
from hydra import compose, initialize_config_dir

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.core.points import Points
from ups.models import build
from ups.models.neighbors import nearest, take
from ups.modules.losses import operator_errors
from ups.run import CONF
from ups.simulation.checkpoint import load

MODEL = {
    "architecture": "mesh_graph_network",
    "num_neighbors": 4,
    "hidden_channels": 8,
    "depth": 2,
}


@pytest.fixture(scope="module")
def simulator():
    return simulator_of(MODEL)


def test_nearest_points_are_those_of_their_distances():
    points, queries = draw_points(30), draw_points(9, seed=1)
    number, square = nearest(points.positions, points.mask, queries.positions, 5)
    distance = (queries.positions[:, :, None] - points.positions[:, None]).square().sum(-1)
    least, index = distance.sort(-1)
    assert torch.equal(number, index[..., :5])
    assert torch.allclose(square, least[..., :5], atol=1e-5)
    found = take(points.positions, number)
    assert torch.equal(found[2, 8, 4], points.positions[2, index[2, 8, 4]])
    itself, zero = nearest(points.positions, points.mask, points.positions, 1)
    assert torch.equal(itself[..., 0], torch.arange(30).expand(3, -1))
    assert not zero.any()


@pytest.mark.parametrize("extra", [0, 7])
def test_nearest_points_of_few_are_repeated_at_an_infinite_distance(extra):
    points, _ = padded(draw_points(3), torch.zeros(3, 3, 1), extra)
    number, square = nearest(points.positions, points.mask, points.positions[:, :2], 5)
    assert (number < 3).all()
    assert square.isinf().sum(-1).eq(2).all()
    assert torch.equal(number[..., 3:], number[..., :1].expand(-1, -1, 2))


def frame_after(simulator, u, points, queries, steps=1):
    """The field at ``queries`` after some steps."""
    z = simulator.encode(u, None, points)
    for _ in range(steps):
        z = simulator.step(z, PARAMETERS)
    return simulator.decode(z, queries)


def test_order_padding_and_other_samples_change_nothing(simulator):
    points, queries = draw_points(40), draw_points(15, seed=5)
    u = waves(points)
    with torch.no_grad():
        expected = frame_after(simulator, u, points, queries)
        order = torch.randperm(40)
        mixed = Points(points.positions[:, order], points.features[:, order])
        assert torch.allclose(
            frame_after(simulator, u[:, order], mixed, queries), expected, atol=1e-5
        )
        more, longer = padded(points, u)
        assert torch.allclose(frame_after(simulator, longer, more, queries), expected, atol=1e-5)
        again = frame_after(simulator, longer, more, more)[:, :40]
        assert torch.allclose(again, frame_after(simulator, u, points, points), atol=1e-5)
    assert_samples_do_not_see_each_other(simulator)


def test_field_is_kept_at_its_points_and_a_mean_of_the_nearest_elsewhere(simulator):
    points, queries = draw_points(40), draw_points(15, seed=5)
    u = waves(points)
    z = simulator.encode(u, None, points)
    assert torch.allclose(simulator.decode(z, points), u, atol=1e-5)
    number, square = nearest(points.positions, points.mask, queries.positions, 3)
    weight = 1 / square
    expected = (take(u, number) * weight[..., None]).sum(2) / weight.sum(2, keepdim=True)
    assert torch.allclose(simulator.decode(z, queries), expected, atol=1e-4)


def test_messages_reach_as_many_points_as_there_are_rounds():
    simulator = simulator_of({**MODEL, "num_neighbors": 3})
    x = torch.linspace(0.1, 1.9, 9)
    positions = torch.stack((x, torch.zeros(9)), -1)[None]
    points = Points(positions, torch.zeros(1, 9, 1))
    u = torch.zeros(1, 9, 2)
    changed = u.clone()
    changed[0, 4] = 1.0
    with torch.no_grad():
        frames = [
            simulator.step(simulator.encode(each, None, points), PARAMETERS[:1])[0, :, :2]
            for each in (u, changed)
        ]
    reached = (frames[1] - frames[0]).abs().amax(-1) > 1e-6
    assert reached.nonzero().flatten().tolist() == [2, 3, 4, 5, 6]


def test_step_depends_on_relative_places_features_and_conditions(simulator):
    points = draw_points(40)
    u = waves(points)

    def change(at=points, parameters=PARAMETERS):
        with torch.no_grad():
            z = simulator.encode(u, None, at)
            stepped = simulator.step(z, parameters)
        assert torch.equal(stepped[..., 2:], z[..., 2:])
        return (stepped - z)[..., :2]

    shifted = Points(points.positions + 0.5, points.features)
    assert torch.allclose(change(shifted), change(), atol=1e-4)
    stretched = Points(points.positions * 1.5, points.features)
    assert not torch.allclose(change(stretched), change(), atol=1e-3)
    elsewhere = Points(points.positions, points.features + 0.5)
    assert not torch.allclose(change(elsewhere), change(), atol=1e-3)
    assert not torch.allclose(change(parameters=2 * PARAMETERS), change(), atol=1e-3)


def test_gradients_reach_all_weights():
    simulator = simulator_of(MODEL)
    points = draw_points(30)
    window = torch.stack([waves(points, 0.2 * k) for k in range(3)], 1)
    errors = operator_errors(simulator, window, PARAMETERS, False, points)
    errors["L_forward"].mean().backward()
    for name, p in simulator.model.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.any()), name


def test_latent_and_physical_rollouts_are_the_same(simulator, tmp_path):
    points = draw_points(40)
    options = {"parameters": {"re": PARAMETERS[:, 0]}, "x": points}
    latent, physical = (
        simulator.rollout(waves(points), 3, mode=mode, **options) for mode in ("latent", "physical")
    )
    assert torch.allclose(latent, physical, atol=1e-5)
    simulator.save(tmp_path / "model")
    assert torch.equal(load(tmp_path / "model").rollout(waves(points), 3, **options), latent)


def test_field_on_a_grid_is_refused():
    with pytest.raises(UpsError, match="this needs a field on points; the field lies on a grid"):
        build(MODEL, FieldSpec(Grid((8,), (1.0,))))


def test_configured_network_steps_points_that_it_gets():
    with initialize_config_dir(CONF, version_base="1.3"):
        words = ["data=obstacles", "experiment=smoke", "model=mesh_graph_network"]
        cfg = compose("config", words)
    assert cfg.lambda_inv == 0
    assert cfg.data.query_points is None
    assert len(build(cfg.model, SPEC).rounds) == 6
