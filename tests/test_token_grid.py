"""Tokens on grids of any dimension: how many along each axis, and what each sees of the others."""

import math
from itertools import product

import pytest
import torch

from ups.core.fields import FieldSpec, Grid
from ups.models import build, mixer
from ups.models.token_grid import (
    AxisWindow,
    Neighborhood,
    possible_numbers,
    shape_of_patches,
    token_shape,
)

SIZES = {
    "mixer": {"hidden_dim": 12, "encoder_depth": 1, "approximator_depth": 2, "decoder_depth": 1},
    "memory_upt": {"memory_channels": 3, "hidden_channels": 8, "depth": 2},
    "patch_stepper": {"hidden_channels": 8, "depth": 2},
}
WALLS = (("wall", "open"), ("periodic", "periodic"))


def spec_of(space, boundary=(), **options):
    grid = Grid(space, tuple(n / 8 for n in space), boundary)
    return FieldSpec(grid, ("h", "v"), ("nu",), dt=0.05, **options)


def make(architecture, spec, **sizes):
    torch.manual_seed(0)
    return build({"architecture": architecture, **SIZES[architecture], **sizes}, spec)


def rolled_out(model, u, steps=2):
    z = model.encode(u)
    for _ in range(steps):
        z = model.step(z, torch.full((len(u),), 0.05), torch.full((len(u), 1), 1e-3))
    return model.decode(z)


@pytest.mark.parametrize(
    ("space", "number", "shape"),
    [
        ((64,), 16, (16,)),
        ((64, 64), 64, (8, 8)),
        ((16, 32), 16, (4, 4)),  # patches of 4 x 8 rather than 8 x 4: of the two, no axis has 2
        ((32, 16), 32, (8, 4)),
        ((8, 8, 8), 64, (4, 4, 4)),
        ((6, 10), 15, (3, 5)),
        ((64, 64), 3, None),
        ((5,), 2, None),
    ],
)
def test_tokens_have_patches_that_are_nearly_cubes(space, number, shape):
    assert token_shape(space, number) == shape


@pytest.mark.parametrize(
    ("space", "shape"),
    [
        ((256,), (64,)),
        ((64, 64), (16, 16)),
        ((64, 32, 16), (16, 8, 4)),
        ((100, 8), (25, 4)),  # at least three
        ((101, 6), (101, 3)),
        ((90,), (18,)),  # patches of 5 rather than of 3
        ((2,), (2,)),
    ],
)
def test_patches_are_about_four_points_long(space, shape):
    assert shape_of_patches(space, 4) == shape


def test_possible_numbers_of_tokens_are_those_that_have_patches():
    space = (4, 6)
    found = [n for n in range(1, 30) if token_shape(space, n) is not None]
    assert possible_numbers(space) == found


def neighbor(index, offset, shape, boundary):
    """The token at a distance, or the number of the side beyond which it would lie."""
    side = 0
    place = []
    for n, i, k, sides in zip(shape, index, offset, boundary, strict=True):
        is_periodic = sides[0] == "periodic"
        if not is_periodic and i + k < 0:
            return side
        if not is_periodic and i + k >= n:
            return side + 1
        side += 0 if is_periodic else 2
        place.append((i + k) % n)
    return tuple(place)


GRIDS = [
    ((5,), ()),
    ((5,), (("wall", "open"),)),
    ((4, 3), ()),
    ((4, 3), WALLS),
    ((4, 3), (("wall", "wall"), ("open", "wall"))),
    ((3, 4, 3), ()),
    ((3, 4, 3), (*WALLS, ("wall", "wall"))),
]


@pytest.mark.parametrize(("shape", "boundary"), GRIDS)
@pytest.mark.parametrize("dilation", [0, 1, 2, 5])
def test_window_along_an_axis_holds_the_tokens_beside_each_one(shape, boundary, dilation):
    sides = Grid(shape, (1.0,) * len(shape), boundary).boundary
    h = torch.randn(2, math.prod(shape), 4)
    tokens = list(product(*map(range, shape)))
    for axis in range(len(shape)):
        window = AxisWindow(shape, sides, axis, 3, dilation)
        outside = torch.randn(window.num_outside, 4)
        first_side = 2 * sum(s[0] != "periodic" for s in sides[:axis])
        for j, token in enumerate(tokens):
            seen = []
            for distance in (-dilation, 0, dilation):
                offset = [distance if d == axis else 0 for d in range(len(shape))]
                found = neighbor(token, offset, shape, sides)
                beyond = isinstance(found, int)
                seen.append(
                    outside[found - first_side].expand(2, -1)
                    if beyond
                    else h[:, tokens.index(found)]
                )
            assert torch.equal(
                window(h, outside).view(2, len(tokens), -1)[:, j], torch.cat(seen, -1)
            )


@pytest.mark.parametrize(("shape", "boundary"), GRIDS)
def test_neighborhood_equals_written_out_sum(shape, boundary):
    torch.manual_seed(0)
    sides = Grid(shape, (1.0,) * len(shape), boundary).boundary
    hood = Neighborhood(shape, sides, 3).double()
    offsets = list(product((-1, 0, 1), repeat=len(shape)))
    h = torch.randn(2, math.prod(shape), 4, dtype=torch.float64)
    weight = torch.randn(3, len(offsets) * 4, dtype=torch.float64)
    bias = torch.randn(3, dtype=torch.float64)
    tokens = list(product(*map(range, shape)))
    expected = torch.empty(2, len(tokens), 3, dtype=torch.float64)
    written = torch.zeros(2, len(tokens), 5, dtype=torch.float64)
    spread = torch.randn(len(offsets) * 5, 4, dtype=torch.float64)
    for j, token in enumerate(tokens):
        seen = []
        for part, offset in zip(spread.unflatten(0, (-1, 5)), offsets, strict=True):
            found = neighbor(token, offset, shape, sides)
            if isinstance(found, int):  # beyond a side
                seen.append(torch.zeros(2, 4, dtype=torch.float64))
                continue
            seen.append(h[:, tokens.index(found)])
            written[:, tokens.index(found)] += h[:, j] @ part.T
        expected[:, j] = torch.cat(seen, -1) @ weight.T + bias
    assert torch.allclose(hood.read(h, weight, bias), expected)
    assert torch.allclose(hood.write(h, spread), written)


