"""The shallow-water solver and its data: several channels, open sides, no parameter."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from conftest import TINY

import ups
from ups.core.errors import UpsError
from ups.core.fields import Boundary, FieldSpec
from ups.datamodules import TrajectoryDataModule
from ups.datamodules.readers.pdebench import TrajectoryFile
from ups.evaluation.baselines import coarse_solvers
from ups.physics import EQUATIONS
from ups.physics import shallow_water as sw

EQUATION = sw.EQUATION
OPEN = (Boundary.OPEN, Boundary.OPEN)


def dam_break(x, t, high, low):
    """The exact height (X,) a time t after a dam at x = 0 broke (Stoker 1957), by bisection."""
    bottom, top = low, high
    for _ in range(80):
        middle = (bottom + top) / 2
        behind = 2 * (math.sqrt(high) - math.sqrt(middle))
        ahead = (middle - low) * math.sqrt((1 / middle + 1 / low) / 2)
        bottom, top = (middle, top) if behind > ahead else (bottom, middle)
    speed = 2 * (math.sqrt(high) - math.sqrt(middle))
    shock = speed * middle / (middle - low)
    s = x / t
    rarefied = (2 * math.sqrt(high) - s).square() / 9
    h = torch.where(s < -math.sqrt(high), high, rarefied)
    h = torch.where(s > speed - math.sqrt(middle), middle, h)
    return torch.where(s > shock, low, h)


def broken_dam(points, across=4):
    x = (torch.arange(points, dtype=torch.float64) + 0.5) / points * sw.LENGTH - sw.LENGTH / 2
    h = torch.where(x < 0, 2.0, 1.0).double()[:, None].expand(points, across)
    return x, torch.stack((h, 0 * h, 0 * h), -1)


def test_dam_break_tends_to_the_exact_solution():
    errors = []
    for points in (100, 200, 400):
        x, u0 = broken_dam(points)
        h = sw.solve(u0, [0.7])[0, 0, :, 1, 0]
        errors.append((h - dam_break(x, 0.7, 2.0, 1.0)).abs().mean().item())
    assert errors[0] < 0.01
    assert errors[0] > 1.6 * errors[1] > 1.6**2 * errors[2]  # a shock: first order in the mean


def test_a_smooth_wave_is_solved_with_second_order():
    def wave(points):
        x = (torch.arange(points, dtype=torch.float64) + 0.5) / points * sw.LENGTH
        h = 1 + 0.1 * torch.exp(-((x - 2.5) ** 2) / 0.2)
        h = h[:, None].expand(points, 2)
        return torch.stack((h, 0 * h, 0 * h), -1)

    def averages(u, factor):
        return u.unflatten(0, (-1, factor)).mean(1)

    fine = sw.solve(averages(wave(6400), 16), [0.6])[0, 0]
    errors = [
        (sw.solve(averages(wave(6400), 6400 // n), [0.6])[0, 0] - averages(fine, 400 // n))
        .norm()
        .item()
        / math.sqrt(n)
        for n in (50, 100)
    ]
    assert errors[0] > 3 * errors[1]


def test_water_at_rest_stays_and_volume_is_kept_until_the_wave_leaves():
    rest = torch.tensor([1.3, 0.0, 0.0]).expand(8, 8, 3)
    assert torch.equal(sw.solve(rest, [1.0])[0, 0], rest)
    u0 = EQUATION.initial_conditions["dam_break"](3, EQUATION.grid(48), 0).double()
    u = sw.solve(u0, [0.0, 0.4, 0.8, 4.0])
    volume = u[..., 0].mean((2, 3))
    assert torch.equal(u[:, 0], u0)
    assert torch.allclose(volume[:, :3], volume[:, :1], atol=1e-12)
    assert (volume[:, 3] < volume[:, 0] - 1e-3).all()  # it has left through the open sides
    assert (u[..., 0] > 0.3).all()
    assert (u[:, 3, ..., 0] - 1).abs().max() < 0.1


def test_initial_conditions_are_columns_of_random_radius():
    grid = EQUATION.grid(100)
    assert (grid.extent, grid.boundary) == ((5.0, 5.0), (OPEN, OPEN))
    u0 = EQUATION.initial_conditions["dam_break"](200, grid, 1)
    area = (u0[..., 0] == 2).double().mean((1, 2)) * 25
    radii = (area / math.pi).sqrt()
    assert 0.29 < radii.min() < 0.32
    assert 0.68 < radii.max() < 0.71
    assert set(u0[..., 0].unique().tolist()) == {1.0, 2.0}
    assert (u0[..., 1:] == 0).all()


def test_symmetries_map_solutions_to_solutions():
    grid = EQUATION.grid(24)
    u0 = EQUATION.initial_conditions["dam_break"](2, grid, 0).double()
    x = grid.positions()[..., 0].double()
    u0[..., 1] = 0.1 * torch.exp(-((x - 2) ** 2))  # not symmetric itself
    u = sw.solve(u0, [0.0, 0.3, 0.6])
    (reflect,) = EQUATION.symmetries
    moved = reflect.fields(u, torch.ones(2), grid)
    assert torch.allclose(sw.solve(moved[:, 0], [0.0, 0.3, 0.6]), moved, atol=1e-12)
    swapped = u.transpose(2, 3)[..., [0, 2, 1]]
    assert torch.allclose(sw.solve(swapped[:, 0], [0.0, 0.3, 0.6]), swapped, atol=1e-12)
    assert not torch.allclose(moved, u, atol=1e-3)


def test_coarse_solver_averages_cells_and_is_a_baseline():
    grid = EQUATION.grid(32)
    spec = FieldSpec(grid, EQUATION.channels, dt=0.1)
    u0 = EQUATION.initial_conditions["dam_break"](2, grid, 0)
    coarse = EQUATION.restrict(u0, 2)
    assert torch.allclose(coarse[0, 3, 5], u0[0, 6:8, 10:12].mean((0, 1)))
    assert torch.equal(EQUATION.restrict(EQUATION.prolong(coarse, 2), 2), coarse)
    (solver,) = coarse_solvers(EQUATION, spec, [16])
    parameters = torch.empty(2, 0)
    step = solver.decode(solver.step(solver.encode(u0, parameters), parameters))
    truth = sw.solve(u0, [0.1])[:, 0]
    assert ((step - truth).norm() / truth.norm()).item() < 0.1


SMALL = {
    "equation": "shallow_water",
    "num_points": 16,
    "reference_num_points": None,
    "dt": 0.1,
    "num_frames": 4,
    "num_train": 5,
    "num_validation": 2,
    "num_test": 3,
    "unroll_steps": 2,
    "batch_size": 4,
}


def test_generated_data_have_channels_open_sides_and_no_parameter(tmp_path):
    data = TrajectoryDataModule(**SMALL, cache_dir=tmp_path)
    data.prepare_data()
    data.setup()
    assert data.path.name.startswith("shallow_water-")
    spec = data.spec
    assert (spec.channels, spec.parameters) == (("h", "hu", "hv"), ())
    assert spec.grid.boundary == (OPEN, OPEN)
    assert spec.grid.extent == (5.0, 5.0)
    assert not spec.is_homogeneous
    assert not spec.conserves_mean
    assert data.dataset["nu"] is None
    fine = EQUATION.grid(32)
    u0 = EQUATION.initial_conditions["dam_break"](3, fine, 2)
    u = sw.solve(u0, [0.0, 0.1, 0.2, 0.3])
    assert torch.allclose(data.values["test"], u[:, :, ::2, ::2], atol=1e-6)
    (batch, *_) = data.train_dataloader()
    assert batch.u.shape == (4, 3, 16, 16, 3)
    assert batch.parameters.shape == (4, 0)
    file = TrajectoryFile(data.path)
    assert np.array_equal(file.read([7, 8, 9]), data.values["test"].numpy())


def test_parameters_that_an_equation_does_not_have_are_refused(tmp_path):
    with pytest.raises(UpsError, match="shallow_water has no parameter"):
        TrajectoryDataModule(**SMALL, nu=0.1)
    two = dataclasses.replace(EQUATION, name="two", parameters=("feed", "kill"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EQUATIONS, "two", two)
        with pytest.raises(UpsError, match="one parameter or none, got two with feed, kill"):
            TrajectoryDataModule(**{**SMALL, "equation": "two"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"u0": torch.ones(2, 8, 8)}, "`u0` must be real heights > 0 and two momenta"),
        ({"u0": torch.zeros(8, 8, 3)}, "`u0` must be real heights > 0"),
        ({"u0": torch.ones(8, 8, 3).long()}, "`u0` must be real heights > 0"),
        ({"length": -1.0}, "`length` must be a finite number > 0"),
        ({"cfl": -0.1}, "`cfl` must be a finite number > 0"),
        ({"t": [1.0, 0.5]}, "`t` must be finite times"),
    ],
)
def test_solver_refuses_what_it_cannot_solve(change, words):
    with pytest.raises(UpsError, match=words):
        sw.solve(**{"u0": torch.ones(1, 8, 8, 3), "t": [1.0]} | change)


@pytest.mark.integration
def test_a_system_between_open_sides_trains_by_the_same_command(ups_run, tmp_path):
    settings = [s for s in TINY if not s.startswith("data.reference_num_points")]
    small = ["data.num_points=16", "data.num_frames=6", "model.num_tokens=16"]
    ups_run("stage=operator", "data=shallow_water", *settings, *small, "name=water")
    run = tmp_path / "outputs/water"
    rows = json.loads((run / "reports/eval_operator.json").read_text())["rows"]
    assert {"persistence"} < {row["model"] for row in rows}
    assert all(math.isfinite(row["nrmse"]) for row in rows)
    simulator = ups.load(run)
    u0 = EQUATION.initial_conditions["dam_break"](2, simulator.spec.grid, 0)
    assert simulator.rollout(u0, 3).shape == (2, 3, 16, 16, 3)
