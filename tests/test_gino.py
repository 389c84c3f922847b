"""GINO: its graph operators are the package's, and what must not matter does not."""

import json
import math
from pathlib import Path

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
    padded,
    simulator_of,
    waves,
)
from hydra import compose, initialize_config_dir
from test_obstacles import TINY
from torch import nn

from ups import pipeline
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid, PointCloud
from ups.core.points import Points
from ups.datamodules.obstacles import generate_obstacles
from ups.models import build
from ups.models.gino import GraphOperator
from ups.models.lattice import Lattice, offset_features
from ups.modules.losses import operator_errors
from ups.run import CONF
from ups.simulation.checkpoint import load

MODEL = {
    "architecture": "gino",
    "num_points": [9, 5],
    "latent_channels": 6,
    "place_channels": 3,
    "kernel_channels": 8,
    "modes": 4,
    "hidden_channels": 8,
    "num_layers": 1,
}


@pytest.fixture(scope="module")
def simulator():
    return simulator_of(MODEL)


class PackageKernel(nn.Module):
    """A kernel of the offset between two positions in cells, as the package's blocks call it."""

    def __init__(self, operator, num_dims, out_channels):
        super().__init__()
        self.operator = operator
        self.in_channels = 2 * num_dims
        self.out_channels = out_channels
        self.sign = 1

    def forward(self, pairs):
        source, target = pairs.chunk(2, -1)
        offset = self.sign * (source - target) / self.operator.radius
        return self.operator.kernel(offset_features(offset))


@pytest.mark.parametrize("cloud", [CLOUD, PointCloud(((0.0, 1.0),)), PointCloud(((0.0, 1.0),) * 3)])
@pytest.mark.parametrize("radius", [1.0, 2.2])
def test_graph_operators_are_those_of_the_package(cloud, radius):
    from neuralop.layers.gno_block import GNOBlock

    torch.manual_seed(0)
    lattice = Lattice(cloud, [6, 5, 4][: cloud.num_dims])
    kernel = nn.Sequential(nn.Linear(5 * cloud.num_dims, 8), nn.GELU(), nn.Linear(8, 2))
    operator = GraphOperator(lattice, radius, kernel)
    own = PackageKernel(operator, cloud.num_dims, 2)

    def block(reduction):
        return GNOBlock(
            2,
            2,
            cloud.num_dims,
            radius,
            reduction=reduction,
            pos_embedding_type=None,
            channel_mlp=own,
            use_torch_scatter_reduce=False,
            use_open3d_neighbor_search=False,
        )

    lower = torch.tensor([first for first, _ in cloud.edges])
    positions = lower + torch.rand(2, 30, cloud.num_dims) * torch.tensor(cloud.extent)
    mask = torch.arange(30) < torch.tensor([[30], [21]])
    points = Points(positions, torch.empty(2, 30, 0), mask)
    values = torch.randn(2, 30, 2)
    on_grid = torch.randn(2, lattice.num_tokens, 2)
    nodes = (lattice.tokens.positions().flatten(0, -2) - lattice.lower) / lattice.spacing
    with torch.no_grad():
        gathered = operator.to_nodes(values, points)
        read = operator.to_points(on_grid, points)
        for i, number in enumerate((30, 21)):
            at = ((positions[i] - lattice.lower) / lattice.spacing)[:number]
            own.sign = 1
            expected = block("mean")(at, nodes, values[i, :number])
            assert torch.allclose(gathered[i], expected, atol=1e-5)
            own.sign = -1
            expected = block("sum")(nodes, at, on_grid[i]) / operator.ball
            assert torch.allclose(read[i, :number], expected, atol=1e-5)


def test_ball_has_its_usual_number_of_nodes_and_any_point_has_some():
    lattice = Lattice(PointCloud(((0.0, 12.0), (0.0, 6.0))), 2048)
    shares = torch.rand(1, 4000, 2, generator=torch.Generator().manual_seed(0))
    inner = Points(1.0 + shares * torch.tensor([10.0, 4.0]), torch.empty(1, 4000, 0))
    for radius in (math.sqrt(0.5), 1.8, 2.5):
        operator = GraphOperator(lattice, radius, nn.Identity())
        count = operator.edges(inner).point.bincount(minlength=4000)
        assert count.double().mean() == pytest.approx(operator.ball, rel=0.02)
        whole = Points(shares * torch.tensor([12.0, 6.0]), inner.features)
        assert operator.edges(whole).point.bincount(minlength=4000).min() >= 1


