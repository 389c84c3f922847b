"""What a field is, and the loop that moves one forward."""

import math

import pytest
import torch

from ups.core.errors import UpsError
from ups.core.fields import Boundary, FieldSpec, Grid, PointCloud
from ups.core.stepper import rollout


def test_grid_points_are_cell_centers_by_default():
    grid = Grid((4, 2), (1.0, 3.0))
    assert grid.cell_size == (0.25, 1.5)
    assert grid.is_periodic
    assert grid.axis(0).tolist() == [0.125, 0.375, 0.625, 0.875]
    assert grid.positions().shape == (4, 2, 2)
    assert grid.positions()[1, 1].tolist() == [0.375, 2.25]


def test_coarser_grid_has_the_edges_of_the_cells():
    grid = Grid((4,), (2.0,), origin=(0.0,))
    assert grid.axis(0).tolist() == [0.0, 0.5, 1.0, 1.5]
    assert grid.coarsened(2).axis(0).tolist() == [0.25, 1.25]
    assert grid.edges == grid.coarsened(2).edges
    centered = Grid((4, 2), (2.0, 3.0))
    assert centered.coarsened(2) == Grid((2, 1), (2.0, 3.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (4, 4), "extent": (1.0,)}, "one extent"),
        ({"shape": (0,), "extent": (1.0,)}, "integers >= 1"),
        ({"shape": (4,), "extent": (0.0,)}, "finite numbers > 0"),
        (
            {"shape": (4,), "extent": (1.0,), "boundary": (("periodic", "wall"),)},
            "both sides or on none",
        ),
    ],
)
def test_grid_rejects_what_does_not_fit(arguments, message):
    with pytest.raises((UpsError, ValueError), match=message):
        Grid(**arguments)


def test_grid_coarsens_along_all_axes_or_not_at_all():
    grid = Grid((12, 6), (1.0, 1.0))
    assert [n for n in range(1, 25) if grid.can_coarsen_to(n)] == [2, 4, 6, 12]


def test_grid_that_cannot_be_coarsened_says_so():
    with pytest.raises(UpsError, match="can't be coarsened by 3"):
        Grid((4,), (1.0,)).coarsened(3)


@pytest.mark.parametrize(
    "spec",
    [
        FieldSpec(Grid((8,), (1.0,)), parameters=("nu",), dt=0.05, std=(0.6,)),
        FieldSpec(
            Grid((8, 4), (1.0, 2.0), (("wall", "wall"), ("open", "wall")), (0.0, 0.1)),
            ("h", "q"),
            ("g", "b"),
            0.1,
            (1.0, 0.0),
            (0.5, 2.0),
            is_homogeneous=False,
            largest=(3.0, 0.5),
        ),
        FieldSpec(PointCloud(((0.0, 0.5), (0.1, 0.9)), ("distance",)), ("p",)),
    ],
)
def test_field_spec_survives_plain_values(spec):
    assert FieldSpec.from_dict(spec.to_dict()) == spec


def test_field_of_an_older_checkpoint_is_homogeneous_and_not_bounded():
    values = FieldSpec(Grid((8,), (1.0,))).to_dict()
    del values["is_homogeneous"], values["largest"]
    assert FieldSpec.from_dict(values).is_homogeneous
    assert FieldSpec.from_dict(values).largest == ()


def test_field_spec_axes_follow_the_domain():
    line = FieldSpec(Grid((8,), (1.0,)))
    plane = FieldSpec(Grid((8, 4), (1.0, 1.0)), ("u", "v"))
    assert line.space_axes == (-2,)
    assert plane.space_axes == (-3, -2)
    assert plane.shape == (8, 4, 2)
    assert plane.grid.boundary[0] == (Boundary.PERIODIC, Boundary.PERIODIC)
    u = torch.randn(3, 5, 8, 4, 2)
    assert torch.equal(u.mean(plane.space_axes), u.flatten(2, 3).mean(2))


