"""The Navier-Stokes solver: exact solutions, orders, laws, symmetries, and its data."""

import json
import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from helpers.commands import run_python
from helpers.killing import WITH_KILLER, call_killed

import ups
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.evaluation.baselines import coarse_solvers
from ups.evaluation.metrics import PhysicsChecks
from ups.models import build
from ups.modules.losses import operator_errors
from ups.physics import compilation
from ups.physics import navier_stokes as ns
from ups.simulation.checkpoint import check_data

EQUATION = ns.EQUATION


def error(a, b):
    return ((a - b).norm() / b.norm()).item()


def initial(n, points, seed=3):
    return ns.initial_conditions(n, points, seed).double()


def positions(points):
    return torch.arange(points, dtype=torch.float64) / points


def test_initial_conditions_have_the_published_distribution():
    w = ns.initial_conditions(400, 64, 0).double()
    assert w.mean((1, 2)).abs().max() < 1e-6
    k = torch.fft.fftfreq(64, 1 / 64)
    square = 4 * math.pi**2 * (k[:, None] ** 2 + k**2)
    power = torch.fft.fft2(w, norm="forward").abs().square().mean(0)
    expected = 2 * 7.0**3 * (square + 49) ** -2.5  # twice the covariance: as the published code
    expected[0, 0] = 0
    for low, high in ((0.5, 1.5), (1.5, 3.5), (3.5, 8.5), (8.5, 25.0)):
        shell = (k[:, None] ** 2 + k**2).sqrt()
        inside = (low <= shell) & (shell < high)
        assert power[inside].sum().item() == pytest.approx(expected[inside].sum().item(), rel=0.1)
    assert w.square().mean().sqrt().item() == pytest.approx(0.262, rel=0.05)


def test_initial_conditions_are_the_same_on_every_grid_and_at_given_positions():
    coarse, fine = (ns.initial_conditions(2, points, 5) for points in (128, 256))
    assert torch.allclose(fine[:, ::2, ::2], coarse, atol=1e-5)
    assert torch.equal(ns.initial_conditions(2, positions(64), 5), ns.initial_conditions(2, 64, 5))
    shifted = ns.initial_conditions(2, positions(64) + 1 / 64, 5)
    assert torch.allclose(
        shifted, ns.initial_conditions(2, 64, 5).roll((-1, -1), (1, 2)), atol=1e-5
    )
    assert not torch.equal(fine[0], fine[1])


@pytest.mark.parametrize("nu", [0.0, 1e-3, 0.1])
def test_taylor_green_vortices_decay_exactly(nu):
    x = 2 * math.pi * positions(24)
    w0 = torch.sin(x)[:, None] * torch.sin(2 * x) + torch.cos(2 * x)[:, None] * torch.cos(x)
    frames = ns.solve(w0, [0.0, 0.7, 1.5], nu, force=torch.zeros(24, 24))
    decay = torch.exp(-5 * nu * (2 * math.pi) ** 2 * torch.tensor([0.0, 0.7, 1.5]))
    assert torch.allclose(frames[0], decay[:, None, None] * w0, atol=1e-12)


def test_forced_flow_tends_to_the_exact_steady_one():
    """f has one wave number, so w = f / (nu k^2) is steady: advection along it is zero."""
    steady = ns.forcing(*torch.meshgrid(positions(16), positions(16), indexing="ij"))
    steady = steady / (0.1 * 8 * math.pi**2)
    assert torch.allclose(ns.solve(steady, [3.0], 0.1)[0, 0], steady, atol=1e-14)
    from_rest = ns.solve(torch.zeros(16, 16, dtype=torch.float64), [0.02, 3.0], 0.1)[0]
    assert torch.allclose(from_rest[1], steady, atol=1e-9)
    share = 1 - math.exp(-0.1 * 8 * math.pi**2 * 0.02)
    assert torch.allclose(from_rest[0], share * steady, rtol=1e-6)


