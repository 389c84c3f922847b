"""Pictures and curves of fields at points that differ from sample to sample."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_report import looked_at
from test_report_numbers import caught, curves, pictures, write_page

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid, PointCloud
from ups.core.points import Points
from ups.evaluation.examples import choose_examples
from ups.evaluation.report.point_plots import choose_probes
from ups.evaluation.wall_distance import NUM_BINS, errors_by_distance
from ups.models import build
from ups.modules.evaluation import EvaluationModule
from ups.simulation.simulator import Simulator
from ups.simulation.triangles import outline, triangulate

LENGTH, HEIGHT, DT = 4.0, 2.0, 0.5
CLOUD = PointCloud(((0.0, LENGTH), (0.0, HEIGHT)), ("signed_distance",))
SPEC = FieldSpec(CLOUD, ("u", "p"), ("re",), DT, std=(0.5, 2.0), conserves_mean=False)
MODEL = {"architecture": "point_upt", "num_tokens": [5, 3], "hidden_dim": 8, "num_heads": 2}
RADIUS = 0.4
CENTERS = ((1.0, 0.8), (2.2, 1.2), (1.6, 1.1), (2.5, 0.9))


def wall_distance(positions, center):
    """Distances of points (P, 2) to a circle and to the walls of a channel."""
    to_circle = np.linalg.norm(positions - center, axis=-1) - RADIUS
    y = positions[:, 1]
    return np.minimum(to_circle, np.minimum(y, HEIGHT - y))


def scattered(num_points, center, seed=0):
    """Random points (P, 2) around a circle, some on it and on the walls, and their distances."""
    rng = np.random.default_rng(seed)
    boundary = num_points // 10
    angle = rng.uniform(0, 2 * math.pi, boundary // 3)
    on_circle = center + RADIUS * np.stack((np.cos(angle), np.sin(angle)), -1)
    x = rng.uniform(0, LENGTH, boundary)
    on_walls = np.stack((x, HEIGHT * rng.integers(0, 2, boundary)), -1)
    inside = rng.uniform((0, 0), (LENGTH, HEIGHT), (2 * num_points, 2))
    inside = inside[wall_distance(inside, center) > 0]
    positions = np.concatenate((on_circle, on_walls, inside))[:num_points]
    distance = wall_distance(positions, center)
    distance[: len(on_circle) + len(on_walls)] = 0
    return positions, distance


def make_sample(num_points, center):
    """The points of one sample around a circle."""
    positions, distance = scattered(num_points, center)
    both = (positions, distance[:, None])
    return Points(*(torch.from_numpy(each).float()[None] for each in both))


def make_points(sizes=(300, 220, 300, 260)):
    """Points of samples of different sizes around different circles, padded."""
    longest = max(sizes)
    positions = torch.full((len(sizes), longest, 2), 0.5)
    distance = torch.full((len(sizes), longest, 1), 7.0)
    for i, n in enumerate(sizes):
        found = scattered(n, CENTERS[i], seed=i)
        positions[i, :n], distance[i, :n, 0] = (torch.from_numpy(each) for each in found)
    mask = torch.arange(longest) < torch.tensor(sizes)[:, None]
    return Points(positions, distance, mask)


def waves(points, frames):
    """Fields (B, T, P, 2) that travel, of other sizes in each sample; anything at padding."""
    x, y = points.positions[:, None].unbind(-1)
    t = DT * torch.arange(frames)[:, None]
    size = 1 + torch.arange(len(points))[:, None, None]
    u = torch.stack((size * (2 * x + y - t).sin(), (3 * y - x - t).cos() + 2), -1)
    return torch.where(points.mask[:, None, :, None], u, 50.0)


@pytest.mark.parametrize("num_points", [150, 1000])
@pytest.mark.parametrize("center", CENTERS[:2])
def test_triangles_fill_the_fluid_and_leave_obstacles_out(num_points, center):
    points = make_sample(num_points, center)
    positions = points.positions[0].double().numpy()
    triangulation = triangulate(points, SPEC)
    corners = positions[triangulation.get_masked_triangles()]
    one, two = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    areas = np.abs(one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]) / 2
    inside = np.linalg.norm(corners.mean(1) - center, axis=-1) < RADIUS
    assert areas[inside].sum() < 0.05 * math.pi * RADIUS**2
    fluid = LENGTH * HEIGHT - math.pi * RADIUS**2
    assert areas[~inside].sum() > (0.9 if num_points < 1000 else 0.97) * fluid
    assert 0 < triangulation.mask.sum() < len(triangulation.triangles) / 3
    # nothing tells where obstacles are
    bare = FieldSpec(PointCloud(CLOUD.edges, ("temperature",)), ("u",))
    assert triangulate(points, bare).mask is None


def test_outline_is_that_of_the_channel_and_of_the_obstacle():
    points = make_sample(1000, CENTERS[0])
    segments = outline(triangulate(points, SPEC))
    middle = segments.mean(1)
    near_circle = np.abs(np.linalg.norm(middle - CENTERS[0], axis=-1) - RADIUS) < 0.1
    x, y = middle.T
    near_box = np.minimum(np.minimum(x, LENGTH - x), np.minimum(y, HEIGHT - y)) < 0.1
    assert (near_circle | near_box).mean() > 0.95
    lengths = np.linalg.norm(segments[:, 1] - segments[:, 0], axis=-1)
    assert lengths[near_circle].sum() == pytest.approx(2 * math.pi * RADIUS, rel=0.2)


def masked_errors(truth, pred, points):
    """nRMSE (B, T, C), in numpy, of the points alone."""
    found = []
    for i, mask in enumerate(points.mask.numpy()):
        true, guess = truth[i].double().numpy()[:, mask], pred[i].double().numpy()[:, mask]
        found.append(np.sqrt(((guess - true) ** 2).sum(1) / (true**2).sum(1)))
    return np.array(found)


def test_examples_are_ranked_and_cut_by_their_own_points():
    points = make_points()
    truth = waves(points, 3)
    factor = torch.tensor([1.2, 1.05, 1.4, 1.3])[:, None, None, None]
    pred = torch.where(points.mask[:, None, :, None], factor * truth, -900.0)
    pred[0] = torch.where(points.mask[0, :, None], pred[0], 50.0)
    examples = choose_examples(truth, pred, SPEC, points)
    for name, k in (("best", 1), ("median", 3), ("worst", 2)):
        n = int(points.mask[k].sum())
        example = examples[name]
        assert torch.equal(example.truth, truth[k, :, :n])
        assert torch.equal(example.pred, pred[k, :, :n])
        assert torch.equal(example.points.positions[0], points.positions[k, :n])
        assert bool(example.points.mask.all())


def test_errors_by_distance_are_those_of_the_points_at_it():
    points = make_points()
    truth = waves(points, 4)
    std = torch.tensor(SPEC.std)
    # of each sign half of the frames, and anything at padding
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None]
    error = sign * (1 + points.features[:, None]) * std * torch.tensor([1.0, 3.0])
    pred = torch.where(points.mask[:, None, :, None], truth + error, 1e6)
    found = errors_by_distance(pred, truth, points, SPEC)
    assert NUM_BINS / 2 < len(found.distance) <= NUM_BINS
    assert found.distance[0] == 0
    assert bool((found.distance.diff() > 0).all())
    assert found.distance[-1] < HEIGHT / 2
    expected = (1 + found.distance[:, None]) * torch.tensor([1.0, 3.0])
    assert torch.allclose(found.rmse, expected, rtol=0.02)
    bare = FieldSpec(PointCloud(CLOUD.edges, ("temperature",)), SPEC.channels)
    assert errors_by_distance(pred, truth, points, bare) is None


def test_probes_are_the_points_that_vary_most_and_keep_apart():
    positions = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.1, 1.0], [3.0, 1.0], [2.0, 0.5]])
    amplitude = torch.tensor([[0.1, 0.1], [2.0, 0.0], [1.9, 0.0], [0.0, 6.0], [1.0, 1.0]])
    truth = 9.0 + amplitude * torch.tensor([1.0, -1.0])[:, None, None]
    # in units of 0.5 and 2: 4 of the second point, 3 of the fourth
    assert choose_probes(truth, positions, SPEC) == [1, 3, 4]


@pytest.fixture(scope="module")
def tested():
    """An untrained model on points, tested on four trajectories in two batches."""
    torch.manual_seed(0)
    module = EvaluationModule(Simulator(build(MODEL, SPEC), SPEC).eval(), "mine", ["none"])
    module.log_dict = lambda values: None
    points = make_points()
    truth = waves(points, 8)
    module.on_test_start()
    with torch.no_grad():
        for k in (0, 1):
            number = torch.arange(2 * k, 2 * k + 2)
            reynolds = torch.full((2, 1), 100.0)
            some = points.select(number)
            module.test_step(Batch(truth[number], reynolds, number, number, some), k)
    module.on_test_epoch_end()
    return SimpleNamespace(module=module, truth=truth, points=points)


def write(tested, folder):
    return write_page(tested.module, SPEC, folder, frames=8)


@pytest.fixture(scope="module")
def page(tested, tmp_path_factory):
    """The page of the test, with its figures in the place of their files."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        figures = caught(monkeypatch)
        text = write(tested, tmp_path_factory.mktemp("page") / "mine_run").read_text()
    return SimpleNamespace(text=text, figures=figures)


