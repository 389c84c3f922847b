"""The memory UPT on points: what it keeps before training, and what reaches what after it."""

from dataclasses import replace

import pytest
import torch
from helpers.points import (
    PARAMETERS,
    SPEC,
    assert_order_does_not_matter,
    assert_padding_does_not_matter,
    assert_rollout_is_of_its_maps,
    assert_samples_do_not_see_each_other,
    draw_points,
    simulator_of,
    waves,
)
from hydra import compose, initialize_config_dir

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid, PointCloud
from ups.core.points import Points
from ups.models import build
from ups.models.interpolated import read
from ups.models.point_memory import Correction
from ups.modules.losses import operator_errors
from ups.run import CONF
from ups.simulation.checkpoint import load

MODEL = {
    "architecture": "point_memory_upt",
    "num_points": [16, 8],
    "memory_channels": 5,
    "hidden_channels": 8,
    "depth": 1,
    "place_depth": 1,
    "dilations": [1],
}


@pytest.fixture(scope="module")
def simulator():
    return simulator_of(MODEL)


def test_order_padding_and_other_samples_change_nothing(simulator):
    assert_order_does_not_matter(simulator)
    assert_padding_does_not_matter(simulator)
    assert_samples_do_not_see_each_other(simulator)


def test_untrained_model_interpolates_and_keeps_the_field():
    torch.manual_seed(0)
    model = build(MODEL, SPEC)
    points, queries = draw_points(60), draw_points(20, seed=2)
    u = waves(points)
    z = model.encode(u, points)
    assert z.shape == (3, model.num_tokens, model.hidden_dim) == (3, 16, 29)
    expected = read(model.to_grid(u, points), model.to_grid.finest.corners(queries))
    assert (model.decode(z, queries) - expected).norm() < 0.1 * expected.norm()
    stepped = model.step(z, torch.full((3,), 0.05), PARAMETERS)
    assert torch.equal(stepped[..., :16], z[..., :16])
    # yet the encoder learns from its first reconstruction
    model.decode(z, queries).square().sum().backward()
    assert bool(model.first_memory.weight.grad.any())


def test_step_rewrites_the_memory_within_its_limit_and_keeps_the_place(simulator):
    points = draw_points(60)
    with torch.no_grad():
        z = simulator.encode(waves(points), None, points)
        values, memory, place = z.split([16, 5, 8], -1)
        large = torch.cat((values, 1e3 * memory, place), -1)
        stepped = simulator.step(z, PARAMETERS)
        again = simulator.step(large, PARAMETERS)[..., 16:21]
    assert simulator.num_dynamic_channels == 21
    assert torch.equal(stepped[..., 21:], place)
    assert memory.square().mean(-1).max() <= 9
    assert again.square().mean(-1).sqrt().max() <= 3.001
    assert not torch.allclose(stepped[..., 16:21], memory, atol=1e-2)


def test_rollout_that_goes_wrong_stays_within_twice_the_training_data():
    spec = replace(SPEC, largest=(1.0, 6.0))  # of standard deviations 0.5 and 2
    bounded, free = simulator_of(MODEL, spec), simulator_of(MODEL)
    points = draw_points(60)
    with torch.no_grad():
        z = bounded.encode(waves(points), None, points)
        for simulator in (bounded, free):
            simulator.model.patches_out.mul_(1e-2)
        assert torch.equal(bounded.step(z, PARAMETERS), free.step(z, PARAMETERS))
        for simulator in (bounded, free):
            simulator.model.patches_out.mul_(1e6)
        wild = bounded.step(z, PARAMETERS)[..., :16].unflatten(-1, (-1, 2))
        assert wild.abs().amax((0, 1, 2)).tolist() == [4.0, 6.0]
        assert free.step(z, PARAMETERS)[..., :16].abs().max() > 100


def test_memory_place_and_features_reach_the_decoded_field(simulator):
    points = draw_points(60)
    with torch.no_grad():
        z = simulator.encode(waves(points), None, points)
        u = simulator.decode(z, points)
        for part in (slice(0, 16), slice(16, 21), slice(21, 29)):
            changed = z.clone()
            changed[..., part] += 0.5
            assert (simulator.decode(changed, points) - u).abs().mean() > 1e-3, part
        near_wall = Points(points.positions, points.features + 0.5)
        assert (simulator.decode(z, near_wall) - u).abs().mean() > 1e-3