def test_solution_satisfies_the_equation_in_its_other_form():
    """w_t + u w_x + v w_y = nu lap w + f, with derivatives of another kind than the solver's."""
    w0, h, nu = initial(1, 64), 1e-3, 2e-3
    start = ns.solve(w0, [1.0], nu)[:, 0]
    before, now, after = ns.solve(start, [0.0, h, 2 * h], nu)[0]
    u, v = ns.velocity(now).unbind(-1)
    kx, ky = ns.wave_numbers((64, 64))
    w_hat = torch.fft.rfft2(now)
    w_x, w_y, laplacian = (
        torch.fft.irfft2(factor * w_hat) for factor in (1j * kx, 1j * ky, -(kx**2 + ky**2))
    )
    x = positions(64)
    right = nu * laplacian + ns.forcing(x[:, None], x) - u * w_x - v * w_y
    assert error((after - before) / (2 * h), right) < 2e-4


def test_order_in_time_is_four_and_errors_in_space_fall_fast():
    w0 = initial(2, 32)
    reference = ns.solve(w0, [1.0], 1e-3, cfl=0.02)
    errors = [error(ns.solve(w0, [1.0], 1e-3, cfl=cfl), reference) for cfl in (0.8, 0.4, 0.2)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(3.5 < order < 5 for order in orders)
    fine = ns.solve(initial(2, 96), [1.0], 3e-3)
    coarse = [
        error(
            ns.solve(initial(2, points), [1.0], 3e-3), fine[..., :: 96 // points, :: 96 // points]
        )
        for points in (16, 24, 32)
    ]
    assert coarse[0] > 8 * coarse[1] > 32 * coarse[2]


def test_each_field_takes_its_own_steps():
    w0 = initial(3, 32) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1)
    nu = torch.tensor([1e-3, 2e-3, 5e-3])
    together = ns.solve(w0, [0.5, 1.0], nu)
    alone = [ns.solve(w0[i], [0.5, 1.0], nu[i].item()) for i in range(3)]
    assert torch.allclose(together, torch.cat(alone), rtol=0, atol=1e-13)


def test_result_does_not_depend_on_which_frames_are_asked_for():
    w0 = initial(1, 32)
    assert torch.equal(ns.solve(w0, [0.0], 1e-3)[:, 0], w0)
    few = ns.solve(w0, [2.0], 1e-3)
    many = ns.solve(w0, [0.3, 1.0, 2.0], 1e-3)
    assert error(many[:, -1:], few) < 1e-5
    single = ns.solve(w0.float(), [2.0], 1e-3, dtype=torch.float32)
    assert single.dtype == torch.float32
    assert error(single.double(), few) < 1e-4


def test_rectangles_of_points_give_the_same_flow():
    square, oblong = initial(1, 48), initial(1, 48)[:, :, ::2]
    nu = 5e-3
    frames = ns.solve(oblong, [1.0], nu)
    assert frames.shape == (1, 1, 48, 24)
    assert error(frames, ns.solve(square, [1.0], nu)[..., ::2]) < 3e-3


@pytest.mark.parametrize("points", range(4, 130))
def test_waves_from_a_third_of_the_points_on_are_removed(points):
    waves = torch.fft.fftfreq(points, 1 / points).round().long().abs()
    half = torch.arange(points // 2 + 1)
    expected = (3 * waves[:, None] < points) & (3 * half < points)
    assert torch.equal(ns.is_kept((points, points)), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("space", [(16, 16), (12, 30), (33, 17), (64, 64)])
def test_compiled_solver_equals_that_in_torch(monkeypatch, space, dtype):
    x, y = space
    w0 = initial(5, max(space))[:, :x, :y].contiguous()
    w0[1] *= 20
    w0[2] += 0.3
    w0[3] = 0
    nu = torch.tensor([0.0, 1e-5, 1e-3, 0.1, 3.0])
    force = torch.stack([w0[0].roll(k) for k in range(5)])
    times = [0.0, 0.3, 0.3, 1.0]
    for more in ({}, {"force": force, "length": 2.0}):
        compiled = ns.solve(w0, times, nu, dtype=dtype, **more)
        with monkeypatch.context() as patch:
            patch.setattr(compilation, "is_available", lambda: False)
            expected = ns.solve(w0, times, nu, dtype=dtype, **more)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-4
        assert ((compiled - expected).abs() <= tolerance * (1 + expected.abs().amax())).all()
        assert torch.equal(compiled[:, 1], compiled[:, 2])
        assert compiled.dtype == w0.dtype


def test_velocity_and_vorticity_are_inverse():
    w = initial(2, 32)
    w = torch.fft.irfft2(torch.fft.rfft2(w) * ns.is_kept((32, 32)))
    w = w - w.mean((1, 2), keepdim=True)
    u = ns.velocity(w)
    assert u.shape == (2, 32, 32, 2)
    assert u.mean((1, 2)).abs().max() < 1e-15
    assert torch.allclose(ns.vorticity(u), w, atol=1e-13)
    x = 2 * math.pi * positions(32)  # w = sin(x) sin(y) 8 pi^2 has psi = sin(x) sin(y)
    by_hand = torch.stack(
        (torch.sin(x)[:, None] * torch.cos(x), -torch.cos(x)[:, None] * torch.sin(x)), -1
    )
    w = 8 * math.pi**2 * torch.sin(x)[:, None] * torch.sin(x)
    assert torch.allclose(ns.velocity(w), 2 * math.pi * by_hand, atol=1e-12)
    assert ns.enstrophy(w).item() == pytest.approx((8 * math.pi**2) ** 2 / 8)
    assert ns.energy(w).item() == pytest.approx((2 * math.pi) ** 2 / 4)


def test_gradients_equal_finite_differences():
    w0 = initial(1, 16).requires_grad_()
    nu = torch.tensor(1e-2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(16, 16, dtype=torch.float64)

    def value(w0, nu):
        return (ns.solve(w0, [0.4], nu) * weight).sum()

    by_w0, by_nu = torch.autograd.grad(value(w0, nu), (w0, nu))
    direction = torch.randn(1, 16, 16, dtype=torch.float64)
    h = 1e-6
    with torch.no_grad():
        along = (value(w0 + h * direction, nu) - value(w0 - h * direction, nu)) / (2 * h)
        over_nu = (value(w0, nu + h) - value(w0, nu - h)) / (2 * h)
    # step sizes are constants for the gradient
    assert (by_w0 * direction).sum().item() == pytest.approx(along.item(), rel=1e-4)
    assert by_nu.item() == pytest.approx(over_nu.item(), rel=1e-4)


@pytest.mark.parametrize(("points", "begins"), [(32, 0.0), (32, 0.5 / 32), (32, 0.1), (31, 0.0)])
def test_symmetries_map_solutions_to_solutions(points, begins):
    grid = Grid((points, points), (1.0, 1.0), origin=(begins, begins))
    times, nu = [0.0, 0.5, 1.0], [2e-3]
    u0 = EQUATION.initial_conditions["published"](3, grid, 0).double()
    u = EQUATION.solve(u0, times, nu, grid, torch.float64)
    amounts = {"translate": torch.tensor([[3, 5], [0, 9], [-7, 2]]), "reflect": torch.ones(3)}
    assert {symmetry.name for symmetry in EQUATION.symmetries} == amounts.keys()
    for symmetry in EQUATION.symmetries:
        moved = symmetry.fields(u, amounts[symmetry.name], grid)
        assert error(moved, u) > 0.1
        again = EQUATION.solve(moved[:, 0], times, nu, grid, torch.float64)
        assert torch.allclose(again[:, 1:], moved[:, 1:], atol=1e-12)


def test_other_shifts_are_no_symmetries():
    grid = Grid((32, 32), (1.0, 1.0))
    u0 = EQUATION.initial_conditions["published"](1, grid, 0).double()
    u = EQUATION.solve(u0, [1.0], [2e-3], grid, torch.float64)
    again = EQUATION.solve(u0.roll(8, 1), [1.0], [2e-3], grid, torch.float64)
    assert error(again, u.roll(8, 2)) > 0.1
    assert not EQUATION.is_homogeneous


def test_laws_hold_for_the_solver_and_not_for_a_growing_field():
    spec = FieldSpec(Grid((32, 32), (1.0, 1.0)), ("w",), ("nu",), dt=0.5)
    u0 = EQUATION.initial_conditions["published"](4, spec.grid, 0).double()
    u = EQUATION.solve(u0, [0.5, 1.0, 1.5], [1e-3], spec.grid, torch.float64)
    checks = PhysicsChecks(EQUATION, spec)
    checks.update(u0, u, u)
    values = checks.compute()
    assert values["mean_drift"] < 1e-15
    assert values["enstrophy_growth"] == values["energy_growth"] == 0
    enstrophy = ns.enstrophy(u[..., 0])
    assert (enstrophy[:, 1:] > enstrophy[:, :-1]).any()  # the force drives it, within its law
    grows = PhysicsChecks(EQUATION, spec)
    grows.update(u0, u0[:, None] * torch.tensor([1.5, 2.25, 3.375]).view(1, 3, 1, 1, 1), u)
    # of a step from |w| to 1.5 |w|, the force allows 0.5 * 0.1
    size = u0.square().mean((1, 2, 3)).sqrt()[:, None] * torch.tensor([1.0, 1.5, 2.25])
    expected = (2.25 - ((size + 0.05) / size) ** 2).clamp_min(0).mean()
    assert grows.compute()["enstrophy_growth"] == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("points", [24, 48, 96])
def test_a_resampled_field_has_the_same_waves_and_the_same_first_point(points):
    def waves(n):
        x = torch.arange(n, dtype=torch.float64) / n
        x, y = 2 * math.pi * x[:, None], 2 * math.pi * x
        return torch.sin(11 * x - 3 * y) + 0.5 * torch.cos(x + 10 * y) + 2

    assert torch.allclose(ns.resample(waves(64)[None], points), waves(points)[None])


def test_coarse_solver_starts_where_the_fine_grid_does():
    """A solver of fewer points sees the forcing at its own points, and comes close to the truth."""
    for begins in (0.0, 0.5 / 64):
        grid = Grid((64, 64), (1.0, 1.0), origin=(begins, begins))
        spec = FieldSpec(grid, ("w",), ("nu",), dt=1.0)
        u0 = EQUATION.initial_conditions["published"](2, grid, 1)
        truth = EQUATION.solve(u0, [1.0, 2.0], [5e-3], grid, torch.float64)
        (solver,) = coarse_solvers(EQUATION, spec, [32])
        state = solver.encode(u0, torch.full((2, 1), 5e-3))
        for frame in range(2):
            state = solver.step(state, torch.full((2, 1), 5e-3))
            assert error(solver.decode(state), truth[:, frame]) < 5e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"w0": torch.zeros(2, 3, 8, 8)}, r"`w0` must be real fields of shape \(B, X, Y\)"),
        ({"w0": torch.zeros(8, 8, dtype=torch.long)}, "`w0` must be real fields"),
        ({"w0": torch.full((8, 8), math.nan)}, "`w0` must be finite"),
        ({"t": [1.0, 0.5]}, "`t` must be finite times"),
        ({"nu": -1.0}, "`nu` must be one number >= 0"),
        ({"nu": torch.ones(3)}, "or one for each of the fields"),
        ({"nu": "thick"}, "`nu` must be an array of numbers, got 'thick'"),
        ({"t": ["now"]}, "`t` must be an array of numbers"),
        ({"length": -1.0}, "`length` must be a finite number > 0, got -1.0"),
        ({"cfl": 0.0}, "`cfl` must be a finite number > 0 and at most 2, got 0.0"),
        ({"cfl": 5.0}, "and at most 2, got 5.0"),
        ({"force": torch.ones(3, 8, 8)}, r"`force` must be \(X, Y\) or \(B, X, Y\), as `w0`"),
        ({"force": torch.ones(8, 6)}, r"`force` must be \(X, Y\)"),
    ],
)
def test_solver_refuses_what_it_cannot_solve(change, words):
    arguments = {"w0": torch.ones(2, 8, 8), "t": [1.0], "nu": 1e-3} | change
    with pytest.raises(UpsError, match=words):
        ns.solve(**arguments)