def test_page_shows_a_few_frames_of_each_example_and_channel(tested, page):
    found = pictures(page.text, page.figures, "webp")
    assert len(found) == 3 * 2
    for k, (caption, words, figure) in enumerate(found):
        which, example = list(tested.module.examples.items())[k % 3]
        c = k // 3
        truth, pred = example.truth[..., c], example.pred[..., c]
        nrmse = ((pred - truth).norm(dim=1) / truth.norm(dim=1)).mean()
        assert caption == f"{which}, {SPEC.channels[c]} (nRMSE {nrmse:.4f})"
        assert words.endswith("truth, prediction and error at t = 0.5, 1.5, 2.5, 3.5")
        panels = [axis for axis in figure.axes if axis.get_aspect() == 1.0]
        assert len(panels) == 4 * 3
        for place, axis in enumerate(panels):
            row, column = divmod(place, 3)
            mesh, edges = axis.collections
            field = (truth, pred, pred - truth)[column]
            assert np.allclose(mesh.get_array(), field[2 * row])
            limits = [panels[i].collections[0].get_clim() for i in (0, column)]
            assert mesh.get_clim() == limits[1]
            if column < 2:
                assert limits[0] == limits[1]
            assert len(edges.get_segments()) > 20
            assert axis.get_xlim() == (0.0, LENGTH)
            assert axis.get_ylim() == (0.0, HEIGHT)
    # the picture beside the page
    assert page.figures[0].get_suptitle() == "mine_run: the median test trajectory"


