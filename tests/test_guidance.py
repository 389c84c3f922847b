"""Test-time conditioning in numbers: rewards, certainty, steps, each against a second formula."""

import itertools
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from ups.physics import advection, burgers
from ups.simulation.guidance import TTC, GuidedStepper, score
from ups.simulation.simulator import Simulator

TOKENS, WIDTH, FREE, POINTS = 4, 3, 2, 16
DT, LENGTH, SCALE = 0.07, 2.0, 0.6
NAMES = itertools.count()


# What the tests are made of


class ToyModel(nn.Module):
    """A model of two matrices, so that every number can be computed by hand."""

    tokens, width, free = TOKENS, WIDTH, FREE

    def __init__(self):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        flat = TOKENS * WIDTH
        self.into = nn.Parameter(0.3 * torch.randn(POINTS, flat, generator=rng))
        self.out = nn.Parameter(0.5 * torch.randn(flat, POINTS, generator=rng))

    def encode(self, u):
        return (u[..., 0] @ self.into).unflatten(1, (TOKENS, WIDTH))

    def step(self, z, dt, nu):
        speed = dt[:, None, None] * (1 + (nu / 1e-3).log()[:, None, None])
        moved = z + speed * torch.tanh(z.roll(1, 1) + 0.5)
        return torch.cat((moved[..., :FREE], z[..., FREE:]), -1)

    def decode(self, z):
        return (z.flatten(1) @ self.out)[..., None]


class StandIn(nn.Module):
    """Stands for a corrector: its mean adds a known change, each of its draws another."""

    free = FREE

    def __init__(self):
        super().__init__()
        rng = torch.Generator().manual_seed(1)
        self.changes = 0.5 * torch.randn(8, TOKENS, WIDTH, generator=rng)
        self.changes[..., FREE:] = 0
        self.calls = []

    def sample(self, z, pred, dt, nu, noise, temperature=None, mean_first=False):
        told = {"dt": dt, "nu": nu, "noise": noise, "temperature": temperature}
        self.calls.append(SimpleNamespace(**told, mean_first=mean_first))
        first = 0 if mean_first else 1
        return pred[:, None] + self.changes[first : noise.shape[1] + 1]


def toy_simulator(equation="burgers", corrected=True, **settings):
    x = burgers.cell_centers(POINTS, LENGTH)
    simulator = Simulator(ToyModel(), x, dt=DT, length=LENGTH, scale=SCALE, equation=equation)
    if corrected:
        simulator.correctors["diffusion"] = StandIn()
    simulator.ttc = TTC(**settings)
    return simulator.eval()


def stub_advance(u, dt, nu, length=1.0, refine=4):
    """No physics, but a number that every argument changes in its own way."""
    faster = (nu / 1e-3).log()[:, None]
    return (1 - dt) * u.roll(1, -1) + 0.1 * faster * u.roll(2, -1) + 0.05 * length + 0.02 * refine


def stub_certainty(u, jump=0.03, reach=3):
    return 1 / (1 + 10 * jump * u.square() + 0.1 * reach)


@pytest.fixture
def stub(monkeypatch):
    """The name of an equation of one's own, and what its functions were called with."""
    name = f"stub_equation_{next(NAMES)}"
    module = ModuleType(name)
    for key, value in vars(burgers).items():
        if not key.startswith("__"):
            setattr(module, key, value)
    calls = []

    def advance(u, dt, nu, length=1.0, refine=4):
        calls.append(SimpleNamespace(u=u, dt=dt, nu=nu, length=length, refine=refine))
        return stub_advance(u, dt, nu, length, refine)

    module.solver_step, module.shock_weight = advance, stub_certainty
    monkeypatch.setitem(sys.modules, name, module)
    return SimpleNamespace(name=name, calls=calls)


def fields(count=4, seed=5):
    rng = torch.Generator().manual_seed(seed)
    x = 2 * math.pi * torch.arange(POINTS) / POINTS
    size = 0.5 + torch.rand(count, 1, generator=rng)
    return size * torch.sin(x + 6 * torch.rand(count, 1, generator=rng)) + 0.3