def test_data_at_other_points_are_refused_because_the_forcing_is_another_there():
    def spec(begins):
        grid = Grid((16, 16), (1.0, 1.0), origin=(begins, begins))
        return FieldSpec(grid, ("w",), ("nu",), dt=1.0, is_homogeneous=False)

    model = build({"architecture": "mixer", "num_tokens": 16, "hidden_dim": 8}, spec(0.0))
    simulator = ups.Simulator(model, spec(0.0), "navier_stokes")
    same, other = (
        SimpleNamespace(spec=spec(begins), equation_name="navier_stokes", path="a.hdf5")
        for begins in (0.0, 0.5 / 16)
    )
    check_data(simulator, same, "run")
    with pytest.raises(UpsError, match="`first point` must be 0 x 0, got"):
        check_data(simulator, other, "run")


@pytest.mark.usefixtures("drawn")
@pytest.mark.integration
def test_all_stages_train_and_are_tested_on_a_plane(ups_run, tmp_path):
    settings = [s for s in TINY if not s.startswith("data.reference_num_points")]
    small = ["data.num_points=16", "data.num_frames=6", "trainer.max_epochs=2"]
    networks = "{hidden_dim:16,depth:1,mlp_ratio:1.0,dilations:[1]}"
    ups_run(
        "stage=all",
        "data=navier_stokes",
        *settings,
        *small,
        "model.num_tokens=16",
        f"stage.diffusion.module.corrector.mean_network={networks}",
        f"stage.diffusion.module.corrector.denoiser={networks}",
        "stage.diffusion.trainer.max_epochs=1",
        "stage.consistency.trainer.max_epochs=1",
        "name=plane",
    )
    run = tmp_path / "outputs/plane"
    rows = json.loads((run / "reports/eval_baseline.json").read_text())["rows"]
    assert {row["correct"] for row in rows} == {"none", "diffusion", "consistency"}
    names = {row["model"] for row in rows}
    assert {"persistence"} < names
    for row in rows:
        assert math.isfinite(row["nrmse"])
        assert row["mean_drift"] < 1e-5
        assert math.isfinite(row["enstrophy_growth"])
    assert "<img" in (run / "reports/report.html").read_text()
    simulator = ups.load(run)
    frames = simulator.rollout(ns.initial_conditions(2, 16, 0), 3, nu=1e-3, correct="consistency")
    assert frames.shape == (2, 3, 16, 16)


