"""Test-time conditioning: rewards know better from worse, guidance follows the equation."""

import pytest
import torch
from conftest import make_simulator

from ups.core.errors import UpsError
from ups.physics import burgers
from ups.simulation.guidance import TERMS, TTC, GuidedStepper, score

NU = torch.full((4,), 0.001)
NETS = {"mean": {"width": 16, "depth": 1}, "noise": {"width": 16, "depth": 1}, "steps": 2}


def pair(points=128):
    u0 = burgers.initial_conditions(4, burgers.cell_centers(1024), seed=3)
    u = burgers.solve(u0, [0.0, 0.05], 0.001)[..., :: 1024 // points]
    return u[:, 0], u[:, 1]


def simulator(noise=0.3):
    sim = make_simulator().eval()
    corrector = sim.add_corrector("diffusion", NETS)
    with torch.no_grad():
        corrector.noise_network.tokens_out.normal_(std=noise)
    return sim


def test_each_term_is_zero_for_the_truth_and_negative_for_its_own_fault():
    u, v = pair()
    x = burgers.cell_centers(128)
    faults = {
        "residual": v + 0.1 * torch.sin(2 * torch.pi * x),
        "mass": v + 0.1,
        "maximum": 2 * v,
        "variation": v + 0.2 * (-1.0) ** torch.arange(128),
        "energy": 1.5 * v,
        "halving": v + 0.1,
    }
    assert faults.keys() == set(TERMS)
    expected, certainty = burgers.solver_step(u, 0.05, NU), burgers.shock_weight(v)
    for term, fault in faults.items():
        good, bad = score(
            burgers, u, torch.stack((v, fault), 1), expected, certainty, {term: 1.0}, halves=v
        ).unbind(1)
        assert (bad < -1e-3).all(), term
        assert (good > -1e-2).all(), term
        assert (good > 4 * bad).all(), term
        assert torch.equal(
            score(burgers, u, fault[:, None], expected, certainty, {term: 0.0}), torch.zeros(4, 1)
        )


def test_the_equation_leads_where_the_reference_solution_goes_and_knows_where_it_does_not():
    u, v = pair(256)
    assert torch.allclose(burgers.residual(u, v, 0.05, NU), v - burgers.solver_step(u, 0.05, NU))
    from_smooth = (burgers.residual(u, v, 0.05, NU).square().mean(-1) / v.square().mean(-1)).sqrt()
    assert from_smooth.median() < 0.01
    late = burgers.solve(
        burgers.initial_conditions(8, burgers.cell_centers(1024), seed=3), [0.3, 0.35], 0.001
    )[..., ::4]  # shocks now
    gap = burgers.residual(late[:, 0], late[:, 1], 0.05, torch.full((8,), 0.001)).square()
    certainty = burgers.shock_weight(late[:, 1])
    assert certainty.min() < 0.1
    assert certainty.max() > 0.9
    assert gap[certainty > 0.9].mean() < 0.01 * gap[certainty < 0.1].mean()


def test_several_viscosities_in_one_batch():
    u, _ = pair()
    nu = torch.tensor([0.001, 0.1, 0.001, 0.1])
    both = burgers.solver_step(u, 0.05, nu)
    assert torch.allclose(
        both[1:2], burgers.solver_step(u[1:2], 0.05, nu[1:2]), atol=2e-3
    )  # other steps, by the fastest wave
    assert not torch.allclose(both, burgers.solver_step(u, 0.05, NU), atol=1e-3)


def test_the_best_candidate_is_kept():
    sim, (u, _) = simulator(), pair(32)
    sim.ttc = TTC(candidates=8, guidance_steps=0)
    conditioner, z = GuidedStepper(sim, NU, "diffusion"), sim.encode(u).detach()
    with torch.no_grad():
        torch.manual_seed(0)
        candidates, scores, _ = conditioner.propose(z)
        assert scores.std(1).min() > 0
        torch.manual_seed(0)
        assert torch.equal(conditioner(z), candidates[torch.arange(4), scores.argmax(1)])


def test_guidance_lowers_the_residual():
    sim, (u, _) = simulator(), pair(32)
    residuals = []
    for steps in (0, 1, 8):
        sim.ttc = TTC(guidance_steps=steps)
        v = sim.rollout(u, 1, nu=0.001, ttc=True)[:, 0]
        expected = burgers.solver_step(
            sim.decode(sim.encode(u)).detach(), 0.05, NU, refine=sim.ttc.refine
        )
        residuals.append((burgers.shock_weight(expected) * (v - expected)).square().sum(-1))
    assert (residuals[1] < residuals[0]).all()
    assert (residuals[2] < 0.7 * residuals[0]).all()


def test_a_trajectory_within_the_tolerance_is_left_alone():
    sim, (u, _) = simulator(), pair(32)
    sim.ttc = TTC(tolerance=1e9)
    assert torch.allclose(
        sim.rollout(u, 2, nu=0.001, ttc=True), sim.rollout(u, 2, nu=0.001), atol=1e-6
    )


def test_an_unknown_term_is_refused():
    with pytest.raises(UpsError, match=r"ttc\.weights\.charm: allowed are residual, mass"):
        TTC(weights={"charm": 1.0})


def test_the_configuration_holds_the_same_defaults():
    from dataclasses import asdict

    import yaml

    from ups.run import CONF

    with open(f"{CONF}/ttc/default.yaml") as file:
        options = yaml.safe_load(file)
    assert options.pop("enabled") is True
    weights = {term: weight for term, weight in options.pop("weights").items() if weight}
    assert {**options, "weights": weights} == asdict(TTC())


def test_conditioning_keeps_mass():
    sim, (u, _) = simulator(), pair(32)
    v = sim.rollout(u, 3, nu=0.001, correct="diffusion", ttc=True)
    assert (v.mean(-1) - u.mean(-1, keepdim=True)).abs().max() < 1e-6 * v.abs().max()
