"""Grid models on points: what the interpolations keep, and what must not matter."""

import pytest
import torch
from helpers.points import (
    CLOUD,
    PARAMETERS,
    SPEC,
    assert_order_does_not_matter,
    assert_padding_does_not_matter,
    assert_rollout_is_of_its_maps,
    assert_samples_do_not_see_each_other,
    assert_survives_its_folder,
    draw_points,
    waves,
)
from hydra import compose, initialize_config_dir

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid, PointCloud
from ups.core.points import Points
from ups.models import build
from ups.models.interpolated import ToGrid, read
from ups.modules.losses import operator_errors
from ups.run import CONF
from ups.simulation.simulator import Simulator

SETTINGS = {
    "unet": {"hidden_channels": 4, "num_levels": 2},
    "fno": {"modes": 4, "hidden_channels": 4, "num_layers": 1},
    "resnet": {"hidden_channels": 4, "num_blocks": 1, "dilations": [1, 2]},
}


def make_simulator(network="unet", **changes):
    torch.manual_seed(0)
    config = {
        "architecture": "interpolated_grid",
        "network": network,
        "num_points": [16, 8],
        "settings": SETTINGS[network],
        **changes,
    }
    return Simulator(build(config, SPEC), SPEC, model_config=config).eval()


@pytest.fixture(scope="module")
def simulator():
    return make_simulator()


def test_order_padding_and_other_samples_change_nothing(simulator):
    assert_order_does_not_matter(simulator)
    assert_padding_does_not_matter(simulator)
    assert_samples_do_not_see_each_other(simulator)


@pytest.mark.parametrize(
    ("edges", "shape"),
    [(((0.0, 2.0), (0.0, 1.0)), (64, 32)), (((0.0, 1.0), (-1.0, 0.0)), (48, 48))],
)
def test_grid_of_about_so_many_points_can_be_halved_three_times(edges, shape):
    assert ToGrid(PointCloud(edges), 2048).finest.tokens.shape == shape


@pytest.mark.parametrize("shape", [(16, 8), (5, 3), (2, 2)])
@pytest.mark.parametrize("num_points", [3, 50])
def test_constants_are_exact_wherever_the_points_lie(shape, num_points):
    to_grid = ToGrid(CLOUD, shape)
    points = draw_points(num_points)
    values = torch.tensor([1.5, -7.0]).expand(3, num_points, 2)
    nodes = to_grid(values, points)
    assert nodes.shape == (3, shape[0] * shape[1], 2)
    assert torch.allclose(nodes, values[:, :1], atol=1e-5)


def linear(positions):
    return torch.stack((2 * positions[..., 0] - positions[..., 1], 1 + positions[..., 1]), -1)


def test_linear_functions_are_read_exactly_between_the_nodes():
    to_grid = ToGrid(CLOUD, [5, 3])
    nodes = to_grid.finest.tokens.positions().flatten(0, 1)
    points = draw_points(200)
    found = read(linear(nodes).expand(3, -1, -1), to_grid.finest.corners(points))
    assert torch.allclose(found, linear(points.positions), atol=1e-5)


def interpolation_error(num_points, function):
    """The relative error at the nodes of a function of the position, from scattered values."""
    to_grid = ToGrid(CLOUD, [16, 8])
    points = draw_points(num_points, seed=3)
    truth = function(to_grid.finest.tokens.positions().flatten(0, 1))
    found = to_grid(function(points.positions), points)
    return ((found - truth).norm() / truth.expand_as(found).norm()).item()


def test_values_on_the_grid_follow_scattered_ones_the_better_the_more_there_are():
    def wave(positions):
        x, y = positions.unbind(-1)
        return torch.stack(((3 * x).sin() * (2 * y).cos(), (4 * y + x).cos()), -1)

    assert interpolation_error(500, linear) < 0.02
    errors = [interpolation_error(n, wave) for n in (50, 200, 800)]
    assert errors[2] < errors[1] < errors[0] < 0.5
    assert errors[2] < 0.05


def test_linear_functions_are_exact_if_known_at_the_corners_of_the_box():
    positions = torch.tensor([[0.0, -0.5], [2.0, -0.5], [0.0, 0.5], [2.0, 0.5]])
    to_grid = ToGrid(CLOUD, [16, 8])
    found = to_grid(linear(positions)[None], Points(positions[None], torch.empty(1, 4, 0)))
    truth = linear(to_grid.finest.tokens.positions().flatten(0, 1))
    assert torch.allclose(found[0], truth, atol=1e-5)


