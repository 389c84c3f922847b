"""Simulator: shapes, positions, modes, refusals, and the equivariance that the model claims."""

import copy
import math
import shutil

import pytest
import torch
from conftest import SPEC, line_spec, make_simulator

import ups
from ups.core.errors import UpsError
from ups.core.fields import Boundary, FieldSpec, Grid
from ups.hub.export import to_xarray
from ups.metrics import pdebench_metrics
from ups.models import build
from ups.models.interpolation import (
    axes_of,
    interpolate,
    interpolate_on_grid,
    interpolate_to_axes,
    merge_coincident,
    wrap,
)
from ups.physics import EQUATIONS
from ups.simulation.guidance import Guided
from ups.simulation.simulator import Simulator

NU = 0.001


def fields(n=3, points=32, seed=0):
    """They have no mean, so that no frame moves."""
    x = ups.physics.burgers.cell_centers(points)
    u0 = ups.physics.burgers.initial_conditions(n, x, seed)
    return u0 - u0.mean(1, keepdim=True)


def test_rollout_and_stream_give_the_same_frames(simulator):
    u0 = fields()
    u = simulator.rollout(u0, 4, nu=NU)
    assert u.shape == (3, 4, 32)
    assert u.dtype == torch.float32
    assert simulator.rollout(u0[0], 2, nu=NU).shape == (1, 2, 32)
    assert torch.allclose(simulator.rollout(u0[:1], 4, nu=NU), u[:1], atol=1e-5)
    frames = simulator.stream(u0, 4, nu=NU)
    assert torch.equal(next(frames), u[:, 0])
    assert not u.requires_grad


def test_rollout_of_fields_with_a_channel_axis_has_one_too(simulator):
    u0 = fields()
    u = simulator.rollout(u0, 4, nu=NU)
    assert torch.equal(simulator.rollout(u0[..., None], 4, nu=NU), u[..., None])
    frames = list(simulator.stream(u0[..., None], 4, nu=NU))
    assert [tuple(frame.shape) for frame in frames] == [(3, 32, 1)] * 4
    at = torch.tensor([0.3, 0.41])
    out = simulator.rollout(u0[..., None], 2, nu=NU, x_out=at)
    assert torch.equal(out, simulator.rollout(u0, 2, nu=NU, x_out=at)[..., None])


def test_simulator_subtracts_the_mean_and_divides_by_the_standard_deviation():
    """Of a map of the unit field, both ways: (u - mean) / std, and mean + std times the answer."""

    class Affine(torch.nn.Module):
        def encode(self, u):
            return 3 * u

        def decode(self, z):
            return z / 3 + 1

    spec = FieldSpec(Grid((4,), (1.0,)), ("a", "b"), mean=(1.0, -2.0), std=(0.5, 4.0))
    simulator = Simulator(Affine(), spec)
    u = torch.tensor([2.0, 6.0]).expand(1, 4, 2)
    z = simulator.encode(u)
    assert z[0, 0].tolist() == [6.0, 6.0]
    assert simulator.decode(z)[0, 0].tolist() == pytest.approx([2.5, 10.0])
    assert simulator.decode(0 * z)[0, 0].tolist() == pytest.approx([1.5, 2.0])


def test_simulator_positions_and_dt_are_those_of_its_spec(simulator):
    assert torch.allclose(simulator.x, (torch.arange(32) + 0.5) / 32)
    assert simulator.dt == simulator.spec.dt == 0.05
    plane = FieldSpec(Grid((4, 2), (2.0, 1.0)))
    x = Simulator(torch.nn.Identity(), plane).x
    assert x.shape == (4, 2, 2)
    assert x[3, 1].tolist() == [1.75, 0.75]


def test_rollout_encodes_once_in_latent_mode_and_at_every_step_in_physical_mode(simulator):
    u0, parameters = fields(), torch.full((3, 1), NU)
    latent, physical = (
        simulator.rollout(u0, 3, nu=NU),
        simulator.rollout(u0, 3, nu=NU, mode="physical"),
    )
    z = simulator.encode(u0[..., None])
    for k in range(3):
        z = simulator.step(z, parameters)
        assert torch.allclose(simulator.decode(z)[..., 0], latent[:, k], atol=1e-6)
    u = u0
    for k in range(3):
        u = simulator.rollout(u, 1, nu=NU)[:, 0]
        assert torch.allclose(u, physical[:, k], atol=1e-6)
    assert not torch.allclose(latent[:, 2], physical[:, 2], atol=1e-3)


