"""The models' maps against loops in NumPy, written from their docstrings."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ups
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.models import build
from ups.models.interpolation import interpolate
from ups.simulation import model_folder

POINTS, TOKENS, WIDTH = 24, 8, 6
SPEC = {
    "architecture": "mixer",
    "num_tokens": TOKENS,
    "hidden_dim": WIDTH,
    "mlp_ratio": 1.5,
    "dilations": [1, 3],
    "encoder_depth": 1,
    "approximator_depth": 2,
    "decoder_depth": 1,
    "latent_rms_limit": 0.7,
}


def numbers(tensor):
    return tensor.detach().double().numpy()


def silu(x):
    return x / (1 + np.exp(-x))


def mixed(h, block, distance):
    """h_j + W2 silu(W1 [h_{j-d}, h_j, h_{j+d}] + b), token by token around the circle."""
    w1, b1, w2 = numbers(block.w1), numbers(block.b1)[:, 0], numbers(block.w2)
    n = len(h)
    rows = []
    for j in range(n):
        three = np.concatenate([h[(j - distance) % n], h[j], h[(j + distance) % n]])
        rows.append(h[j] + w2 @ silu(w1 @ three + b1))
    return np.stack(rows)


def clipped(h, limit):
    """Each token by its own root mean square."""
    return np.stack([token / np.sqrt(1 + np.mean(token**2) / limit**2) for token in h])


def encoded(model, u):
    """Tokens of one field (X, C): patches of three tokens' points, blocks, the clip, the means."""
    channels = u.shape[1]
    cells = u.reshape(TOKENS, -1)  # the values of a token's points, channel by channel
    weight, constant = numbers(model.patches_in), numbers(model.constant)[:, 0, 0]
    rows = []
    for j in range(TOKENS):
        patch = np.concatenate([cells[(j + k) % TOKENS] for k in (-1, 0, 1)])
        rows.append(weight @ patch + constant)
    h = clipped(mixed(np.stack(rows), model.encoder[0], 1), model.latent_rms_limit)
    h[:, -channels:] = u.mean(0)
    return h


def stepped(model, z, dt, parameters, channels):
    weight, bias = numbers(model.condition.weight), numbers(model.condition.bias)
    condition = weight @ np.array([dt / 0.05 - 1, *np.log(parameters / 1e-3)]) + bias
    h = z + condition
    for block, distance in zip(model.approximator, (1, 3), strict=True):
        h = mixed(h, block, distance)
    h = clipped(h, model.latent_rms_limit)
    h[:, -channels:] = z[:, -channels:]
    return h