def test_order_padding_and_other_samples_change_nothing(simulator):
    assert_order_does_not_matter(simulator)
    assert_padding_does_not_matter(simulator)
    assert_samples_do_not_see_each_other(simulator)


def test_sample_of_few_points_is_its_own_in_a_batch_of_more(simulator):
    points = draw_points(40)
    u = waves(points)
    few = Points(points.positions[:1, :2], points.features[:1, :2])
    alone = simulator.encode(u[:1, :2], None, few)
    mask = points.mask.clone()
    mask[0, 2:] = False
    ragged = Points(points.positions, points.features, mask)
    assert torch.allclose(simulator.encode(u, None, ragged)[:1], alone, atol=1e-5)


def test_nodes_without_points_and_points_without_nodes_are_finite():
    simulator = simulator_of(MODEL)
    at = torch.tensor([[[0.1, -0.4]]])
    points = Points(at.requires_grad_(), torch.zeros(1, 1, 1))
    z = simulator.encode(torch.ones(1, 1, 2), None, points)
    assert not z[0, -1].any()  # the opposite corner of the box
    assert bool(z[0, 0].any())
    beyond = Points(torch.tensor([[[50.0, 0.0], [-1e6, 9.0]]]), torch.zeros(1, 2, 1))
    stepped = simulator.step(z, PARAMETERS[:1])
    u = torch.cat((simulator.decode(stepped, points), simulator.decode(stepped, beyond)), 1)
    assert u.isfinite().all()
    u.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in simulator.model.parameters())
    assert at.grad.isfinite().all()


def test_untrained_kernels_take_means_of_smooth_fields():
    torch.manual_seed(0)
    model = build({**MODEL, "num_points": [16, 8]}, SPEC)
    points = draw_points(400)
    values = torch.ones(3, 400, 9)
    with torch.no_grad():
        nodes = model.to_grid.to_nodes(values, points)
        assert nodes.mean() == pytest.approx(1, abs=0.2)
        inner = Points(
            torch.rand(3, 50, 2) * 0.5 + torch.tensor([0.7, -0.2]), torch.empty(3, 50, 0)
        )
        read = model.from_grid.to_points(torch.ones(3, 128, 9), inner)
    assert read.mean() == pytest.approx(1, abs=0.2)


def test_step_adds_to_the_state_and_keeps_what_is_known_of_the_points(simulator):
    points = draw_points(60)
    with torch.no_grad():
        z = simulator.encode(waves(points), None, points)
        stepped = simulator.step(z, PARAMETERS)
        expected = simulator.model.network.step(z, *SPEC.condition(PARAMETERS))
        other = simulator.step(z, 2 * PARAMETERS)
        elsewhere = Points(points.positions, points.features + 0.5)
        moved = simulator.encode(waves(points), None, elsewhere)
        flow = simulator.encode(waves(points, 0.5), None, points)
    assert z.shape == (3, 45, 9)
    assert simulator.num_dynamic_channels == 6
    assert torch.equal(stepped[..., :6], expected[..., :6])
    assert torch.equal(stepped[..., 6:], z[..., 6:])
    assert not torch.allclose(other[..., :6], stepped[..., :6], atol=1e-3)
    # the last channels know the features, and not the field
    assert not torch.allclose(moved[..., 6:], z[..., 6:], atol=1e-3)
    assert torch.equal(flow[..., 6:], z[..., 6:])
    assert not torch.allclose(flow[..., :6], z[..., :6], atol=1e-3)


@pytest.mark.parametrize("cloud", [CLOUD, PointCloud(((0.0, 1.0),) * 3)])
def test_points_without_features_and_of_three_dimensions_are_stepped(cloud):
    spec = FieldSpec(PointCloud(cloud.edges), ("u",), (), conserves_mean=False)
    config = {**MODEL, "num_points": 60, "modes": 2}
    model = build(config, spec)
    positions = draw_points(20, domain=cloud).positions
    points = Points(positions, torch.empty(3, 20, 0))
    z = model.encode(torch.randn(3, 20, 1), points)
    assert z.shape == (3, model.num_tokens, 9)
    z = model.step(z, torch.ones(3), torch.empty(3, 0))
    assert model.decode(z, points).shape == (3, 20, 1)