@pytest.mark.parametrize("mode", ["latent", "physical"])
@pytest.mark.parametrize("checkpoint_every", [None, 2])
def test_a_stride_leaves_frames_out_and_a_latent_rollout_decodes_no_other(
    simulator, mode, checkpoint_every
):
    """Fields that move, and one that needs two steps for each."""
    u0 = fields() + 0.5
    simulator.training_parameters = [[NU]]
    options = {
        "nu": torch.tensor([NU, 2 * NU, NU]),
        "mode": mode,
        "grad": True,
        "checkpoint_every": checkpoint_every,
    }
    every = simulator.rollout(u0, 7, **options)
    decoded = []
    simulator.model.decode, decode = (
        lambda z: decoded.append(len(z)) or decode(z),
        simulator.model.decode,
    )
    third = simulator.rollout(u0, 7, stride=3, **options)
    assert torch.allclose(third, every[:, 2::3], atol=1e-6)
    assert third.shape[1] == 2
    if mode == "latent":
        assert sum(decoded) == 2 * len(u0)


def test_steps_after_the_last_frame_of_a_stride_are_not_taken(simulator):
    taken = []
    simulator.model.step, step = (
        lambda *arguments: taken.append(1) or step(*arguments),
        simulator.model.step,
    )
    simulator.rollout(fields(), 7, nu=NU, stride=3)
    assert len(taken) == 6


def test_rollout_of_a_shifted_field_is_the_shifted_rollout(simulator):
    u0 = fields()
    width = 32 // SPEC["num_tokens"]  # exact for whole tokens
    for mode in ("latent", "physical"):
        u = simulator.rollout(u0, 3, nu=NU, mode=mode)
        moved = simulator.rollout(u0.roll(3 * width, -1), 3, nu=NU, mode=mode)
        assert torch.allclose(moved, u.roll(3 * width, -1), atol=1e-5)


def test_rollout_depends_on_the_parameter_of_each_field(simulator):
    u0 = fields()
    assert not torch.allclose(
        simulator.rollout(u0, 2, nu=NU), simulator.rollout(u0, 2, nu=0.01), atol=1e-4
    )
    each = torch.tensor([0.001, 0.01, 0.1])
    assert torch.allclose(
        simulator.rollout(u0, 2, nu=each)[1], simulator.rollout(u0, 2, nu=0.01)[1], atol=1e-5
    )


def test_rollout_warns_when_a_parameter_is_outside_the_training_range(caplog):
    simulator = make_simulator().eval()
    simulator.rollout(fields(), 1, nu=5.0)
    assert not caplog.records  # it doesn't know what it was trained for
    simulator.training_parameters = [[0.001], [0.01]]
    for nu, words in ((0.001, 0), (0.01, 0), (0.004, 0), (0.02, 0), (0.2, 1)):
        caplog.clear()
        simulator.rollout(fields(), 1, nu=nu)
        assert len(caplog.records) == words
    assert "nu = 0.2 is outside the training range (0.001, 0.01)" in caplog.text


def test_rollout_takes_any_points_in_any_order(simulator):
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
def test_offgrid_output_equals_rollout_of_the_shifted_field(simulator, mode):
    u0, between = fields(), simulator.x + 0.5 / 32
    shifted = simulator.rollout(interpolate(u0, simulator.x, between % 1, 1.0), 3, nu=NU, mode=mode)
    assert torch.allclose(
        simulator.rollout(u0, 3, nu=NU, mode=mode, x_out=between % 1), shifted, atol=1e-6
    )
    both = simulator.rollout(u0, 3, nu=NU, mode=mode, x_out=torch.cat((simulator.x, between % 1)))
    assert torch.allclose(
        both, torch.cat((simulator.rollout(u0, 3, nu=NU, mode=mode), shifted), -1), atol=1e-6
    )


def test_offgrid_output_is_as_accurate_as_on_the_grid():
    sim, fine = ups.load("burgers-small"), ups.physics.burgers.cell_centers(1024)
    u0 = ups.physics.burgers.initial_conditions(8, fine, 5)
    truth = ups.physics.burgers.solve(u0, [sim.dt * k for k in range(1, 41)], NU)

    def error(pred, target):
        return pdebench_metrics(pred, target)["nrmse"]

    own, on_grid = u0[:, ::4], truth[:, :, ::4]
    at_fine = error(sim.rollout(own, 40, nu=NU, x_out=fine), truth)
    assert at_fine < 1.2 * error(sim.rollout(own, 40, nu=NU), on_grid)


