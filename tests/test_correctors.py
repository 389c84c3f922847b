"""Correctors in numbers: levels, samplers, losses, targets, each against a second formula."""

import copy
import math
from collections import Counter
from inspect import signature
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from conftest import make_simulator, ring
from helpers.toy import (
    DT,
    FREE,
    POINTS,
    SCALE,
    TOKENS,
    WIDTH,
    ToyModel,
    burgers_confidence,
    descended,
    toy_simulator,
)
from torch import nn

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.core.schema import arguments
from ups.datamodules import BurgersDataModule
from ups.models import build
from ups.models.denoiser import Denoiser
from ups.models.token_grid import AxisWindow
from ups.modules import ConsistencyModule, DiffusionModule
from ups.physics import advection, burgers
from ups.run import CONF
from ups.simulation.corrected import Corrected
from ups.simulation.correctors import ResidualCorrector, heun_sampler, heun_step
from ups.simulation.latent import project_to_field
from ups.simulation.residual_targets import LatentCache, ResidualTargets, residual_targets
from ups.simulation.simulator import Simulator

SIZES = {"tokens": ring(TOKENS), "hidden_dim": WIDTH, "num_dynamic_channels": FREE}
NETS = {"mean_network": {"hidden_dim": 8, "depth": 1}, "denoiser": {"hidden_dim": 8, "depth": 1}}
SIGMA_DATA = 0.5  # EDM's, on purpose not imported


# What the tests are made of


def awaken(corrector, seed=1):
    """Give networks that begin at zero something to say, and the residual an unusual scale."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for network in (corrector.mean_network, corrector.denoiser):
            network.tokens_out.normal_(std=0.4, generator=rng)
        corrector.scale.copy_(torch.tensor([0.5, 3.0, 0.2])[: corrector.num_dynamic_channels])
    return corrector


def make_corrector(**changes):
    torch.manual_seed(0)
    return awaken(ResidualCorrector(**(SIZES | NETS | changes)))


def states(count, seed=2, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(count, TOKENS, WIDTH, generator=rng, dtype=dtype)
    pred = z + 0.3 * torch.randn(count, TOKENS, WIDTH, generator=rng, dtype=dtype)
    dt = 0.05 + 0.01 * torch.arange(count, dtype=dtype)
    parameters = 1e-3 * 2.0 ** torch.arange(count, dtype=dtype)[:, None]
    return z, pred, dt, parameters


def windows(count=3, frames=3, seed=3):
    """A batch of smooth fields, each with a jump, at different viscosities."""
    rng = np.random.default_rng(seed)
    x = 2 * np.pi * np.arange(POINTS) / POINTS
    u = np.empty((count, frames, POINTS))
    for b in range(count):
        for k in range(frames):
            a, phase = rng.uniform(0.5, 1.0), rng.uniform(0, 6)
            u[b, k] = a * np.sin(x + phase) + (np.arange(POINTS) == rng.integers(POINTS))
    parameters = 1e-3 * torch.tensor([2.0, 0.5, 4.0, 1.0, 8.0])[:count, None]
    u = torch.from_numpy(u).float()[..., None]
    return Batch(u, parameters, torch.arange(count), torch.arange(count))


def empty_batch(count, frames):
    """Windows of zeros at a parameter of 1."""
    index = torch.zeros(count).long()
    return Batch(torch.zeros(count, frames, POINTS, 1), torch.ones(count, 1), index, index)


class Recorder(nn.Module):
    """Stands for a network: keeps what it was told, answers a constant."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.calls = answer, []

    def forward(self, parts, level, dt, parameters):
        self.calls.append(
            SimpleNamespace(parts=tuple(parts), level=level, dt=dt, parameters=parameters)
        )
        return self.answer


# The formulas, written out


def denoised(corrector, x, sigma, mean, z, pred, dt, parameters):
    """EDM's denoiser, its table 1, for one sample at one level."""
    c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
    c_out = sigma * SIGMA_DATA / math.sqrt(sigma**2 + SIGMA_DATA**2)
    c_in = 1 / math.sqrt(SIGMA_DATA**2 + sigma**2)
    level = torch.tensor([math.log(sigma)])
    parts = (z[None], (pred - z)[None], mean[None], c_in * x[None])
    return c_skip * x + c_out * corrector.denoiser(parts, level, dt[None], parameters[None])[0]


def mean_of(corrector, z, pred, dt, parameters):
    """The conditional mean for one sample."""
    zero = torch.zeros(1)
    return corrector.mean_network((z[None], (pred - z)[None]), zero, dt[None], parameters[None])[0]


def levels_of(steps, low, high, rho):
    """EDM's equation 5."""
    if steps == 1:
        return [high, 0.0]
    made = []
    for i in range(steps):
        a, b = high ** (1 / rho), low ** (1 / rho)
        made.append((a + i / (steps - 1) * (b - a)) ** rho)
    return [*made, 0.0]


def path_end(denoise, x, levels):
    """EDM's algorithm 1 without added noise: Heun's steps, and Euler's to level 0."""
    for i in range(len(levels) - 1):
        t, t_next = levels[i], levels[i + 1]
        d = (x - denoise(x, t)) / t
        x_next = x + (t_next - t) * d
        if t_next != 0:
            d_next = (x_next - denoise(x_next, t_next)) / t_next
            x_next = x + (t_next - t) * (0.5 * d + 0.5 * d_next)
        x = x_next
    return x


def draw_of(corrector, z, pred, dt, parameters, noise, temperature):
    """One corrected state from one state, by the formulas above."""
    spec = corrector.spec
    mean = mean_of(corrector, z, pred, dt, parameters)
    x = spec["sigma_max"] * noise
    levels = levels_of(spec["num_steps"], spec["sigma_min"], spec["sigma_max"], spec["rho"])
    if spec["sampler"] == "consistency":
        rest = denoised(corrector, x, spec["sigma_max"], mean, z, pred, dt, parameters)
    else:
        rest = path_end(
            lambda x, s: denoised(corrector, x, s, mean, z, pred, dt, parameters), x, levels
        )
    made = pred.clone()
    made[:, : corrector.num_dynamic_channels] += corrector.scale * (mean + temperature * rest)
    return made


def steps_of(simulator, batch, projection_steps):
    """What the operator leaves, window by window and frame by frame; fields are (X,)."""
    hand = SimpleNamespace(state=[], pred=[], target=[], field=[], parameters=[], confidence=[])
    for b in range(len(batch)):
        parameters = batch.parameters[b : b + 1]
        state = simulator.model.encode(batch.u[b : b + 1, 0] / SCALE).detach()
        for k in range(1, batch.u.shape[1]):
            field = batch.u[b, k, :, 0]
            pred = simulator.model.step(state, torch.tensor([simulator.dt]), parameters).detach()
            target = descended(simulator, pred, field[None], projection_steps)
            hand.state.append(state[0])
            hand.pred.append(pred[0])
            hand.target.append(target[0])
            hand.field.append(field)
            hand.parameters.append(parameters[0])
            hand.confidence.append(burgers_confidence(field))
            state = target
    return hand