SMALL = [
    *(s for s in TINY if not s.startswith("data.reference_num_points")),
    "data=navier_stokes", "data.num_points=16", "data.num_frames=6", "model.num_tokens=16",
    "trainer.max_epochs=3", "trainer.accelerator=cpu", "data.augmentation.translate=true",
]  # fmt: skip


def weights(run):
    return ups.load(run / "checkpoints/operator.ckpt").state_dict()


@pytest.mark.slow
@pytest.mark.integration
def test_killed_run_on_a_plane_resumes_to_the_same_weights(ups_run, tmp_path):
    settings = [*SMALL, "callbacks.last.every_n_train_steps=2"]
    ups_run(*settings, "name=whole")
    done = call_killed(tmp_path, "step 17", "ups.run", *settings, "name=killed")
    assert done.returncode == -9, done.stdout + done.stderr
    assert not (tmp_path / "outputs/killed/checkpoints/operator.ckpt").exists()
    assert "resuming from" in ups_run(*settings, "name=killed", WITH_KILLER).stdout
    whole, killed = (weights(tmp_path / f"outputs/{name}") for name in ("whole", "killed"))
    assert all(torch.equal(whole[key], killed[key]) for key in whole)


@pytest.mark.slow
@pytest.mark.integration
def test_two_processes_train_on_a_plane_as_one(ups_run, tmp_path):
    ups_run(*SMALL, "name=one", "data.batch_size=8")
    words = [*SMALL, "name=two", "data.batch_size=4", "trainer.devices=2"]
    done = run_python("-m", "ups.run", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (weights(tmp_path / f"outputs/{name}") for name in ("one", "two"))
    assert all(torch.allclose(one[key], two[key], rtol=1e-3, atol=1e-5) for key in one)


def test_inverse_losses_reach_every_part_on_a_plane():
    spec = FieldSpec(Grid((16, 16), (1.0, 1.0)), ("w",), ("nu",), dt=1.0, is_homogeneous=False)
    torch.manual_seed(0)
    model = build({"architecture": "mixer", "num_tokens": 16, "hidden_dim": 8}, spec)
    errors = operator_errors(
        ups.Simulator(model, spec), torch.randn(2, 3, 16, 16, 1), torch.full((2, 1), 1e-3), True
    )
    for name in ("L_inv_enc", "L_inv_dec"):
        model.zero_grad()
        errors[name].mean().backward(retain_graph=True)
        reached = {
            part: any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
            for part, module in model.named_children()
            if part in ("encoder", "approximator", "decoder")
        }
        assert reached == {
            "encoder": True,
            "approximator": name == "L_inv_dec",  # z_0 has not been stepped
            "decoder": True,
        }