def on_file_axis():
    """A simulator on the axis of PDEBench's files, from -1 to 1, and the same one on [0, 2)."""
    torch.manual_seed(0)
    weights = make_simulator().state_dict()
    pair = []
    for origin in (-1 + 1 / 32, 1 / 32):
        grid = Grid((32,), (2.0,), origin=(origin,))
        spec = FieldSpec(grid, parameters=("nu",), dt=0.05, std=(0.6,))
        simulator = Simulator(build(SPEC, spec), spec, "burgers", SPEC).eval()
        simulator.load_state_dict(weights)
        pair.append(simulator)
    return pair


@pytest.mark.parametrize("mode", ["latent", "physical"])
def test_positions_are_those_of_the_periodic_line_wherever_it_begins(mode):
    """Moved by whole periods they are the same; the model's own grid is always valid."""
    centered, from_zero = on_file_axis()
    u0 = fields()
    plain = centered.rollout(u0, 2, nu=NU, mode=mode)
    for moved in (centered.x, centered.x % 2, centered.x + 2, centered.x - 4):
        found = centered.rollout(u0, 2, nu=NU, mode=mode, x=moved, x_out=moved)
        assert torch.allclose(found, plain, atol=2e-5)
    assert torch.equal(centered.rollout(u0, 2, nu=NU, mode=mode, x_out=centered.x), plain)
    at = torch.tensor([-0.71, 0.0, 0.33, 0.99])
    off_grid = centered.rollout(u0, 2, nu=NU, mode=mode, x_out=at)
    assert torch.allclose(
        off_grid, centered.rollout(u0, 2, nu=NU, mode=mode, x_out=at % 2), atol=1e-5
    )
    other = from_zero.rollout(u0, 2, nu=NU, mode=mode, x_out=at + 1)  # begins one further left
    assert torch.allclose(off_grid, other, atol=2e-5)


def test_a_line_may_be_given_with_both_of_its_ends(simulator):
    """The value at x = 0 is that at x = 1; a grid of both has it twice."""
    x = torch.linspace(0, 1, 65)
    u0 = torch.sin(2 * torch.pi * x)[None]
    found = simulator.rollout(u0, 2, nu=NU, x=x)
    assert torch.allclose(found, simulator.rollout(u0[:, :-1], 2, nu=NU, x=x[:-1]), atol=1e-5)


def test_positions_are_wrapped_into_the_period():
    x = wrap(torch.tensor([-1e-9, 0.0, 0.25, 1.0, -0.25, 7.5]), 1.0)
    assert x.tolist() == [0.0, 0.0, 0.25, 0.0, 0.75, 0.5]


def test_values_at_one_position_are_averaged():
    u, x = merge_coincident(torch.tensor([[[1.0], [5.0], [3.0]]]), torch.tensor([0.5, 0.25, 0.5]))
    assert x.tolist() == [0.25, 0.5]
    assert u[0, :, 0].tolist() == [5.0, 2.0]


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
        ({"steps": 0}, "`steps` must be an integer >= 1, got 0"),
        ({"mode": "both"}, "latent, physical"),
        ({"correct": "magic"}, "none, diffusion, consistency"),
        ({"nu": 0.0}, "positive"),
        ({"x": torch.arange(32.0)}, "`x` must span at most one period of 1, got 0 to 31"),
        ({"x_out": torch.tensor([0.1, torch.inf])}, "`x_out` must be finite"),
        ({"x": torch.full((32,), torch.nan)}, "`x` must be finite"),
        (
            {"correct": "diffusion"},
            "must be one of none, got 'diffusion': this simulator has no such corrector, "
            "because its stage has not been trained",
        ),
        ({"temperature": -1}, "`temperature` must be a finite number >= 0, got -1"),
        ({"temperature": torch.inf}, "`temperature` must be a finite number >= 0, got inf"),
        ({"temperature": True}, "`temperature` must be a finite number >= 0, got True"),
        ({"stride": 3}, r"`stride` must be an integer from 1 to `steps` \(2\), got 3"),
        ({"nu": torch.full((2,), NU)}, r"`nu` must be one number or \(3,\)"),
        ({"nu": None}, "the parameters must be nu, got none"),
        ({"nu": None, "parameters": {"mu": NU}}, "the parameters must be nu, got mu"),
        ({"u0": None}, "`u0` must be an array of numbers, got None"),
        ({"u0": [[1.0], [2.0, 3.0]]}, "`u0` must be an array of numbers"),
        ({"nu": None, "parameters": [NU]}, r"`parameters` must be numbers by name, got \[0.001\]"),
        ({"parameters": {"nu": NU}}, "`nu` must be None where `parameters` are given, got both"),
        ({"temperature": 1.0}, "`temperature` must be None or 0, got 1.0: this simulator draws"),
    ],
)
def test_rollout_refuses_arguments_out_of_range(simulator, change, words):
    arguments = {"u0": fields(), "steps": 2, "nu": NU, **change}
    with pytest.raises(UpsError, match=words):
        simulator.rollout(**arguments)