def test_page_has_the_curves_of_points(tested, page):
    found = curves(page.text, page.figures)
    assert "energy spectrum" not in page.text
    (over_time,) = (axis for title, axis in found.items() if "varies most" in title)
    median = tested.module.examples["median"]
    probes = choose_probes(median.truth, median.points.positions[0], SPEC)
    assert len(over_time.lines) == 2 * len(probes) == 6
    for i, truth, pred in zip(probes, over_time.lines[::2], over_time.lines[1::2], strict=True):
        assert np.allclose(truth.get_ydata(), median.truth[:, i, 0])
        assert np.allclose(pred.get_ydata(), median.pred[:, i, 0])
        assert np.allclose(truth.get_xdata(), DT * np.arange(1, 8))
        x, y = median.points.positions[0, i].tolist()
        assert truth.get_label() == f"({x:.3g}, {y:.3g})"
    (over_distance,) = (axis for title, axis in found.items() if "distance" in title)
    errors = tested.module.errors_by_distance
    assert [line.get_label() for line in over_distance.lines] == ["u", "p"]
    for c, line in enumerate(over_distance.lines):
        assert np.allclose(line.get_xdata(), errors.distance)
        assert np.allclose(line.get_ydata(), errors.rmse[:, c])
    expected = masked_errors(
        tested.truth[:, 1:], torch.cat([pred for _, pred in tested.module.first]), tested.points
    )
    assert np.allclose(tested.module.channel_nrmse, expected.mean(0), rtol=1e-4)


@pytest.mark.integration
@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits_desktop_and_phone(tested, tmp_path, width):
    page = write(tested, tmp_path / "mine_run")
    seen = looked_at(page, width, tmp_path)
    assert seen["overflow"] <= 0
    assert len(seen["images"]) == 3 * 2
    assert min(seen["images"]) > 600
    assert len(seen["curves"]) == 5
    assert page.stat().st_size < 3e6


def test_rollout_on_points_is_drawn_in_one_call(tested):
    simulator = tested.module.simulator
    truth, points = tested.truth[:, 1:], tested.points
    figure = simulator.plot(1.1 * truth, truth.numpy(), sample=1, x=points)
    panels = [axis for axis in figure.axes if axis.get_aspect() == 1.0]
    assert [axis.get_title() for axis in panels[:3]] == ["truth", "rollout", "error"]
    for axis, factor in zip(panels[-3:], (1, 1.1, 0.1), strict=True):
        last = factor * truth[1, -1, :220, 0]
        assert np.allclose(axis.collections[0].get_array(), last, atol=1e-4)
    assert figure._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(UpsError, match=r"`x` must be the points of `u`, got None"):
        simulator.plot(truth)
    with pytest.raises(UpsError, match=r"\(B, T, 300\), the points of the training grid or of"):
        simulator.plot(truth[:, :, :200], x=points)
    line = Simulator(build(MODEL | {"num_tokens": 5}, LINE), LINE)
    with pytest.raises(UpsError, match="points must lie on a plane to be drawn, got 1D"):
        line.plot(truth, x=points)
    grid = FieldSpec(Grid((8,), (1.0,)))
    with pytest.raises(UpsError, match="`x` must be None: the data lie on a grid"):
        Simulator(build(MODEL | {"num_tokens": 4}, grid), grid).plot(truth, x=points)


@pytest.mark.parametrize(
    "positions", [[[1, 1]], [[1, 1], [2, 1]], [[0, 0], [1, 0.5], [3, 1.5]], [[1, 1]] * 4]
)
def test_points_without_triangles_are_drawn_as_dots(tested, positions):
    simulator, number = tested.module.simulator, len(positions)
    points = Points(torch.tensor([positions], dtype=torch.float32), torch.ones(1, number, 1))
    figure = simulator.plot(torch.rand(1, 2, number, 2), x=points)
    (dots, *_) = figure.axes[0].collections
    assert len(dots.get_offsets()) == number
    figure.draw_without_rendering()


def test_a_sample_that_is_not_there_is_refused(tested):
    truth, points = tested.truth[:, 1:], tested.points
    number = len(truth)
    with pytest.raises(UpsError, match=rf"`sample` must be less than the {number} samples of `u`"):
        tested.module.simulator.plot(truth, sample=number, x=points)


LINE = FieldSpec(PointCloud(((0.0, 1.0),)), ("u",), conserves_mean=False)
