"""The peers on lines, planes and boxes, with periodic, wall and open sides."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import ups
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid, PointCloud
from ups.hub.model_card import render_model_card
from ups.models import build
from ups.models.convolutions import Convolution
from ups.models.places import place_channels
from ups.models.upt import grid_places, sine_cosine
from ups.modules import OperatorModule
from ups.simulation.simulator import Simulator

PERIODIC, WALL, OPEN = ("periodic", "periodic"), ("wall", "wall"), ("open", "open")
SPECS = {
    "resnet": {"hidden_channels": 6, "num_blocks": 1, "dilations": [1, 2]},
    "unet": {"hidden_channels": 4, "num_levels": 1},
    "fno": {"modes": 4, "hidden_channels": 6, "num_layers": 2},
}
SHAPES = {1: (16,), 2: (16, 12), 3: (8, 6, 10)}


def field_spec(shape, *sides, **changes):
    grid = Grid(shape, tuple(1.0 + d for d in range(len(shape))), sides)
    return FieldSpec(grid, **{"channels": ("u", "v"), "parameters": ("nu",), **changes})


def make(architecture, spec, **changes):
    torch.manual_seed(0)
    return build({"architecture": architecture, **SPECS[architecture], **changes}, spec)


def one_step(model, u):
    dt, parameters = torch.full((len(u),), 0.05), torch.full((len(u), 1), 1e-3)
    return model.decode(model.step(model.encode(u), dt, parameters))


@pytest.mark.parametrize("architecture", SPECS)
@pytest.mark.parametrize("side", [PERIODIC, WALL, OPEN, ("wall", "open")])
@pytest.mark.parametrize("num_dims", SHAPES)
def test_peer_steps_fields_of_any_dimension_and_keeps_their_means(architecture, side, num_dims):
    shape = SHAPES[num_dims]
    model = make(architecture, field_spec(shape, side, *[PERIODIC] * (num_dims - 1)))
    u = torch.randn(2, *shape, 2)
    out = one_step(model, u)
    space = tuple(range(1, num_dims + 1))
    assert out.shape == u.shape
    assert (out - u).abs().amax((0, *space)).min() > 1e-4
    assert torch.allclose(out.mean(space), u.mean(space), atol=1e-6)


@pytest.mark.parametrize("architecture", SPECS)
@pytest.mark.parametrize("num_dims", [2, 3])
def test_peer_commutes_with_shifts_along_periodic_axes_alone(architecture, num_dims):
    shape = SHAPES[num_dims]
    model = make(architecture, field_spec(shape, WALL, *[PERIODIC] * (num_dims - 1)))
    u = torch.randn(2, *shape, 2)
    out = one_step(model, u)
    for axis in range(2, num_dims + 1):
        moved = one_step(model, u.roll(2, axis))
        assert torch.allclose(moved, out.roll(2, axis), rtol=1e-4, atol=1e-5)
    moved = one_step(model, u.roll(2, 1))
    assert not torch.allclose(moved, out.roll(2, 1), atol=1e-3)


@pytest.mark.parametrize("architecture", ["resnet", "unet"])
@pytest.mark.parametrize("side", [PERIODIC, WALL, OPEN])
@pytest.mark.parametrize("num_dims", [1, 2, 3])
def test_last_row_reaches_the_first_only_around_a_periodic_axis(architecture, side, num_dims):
    shape = (32, 4, 6)[:num_dims]
    spec = field_spec(shape, side, *[PERIODIC] * (num_dims - 1), conserves_mean=False)
    model = make(architecture, spec)
    for block in model.modules():  # a norm over all points has the whole grid as its reach
        if isinstance(block, nn.Sequential):
            for i, layer in enumerate(block):
                if isinstance(layer, nn.GroupNorm):
                    block[i] = nn.Identity()
    u = torch.randn(2, *shape, 2)
    other = u.clone()
    other[:, -1] += 1
    first, changed = one_step(model, u)[:, 0], one_step(model, other)[:, 0]
    assert torch.equal(first, changed) == (side != PERIODIC)


def test_fourier_layers_of_a_wall_axis_do_not_wrap_around():
    """One layer with a filter of reach 1: a convolution, if enough modes are kept."""
    spec = field_spec((16, 8), WALL, PERIODIC, conserves_mean=False)
    model = make("fno", spec, modes=[20, 8], num_layers=1)
    layer = model.network.fno_blocks.convs[0]
    k = torch.arange(20) - 10  # the modes of the padded axis of 20 points, from the lowest
    shifted = torch.exp(-2j * math.pi * k / 20)  # multiplies by it: a shift by one point
    with torch.no_grad():
        layer.weight.tensor.copy_(shifted[:, None].expand_as(layer.weight.tensor))
    u = torch.randn(2, 16, 8, 2)
    other = u.clone()
    other[:, -1] += 1
    first, changed = one_step(model, u)[:, 0], one_step(model, other)[:, 0]
    assert torch.allclose(first, changed, atol=1e-6)
    second = one_step(model, u.roll(1, 1))[:, 1] - one_step(model, u)[:, 1]
    assert second.abs().max() > 1e-3


@pytest.mark.parametrize("architecture", SPECS)
def test_wall_and_open_side_differ_for_the_same_weights(architecture):
    wall = make(architecture, field_spec((16, 12), WALL, PERIODIC))
    open_ = make(architecture, field_spec((16, 12), OPEN, PERIODIC))
    open_.load_state_dict(wall.state_dict())
    u = torch.randn(2, 16, 12, 2)
    assert not torch.allclose(one_step(wall, u), one_step(open_, u), atol=1e-4)


@pytest.mark.parametrize("is_homogeneous", [True, False])
@pytest.mark.parametrize("architecture", SPECS)
@pytest.mark.parametrize("num_dims", SHAPES)
def test_every_position_counts_if_the_field_is_not_homogeneous(
    architecture, num_dims, is_homogeneous
):
    shape = SHAPES[num_dims]
    model = make(architecture, field_spec(shape, is_homogeneous=is_homogeneous))
    u = torch.randn(1, *shape, 2)
    for axis in range(1, num_dims + 1):
        moved = one_step(model, u.roll(2, axis)).roll(-2, axis)
        assert torch.allclose(moved, one_step(model, u), atol=1e-4) == is_homogeneous


def test_places_are_marks_beside_sides_and_positions():
    sides = (("wall", "open"), PERIODIC)
    grid = Grid((4, 2), (8.0, 1.0), sides, (5.0, 0.25))
    marks = place_channels(FieldSpec(grid))
    assert marks[0].tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]
    assert marks[1].tolist() == [[0, 0], [0, 0], [0, 0], [1, 1]]
    places = place_channels(FieldSpec(grid, is_homogeneous=False))
    assert torch.equal(places[:2], marks)
    along, sine, cosine = places[2:]
    expected = torch.tensor([-0.75, -0.25, 0.25, 0.75])
    assert torch.allclose(along, expected[:, None].expand(4, 2), atol=1e-6)
    assert torch.allclose(sine, torch.tensor([1.0, -1.0]).expand(4, 2), atol=1e-6)
    assert torch.allclose(cosine, torch.zeros(4, 2), atol=1e-6)
    assert place_channels(FieldSpec(Grid((4, 2), (1.0, 1.0)))).shape == (0, 4, 2)


@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize(("side", "mode"), [(PERIODIC, "circular"), (WALL, "replicate")])
def test_convolution_equals_pytorchs_own(num_dims, stride, dilation, side, mode):
    shape = SHAPES[num_dims]
    layer = Convolution(
        Grid(shape, (1.0,) * num_dims, (side,) * num_dims),
        3,
        5,
        dilation=dilation,
        stride=stride,
    )
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[num_dims - 1]
    own = kind(3, 5, 3, stride, dilation, dilation, padding_mode=mode)
    own.load_state_dict(layer.state_dict())
    u = torch.randn(2, 3, *shape)
    assert torch.equal(layer(u), own(u))


def test_convolution_of_mixed_sides_equals_written_out_loop():
    layer = Convolution(Grid((4, 5), (1.0, 1.0), (WALL, PERIODIC)), 1, 1, dilation=2)
    u = torch.randn(1, 1, 4, 5)
    out = layer(u)
    for i in range(4):
        for j in range(5):
            value = layer.bias.item()
            for a in range(3):
                for b in range(3):
                    row, column = min(max(i + 2 * (a - 1), 0), 3), (j + 2 * (b - 1)) % 5
                    value += (layer.weight[0, 0, a, b] * u[0, 0, row, column]).item()
            assert out[0, 0, i, j].item() == pytest.approx(value, abs=1e-5)


def test_weights_of_lines_keep_their_names_and_shapes():
    spec = field_spec((16,))
    resnet, unet = make("resnet", spec).state_dict(), make("unet", spec).state_dict()
    assert {name: tuple(value.shape) for name, value in resnet.items()} == {
        "lift.weight": (6, 4, 3),
        "lift.bias": (6,),
        "blocks.0.0.weight": (6, 6, 3),
        "blocks.0.0.bias": (6,),
        "blocks.0.2.weight": (6, 6, 3),
        "blocks.0.2.bias": (6,),
        "project.weight": (2, 6, 3),
        "project.bias": (2,),
    }
    pairs = {"lift": (4, 4), "down.0": (8, 4), "up.0": (4, 8)}
    expected = {"halve.0.weight": (4, 4, 3), "halve.0.bias": (4,)}
    expected |= {"widen.0.weight": (8, 4, 2), "widen.0.bias": (4,)}
    expected |= {"project.weight": (2, 4, 3), "project.bias": (2,)}
    for name, (wide, narrow) in pairs.items():
        expected |= {f"{name}.0.weight": (wide, narrow, 3), f"{name}.3.weight": (wide, wide, 3)}
        vectors = ("0.bias", "1.weight", "1.bias", "3.bias", "4.weight", "4.bias")
        expected |= {f"{name}.{vector}": (wide,) for vector in vectors}
    assert {name: tuple(value.shape) for name, value in unet.items()} == expected


# convolutions of the blocks, without what reads and writes the field
NUM_MATRICES = {"resnet": 2, "unet": 1 + 1 + 2 + 1 + 2, "fno": 2 * 3}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("architecture", SPECS)
@pytest.mark.parametrize("num_dims", [2, 3])
def test_peer_learns_a_shift_with_either_optimizer(architecture, optimizer, num_dims):
    shape = (16, 16) if num_dims == 2 else (8, 8, 8)
    spec = field_spec(shape, WALL, *[PERIODIC] * (num_dims - 1))
    model = make(architecture, spec)
    matrices = model.muon_parameters()
    assert len({id(p) for p in matrices}) == len(matrices) == NUM_MATRICES[architecture]
    if architecture != "fno":  # the package flattens space: its real layers are those of a line
        assert all(p.ndim == 2 + num_dims for p in matrices)
    simulator = Simulator(model, spec)
    stepper = OperatorModule(simulator, optimizer=optimizer, lr=0.01).build_optimizer()
    u, losses = torch.randn(4, *shape, 2), []
    for _ in range(20):
        loss = (one_step(model, u) - u.roll(1, 2)).square().mean()
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


def test_modes_may_differ_from_axis_to_axis():
    model = make("fno", field_spec((16, 12)), modes=[6, 4])
    kept = model.network.fno_blocks.convs[0].weight.tensor.shape
    assert tuple(kept) == (6, 6, 6, 3)  # of the last axis a half: the field is real


@pytest.mark.parametrize(
    ("architecture", "changes", "words"),
    [
        ("fno", {"modes": [4, 4, 4]}, "`model.modes` must be one number or 2, one for each axis"),
        ("unet", {"num_levels": 3}, r"points along each axis \(16 x 12\) must be a multiple of 8"),
        ("resnet", {"dilations": [1, 13]}, "`model.dilations` must be at most 12, the number of"),
    ],
)
def test_peer_refuses_sizes_that_do_not_fit_a_plane(architecture, changes, words):
    with pytest.raises(UpsError, match=words):
        make(architecture, field_spec((16, 12)), **changes)


@pytest.mark.parametrize("architecture", SPECS)
def test_peer_refuses_points_and_a_convolution_four_dimensions(architecture):
    with pytest.raises(UpsError, match="this needs a field on a grid"):
        make(architecture, FieldSpec(PointCloud(((0.0, 1.0),))))
    if architecture != "fno":
        with pytest.raises(UpsError, match="at most three dimensions, got 4"):
            make(architecture, field_spec((4, 4, 4, 4)))


UPT = {"architecture": "upt", "num_tokens": 5, "hidden_dim": 16, "num_heads": 2}


def make_upt(spec, num_patches):
    torch.manual_seed(0)
    return build({**UPT, "num_patches": num_patches}, spec)


@pytest.mark.parametrize(
    ("num_patches", "sides"),
    [(4, (4,)), (8, (2,)), (16, (4, 3)), (24, (4, 2)), ([2, 6], (8, 2)), (12, (4, 4))],
)
def test_patches_are_as_close_to_squares_as_they_can_be(num_patches, sides):
    model = make_upt(field_spec((16, 12)[: len(sides)]), num_patches)
    assert model.patches.patch == sides


def test_upt_cuts_a_plane_into_the_patches_of_a_written_out_loop():
    model = make_upt(field_spec((6, 4)), [3, 2])
    u = torch.randn(2, 6, 4, 2)
    patches = model.patches.cut(u)
    for i in range(3):
        for j in range(2):
            patch = u[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            assert torch.equal(patches[:, 2 * i + j], patch.flatten(1))


def test_places_of_a_grid_are_those_of_its_axes():
    places = grid_places((2, 3), 18)
    for i in range(2):
        for j in range(3):
            own = [sine_cosine(torch.tensor([x]), 8)[0] for x in ((i + 0.5) / 2, (j + 0.5) / 3)]
            expected = torch.cat((*own, torch.zeros(2)))
            assert torch.allclose(places[3 * i + j], expected, atol=1e-6)
    line = sine_cosine((torch.arange(5) + 0.5) / 5, 16)
    assert torch.equal(grid_places((5,), 16), line)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("shape", [(16, 8), (4, 4, 8)])
def test_upt_learns_its_data_on_planes_and_boxes(shape, optimizer):
    spec = field_spec(shape, WALL, *[PERIODIC] * (len(shape) - 1))
    model = make_upt(spec, 8)
    simulator = Simulator(model, spec)
    stepper = OperatorModule(simulator, optimizer=optimizer, lr=0.01).build_optimizer()
    u, losses = torch.randn(2, *shape, 2), []
    assert model.encode(u).shape == (2, 5, 16)
    assert one_step(model, u).shape == u.shape
    for _ in range(20):
        loss = (one_step(model, u) - u).square().mean()
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0]


@pytest.mark.parametrize("num_patches", [5, [4], [5, 4], [4, 4, 4]])
def test_upt_refuses_patches_that_do_not_divide_a_plane(num_patches):
    with pytest.raises(UpsError, match=r"`model\.num_patches` must divide the 16 x 12 points"):
        make_upt(field_spec((16, 12)), num_patches)


def test_upt_refuses_tokens_too_small_for_the_positions_of_a_box():
    with pytest.raises(UpsError, match=r"`model\.hidden_dim` must be .* at least 6, got 4"):
        build({**UPT, "num_patches": 8, "hidden_dim": 4}, field_spec((4, 4, 4)))


READER = """
import numpy as np
from ups.core.fields import Grid

