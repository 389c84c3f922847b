"""Data whose first frames are seen on a coarser grid: what is seen, what is drawn for the rest."""

import json

import h5py
import numpy as np
import pytest
import torch

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec
from ups.datamodules import OwnDataModule, TrajectoryDataModule
from ups.evaluation.baselines import Persistence, RandomStart
from ups.modules.evaluation import measure_baselines
from ups.physics import EQUATIONS, navier_stokes, spectral
from ups.physics.observation import Observation

POINTS, SEEN = 16, 8
GRID = navier_stokes.EQUATION.grid(POINTS)
SETTINGS = {
    "equation": "navier_stokes",
    "nu": 2e-3,
    "num_points": POINTS,
    "reference_num_points": POINTS,
    "dt": 0.5,
    "num_frames": 4,
    "start_time": 1.5,
    "observed_points": SEEN,
    "num_train": 6,
    "num_validation": 2,
    "num_test": 3,
    "unroll_steps": 2,
    "batch_size": 6,
}


def fields(n, seed=0, grid=GRID):
    shape = (n, *grid.shape, 1)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written_out(u, seen=SEEN):
    """Fields (..., X, Y, 1) without the waves that ``seen`` points can't hold, in NumPy."""
    waves = np.fft.fft2(u.double().numpy(), axes=(-3, -2))
    n = waves.shape[-2]
    is_seen = np.abs(np.fft.fftfreq(n, 1 / n)) < seen / 2
    kept = is_seen[:, None, None] & is_seen[:, None]
    return torch.from_numpy(np.fft.ifft2(waves * kept, axes=(-3, -2)).real)


def observation(**changes):
    arguments = {"num_points": SEEN, "fields": fields(4), **changes}
    return Observation(navier_stokes.EQUATION, GRID, **arguments)


def made(tmp_path, **changes):
    data = TrajectoryDataModule(**{**SETTINGS, "cache_dir": tmp_path, **changes})
    data.prepare_data()
    data.setup()
    return data


def test_observation_keeps_the_waves_of_the_coarser_grid_alone():
    u = fields(3)
    seen = observation()(u)
    assert torch.allclose(seen, written_out(u), atol=1e-12)
    assert torch.allclose(observation()(seen), seen, atol=1e-12)
    # of any leading axes
    assert torch.equal(observation()(u.view(3, 1, *u.shape[1:]))[:, 0], seen)
    # the wave of two coarse points has no phase there: it is not seen
    wave = torch.cos(torch.pi * torch.arange(POINTS, dtype=torch.float64) * SEEN / POINTS)
    assert observation()(wave.expand(1, POINTS, POINTS)[..., None]).abs().max() < 1e-12


def test_observation_of_burgers_is_lines_between_averages_of_cells():
    equation = EQUATIONS["burgers"]
    u = fields(2, grid=equation.grid(POINTS))
    seen = Observation(equation, equation.grid(POINTS), 4, u)(u)
    averages = u.view(2, 4, 4, 1).mean(2)
    assert torch.allclose(seen.view(2, 4, 4, 1).mean(2), averages)
    assert not torch.allclose(seen, u)


def test_drawn_fields_have_the_waves_that_are_not_seen_at_their_usual_size():
    scale = torch.linspace(0.2, 3.0, POINTS)[:, None, None]
    known = fields(500) * scale
    draws = observation(fields=known).draw_missing(fields(3000, seed=1))
    assert draws.shape == (3000, POINTS, POINTS, 1)
    assert written_out(draws).abs().max() < 1e-6
    missing = known - written_out(known)
    wanted, found = (
        torch.from_numpy(np.fft.rfft2(u.numpy(), axes=(1, 2))).abs().square().mean(0)
        for u in (missing, draws)
    )
    large = wanted > 1e-3 * wanted.max()
    assert large.sum() > 50
    assert torch.allclose(found[large], wanted[large], rtol=0.25)
    phases = torch.from_numpy(np.fft.rfft2(draws.numpy(), axes=(1, 2)))[:, 6, 3].angle()
    assert phases.cos().mean().abs() < 0.1
    assert phases.sin().mean().abs() < 0.1


def test_draws_follow_torchs_random_numbers_and_need_no_equal_batches():
    seen, u = observation(), fields(2)
    torch.manual_seed(3)
    first = seen.draw_missing(u)
    torch.manual_seed(3)
    assert torch.equal(seen.draw_missing(u), first)
    assert not torch.allclose(seen.draw_missing(u), first)
    assert not torch.allclose(first[0], first[1])
    assert seen.draw_missing(u.float()).dtype == torch.float32


def test_random_fields_of_a_line_with_channels_have_their_own_sizes():
    rms = spectral.mode_rms(torch.randn(400, 8, 2) * torch.tensor([0.1, 5.0]), (-2,))
    drawn = spectral.random_fields(rms, 2000, [8], (-2,))
    assert drawn.std((0, 1)).tolist() == pytest.approx([0.1, 5.0], rel=0.1)