NU = torch.tensor([2e-3, 5e-4, 4e-3, 1e-3])


# The formulas, written out


def trusted(field, jump=0.03, reach=3):
    """The certainty of Burgers' equation for one field, point by point."""
    n = len(field)
    rms = math.sqrt(sum(float(v) ** 2 for v in field) / n)
    made = []
    for i in range(n):
        near = range(i - reach - 1, i + reach + 1)
        largest = max(abs(float(field[(j + 1) % n]) - float(field[j % n])) for j in near)
        made.append(1 / math.sqrt(1 + (largest / rms / jump) ** 2))
    return torch.tensor(made, dtype=field.dtype)


def advanced(u, dt, nu, length, refine):
    """Fields one dt on by the solver, on lines between points; one nu at a time."""
    made = torch.empty_like(u)
    for value in sorted({float(v) for v in nu}):
        rows = [b for b in range(len(u)) if float(nu[b]) == value]
        fine = torch.zeros(len(rows), u.shape[1] * refine, dtype=u.dtype)
        for r, b in enumerate(rows):
            for i in range(u.shape[1]):
                a, c = u[b, i], u[b, (i + 1) % u.shape[1]]
                for j in range(refine):
                    fine[r, i * refine + j] = a + (c - a) * j / refine
        solved = burgers.solve(fine, [dt], value, length, dtype=u.dtype)[:, 0]
        for r, b in enumerate(rows):
            made[b] = torch.stack([solved[r, i * refine] for i in range(u.shape[1])])
    return made


def wrong(term, u, v, expected, certainty, halves):
    """What is wrong with a step from u to v (X,), by one term."""
    n = len(u)
    u, v, expected, certainty = (t.double() for t in (u, v, expected, certainty))
    size = float((expected**2).mean())
    if term == "residual":
        return float(
            ((certainty * (v - expected)) ** 2).sum() / ((certainty * expected) ** 2).sum()
        )
    if term == "mass":
        return float((v.sum() / n - u.sum() / n) ** 2) / size
    if term == "maximum":
        high, low = float(u.max()), float(u.min())
        beyond = [max(0.0, float(w) - high) + max(0.0, low - float(w)) for w in v]
        return sum(b**2 for b in beyond) / n / size
    if term == "variation":
        total = [sum(abs(float(t[(i + 1) % n] - t[i])) for i in range(n)) for t in (u, v)]
        return max(0.0, total[1] / total[0] - 1)
    if term == "energy":
        total = [sum(float(w) ** 2 for w in t) for t in (u, v)]
        return max(0.0, total[1] / total[0] - 1)
    assert term == "halving"
    return sum((float(a) - float(b)) ** 2 for a, b in zip(v, halves, strict=True)) / n / size


def scored(u, v, expected, certainty, weights, halves=None):
    return -sum(w * wrong(t, u, v, expected, certainty, halves) for t, w in weights.items() if w)


def decoded(simulator, z):
    return SCALE * (z.flatten() @ simulator.model.out)


def descended(simulator, z, field, steps, strength, weight):
    """Exact steepest descent of one state's weighted squared distance from a field."""
    matrix = SCALE * simulator.model.out
    free = torch.zeros(TOKENS, WIDTH)
    free[:, :FREE] = 1
    flat, free = z.flatten().clone(), free.flatten()
    for _ in range(steps):
        gap = weight * (flat @ matrix - field)
        slope = free * (matrix @ (weight * gap))
        change = weight * (slope @ matrix)
        flat = flat - strength * (gap @ change) / (change @ change) * slope
    return flat.view(TOKENS, WIDTH)


PHYSICS = {
    "stub": (stub_advance, stub_certainty),
    "burgers": (advanced, lambda u, jump, reach: torch.stack([trusted(r, jump, reach) for r in u])),
}