def stacked(hand, name):
    """A part of ``steps_of`` in the shape that ``ResidualTargets`` has."""
    values = torch.stack(getattr(hand, name))
    return values[..., None] if name in ("field", "confidence") else values


PARTS = ("state", "pred", "target", "field", "parameters", "confidence")


def field_error(simulator, tokens, field, weight):
    """A squared error relative to the truth, whose size counts as 1 % of the data's at least."""
    decoded = simulator.std * (tokens.flatten() @ simulator.model.out)
    size = max(float((weight * field).square().mean()), (0.01 * SCALE) ** 2)
    return (weight * (decoded - field)).square().mean() / size


def noise_level_and_noise(module, batch, seed=0):
    """What a stage draws for a batch: levels (B, ...), then noise (B, K, N, free)."""
    level, noise = module.sample_noise(batch, torch.Generator().manual_seed(seed))
    assert noise.shape == (len(batch), batch.u.shape[1] - 1, TOKENS, FREE)
    return level, noise


# The corrector's arithmetic


def test_corrector_apply_residual_and_residual_by_hand():
    corrector = make_corrector(hidden_dim=5, num_dynamic_channels=3)
    pred = torch.ones(1, TOKENS, 5)
    made = corrector.apply_residual(pred, torch.full((1, TOKENS, 3), 2.0))
    assert torch.allclose(made[0, 0], torch.tensor([2.0, 7.0, 1.4, 1.0, 1.0]))
    target = torch.tensor([2.0, 7.0, 1.4, 9.0, 9.0]).expand(1, TOKENS, 5)
    assert torch.allclose(corrector.residual(pred, target), torch.full((1, TOKENS, 3), 2.0))


def test_corrector_apply_residual_undoes_residual():
    corrector = make_corrector(hidden_dim=5, num_dynamic_channels=3)
    pred, target = torch.randn(2, 6, TOKENS, 5)
    target[..., 3:] = pred[..., 3:]
    assert torch.allclose(
        corrector.apply_residual(pred, corrector.residual(pred, target)), target, atol=1e-6
    )


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_corrector_sigma_schedule_equals_edm_equation_5(steps):
    corrector = make_corrector(num_steps=steps, sigma_min=0.07, sigma_max=4.0, rho=3.0)
    assert corrector.sigma_schedule() == pytest.approx(levels_of(steps, 0.07, 4.0, 3.0))


def test_corrector_sigma_schedule_by_hand():
    corrector = make_corrector(num_steps=3, sigma_min=1.0, sigma_max=9.0, rho=2.0)
    assert corrector.sigma_schedule() == pytest.approx([9.0, 4.0, 1.0, 0.0])


def test_corrector_defaults_equal_configuration():
    with open(f"{CONF}/stage/diffusion/default.yaml") as file:
        options = yaml.safe_load(file)["module"]
    defaults = {name: p.default for name, p in signature(ResidualCorrector).parameters.items()}
    for name in ("num_steps", "sigma_min", "sigma_max", "rho", "temperature"):
        assert options["corrector"][name] == defaults[name], name
    stage = {name: p.default for name, p in arguments(DiffusionModule).named.items()}
    for name in ("projection_steps", "P_mean", "P_std", "lr", "min_lr_ratio", "weight_decay"):
        assert options[name] == stage[name], name
    assert options["corrector"].keys() <= defaults.keys()
    with open(f"{CONF}/stage/consistency/default.yaml") as file:
        options = yaml.safe_load(file)["module"]
    stage = {name: p.default for name, p in arguments(ConsistencyModule).named.items()}
    for name in (
        "projection_steps",
        "muon_momentum",
        "warmup_fraction",
        "min_lr_ratio",
        "weight_decay",
    ):
        assert options[name] == stage[name], name


def test_corrector_has_the_published_settings():
    """The numbers that docs and shipped weights rely on."""
    corrector = ResidualCorrector(**SIZES, **NETS)
    about = {"sampler": "heun", "num_steps": 8, "sigma_min": 0.02, "sigma_max": 10.0}
    about |= {"rho": 7.0, "temperature": 0.25, "num_parameters": 1}
    assert {"tokens": ring(TOKENS), **corrector.spec} == SIZES | NETS | about
    assert torch.equal(corrector.scale, torch.ones(FREE))
    assert "scale" in corrector.state_dict()


def test_corrector_spec_makes_the_same_corrector_again():
    about = {"sampler": "consistency", "num_steps": 3, "sigma_min": 0.3, "sigma_max": 2.0}
    about |= {"rho": 4.0, "temperature": 0.6, "num_parameters": 1}
    corrector = make_corrector(**about)
    assert {"tokens": ring(TOKENS), **corrector.spec} == SIZES | NETS | about
    again = ResidualCorrector(ring(TOKENS), **corrector.spec)
    again.load_state_dict(corrector.state_dict())
    z, pred, dt, parameters = states(2)
    noise = torch.randn(2, 1, TOKENS, FREE)
    assert torch.equal(
        again.sample(z, pred, dt, parameters, noise),
        corrector.sample(z, pred, dt, parameters, noise),
    )


def test_corrector_networks_have_their_own_sizes():
    nets = {
        "mean_network": {"hidden_dim": 6, "depth": 3},
        "denoiser": {"hidden_dim": 10, "depth": 2, "mlp_ratio": 2.0},
    }
    corrector = ResidualCorrector(**SIZES, **nets)
    shapes = [tuple(m.shape) for m in corrector.muon_parameters()]
    assert shapes == [(6, 18), (6, 6)] * 3 + [(20, 30), (10, 20)] * 2
    ids = {id(p) for p in corrector.parameters()}
    assert {id(m) for m in corrector.muon_parameters()} < ids


def test_corrector_mean_network_gets_state_change_dt_and_parameters():
    corrector = make_corrector()
    answer = torch.randn(3, TOKENS, FREE)
    corrector.mean_network = Recorder(answer)
    z, pred, dt, parameters = states(3)
    assert torch.equal(corrector.predict_mean(z, pred, dt, parameters), answer)
    (call,) = corrector.mean_network.calls
    assert len(call.parts) == 2
    assert torch.equal(call.parts[0], z)
    assert torch.equal(call.parts[1], pred - z)
    assert torch.equal(call.level, torch.zeros(3))
    assert torch.equal(call.dt, dt)
    assert torch.equal(call.parameters, parameters)


