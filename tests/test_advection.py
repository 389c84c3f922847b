"""The second equation: its solutions, its data, and a run of every stage on it."""

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import h5py
import hydra
import numpy as np
import pytest
import torch
import yaml
from conftest import line_spec, make_simulator
from helpers.pages import write_files
from test_pipeline import SMALL

import ups
from ups.datamodules import TrajectoryDataModule
from ups.evaluation.metrics import PhysicsChecks
from ups.physics import advection, periodic_1d
from ups.simulation.guidance import TTC, Guided

EQUATION = advection.EQUATION
TIMES = [0.1, 0.5, 2.0]


def fields(n=8, points=256):
    return advection.initial_conditions(n, periodic_1d.cell_centers(points), seed=1).double()


def test_exact_moves_the_initial_condition():
    x = periodic_1d.cell_centers(64).double()
    u0 = torch.stack([torch.sin(2 * math.pi * k * x) for k in (1, 5)])
    moved = torch.stack(
        [torch.stack([torch.sin(2 * math.pi * k * (x - 0.3 * t)) for t in TIMES]) for k in (1, 5)]
    )
    assert torch.allclose(advection.exact(u0, TIMES, 0.3), moved, atol=1e-6)
    assert torch.allclose(
        advection.exact(2 * u0, [0.5], 3.0, length=1.5)[:, 0], 2 * u0, atol=1e-12
    )  # once around


def test_solve_converges_at_second_order_on_smooth_data():
    errors = []
    for points in (64, 128, 256):
        u0 = torch.sin(2 * math.pi * periodic_1d.cell_centers(points).double())[None] + 0.3
        gap = advection.solve(u0, [0.625], 0.4, cfl=0.5) - advection.exact(u0, [0.625], 0.4)
        errors.append(gap.abs().mean().item())
    assert errors[0] / errors[2] > 4**1.8, errors


def test_solve_error_is_below_a_thousandth_on_1024_points():
    u0 = fields(20, 1024)
    gap, truth = (
        advection.solve(u0, TIMES, 0.4) - advection.exact(u0, TIMES, 0.4),
        advection.exact(u0, TIMES, 0.4),
    )
    assert (gap.square().mean(-1) / truth.square().mean(-1)).sqrt().max() < 1e-3


@pytest.mark.parametrize("beta", [0.1, 0.4, 7.0])
def test_solve_keeps_mass_maximum_principle_and_variation(beta):
    u0 = fields()
    u = advection.solve(u0, [0.0, 0.05, 0.5, 2.0], beta)
    assert torch.equal(u[:, 0], u0)
    assert (u.mean(-1) - u0.mean(-1, keepdim=True)).abs().max() < 1e-13
    assert (u.amax(-1).diff(dim=1) <= 1e-12).all()
    assert (u.amin(-1).diff(dim=1) >= -1e-12).all()
    assert (advection.total_variation(u).diff(dim=1) <= 1e-12).all()


def test_reflection_maps_solutions_to_solutions():
    u0 = fields()
    assert torch.allclose(
        advection.solve(advection.reflect(u0), TIMES, 0.4),
        advection.reflect(advection.solve(u0, TIMES, 0.4)),
        atol=1e-12,
    )


def test_physics_checks_see_losses_of_energy():
    u0, t = fields(), torch.arange(1, 11) * 0.05
    truth = advection.exact(u0, t, 0.4)
    found = []
    for pred in (truth, truth * torch.exp(-t)[:, None]):
        checks = PhysicsChecks(EQUATION, line_spec(256))
        checks.update(u0[..., None], pred[..., None], truth[..., None])
        found.append(checks.compute())
    kept, damped = found
    assert kept.keys() == {
        *("mass_drift", "energy_drift", "tv_growth"),
        *("boundary_jump_error", "maximum_principle_violation", "correlation_time"),
        *("correlation_time_90", "correlation_time_95"),
    }
    assert kept["mass_drift"] < 1e-12
    assert kept["energy_drift"] < 1e-6
    assert damped["energy_drift"] > 100 * kept["energy_drift"]
    assert damped["tv_growth"] == 0


def test_guided_score_knows_the_speed():
    """Of a stepper whose states are the fields."""
    u, nu = fields(points=64).float(), torch.full((8, 1), 0.4)
    stepper = SimpleNamespace(spec=line_spec(64), decode=lambda state: state)
    guided = Guided(stepper, EQUATION, TTC())
    candidates = torch.stack(
        [advection.exact(u, [0.05], speed)[:, 0] for speed in (0.4, 0.5, 0.1)], 1
    )
    expected, confidence = guided.predict(u[..., None], nu)
    assert torch.equal(confidence, torch.ones(8, 64, 1))
    scores = guided.score(candidates[..., None], expected, confidence)
    assert scores.shape == (8, 3)
    assert (scores[:, 0] > -1e-9).all()
    assert (scores[:, 0] > scores[:, 1]).all()
    assert (scores[:, 1] > scores[:, 2]).all()


def test_solver_step_takes_a_speed_for_each_field():
    u = fields(points=64).float()
    several = advection.solver_step(u, 0.05, torch.linspace(0.1, 0.8, 8))
    assert torch.allclose(several[3:4], advection.exact(u[3:4], [0.05], 0.4)[:, 0], atol=1e-5)


