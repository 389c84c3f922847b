"""An equation of one's own: the example of the documentation, and equations that lack parts."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_simulator
from helpers.pages import write_files

from ups.core.errors import UpsError
from ups.core.fields import Grid
from ups.datamodules import TrajectoryDataModule
from ups.evaluation.baselines import coarse_solvers
from ups.physics import Equation, Law
from ups.physics.periodic_1d import scalar_equation
from ups.simulation.guidance import TTC, Guided

PAGE = Path(__file__).parents[1] / "docs/korteweg_de_vries.md"
NU = 5e-4
X = torch.arange(128, dtype=torch.float64) / 128


@pytest.fixture
def kdv(tmp_path, monkeypatch):
    """The module of the page."""
    write_files(PAGE.read_text(), tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("kdv")
    sys.modules.pop("kdv")


def soliton(height, center, x=X):
    distance = (x - center + 0.5) % 1 - 0.5
    return height / torch.cosh((height / (2 * NU)) ** 0.5 * distance) ** 2


def test_soliton_moves_at_twice_its_height(kdv):
    found = kdv.solve(soliton(0.8, 0.3)[None], [0.0, 0.1, 0.25], NU)[0]
    expected = torch.stack([soliton(0.8, 0.3 + 1.6 * t) for t in (0.0, 0.1, 0.25)])
    assert torch.allclose(found, expected, atol=3e-4)


def test_laws_of_the_example_hold(kdv):
    grid = Grid((128,), (1.0,))
    u0 = kdv.EQUATION.initial_conditions["default"](3, grid, 0).double()
    u = kdv.EQUATION.solve(u0, [0.1, 0.4], [NU], grid, torch.float64)
    assert {f.name: f.law for f in kdv.EQUATION.functionals} == dict.fromkeys(
        ("mass", "energy"), Law.CONSERVED
    )
    for functional in kdv.EQUATION.functionals:
        before = functional.compute(u0, grid)[:, None].expand(3, 2)
        assert torch.allclose(functional.compute(u, grid), before, rtol=2e-4)


def test_symmetries_of_the_example_map_solutions_to_solutions(kdv):
    grid = Grid((128,), (1.0,))
    u0 = kdv.EQUATION.initial_conditions["default"](2, grid, 1).double()
    slow = kdv.EQUATION.solve(u0, [0.02, 0.04], [NU], grid, torch.float64)
    symmetry = kdv.EQUATION.symmetry("rescale_time")
    factor = torch.full((2,), 2.0, dtype=torch.float64)
    fast = symmetry.fields(u0[:, None], factor, grid)[:, 0]
    nu = symmetry.parameters(torch.full((2, 1), NU, dtype=torch.float64), factor)[0].tolist()
    found = kdv.EQUATION.solve(fast, [0.01, 0.02], nu, grid, torch.float64)
    assert torch.allclose(found, symmetry.fields(slow, factor, grid), atol=1e-6)
    assert kdv.EQUATION.symmetry("reflect") is None


def test_boost_of_the_example_maps_solutions_to_solutions(kdv):
    grid, boost = Grid((128,), (1.0,)), kdv.EQUATION.boost
    u0 = soliton(0.8, 0.3)[None, :, None] + 0.5
    velocity = boost.velocity(u0)
    seen = boost.fields(u0, velocity)
    assert seen.mean().item() == pytest.approx(0, abs=1e-12)
    time = 8 / 128 / velocity.item()  # the frame has moved by 8 points
    at_rest = kdv.EQUATION.solve(u0, [time], [NU], grid, torch.float64)[:, 0]
    moving = kdv.EQUATION.solve(seen, [time], [NU], grid, torch.float64)[:, 0]
    expected = boost.fields(at_rest, velocity).roll(-8, 1)
    assert (moving - expected).abs().max() < 1e-4


def bare(**parts):
    return scalar_equation("bare", "u_t = 0", "nu", **parts)


def test_equation_assumes_nothing_that_is_not_given():
    equation = bare()
    assert [symmetry.name for symmetry in equation.symmetries] == ["translate"]
    assert equation.functionals == ()
    assert not equation.has_maximum_principle
    assert not equation.conserves_mean
    assert bare(laws={"mass": Law.CONSERVED}).conserves_mean
    assert not bare(laws={"mass": Law.NON_INCREASING}).conserves_mean
    for some in (equation, Equation("bare", "u_t = 0", ("u",), ("nu",), 1)):
        confidence = some.solver_confidence(torch.randn(2, 8, 1), Grid((8,), (1.0,)), 0.1, 3)
        assert torch.equal(confidence, torch.ones(2, 8, 1))
    with pytest.raises(UpsError, match="`laws` must be of mass, tv, energy, got speed"):
        bare(laws={"speed": Law.CONSERVED})


def test_equation_without_a_solver_is_no_baseline_and_makes_no_data(tmp_path, monkeypatch):
    spec = make_simulator().spec
    solved = bare(solve=lambda u0, t, *_: u0[:, None].expand(-1, len(t), -1))
    assert [solver.name for solver in coarse_solvers(solved, spec, (8, 16, 24))] == [
        "solver-8", "solver-16",
    ]  # fmt: skip
    assert coarse_solvers(bare(), spec, (8, 16)) == []
    assert coarse_solvers(None, spec, (8, 16)) == []
    text = "from ups.physics.periodic_1d import scalar_equation\n"
    text += 'EQUATION = scalar_equation("unsolved", "u_t = 0", "nu")\n'
    (tmp_path / "unsolved.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UpsError, match=r"`data\.path` must be a file, got null: the equation uns"):
        TrajectoryDataModule(equation="unsolved", nu=1.0)
    assert TrajectoryDataModule(equation="unsolved", path="x.hdf5", nu=1.0).equation.solve is None


@pytest.mark.parametrize(
    ("equation", "reason"),
    [(None, "these data have no equation"), (bare(), "the equation bare has no solver_step")],
)
def test_rollout_without_a_solver_step_is_not_conditioned(equation, reason):
    with pytest.raises(UpsError, match=f"`ttc` must be False: {reason}"):
        Guided(make_simulator(), equation, TTC())