class Planes:
    dt = 0.05

    def __init__(self, path, temporal_downsampling=1, spatial_downsampling=1):
        self.path = path
        self.values = np.load(path)
        self.trajectories, self.frames, *space, _ = self.values.shape
        self.grid = Grid(tuple(space), (1.0, 2.0), (("periodic", "periodic"), ("wall", "open")))

    def read(self, trajectories, start=0, frames=None):
        stop = self.frames if frames is None else start + frames
        return self.values[list(trajectories), start:stop]
"""
DATA = """
defaults: [pdebench, _self_]
reader: planes.Planes
equation: null
path: waves.npy
num_train: 8
num_validation: 2
num_test: 3
temporal_downsampling: 1
spatial_downsampling: 1
"""


@pytest.mark.usefixtures("drawn")
@pytest.mark.integration
@pytest.mark.parametrize("architecture", ["resnet", "upt"])  # steps the field; tokens and losses
def test_peer_trains_on_a_plane_by_the_same_command(architecture, ups_run, tmp_path):
    (tmp_path / "planes.py").write_text(READER)
    (tmp_path / "conf/data").mkdir(parents=True)
    (tmp_path / "conf/data/planes.yaml").write_text(DATA)
    phase = np.random.default_rng(0).random((13, 1, 1, 1, 2))
    t, x, y = np.meshgrid(np.arange(8) / 20, np.arange(12) / 12, np.arange(8) / 8, indexing="ij")
    waves = np.sin(2 * np.pi * (phase + (x + y / 2 - t)[..., None])) * np.exp(-t)[..., None]
    np.save(tmp_path / "waves.npy", waves.astype(np.float32))
    sizes = {"resnet": SPECS["resnet"], "upt": {"num_patches": 24, "hidden_dim": 16}}
    ups_run(
        *("--config-dir", "conf", "data=planes", f"model={architecture}", "name=run"),
        *(f"model.{key}={value}" for key, value in sizes[architecture].items()),
        *("data.samples_per_trajectory=4", "data.batch_size=8", "trainer.max_epochs=2"),
        "preflight=false",
    )
    run = tmp_path / "outputs/run"
    rows = json.loads((run / "reports/eval_operator.json").read_text())["rows"]
    assert [row["model"] for row in rows] == [architecture, architecture, "persistence"]
    assert all(math.isfinite(row["nrmse"]) for row in rows)
    assert "data:image/webp" in (run / "reports/report.html").read_text()
    simulator = ups.load(run)
    assert simulator.spec.grid.boundary == (PERIODIC, ("wall", "open"))
    u = simulator.rollout(torch.from_numpy(waves[:2, 0]).float(), 3)
    assert u.shape == (2, 3, 12, 8, 2)
    assert len([axis for axis in simulator.plot(u).axes if axis.images]) == 3
    assert "u0 (B, 12, 8, 2) on x, y in [0, 1) x [0, 2)" in render_model_card(run, "planes")
