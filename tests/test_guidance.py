"""Test-time conditioning in numbers: rewards, certainty, steps, each against a second formula."""

import itertools
import math
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from helpers.toy import (
    DT,
    FREE,
    LENGTH,
    POINTS,
    SCALE,
    TOKENS,
    WIDTH,
    FieldStepper,
    burgers_confidence,
    descended,
)
from helpers.toy import toy_simulator as plain_simulator
from torch import nn

from ups.physics import advection, burgers
from ups.simulation.guidance import TTC, Guided

NAMES = itertools.count()


# What the tests are made of


class StandIn(nn.Module):
    """Stands for a corrector: its mean adds a known change, each of its draws another."""

    num_dynamic_channels = FREE

    def __init__(self):
        super().__init__()
        rng = torch.Generator().manual_seed(1)
        self.changes = 0.5 * torch.randn(8, TOKENS, WIDTH, generator=rng)
        self.changes[..., FREE:] = 0
        self.calls = []

    def sample(self, z, pred, dt, parameters, noise, temperature=None, include_mean=False):
        told = {"dt": dt, "parameters": parameters, "noise": noise, "temperature": temperature}
        self.calls.append(SimpleNamespace(**told, include_mean=include_mean))
        first = 0 if include_mean else 1
        return pred[:, None] + self.changes[first : noise.shape[1] + 1]


def toy_simulator(equation="burgers", corrected=True, **settings):
    simulator = plain_simulator(equation)
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
    calls = []

    def solver_step(u, dt, parameters, grid, refinement_factor):
        calls.append(
            SimpleNamespace(
                u=u,
                dt=dt,
                parameters=parameters,
                grid=grid,
                refinement_factor=refinement_factor,
            )
        )
        (length,) = grid.extent
        stepped = stub_advance(u[..., 0], dt, parameters[:, 0], length, refinement_factor)
        return stepped[..., None]

    def solver_confidence(u, grid, threshold, radius):
        return stub_certainty(u, threshold, radius)

    module = ModuleType(name)
    module.EQUATION = replace(
        burgers.EQUATION, name=name, solver_step=solver_step, solver_confidence=solver_confidence
    )
    monkeypatch.setitem(sys.modules, name, module)
    return SimpleNamespace(name=name, calls=calls)


def fields(count=4, seed=5):
    rng = torch.Generator().manual_seed(seed)
    x = 2 * math.pi * torch.arange(POINTS) / POINTS
    size = 0.5 + torch.rand(count, 1, generator=rng)
    return size * torch.sin(x + 6 * torch.rand(count, 1, generator=rng)) + 0.3


NU = torch.tensor([2e-3, 5e-4, 4e-3, 1e-3])


# The formulas, written out


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


def scored(v, expected, certainty):
    """Minus the residual of a step to v (X,)."""
    v, expected, certainty = (t.double() for t in (v, expected, certainty))
    gap = sum(
        (float(c) * (float(a) - float(e))) ** 2
        for a, e, c in zip(v, expected, certainty, strict=True)
    )
    return -gap / sum((float(c) * float(e)) ** 2 for e, c in zip(expected, certainty, strict=True))


def decoded(simulator, z):
    return SCALE * (z.flatten() @ simulator.model.out)


PHYSICS = {
    "stub": (stub_advance, stub_certainty),
    "burgers": (
        advanced,
        lambda u, jump, reach: torch.stack([burgers_confidence(r, jump, reach) for r in u]),
    ),
}


