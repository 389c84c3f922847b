"""The rows that every result stands beside: persistence, and the solver on coarser grids."""

import math
from itertools import pairwise
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from conftest import SPEC, line_spec, make_simulator
from torch.utils.data import DataLoader

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.core.stepper import predict
from ups.evaluation.baselines import Persistence, SolverStepper
from ups.models import build
from ups.modules import EvaluationModule
from ups.physics import advection, burgers, periodic_1d
from ups.physics.periodic_1d import limited_linear_reconstruction
from ups.simulation.simulator import Simulator


def lines_in_cells(averages, factor):
    """Cell averages (X,) -> (X * factor,): lines with van Leer's limited slopes, value by value."""
    cells, out = len(averages), []
    for i in range(cells):
        left = averages[i] - averages[i - 1]
        right = averages[(i + 1) % cells] - averages[i]
        slope = 2 * left * right / (left + right) if left * right > 0 else 0.0
        for part in range(factor):
            offset = (part + 0.5) / factor - 0.5  # of the part's centre from the cell's, in cells
            out.append(averages[i] + slope * offset)
    return np.array(out)


def averages_of_cells(fields, points):
    """Fields (B, X) -> cell averages (B, points), sum by sum."""
    factor = fields.shape[1] // points
    out = np.zeros((len(fields), points))
    for row in range(len(fields)):
        for cell in range(points):
            out[row, cell] = sum(fields[row, cell * factor + j] for j in range(factor)) / factor
    return out


def solver_by_hand(physics, u0, points, times, nu, length=1.0):
    """The solver's row (B, T, X), the steps around the solver itself written out."""
    factor = u0.shape[1] // points
    averages = averages_of_cells(u0.double().numpy(), points)
    coarse = physics.solve(
        torch.from_numpy(averages).float(), times, nu, length, dtype=torch.float32
    )
    out = np.zeros((len(u0), len(times), u0.shape[1]))
    for row in range(len(u0)):
        for k in range(len(times)):
            out[row, k] = lines_in_cells(coarse[row, k].double().numpy(), factor)
    return out


def rolled_out(stepper, u0, steps, nu):
    """The frames (B, T, X) of a baseline from fields (B, X) at nu (B,)."""
    return predict(stepper, u0[..., None], steps, nu[:, None])[..., 0]


def solver_of(module, num_points, points, dt, length=1.0):
    spec = FieldSpec(Grid((points,), (length,)), parameters=("nu",), dt=dt)
    return SolverStepper(module.EQUATION, spec, num_points)


# ---------------------------------------------------------------- persistence


def test_persistence_repeats_the_first_field():
    u0 = torch.arange(6.0).reshape(2, 3)
    rolled = rolled_out(Persistence(), u0, 4, torch.ones(2))
    assert rolled.shape == (2, 4, 3)
    for k in range(4):
        assert torch.equal(rolled[:, k], u0)
    assert Persistence().name == "persistence"


def test_persistence_keeps_fields_of_any_shape():
    u0 = torch.randn(2, 3, 4, 2)
    rolled = predict(Persistence(), u0, 3, torch.ones(2, 0))
    assert torch.equal(rolled, u0[:, None].expand(-1, 3, -1, -1, -1))


# ---------------------------------------------------------------- up from the coarse grid


def test_limited_linear_reconstruction_equals_a_worked_example():
    # cell 1 has differences 1 and 2, and so the slope 2 * 1 * 2 / 3; the others are extrema or flat
    u = torch.tensor([0.0, 1.0, 3.0, 3.0])
    found = limited_linear_reconstruction(u, 2).tolist()
    assert found == pytest.approx([0.0, 0.0, 1 - 1 / 3, 1 + 1 / 3, 3.0, 3.0, 3.0, 3.0])
    # across the end: cell 0 lies between 3 and 1, cell 3 between 6 and 2
    u = torch.tensor([2.0, 1.0, 6.0, 3.0])
    found = limited_linear_reconstruction(u, 2).tolist()
    first, last = -2 * 1 * 1 / 2, -2 * 3 * 1 / 4
    expected = [2 - first / 4, 2 + first / 4, 1, 1, 6, 6, 3 - last / 4, 3 + last / 4]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_limited_linear_reconstruction_equals_written_out_lines(factor):
    rng = np.random.default_rng(factor)
    u = rng.normal(size=(2, 3, 10)).astype(np.float32)
    found = limited_linear_reconstruction(torch.from_numpy(u), factor)
    assert found.shape == (2, 3, 10 * factor)
    for row in range(2):
        for k in range(3):
            expected = lines_in_cells(u[row, k].astype(np.float64), factor)
            assert found[row, k].numpy() == pytest.approx(expected, abs=1e-5)
    averages = found.unflatten(-1, (10, factor)).mean(-1)
    assert torch.allclose(averages, torch.from_numpy(u), atol=1e-6)


