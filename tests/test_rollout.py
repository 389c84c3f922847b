"""Simulator: shapes, positions, modes, refusals, and the equivariance that the model claims."""

import pytest
import torch
from conftest import SPEC, make_simulator

import ups
from ups.core.errors import UpsError
from ups.models import build
from ups.models.interpolation import interpolate

NU = 0.001


def fields(n=3, points=32, seed=0):
    return ups.physics.burgers.initial_conditions(n, ups.physics.burgers.cell_centers(points), seed)


def test_shapes_and_stream(simulator):
    u0 = fields()
    u = simulator.rollout(u0, 4, nu=NU)
    assert u.shape == (3, 4, 32)
    assert u.dtype == torch.float32
    assert simulator.rollout(u0[0], 2, nu=NU).shape == (1, 2, 32)
    assert torch.allclose(simulator.rollout(u0[:1], 4, nu=NU), u[:1], atol=1e-5)
    frames = simulator.stream(u0, 4, nu=NU)
    assert torch.equal(next(frames), u[:, 0])
    assert not u.requires_grad


def test_latent_mode_encodes_once_and_physical_mode_at_every_step(simulator):
    u0, nu = fields(), torch.full((3,), NU)
    latent, physical = (
        simulator.rollout(u0, 3, nu=NU),
        simulator.rollout(u0, 3, nu=NU, mode="physical"),
    )
    z = simulator.encode(u0)
    for k in range(3):
        z = simulator.step(z, nu)
        assert torch.allclose(simulator.decode(z), latent[:, k], atol=1e-6)
    u = u0
    for k in range(3):
        u = simulator.rollout(u, 1, nu=NU)[:, 0]
        assert torch.allclose(u, physical[:, k], atol=1e-6)
    assert not torch.allclose(latent[:, 2], physical[:, 2], atol=1e-3)


def test_a_shifted_input_gives_the_shifted_output(simulator):
    u0 = fields()
    width = 32 // SPEC["tokens"]  # exact for whole tokens
    for mode in ("latent", "physical"):
        u = simulator.rollout(u0, 3, nu=NU, mode=mode)
        moved = simulator.rollout(u0.roll(3 * width, -1), 3, nu=NU, mode=mode)
        assert torch.allclose(moved, u.roll(3 * width, -1), atol=1e-5)


def test_viscosity_and_step_reach_the_model(simulator):
    u0 = fields()
    assert not torch.allclose(
        simulator.rollout(u0, 2, nu=NU), simulator.rollout(u0, 2, nu=0.01), atol=1e-4
    )
    each = torch.tensor([0.001, 0.01, 0.1])
    assert torch.allclose(
        simulator.rollout(u0, 2, nu=each)[1], simulator.rollout(u0, 2, nu=0.01)[1], atol=1e-5
    )


def test_a_viscosity_beyond_those_trained_for_is_told(caplog):
    simulator = make_simulator().eval()
    simulator.rollout(fields(), 1, nu=5.0)
    assert not caplog.records  # it doesn't know what it was trained for
    simulator.nus = (0.001, 0.01)
    for nu, words in ((0.001, 0), (0.01, 0), (0.004, 0), (0.02, 1)):
        caplog.clear()
        simulator.rollout(fields(), 1, nu=nu)
        assert len(caplog.records) == words
    assert "trained for 0.001, 0.01 only" in caplog.text


def test_any_points_in_any_order(simulator):
    u0 = fields()
    order = torch.randperm(32)
    u = simulator.rollout(u0, 3, nu=NU)
    assert torch.allclose(
        simulator.rollout(u0[:, order], 3, nu=NU, x=simulator.x[order]), u, atol=1e-5
    )
    assert torch.equal(simulator.rollout(u0, 3, nu=NU, x_out=simulator.x[order]), u[..., order])
    fine = (torch.arange(1024) + 0.5) / 1024
    assert simulator.rollout(fields(points=1024), 2, nu=NU, x=fine, x_out=torch.rand(77)).shape == (
        3,
        2,
        77,
    )
    assert simulator.rollout(
        u0[:, :1], 2, nu=NU, x=torch.tensor([0.3]), x_out=torch.tensor([0.0])
    ).shape == (3, 2, 1)


@pytest.mark.parametrize("mode", ["latent", "physical"])
def test_between_the_grids_points_stands_the_rollout_of_the_shifted_field(simulator, mode):
    u0, between = fields(), simulator.x + 0.5 / 32
    shifted = simulator.rollout(interpolate(u0, simulator.x, between % 1, 1.0), 3, nu=NU, mode=mode)
    assert torch.allclose(
        simulator.rollout(u0, 3, nu=NU, mode=mode, x_out=between % 1), shifted, atol=1e-6
    )
    both = simulator.rollout(u0, 3, nu=NU, mode=mode, x_out=torch.cat((simulator.x, between % 1)))
    assert torch.allclose(
        both, torch.cat((simulator.rollout(u0, 3, nu=NU, mode=mode), shifted), -1), atol=1e-6
    )


