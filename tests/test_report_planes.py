"""The report, the pictures and the card of fields on planes and boxes."""

import base64
import io
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from test_report import looked_at
from test_report_numbers import (
    DATASET,
    ORIGIN,
    caught,
    curves,
    make_config,
    make_rows,
    pictures,
    write_checkpoint,
    write_page,
)

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.core.io import sha256
from ups.evaluation.examples import Example
from ups.evaluation.metrics import energy_spectrum
from ups.evaluation.report import animation as animations
from ups.evaluation.report.animation import animation
from ups.evaluation.report.plots import draw_rollout, rollouts
from ups.hub.model_card import render_model_card
from ups.models import build
from ups.modules.evaluation import EvaluationModule
from ups.simulation.simulator import Simulator

SPACE, LENGTHS, DT = (12, 8), (3.0, 2.0), 0.05
PLANE = FieldSpec(Grid(SPACE, LENGTHS, (), (-1.0, 0.5)), ("u", "v", "p", "q"), ("nu",), dt=DT)
SCALAR = FieldSpec(Grid(SPACE, LENGTHS), parameters=("nu",), dt=DT)
MODEL = {"architecture": "resnet", "hidden_channels": 4, "num_blocks": 1, "dilations": [1, 2]}


def decaying(num, frames, spec, seed=0):
    """Fields (num, frames, *space, C) of two waves that decay and travel."""
    rng = np.random.default_rng(seed)
    grid = spec.grid
    shares = np.meshgrid(*[np.arange(n) / n for n in grid.shape], indexing="ij")
    t = DT * np.arange(frames).reshape(-1, *[1] * grid.num_dims)
    fields = np.empty((num, frames, *spec.shape), dtype=np.float32)
    for i in range(num):
        for c in range(spec.num_channels):
            phase = 2 * math.pi * (sum(shares) + rng.random() - t)
            fields[i, ..., c] = np.exp(-t) * (1 + i) * np.sin(phase)
            fields[i, ..., c] += np.exp(-4 * t) * np.cos(4 * math.pi * shares[0] + phase)
    return torch.from_numpy(fields)


@pytest.fixture(scope="module", params=[PLANE, SCALAR], ids=["channels", "scalar"])
def tested(request):
    """An untrained model on a plane, tested on five trajectories in two batches."""
    spec = request.param
    torch.manual_seed(0)
    module = EvaluationModule(Simulator(build(MODEL, spec), spec).eval(), "mine", ["none"])
    module.log_dict = lambda values: None
    truth = decaying(5, 8, spec)
    module.on_test_start()
    with torch.no_grad():
        for k, u in enumerate(truth.split(3)):
            number = torch.arange(len(u))
            module.test_step(Batch(u, torch.full((len(u), 1), 1e-3), number, number), k)
    module.on_test_epoch_end()
    return SimpleNamespace(module=module, spec=spec, truth=truth)


def write(tested, folder):
    return write_page(tested.module, tested.spec, folder, points=tested.spec.grid.num_points)


@pytest.fixture(scope="module")
def page(tested, tmp_path_factory):
    """The page of the test, with its figures in the place of their files."""
    folder = tmp_path_factory.mktemp("page") / "mine_run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        figures = caught(monkeypatch)
        text = write(tested, folder).read_text()
    return SimpleNamespace(text=text, figures=figures)


def error_of_channels(truth, pred):
    """nRMSE (T, C), in numpy."""
    truth, pred = truth.double().numpy(), pred.double().numpy()
    squares = ((pred - truth) ** 2).sum((-3, -2)) / (truth**2).sum((-3, -2))
    return np.sqrt(squares)


def test_channel_errors_are_those_of_each_frame_and_channel(tested):
    truth, pred = (torch.cat(parts) for parts in zip(*tested.module.first, strict=True))
    expected = error_of_channels(truth, pred).mean(0)
    assert np.allclose(tested.module.channel_nrmse.numpy(), expected, rtol=1e-4)
    row = tested.module.rows[0]
    assert row["nrmse_over_time"] == pytest.approx(expected.mean(1).tolist(), rel=1e-4)


def test_errors_of_single_steps_are_means_over_channels_as_those_of_rollouts_are(tested):
    truth = tested.truth
    predict = tested.module.measurements[0].predict
    nu = torch.full((len(truth) * (truth.shape[1] - 1), 1), 1e-3)
    steps = predict(truth[:, :-1].flatten(0, 1), 1, nu).view_as(truth[:, 1:])
    expected = error_of_channels(truth[:, 1:], steps)
    row = tested.module.rows[0]
    assert row["one_step_nrmse"] == pytest.approx(expected.mean(), rel=1e-4)
    assert row["one_step_squared"] == pytest.approx((expected**2).mean(), rel=1e-4)