def test_checkpoint_save_load_roundtrip(simulator, tmp_path):
    state = {f"simulator.{k}": v for k, v in simulator.state_dict().items()}
    path = tmp_path / "checkpoints" / "operator.ckpt"
    path.parent.mkdir()
    torch.save({"simulator": simulator.config(), "state_dict": state}, path)
    for where in (path, tmp_path):
        again = ups.load(where)
        assert isinstance(again, ups.Simulator)
        assert not again.training
        assert torch.equal(again.rollout(fields(), 2, nu=NU), simulator.rollout(fields(), 2, nu=NU))


def test_load_refuses_a_file_that_is_no_checkpoint(simulator, tmp_path):
    with pytest.raises(UpsError, match="neither"):
        ups.load(tmp_path / "nothing")
    with pytest.raises(UpsError, match="has not finished"):
        ups.load(tmp_path)
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UpsError, match="not a checkpoint of UPS"):
        ups.load(path)
    other = make_simulator(hidden_dim=24)
    state = {f"simulator.{k}": v for k, v in other.state_dict().items()}
    torch.save({"simulator": simulator.config(), "state_dict": state}, path)
    with pytest.raises(UpsError, match="keys differ"):
        ups.load(path)


def test_build_refuses_code_unknown_arguments_and_sizes_that_do_not_fit():
    with pytest.raises(UpsError, match="must be one of mixer"):
        build({"architecture": "os.system"}, line_spec())
    with pytest.raises(UpsError, match=r"model\.depth"):
        build({**SPEC, "depth": 3}, line_spec())
    with pytest.raises(UpsError, match="must divide the 32 points"):
        build({**SPEC, "num_tokens": 5}, line_spec())


def test_rollout_keeps_mass_to_round_off(simulator):
    u0 = fields(8) + 0.2
    for mode in ("latent", "physical"):
        u = simulator.rollout(u0, 10, nu=NU, mode=mode)
        assert (u.mean(-1) - u0.mean(-1, keepdim=True)).abs().max() < 1e-6
    free = make_simulator(conserve_mean=False).rollout(u0, 10, nu=NU)
    assert (free.mean(-1) - u0.mean(-1, keepdim=True)).abs().max() > 1e-3


# What other fields than a scalar of an equation need


@pytest.fixture
def pair_simulator():
    """Two channels with two parameters on a periodic line, of data without an equation."""
    torch.manual_seed(0)
    spec = line_spec(
        channels=("h", "v"), parameters=("nu", "beta"), mean=(1.0, -0.2), std=(0.6, 2.0)
    )
    config = {**SPEC, "conserve_mean": True}
    trained = [[1e-4, 0.1], [1e-2, 4.0]]
    return Simulator(build(config, spec), spec, None, config, trained).eval()


def pairs(n=3):
    return torch.stack((1 + fields(n), 3 * fields(n, seed=1)), -1)


PAIR = {"nu": NU, "beta": 0.4}


