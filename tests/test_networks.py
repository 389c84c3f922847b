"""The models' maps against loops in NumPy, written from their docstrings."""

import numpy as np
import pytest
import torch

import ups
from ups.core.errors import UpsError
from ups.models import build
from ups.models.interpolation import interpolate

POINTS, TOKENS, WIDTH = 24, 8, 6
SPEC = {
    "architecture": "upt",
    "tokens": TOKENS,
    "width": WIDTH,
    "hidden": 1.5,
    "distances": [1, 3],
    "encoder": 1,
    "approximator": 2,
    "decoder": 1,
    "limit": 0.7,
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
    """Tokens of one field (X,): patches of three tokens' points, blocks, the clip, the mean."""
    per_token = POINTS // TOKENS
    cells = u.reshape(TOKENS, per_token)
    weight, constant = numbers(model.patches_in), numbers(model.constant)[:, 0, 0]
    rows = []
    for j in range(TOKENS):
        patch = np.concatenate([cells[(j + k) % TOKENS] for k in (-1, 0, 1)])
        rows.append(weight @ patch + constant)
    h = clipped(mixed(np.stack(rows), model.encoder[0], 1), model.limit)
    h[:, -1] = u.mean()
    return h


def stepped(model, z, dt, nu):
    weight, bias = numbers(model.condition.weight), numbers(model.condition.bias)
    condition = weight @ np.array([dt / 0.05 - 1, np.log(nu / 1e-3)]) + bias
    h = z + condition
    for block, distance in zip(model.approximator, (1, 3), strict=True):
        h = mixed(h, block, distance)
    h = clipped(h, model.limit)
    h[:, -1] = z[:, -1]
    return h


def decoded(model, z):
    """Each token writes to its own points and its neighbors'; the mean is the one it carries."""
    per_token = POINTS // TOKENS
    h = mixed(z, model.decoder[0], 1) @ numbers(model.patches_out).T
    cells = np.zeros((TOKENS, per_token))
    for j in range(TOKENS):
        for i, k in enumerate((-1, 0, 1)):
            cells[(j + k) % TOKENS] += h[j].reshape(3, per_token)[i]
    u = cells.reshape(-1)
    return u - u.mean() + z[:, -1].mean()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build(SPEC, POINTS).double()


@pytest.fixture
def fields():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, POINTS, 1, dtype=torch.float64, generator=generator) + 0.4


def test_mixer_maps_equal_written_out_loops(model, fields):
    dt, nu = torch.tensor([0.05, 0.1, 0.02]).double(), torch.tensor([1e-3, 0.02, 4e-3]).double()
    z = model.encode(fields)
    after = model.step(z, dt, nu)
    u = model.decode(after)
    for b in range(3):
        own = encoded(model, numbers(fields[b, :, 0]))
        assert np.allclose(numbers(z[b]), own, atol=1e-12)
        own = stepped(model, own, dt[b].item(), nu[b].item())
        assert np.allclose(numbers(after[b]), own, atol=1e-12)
        assert np.allclose(numbers(u[b, :, 0]), decoded(model, own), atol=1e-12)


def test_mixer_without_conservation_carries_no_mean(fields):
    torch.manual_seed(0)
    free = build({**SPEC, "conserve": False}, POINTS).double()
    z = free.encode(fields)
    assert free.free == WIDTH
    assert not torch.allclose(z[..., -1], fields.mean(1).expand(-1, TOKENS), atol=1e-3)
    u = free.decode(z)
    assert (u.mean(1) - z[..., -1:].mean(1)).abs().max() > 1e-3


def convolved(x, layer):
    """A circular convolution of three taps (C, X) -> (C', X), with the layer's own dilation."""
    weight, bias, d = numbers(layer.weight), numbers(layer.bias), layer.dilation[0]
    taps = [np.roll(x, d, 1), x, np.roll(x, -d, 1)]
    return sum(weight[:, :, k] @ tap for k, tap in enumerate(taps)) + bias[:, None]


@pytest.mark.parametrize("conserve", [True, False])
def test_resnet_step_equals_written_out_loops(conserve, fields):
    torch.manual_seed(0)
    settings = {"width": 5, "blocks": 2, "dilations": [1, 2], "conserve": conserve}
    model = build({"architecture": "resnet", **settings}, POINTS).double()
    dt, nu = torch.full((3,), 0.1).double(), torch.tensor([1e-3, 0.02, 4e-3]).double()
    made = model.decode(model.step(model.encode(fields), dt, nu))
    for b in range(3):
        u = numbers(fields[b, :, 0])
        condition = [np.full(POINTS, 1.0), np.full(POINTS, np.log(nu[b].item() / 1e-3))]
        h = convolved(np.stack([u, *condition]), model.lift)
        for block in model.blocks:
            inside = h
            for layer in block[::2]:
                inside = np.maximum(convolved(inside, layer), 0)
            h = h + inside
        change = convolved(h, model.project)[0]
        if conserve:
            change = change - change.mean()
        assert np.allclose(numbers(made[b, :, 0]), u + change, atol=1e-12)


def test_plain_upt_tokens_have_unit_scale_after_encoder_and_step(fields):
    torch.manual_seed(0)
    sizes = {"patches": 8, "tokens": 4, "width": 16, "heads": 2}
    model = build({"architecture": "upt_absolute", **sizes}, POINTS).double()
    for block in model.approximator:  # their modulation begins at zero, as the identity
        torch.nn.init.normal_(block.modulation.weight)
    z = model.encode(fields)
    after = model.step(z, torch.full((3,), 0.1).double(), torch.full((3,), 0.02).double())
    assert not torch.allclose(z, after, atol=1e-2)
    for tokens in (z, after):
        assert tokens.mean(-1).abs().max() < 1e-10
        assert (tokens.var(-1, unbiased=False) - 1).abs().max() < 1e-3


def test_interpolation_of_uneven_points_reproduces_a_parabola_inside():
    """Akima's slopes are exact for a parabola on even points, where cubics then are, too."""
    x = (torch.arange(40, dtype=torch.float64) + 0.5) / 20  # spacing 0.05, length 2
    query = torch.tensor([0.71, 0.8, 1.033], dtype=torch.float64)
    found = interpolate((x - 0.9).square()[None], x, query, 2.0)[0]
    assert torch.allclose(found, (query - 0.9).square(), atol=3e-4)
    straight = interpolate((3 * x - 1)[None], x, query, 2.0)[0]
    assert torch.allclose(straight, 3 * query - 1, atol=1e-12)


def test_rollout_between_grid_points_keeps_each_fields_own_parameter():
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


@pytest.mark.parametrize("change", [{"points": 128}, {"dt": 0.1}, {"equation": "advection"}])
def test_load_refuses_data_of_another_kind(change):
    sim = ups.load("burgers-small")

    class Data:
        equation, points, dt, path = "burgers", len(sim.x), sim.dt, "data.hdf5"

    ups.load("burgers-small", Data)
    for key, value in change.items():
        setattr(Data, key, value)
    with pytest.raises(UpsError, match="was trained for burgers at 256 points"):
        ups.load("burgers-small", Data)