def test_fields_between_the_grids_points_are_as_accurate_as_on_it():
    sim, fine = ups.load("burgers-small"), ups.physics.burgers.cell_centers(1024)
    u0 = ups.physics.burgers.initial_conditions(8, fine, 5)
    truth = ups.physics.burgers.solve(u0, [sim.dt * k for k in range(1, 41)], NU)

    def error(pred, target):
        return ups.evaluation.metrics.pdebench_metrics(pred, target)["nrmse"]

    own, on_grid = u0[:, ::4], truth[:, :, ::4]
    at_fine = error(sim.rollout(own, 40, nu=NU, x_out=fine), truth)
    assert at_fine < 1.2 * error(sim.rollout(own, 40, nu=NU), on_grid)


def test_interpolation_is_periodic_accurate_and_does_not_overshoot():
    def error(points):  # of a sine at uneven points
        torch.manual_seed(0)
        x = ((torch.arange(points) + 0.6 * torch.rand(points)) / points).double()[
            torch.randperm(points)
        ]
        query = torch.rand(500, dtype=torch.float64)
        return (
            (
                interpolate((2 * torch.pi * x).sin()[None], x, query, 1.0)
                - (2 * torch.pi * query).sin()
            )
            .abs()
            .max()
        )

    assert error(64) < 2e-3
    assert error(64) / error(256) > 4**1.8
    x = (torch.arange(16) + 0.5) / 16
    step = (x > 0.5).float()[None]
    between = interpolate(step, x, torch.rand(500), 1.0)
    assert between.min() >= 0
    assert between.max() <= 1 + 1e-6
    one = interpolate(
        torch.tensor([[2.0]]), torch.tensor([0.3]), torch.tensor([0.0, 0.3, 0.9]), 1.0
    )
    assert torch.equal(one, torch.full((1, 3), 2.0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"u0": torch.zeros(3, 31)}, r"\(B, 32\)"),
        ({"u0": torch.full((3, 32), torch.nan)}, "finite"),
        ({"steps": 0}, "steps=0"),
        ({"mode": "both"}, "latent, physical"),
        ({"correct": "magic"}, "none, diffusion, consistency"),
        ({"nu": 0.0}, "positive"),
        ({"x": torch.linspace(0, 1, 32)}, r"\[0, 1\)"),
        ({"x_out": torch.tensor([-0.1])}, r"\[0, 1\)"),
        (
            {"correct": "diffusion"},
            "no such corrector, its stage has not been trained; allowed are none",
        ),
    ],
)
def test_refusals_are_sentences(simulator, change, words):
    arguments = {"u0": fields(), "steps": 2, "nu": NU, **change}
    with pytest.raises(UpsError, match=words):
        simulator.rollout(**arguments)


def test_save_and_load(simulator, tmp_path):
    state = {f"simulator.{k}": v for k, v in simulator.state_dict().items()}
    path = tmp_path / "checkpoints" / "operator.ckpt"
    path.parent.mkdir()
    torch.save({"simulator": simulator.config(), "state_dict": state}, path)
    for where in (path, tmp_path):
        again = ups.load(where)
        assert isinstance(again, ups.Simulator)
        assert not again.training
        assert torch.equal(again.rollout(fields(), 2, nu=NU), simulator.rollout(fields(), 2, nu=NU))


def test_load_refuses_what_is_not_a_checkpoint(simulator, tmp_path):
    with pytest.raises(UpsError, match="neither"):
        ups.load(tmp_path / "nothing")
    with pytest.raises(UpsError, match="has not finished"):
        ups.load(tmp_path)
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UpsError, match="not a checkpoint of UPS"):
        ups.load(path)
    other = make_simulator(width=24)
    state = {f"simulator.{k}": v for k, v in other.state_dict().items()}
    torch.save({"simulator": simulator.config(), "state_dict": state}, path)
    with pytest.raises(UpsError, match="keys differ"):
        ups.load(path)


def test_a_checkpoint_cannot_name_code_to_run(tmp_path):
    with pytest.raises(UpsError, match="allowed are upt"):
        build({"architecture": "os.system"}, 32)
    with pytest.raises(UpsError, match=r"model\.depth"):
        build({**SPEC, "depth": 3}, 32)
    with pytest.raises(UpsError, match="multiple of tokens"):
        build({**SPEC, "tokens": 5}, 32)


def test_mass_is_kept_to_round_off(simulator):
    u0 = fields(8) + 0.2
    for mode in ("latent", "physical"):
        u = simulator.rollout(u0, 10, nu=NU, mode=mode)
        assert (u.mean(-1) - u0.mean(-1, keepdim=True)).abs().max() < 1e-6
    free = make_simulator(conserve=False).rollout(u0, 10, nu=NU)
    assert (free.mean(-1) - u0.mean(-1, keepdim=True)).abs().max() > 1e-3