@pytest.mark.parametrize("mode", ["latent", "physical"])
def test_rollout_of_two_channels_has_both_and_keeps_their_means(pair_simulator, mode):
    u0 = pairs()
    u = pair_simulator.rollout(u0, 4, parameters=PAIR, mode=mode)
    assert u.shape == (3, 4, 32, 2)
    assert torch.isfinite(u).all()
    assert (u[:, -1] - u[:, 0]).abs().amax((0, 1)).min() > 1e-3
    assert (u.mean(2) - u0.mean(1)[:, None]).abs().max() < 1e-5
    assert pair_simulator.rollout(u0[0], 2, parameters=PAIR, mode=mode).shape == (1, 2, 32, 2)
    width = 3 * 32 // SPEC["num_tokens"]
    moved = pair_simulator.rollout(u0.roll(width, 1), 4, parameters=PAIR, mode=mode)
    assert torch.allclose(moved, u.roll(width, 2), atol=1e-5)


def test_rollout_takes_parameters_by_name_each_one_number_or_one_for_each_field(pair_simulator):
    u0, beta = pairs(), torch.tensor([0.1, 0.4, 2.0])
    each = pair_simulator.rollout(u0, 2, parameters={"beta": beta, "nu": NU})
    for b in range(3):
        alone = {"nu": NU, "beta": beta[b].item()}
        one = pair_simulator.rollout(u0[b], 2, parameters=alone)
        assert torch.allclose(each[b : b + 1], one, atol=1e-5)
    swapped = pair_simulator.rollout(u0[1], 2, parameters={"nu": 0.4, "beta": NU})
    assert not torch.allclose(each[1:2], swapped, atol=1e-3)


def test_rollout_of_two_channels_takes_any_points(pair_simulator):
    u0, order = pairs(), torch.randperm(32)
    u = pair_simulator.rollout(u0, 2, parameters=PAIR)
    x = pair_simulator.x[order]
    assert torch.allclose(
        pair_simulator.rollout(u0[:, order], 2, parameters=PAIR, x=x), u, atol=1e-5
    )
    between = (pair_simulator.x + 0.5 / 32) % 1
    out = pair_simulator.rollout(u0, 2, parameters=PAIR, x_out=between)
    shifted = torch.stack(
        [interpolate(u0[..., c], pair_simulator.x, between, 1.0) for c in range(2)], -1
    )
    expected = pair_simulator.rollout(shifted, 2, parameters=PAIR)
    assert torch.allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nu": NU}, "`nu` must be None: the parameters are nu, beta"),
        ({"parameters": {"nu": NU}}, "the parameters must be nu, beta, got nu"),
        ({"parameters": None}, "the parameters must be nu, beta, got none"),
        ({"parameters": {**PAIR, "mu": 1.0}}, "the parameters must be nu, beta, got nu, beta, mu"),
        ({"parameters": {**PAIR, "beta": -0.4}}, "`beta` must be positive"),
        ({"u0": pairs()[..., 0]}, r"\(B, 32, 2\)"),
        ({"u0": pairs()[..., :1]}, r"\(B, 32, 2\)"),
        ({"ttc": True}, "`ttc` must be False: these data have no equation"),
    ],
)
def test_rollout_of_two_channels_refuses_arguments_out_of_range(pair_simulator, change, words):
    arguments = {"u0": pairs(), "steps": 2, "parameters": PAIR, **change}
    with pytest.raises(UpsError, match=words):
        pair_simulator.rollout(**arguments)


def test_rollout_warns_of_the_parameter_outside_the_training_range(pair_simulator, caplog):
    pair_simulator.training_parameters = [[0.001, 0.1], [0.002, 1.0]]
    pair_simulator.rollout(pairs(), 1, parameters={"nu": 0.0015, "beta": 1.0})
    assert not caplog.records
    pair_simulator.rollout(pairs(), 1, parameters={"nu": 0.0015, "beta": 1.5})
    assert "beta = 1.5 is outside the training range (0.1, 1)" in caplog.text
    assert len(caplog.records) == 1


def test_rollout_without_parameters_needs_none():
    torch.manual_seed(0)
    spec = line_spec(parameters=())
    simulator = Simulator(build(SPEC, spec), spec, model_config=SPEC).eval()
    assert simulator.rollout(fields(), 2).shape == (3, 2, 32)
    with pytest.raises(UpsError, match="`nu` must be None: the parameters are none"):
        simulator.rollout(fields(), 2, nu=NU)


def test_rollout_refuses_ttc_when_there_is_no_equation():
    simulator = make_simulator(equation=None).eval()
    assert simulator.equation is None
    assert simulator.rollout(fields(), 1, nu=NU).shape == (3, 1, 32)
    with pytest.raises(UpsError, match="`ttc` must be False: these data have no equation"):
        simulator.rollout(fields(), 1, nu=NU, ttc=True)