def test_limited_linear_reconstruction_is_exact_on_lines_and_flat_fields():
    u = torch.arange(8.0)
    inner = limited_linear_reconstruction(u, 4)[4:-4]  # the ends meet in a jump
    assert inner.tolist() == pytest.approx([1 + (i + 0.5) / 4 - 0.5 for i in range(24)])
    assert torch.equal(
        limited_linear_reconstruction(torch.full((5,), 0.7), 3), torch.full((15,), 0.7)
    )
    assert torch.equal(limited_linear_reconstruction(u, 1), u)


# ---------------------------------------------------------------- the solver's rollout


def test_solver_stepper_asks_for_cell_averages_one_step_one_nu_and_float32():
    asked = []

    def solve(u0, t, parameters, grid, dtype):
        asked.append((u0[..., 0].tolist(), t, parameters, grid, dtype))
        return torch.stack([u0 + k + 1 for k in range(len(t))], 1)

    lines = burgers.EQUATION
    equation = SimpleNamespace(solve=solve, restrict=lines.restrict, prolong=lines.prolong)
    u0 = torch.tensor([[1.0, 3.0, 5.0, 9.0], [0.0, 2.0, -4.0, 8.0]])
    spec = FieldSpec(Grid((4,), (3.0,)), parameters=("nu",), dt=0.25)
    solver = SolverStepper(equation, spec, 2)
    rolled = rolled_out(solver, u0, 3, torch.tensor([0.5, 0.5]))
    averages = [[2.0, 7.0], [1.0, 2.0]]
    for k, call in enumerate(asked):
        state = [[v + k for v in row] for row in averages]
        assert call == (state, [0.25], [0.5], Grid((2,), (3.0,)), torch.float32)
    assert len(asked) == 3
    # two cells: both differences are of one size and opposite sign, so lines are flat
    expected = [[2.0, 2.0, 7.0, 7.0], [1.0, 1.0, 2.0, 2.0]]
    for k in range(3):
        assert rolled[:, k].tolist() == [[v + k + 1 for v in row] for row in expected]
    assert solver.name == "solver-2"


def test_solver_stepper_moves_averages_by_whole_cells_when_the_solution_is_a_shift():
    # at speed 2 and dt 1/16 a field moves by one of eight cells a frame: exactly, in this scheme
    u0 = periodic_1d.initial_conditions(3, periodic_1d.cell_centers(32), seed=4)
    solver = solver_of(advection, 8, 32, dt=1 / 16)
    rolled = rolled_out(solver, u0, 5, torch.full((3,), 2.0))
    averages = averages_of_cells(u0.numpy(), 8)
    assert rolled.shape == (3, 5, 32)
    for row in range(3):
        for k in range(5):
            expected = lines_in_cells(np.roll(averages[row], k + 1), 4)
            assert rolled[row, k].numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("points", [16, 32, 64])
def test_solver_stepper_equals_restriction_solution_and_limited_lines(points):
    u0 = periodic_1d.initial_conditions(3, periodic_1d.cell_centers(64), seed=5)
    solver = solver_of(burgers, points, 64, dt=0.03)
    rolled = rolled_out(solver, u0, 4, torch.full((3,), 0.02))
    expected = solver_by_hand(burgers, u0, points, [0.03, 0.06, 0.09, 0.12], 0.02)
    assert rolled.dtype == torch.float32
    assert rolled.numpy() == pytest.approx(expected, abs=2e-5)
    assert rolled.mean(-1).numpy() == pytest.approx(
        u0.mean(-1, keepdim=True).expand(-1, 4).numpy(), abs=1e-6
    )


