"""Pictures of fields: on a line over space and time, on a plane frame by frame."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TypedDict

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec
from ups.core.gradients import to_tensor

NUM_FRAMES = 4  # of a picture of a plane
# how high a panel may be, relative to its width
HEIGHTS = (0.25, 2.0)


class Picture(Figure):
    """A figure that notebooks show, without pyplot too."""

    def _repr_png_(self) -> bytes:
        out = BytesIO()
        self.savefig(out, format="png", dpi=100)
        return out.getvalue()


def rollout_figure(u: Tensor, truth: Tensor | None, sample: int, spec: FieldSpec) -> Picture:
    """See ``Simulator.plot``."""
    both = {"rollout": u} if truth is None else {"truth": truth, "rollout": u}
    given = {name: to_tensor(field, None, None) for name, field in both.items()}
    shapes = {tuple(field.shape) for field in given.values()}
    points = spec.grid.shape
    if len(shapes) > 1 or next(iter(shapes))[2:] not in (points, spec.shape):
        raise UpsError(
            f"`u` and `truth` must have one shape (B, T, {', '.join(map(str, points))}), the "
            f"points of the training grid; got {', '.join(map(str, shapes))}."
        )
    fields = {
        name: field[sample, ..., 0] if field.ndim == len(points) + 3 else field[sample]
        for name, field in given.items()
    }
    about_zero = bool(next(iter(fields.values())).min() < 0)
    if truth is not None:
        fields["error"] = fields["rollout"] - fields["truth"]
    if len(points) > 1:
        return frames_figure(fields, spec, about_zero, panel_width=3.4)
    figure = Picture(figsize=(4.2 * len(fields), 3.4), layout="constrained")
    axes = figure.subplots(1, len(fields), squeeze=False)[0]
    draw_fields(figure, axes, fields, spec, about_zero)
    return figure


def draw_fields(
    figure: Figure,
    axes: Sequence[Axes],
    fields: Mapping[str, Tensor],
    spec: FieldSpec,
    about_zero: bool = True,
) -> None:
    """Draw fields (T, X) by their titles, one an axis, each frame a row.

    Args:
        figure: the figure of the axes.
        axes: as many axes as there are fields.
        fields: the frames, the first of them one step after the initial one.
        spec: describes the field.
        about_zero: see ``color_scales``.
    """
    scales = color_scales(fields, about_zero)
    for axis, (title, field) in zip(axes, fields.items(), strict=True):
        image = axis.imshow(
            field.numpy(force=True),
            origin="lower",
            aspect="auto",
            extent=(*spec.grid.edges[0], spec.dt, spec.dt * len(field)),
            **scales[title],
        )
        axis.set(title=title, xlabel="x", ylabel="t")
        figure.colorbar(image, ax=axis)


def frames_figure(
    fields: Mapping[str, Tensor], spec: FieldSpec, about_zero: bool = True, panel_width: float = 1.2
) -> Picture:
    """Draw a few frames of fields on a plane, a column for each field and a row for each time.

    Args:
        fields: the frames (T, X, Y) by their titles, the first of them one step after the initial
            one. Of a box (T, X, Y, Z) the plane through the middle of the last axis is shown.
        spec: describes the field.
        about_zero: see ``color_scales``.
        panel_width: width of a frame in inches.
    """
    planes = {title: middle_plane(field) for title, field in fields.items()}
    frames = few_frames(len(next(iter(planes.values()))))
    height = panel_width * panel_ratio(spec)
    size = (panel_width * len(planes) + 0.5, height * len(frames) + 0.9)
    figure = Picture(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.02, w_pad=0.02))
    axes = figure.subplots(len(frames), len(planes), squeeze=False)
    scales = color_scales(planes, about_zero)
    for column, (title, field) in enumerate(planes.items()):
        for axis, frame in zip(axes[:, column], frames, strict=True):
            draw_plane(axis, field[frame], spec, scales[title])
            axis.label_outer()
            axis.tick_params(labelbottom=column == 0 and frame == frames[-1])
        axes[0, column].set_title(title, fontsize=9)
        add_color_bar(figure, list(axes[:, column]))
    for axis, frame in zip(axes[:, 0], frames, strict=True):
        axis.set_ylabel(f"t = {spec.dt * (frame + 1):.3g}", fontsize=8)
    return figure


def draw_plane(axis: Axes, field: Tensor, spec: FieldSpec, scale: "ColorScale") -> None:
    """Draw one field (X, Y), its first axis to the right and its second upwards."""
    axis.imshow(
        field.numpy(force=True).T,
        origin="lower",
        aspect="auto",
        extent=(*spec.grid.edges[0], *spec.grid.edges[1]),
        **scale,
    )
    axis.set_box_aspect(panel_ratio(spec))
    axis.tick_params(labelsize=7)
    axis.locator_params(nbins=2)


def add_color_bar(figure: Figure, axes: Sequence[Axes]) -> None:
    """Add the scale that the images of ``axes`` share below the last of them."""
    image = axes[0].images[0]
    bar = figure.colorbar(image, ax=axes, location="bottom", format="%.2g", aspect=12, pad=0.02)
    low, high = image.get_clim()
    bar.set_ticks([low, (low + high) / 2, high])
    bar.ax.tick_params(labelsize=7)
    first, *_, last = bar.ax.get_xticklabels()
    first.set_horizontalalignment("left")  # within the width of the images
    last.set_horizontalalignment("right")


class ColorScale(TypedDict):
    """How numbers become colors: arguments of matplotlib's ``imshow``."""

    cmap: str
    vmin: float
    vmax: float


def color_scales(fields: Mapping[str, Tensor], about_zero: bool = True) -> dict[str, ColorScale]:
    """The scale of each field by its title.

    A field named "error" has limits of its own, symmetric about zero; the others share those of the
    first, so that a rollout that explodes can't hide the truth.

    Args:
        fields: the fields by their titles.
        about_zero: whether the shared limits are symmetric about zero.
    """
    first = next(iter(fields.values()))
    low, high = float(first.min()), float(first.max())
    if about_zero:
        high = max(abs(low), abs(high))
        low = -high
    shared = ColorScale(cmap="RdBu_r" if about_zero else "viridis", vmin=low, vmax=high)
    scales = dict.fromkeys(fields, shared)
    if "error" in fields:
        worst = float(fields["error"].abs().max())
        scales["error"] = ColorScale(cmap="RdBu_r", vmin=-worst, vmax=worst)
    return scales


def middle_plane(field: Tensor) -> Tensor:
    """The plane (T, X, Y) through the middle of all further axes of ``field`` (T, *space)."""
    while field.ndim > 3:
        field = field.select(-1, field.shape[-1] // 2)
    return field


def panel_ratio(spec: FieldSpec) -> float:
    """The height of a plane's picture, relative to its width; not to scale if it is very thin."""
    width, height = spec.grid.extent[:2]
    return min(max(height / width, HEIGHTS[0]), HEIGHTS[1])


def few_frames(num_frames: int, at_most: int = NUM_FRAMES) -> list[int]:
    """Evenly spaced frames, the first and the last among them."""
    chosen = torch.linspace(0, num_frames - 1, min(at_most, num_frames))
    return [int(frame) for frame in chosen.round()]