def test_stepper_composes_what_the_options_select(simulator):
    assert simulator.equation is EQUATIONS["burgers"]
    assert simulator.stepper() is simulator
    guided = simulator.stepper(ttc=True)
    assert isinstance(guided, Guided)
    assert guided.stepper is simulator
    assert guided.settings is simulator.ttc
    assert simulator.stepper(ttc=True, group_size=2).group_size == 2


def test_simulator_of_two_channels_is_rebuilt_from_its_configuration(pair_simulator, tmp_path):
    pair_simulator.save(tmp_path / "pair")
    again = ups.load(tmp_path / "pair")
    assert again.spec == pair_simulator.spec
    assert again.config() == pair_simulator.config()
    assert again.equation is None
    assert torch.equal(
        again.rollout(pairs(), 2, parameters=PAIR),
        pair_simulator.rollout(pairs(), 2, parameters=PAIR),
    )


class Doubling(torch.nn.Module):
    def encode(self, u):
        return u

    def step(self, z, dt, parameters):
        return 2 * z

    def decode(self, z):
        return z


WALLED = Grid((32,), (1.0,), (("wall", "open"),))
PLANE = Grid((24, 16), (2.0, 1.0), origin=(0.0, 0.3))


@pytest.mark.parametrize(
    ("domain", "option", "value", "words"),
    [
        (WALLED, "x", [0.5] * 32, "`x` must be None: the domain is not a periodic line"),
        (WALLED, "x_out", [0.5, 1.1], "`x_out` must lie from 0 to 1 along axis 0, which is not"),
        (PLANE, "x_out", [0.5, 1.1], r"`x_out` must have shape \(P, 2\) with P >= 1"),
        (PLANE, "x_out", [[0.5, 1.1, 0.2]], r"`x_out` must have shape \(P, 2\)"),
    ],
)
def test_rollout_refuses_positions_that_the_domain_does_not_have(domain, option, value, words):
    simulator = Simulator(Doubling(), FieldSpec(domain))
    u0 = torch.randn(3, *domain.shape)
    assert torch.equal(simulator.rollout(u0, 2), torch.stack((2 * u0, 4 * u0), 1))
    with pytest.raises(UpsError, match=words):
        simulator.rollout(u0, 1, **{option: torch.tensor(value)})


def waves(places):
    """Smooth fields (P, 2) at positions (P, 2) of PLANE, of its periods."""
    x, y = 2 * math.pi * places[:, 0] / 2.0, 2 * math.pi * places[:, 1]
    return torch.stack(((x + 0.3).sin() * y.cos(), (x - y).cos()), -1)


def test_rollout_on_a_plane_gives_frames_at_any_positions():
    simulator = Simulator(Doubling(), FieldSpec(PLANE, ("h", "v")))
    u0 = waves(PLANE.positions().flatten(0, 1)).unflatten(0, PLANE.shape)[None]
    places = torch.rand(50, 2) * torch.tensor([6.0, 3.0]) - 2  # other periods too
    frames = simulator.rollout(u0, 2, x_out=places)
    assert frames.shape == (1, 2, 50, 2)
    assert torch.allclose(frames[0, 1], 4 * waves(places), atol=0.02)
    on_grid = simulator.rollout(u0, 1, x_out=PLANE.positions().flatten(0, 1))
    assert torch.allclose(on_grid[0, 0], 2 * u0.flatten(1, 2)[0], atol=1e-5)
    data = to_xarray(simulator, u0, 2, x_out=places)
    assert data.h.dims == ("trajectory", "time", "point")
    assert data.y.values == pytest.approx(places[:, 1].numpy())
    assert data.v.values[0, 2] == pytest.approx(frames[0, 1, :, 1].numpy())