def test_corrector_denoise_preconditions_as_edm_table_1():
    corrector = make_corrector()
    z, pred, dt, parameters = states(3)
    sigma, x = torch.tensor([0.1, 0.5, 3.0]), torch.randn(3, TOKENS, FREE)
    mean = torch.randn(3, TOKENS, FREE)
    corrector.denoiser = Recorder(torch.zeros(3, TOKENS, FREE))
    c_skip = corrector.denoise(x, sigma, mean, z, pred, dt, parameters) / x
    for b, s in enumerate((0.1, 0.5, 3.0)):
        assert torch.allclose(c_skip[b], torch.tensor(0.25 / (s**2 + 0.25)), atol=1e-6)
    (call,) = corrector.denoiser.calls
    assert len(call.parts) == 4
    assert torch.equal(call.parts[0], z)
    assert torch.equal(call.parts[1], pred - z)
    assert torch.equal(call.parts[2], mean)
    for b, s in enumerate((0.1, 0.5, 3.0)):
        c_in = 1 / math.sqrt(s**2 + 0.25)
        assert torch.allclose(call.parts[3][b], x[b] * c_in, atol=1e-6)
        assert call.level[b].item() == pytest.approx(math.log(s), abs=1e-6)
    assert torch.equal(call.dt, dt)
    assert torch.equal(call.parameters, parameters)
    corrector.denoiser = Recorder(torch.ones(3, TOKENS, FREE))
    c_out = corrector.denoise(torch.zeros_like(x), sigma, mean, z, pred, dt, parameters)
    for b, s in enumerate((0.1, 0.5, 3.0)):
        expected = torch.tensor(0.5 * s / math.sqrt(s**2 + 0.25))
        assert torch.allclose(c_out[b], expected, atol=1e-6)


# The network


@pytest.mark.parametrize("num_parameters", [0, 1, 2])
def test_denoiser_equals_written_out_network(num_parameters):
    torch.manual_seed(0)
    distances = (1, 2, 3)
    sizes = {"hidden_dim": 6, "mlp_ratio": 1.5, "depth": 4, "dilations": distances}
    network = Denoiser(ring(5), 7, 2, **sizes, num_parameters=num_parameters).double()
    weights = dict(network.named_parameters())
    with torch.no_grad():
        for p in weights.values():
            p.normal_(std=0.4)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 5, 4))
    level, dt = np.array([-1.3, 0.8]), np.array([0.05, 0.08])
    parameters = np.array([[2e-3, 0.3], [5e-4, 7.0]])[:, :num_parameters]
    about = (torch.from_numpy(v) for v in (level, dt, parameters))
    made = network((torch.from_numpy(a), torch.from_numpy(b)), *about).detach().numpy()

    w = {name: p.detach().numpy() for name, p in weights.items()}
    assert w["blocks.0.w1"].shape == (9, 18)
    for s in range(2):
        angles = [f * level[s] for f in (0.25, 0.5, 1.0, 2.0)]
        said = [dt[s] / 0.05 - 1, *(math.log(p / 1e-3) for p in parameters[s])]
        said += [math.sin(v) for v in angles] + [math.cos(v) for v in angles]
        offset = w["condition.weight"] @ np.array(said) + w["condition.bias"]
        h = np.concatenate((a[s], b[s]), -1) @ w["tokens_in"].T
        h = h + w["constant"].ravel() + offset
        for block in range(4):
            d = distances[block % 3]
            told = np.stack(
                [np.concatenate((h[(j - d) % 5], h[j], h[(j + d) % 5])) for j in range(5)]
            )
            y = told @ w[f"blocks.{block}.w1"].T + w[f"blocks.{block}.b1"].ravel()
            h = h + (y / (1 + np.exp(-y))) @ w[f"blocks.{block}.w2"].T
        assert np.allclose(made[s], h @ w["tokens_out"].T, atol=1e-10)


def test_denoiser_is_zero_at_initialization_with_unit_size_inside():
    torch.manual_seed(0)
    network = Denoiser(ring(8), 100, 3, hidden_dim=64)
    one = torch.ones(2)
    answer = network((torch.randn(2, 8, 100),), one, one, one[:, None])
    assert torch.equal(answer, torch.zeros(2, 8, 3))
    weights = dict(network.named_parameters())
    assert weights["tokens_in"].std().item() == pytest.approx(0.1, rel=0.05)
    assert len(network.muon_parameters()) == 12  # two in each of six blocks
    other = Denoiser(ring(8), 4, 1, hidden_dim=10, depth=3)
    assert [tuple(m.shape) for m in other.muon_parameters()] == [(10, 30), (10, 10)] * 3