def test_fields_and_features_survive_the_way_to_the_grid_and_back(simulator):
    points = draw_points(300)
    u = waves(points)
    z = simulator.encode(u, None, points)
    assert (simulator.decode(z, points) - u).norm() / u.norm() < 0.05
    features = read(z[..., 2:], simulator.model.to_grid.finest.corners(points))
    assert (features - points.features).norm() / points.features.norm() < 0.05


def test_step_is_the_networks_and_keeps_what_is_known_of_the_points(simulator):
    points = draw_points(60)
    z = simulator.encode(waves(points), None, points)
    with torch.no_grad():
        stepped = simulator.step(z, PARAMETERS)
        expected = simulator.model.network.step(z, *SPEC.condition(PARAMETERS))
    assert z.shape == (3, 128, 3)
    assert simulator.num_dynamic_channels == 2
    assert torch.equal(stepped[..., :2], expected[..., :2])
    assert torch.equal(stepped[..., 2], z[..., 2])
    assert not torch.equal(expected[..., 2], z[..., 2])
    # the distance from walls is an input of the network
    elsewhere = torch.cat((z[..., :2], z[..., 2:] + 0.5), -1)
    with torch.no_grad():
        assert not torch.allclose(simulator.step(elsewhere, PARAMETERS)[..., :2], stepped[..., :2])


def test_gradients_reach_weights_values_and_positions():
    simulator = make_simulator()
    inputs, queries = draw_points(30, seed=1), draw_points(20, seed=2)
    positions = inputs.positions.requires_grad_()
    u = waves(inputs).detach().requires_grad_()
    window = torch.stack([waves(queries, 0.2 * k) for k in range(3)], 1)
    errors = operator_errors(simulator, window, PARAMETERS, False, queries, (u, inputs))
    errors["L_forward"].mean().backward()
    for name, p in simulator.model.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.any()), name
    assert bool((u.grad != 0).all())
    assert bool((positions.grad != 0).any(-1).all())


@pytest.mark.parametrize("network", SETTINGS)
@pytest.mark.parametrize("mode", ["latent", "physical"])
def test_rollout_gives_frames_at_any_points(network, mode):
    simulator = make_simulator(network)
    assert_rollout_is_of_its_maps(simulator, mode)


def test_simulator_survives_its_folder(tmp_path):
    assert_survives_its_folder(make_simulator("fno"), tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "upt"}, "`model.network` must be one of fno, unet, resnet"),
        ({"settings": {"depth": 3}}, "`model.settings.depth` is not a key of "),
        ({"settings": {"num_levels": -1}}, "`model.settings.num_levels` must be an integer >= 0"),
        ({"num_points": [16, 6, 2]}, "`model.num_points` must be one number, or 2 integers >= 2"),
        ({"num_points": [18, 8]}, r"points along each axis \(18 x 8\) must be a multiple of 4"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    config = {
        "architecture": "interpolated_grid",
        "num_points": [16, 8],
        "settings": SETTINGS["unet"],
    }
    with pytest.raises(UpsError, match=message):
        build({**config, **changes}, SPEC)


def test_fields_that_lie_on_a_grid_or_in_four_dimensions_are_refused():
    with pytest.raises(UpsError, match="this needs a field on points; the field lies on a grid"):
        build({"architecture": "interpolated_grid"}, FieldSpec(Grid((8,), (1.0,))))
    cloud = PointCloud(((0.0, 1.0),) * 4)
    with pytest.raises(UpsError, match="at most three dimensions for a grid model, got 4"):
        build({"architecture": "interpolated_grid"}, FieldSpec(cloud))


@pytest.mark.parametrize("name", ["unet_on_grid", "fno_on_grid"])
def test_configured_peers_fit_the_obstacles(name):
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", ["data=obstacles", f"model={name}"])
    assert cfg.lambda_inv == 0
    domain = PointCloud(((0.0, 12.0), (0.0, 6.0)), ("signed_distance",))
    model = build(cfg.model, FieldSpec(domain, ("u", "v", "p"), conserves_mean=False))
    assert model.tokens.shape == (64, 32)
    assert model.tokens.edges != domain.edges  # its outer nodes lie on the faces of the box
    assert model.tokens.positions()[-1, -1].tolist() == pytest.approx([12.0, 6.0])