class ByHand:
    """Test-time conditioning of single trajectories, in loops."""

    def __init__(self, simulator, physics, corrected):
        self.simulator, self.settings = simulator, simulator.ttc
        self.advance, self.certainty = PHYSICS[physics]
        self.corrected = corrected
        self.scores, self.guided, self.chosen = [], [], []

    def step(self, z, dt, nu):
        return self.simulator.model.step(z[None], torch.tensor([dt]), nu[None])[0]

    def candidates(self, z, nu):
        """States, their scores, and the expected field."""
        s = self.settings
        pred = self.step(z, DT, nu)
        states = [pred]
        if self.corrected:
            changes = self.simulator.correctors["diffusion"].changes
            states = [pred + changes[m] for m in range(s.candidates)]
        u = decoded(self.simulator, z)
        expected = self.advance(u[None], DT, nu[None], LENGTH, s.refine)[0]
        certainty = self.certainty(expected[None], s.jump, s.reach)[0]
        halves = decoded(self.simulator, self.step(self.step(z, DT / 2, nu), DT / 2, nu))
        scores = [
            scored(u, decoded(self.simulator, v), expected, certainty, s.weights, halves)
            for v in states
        ]
        return states, scores, expected

    def __call__(self, z, nu):
        s = self.settings
        states, scores, expected = self.candidates(z, nu)
        self.scores.append(scores)
        chosen = max(range(len(scores)), key=lambda m: scores[m])
        self.chosen.append(chosen)
        self.guided.append(scores[chosen] < -s.tolerance)
        if not self.guided[-1]:
            return states[chosen]
        certainty = self.certainty(expected[None], s.jump, s.reach)[0]
        steps, strength = s.guidance_steps, s.guidance_strength
        return descended(self.simulator, states[chosen], expected, steps, strength, certainty)


@torch.no_grad()
def by_hand(simulator, physics, u0, steps, corrected=True, mode="latent"):
    """A conditioned rollout (B, steps, X) in loops, and the steps' own account."""
    hand = ByHand(simulator, physics, corrected)
    made = []
    for b in range(len(u0)):
        z, frames = (u0[b] / SCALE @ simulator.model.into).view(TOKENS, WIDTH), []
        for _ in range(steps):
            z = hand(z, NU[b])
            frames.append(decoded(simulator, z))
            if mode == "physical":
                z = (frames[-1] / SCALE @ simulator.model.into).view(TOKENS, WIDTH)
        made.append(torch.stack(frames))
    return torch.stack(made), hand


def rolled(simulator, u0, steps=1, correct="diffusion", **options):
    nu = NU[: len(u0)]
    return simulator.rollout(u0, steps, nu=nu, correct=correct, ttc=True, **options)


# The reward


U = torch.tensor([[0.0, 2.0, 0.0, -2.0]])  # variation 8, mean square 2, mean 0
EXPECTED = torch.tensor([[2.0, 0.0, -2.0, 0.0]])  # mean square 2
CERTAINTY = torch.tensor([[1.0, 0.5, 1.0, 0.0]])
HALVES = torch.tensor([[1.0, 2.0, 0.0, -2.0]])
LARGE = [1.0, 3.0, 0.0, -4.0]  # 1 above, 2 below; variation 14, mean square 6.5, mean 0
SMALL = [2.0, 1.0, 0.0, 1.0]  # variation 4, mean square 1.5, mean 1
BY_HAND = {
    "residual": (-7.25 / 8, -4.25 / 8),  # (-1)^2 + 1.5^2 + 2^2 and 0.5^2 + 2^2 of 2^2 + 2^2
    "mass": (0.0, -1 / 2),
    "maximum": (-(1 + 4) / 4 / 2, 0.0),
    "variation": (-(14 / 8 - 1), 0.0),
    "energy": (-(6.5 / 2 - 1), 0.0),
    "halving": (-(1 + 4) / 4 / 2, -(1 + 1 + 9) / 4 / 2),
}


def two(weights, **options):
    candidates = torch.tensor([[LARGE, SMALL]])
    return score(burgers, U, candidates, EXPECTED, CERTAINTY, weights, **options)


@pytest.mark.parametrize("term", BY_HAND)
def test_reward_term_equals_value_by_hand(term):
    assert two({term: 1.0}, halves=HALVES)[0].tolist() == pytest.approx(BY_HAND[term], abs=1e-6)
    assert two({term: 3.0}, halves=HALVES)[0, 0].item() == pytest.approx(
        3 * BY_HAND[term][0], abs=1e-6
    )


