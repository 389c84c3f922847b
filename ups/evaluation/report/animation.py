"""A rollout beside the truth as one animated image, which a browser plays without a network."""

from base64 import b64encode
from io import BytesIO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image
from torch import Tensor

from ups.core.fields import FieldSpec
from ups.evaluation.report.plots import NUM_CHANNELS
from ups.simulation.picture import (
    add_color_bar,
    color_scales,
    draw_plane,
    few_frames,
    middle_plane,
    panel_ratio,
)

NUM_FRAMES = 30
MIN_MILLISECONDS = 100  # of a frame
LOOP_MILLISECONDS = 5000  # of the whole loop, if its frames are longer than that
QUALITIES = (80, 50, 25, 5)  # of WebP, the best first
MAX_BYTES = 1_500_000


def animation(truth: Tensor, pred: Tensor, spec: FieldSpec) -> str:
    """Animate truth, prediction and error (T, *space, C), a row for each of the first channels.

    Returns:
        The source of an <img>: a WebP of at most ``MAX_BYTES``, as good as fits in there.
    """
    pictures = _pictures(truth, pred, spec)
    duration = max(MIN_MILLISECONDS, LOOP_MILLISECONDS // len(pictures))
    for quality in QUALITIES:
        content = _webp(pictures, duration, quality)
        if len(content) <= MAX_BYTES:
            break
    return "data:image/webp;base64," + b64encode(content).decode()


def _webp(pictures: list[Image.Image], duration: int, quality: int) -> bytes:
    out = BytesIO()
    first, *others = pictures
    first.save(
        out,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=duration,
        loop=0,
        quality=quality,
        method=2,
    )
    return out.getvalue()


def _pictures(truth: Tensor, pred: Tensor, spec: FieldSpec) -> list[Image.Image]:
    """The frames of the animation: a figure that is drawn again with other fields."""
    channels = spec.channels[:NUM_CHANNELS]
    figure = Figure(
        figsize=(6.2, (1.9 * panel_ratio(spec) + 0.9) * len(channels) + 0.3),
        layout="constrained",
    )
    axes = figure.subplots(len(channels), 3, squeeze=False)
    moving: list[tuple[AxesImage, Tensor]] = []
    for c, name in enumerate(channels):
        both = {"truth": truth[..., c], "prediction": pred[..., c]}
        fields = {key: middle_plane(field) for key, field in both.items()}
        fields["error"] = fields["prediction"] - fields["truth"]
        scales = color_scales(fields, about_zero=bool(truth[..., c].min() < 0))
        for axis, (title, field) in zip(axes[c], fields.items(), strict=True):
            image = draw_plane(axis, field[0], scales[title], spec)
            axis.set_title(title if len(channels) == 1 else f"{name}: {title}", fontsize=9)
            axis.label_outer()
            add_color_bar(figure, [axis], image)
            moving.append((image, field))
    canvas = FigureCanvasAgg(figure)
    pictures = []
    for frame in few_frames(len(truth), NUM_FRAMES):
        for image, field in moving:
            image.set_data(field[frame].numpy(force=True).T)
        figure.suptitle(f"t = {spec.dt * (frame + 1):.3g}", fontsize=9)
        canvas.draw()  # type: ignore[no-untyped-call]
        figure.set_layout_engine("none")  # the first picture's places are those of all
        pixels = canvas.buffer_rgba()  # type: ignore[no-untyped-call]
        pictures.append(Image.fromarray(np.asarray(pixels)).convert("RGB"))
    return pictures
