"""Test-time conditioning: the reward knows better from worse, guidance follows the equation."""

from dataclasses import asdict

import pytest
import torch
import yaml
from conftest import make_simulator
from helpers.toy import FieldStepper

from ups.core.stepper import predict
from ups.physics import burgers
from ups.run import CONF
from ups.simulation.corrected import Corrected
from ups.simulation.guidance import TTC, Guided

NU = torch.full((4,), 0.001)
PARAMETERS = NU[:, None]
NETS = {
    "mean_network": {"hidden_dim": 16, "depth": 1},
    "denoiser": {"hidden_dim": 16, "depth": 1},
    "num_steps": 2,
}


def pair(points=128):
    """Fields without a mean, so that no frame moves."""
    u0 = burgers.initial_conditions(4, burgers.cell_centers(1024), seed=3)
    u0 -= u0.mean(1, keepdim=True)
    u = burgers.solve(u0, [0.0, 0.05], 0.001)[..., :: 1024 // points]
    return u[:, 0], u[:, 1]


def simulator(noise=0.3):
    sim = make_simulator().eval()
    corrector = sim.add_corrector("diffusion", NETS)
    with torch.no_grad():
        corrector.denoiser.tokens_out.normal_(std=noise)
    return sim


def test_reward_is_near_zero_for_the_truth_and_negative_for_a_fault():
    u, v = pair()
    x = burgers.cell_centers(128)
    expected, confidence = burgers.solver_step(u, 0.05, NU), burgers.shock_weight(v)
    guided = Guided(FieldStepper(128), burgers.EQUATION, TTC())
    faults = {
        "residual": v + 0.1 * torch.sin(2 * torch.pi * x),
        "mass": v + 0.1,
        "maximum principle": 2 * v,
        "total variation": v + 0.2 * (-1.0) ** torch.arange(128),
        "energy": 1.5 * v,
        "nothing happens": u,
    }
    for name, fault in faults.items():
        candidates = torch.stack((v, fault), 1)[..., None]
        good, bad = guided.score(candidates, expected[..., None], confidence[..., None]).unbind(1)
        assert (bad < -1e-3).all(), name
        assert (good > -1e-2).all(), name
        assert (good > 4 * bad).all(), name


def test_solver_step_nears_the_reference_solution_where_shock_weight_trusts_it():
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


def test_solver_step_takes_several_viscosities_in_one_batch():
    u, _ = pair()
    nu = torch.tensor([0.001, 0.1, 0.001, 0.1])
    both = burgers.solver_step(u, 0.05, nu)
    assert torch.equal(both[1:2], burgers.solver_step(u[1:2], 0.05, nu[1:2]))
    assert not torch.allclose(both, burgers.solver_step(u, 0.05, NU), atol=1e-3)


def test_guided_keeps_the_best_candidate():
    sim, (u, _) = simulator(), pair(32)
    sim.ttc = TTC(num_candidates=8, guidance_steps=0)
    guided = sim.stepper("diffusion", ttc=True)
    z = sim.encode(u[..., None]).detach()
    with torch.no_grad():
        torch.manual_seed(0)
        candidates = guided.stepper.propose(z, PARAMETERS, 8)
        scores = guided.score(candidates, *guided.predict(z, PARAMETERS))
        assert candidates.shape[:2] == scores.shape == (4, 8)
        assert scores.std(1).min() > 0
        torch.manual_seed(0)
        best = candidates[torch.arange(4), scores.argmax(1)]
        assert torch.equal(guided.step(z, PARAMETERS), best)


@pytest.mark.parametrize("mode", ["latent", "physical"])
@pytest.mark.parametrize("temperature", [None, 1.0])
def test_guided_of_corrected_composes_as_rollout_does(mode, temperature):
    sim, (u, _) = simulator(), pair(32)
    sim.ttc = TTC(num_candidates=3, guidance_steps=2)
    options = {"correct": "diffusion", "mode": mode, "temperature": temperature}
    torch.manual_seed(0)
    u_hat = sim.rollout(u, 3, nu=0.001, ttc=True, **options)
    corrected = Corrected(sim, sim.correctors["diffusion"], temperature)
    guided = Guided(corrected, burgers.EQUATION, sim.ttc)
    for stepper in (guided, sim.stepper("diffusion", True, temperature)):
        torch.manual_seed(0)
        frames = predict(stepper, u[..., None], 3, PARAMETERS, reencode=mode == "physical")
        assert torch.equal(frames[..., 0], u_hat)
    torch.manual_seed(0)
    frames = predict(corrected, u[..., None], 3, PARAMETERS, reencode=mode == "physical")[..., 0]
    torch.manual_seed(0)
    assert torch.equal(frames, sim.rollout(u, 3, nu=0.001, **options))
    assert not torch.allclose(frames, u_hat, atol=1e-3)


def test_guidance_steps_lower_the_residual():
    sim, (u, _) = simulator(), pair(32)
    residuals = []
    for steps in (0, 1, 8):
        sim.ttc = TTC(guidance_steps=steps)
        v = sim.rollout(u, 1, nu=0.001, ttc=True)[:, 0]
        expected = burgers.solver_step(
            sim.decode(sim.encode(u[..., None])).detach()[..., 0],
            0.05,
            NU,
            refinement_factor=sim.ttc.refinement_factor,
        )
        residuals.append((burgers.shock_weight(expected) * (v - expected)).square().sum(-1))
    assert (residuals[1] < residuals[0]).all()
    assert (residuals[2] < 0.7 * residuals[0]).all()


def test_guided_rollout_equals_plain_one_when_the_score_is_within_the_threshold():
    sim, (u, _) = simulator(), pair(32)
    sim.ttc = TTC(score_threshold=1e9)
    assert torch.allclose(
        sim.rollout(u, 2, nu=0.001, ttc=True), sim.rollout(u, 2, nu=0.001), atol=1e-6
    )


def test_ttc_defaults_equal_configuration():
    with open(f"{CONF}/ttc/default.yaml") as file:
        options = yaml.safe_load(file)
    assert options.pop("enabled") is True
    assert options == asdict(TTC())


def test_guided_rollout_keeps_mass():
    sim, (u, _) = simulator(), pair(32)
    v = sim.rollout(u, 3, nu=0.001, correct="diffusion", ttc=True)
    assert (v.mean(-1) - u.mean(-1, keepdim=True)).abs().max() < 1e-6 * v.abs().max()