def test_correction_multiplies_the_field_and_adds_to_it():
    correct = Correction(2, 3)
    u, known = torch.randn(2, 5, 2), torch.randn(2, 5, 3)
    torch.nn.init.zeros_(correct.out.weight)
    assert torch.equal(correct(u, known), u)
    correct.out.bias.data = torch.tensor([-1.0, 0.5, 0.0, 2.0])
    assert torch.allclose(correct(u, known), u * torch.tensor([0.0, 1.5]) + torch.tensor([0, 2.0]))


def test_place_of_a_token_changes_its_step(simulator):
    points = draw_points(60)
    with torch.no_grad():
        z = simulator.encode(waves(points), None, points)
        changed = z.clone()
        changed[..., 21:] += 0.5
        steps = [simulator.step(each, PARAMETERS)[..., :16] for each in (z, changed)]
    assert (steps[1] - steps[0]).abs().mean() > 1e-3


def test_place_depends_on_the_points_and_not_on_the_field(simulator):
    points = draw_points(60)
    elsewhere = Points(points.positions, points.features + 0.5)
    with torch.no_grad():
        first, second = (simulator.encode(waves(points, t), None, points) for t in (0.0, 1.0))
        other = simulator.encode(waves(points), None, elsewhere)
    assert torch.equal(first[..., 21:], second[..., 21:])
    assert not torch.allclose(first[..., 16:21], second[..., 16:21], atol=1e-3)
    assert not torch.allclose(first[..., 21:], other[..., 21:], atol=1e-3)


def test_place_is_of_unit_size_whatever_the_weights_are(simulator):
    points = draw_points(60)
    with torch.no_grad():
        simulator.model.features_in.weight *= 30
        place = simulator.encode(waves(points), None, points)[..., 21:]
    assert torch.allclose(place.square().mean(-1), torch.ones(()), atol=1e-3)


def test_gradients_reach_weights_values_and_positions():
    simulator = simulator_of(MODEL)
    inputs, queries = draw_points(30, seed=1), draw_points(20, seed=2)
    positions = inputs.positions.requires_grad_()
    u = waves(inputs).detach().requires_grad_()
    window = torch.stack([waves(queries, 0.2 * k) for k in range(3)], 1)
    errors = operator_errors(simulator, window, PARAMETERS, True, queries, (u, inputs))
    for name in ("L_inv_enc", "L_inv_dec", "L_forward"):
        simulator.zero_grad()
        errors[name].mean().backward(retain_graph=True)
    for name, p in simulator.model.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.any()), name
    assert bool((u.grad != 0).all())
    assert bool((positions.grad != 0).any(-1).all())


@pytest.mark.parametrize("mode", ["latent", "physical"])
def test_rollout_gives_frames_at_any_points(simulator, mode, tmp_path):
    elsewhere = assert_rollout_is_of_its_maps(simulator, mode)
    simulator.save(tmp_path / "model")
    again = assert_rollout_is_of_its_maps(load(tmp_path / "model"), mode)
    assert torch.equal(again, elsewhere)


@pytest.mark.parametrize("dims", [1, 3])
def test_box_may_have_other_dimensions(dims):
    cloud = PointCloud(((0.0, 1.0),) * dims)
    spec = FieldSpec(cloud, ("u",), conserves_mean=False)
    simulator = simulator_of({**MODEL, "num_points": [12] * dims}, spec)
    points = draw_points(30, domain=cloud)
    points = Points(points.positions, torch.empty(3, 30, 0))
    frames = simulator.rollout(points.positions[..., :1], 2, parameters={}, x=points)
    assert frames.shape == (3, 2, 30, 1)
    assert bool(frames.isfinite().all())


def test_field_on_a_grid_is_refused():
    with pytest.raises(UpsError, match="this needs a field on points; the field lies on a grid"):
        build(MODEL, FieldSpec(Grid((8,), (1.0,))))


def test_default_sizes_fit_the_obstacles():
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", ["data=obstacles", "model=point_memory_upt"])
    domain = PointCloud(((0.0, 12.0), (0.0, 6.0)), ("signed_distance",))
    model = build(cfg.model, FieldSpec(domain, ("u", "v", "p"), conserves_mean=False))
    assert model.tokens.shape == (16, 8)