def test_denoiser_default_dilations_are_1_2_4_1():
    """Two blocks carry a change 1 + 2 tokens far, four carry it 1 + 2 + 4 + 1."""
    for depth, reach in ((1, 1), (2, 3), (3, 7), (4, 8), (5, 9)):
        torch.manual_seed(0)
        network = Denoiser(ring(32), 1, 1, hidden_dim=6, depth=depth).double()
        nn.init.normal_(network.tokens_out)
        x, one = torch.zeros(2, 32, 1, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        x[1, 16] = 1
        same, changed = network((x,), one, one, one[:, None]).detach()[..., 0]
        touched = ((changed - same).abs() > 1e-12).nonzero()[:, 0]
        assert (touched.min().item(), touched.max().item()) == (16 - reach, 16 + reach)


# The samplers


def curved(x, s):
    """A denoiser that is linear in nothing, for tensors and numbers."""
    return torch.tanh(1.3 * x) / (1 + s) + 0.2 * s


def curved_batch(x, sigma):
    return curved(x, sigma[:, None, None])


def test_heun_sampler_equals_algorithm_1_on_nonlinear_denoiser():
    x, levels = 3 * torch.randn(5, 2, 2), [3.0, 1.2, 0.4, 0.0]
    expected = torch.stack([path_end(curved, x[b], levels) for b in range(5)])
    assert torch.allclose(heun_sampler(curved_batch, x, levels), expected, atol=1e-6)


def test_heun_step_by_hand():
    """D = x / 2 + s: a slope of 1 at x = 4, s = 1, and of 2.5 where that leads, at 3.5 and 0.5."""

    def denoise(x, sigma):
        return x / 2 + sigma[:, None, None]

    x = torch.full((1, 1, 1), 4.0)
    made = heun_step(denoise, x, torch.tensor([1.0]), torch.tensor([0.5]))
    assert made.item() == pytest.approx(4 - 0.5 * (1 + 2.5) / 2)
    made = heun_step(denoise, x, torch.tensor([1.0]), torch.tensor([0.0]))
    assert made.item() == pytest.approx(4 - 1)


def test_heun_step_takes_each_sample_between_its_own_levels():
    x, high = torch.randn(3, 2, 2), torch.tensor([2.0, 0.7, 1.5])
    low = torch.tensor([0.5, 0.0, 1.1])
    made = heun_step(curved_batch, x, high, low)
    for b in range(3):
        expected = path_end(curved, x[b], [high[b].item(), low[b].item()])
        assert torch.allclose(made[b], expected, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_heun_sampler_calls_its_network_twice_a_step_but_for_the_last(steps):
    corrector = make_corrector(num_steps=steps)
    corrector.denoiser = Recorder(torch.zeros(2, TOKENS, FREE))
    z, pred, dt, parameters = states(2)
    corrector.sample(z, pred, dt, parameters, torch.randn(2, 1, TOKENS, FREE))
    assert len(corrector.denoiser.calls) == 2 * steps - 1


@pytest.mark.parametrize("sampler", ["heun", "consistency"])
@pytest.mark.parametrize("temperature", [None, 0.0, 1.7])
@torch.no_grad()
def test_corrector_sample_equals_written_out_draws(sampler, temperature):
    about = {"sigma_min": 0.1, "sigma_max": 3.0, "rho": 4.0, "temperature": 0.6}
    corrector = make_corrector(sampler=sampler, num_steps=3, **about)
    z, pred, dt, parameters = states(2)
    noise = torch.randn(2, 3, TOKENS, FREE)
    used = 0.6 if temperature is None else temperature
    made = corrector.sample(z, pred, dt, parameters, noise, temperature)
    first = corrector.sample(z, pred, dt, parameters, noise, temperature, include_mean=True)
    only = corrector.sample(z, pred, dt, parameters, noise[:, :0], temperature, include_mean=True)
    assert made.shape == (2, 3, TOKENS, WIDTH)
    assert first.shape == (2, 4, TOKENS, WIDTH)
    assert only.shape == (2, 1, TOKENS, WIDTH)
    for b in range(2):
        one = z[b], pred[b], dt[b], parameters[b]
        mean = pred[b].clone()
        mean[:, :FREE] += corrector.scale * mean_of(corrector, *one)
        assert torch.allclose(first[b, 0], mean, atol=1e-5)
        assert torch.allclose(only[b, 0], mean, atol=1e-5)
        for m in range(3):
            expected = draw_of(corrector, *one, noise[b, m], used)
            assert torch.allclose(made[b, m], expected, atol=1e-4)
            assert torch.allclose(first[b, m + 1], expected, atol=1e-4)


# Tokens that decode to a given field


def linear_case():
    simulator = toy_simulator(model=ToyModel(dtype=torch.float64))
    rng = torch.Generator().manual_seed(4)
    z = torch.randn(3, TOKENS, WIDTH, generator=rng, dtype=torch.float64)
    field = torch.randn(3, POINTS, generator=rng, dtype=torch.float64)
    weight = 0.1 + torch.rand(3, POINTS, generator=rng, dtype=torch.float64)
    return simulator, z, field, weight


def projected(simulator, z, field, steps, strength, weight):
    """Of fields and weights (B, X)."""
    weight = weight if weight is None else weight[..., None]
    return project_to_field(simulator, z, field[..., None], steps, strength, weight)


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_project_to_field_is_steepest_descent_when_decoder_is_linear(steps, strength, weighted):
    simulator, z, field, weight = linear_case()
    weight = weight if weighted else None
    made = projected(simulator, z, field, steps, strength, weight)
    assert torch.allclose(made, descended(simulator, z, field, steps, strength, weight), atol=1e-8)
    assert torch.equal(made[..., FREE:], z[..., FREE:])
    assert not made.requires_grad


def test_project_to_field_has_full_strength_and_weight_1_by_default():
    simulator, z, field, _ = linear_case()
    made = project_to_field(simulator, z, field[..., None], 2)
    assert torch.allclose(made, descended(simulator, z, field, 2, 1.0), atol=1e-8)


def test_project_to_field_leaves_its_arguments_alone_and_works_in_inference_mode():
    simulator, z, field, weight = linear_case()
    before = [t.clone() for t in (z, field, weight)]
    expected = descended(simulator, z, field, 2, 1.0, weight)
    with torch.inference_mode():
        made = projected(simulator, z * 1, field * 1, 2, 1.0, weight * 1)
    assert torch.allclose(made, expected, atol=1e-8)
    projected(simulator, z, field, 2, 1.0, weight)
    for old, new in zip(before, (z, field, weight), strict=True):
        assert torch.equal(old, new)
        assert not new.requires_grad


class CurvedModel(ToyModel):
    def decode(self, z):
        return super().decode(z + 0.3 * z.square())


def test_project_to_field_takes_the_derivative_of_a_curved_decoder():
    """The length of a step is the one that a derivative gives, to a per cent or so."""
    _, z, field, weight = linear_case()
    simulator = toy_simulator(model=CurvedModel(dtype=torch.float64))
    made = projected(simulator, z, field, 1, 1.0, weight)
    for b in range(3):
        flat, w = z[b].flatten(), weight[b]
        bent = (1 + 0.6 * flat)[:, None] * simulator.model.out.detach() * simulator.std
        decoded = (flat + 0.3 * flat**2) @ simulator.model.out.detach() * simulator.std
        gap = w * (decoded - field[b])
        slope = bent @ (w * gap)
        slope[FREE::WIDTH] = 0
        change = w * (slope @ bent)
        exact = -(gap @ change) / (change @ change) * slope
        moved = (made[b] - z[b]).flatten()
        assert (moved - exact).norm() < 0.03 * exact.norm()


# The targets of the residual


def test_residual_targets_equal_written_out_chain():
    simulator, batch = toy_simulator(), windows()
    made = residual_targets(simulator, batch, 2)
    hand = steps_of(simulator, batch, 2)
    for name in PARTS:
        expected = stacked(hand, name)
        assert getattr(made, name).shape == expected.shape
        assert torch.allclose(getattr(made, name), expected, atol=2e-5), name


def test_residual_targets_of_a_lost_prediction_are_the_encoded_truth(monkeypatch):
    simulator, batch = toy_simulator(), windows()
    before = residual_targets(simulator, batch, 3)
    step = simulator.model.step
    calls = []

    def unstable(z, dt, parameters):
        calls.append(z)
        out = step(z, dt, parameters)
        return out.index_put((torch.tensor([1]),), 1e4 * out[1:2]) if len(calls) == 2 else out

    monkeypatch.setattr(simulator.model, "step", unstable)
    found = residual_targets(simulator, batch, 3)
    pred, expected = (t.pred.unflatten(0, (len(batch), -1)) for t in (found, before))
    assert torch.equal(pred[0], expected[0])
    assert torch.equal(pred[1, 0], expected[1, 0])
    assert torch.allclose(pred[1, 1], simulator.encode(batch.u[1:2, 2])[0], atol=1e-5)
    sizes = [(t.target - t.pred).square().mean((1, 2)).amax().item() for t in (found, before)]
    assert sizes[0] < 10 * sizes[1]


def test_residual_targets_take_the_number_of_projection_steps_given():
    simulator, batch = toy_simulator(), windows()
    for count in (0, 1, 5):
        expected = torch.stack(steps_of(simulator, batch, count).target)
        assert torch.allclose(residual_targets(simulator, batch, count).target, expected, atol=1e-4)


def test_residual_targets_decode_to_the_next_frame():
    simulator = make_simulator()
    u0 = burgers.initial_conditions(3, burgers.cell_centers(32), seed=1)
    u = burgers.solve(u0, [0.1 * k for k in range(4)], 0.001)[..., None]
    batch = Batch(u, torch.full((3, 1), 0.001), torch.arange(3), torch.arange(3))
    made = residual_targets(simulator, batch, 40)
    reached = simulator.decode(made.target).detach()
    started = simulator.decode(made.pred).detach()
    for b in range(3):
        for k in range(3):
            row = 3 * b + k
            to_next = (reached[row] - u[b, k + 1]).norm()
            assert to_next < (reached[row] - u[b, k]).norm()
            assert to_next < 0.5 * (started[row] - u[b, k + 1]).norm()


# The cache


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_latent_cache_reads_the_rows_of_a_batch(tmp_path, dtype):
    simulator, every = toy_simulator(), windows(5)

    def rows(*numbers):
        pick = torch.tensor(numbers)
        return Batch(every.u[pick], every.parameters[pick], every.trajectory[pick], pick)

    made = [rows(3, 0), rows(4, 2), rows(1)]
    cache = LatentCache(tmp_path / "c" / "x", simulator, made, 5, 3, dtype, 2)
    asked = rows(1, 4, 3)
    read = cache.read(asked)
    hand = steps_of(simulator, asked, 2)
    tolerance = 2e-5 if dtype == "float32" else 2e-3
    for name in PARTS:
        expected, found = stacked(hand, name), getattr(read, name)
        assert found.dtype == torch.float32
        assert torch.allclose(found, expected, atol=tolerance, rtol=tolerance), name
    size = 5 * 3 * 2 * TOKENS * WIDTH * (4 if dtype == "float32" else 2)
    assert cache.bytes == size
    assert cache.path.stat().st_size == size
    exact = torch.stack(steps_of(simulator, asked, 2).target)
    if dtype == "float16":
        assert torch.equal(read.target.half().float(), read.target)
        assert not torch.equal(read.target, exact)
    cache.remove()
    assert not cache.path.exists()


def test_latent_cache_limit_is_exact(tmp_path):
    """5 windows of 2 steps, 3 parts, 12 numbers of 2 bytes each are 720 bytes."""
    simulator, every = toy_simulator(), windows(5)
    LatentCache(tmp_path / "fits", simulator, [every], 5, 3, "float16", 1, max_bytes=720)
    with pytest.raises(UpsError, match="latent_cache_max_bytes"):
        LatentCache(tmp_path / "large", simulator, [every], 5, 3, "float16", 1, max_bytes=719)
    assert not (tmp_path / "large").exists()


# The diffusion stage's loss


def diffusion_module(simulator=None, **changes):
    torch.manual_seed(0)
    corrector = NETS | {"sigma_min": 0.3, "sigma_max": 1.5, "num_steps": 3, "temperature": 0.7}
    options = {"projection_steps": 2, "P_mean": -0.4, "P_std": 0.9} | changes
    module = DiffusionModule(simulator or toy_simulator(), corrector=corrector, **options)
    awaken(module.corrector)
    module.operator_errors.copy_(torch.tensor([0.3, 0.8]))
    return module


def small_and_large_windows():
    """Windows one of whose frames has decayed to nothing."""
    batch = windows()
    batch.u[1, 2] *= 1e-4
    return batch


LEVELS = torch.tensor([[-3.0, 0.5], [0.0, 2.5], [1.2, -0.8]])


def diffusion_terms(module, batch, level, noise):
    """The three terms by hand, each a list over the steps."""
    simulator, corrector = module.simulator, module.corrector
    hand = steps_of(simulator, batch, module.hparams["projection_steps"])
    tokens, fields, certain, noisy, sigmas = [], [], [], [], []
    for s in range(level.numel()):
        b, k = divmod(s, level.shape[1])
        state, pred, field = hand.state[s], hand.pred[s], hand.field[s]
        about = state, pred, torch.tensor(DT), hand.parameters[s]
        mean = mean_of(corrector, *about)
        residual = (hand.target[s] - pred)[:, :FREE] / corrector.scale
        tokens.append((residual - mean).square().mean())
        corrected = torch.cat((pred[:, :FREE] + corrector.scale * mean, pred[:, FREE:]), -1)
        ones = torch.ones(POINTS)
        fields.append(field_error(simulator, corrected, field, ones) / module.operator_errors[0])
        certain.append(
            field_error(simulator, corrected, field, hand.confidence[s]) / module.operator_errors[1]
        )
        sigma = math.exp(module.hparams["P_mean"] + module.hparams["P_std"] * level[b, k])
        sigma = min(max(sigma, corrector.spec["sigma_min"]), corrector.spec["sigma_max"])
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        rest = (residual - mean).detach()
        found = denoised(corrector, rest + sigma * noise[b, k], sigma, mean.detach(), *about)
        noisy.append(weight * (found - rest).square().mean())
        sigmas.append(sigma)
    tokens, noisy = (torch.stack(t).mean() for t in (tokens, noisy))
    fields = (torch.stack(fields).mean() + torch.stack(certain).mean()) / 2
    return tokens, fields, noisy, sigmas


def test_diffusion_loss_equals_written_out_formula():
    module, batch = diffusion_module(), small_and_large_windows()
    noise = noise_level_and_noise(module, batch)[1]
    found = module.compute_losses(batch, LEVELS, noise)
    tokens, fields, noisy, sigmas = diffusion_terms(module, batch, LEVELS, noise)
    assert sigmas.count(0.3) == 1  # both ends of the clamp are met, and levels between
    assert sigmas.count(1.5) == 2
    assert found["L_tokens"].item() == pytest.approx(tokens.item(), rel=1e-4)
    assert found["L_fields"].item() == pytest.approx(fields.item(), rel=1e-3)
    assert found["L_noise"].item() == pytest.approx(noisy.item(), rel=1e-4)
    assert found["loss"].item() == pytest.approx((tokens + fields + noisy).item(), rel=1e-3)
    assert found.keys() == {"loss", "L_tokens", "L_fields", "L_noise"}


def gradients(loss, network):
    return torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)


def test_diffusion_loss_trains_each_network_by_its_own_terms():
    module, batch = diffusion_module(), windows()
    noise = noise_level_and_noise(module, batch)[1]
    found = module.compute_losses(batch, LEVELS, noise)
    tokens, fields, noisy, _ = diffusion_terms(module, batch, LEVELS, noise)
    mean, rest = module.corrector.mean_network, module.corrector.denoiser
    found["loss"].backward()
    for p, expected in zip(mean.parameters(), gradients(tokens + fields, mean), strict=True):
        assert torch.allclose(p.grad, expected, atol=1e-4, rtol=1e-3)
    for p, expected in zip(rest.parameters(), gradients(noisy, rest), strict=True):
        assert torch.allclose(p.grad, expected, atol=1e-4, rtol=1e-3)
    assert max(p.grad.abs().max() for p in mean.parameters()) > 1e-2
    assert max(p.grad.abs().max() for p in rest.parameters()) > 1e-2
    assert all(p.grad is None for p in module.simulator.model.parameters())


def test_diffusion_noise_term_has_no_gradient_for_the_mean():
    module, batch = diffusion_module(), windows()
    level, noise = noise_level_and_noise(module, batch)
    found = module.compute_losses(batch, level, noise)
    assert all(g is None for g in gradients(found["L_noise"], module.corrector.mean_network))


def test_diffusion_draws_are_white_and_one_level_a_step():
    module = diffusion_module()
    batch = empty_batch(600, 5)
    level, noise = noise_level_and_noise(module, batch)
    assert level.shape == (600, 4)
    for drawn in (level, noise):
        count = drawn.numel()
        assert abs(drawn.mean().item()) < 5 / math.sqrt(count)
        assert abs(drawn.square().mean().item() - 1) < 5 * math.sqrt(2 / count)
        assert drawn.unique().numel() > 0.99 * count
        assert drawn.pow(4).mean().item() == pytest.approx(3, abs=0.6)  # a normal law's
    assert level.std(1).min() > 0
    again = noise_level_and_noise(module, batch)
    assert torch.equal(again[0], level)
    assert torch.equal(again[1], noise)
    other = noise_level_and_noise(module, batch, seed=1)
    assert not torch.equal(other[0], level)
    assert not torch.equal(other[1], noise)


# Fits on real files


def burgers_data(tmp_path, batch_size, repeat=False):
    sizes = {"num_points": POINTS, "reference_num_points": 64, "num_frames": 9, "num_train": 6}
    sizes |= {"num_validation": 3, "num_test": 2, "unroll_steps": 2, "samples_per_trajectory": 10}
    made = BurgersDataModule(
        cache_dir=str(tmp_path), **sizes, batch_size=batch_size, fixed_windows=repeat
    )
    made.prepare_data()
    made.setup()
    return made


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=tmp_path, **(quiet | options))


