"""The moving frame: a symmetry of the solver, and an exact one of every rollout."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import line_spec, make_simulator

import ups
from ups.core.fields import Boundary, FieldSpec, Grid, PointCloud
from ups.datamodules import BurgersDataModule
from ups.datamodules.statistics import largest_values
from ups.models import build
from ups.physics import advection, burgers
from ups.physics.equation import translate
from ups.physics.moving_frame import MovingFrame
from ups.simulation.input_range import input_size
from ups.simulation.simulator import Simulator

POINTS = 32
UNIT = 1 / POINTS / 0.05  # the speed of one cell a step
BOOST = burgers.EQUATION.boost
NETS = {
    "mean_network": {"hidden_dim": 16, "depth": 1},
    "denoiser": {"hidden_dim": 16, "depth": 1},
    "num_steps": 2,
}


def fields(n=3, points=POINTS, seed=0):
    u0 = burgers.initial_conditions(n, burgers.cell_centers(points), seed)
    return u0 - u0.mean(1, keepdim=True)


def moved(u, cells, speed):
    """Trajectories (B, T, X), without the initial frame, as solutions of a mean speed."""
    rows = [u[:, k].roll((k + 1) * cells, -1) for k in range(u.shape[1])]
    return torch.stack(rows, 1) + speed


@pytest.mark.parametrize("speed", [0.7, -1.3])
def test_a_boost_maps_exact_solutions_to_exact_solutions(speed):
    u0, t, points = fields(points=256).double(), [0.1, 0.4], 256
    plain = burgers.cole_hopf(u0, t, 0.05)
    found = burgers.cole_hopf(u0 + speed, t, 0.05)
    k = 2j * torch.pi * torch.arange(points // 2 + 1)
    for i, time in enumerate(t):
        shifted = torch.fft.irfft(torch.fft.rfft(plain[:, i]) * torch.exp(-k * speed * time))
        assert (found[:, i] - shifted - speed).abs().max() < 1e-6


def test_a_boost_is_a_symmetry_of_the_solver_to_its_own_error():
    """Half the cells, a quarter of the difference."""
    differences = []
    for points in (256, 512):
        u0 = torch.sin(2 * torch.pi * burgers.cell_centers(points)).double()[None]
        speed = 0.5  # whole cells in each of the times
        plain = burgers.solve(u0, [0.125, 0.25], 0.05)
        found = burgers.solve(u0 + speed, [0.125, 0.25], 0.05)
        expected = moved(plain, points // 16, speed)
        differences.append((found - expected).square().mean().sqrt().item())
    assert differences[0] < 1e-3
    assert differences[1] < 0.35 * differences[0]


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "mixer", "num_tokens": 8},
        {"architecture": "upt", "num_patches": 8},
        {"architecture": "resnet"},
        {"architecture": "unet"},
        {"architecture": "fno"},
    ],
    ids=lambda config: config["architecture"],
)
@pytest.mark.parametrize("mode", ["latent", "physical"])
def test_a_moving_field_is_rolled_out_as_the_field_at_rest(config, mode):
    torch.manual_seed(0)
    spec = line_spec(POINTS)
    simulator = Simulator(build(config, spec), spec, "burgers").eval()
    u0 = fields()
    plain = simulator.rollout(u0, 4, nu=0.01, mode=mode)
    for cells in (1, -7):
        found = simulator.rollout(u0 + cells * UNIT, 4, nu=0.01, mode=mode)
        expected = moved(plain, cells, cells * UNIT)
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_each_field_has_a_frame_of_its_own():
    simulator, u0 = make_simulator(POINTS).eval(), fields()
    cells = torch.tensor([0, 3, -2])
    found = simulator.rollout(u0 + cells[:, None] * UNIT, 3, nu=0.01)
    plain = simulator.rollout(u0, 3, nu=0.01)
    for b, n in enumerate(cells.tolist()):
        assert found[b : b + 1] == pytest.approx(moved(plain[b : b + 1], n, n * UNIT), abs=1e-4)
    for fields_per_decode in (1, 6):  # two frames together, then one
        moving = u0 + cells[:, None] * UNIT
        frames = simulator.stream(moving, 3, nu=0.01, fields_per_decode=fields_per_decode)
        assert torch.stack(list(frames), 1) == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize("options", [{"correct": "diffusion"}, {"correct": "none", "ttc": True}])
def test_corrected_and_guided_rollouts_move_too(options):
    simulator, u0 = make_simulator(POINTS).eval(), fields()
    simulator.add_corrector("diffusion", {**NETS, "sampler": "heun"})
    torch.manual_seed(1)
    plain = simulator.rollout(u0, 3, nu=0.01, **options)
    torch.manual_seed(1)
    found = simulator.rollout(u0 + 5 * UNIT, 3, nu=0.01, **options)
    assert found == pytest.approx(moved(plain, 5, 5 * UNIT), abs=2e-3)


def test_positions_off_the_grid_move_too():
    simulator, u0 = make_simulator(POINTS).eval(), fields()
    x_out = torch.tensor([0.11, 0.5, 0.977])
    found = simulator.rollout(u0 + 4 * UNIT, 3, nu=0.01, x_out=x_out)
    for k in range(1, 4):
        at = (x_out - 4 * k / POINTS) % 1
        plain = simulator.rollout(u0, k, nu=0.01, x_out=at)[:, -1]
        assert found[:, k - 1] == pytest.approx(plain + 4 * UNIT, abs=1e-3)


def test_what_is_left_of_the_mean_is_at_most_half_a_cell_a_step():
    u0 = fields(40)[..., None] + torch.linspace(-3, 3, 40)[:, None, None]
    frame = MovingFrame(burgers.EQUATION, u0, Grid((POINTS,), (1.0,)), 0.05)
    seen = frame.enter(u0[:, None])
    assert seen.mean((1, 2, 3)).abs().max() <= UNIT / 2 * (1 + 1e-5)
    assert frame.leave(seen, 0) == pytest.approx(u0[:, None], abs=1e-5)


def test_fields_that_hardly_move_are_left_as_they_are():
    u0 = fields()[..., None] + 0.4 * UNIT
    frame = MovingFrame(burgers.EQUATION, u0, Grid((POINTS,), (1.0,)), 0.05)
    trajectory = u0[:, None].repeat(1, 3, 1, 1)
    assert frame.enter(trajectory) is trajectory
    assert frame.leave(trajectory) is trajectory


@pytest.mark.parametrize(
    ("equation", "domain"),
    [
        (None, Grid((POINTS,), (1.0,))),
        (advection.EQUATION, Grid((POINTS,), (1.0,))),
        (burgers.EQUATION, Grid((POINTS,), (1.0,), ((Boundary.WALL, Boundary.WALL),))),
        (burgers.EQUATION, PointCloud(((0.0, 1.0),))),
    ],
)
def test_frames_are_at_rest_where_there_is_no_such_symmetry(equation, domain):
    u0 = fields()[..., None] + 9.0
    assert MovingFrame(equation, u0, domain, 0.05).enter(u0[:, None]).equal(u0[:, None])


def test_boosts_of_fields_in_the_plane_move_along_each_axis():
    boost = dataclasses.replace(BOOST, velocity=lambda u: u.mean((1, 2)), fields=lambda u, v: u)
    grid = Grid((8, 4), (2.0, 1.0))  # cells of 1/4, steps of 1/2: half a unit of speed a cell
    u0 = torch.randn(2, 8, 4, 2)
    u0 -= u0.mean((1, 2), keepdim=True)
    u0 += torch.tensor([[0.5, -1.0], [0.0, 1.5]])[:, None, None]
    equation = dataclasses.replace(burgers.EQUATION, boost=boost)
    frame = MovingFrame(equation, u0, grid, 0.5)
    seen = frame.enter(u0[:, None].repeat(1, 3, 1, 1, 1))
    for k in range(3):
        assert torch.equal(seen[0, k], u0[0].roll((-k, 2 * k), (0, 1)))
        assert torch.equal(seen[1, k], u0[1].roll((0, -3 * k), (0, 1)))


def test_fields_are_translated_on_their_own_device():
    # without a GPU: on a device without values
    u = torch.empty(2, 3, 8, 1, device="meta")
    points = torch.zeros(2, 1, dtype=torch.long, device="meta")
    assert translate(u, points, Grid((8,), (1.0,))).device.type == "meta"


def test_advection_has_no_boosts():
    assert advection.EQUATION.boost is None


# ---------------------------------------------------------------- fields beyond the training's


def test_input_size_is_the_largest_value_and_step_of_each_field():
    u = torch.zeros(2, 4, 1)
    u[0, :, 0] = torch.tensor([1.0, -3.0, 0.0, 2.0])
    u[1, :, 0] = torch.tensor([0.0, 0.0, 0.0, 5.0])
    sides = (Boundary.WALL, Boundary.WALL)
    for boundary, steps in (((), [4.0, 5.0]), ((sides,), [4.0, 5.0])):
        spec = FieldSpec(Grid((4,), (1.0,), boundary), std=(0.5,))
        sizes = input_size(u, spec)
        assert sizes["largest value"].tolist() == [6.0, 10.0]
        assert sizes["steepest step"].tolist() == [2 * step for step in steps]
    u[1, 2, 0] = 5.0  # the step is across the ends alone, and small
    u[1, 0:2, 0] = torch.tensor([0.0, 2.5])
    sizes = input_size(u, FieldSpec(Grid((4,), (1.0,), (sides,)), std=(0.5,)))
    assert sizes["steepest step"].tolist() == [8.0, 5.0]
    sizes = input_size(u, FieldSpec(Grid((4,), (1.0,)), std=(0.5,)))
    assert sizes["steepest step"].tolist() == [8.0, 10.0]
    cloud = FieldSpec(PointCloud(((0.0, 1.0),)), std=(0.5,))
    assert input_size(u, cloud).keys() == {"largest value"}


def test_largest_value_is_of_the_moving_frame_and_of_all_frames():
    file = SimpleNamespace(grid=Grid((POINTS,), (1.0,)), dt=0.05)
    three = torch.tensor([1.0, 1.2, 0.7]).view(3, 1, 1)
    still = three * fields(4)[:, None, :, None]
    largest = still.abs().max().item()
    for equation in (burgers.EQUATION, None):
        found = largest_values(still.numpy(), (0.0,), file, equation)
        assert found == pytest.approx((largest,))
    moving = (still + 7 * UNIT).numpy()
    assert largest_values(moving, (0.0,), file, burgers.EQUATION) == pytest.approx(
        (largest,), abs=UNIT
    )
    assert largest_values(moving, (7 * UNIT,), file, None) == pytest.approx((largest,))


def test_each_channel_counts_in_its_own_standard_deviations():
    u = torch.zeros(1, 2, 3, 2)
    u[0, 1, 2] = torch.tensor([1.0, 30.0])
    spec = FieldSpec(Grid((2, 3), (1.0, 1.0)), ("a", "b"), std=(0.1, 10.0), mean=(0.0, 0.0))
    sizes = input_size(u, spec)
    assert sizes["largest value"].item() == pytest.approx(10.0)
    assert sizes["steepest step"].item() == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda u: u, None),
        (lambda u: u + 50 * UNIT, None),  # a mean is no matter
        (lambda u: 3 * u, r"The largest value of `u0` is \S+ standard deviations, up to 2 in the"),
        (lambda u: u.sign(), r"The steepest step of `u0` is 3.33 standard deviations, up to 1 in"),
    ],
)
def test_the_first_field_beyond_the_training_range_warns_once(change, words, caplog):
    simulator = make_simulator(POINTS).eval()
    simulator.input_range = {"largest value": 2.0, "steepest step": 1.0}
    u0 = torch.sin(2 * torch.pi * burgers.cell_centers(POINTS))[None]
    for _ in range(2):
        simulator.rollout(change(u0), 2, nu=0.01)
    found = [record.getMessage() for record in caplog.records if "u0" in record.getMessage()]
    assert len(found) == (0 if words is None else 1)
    assert words is None or re.match(words, found[0])


# where windows begin early, a late field is no usual input; where they begin anywhere, it is one
@pytest.mark.parametrize(("start_time_bias", "frames"), [(2.0, 1), (1.0, 3)])
def test_the_range_is_that_of_the_training_split_and_travels_with_the_checkpoint(
    tmp_path, start_time_bias, frames
):
    data = BurgersDataModule(
        cache_dir=str(tmp_path), num_points=32, reference_num_points=64, num_frames=3,
        num_train=20, num_validation=2, num_test=2, unroll_steps=1,
        start_time_bias=start_time_bias,
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    first = torch.from_numpy(data.train_values)[:, :frames].flatten(0, 1)
    # a step of a cell in 0.05
    unit = 1 / 32 / 0.05
    first = first - (first.mean((1, 2), keepdim=True) / unit).round() * unit
    std = data.spec.std[0]
    found = data.input_range(data.spec)
    assert found["largest value"] == pytest.approx(first.abs().max().item() / std)
    step = (first.roll(-1, 1) - first).abs().max().item()
    assert found["steepest step"] == pytest.approx(step / std, rel=1e-5)
    simulator = make_simulator(POINTS).eval()
    simulator.input_range = found
    simulator.save(tmp_path / "model")
    assert ups.load(tmp_path / "model").input_range == found