def test_page_shows_a_few_frames_of_each_example_and_channel(tested, page):
    found = pictures(page.text, page.figures)
    channels = min(3, tested.spec.num_channels)
    assert len(found) == 3 * channels
    examples = list(tested.module.examples.items())
    for k, (caption, words, figure) in enumerate(found):
        which, (truth, pred, _) = examples[k % 3]
        c = k // 3
        name = f", {tested.spec.channels[c]}" if channels > 1 else ""
        nrmse = error_of_channels(truth, pred)[:, c].mean()
        assert caption == f"{which}{name} (nRMSE {nrmse:.4f})"
        assert words == (
            f"{which} test trajectory{name}: truth, prediction and error at t = "
            "0.05, 0.15, 0.25, 0.35"
        )
        error = pred - truth
        panels = [axis for axis in figure.axes if axis.images]
        top, worst = float(truth[..., c].abs().max()), float(error[..., c].abs().max())
        for place, axis in enumerate(panels):
            row, column = divmod(place, 3)
            field, limit = [(truth, top), (pred, top), (error, worst)][column]
            image = axis.images[0]
            # x to the right and y upwards
            assert np.allclose(image.get_array(), field[[0, 2, 4, 6][row], ..., c].T)
            assert image.origin == "lower"
            assert image.get_clim() == pytest.approx((-limit, limit))
            edges = (*tested.spec.grid.edges[0], *tested.spec.grid.edges[1])
            assert image.get_extent() == pytest.approx(edges)
            assert axis.get_box_aspect() == pytest.approx(2 / 3)
        titles = [axis.get_title() for axis in panels[:3]]
        assert titles == ["truth", "prediction", "error"]
        times = [axis.get_ylabel() for axis in panels[::3]]
        assert times == ["t = 0.05", "t = 0.15", "t = 0.25", "t = 0.35"]


def test_page_has_a_curve_of_each_channel_if_there_are_several(tested, page):
    found = curves(page.text, page.figures)
    caption = "error over time of each channel, of the first row"
    assert (caption in found) == (tested.spec.num_channels > 1)
    if caption in found:
        lines = {line.get_label(): line for line in found[caption].lines}
        assert list(lines) == ["u", "v", "p", "q"]
        for c, line in enumerate(lines.values()):
            assert list(line.get_xdata()) == pytest.approx([DT * k for k in range(1, 8)])
            assert np.allclose(line.get_ydata(), tested.module.channel_nrmse[:, c])


def moving_image(source):
    kind, _, code = source.partition(",")
    assert kind == "data:image/webp;base64"
    content = base64.b64decode(code)
    return Image.open(io.BytesIO(content)), len(content)


def test_page_holds_one_animation_and_loads_nothing(tested, tmp_path):
    text = write(tested, tmp_path / "mine_run").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    (source,) = re.findall(r'src="(data:image/webp[^"]*)"', text)
    image, size = moving_image(source)
    assert image.n_frames == 7
    assert image.info["loop"] == 0
    assert size < 200_000
    assert (tmp_path / "mine_run/reports/eval_baseline.png").stat().st_size > 1000


def test_animation_moves_from_the_first_frame_to_the_last():
    truth = torch.linspace(-1, 1, 100).view(-1, 1, 1, 1).expand(-1, *SPACE, 1)
    image, _ = moving_image(animation(truth, -truth, SCALAR))
    assert image.n_frames == animations.NUM_FRAMES
    width, height = image.size
    colors = []
    for frame in (0, image.n_frames - 1):
        image.seek(frame)
        pixels = image.convert("RGB")
        places = [(int(width * share), int(height * 0.45)) for share in (0.2, 0.5)]
        colors.append([pixels.getpixel(place) for place in places])
    (first_truth, first_pred), (last_truth, last_pred) = colors
    for blue, red in ((first_truth, last_truth), (last_pred, first_pred)):
        assert blue[2] > 80 > blue[0]
        assert red[0] > 80 > red[2]