def decoded(model, z, channels):
    """Each token writes to its own points and its neighbors'; the mean is the one it carries."""
    h = mixed(z, model.decoder[0], 1) @ numbers(model.patches_out).T
    cells = np.zeros((TOKENS, POINTS // TOKENS * channels))
    for j in range(TOKENS):
        for i, k in enumerate((-1, 0, 1)):
            cells[(j + k) % TOKENS] += h[j].reshape(3, -1)[i]
    u = cells.reshape(POINTS, channels)
    return u - u.mean(0) + z[:, -channels:].mean(0)


def line(channels=1, parameters=1):
    names = ("nu", "beta")[:parameters]
    return FieldSpec(Grid((POINTS,), (1.0,)), tuple("uv"[:channels]), names)


def draw_fields(channels=1):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, POINTS, channels, dtype=torch.float64, generator=generator) + 0.4


@pytest.fixture
def fields():
    return draw_fields()


PARAMETERS = torch.tensor([[1e-3, 0.4], [0.02, 2.0], [4e-3, 0.1]]).double()


@pytest.mark.parametrize(("channels", "parameters"), [(1, 1), (2, 2), (2, 0)])
def test_mixer_maps_equal_written_out_loops(channels, parameters):
    torch.manual_seed(0)
    model = build(SPEC, line(channels, parameters)).double()
    fields, values = draw_fields(channels), PARAMETERS[:, :parameters]
    dt = torch.tensor([0.05, 0.1, 0.02]).double()
    z = model.encode(fields)
    after = model.step(z, dt, values)
    u = model.decode(after)
    assert u.shape == fields.shape
    assert model.num_dynamic_channels == WIDTH - channels
    for b in range(3):
        own = encoded(model, numbers(fields[b]))
        assert np.allclose(numbers(z[b]), own, atol=1e-12)
        own = stepped(model, own, dt[b].item(), numbers(values[b]), channels)
        assert np.allclose(numbers(after[b]), own, atol=1e-12)
        assert np.allclose(numbers(u[b]), decoded(model, own, channels), atol=1e-12)


def test_mixer_without_conservation_carries_no_mean(fields):
    torch.manual_seed(0)
    free = build({**SPEC, "conserve_mean": False}, line()).double()
    z = free.encode(fields)
    assert free.num_dynamic_channels == WIDTH
    assert not torch.allclose(z[..., -1], fields.mean(1).expand(-1, TOKENS), atol=1e-3)
    u = free.decode(z)
    assert (u.mean(1) - z[..., -1:].mean(1)).abs().max() > 1e-3


PATCHES = {"num_tokens": TOKENS, "hidden_channels": 10, "depth": 3, "dilations": [1, 3]}


def gathered(tokens):
    """Each token between its neighbors on the circle."""
    return np.stack(
        [np.concatenate([tokens[(j + k) % TOKENS] for k in (-1, 0, 1)]) for j in range(TOKENS)]
    )


def mixed_patches(model, tokens, dt, parameters):
    weight, bias = numbers(model.condition.weight), numbers(model.condition.bias)
    condition = weight @ np.array([dt / 0.05 - 1, *np.log(parameters / 1e-3)]) + bias
    h = gathered(tokens) @ numbers(model.tokens_in).T + condition
    for block, distance in zip(model.blocks, (1, 3, 1), strict=True):
        h = mixed(h, block, distance)
    return h


def added(model, points, h, conserve, weight=None):
    """The points with the change that each token adds to its own and its neighbors'."""
    out = h @ numbers(model.patches_out if weight is None else weight).T
    change = np.zeros_like(points)
    for j in range(TOKENS):
        for i, k in enumerate((-1, 0, 1)):
            change[(j + k) % TOKENS] += out[j].reshape(3, -1)[i]
    field = change.reshape(POINTS, -1)
    means = field.mean(0) if conserve else 0 * field[0]
    return points + (field - means).reshape(points.shape)


@pytest.mark.parametrize("conserve", [True, False])
@pytest.mark.parametrize(("channels", "parameters"), [(1, 1), (2, 2), (2, 0)])
def test_patch_stepper_equals_written_out_loops(conserve, channels, parameters):
    torch.manual_seed(0)
    config = {"architecture": "patch_stepper", **PATCHES, "conserve_mean": conserve}
    model = build(config, line(channels, parameters)).double()
    fields, values = draw_fields(channels), PARAMETERS[:, :parameters]
    dt = torch.tensor([0.05, 0.1, 0.02]).double()
    after = model.decode(model.step(model.encode(fields), dt, values))
    for b in range(3):
        points = numbers(fields[b]).reshape(TOKENS, -1)
        h = mixed_patches(model, points, dt[b].item(), numbers(values[b]))
        own = added(model, points, h, conserve).reshape(POINTS, channels)
        assert np.allclose(numbers(after[b]), own, atol=1e-12)


@pytest.mark.parametrize(("channels", "parameters"), [(1, 1), (2, 2)])
def test_memory_upt_equals_written_out_loops(channels, parameters):
    torch.manual_seed(0)
    memory = {"memory_channels": 4, "memory_rms_limit": 0.7}
    model = build({"architecture": "memory_upt", **PATCHES, **memory}, line(channels, parameters))
    model = model.double()
    fields, values = draw_fields(channels), PARAMETERS[:, :parameters]
    dt = torch.tensor([0.05, 0.1, 0.02]).double()
    z = model.encode(fields)
    after = model.step(model.step(z, dt, values), dt, values)
    u = model.decode(after)
    assert z.shape == (3, TOKENS, model.hidden_dim)
    first, then = model.first_memory, model.next_memory
    for b in range(3):
        points = numbers(fields[b]).reshape(TOKENS, -1)
        kept = gathered(points) @ numbers(first.weight).T + numbers(first.bias)
        kept = clipped(kept, 0.7)
        mean = np.tile(numbers(fields[b]).mean(0), (TOKENS, 1))
        assert np.allclose(numbers(z[b]), np.concatenate([points, kept, mean], 1), atol=1e-12)
        for _ in range(2):
            tokens = np.concatenate([points, kept], 1)
            h = mixed_patches(model, tokens, dt[b].item(), numbers(values[b]))
            points = added(model, points, h, True)
            kept = clipped(h @ numbers(then.weight).T + numbers(then.bias), 0.7)
        assert np.allclose(numbers(after[b]), np.concatenate([points, kept, mean], 1), atol=1e-12)
        read = added(model, points, kept, True, model.memory_out)
        assert np.allclose(numbers(u[b]), read.reshape(POINTS, channels), atol=1e-12)


def convolved(x, layer):
    """A circular convolution of three taps (C, X) -> (C', X), with the layer's own dilation."""
    weight, bias, d = numbers(layer.weight), numbers(layer.bias), layer.dilation[0]
    taps = [np.roll(x, d, 1), x, np.roll(x, -d, 1)]
    return sum(weight[:, :, k] @ tap for k, tap in enumerate(taps)) + bias[:, None]


@pytest.mark.parametrize("conserve", [True, False])
@pytest.mark.parametrize(("channels", "parameters"), [(1, 1), (2, 2)])
def test_resnet_step_equals_written_out_loops(conserve, channels, parameters):
    torch.manual_seed(0)
    settings = {
        "hidden_channels": 5,
        "num_blocks": 2,
        "dilations": [1, 2],
        "conserve_mean": conserve,
    }
    model = build({"architecture": "resnet", **settings}, line(channels, parameters)).double()
    fields, values = draw_fields(channels), PARAMETERS[:, :parameters]
    dt = torch.full((3,), 0.1).double()
    stepped = model.decode(model.step(model.encode(fields), dt, values))
    for b in range(3):
        u = numbers(fields[b]).T
        logs = np.log(numbers(values[b]) / 1e-3)
        condition = [np.full(POINTS, 1.0), *(np.full(POINTS, value) for value in logs)]
        h = convolved(np.stack([*u, *condition]), model.lift)
        for block in model.blocks:
            inside = h
            for layer in block[::2]:
                inside = np.maximum(convolved(inside, layer), 0)
            h = h + inside
        change = convolved(h, model.project)
        if conserve:
            change = change - change.mean(1, keepdims=True)
        assert np.allclose(numbers(stepped[b]), (u + change).T, atol=1e-12)


def test_upt_tokens_have_unit_scale_after_encoder_and_step(fields):
    torch.manual_seed(0)
    sizes = {"num_patches": 8, "num_tokens": 4, "hidden_dim": 16, "num_heads": 2}
    model = build({"architecture": "upt", **sizes}, line()).double()
    for block in model.approximator:  # their modulation begins at zero, as the identity
        torch.nn.init.normal_(block.modulation.weight)
    z = model.encode(fields)
    after = model.step(z, torch.full((3,), 0.1).double(), torch.full((3, 1), 0.02).double())
    assert not torch.allclose(z, after, atol=1e-2)
    for tokens in (z, after):
        assert tokens.mean(-1).abs().max() < 1e-10
        assert (tokens.var(-1, unbiased=False) - 1).abs().max() < 1e-3


def test_interpolation_reproduces_a_parabola_inside():
    """Akima's slopes are exact for a parabola on even points, where cubics then are, too."""
    x = (torch.arange(40, dtype=torch.float64) + 0.5) / 20  # spacing 0.05, length 2
    query = torch.tensor([0.71, 0.8, 1.033], dtype=torch.float64)
    found = interpolate((x - 0.9).square()[None], x, query, 2.0)[0]
    assert torch.allclose(found, (query - 0.9).square(), atol=3e-4)
    straight = interpolate((3 * x - 1)[None], x, query, 2.0)[0]
    assert torch.allclose(straight, 3 * query - 1, atol=1e-12)


def test_offgrid_rollout_keeps_the_parameter_of_each_field():
    sim = ups.load("burgers-small")
    u0 = ups.physics.burgers.initial_conditions(3, sim.x, seed=3)
    nu = torch.tensor([0.001, 0.0007, 0.0014])
    x_out = torch.tensor([0.1001, 0.5002, 0.9003])
    together = sim.rollout(u0, 3, nu=nu, x_out=x_out)
    for b in range(3):
        alone = sim.rollout(u0[b], 3, nu=nu[b].item(), x_out=x_out)
        assert torch.allclose(together[b : b + 1], alone, atol=1e-5)
    other = sim.rollout(u0, 3, nu=nu.flip(0), x_out=x_out)
    assert not torch.allclose(together[0], other[0], atol=1e-4)


def test_load_accepts_data_whose_coordinates_are_rounded():
    sim = ups.load("burgers-small")
    t = (np.arange(202) * 0.01).astype(np.float32).astype(float)
    for dt in (t[5] - t[0], t[200] - t[195], 0.05):
        grid = replace(sim.spec.grid, extent=(1.000001,), origin=(0.3,))
        spec = replace(sim.spec, domain=grid, dt=float(dt), std=(9.0,))
        data = SimpleNamespace(equation_name="burgers", spec=spec, path="data.hdf5")
        assert ups.load("burgers-small", data).dt == sim.dt


@pytest.mark.parametrize("change", ["points", "dt", "equation", "length", "parameters"])
def test_load_refuses_data_of_another_kind(change):
    sim = ups.load("burgers-small")
    data = SimpleNamespace(equation_name="burgers", spec=sim.spec, path="data.hdf5")
    ups.load("burgers-small", data)
    grid = sim.spec.grid
    if change == "points":
        data.spec = replace(sim.spec, domain=grid.coarsened(2))
        found = "`points` must be 256, got 128"
    elif change == "dt":
        data.spec = replace(sim.spec, dt=0.1)
        found = "`dt` must be 0.05, got 0.1"
    elif change == "length":
        data.spec = replace(sim.spec, domain=replace(grid, extent=(2.0,)))
        found = "`length` must be 1, got 2"
    elif change == "parameters":
        data.spec = replace(sim.spec, parameters=())
        found = "`parameters` must be nu, got none"
    else:
        data.equation_name = None
        found = "`equation` must be burgers, got none"
    folder = model_folder.SHIPPED / "burgers-small"
    message = f"{folder} was trained for other data than data.hdf5: {found}."
    with pytest.raises(UpsError, match=re.escape(message)):
        ups.load("burgers-small", data)