@pytest.mark.parametrize("in_memory", [True, False])
def test_first_frames_are_observed_and_all_others_whole(tmp_path, in_memory):
    whole = made(tmp_path, observed_points=None)
    data = made(tmp_path, in_memory=in_memory, augmentation={"translate": False, "reflect": False})
    assert data.path == whole.path  # the same file, whatever is seen of it
    assert whole.observation is None
    for split, values in data.values.items():
        truth = whole.values[split]
        assert torch.equal(values[:, 1:], truth[:, 1:])
        assert torch.allclose(values[:, 0].double(), written_out(truth[:, 0]), atol=1e-6)
        assert not torch.allclose(values[:, 0], truth[:, 0], atol=1e-3)
    assert data.dataset["hash"] != whole.dataset["hash"]
    assert data.spec == whole.spec
    seen = written_out(torch.from_numpy(whole.train_values))  # training starts from any frame
    assert data.input_sizes["largest value"].item() == pytest.approx(seen.abs().max().item())
    (batch,) = data.val_dataloader()
    assert torch.equal(batch.u, data.values["validation"])
    windows = torch.from_numpy(whole.train_values)
    starts = set()
    for batch in data.train_dataloader():
        for u, row in zip(batch.u, batch.trajectory.tolist(), strict=True):
            gaps = [(u[1:] - windows[row, t + 1 : t + 3]).abs().max().item() for t in (0, 1)]
            start = gaps.index(min(gaps))
            assert min(gaps) == 0
            starts.add(start)
            first = windows[row, start]
            assert torch.allclose(u[0].double(), written_out(first), atol=1e-6)
    assert starts == {0, 1}  # a window may start at any frame


def test_first_frames_are_observed_after_augmentation(tmp_path):
    data = made(tmp_path)
    for batch in data.train_dataloader():
        first = batch.u[:, 0]
        assert torch.allclose(first.double(), written_out(first), atol=1e-6)


def test_generated_data_begin_at_the_start_time(tmp_path):
    data = made(tmp_path, observed_points=None)
    equation = navier_stokes.EQUATION
    u0 = equation.initial_conditions["published"](3, GRID, 2)
    u = equation.solve(u0, [1.5, 2.0, 2.5, 3.0], [2e-3], GRID, torch.float64)
    assert torch.allclose(data.values["test"], u, atol=1e-6)
    with h5py.File(data.path) as file:
        assert json.loads(file.attrs["recipe"])["start_time"] == 1.5
        assert file["t-coordinate"][:2].tolist() == [0.0, 0.5]
    others = [TrajectoryDataModule(**{**SETTINGS, "start_time": t}).path for t in (0.0, 1.0)]
    assert len({data.path.name, *(path.name for path in others)}) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observed_points": 5}, r"must be a divisor of the 16 x 16 points .*, and fewer, got 5"),
        ({"observed_points": 16}, "and fewer, got 16"),
        ({"observed_points": 1}, "must be an integer >= 2"),
        ({"equation": "kuramoto_sivashinsky", "nu": None}, None),
        ({"equation": "shallow_water", "nu": None, "observed_points": 8}, "`data.observed_points`"),
        ({"start_time": -1.0}, "`data.start_time` must be a number >= 0"),
    ],
)
def test_what_can_not_be_observed_is_refused_before_data_are_made(tmp_path, changes, words):
    settings = {**SETTINGS, "cache_dir": tmp_path, **changes}
    if words is None:
        TrajectoryDataModule(**settings)
        return
    with pytest.raises(UpsError, match=words) as refusal:
        TrajectoryDataModule(**settings)
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_data_without_an_equation_can_not_be_observed(tmp_path):
    path = tmp_path / "own.npy"
    np.save(path, np.random.default_rng(0).normal(size=(10, 3, 16)))
    data = OwnDataModule(str(path), dt=0.1, length=1.0, observed_points=4, unroll_steps=2)
    with pytest.raises(UpsError, match="null, got 4: data without an equation can't be seen"):
        data.setup()


def test_random_start_adds_to_initial_fields_alone():
    u = fields(2)
    stepper = RandomStart(Persistence(), lambda u: torch.full_like(u, 0.5))
    state = stepper.encode(u, torch.empty(2, 0))
    assert torch.equal(stepper.decode(stepper.step(state, torch.empty(2, 0))), u + 0.5)


def test_baselines_see_what_is_observed_and_the_solver_draws_the_rest(tmp_path):
    spec = FieldSpec(navier_stokes.EQUATION.grid(64), ("w",), ("nu",), dt=0.1, std=(1.0,))
    equation, nu = navier_stokes.EQUATION, 1e-3
    u0 = equation.initial_conditions["published"](6, spec.grid, 5)
    u = equation.solve(u0, [0.0, 0.1, 0.2], [nu], spec.grid, torch.float64).float()
    seen = Observation(equation, spec.grid, 8, u[:, 0])
    batch = Batch(
        torch.cat((seen(u[:, :1]), u[:, 1:]), 1), torch.full((6, 1), nu),
        torch.arange(6), torch.arange(6),
    )  # fmt: skip
    rows = {}
    for measurement in measure_baselines(spec, equation, seen):
        measurement.start(batch)
        torch.manual_seed(0)
        measurement.update(batch)
        row = measurement.compute()
        rows[row.model] = row.metrics
    solver = rows["solver-64"]
    # the others have no place for what is not seen
    assert [name for name, metrics in rows.items() if "crps" in metrics] == ["solver-64"]
    assert {"persistence", "solver-32", "solver-64"} <= rows.keys()
    # half of the steps start from the first frame, which the batch holds as it is seen
    step = equation.solve(seen(u[:, :-1]).flatten(0, 1), [0.1], [nu], spec.grid, torch.float32)
    ends = u[:, 1:].flatten(0, 1)
    errors = (step[:, 0] - ends).square().mean((1, 2, 3)) / ends.square().mean((1, 2, 3))
    assert solver["one_step_nrmse"] == pytest.approx(errors.sqrt().mean().item(), rel=1e-3)
    assert solver["nrmse"] > 0.02  # from the whole field it would be the truth's own
    # draws of the right size are as far from each other as from the truth
    assert 0.7 < solver["spread_skill_ratio"] < 1.4
    assert sum(solver["rank_histogram"]) == pytest.approx(1)