def test_animation_of_noise_is_small_enough(monkeypatch):
    spec = FieldSpec(Grid((128, 128), (1.0, 1.0)), ("u", "v", "p"), dt=DT)
    truth = torch.randn(40, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(animations, "NUM_FRAMES", 6)  # a fifth of the time, and of the bytes
    monkeypatch.setattr(animations, "MAX_BYTES", 300_000)
    image, size = moving_image(animation(truth, truth.flip(0), spec))
    assert image.n_frames == 6
    assert size <= 300_000


@pytest.mark.parametrize("spec", [PLANE, SCALAR], ids=["channels", "scalar"])
def test_rollout_on_a_plane_is_drawn_in_one_call(spec):
    simulator = Simulator(build(MODEL, spec), spec)
    truth = decaying(3, 9, spec)
    u = 1.1 * truth
    figure = simulator.plot(u, truth.numpy(), sample=2)
    panels = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in panels[:3]] == ["truth", "rollout", "error"]
    last = truth[2, 8, ..., 0].T
    for axis, factor in zip(panels[-3:], (1, 1.1, 0.1), strict=True):
        assert np.allclose(axis.images[0].get_array(), factor * last, atol=1e-5)
    assert panels[-3].get_ylabel() == "t = 0.45"
    assert figure._repr_png_().startswith(b"\x89PNG")
    alone = [axis for axis in simulator.plot(u).figure.axes if axis.images]
    assert len(alone) == 4
    if spec is SCALAR:
        without_channels = simulator.plot(u[..., 0]).axes[0].images[0]
        assert np.array_equal(without_channels.get_array(), alone[0].images[0].get_array())
    with pytest.raises(UpsError, match=r"\(B, T, 12, 8\), the points of the training grid"):
        simulator.plot(u[:, :, :6])
    with pytest.raises(UpsError, match="must have one shape"):
        simulator.plot(u, truth[:, :2])


def test_box_is_shown_by_its_middle_plane(tmp_path, monkeypatch):
    spec = FieldSpec(Grid((4, 6, 8), (1.0, 1.0, 1.0)), dt=DT)
    truth = decaying(1, 3, spec)[0]
    figures = caught(monkeypatch)
    example = Example(truth, 2 * truth)
    draw_rollout(tmp_path / "box.png", example, spec, "a box")
    rollouts({"best": example}, spec)
    for figure in figures:
        first, second, *_ = [axis for axis in figure.axes if axis.images]
        assert np.allclose(first.images[0].get_array(), truth[0, :, :, 4, 0].T)
        assert np.allclose(second.images[0].get_array(), 2 * truth[0, :, :, 4, 0].T)
    assert figures[0].get_suptitle() == "a box"
    monkeypatch.undo()
    image, _ = moving_image(animation(truth, truth, spec))
    assert image.n_frames == 3


def test_spectrum_counts_waves_along_the_longest_axis():
    spec = FieldSpec(Grid((16, 16), (2.0, 1.0)))
    x, y = torch.meshgrid(torch.arange(16) / 16, torch.arange(16) / 16, indexing="ij")
    for u, number in (((6 * math.pi * x).sin(), 3), ((4 * math.pi * y).sin(), 4)):
        spectrum = energy_spectrum(u[..., None], spec)
        assert spectrum[number].item() == pytest.approx(1 / 4, rel=1e-5)
        assert spectrum.sum().item() == pytest.approx(1 / 4, rel=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits_desktop_and_phone(tested, tmp_path, width):
    page = write(tested, tmp_path / "mine_run")
    seen = looked_at(page, width, tmp_path)
    assert seen["overflow"] <= 0
    assert len(seen["images"]) == 3 * min(3, tested.spec.num_channels) + 1
    assert min(seen["images"]) > 300
    assert page.stat().st_size < 3e6


def test_card_tells_the_shape_and_the_domain_of_a_plane(tmp_path):
    folder = tmp_path / "mine_run"
    (folder / "reports").mkdir(parents=True)
    simulator = Simulator(build(MODEL, SCALAR), SCALAR, None, MODEL)
    numbers = {"epoch": 6, "global_step": 123, "validation_nrmse": 0.04567}
    path = write_checkpoint(folder, "operator", simulator, **numbers)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(make_config(tmp_path)))
    origin = {**ORIGIN, "evaluated": {path.name: sha256(path)[:12], "settings": "feed"}}
    dataset = {**DATASET, "name": "waves", "nu": None, "points": 96}
    content = {"dataset": dataset, "rows": make_rows()[:3], "provenance": origin}
    (folder / "reports/eval_baseline.json").write_text(json.dumps(content))
    text = render_model_card(folder, "nice")
    assert "# u0 (B, 12, 8) on x, y in [0, 3) x [0, 2) -> (B, 4, 12, 8), every 0.05" in text
    assert "steps of 0.05 and 12 x 8 points of [0, 3) x [0, 2), on initial" in text