@pytest.mark.parametrize("architecture", SIZES)
@pytest.mark.parametrize("space", [(32,), (16, 8), (8, 4, 8)], ids=["1D", "2D", "3D"])
def test_shift_by_a_patch_is_a_shift_of_the_tokens(architecture, space):
    spec = spec_of(space)
    model = make(architecture, spec, num_tokens=2 ** (5 if len(space) == 2 else 4), patch_overlap=1)
    u = torch.randn(2, *space, 2)
    axes = tuple(range(1, 1 + len(space)))
    shift = tuple(n // k for n, k in zip(space, model.tokens.shape, strict=True))
    shifted = rolled_out(model, u.roll(shift, axes))
    plain = rolled_out(model, u)
    assert plain.shape == u.shape
    assert torch.allclose(shifted, plain.roll(shift, axes), atol=1e-5)
    assert not torch.allclose(plain, plain.roll(shift, axes), atol=1e-2)
    assert torch.allclose(plain.mean(axes), u.mean(axes), atol=1e-5)  # conserved


@pytest.mark.parametrize("architecture", SIZES)
def test_model_sees_positions_only_where_they_matter(architecture):
    u = torch.randn(1, 16, 8, 2)
    homogeneous = make(architecture, spec_of((16, 8)), num_tokens=32)
    placed = make(architecture, spec_of((16, 8), is_homogeneous=False), num_tokens=32)
    assert homogeneous.positions is None
    assert torch.allclose(rolled_out(homogeneous, u), rolled_out(placed, u))  # zero at first
    torch.nn.init.normal_(placed.positions)
    shifted = rolled_out(placed, u.roll((2, 2), (1, 2)))
    assert not torch.allclose(shifted, rolled_out(placed, u).roll((2, 2), (1, 2)), atol=1e-3)


@pytest.mark.parametrize("architecture", SIZES)
def test_nothing_passes_a_wall(architecture):
    """One step of one block: what is at one end of the walled axis does not reach the other."""
    for boundary in ((), (("wall", "wall"), ("periodic", "periodic"))):
        spec = spec_of((32, 8), boundary, conserves_mean=False)
        depth = {"mixer": {"approximator_depth": 1, "encoder_depth": 0, "decoder_depth": 0}}
        sizes = {"num_tokens": 64, "dilations": [1], **depth.get(architecture, {"depth": 1})}
        model = make(architecture, spec, **sizes)
        u = torch.randn(1, 32, 8, 2)
        changed = u.clone()
        changed[:, -2:] += 1
        difference = (rolled_out(model, changed, 1) - rolled_out(model, u, 1)).abs()
        assert difference[:, -2:].max() > 1e-3
        assert (difference[:, :2].max() > 1e-4) == (boundary == ())


@pytest.mark.parametrize("with_gradients", [False, True])
def test_large_batch_passes_the_blocks_in_parts_that_fit_the_cache(monkeypatch, with_gradients):
    monkeypatch.setattr(mixer, "TOKENS_IN_CACHE", 64)
    torch.manual_seed(0)
    blocks = mixer.mixer_blocks(Grid((16,), (1.0,)), 8, 1.0, (1, 2), 2)
    h = torch.randn(11, 16, 8)
    sizes = []
    blocks[-1].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    with torch.set_grad_enabled(with_gradients):
        mixed = blocks(h)
    assert sizes == ([11] if with_gradients else [4, 4, 3])
    one_by_one = torch.cat([blocks[1](blocks[0](sample)) for sample in h.split(1)])
    assert torch.allclose(mixed, one_by_one, atol=1e-6)


@pytest.mark.parametrize("space", [(32,), (16, 32), (16, 16, 16)], ids=["1D", "2D", "3D"])
def test_blocks_mix_along_every_axis(space):
    spec = spec_of(space, conserves_mean=False)
    model = make("patch_stepper", spec, depth=1, dilations=[2], patch_overlap=1)
    u = torch.randn(1, *space, 2)
    patches = model.patches.cut(u).clone()
    patches[:, 0] += 1
    changed = rolled_out(model, model.patches.join(patches), 1) - rolled_out(model, u, 1)
    tokens = model.patches.cut(changed).abs().amax(-1)[0].view(model.tokens.shape) > 1e-6
    # a token at distances 0 and 2 along each axis; of four tokens those at 2 and -2 are the same
    seen = [len({k % n for k in (-2, 0, 2)}) for n in model.tokens.shape]
    assert tokens.sum() == math.prod(seen)
    assert all(tokens.select(axis, 2).any() for axis in range(len(space)))


@pytest.mark.parametrize("architecture", SIZES)
def test_walled_sides_are_trained(architecture):
    model = make(architecture, spec_of((16, 8), WALLS, is_homogeneous=False), num_tokens=32)
    rolled_out(model, torch.randn(2, 16, 8, 2)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    learned = [p for name, p in model.named_parameters() if name.endswith("outside")]
    assert learned
    assert all(p.shape[0] == 2 and (p.grad != 0).any(1).all() for p in learned)