def test_solver_stepper_refuses_several_parameters():
    solver = solver_of(burgers, 16, 32, dt=0.03)
    u0 = torch.zeros(2, 32)
    assert rolled_out(solver, u0, 1, torch.tensor([0.1, 0.1])).shape == (2, 1, 32)
    with pytest.raises(UpsError, match="solver-16 needs equal parameters for all fields"):
        rolled_out(solver, u0, 1, torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize("points", [24, 8, 40])
def test_solver_stepper_refuses_grids_that_are_no_multiple(points):
    with pytest.raises(UpsError, match=f"`num_points` must be a divisor of {points}, got 16"):
        solver_of(burgers, 16, points, dt=0.03)


# ---------------------------------------------------------------- the rows of an evaluation

DT, FRAMES, POINTS = 0.03, 5, 128
SIZES, NUS = (4, 2), (0.02, 0.1)  # of the two batches: a mean over batches is not one over samples


def make_batches():
    """Two batches of solutions, of another parameter each."""
    batches = []
    for part, (size, nu) in enumerate(zip(SIZES, NUS, strict=True)):
        fine = (
            periodic_1d.initial_conditions(
                size, periodic_1d.cell_centers(2 * POINTS), seed=20 + part
            )
            + 0.2
        )
        u = burgers.solve(fine, [DT * k for k in range(FRAMES)], nu)[..., ::2]
        number = torch.arange(size)
        batches.append(Batch(u[..., None], torch.full((size, 1), nu), number, number))
    return batches


def evaluated(module, batches):
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.test(module, DataLoader(batches, batch_size=None), verbose=False)
    return module


@pytest.fixture(scope="module")
def evaluation():
    """A finished evaluation on 128 points, by a clock that moves on by a second at each look."""
    torch.manual_seed(0)
    spec = line_spec(POINTS, dt=DT, std=(0.6,))
    simulator = Simulator(build(SPEC, spec), spec, "burgers").eval()
    seconds = iter(range(10**6))
    with pytest.MonkeyPatch.context() as patch:
        clock = SimpleNamespace(perf_counter=lambda: float(next(seconds)))
        patch.setattr("ups.modules.evaluation.time", clock)
        module = evaluated(EvaluationModule(simulator, "mine", ["none"]), make_batches())
    return module


def rolled_by_hand(name, u0, steps, nu):
    if name == "persistence":
        return u0.double().numpy()[:, None].repeat(steps, 1)
    times = [DT * (k + 1) for k in range(steps)]
    return solver_by_hand(burgers, u0, int(name.removeprefix("solver-")), times, nu)


def metrics_by_hand(name):
    """PDEBench's metrics and the physics checks of a baseline's row, sample by sample."""
    sums = {key: np.zeros(FRAMES - 1) for key in ("rmse", "nrmse", "vrmse", "mass", "boundary")}
    largest = np.zeros(FRAMES - 1)
    spectrum = np.zeros((FRAMES - 1, POINTS // 2 + 1))
    thresholds = {
        "correlation_time": 0.8,
        "correlation_time_90": 0.9,
        "correlation_time_95": 0.95,
    }
    checks = {
        key: []
        for key in (
            *("mass_drift", "boundary_jump_error", "maximum_principle_violation"),
            *("tv_growth", "energy_growth", *thresholds),
        )
    }
    one_step = []
    for batch, nu in zip(make_batches(), NUS, strict=True):
        pred = rolled_by_hand(name, batch.u[:, 0, :, 0], FRAMES - 1, nu)
        u = batch.u[..., 0].double().numpy()
        for row in range(len(u)):
            errors = pred[row] - u[row, 1:]
            for k in range(FRAMES - 1):
                truth, error = u[row, k + 1], errors[k]
                root = math.sqrt(sum(error**2) / POINTS)
                sums["rmse"][k] += root
                sums["nrmse"][k] += root / math.sqrt(sum(truth**2) / POINTS)
                fluctuation = truth - sum(truth) / POINTS
                sums["vrmse"][k] += root / math.sqrt(sum(fluctuation**2) / POINTS + 1e-7)
                sums["mass"][k] += sum(error) ** 2
                sums["boundary"][k] += math.sqrt((error[0] ** 2 + error[-1] ** 2) / 2)
                largest[k] = max(largest[k], max(abs(error)))
                for wave in range(POINTS // 2 + 1):
                    turn = np.exp(-2j * math.pi * wave * np.arange(POINTS) / POINTS)
                    spectrum[k, wave] += abs(sum(error * turn)) ** 2
            frames = [u[row, 0], *pred[row]]
            low, high = min(frames[0]), max(frames[0])
            variation = [sum(abs(np.roll(frame, -1) - frame)) for frame in frames]
            energy = [sum(frame**2) / POINTS / 2 for frame in frames]
            mean = {
                "mass_drift": [abs(sum(p) - sum(frames[0])) / POINTS for p in pred[row]],
                "boundary_jump_error": [abs(error[0] - error[-1]) for error in errors],
                "maximum_principle_violation": [
                    max(0, max(p) - high) + max(0, low - min(p)) for p in pred[row]
                ],
                "tv_growth": [max(0, b / a - 1) for a, b in pairwise(variation)],
                "energy_growth": [max(0, b / a - 1) for a, b in pairwise(energy)],
            }
            for key, values in mean.items():
                checks[key].append(sum(values) / (FRAMES - 1))
            for key, threshold in thresholds.items():
                together = 0
                for k in range(FRAMES - 1):
                    if np.corrcoef(pred[row, k], u[row, k + 1])[0, 1] <= threshold:
                        break
                    together += 1
                checks[key].append(together * DT)
        # single steps from every true frame of a batch
        starts, ends = batch.u[:, :-1, :, 0].flatten(0, 1), u[:, 1:].reshape(-1, POINTS)
        steps = rolled_by_hand(name, starts, 1, nu)[:, 0]
        for step, truth in zip(steps, ends, strict=True):
            one_step.append(sum((step - truth) ** 2) / sum(truth**2))
    n = sum(SIZES)
    bands = (np.sqrt(spectrum / n) / POINTS).mean(0)
    return {
        "rmse": sums["rmse"].mean() / n,
        "nrmse": sums["nrmse"].mean() / n,
        "vrmse": sums["vrmse"].mean() / n,
        "crmse": (np.sqrt(sums["mass"] / n) / POINTS).mean(),
        "brmse": sums["boundary"].mean() / n,
        "max_error": largest.mean(),
        "frmse_low": bands[:4].mean(),
        "frmse_mid": bands[4:12].mean(),
        "frmse_high": bands[12:].mean(),
        **{key: sum(values) / n for key, values in checks.items()},
        "one_step_nrmse": sum(map(math.sqrt, one_step)) / len(one_step),
        "one_step_squared": sum(one_step) / len(one_step),
        "nrmse_over_time": list(sums["nrmse"] / n),
    }


@pytest.mark.parametrize("name", ["persistence", "solver-64", "solver-128"])
def test_evaluation_row_of_a_baseline_equals_its_metrics_by_hand(evaluation, name):
    (row,) = [row for row in evaluation.rows if row["model"] == name]
    assert (row["mode"], row["correct"], row["ttc"]) == ("physical", "none", False)
    # two calls of a second for the six trajectories
    assert row["seconds_per_trajectory"] == pytest.approx(2 / 6)
    expected = metrics_by_hand(name)
    named = {"model", "mode", "correct", "ttc", "seconds_per_trajectory"}
    assert set(row) - named == set(expected)
    over_time = expected.pop("nrmse_over_time")
    assert row["nrmse_over_time"] == pytest.approx(over_time, rel=1e-3, abs=1e-6)
    for key, value in expected.items():
        assert row[key] == pytest.approx(value, rel=1e-3, abs=2e-6), key


def test_evaluation_rows_of_finer_solvers_have_smaller_errors(evaluation):
    error = {row["model"]: row["nrmse"] for row in evaluation.rows if row["mode"] == "physical"}
    solvers = [error[f"solver-{points}"] for points in (128, 64, 32)]
    assert sorted(solvers) == solvers
    assert solvers[-1] < error["persistence"]


def test_evaluation_rows_are_in_order_of_model_persistence_and_solvers(evaluation):
    names = [(row["model"], row["mode"]) for row in evaluation.rows]
    assert names == [
        ("mine", "latent"),
        ("mine", "physical"),
        ("persistence", "physical"),
        ("solver-32", "physical"),
        ("solver-64", "physical"),
        ("solver-128", "physical"),
    ]


@pytest.mark.parametrize(
    ("points", "expected"),
    [(8, []), (32, [16, 32]), (40, [20, 40]), (64, [16, 32, 64]), (256, [64, 128, 256])],
)
def test_evaluation_has_solvers_whose_points_divide_those_of_the_simulator(points, expected):
    module = EvaluationModule(make_simulator(points=points), "mine", ["none"])
    names = [measurement.settings.model for measurement in module.measurements]
    assert names[2:] == ["persistence", *(f"solver-{n}" for n in expected)]


def test_evaluation_solvers_have_the_simulators_equation_step_and_length():
    spec = FieldSpec(Grid((64,), (2.0,)), parameters=("beta",), dt=0.125, std=(0.6,))
    simulator = Simulator(build(SPEC, spec), spec, "advection")
    # at speed 0.5 a field moves by a sixteenth: two of the 64 cells of length 1/32 a frame
    u0 = periodic_1d.initial_conditions(2, simulator.x, seed=6, length=2.0)
    u = torch.stack([u0.roll(2 * k, -1) for k in range(4)], 1)[..., None]
    batch = Batch(u, torch.full((2, 1), 0.5), torch.arange(2), torch.arange(2))
    module = evaluated(EvaluationModule(simulator, "mine", ["none"]), [batch])
    (row,) = [row for row in module.rows if row["model"] == "solver-64"]
    assert row["nrmse"] == pytest.approx(0.0, abs=1e-6)
    assert row["one_step_nrmse"] == pytest.approx(0.0, abs=1e-6)
    assert row["correlation_time"] == pytest.approx(3 * 0.125)