class ByHand:
    """Test-time conditioning of single trajectories, in loops."""

    def __init__(self, simulator, physics, corrected):
        self.simulator, self.settings = simulator, simulator.ttc
        self.advance, self.certainty = PHYSICS[physics]
        self.corrected = corrected
        self.scores, self.guided, self.chosen = [], [], []

    def step(self, z, dt, nu):
        return self.simulator.model.step(z[None], torch.tensor([dt]), nu[None, None])[0]

    def candidates(self, z, nu):
        """States, their scores, and the expected field."""
        s = self.settings
        pred = self.step(z, DT, nu)
        states = [pred]
        if self.corrected:
            changes = self.simulator.correctors["diffusion"].changes
            states = [pred + changes[m] for m in range(s.num_candidates)]
        u = decoded(self.simulator, z)
        expected = self.advance(u[None], DT, nu[None], LENGTH, s.refinement_factor)[0]
        certainty = self.certainty(expected[None], s.shock_threshold, s.shock_radius)[0]
        scores = [scored(decoded(self.simulator, v), expected, certainty) for v in states]
        return states, scores, expected

    def __call__(self, z, nu):
        s = self.settings
        states, scores, expected = self.candidates(z, nu)
        self.scores.append(scores)
        chosen = max(range(len(scores)), key=lambda m: scores[m])
        self.chosen.append(chosen)
        self.guided.append(scores[chosen] < -s.score_threshold)
        if not self.guided[-1]:
            return states[chosen]
        certainty = self.certainty(expected[None], s.shock_threshold, s.shock_radius)[0]
        steps, strength = s.guidance_steps, s.guidance_strength
        start = states[chosen][None]
        return descended(self.simulator, start, expected[None], steps, strength, certainty[None])[0]


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


def rewards(candidates, expected, certainty):
    """The reward (B, M) of candidates (B, M, X) or (B, M, X, C)."""
    if candidates.ndim == 3:
        candidates, expected = candidates[..., None], expected[..., None]
    stepper = FieldStepper(*candidates.shape[2:])
    guided = Guided(stepper, burgers.EQUATION, TTC())
    return guided.score(candidates, expected, certainty[..., None])


EXPECTED = torch.tensor([[2.0, 0.0, -2.0, 0.0]])
CERTAINTY = torch.tensor([[1.0, 0.5, 1.0, 0.0]])
CANDIDATES = torch.tensor([[[1.0, 3.0, 0.0, -4.0], [2.0, 1.0, 0.0, 1.0]]])
# (-1)^2 + 1.5^2 + 2^2 and 0.5^2 + 2^2 of 2^2 + 2^2
BY_HAND = [-7.25 / 8, -4.25 / 8]


def test_reward_equals_value_by_hand():
    found = rewards(CANDIDATES, EXPECTED, CERTAINTY)
    assert found.tolist() == [pytest.approx(BY_HAND, abs=1e-6)]


def test_reward_of_several_channels_is_the_mean_over_them():
    """A channel counts relative to its own size: a hundred times the field, the same reward."""
    zero = torch.zeros_like(CANDIDATES)
    candidates = torch.stack((CANDIDATES, 100 * CANDIDATES, zero), -1)
    expected = torch.stack((EXPECTED, 100 * EXPECTED, EXPECTED), -1)
    found = rewards(candidates, expected, CERTAINTY)
    assert found[0].tolist() == pytest.approx([(2 * value - 1) / 3 for value in BY_HAND], abs=1e-6)


def test_reward_of_each_trajectory_and_candidate_equals_loops():
    rng = torch.Generator().manual_seed(0)
    expected = torch.randn(3, POINTS, generator=rng)
    certainty = torch.rand(3, POINTS, generator=rng)
    size = torch.tensor([0.5, 1.0, 1.5, 2.0])[:, None]
    candidates = size * torch.randn(3, 4, POINTS, generator=rng)
    found = rewards(candidates, expected, certainty)
    assert found.shape == (3, 4)
    for b in range(3):
        for m in range(4):
            by_hand = scored(candidates[b, m], expected[b], certainty[b])
            assert found[b, m].item() == pytest.approx(by_hand, rel=1e-4, abs=1e-6)