def test_conditioning_leads_an_untrained_model_closer_to_the_equation():
    simulator = make_simulator(equation="advection").eval()
    u0 = fields(points=32).float()
    start = simulator.decode(simulator.encode(u0[..., None])).detach()[..., 0]
    expected = advection.solver_step(start, 0.05, torch.full((8,), 0.4))
    plain, guided = (simulator.rollout(u0, 1, nu=0.4, ttc=ttc)[:, 0] for ttc in (False, True))
    assert ((guided - expected).square().sum(-1) < (plain - expected).square().sum(-1)).all()


def test_data_module_reads_a_published_advection_file(tmp_path):
    """As published: tensor (N, 201, 1024), one time more than frames, beta in the name alone."""
    path = tmp_path / "1D_Advection_Sols_beta0.1.hdf5"
    x, t = (
        (np.arange(1024, dtype=np.float32) + 0.5) / 1024,
        np.arange(202, dtype=np.float32) * np.float32(0.01),
    )
    u = np.sin(2 * np.pi * (x - 0.1 * t[:201, None] + np.arange(6)[:, None, None] / 6)).astype(
        np.float32
    )
    with h5py.File(path, "w") as file:
        file["tensor"], file["x-coordinate"], file["t-coordinate"] = u, x, t
    sizes = {
        "num_train": 3,
        "num_validation": 1,
        "num_test": 2,
        "temporal_downsampling": 5,
        "spatial_downsampling": 4,
        "unroll_steps": 3,
    }
    data = TrajectoryDataModule(equation="advection", path=str(path), nu=None, **sizes)
    data.setup()
    spec = data.spec
    assert (data.training_parameters, data.num_frames, spec.shape, data.dataset["name"]) == (
        [[0.1]],
        41,
        (256, 1),
        "advection-beta0.1",
    )
    assert (spec.channels, spec.parameters) == (("u",), ("beta",))
    assert (spec.dt, spec.grid.extent) == (pytest.approx(0.05), (pytest.approx(1.0),))
    assert np.array_equal(data.values["test"].numpy(), u[4:, ::5, ::4, None])
    batch = next(iter(data.train_dataloader()))
    for k in range(3):  # mirrored or not, windows solve the equation
        step = EQUATION.solver_step(batch.u[:, k], spec.dt, batch.parameters, spec.grid, 1)
        assert torch.allclose(step, batch.u[:, k + 1], atol=1e-4)


@pytest.mark.integration
def test_own_equation_of_the_docs_makes_its_data(ups_run, tmp_path, monkeypatch):
    write_files((Path(__file__).parents[1] / "docs/extending.md").read_text(), tmp_path)
    shown = ups_run("--config-dir", "conf", "data=heat", "--cfg", "job", "--resolve").stdout
    composed = yaml.safe_load(shown)
    assert composed["name"] == "heat"
    monkeypatch.syspath_prepend(tmp_path)
    sizes = {
        "num_points": 32,
        "reference_num_points": 64,
        "num_frames": 6,
        "num_train": 4,
        "num_validation": 2,
        "num_test": 2,
        "cache_dir": str(tmp_path),
    }
    data = hydra.utils.instantiate({**composed["data"], **sizes, "sampler_seed": 0})
    data.prepare_data()
    data.setup()
    assert data.dataset["name"] == "heat-nu0.01"


@pytest.mark.integration
def test_pdebench_advection_config_selects_the_equation_and_its_downsampling(ups_run):
    files = yaml.safe_load(ups_run("data=pdebench_advection", "--cfg", "job").stdout)["data"]
    assert (
        files["equation"],
        files["nu"],
        files["temporal_downsampling"],
        files["spatial_downsampling"],
    ) == (
        "advection",
        None,
        5,
        4,
    )


@pytest.mark.integration
@pytest.mark.slow
def test_run_of_every_stage_succeeds_on_advection(ups_run, tmp_path):
    done = ups_run("data=advection", *SMALL, "name=wave", "stage.evaluate=[none,diffusion]")
    before, _, after = done.stdout.partition("preflight: every stage has taken real steps")
    assert after
    assert "rehearsing operator, diffusion, consistency, test in another process" in before
    report = tmp_path / "outputs/wave/reports"
    plain, conditioned = (
        json.loads((report / f"eval_{name}.json").read_text()) for name in ("baseline", "ttc")
    )
    assert plain["dataset"]["name"] == "advection-beta0.4"
    models = {row["model"]: row for row in plain["rows"]}
    assert {"mixer-tiny", "persistence"} <= models.keys()
    assert all(row["energy_drift"] >= 0 for row in plain["rows"] + conditioned["rows"])
    best = min(row["nrmse"] for row in conditioned["rows"] if row["ttc"])
    assert best < min(
        row["nrmse"] for row in plain["rows"] if row["model"] == "mixer-tiny"
    )  # what the equation says is so
    with (tmp_path / "outputs/leaderboard.csv").open() as file:
        assert {row["dataset.name"] for row in csv.DictReader(file)} == {"advection-beta0.4"}
    sim = ups.load(tmp_path / "outputs/wave")
    assert sim.equation is EQUATION
    assert sim.rollout(fields(2, 32).float(), 3, nu=0.4, correct="diffusion").shape == (2, 3, 32)