def test_gradients_reach_weights_values_and_positions():
    simulator = simulator_of(MODEL)
    inputs, queries = draw_points(30, seed=1), draw_points(20, seed=2)
    positions = inputs.positions.requires_grad_()
    u = waves(inputs).detach().requires_grad_()
    window = torch.stack([waves(queries, 0.2 * k) for k in range(3)], 1)
    errors = operator_errors(simulator, window, PARAMETERS, True, queries, (u, inputs))
    for name, error in errors.items():
        simulator.zero_grad()
        error.mean().backward(retain_graph=True)
        reached = [p.grad is not None and bool(p.grad.any()) for p in simulator.model.parameters()]
        # the field at the window's start is decoded without a step
        assert all(reached) or name == "L_inv_enc"
        assert any(reached)
    assert bool((u.grad != 0).all())
    assert bool((positions.grad != 0).any(-1).all())


@pytest.mark.parametrize("mode", ["latent", "physical"])
def test_rollout_gives_frames_at_any_points(simulator, mode):
    assert_rollout_is_of_its_maps(simulator, mode)


def test_decoded_field_depends_on_the_place_and_on_what_is_known_there(simulator):
    points, queries = draw_points(40), draw_points(15, seed=5)
    with torch.no_grad():
        z = simulator.encode(waves(points), None, points)
        u = simulator.decode(z, queries)
        near_wall = simulator.decode(z, Points(queries.positions, 0 * queries.features))
        shifted = simulator.decode(z, Points(queries.positions * 0.9, queries.features))
        more, _ = padded(queries, u)
        assert torch.allclose(simulator.decode(z, more)[:, :15], u, atol=1e-5)
    assert not torch.allclose(near_wall, u, atol=1e-3)
    assert not torch.allclose(shifted, u, atol=1e-3)


def test_simulator_survives_its_folder(simulator, tmp_path):
    assert_survives_its_folder(simulator, tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_radius": 0.5}, "`model.out_radius` must be at least 0.707.*; got 0.5"),
        ({"in_radius": 0.0}, "`model.in_radius` must be a number > 0, got 0.0"),
        ({"num_points": [9, 5, 2]}, "`model.num_points` must be one number, or 2 integers >= 2"),
        ({"modes": [4, 4, 4]}, "`model.modes` must be one number or 2"),
        ({"depth": 2}, "model.depth: gino takes spec, num_points"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UpsError, match=message):
        build({**MODEL, **changes}, SPEC)


def test_field_on_a_grid_is_refused():
    with pytest.raises(UpsError, match="this needs a field on points; the field lies on a grid"):
        build(MODEL, FieldSpec(Grid((8,), (1.0,))))


def test_missing_package_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("ups.core.optional_packages.import_module", missing)
    with pytest.raises(UpsError, match=r"model=gino needs a package .*pip install 'ups\[peers\]'"):
        build(MODEL, SPEC)


@pytest.mark.slow
def test_short_run_trains_tests_and_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = generate_obstacles(TINY, tmp_path / "data")
    settings = [
        "stage=operator",
        "data=obstacles",
        f"data.path={path}",
        "data.batch_size=2",
        "data.samples_per_trajectory=4",
        "data.unroll_steps=1",
        "model=gino",
        "model.num_points=128",
        "model.modes=4",
        "trainer.max_epochs=2",
        "preflight=false",
        "name=gino",
    ]
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", settings)
    score = pipeline.run(cfg, settings)
    assert 0 < score < 10
    found = json.loads(Path("outputs/gino/reports/eval_operator.json").read_text())
    assert [row["model"] for row in found["rows"]] == ["gino", "gino", "persistence"]
    simulator = load("outputs/gino")
    points = Points(torch.rand(1, 50, 2), torch.zeros(1, 50, len(simulator.spec.domain.features)))
    options = {"parameters": {"reynolds": 40.0}, "x": points}
    assert simulator.rollout(torch.zeros(1, 50, 3), 2, **options).isfinite().all()


def test_configured_model_fits_the_obstacles():
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", ["data=obstacles", "model=gino"])
    domain = PointCloud(((0.0, 12.0), (0.0, 6.0)), ("signed_distance",))
    model = build(cfg.model, FieldSpec(domain, ("u", "v", "p"), conserves_mean=False))
    assert model.tokens.shape == (64, 32)
    shares = torch.rand(1, 1024, 2, generator=torch.Generator().manual_seed(0))
    points = Points(shares * torch.tensor([12.0, 6.0]), torch.zeros(1, 1024, 1))
    around_node = model.to_grid.edges(points).node.bincount(minlength=2048)
    around_point = model.from_grid.edges(points).point.bincount(minlength=1024)
    # fewer at the faces of the box
    assert 8 < around_node.double().mean() < 11
    assert 8 < around_point.double().mean() < 11