@pytest.mark.parametrize(
    ("shape", "sides"), [((8, 12), "pw"), ((6, 5, 7), "wpo"), ((9,), "w"), ((9,), "p")]
)
def test_positions_that_are_a_grid_are_interpolated_along_its_axes_to_the_same_values(shape, sides):
    kinds = {"p": Boundary.PERIODIC, "w": Boundary.WALL, "o": Boundary.OPEN}
    extent = [1.0 + d for d in range(len(shape))]
    grid = Grid(shape, extent, [(kinds[side],) * 2 for side in sides])
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(2, *shape, 3, generator=generator)
    axes = [
        length * (1.5 * torch.rand(5 + d, generator=generator) - 0.2)
        for d, length in enumerate(extent)
    ]
    places = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    found = axes_of(places)
    assert all(torch.equal(a, b) for a, b in zip(found, axes, strict=True))
    values = interpolate_to_axes(u, grid, found)
    assert values.shape == (2, *(len(x) for x in axes), 3)
    assert torch.allclose(values.flatten(1, -2), interpolate_on_grid(u, grid, places), atol=1e-5)
    if len(axes) > 1:
        assert axes_of(places[:-1]) is None
        assert axes_of(places[torch.randperm(len(places), generator=generator)]) is None
    assert axes_of(places[:0]) is None


def test_positions_on_a_plane_have_gradients():
    simulator = Simulator(Doubling(), FieldSpec(PLANE, ("h", "v")))
    u0 = waves(PLANE.positions().flatten(0, 1)).unflatten(0, PLANE.shape)[None]
    places = torch.tensor([[0.41, 0.77]], requires_grad=True)
    (slope,) = torch.autograd.grad(simulator.rollout(u0, 1, x_out=places)[0, 0, 0, 1], places)
    x, y = (2 * math.pi * places[0] / torch.tensor([2.0, 1.0])).tolist()
    by_hand = [-2 * math.pi * math.sin(x - y), 4 * math.pi * math.sin(x - y)]
    assert slope[0].tolist() == pytest.approx(by_hand, rel=0.05)


def test_rollout_between_walls_repeats_the_last_point_beyond_it():
    simulator = Simulator(Doubling(), FieldSpec(WALLED))
    u0 = WALLED.axis(0)[None]
    frames = simulator.rollout(u0, 1, x_out=[0.0, 0.5, 1.0])
    assert frames[0, 0].tolist() == pytest.approx([1 / 32, 1.0, 2 - 1 / 32], abs=0.01)


def test_calling_a_simulator_gives_the_next_frame(simulator):
    u0 = fields()
    assert torch.equal(simulator(u0, nu=NU), simulator.rollout(u0, 3, nu=NU)[:, 0])
    u = simulator(u0[..., None], nu=NU, mode="physical")
    assert u.shape == (3, 32, 1)


def test_a_simulator_says_in_one_line_what_it_is():
    sim = ups.load("burgers-small")
    words = "burgers; memory-upt; 256 points; dt=0.05; nu=0.001; correctors: diffusion, consistency"
    assert repr(sim) == f"Simulator({words})"
    plain = Simulator(make_simulator().model, make_simulator().spec, training_parameters=[[0.2]])
    assert repr(plain) == "Simulator(no equation; MixerUPT; 32 points; dt=0.05; nu=0.2)"
    plain.training_parameters = [[0.2], [0.1], [0.2]]
    assert "nu=0.1, 0.2" in repr(plain)


def test_steps_are_compiled_only_when_asked_for_and_without_gradients(simulator, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        "ups.simulation.simulator._compiled_step",
        lambda model, *arguments: compiled.append(model) or model.step(*arguments),
    )
    u0 = torch.rand(2, 32)
    expected = simulator.rollout(u0, 2, nu=0.01)
    fast = copy.deepcopy(simulator)
    fast.compile()
    fast.rollout(u0, 1, nu=0.01, grad=True)
    assert not compiled
    copied = copy.deepcopy(fast)
    assert torch.equal(copied.rollout(u0, 2, nu=0.01), expected)
    assert compiled == [copied.model, copied.model]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, in torch.compile
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler on this machine")
def test_compiled_steps_give_the_same_fields_and_follow_the_weights(caplog):
    sim = ups.load("burgers-small")
    u0 = torch.sin(2 * torch.pi * sim.x)
    eager = sim.rollout(u0[None], 5, nu=0.001)
    sim.compile()
    assert torch.allclose(sim.rollout(u0[None], 5, nu=0.001), eager, atol=1e-4)
    other = copy.deepcopy(sim)
    with torch.no_grad():
        for weights in other.model.parameters():
            weights.mul_(0.5)
    changed = other.rollout(u0[None], 5, nu=0.001)
    other.is_compiled = False
    assert torch.allclose(changed, other.rollout(u0[None], 5, nu=0.001), atol=1e-4)
    assert not torch.allclose(changed, eager, atol=0.01)
    assert "falling back" not in caplog.text