def test_points_have_one_axis_in_any_number_of_dimensions():
    cloud = FieldSpec(PointCloud(((0.0, 0.5), (0.1, 0.9))), ("u", "v"))
    assert cloud.space_axes == (-2,)
    assert cloud.domain.num_dims == 2
    assert cloud.domain.extent == pytest.approx((0.5, 0.8))
    with pytest.raises(UpsError, match="this needs a field on a grid"):
        cloud.shape  # noqa: B018
    for edges in ((), ((0.0, 0.0),), ((0.0, math.inf),)):
        with pytest.raises(UpsError, match="the edges of a point cloud must be finite"):
            PointCloud(edges)


@pytest.mark.parametrize(
    ("channels", "given", "expected", "has_channels"),
    [
        (1, (8, 4), (1, 8, 4, 1), False),
        (1, (3, 8, 4), (3, 8, 4, 1), False),
        (1, (3, 8, 4, 1), (3, 8, 4, 1), True),
        (2, (8, 4, 2), (1, 8, 4, 2), True),
        (2, (3, 8, 4, 2), (3, 8, 4, 2), True),
    ],
)
def test_channel_axis_may_be_left_out_when_there_is_one_channel(
    channels, given, expected, has_channels
):
    spec = FieldSpec(Grid((8, 4), (1.0, 1.0)), tuple("uv"[:channels]))
    u, had = spec.add_channel_axis(torch.zeros(given))
    assert tuple(u.shape) == expected
    assert had is has_channels


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": ()},
        {"std": (0.0,)},
        {"dt": 0.0},
        {"mean": (1.0, 2.0)},
        {"largest": (0.0,)},
        {"largest": (1.0, 2.0)},
    ],
)
def test_field_spec_rejects_what_does_not_fit(changes):
    with pytest.raises(UpsError):
        FieldSpec(Grid((8,), (1.0,)), **changes)


class Doubling:
    """Its state is half the field; a step doubles it and adds the parameter."""

    def __init__(self):
        self.decoded = []

    def encode(self, u, parameters):
        return u / 2

    def step(self, state, parameters):
        return 2 * state + parameters[:, :, None]

    def decode(self, state):
        self.decoded.append(len(state))
        return 2 * state.round()


@pytest.mark.parametrize("frames_per_decode", [1, 2, 5])
def test_rollout_yields_every_frame_however_many_are_decoded_at_once(frames_per_decode):
    stepper = Doubling()
    u0 = torch.tensor([[[2.0]], [[4.4]]])
    frames = rollout(stepper, u0, 3, torch.tensor([[0.0], [1.0]]), False, frames_per_decode)
    values = torch.stack(list(frames), 1)[..., 0, 0]
    assert values.tolist() == [[4.0, 8.0, 16.0], [10.0, 24.0, 50.0]]
    assert sum(stepper.decoded) == 6
    assert max(stepper.decoded) == 2 * min(3, frames_per_decode)


def test_rollout_reencodes_the_field_of_every_step():
    stepper = Doubling()
    u0 = torch.tensor([[[4.4]]])
    frames = rollout(stepper, u0, 3, torch.tensor([[1.0]]), True, 5)
    # the field is rounded to an even number before each further step
    assert [frame.item() for frame in frames] == [10.0, 22.0, 46.0]
    assert stepper.decoded == [1, 1, 1]


def test_edges_of_a_grid_are_those_of_its_outer_cells():
    assert Grid((4, 2), (2.0, 1.0)).edges == ((0.0, 2.0), (0.0, 1.0))
    assert Grid((4,), (2.0,), origin=(-0.75,)).edges == ((-1.0, 1.0),)
    first = torch.linspace(0, 1, 1025)[:2].mean().item()  # float32
    assert Grid((1024,), (1.0,), origin=(first + 1e-9,)).edges == ((0.0, 1.0),)