@pytest.mark.parametrize("cached", [None, "float32"])
def test_diffusion_fit_measures_the_residual_on_50_training_batches(tmp_path, cached):
    """60 windows in batches of one: the scale is that of the first 50."""
    simulator = toy_simulator()
    module = DiffusionModule(
        simulator, corrector=NETS | {"num_steps": 2}, projection_steps=2, latent_cache_dtype=cached
    )
    data = burgers_data(tmp_path, 1, repeat=cached is not None)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    run.fit(module, datamodule=data)
    loader = data.train_dataloader()
    batches = list(loader.sampler.iter_fixed_batches(loader.dataset))
    assert len(batches) == 60
    left, everywhere, certain = [], [], []
    for batch in batches[:50]:
        hand = steps_of(simulator, batch, 2)
        for pred, target, field, sure in zip(
            hand.pred, hand.target, hand.field, hand.confidence, strict=True
        ):
            left.append((target - pred)[:, :FREE])
            everywhere.append(field_error(simulator, pred, field, torch.ones(POINTS)))
            certain.append(field_error(simulator, pred, field, sure))
    left = torch.stack(left)
    assert len(left) == 100
    scale = [left[..., c].square().mean().sqrt().item() for c in range(FREE)]
    assert module.corrector.scale.tolist() == pytest.approx(scale, rel=1e-3)
    errors = [torch.stack(e).mean().item() for e in (everywhere, certain)]
    assert module.operator_errors.tolist() == pytest.approx(errors, rel=2e-3)
    all_60 = torch.stack([t - p for b in batches for t, p in zip(*pair(simulator, b), strict=True)])
    assert all_60[..., 0].square().mean().sqrt().item() != pytest.approx(scale[0], rel=1e-3)


