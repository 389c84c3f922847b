"""The UPT of the paper on points: supernodes, and queries at any points."""

import pytest
import torch
from helpers.points import (
    PARAMETERS,
    SPEC,
    assert_order_does_not_matter,
    assert_padding_does_not_matter,
    assert_samples_do_not_see_each_other,
    draw_points,
    simulator_of,
    waves,
)

from ups.core.points import Points
from ups.modules.losses import operator_errors

MODEL = {
    "architecture": "upt",
    "num_supernodes": 40,
    "num_tokens": 6,
    "hidden_dim": 16,
    "num_heads": 2,
    "encoder_depth": 1,
    "approximator_depth": 1,
    "decoder_depth": 1,
}


@pytest.fixture(scope="module")
def simulator():
    return simulator_of(MODEL)


def test_order_padding_and_other_samples_change_nothing(simulator):
    # all 40 points are supernodes
    assert_order_does_not_matter(simulator)
    assert_padding_does_not_matter(simulator)
    assert_samples_do_not_see_each_other(simulator)


@pytest.mark.parametrize(("number", "chosen"), [(40, 10), (10, 10), (4, 4)])
def test_supernodes_are_spread_over_the_points_and_hear_those_around_them(number, chosen):
    simulator = simulator_of({**MODEL, "num_supernodes": 10})
    points = draw_points(number)
    supernodes = simulator.model.supernodes
    numbers = supernodes._choose(points.mask)
    assert numbers.shape == (3, 10)
    assert len(numbers[0].unique()) == chosen
    assert numbers.max() >= number - max(1, number // 10)
    u = waves(points).requires_grad_()
    supernodes(u, points)[0, 0].sum().backward()
    distance = (points.positions[0] - points.positions[0, numbers[0, 0]]).norm(dim=-1)
    heard = (u.grad[0] != 0).any(-1)
    assert heard.sum() == min(16, number)
    assert distance[heard].max() == distance.sort().values[min(16, number) - 1]
    assert not u.grad[1:].any()


def test_points_that_pad_a_sample_are_no_supernodes():
    supernodes = simulator_of({**MODEL, "num_supernodes": 10}).model.supernodes
    mask = torch.tensor([[True, False, True, True, False, True]])
    assert supernodes._choose(mask)[0].unique().tolist() == [0, 2, 3, 5]


def test_decoded_field_depends_on_place_and_features(simulator):
    points = draw_points(40)
    z = simulator.encode(waves(points), None, points)
    with torch.no_grad():
        u = simulator.decode(z, points)
        moved = simulator.decode(z, Points(points.positions + 0.2, points.features))
        other = simulator.decode(z, Points(points.positions, points.features + 0.5))
    assert (moved - u).abs().mean() > 1e-3
    assert (other - u).abs().mean() > 1e-3


def test_gradients_of_all_losses_reach_all_weights():
    simulator = simulator_of(MODEL)
    inputs, queries = draw_points(30, seed=1), draw_points(20, seed=2)
    window = torch.stack([waves(queries, 0.2 * k) for k in range(3)], 1)
    start = (waves(inputs), inputs)
    errors = operator_errors(simulator, window, PARAMETERS, True, queries, start)
    for error in errors.values():
        error.mean().backward(retain_graph=True)
    for name, p in simulator.model.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.any()), name


def test_rollout_gives_frames_at_other_points(simulator):
    points, queries = draw_points(40), draw_points(25, seed=3)
    options = {"parameters": {"re": PARAMETERS[:, 0]}, "x": points}
    frames = simulator.rollout(waves(points), 2, **options, x_out=queries)
    assert frames.shape == (3, 2, 25, 2)
    assert SPEC.num_channels == 2