def test_reward_sums_its_terms_by_weight():
    weights = dict(zip(BY_HAND, (0.3, 1.7, 2.9, 0.11, 5.3, 0.7), strict=True))
    for candidate in (0, 1):
        expected = sum(weights[term] * BY_HAND[term][candidate] for term in BY_HAND)
        found = two(weights, halves=HALVES)[0, candidate].item()
        assert found == pytest.approx(expected, rel=1e-6)


def test_reward_needs_no_halves_for_a_weight_of_0():
    assert two({"halving": 0.0, "mass": 1.0})[0].tolist() == pytest.approx([0.0, -0.5])
    assert torch.equal(two({}), torch.zeros(1, 2))


@pytest.mark.parametrize("term", BY_HAND)
def test_reward_of_each_trajectory_and_candidate_equals_loops(term):
    rng = torch.Generator().manual_seed(0)
    u, expected, halves = torch.randn(3, 3, POINTS, generator=rng)
    certainty = torch.rand(3, POINTS, generator=rng)
    size = torch.tensor([0.5, 1.0, 1.5, 2.0])[:, None]
    candidates = size * torch.randn(3, 4, POINTS, generator=rng)
    found = score(burgers, u, candidates, expected, certainty, {term: 0.7}, halves)
    assert found.shape == (3, 4)
    for b in range(3):
        for m in range(4):
            arguments = u[b], candidates[b, m], expected[b], certainty[b], {term: 0.7}, halves[b]
            assert found[b, m].item() == pytest.approx(scored(*arguments), rel=1e-4, abs=1e-6)


def test_reward_of_fields_that_stay_nothing_is_0():
    zero = torch.zeros(1, 4)
    weights = dict.fromkeys(BY_HAND, 1.0)
    found = score(burgers, zero, zero[:, None], zero, torch.ones(1, 4), weights, zero)
    assert found.tolist() == [[0.0]]
    constant = torch.full((1, 4), 0.5)  # its variation is 0
    found = score(burgers, constant, constant[:, None], constant, zero + 1, weights, constant)
    assert found.tolist() == [[0.0]]


# Certainty


def step_field(size=1.0):
    """0, then ``size`` from point 6 to point 17 of 24: root mean square sqrt(1/2) size."""
    field = torch.zeros(1, 24)
    field[0, 6:18] = size
    return field


@pytest.mark.parametrize("reach", [0, 1, 3])
@pytest.mark.parametrize("size", [1.0, -40.0])
def test_certainty_falls_within_reach_of_a_jump_only(reach, size):
    found = burgers.shock_weight(step_field(size), 0.2, reach)[0]
    low = 1 / math.sqrt(1 + 2 / 0.2**2)
    near = {*range(5 - reach, 7 + reach), *range(17 - reach, 19 + reach)}
    for i in range(24):
        assert found[i].item() == pytest.approx(low if i in near else 1.0, rel=1e-5), i


def test_certainty_by_default_is_a_jump_of_3_per_cent_and_a_reach_of_3():
    found = burgers.shock_weight(step_field())[0]
    assert found.min().item() == pytest.approx(1 / math.sqrt(1 + 2 / 0.03**2), rel=1e-5)
    assert (found < 0.5).sum() == 2 * (2 + 2 * 3)


def test_certainty_is_a_half_where_a_jump_is_sqrt_3_times_its_scale():
    """A difference of d relative to the root mean square: 1 / sqrt(1 + 3) at d = sqrt(3) jump."""
    jump = math.sqrt(2) / math.sqrt(3)
    found = burgers.shock_weight(step_field(), jump, 0)[0]
    assert found[5].item() == pytest.approx(0.5)


def test_certainty_of_several_fields_equals_loops():
    u = fields()
    u[1, 3] += 2
    expected = torch.stack([trusted(row, 0.3, 2) for row in u])
    assert torch.allclose(burgers.shock_weight(u, 0.3, 2), expected, atol=1e-6)
    assert torch.equal(burgers.shock_weight(torch.zeros(1, 8)), torch.ones(1, 8))