def pair(simulator, batch):
    hand = steps_of(simulator, batch, 2)
    return hand.target, hand.pred


def test_diffusion_fit_keeps_earlier_measurements(tmp_path):
    module = diffusion_module()
    scale, errors = module.corrector.scale.clone(), module.operator_errors.clone()
    data = burgers_data(tmp_path, 6)
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    run.fit(module, datamodule=data)
    assert torch.equal(module.corrector.scale, scale)
    assert torch.equal(module.operator_errors, errors)


@pytest.mark.parametrize("stage", ["diffusion", "consistency"])
def test_stage_validates_corrected_rollouts_of_the_validation_split(tmp_path, stage):
    module = diffusion_module()
    simulator = module.simulator
    if stage == "consistency":
        module = ConsistencyModule(simulator)
        with torch.no_grad():
            module.corrector.denoiser.tokens_out.mul_(-1)  # so that the two differ
    data = burgers_data(tmp_path, 6)
    with torch.no_grad():
        (found,) = trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    batches = list(data.val_dataloader())
    torch.manual_seed(0)
    ratios = []
    for batch in batches:
        frames = batch.u.shape[1] - 1
        made = simulator.rollout(batch.u[:, 0], frames, nu=batch.parameters[:, 0], correct=stage)
        for b in range(len(batch)):
            for k in range(frames):
                truth = batch.u[b, k + 1]
                size = max(truth.square().mean().sqrt().item(), 0.01 * SCALE)
                ratios.append((made[b, k] - truth).square().mean().sqrt().item() / size)
    assert len(ratios) == 3 * 8
    assert found[f"validation/{stage}/nrmse"] == pytest.approx(np.mean(ratios), rel=1e-4)


@pytest.mark.parametrize("stage", ["diffusion", "consistency"])
def test_stage_optimizes_the_matrices_of_the_networks_that_it_trains(stage):
    module = diffusion_module(lr=0.017, weight_decay=0.23, betas=(0.7, 0.8), muon_momentum=0.6)
    corrector = module.corrector
    matrices = corrector.muon_parameters()
    others = list(corrector.parameters())
    if stage == "consistency":
        options = {"lr": 0.017, "weight_decay": 0.23, "betas": (0.7, 0.8), "muon_momentum": 0.6}
        module = ConsistencyModule(module.simulator, **options)
        matrices = module.corrector.denoiser.muon_parameters()
        others = list(module.corrector.denoiser.parameters())
    first, second = module.build_optimizer().param_groups
    assert {id(p) for p in first["params"]} == {id(p) for p in matrices}
    assert {id(p) for p in second["params"]} == {id(p) for p in others} - {id(p) for p in matrices}
    for group in (first, second):
        assert (group["lr"], group["weight_decay"]) == (0.017, 0.23)
        assert (tuple(group["betas"]), group["momentum"]) == ((0.7, 0.8), 0.6)


# The consistency stage


def consistency_module(steps=4):
    torch.manual_seed(0)
    simulator = toy_simulator()
    about = {"num_steps": steps, "sigma_min": 0.2, "sigma_max": 2.5, "rho": 3.0, "temperature": 0.7}
    awaken(simulator.add_corrector("diffusion", NETS | about))
    return ConsistencyModule(simulator, projection_steps=2)


def test_consistency_student_is_initialized_as_its_teacher():
    module = consistency_module()
    teacher = module.simulator.correctors["diffusion"]
    student = module.simulator.correctors["consistency"]
    assert student is not teacher
    assert student.spec == teacher.spec | {"sampler": "consistency", "num_steps": 1}
    for key, value in teacher.state_dict().items():
        assert torch.equal(student.state_dict()[key], value), key
    assert torch.equal(student.scale, torch.tensor([0.5, 3.0]))
    trained = {name for name, p in module.simulator.named_parameters() if p.requires_grad}
    noise = student.denoiser.named_parameters()
    assert trained == {f"correctors.consistency.denoiser.{name}" for name, _ in noise}