def test_reward_of_the_expected_field_is_0_also_when_it_is_zero():
    zero = torch.zeros(1, 4)
    assert rewards(zero[:, None], zero, zero + 1).tolist() == [[0.0]]
    assert rewards(EXPECTED[:, None], EXPECTED, CERTAINTY).tolist() == [[0.0]]


def test_reward_decodes_the_candidates_of_all_trajectories():
    simulator, rng = toy_simulator(), torch.Generator().manual_seed(0)
    guided = Guided(simulator, simulator.equation, simulator.ttc)
    candidates = torch.randn(3, 5, TOKENS, WIDTH, generator=rng)
    expected, certainty = fields(3), torch.rand(3, POINTS, generator=rng)
    with torch.no_grad():
        found = guided.score(candidates, expected[..., None], certainty[..., None])
        for b in range(3):
            for m in range(5):
                v = decoded(simulator, candidates[b, m])
                by_hand = scored(v, expected[b], certainty[b])
                assert found[b, m].item() == pytest.approx(by_hand, rel=1e-4)


def test_prediction_is_the_equations_step_of_the_decoded_state():
    simulator = toy_simulator(refinement_factor=3, shock_threshold=0.4, shock_radius=1)
    guided = Guided(simulator, simulator.equation, simulator.ttc)
    state = torch.randn(4, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, confidence = guided.predict(state, NU[:, None])
        u = torch.stack([decoded(simulator, z) for z in state])
    by_hand = advanced(u, DT, NU, LENGTH, 3)
    assert expected.shape == confidence.shape == (4, POINTS, 1)
    assert torch.allclose(expected[..., 0], by_hand, atol=1e-5)
    trusted = torch.stack([burgers_confidence(field, 0.4, 1) for field in by_hand])
    assert torch.allclose(confidence[..., 0], trusted, atol=1e-4)


# Confidence


def step_field(size=1.0):
    """0, then ``size`` from point 6 to point 17 of 24: root mean square sqrt(1/2) size."""
    field = torch.zeros(1, 24)
    field[0, 6:18] = size
    return field


@pytest.mark.parametrize("reach", [0, 1, 3])
@pytest.mark.parametrize("size", [1.0, -40.0])
def test_shock_weight_falls_within_the_radius_of_a_jump_only(reach, size):
    found = burgers.shock_weight(step_field(size), 0.2, reach)[0]
    low = 1 / math.sqrt(1 + 2 / 0.2**2)
    near = {*range(5 - reach, 7 + reach), *range(17 - reach, 19 + reach)}
    for i in range(24):
        assert found[i].item() == pytest.approx(low if i in near else 1.0, rel=1e-5), i


def test_shock_weight_defaults_to_a_jump_of_3_per_cent_and_a_radius_of_3():
    found = burgers.shock_weight(step_field())[0]
    assert found.min().item() == pytest.approx(1 / math.sqrt(1 + 2 / 0.03**2), rel=1e-5)
    assert (found < 0.5).sum() == 2 * (2 + 2 * 3)


def test_shock_weight_is_a_half_where_a_jump_is_sqrt_3_times_its_scale():
    """A difference of d relative to the root mean square: 1 / sqrt(1 + 3) at d = sqrt(3) jump."""
    jump = math.sqrt(2) / math.sqrt(3)
    found = burgers.shock_weight(step_field(), jump, 0)[0]
    assert found[5].item() == pytest.approx(0.5)


def test_shock_weight_of_several_fields_equals_loops():
    u = fields()
    u[1, 3] += 2
    expected = torch.stack([burgers_confidence(row, 0.3, 2) for row in u])
    assert torch.allclose(burgers.shock_weight(u, 0.3, 2), expected, atol=1e-6)
    assert torch.equal(burgers.shock_weight(torch.zeros(1, 8)), torch.ones(1, 8))


# The equation's own step


@pytest.mark.parametrize("refine", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_burgers_solver_step_equals_solver_on_the_refined_grid(refine, dtype):
    u = torch.cat((fields(3), fields(2, seed=6))).to(dtype)
    nu = torch.tensor([1e-3, 0.1, 1e-3, 0.03, 0.1], dtype=torch.float64)
    made = burgers.solver_step(u, 0.11, nu, 1.5, refine)
    assert made.dtype == dtype
    expected = advanced(u, 0.11, nu, 1.5, refine)
    assert torch.allclose(made, expected, atol=1e-6 if dtype == torch.float32 else 1e-12)


def test_burgers_solver_step_defaults_to_length_1_and_4_times_finer():
    u, nu = fields(2).double(), torch.tensor([1e-3, 0.1], dtype=torch.float64)
    expected = advanced(u, 0.11, nu, 1.0, 4)
    assert torch.allclose(burgers.solver_step(u, 0.11, nu), expected, atol=1e-12)


def test_burgers_solver_step_nears_the_exact_solution():
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


def test_ttc_has_the_published_settings():
    assert vars(TTC()) == {
        "num_candidates": 1,
        "score_threshold": 0.0,
        "guidance_steps": 8,
        "guidance_strength": 1.0,
        "refinement_factor": 2,
        "shock_threshold": 0.03,
        "shock_radius": 3,
    }


def test_guided_asks_the_equation_with_the_current_field(stub):
    """What is integrated is the decoded state at hand, which no frame of the data is."""
    simulator, u0 = toy_simulator(stub.name, num_candidates=3, refinement_factor=7), fields()
    made = rolled(simulator, u0, 2)
    assert len(stub.calls) == 2
    encoded = (u0 / SCALE) @ simulator.model.into
    current = SCALE * encoded @ simulator.model.out, made[:, 0]
    for call, field in zip(stub.calls, current, strict=True):
        assert torch.allclose(call.u[..., 0], field, atol=1e-5)
        assert call.dt == pytest.approx(DT)
        assert torch.equal(call.parameters, NU[:, None])
        assert call.grid == simulator.spec.grid
        assert call.grid.extent == (LENGTH,)
        assert call.refinement_factor == 7


def test_guided_takes_the_mean_first_and_draws_for_the_rest():
    for count in (1, 5):
        simulator = toy_simulator(num_candidates=count)
        rolled(simulator, fields())
        (call,) = simulator.correctors["diffusion"].calls
        assert call.include_mean is True
        assert call.noise.shape == (4, count - 1, TOKENS, FREE)
        assert call.noise.unique().numel() == call.noise.numel()
        assert torch.equal(call.dt, torch.full((4,), DT))
        assert torch.equal(call.parameters, NU[:, None])


def test_guided_draws_at_the_temperature_of_the_rollout():
    simulator = toy_simulator(num_candidates=3)
    rolled(simulator, fields(), temperature=0.4)
    assert [call.temperature for call in simulator.correctors["diffusion"].calls] == [0.4]


def test_guided_draws_at_the_temperature_of_the_corrector_by_default():
    simulator = toy_simulator(num_candidates=3)
    rolled(simulator, fields())
    assert [call.temperature for call in simulator.correctors["diffusion"].calls] == [None]


def test_guided_draws_the_same_on_both_grids_of_a_field():
    """Fields asked for between grid points are rolled out on two grids: one solution, one noise."""
    simulator = toy_simulator(num_candidates=3)
    rolled(simulator, fields(2), x_out=torch.tensor([0.1, 0.77, 1.3]))
    (call,) = simulator.correctors["diffusion"].calls
    assert len(call.noise) == 4
    assert torch.equal(call.noise[::2], call.noise[1::2])


@pytest.mark.parametrize(
    ("group_size", "chosen"), [(2, [1.0, 3.0, 4.0, 6.0]), (1, [0.0, 3.0, 4.0, 6.0])]
)
def test_guided_chooses_one_candidate_for_all_grids_of_a_field(group_size, chosen):
    """The better one by the mean of both grids' scores, though each alone may prefer another."""
    stepper = SimpleNamespace(propose=lambda state, parameters, num_candidates: candidates)
    guided = Guided(stepper, burgers.EQUATION, TTC(guidance_steps=0), group_size)
    candidates = torch.arange(8.0).view(4, 2, 1, 1).expand(4, 2, TOKENS, WIDTH)
    scores = torch.tensor([[-1.0, -2.0], [-5.0, -3.0], [-1.0, -2.0], [-1.0, -3.0]])
    guided.predict = lambda state, parameters: (None, None)
    guided.score = lambda *arguments: scores
    stepped = guided.step(torch.zeros(4, TOKENS, WIDTH), NU[:, None])
    assert stepped[:, 0, 0].tolist() == chosen


# Each setting in a step, against loops


USUAL = {
    "num_candidates": 6,
    "refinement_factor": 5,
    "shock_threshold": 0.11,
    "shock_radius": 2,
    "guidance_steps": 3,
}
USUAL |= {"guidance_strength": 0.4}
CHANGES = [
    {},
    {"num_candidates": 1},
    {"num_candidates": 2},
    {"refinement_factor": 2},
    {"shock_threshold": 0.9},
    {"shock_radius": 30},
    {"guidance_steps": 0},
    {"guidance_steps": 1},
    {"guidance_strength": 1.0},
    {"guidance_strength": 0.0},
    {"score_threshold": 1e9},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_guided_step_equals_written_out_loops(stub, change):
    simulator, u0 = toy_simulator(stub.name, **(USUAL | change)), fields()
    expected, _ = by_hand(simulator, "stub", u0, 2)
    assert torch.allclose(rolled(simulator, u0, 2), expected, atol=2e-3, rtol=2e-3)


def test_guided_steps_differ_by_every_setting(stub):
    """The loops above would not see a setting that changes nothing."""
    u0, seen = fields(), []
    for change in CHANGES:
        simulator = toy_simulator(stub.name, **(USUAL | change))
        seen.append(by_hand(simulator, "stub", u0, 2)[0])
    unguided = [{"guidance_steps": 0}, {"guidance_strength": 0.0}, {"score_threshold": 1e9}]
    for (a, made), (b, other) in itertools.combinations(zip(CHANGES, seen, strict=True), 2):
        alike = a in unguided and b in unguided
        assert torch.allclose(made, other, atol=1e-3) == alike, (a, b)


def test_guided_step_takes_another_candidate_for_each_trajectory(stub):
    simulator, u0 = toy_simulator(stub.name, **USUAL | {"guidance_steps": 0}), fields()
    expected, hand = by_hand(simulator, "stub", u0, 1)
    assert len(set(hand.chosen)) > 1
    assert torch.allclose(rolled(simulator, u0), expected, atol=1e-5)


def test_guided_step_guides_those_below_the_threshold_only(stub):
    """The threshold lies between the trajectories' own best scores."""
    settings = USUAL | {"num_candidates": 3}
    u0 = fields()
    _, hand = by_hand(toy_simulator(stub.name, **settings), "stub", u0, 1)
    best = sorted(max(scores) for scores in hand.scores)
    settings["score_threshold"] = -(best[1] + best[2]) / 2
    simulator = toy_simulator(stub.name, **settings)
    expected, hand = by_hand(simulator, "stub", u0, 1)
    assert sorted(hand.guided) == [False, False, True, True]
    stub.calls.clear()
    assert torch.allclose(rolled(simulator, u0), expected, atol=1e-4, rtol=1e-4)
    assert [len(call.u) for call in stub.calls] == [4]
    assert hand.guided[:2] != [True, True]  # else the first rows could stand for the right ones


@torch.no_grad()
def test_guided_step_leaves_a_score_at_the_threshold_alone(stub):
    """At the threshold it is good enough, and guided if the threshold is any lower."""
    settings = USUAL | {"num_candidates": 1}
    simulator, parameters = toy_simulator(stub.name), NU[:1, None]
    corrected = simulator.stepper("diffusion")

    def guided(**changes):
        return Guided(corrected, simulator.equation, TTC(**settings | changes))

    z = corrected.encode(fields(1)[..., None], parameters)
    (candidate,) = corrected.propose(z, parameters, 1)
    score = guided().score(candidate[None], *guided().predict(z, parameters)).item()
    assert score < 0
    assert torch.equal(guided(score_threshold=-score).step(z, parameters), candidate)
    moved = guided(score_threshold=-0.999 * score).step(z, parameters)
    assert not torch.allclose(moved, candidate, atol=1e-4)
    first = simulator.model.step(z, torch.full((1,), DT), parameters)
    first = first + simulator.correctors["diffusion"].changes[0]
    assert torch.equal(candidate, first)


def test_guided_step_without_guidance_keeps_a_candidate_exactly(stub):
    for change in ({"guidance_steps": 0}, {"guidance_strength": 0.0}):
        simulator, u0 = toy_simulator(stub.name, **USUAL | change), fields()
        z = (u0 / SCALE @ simulator.model.into).view(4, TOKENS, WIDTH)
        pred = simulator.model.step(z, torch.full((4,), DT), NU[:, None])
        made = rolled(simulator, u0)[:, 0]
        for b in range(4):
            candidates = pred[b] + simulator.correctors["diffusion"].changes[:6]
            gaps = (SCALE * candidates.flatten(1) @ simulator.model.out - made[b]).abs().amax(1)
            assert gaps.min() < 1e-5


def test_guided_step_without_a_corrector_has_one_candidate(stub):
    simulator, u0 = toy_simulator(stub.name, **USUAL), fields()
    expected, _ = by_hand(simulator, "stub", u0, 2, corrected=False)
    found = rolled(simulator, u0, 2, correct="none")
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert simulator.correctors["diffusion"].calls == []
    assert len(stub.calls) == 2


# Rollouts with an equation


@pytest.mark.parametrize("mode", ["latent", "physical"])
@pytest.mark.parametrize(
    "settings", [{}, {"refinement_factor": 3, "shock_threshold": 0.4, "shock_radius": 1}], ids=str
)
def test_guided_rollout_of_the_operator_equals_written_out_loop(mode, settings):
    """The operator's step, guided towards the equation's, by the default settings and by others."""
    simulator, u0 = toy_simulator(corrected=False, **settings), fields()
    expected, hand = by_hand(simulator, "burgers", u0, 3, corrected=False, mode=mode)
    assert all(hand.guided)
    found = rolled(simulator, u0, 3, correct="none", mode=mode)
    assert torch.allclose(found, expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_guided_rollout_of_advection_nears_the_shifted_field():
    """Where the equation is certain, many steps lead as near to it as tokens can come."""
    simulator = toy_simulator("advection", corrected=False, guidance_steps=400)
    u0 = fields()
    found = rolled(simulator, u0, 1, correct="none")[:, 0]
    z = (u0 / SCALE @ simulator.model.into).view(4, TOKENS, WIDTH)
    start = SCALE * z.flatten(1) @ simulator.model.out
    expected = advection.exact(start[:1], [DT], NU[0].item(), LENGTH)[0, 0]
    pred = simulator.model.step(z[:1], torch.full((1,), DT), NU[:1, None])[0]
    free = torch.arange(TOKENS * WIDTH) % WIDTH < FREE
    matrix = SCALE * simulator.model.out
    fixed = pred.flatten()[~free] @ matrix[~free]
    best = torch.linalg.lstsq(matrix[free].T, (expected - fixed)[:, None]).solution[:, 0]
    assert torch.allclose(found[0], fixed + best @ matrix[free], atol=2e-2)
    assert (found[0] - pred.flatten() @ matrix).abs().max() > 0.1
