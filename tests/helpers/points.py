"""Points, fields and models for tests on points, and what holds for every model on them."""

import torch

from ups.core.fields import FieldSpec, PointCloud
from ups.core.points import Points
from ups.models import build
from ups.simulation.checkpoint import load
from ups.simulation.simulator import Simulator

CLOUD = PointCloud(((0.0, 2.0), (-0.5, 0.5)), ("distance",))
SPEC = FieldSpec(
    CLOUD, ("u", "p"), ("re",), 0.5, mean=(0.3, 0.0), std=(0.5, 2.0), conserves_mean=False
)
PARAMETERS = torch.tensor([[100.0], [60.0], [180.0]])


def simulator_of(config, spec=SPEC, seed=0):
    """A simulator with weights that leave no part out."""
    torch.manual_seed(seed)
    model = build(config, spec)
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return Simulator(model, spec, model_config=config).eval()


def draw_points(num_points, seed=0, num_samples=3, domain=CLOUD):
    generator = torch.Generator().manual_seed(seed)
    lower = torch.tensor([first for first, _ in domain.edges])
    share = torch.rand(num_samples, num_points, domain.num_dims, generator=generator)
    positions = lower + share * torch.tensor(domain.extent)
    return Points(positions, 0.5 - positions[..., 1:].abs())


def waves(points, phase=0.0):
    """Smooth fields (B, P, 2) at points, other ones for each sample."""
    number = torch.arange(1.0, len(points) + 1)[:, None]
    x, y = points.positions.unbind(-1)
    return torch.stack(((number * x + y + phase).sin(), (x - number * y + phase).cos()), -1)


def padded(points, fields, extra=7):
    """The same with points that are none behind the others, whose values are anything."""
    shape = (len(points), extra)
    more = Points(
        torch.full((*shape, points.positions.shape[-1]), 0.3),
        torch.full((*shape, points.features.shape[-1]), 50.0),
        torch.zeros(shape, dtype=torch.bool),
    )
    both = [
        torch.cat((getattr(points, name), getattr(more, name)), 1)
        for name in ("positions", "features", "mask")
    ]
    return Points(*both), torch.cat((fields, torch.full((*shape, fields.shape[-1]), 9.0)), 1)


def assert_order_does_not_matter(simulator):
    points = draw_points(40)
    u = waves(points)
    z = simulator.encode(u, None, points)
    order = torch.randperm(40)
    mixed = Points(points.positions[:, order], points.features[:, order])
    assert torch.allclose(simulator.encode(u[:, order], None, mixed), z, atol=1e-5)
    decoded = simulator.decode(z, points)
    assert torch.allclose(simulator.decode(z, mixed), decoded[:, order], atol=1e-5)
    assert not torch.allclose(simulator.encode(u[:, order], None, points), z, atol=1e-2)


def assert_padding_does_not_matter(simulator):
    points = draw_points(40)
    u = waves(points)
    more, longer = padded(points, u)
    z = simulator.encode(u, None, points)
    assert torch.allclose(simulator.encode(longer, None, more), z, atol=1e-5)
    decoded = simulator.decode(z, points)
    assert torch.allclose(simulator.decode(z, more)[:, :40], decoded, atol=1e-5)


def assert_rollout_is_of_its_maps(simulator, mode):
    """A rollout at other points is encode, step and decode in turn. Returns it (3, 2, 25, 2)."""
    points, queries = draw_points(40), draw_points(25, seed=3)
    u0 = waves(points)
    options = {"parameters": {"re": PARAMETERS[:, 0]}, "mode": mode, "x": points}
    elsewhere = simulator.rollout(u0, 2, **options, x_out=queries)
    assert elsewhere.shape == (3, 2, 25, 2)
    with torch.no_grad():
        z = simulator.encode(u0, None, points)
        for k in range(2):
            z = simulator.step(z, PARAMETERS)
            assert torch.allclose(elsewhere[:, k], simulator.decode(z, queries), atol=1e-5)
            if mode == "physical":
                z = simulator.encode(simulator.decode(z, points), None, points)
    return elsewhere


def assert_samples_do_not_see_each_other(simulator):
    points = draw_points(40)
    u = waves(points)
    z = simulator.encode(u, None, points)
    second = points.select(torch.tensor([1]))
    alone = simulator.encode(u[1:2], None, second)
    assert torch.allclose(alone[0], z[1], atol=1e-5)
    decoded = simulator.decode(z, points)[1]
    assert torch.allclose(simulator.decode(alone, second)[0], decoded, atol=1e-5)


def assert_survives_its_folder(simulator, folder):
    simulator.save(folder)
    points = draw_points(40)
    options = {"parameters": {"re": 100.0}, "x": points}
    again = load(folder).rollout(waves(points), 2, **options)
    assert torch.equal(again, simulator.rollout(waves(points), 2, **options))