def test_consistency_draws_half_of_its_levels_at_the_top():
    """Level 0 with probability 1/2 + 1/2 * 1/4, each of the others 1/8; one for a whole batch."""
    module = consistency_module()
    batch = empty_batch(2, 2)
    count, rng = Counter(), torch.Generator().manual_seed(0)
    for _ in range(3000):
        level, noise = module.sample_noise(batch, rng)
        assert level.shape == (2,)
        assert level[0] == level[1]
        count[int(level[0])] += 1
    assert noise.shape == (2, 1, TOKENS, FREE)
    assert count.keys() == {0, 1, 2, 3}
    for level, expected in enumerate((5 / 8, 1 / 8, 1 / 8, 1 / 8)):
        spread = math.sqrt(expected * (1 - expected) / 3000)
        assert abs(count[level] / 3000 - expected) < 4.5 * spread, level


@pytest.mark.parametrize("level", [0, 1, 3])
def test_consistency_loss_equals_written_out_formula(level):
    module, batch = consistency_module(), windows()
    teacher, student = module.teacher, module.corrector
    with torch.no_grad():
        student.denoiser.tokens_out.mul_(-0.5)  # else student and teacher are one
        student.mean_network.tokens_out.zero_()  # which is the teacher's by rights, and not used
        student.scale.fill_(9.0)
    noise = noise_level_and_noise(module, batch)[1]
    found = module.compute_losses(batch, torch.full((3,), level), noise)
    levels = levels_of(4, 0.2, 2.5, 3.0)
    hand = steps_of(module.simulator, batch, 2)
    gaps = []
    for s in range(6):
        about = hand.state[s], hand.pred[s], torch.tensor(DT), hand.parameters[s]
        mean = mean_of(teacher, *about)
        residual = (hand.target[s] - hand.pred[s])[:, :FREE] / torch.tensor([0.5, 3.0])
        x = levels[level] * noise[s // 2, s % 2]
        if level > 0:
            x = x + residual - mean
        end = path_end(
            lambda x, t, m=mean, a=about: denoised(teacher, x, t, m, *a), x, levels[level:]
        )
        jumped = denoised(student, x, levels[level], mean, *about)
        gaps.append((jumped - end).square().mean())
    assert found["loss"].item() == pytest.approx(torch.stack(gaps).mean().item(), rel=1e-4)
    assert found["loss"] > 1e-3
    found["loss"].backward()
    expected = gradients_of_student(gaps, student)
    for p, g in zip(student.denoiser.parameters(), expected, strict=True):
        assert torch.allclose(p.grad, g, atol=1e-5, rtol=1e-3)
    others = [*teacher.parameters(), *student.mean_network.parameters()]
    assert all(p.grad is None for p in others)


def gradients_of_student(gaps, student):
    loss = torch.stack(gaps).mean()
    return torch.autograd.grad(loss, list(student.denoiser.parameters()))


# Training on a law that is known


@pytest.fixture(scope="module")
def trained():
    """Both stages, trained on a residual: the inputs tell one channel, the other is +1 or -1.

    The first channel is a sum of the signs of the state, of the predicted change and of log nu.
    """
    torch.manual_seed(0)
    simulator = toy_simulator(training_parameters=[[1e-4], [1e-2]])
    nets = {
        "mean_network": {"hidden_dim": 16, "depth": 1},
        "denoiser": {"hidden_dim": 24, "depth": 2},
    }
    about = {"num_steps": 8, "sigma_max": 5.0, "temperature": 1.0}
    module = DiffusionModule(simulator, corrector=nets | about, P_mean=-0.3, P_std=1.2)
    module.operator_errors.fill_(1.0)
    batch = empty_batch(64, 2)

    def law(count):
        a, b, c, d = (torch.where(torch.rand(count, 1, 1) < 0.5, 1.0, -1.0) for _ in range(4))
        state = a * (0.5 + torch.rand(count, TOKENS, WIDTH))
        change = 0.5 * b * (0.5 + torch.rand(count, TOKENS, WIDTH))
        parameters = 1e-3 * 10 ** c[:, 0]
        told = (a + 0.5 * b + 0.25 * c).expand(-1, TOKENS, 1)
        residual = torch.cat((told, d.expand(-1, TOKENS, 1)), -1)
        pred = state + change
        target = torch.cat((pred[..., :FREE] + residual, pred[..., FREE:]), -1)
        field = simulator.decode(target).detach()
        targets = ResidualTargets(state, pred, target, field, torch.ones_like(field), parameters)
        return targets, told

    def train(module, steps, lr):
        module.steps = lambda batch: law(len(batch))[0]
        rng = torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr)
        losses = []
        for _ in range(steps):
            loss = module.compute_losses(batch, *module.sample_noise(batch, rng))
            optimizer.zero_grad()
            loss["loss"].backward()
            optimizer.step()
            losses.append(loss)
        return losses

    losses = train(module, 350, 1e-2)
    student = ConsistencyModule(copy.deepcopy(simulator))
    train(student, 150, 3e-3)
    drawn, told = law(200)
    return SimpleNamespace(
        spec=simulator.spec,
        teacher=simulator.correctors["diffusion"],
        student=student.simulator.correctors["consistency"],
        losses=losses,
        law=drawn,
        told=told,
        noise=torch.randn(200, 1, TOKENS, FREE),
    )


def residuals(trained, corrector):
    law = trained.law
    with torch.no_grad():
        made = corrector.sample(*law.conditions(trained.spec), trained.noise)[:, 0]
    return (made - law.pred)[..., :FREE]


def test_trained_mean_is_what_state_change_and_parameter_determine(trained):
    mean = trained.teacher.predict_mean(*trained.law.conditions(trained.spec)).detach()
    assert (mean[..., :1] - trained.told).square().mean() < 0.02  # of a variance of 1.3
    assert mean[..., 1].square().mean() < 0.1


def test_trained_sampler_draws_both_peaks_and_the_determined_channel(trained):
    """A regression would answer 0 in the second channel, whatever the noise."""
    drawn = residuals(trained, trained.teacher)
    assert (drawn[..., :1] - trained.told).square().mean() < 0.05
    peaks = drawn[..., 1].mean(1)
    assert peaks.abs().mean().item() == pytest.approx(1, abs=0.2)
    assert 0.3 < (peaks > 0).float().mean().item() < 0.7


def test_trained_student_jumps_to_where_the_sampler_leads(trained):
    one = residuals(trained, trained.student)
    many = residuals(trained, trained.teacher)
    assert (one[..., :1] - trained.told).square().mean() < 0.05
    assert one[..., 1].abs().mean() > 0.6
    both = torch.stack((one[..., 1].flatten(), many[..., 1].flatten()))
    assert torch.corrcoef(both)[0, 1] > 0.8


# Steps and rollouts of a simulator with a corrector


class StandIn(nn.Module):
    """Stands for a corrector: keeps what ``sample`` was told."""

    num_dynamic_channels = FREE

    def __init__(self):
        super().__init__()
        self.calls = []

    def sample(self, z, pred, dt, parameters, noise, temperature=None, include_mean=False):
        told = {"z": z, "pred": pred, "dt": dt, "parameters": parameters, "noise": noise}
        told |= {"temperature": temperature, "include_mean": include_mean}
        self.calls.append(SimpleNamespace(**told))
        return pred[:, None].expand(-1, noise.shape[1] + include_mean, -1, -1)