# The equation's own step


@pytest.mark.parametrize("refine", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_burgers_advance_equals_solver_on_the_refined_grid(refine, dtype):
    u = torch.cat((fields(3), fields(2, seed=6))).to(dtype)
    nu = torch.tensor([1e-3, 0.1, 1e-3, 0.03, 0.1], dtype=torch.float64)
    made = burgers.solver_step(u, 0.11, nu, 1.5, refine)
    assert made.dtype == dtype
    expected = advanced(u, 0.11, nu, 1.5, refine)
    assert torch.allclose(made, expected, atol=1e-6 if dtype == torch.float32 else 1e-12)


def test_burgers_advance_defaults_to_length_1_and_4_times_finer():
    u, nu = fields(2).double(), torch.tensor([1e-3, 0.1], dtype=torch.float64)
    expected = advanced(u, 0.11, nu, 1.0, 4)
    assert torch.allclose(burgers.solver_step(u, 0.11, nu), expected, atol=1e-12)


def test_burgers_advance_nears_the_exact_solution():
    x = 2.0 * torch.arange(64, dtype=torch.float64) / 64
    u = torch.sin(math.pi * x)[None] + 0.4
    made = burgers.solver_step(u, 0.2, torch.tensor([0.05], dtype=torch.float64), 2.0, 8)
    exact = burgers.cole_hopf(u, [0.2], 0.05, 2.0)[:, 0]
    assert (made - exact).abs().max() < 3e-3
    assert (u - exact).abs().max() > 0.3


def test_burgers_residual_is_the_step_minus_the_expected_one():
    u, v = fields(2).double(), fields(2, seed=7).double()
    nu = torch.tensor([1e-3, 0.1], dtype=torch.float64)
    found = burgers.residual(u, v, 0.11, nu, 1.5, 3)
    assert torch.allclose(found, v - advanced(u, 0.11, nu, 1.5, 3), atol=1e-12)
    found = burgers.residual(u, v, 0.11, nu)
    assert torch.allclose(found, v - advanced(u, 0.11, nu, 1.0, 4), atol=1e-12)


# Settings


def test_ttc_published_settings():
    assert vars(TTC()) == {
        "candidates": 1,
        "tolerance": 0.0,
        "guidance_steps": 8,
        "guidance_strength": 1.0,
        "refine": 2,
        "jump": 0.03,
        "reach": 3,
        "weights": {"residual": 1.0},
    }


def test_ttc_asks_the_equation_with_the_current_field(stub):
    """What is integrated is the decoded state at hand, which no frame of the data is."""
    simulator, u0 = toy_simulator(stub.name, candidates=3, refine=7), fields()
    made = rolled(simulator, u0, 2)
    assert len(stub.calls) == 2
    encoded = (u0 / SCALE) @ simulator.model.into
    current = SCALE * encoded @ simulator.model.out, made[:, 0]
    for call, field in zip(stub.calls, current, strict=True):
        assert torch.allclose(call.u, field, atol=1e-5)
        assert call.dt == pytest.approx(DT)
        assert torch.equal(call.nu, NU)
        assert call.length == LENGTH
        assert call.refine == 7


def test_ttc_takes_the_mean_first_and_draws_for_the_rest():
    for count in (1, 5):
        simulator = toy_simulator(candidates=count)
        rolled(simulator, fields())
        (call,) = simulator.correctors["diffusion"].calls
        assert call.mean_first is True
        assert call.noise.shape == (4, count - 1, TOKENS, FREE)
        assert call.noise.unique().numel() == call.noise.numel()
        assert torch.equal(call.dt, torch.full((4,), DT))
        assert torch.equal(call.nu, NU)


def test_ttc_draws_at_the_temperature_of_the_rollout():
    simulator = toy_simulator(candidates=3)
    rolled(simulator, fields(), temperature=0.4)
    assert [call.temperature for call in simulator.correctors["diffusion"].calls] == [0.4]


def test_ttc_draws_at_the_correctors_temperature_by_default():
    simulator = toy_simulator(candidates=3)
    rolled(simulator, fields())
    assert [call.temperature for call in simulator.correctors["diffusion"].calls] == [None]


def test_ttc_draws_the_same_on_both_grids_of_a_field():
    """Fields asked for between grid points are rolled out on two grids: one solution, one noise."""
    simulator = toy_simulator(candidates=3)
    rolled(simulator, fields(2), x_out=torch.tensor([0.1, 0.77, 1.3]))
    (call,) = simulator.correctors["diffusion"].calls
    assert len(call.noise) == 4
    assert torch.equal(call.noise[::2], call.noise[1::2])


def test_ttc_chooses_one_candidate_for_both_grids_of_a_field():
    """The better one by the mean of both grids' scores, though each alone may prefer another."""
    simulator = toy_simulator(candidates=2, guidance_steps=0)
    conditioner = GuidedStepper(simulator, NU, "diffusion", alike=2)
    candidates = torch.arange(8.0).view(4, 2, 1, 1).expand(4, 2, TOKENS, WIDTH)
    scores = torch.tensor([[-1.0, -2.0], [-5.0, -3.0], [-1.0, -2.0], [-1.0, -3.0]])
    conditioner.propose = lambda z: (candidates, scores, None)
    chosen = conditioner(torch.zeros(4, TOKENS, WIDTH))
    assert chosen[:, 0, 0].tolist() == [1.0, 3.0, 4.0, 6.0]


# Each setting in a step, against loops


USUAL = {"candidates": 6, "refine": 5, "jump": 0.11, "reach": 2, "guidance_steps": 3}
USUAL |= {"guidance_strength": 0.4, "weights": {"residual": 0.7, "halving": 2.0}}
CHANGES = [
    {},
    {"candidates": 1},
    {"candidates": 2},
    {"refine": 2},
    {"jump": 0.9},
    {"reach": 30},
    {"guidance_steps": 0},
    {"guidance_steps": 1},
    {"guidance_strength": 1.0},
    {"guidance_strength": 0.0},
    {"weights": {"residual": 1.0}},
    {"weights": {"halving": 1.0}},
    {"weights": {"maximum": 1.0, "energy": 0.2}},
    {"weights": {"mass": 1.0, "variation": 0.3, "residual": 0.0}},
    {"weights": {}},
    {"tolerance": 1e9},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_conditioned_step_equals_written_out_loops(stub, change):
    simulator, u0 = toy_simulator(stub.name, **(USUAL | change)), fields()
    expected, _ = by_hand(simulator, "stub", u0, 2)
    assert torch.allclose(rolled(simulator, u0, 2), expected, atol=2e-3, rtol=2e-3)


def test_conditioned_steps_differ_by_every_setting(stub):
    """The loops above would not see a setting that changes nothing."""
    u0, seen = fields(), []
    for change in CHANGES:
        simulator = toy_simulator(stub.name, **(USUAL | change))
        seen.append(by_hand(simulator, "stub", u0, 2)[0])
    unguided = [{"guidance_steps": 0}, {"guidance_strength": 0.0}, {"tolerance": 1e9}]
    for (a, made), (b, other) in itertools.combinations(zip(CHANGES, seen, strict=True), 2):
        alike = a in unguided and b in unguided
        assert torch.allclose(made, other, atol=1e-3) == alike, (a, b)


def test_conditioned_step_takes_another_candidate_for_each_trajectory(stub):
    simulator, u0 = toy_simulator(stub.name, **USUAL | {"guidance_steps": 0}), fields()
    expected, hand = by_hand(simulator, "stub", u0, 1)
    assert len(set(hand.chosen)) > 1
    assert torch.allclose(rolled(simulator, u0), expected, atol=1e-5)


def test_conditioned_step_guides_those_below_the_tolerance_only(stub):
    """The tolerance stands between the trajectories' own best scores."""
    settings = USUAL | {"candidates": 3}
    u0 = fields()
    _, hand = by_hand(toy_simulator(stub.name, **settings), "stub", u0, 1)
    best = sorted(max(scores) for scores in hand.scores)
    settings["tolerance"] = -(best[1] + best[2]) / 2
    simulator = toy_simulator(stub.name, **settings)
    expected, hand = by_hand(simulator, "stub", u0, 1)
    assert sorted(hand.guided) == [False, False, True, True]
    stub.calls.clear()
    assert torch.allclose(rolled(simulator, u0), expected, atol=1e-4, rtol=1e-4)
    assert [len(call.u) for call in stub.calls] == [4]
    assert hand.guided[:2] != [True, True]  # else the first rows could stand for the right ones


def test_conditioned_step_leaves_a_score_at_the_tolerance_alone(stub):
    """Without weights all score 0: the first, the corrector's mean, is taken as it is."""
    simulator, u0 = toy_simulator(stub.name, **USUAL | {"weights": {}}), fields()
    z = (u0 / SCALE @ simulator.model.into).view(4, TOKENS, WIDTH)
    first = simulator.model.step(z, torch.full((4,), DT), NU)
    first = first + simulator.correctors["diffusion"].changes[0]
    expected = SCALE * first.flatten(1) @ simulator.model.out
    assert torch.allclose(rolled(simulator, u0)[:, 0], expected, atol=1e-5)
    assert len(stub.calls) == 1


def test_conditioned_step_without_guidance_keeps_a_candidate_exactly(stub):
    for change in ({"guidance_steps": 0}, {"guidance_strength": 0.0}):
        simulator, u0 = toy_simulator(stub.name, **USUAL | change), fields()
        z = (u0 / SCALE @ simulator.model.into).view(4, TOKENS, WIDTH)
        pred = simulator.model.step(z, torch.full((4,), DT), NU)
        made = rolled(simulator, u0)[:, 0]
        for b in range(4):
            candidates = pred[b] + simulator.correctors["diffusion"].changes[:6]
            gaps = (SCALE * candidates.flatten(1) @ simulator.model.out - made[b]).abs().amax(1)
            assert gaps.min() < 1e-5


def test_conditioned_step_without_a_corrector_has_one_candidate(stub):
    simulator, u0 = toy_simulator(stub.name, **USUAL), fields()
    expected, _ = by_hand(simulator, "stub", u0, 2, corrected=False)
    found = rolled(simulator, u0, 2, correct="none")
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert simulator.correctors["diffusion"].calls == []
    assert len(stub.calls) == 2


# Rollouts with an equation


@pytest.mark.parametrize("mode", ["latent", "physical"])
@pytest.mark.parametrize("settings", [{}, {"refine": 3, "jump": 0.4, "reach": 1}], ids=str)
def test_conditioned_rollout_of_the_operator_equals_written_out_loop(mode, settings):
    """The operator's step, guided towards the equation's, by the default settings and by others."""
    simulator, u0 = toy_simulator(corrected=False, **settings), fields()
    expected, hand = by_hand(simulator, "burgers", u0, 3, corrected=False, mode=mode)
    assert all(hand.guided)
    found = rolled(simulator, u0, 3, correct="none", mode=mode)
    assert torch.allclose(found, expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_conditioned_rollout_of_advection_nears_the_shifted_field():
    """Where the equation is certain, many steps lead as near to it as tokens can come."""
    simulator = toy_simulator("advection", corrected=False, guidance_steps=400)
    u0 = fields()
    found = rolled(simulator, u0, 1, correct="none")[:, 0]
    z = (u0 / SCALE @ simulator.model.into).view(4, TOKENS, WIDTH)
    start = SCALE * z.flatten(1) @ simulator.model.out
    expected = advection.exact(start[:1], [DT], NU[0].item(), LENGTH)[0, 0]
    pred = simulator.model.step(z[:1], torch.full((1,), DT), NU[:1])[0]
    free = torch.arange(TOKENS * WIDTH) % WIDTH < FREE
    matrix = SCALE * simulator.model.out
    fixed = pred.flatten()[~free] @ matrix[~free]
    best = torch.linalg.lstsq(matrix[free].T, (expected - fixed)[:, None]).solution[:, 0]
    assert torch.allclose(found[0], fixed + best @ matrix[free], atol=2e-2)
    assert (found[0] - pred.flatten() @ matrix).abs().max() > 0.1