@torch.no_grad()
def test_corrected_steps_give_the_corrector_everything():
    simulator, corrector = toy_simulator(), StandIn()
    z, _, _, parameters = states(4)
    Corrected(simulator, corrector).step(z, parameters)
    Corrected(simulator, corrector, 0.4, noise_group_size=2).propose(z, parameters, 5)
    Corrected(simulator, corrector).propose(z, parameters, 1)
    plain, many, only = corrector.calls
    for call in (plain, many, only):
        assert torch.equal(call.z, z)
        expected = simulator.model.step(z, torch.full((4,), DT), parameters)
        assert torch.equal(call.pred, expected)
        assert torch.equal(call.dt, torch.full((4,), DT))
        assert torch.equal(call.parameters, parameters)
    assert (plain.temperature, plain.include_mean) == (None, False)
    assert plain.noise.shape == (4, 1, TOKENS, FREE)
    assert plain.noise.unique().numel() == plain.noise.numel()
    assert (many.temperature, many.include_mean) == (0.4, True)
    assert many.noise.shape == (4, 4, TOKENS, FREE)
    assert torch.equal(many.noise[0], many.noise[1])
    assert torch.equal(many.noise[2], many.noise[3])
    assert many.noise.unique().numel() == many.noise.numel() // 2
    assert only.noise.shape == (4, 0, TOKENS, FREE)
    assert only.include_mean is True
    candidates = simulator.propose(z, parameters, 3)  # a step without a corrector has one outcome
    assert torch.equal(candidates, expected[:, None])


@torch.no_grad()
def test_corrected_encodes_and_decodes_as_its_stepper():
    simulator, u = toy_simulator(), windows().u[:, 0]
    corrected = Corrected(simulator, StandIn())
    z = corrected.encode(u, torch.ones(3, 1))
    assert torch.equal(z, simulator.encode(u))
    assert torch.equal(corrected.decode(z), simulator.decode(z))
    assert corrected.spec is simulator.spec
    assert corrected.num_dynamic_channels == FREE


def test_corrected_steps_draw_white_noise():
    simulator, corrector = toy_simulator(), StandIn()
    torch.manual_seed(0)
    z, parameters = torch.zeros(500, TOKENS, WIDTH), torch.ones(500, 1)
    Corrected(simulator, corrector).propose(z, parameters, 3)
    noise = corrector.calls[0].noise
    count = noise.numel()
    assert noise.shape == (500, 2, TOKENS, FREE)
    assert abs(noise.mean().item()) < 5 / math.sqrt(count)
    assert abs(noise.square().mean().item() - 1) < 5 * math.sqrt(2 / count)


def test_simulator_add_corrector_takes_its_sizes_from_the_model():
    simulator = toy_simulator()
    made = simulator.add_corrector("diffusion", NETS | {"hidden_dim": 98, "num_steps": 5})
    assert simulator.correctors["diffusion"] is made
    sizes = {name: size for name, size in SIZES.items() if name != "tokens"}
    assert {name: made.spec[name] for name in (*sizes, "num_steps")} == sizes | {"num_steps": 5}
    assert made.mean_network.blocks[0].window.shape == (TOKENS,)  # a ring


def test_corrector_mixes_tokens_where_its_model_has_them():
    spec = FieldSpec(Grid((8, 8), (1.0, 1.0)), ("w",), ("nu",), dt=0.05)
    model = build({"architecture": "mixer", "num_tokens": 16, "hidden_dim": WIDTH}, spec)
    simulator = Simulator(model, spec)
    corrector = simulator.add_corrector("diffusion", NETS)
    shapes = {m.shape for m in corrector.modules() if isinstance(m, AxisWindow)}
    assert shapes == {(4, 4)}
    u = torch.randn(2, 8, 8)
    frames = simulator.rollout(u, 2, parameters={"nu": 1e-3}, correct="diffusion")
    assert frames.shape == (2, 2, 8, 8)


@pytest.mark.parametrize("mode", ["latent", "physical"])
@pytest.mark.parametrize("correct", ["diffusion", "consistency"])
@pytest.mark.parametrize("temperature", [None, 1.3])
@torch.no_grad()
def test_corrected_rollout_equals_written_out_loop(mode, correct, temperature):
    module = consistency_module(steps=3)
    simulator = module.simulator
    simulator.correctors["consistency"].denoiser.tokens_out.mul_(-0.5)
    corrector = simulator.correctors[correct]
    batch = windows()
    torch.manual_seed(7)
    about = {
        "nu": batch.parameters[:, 0],
        "mode": mode,
        "correct": correct,
        "temperature": temperature,
    }
    made = simulator.rollout(batch.u[:, 0], 3, **about)
    torch.manual_seed(7)
    z = simulator.model.encode(batch.u[:, 0] / SCALE)
    used = 0.7 if temperature is None else temperature
    for k in range(3):
        noise = torch.randn(3, 1, TOKENS, FREE)
        pred = simulator.model.step(z, torch.full((3,), DT), batch.parameters)
        dt = torch.tensor(DT)
        z = torch.stack(
            [
                draw_of(corrector, z[b], pred[b], dt, batch.parameters[b], noise[b, 0], used)
                for b in range(3)
            ]
        )
        fields = SCALE * (z.flatten(1) @ simulator.model.out)[..., None]
        assert torch.allclose(made[:, k], fields, atol=1e-4, rtol=1e-4)
        if mode == "physical":
            z = simulator.model.encode(fields / SCALE)


# What the equations tell the correctors


def test_burgers_shock_weight_equals_written_out_formula():
    u = windows(3, 1).u[:, 0, :, 0]
    for jump, reach in ((0.03, 3), (0.5, 0), (0.2, 1), (0.2, 2)):
        expected = torch.stack([burgers_confidence(row, jump, reach) for row in u])
        assert torch.allclose(burgers.shock_weight(u, jump, reach), expected, atol=1e-6)
    expected = torch.stack([burgers_confidence(row) for row in u])
    assert torch.allclose(burgers.shock_weight(u), expected, atol=1e-6)


def test_advection_solver_step_shifts_by_speed_times_time():
    x = 2.5 * torch.arange(32, dtype=torch.float64) / 32
    wave = 2 * math.pi / 2.5
    u = torch.stack([torch.sin(wave * x) + 0.3 * torch.cos(3 * wave * x + 1)] * 2)
    nu = torch.tensor([0.4, 1.7], dtype=torch.float64)
    made = advection.solver_step(u, 0.3, nu, 2.5, refinement_factor=2)
    for b, speed in enumerate((0.4, 1.7)):
        at = x - 0.3 * speed
        expected = torch.sin(wave * at) + 0.3 * torch.cos(3 * wave * at + 1)
        assert torch.allclose(made[b], expected, atol=1e-12)
    assert torch.equal(advection.shock_weight(u, 0.03, 3), torch.ones_like(u))
