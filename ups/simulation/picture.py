"""Pictures of fields: on a line over space and time, on a plane or on points frame by frame."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BytesIO
from typing import TypedDict

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.tri import Triangulation
from numpy.typing import NDArray
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.core.gradients import to_tensor
from ups.core.points import Points
from ups.simulation.triangles import has_triangles, outline, triangulate

NUM_FRAMES = 4  # of a picture of a plane
# how high a panel may be, relative to its width
HEIGHTS = (0.25, 2.0)


class ColorScale(TypedDict):
    """How numbers become colors: arguments of matplotlib's ``imshow``."""

    cmap: str
    vmin: float
    vmax: float


# draws a field on an axis, in the colors of a scale
Painter = Callable[[Axes, Tensor, ColorScale], ScalarMappable]


class Picture(Figure):
    """A figure that notebooks show, without pyplot too."""

    def _repr_png_(self) -> bytes:
        out = BytesIO()
        self.savefig(out, format="png", dpi=100)
        return out.getvalue()


def rollout_figure(
    u: Tensor, truth: Tensor | None, sample: int, spec: FieldSpec, points: Points | None = None
) -> Picture:
    """See ``Simulator.plot``."""
    space = _drawable_space(spec, points)
    fields = _first_channels({"truth": truth, "rollout": u}, sample, space, spec.num_channels)
    if points is not None:
        mask = points.mask[sample]
        fields = {name: field[:, mask.to(field.device)] for name, field in fields.items()}
        points = points.unpadded(sample)
    about_zero = bool(next(iter(fields.values())).min() < 0)
    if truth is not None:
        fields["error"] = fields["rollout"] - fields["truth"]
    if spec.domain.num_dims > 1:
        return frames_figure(fields, spec, about_zero, panel_width=3.4, points=points)
    figure = Picture(figsize=(4.2 * len(fields), 3.4), layout="constrained")
    axes = figure.subplots(1, len(fields), squeeze=False)[0]
    draw_fields(figure, axes, fields, spec, about_zero)
    return figure


def _drawable_space(spec: FieldSpec, points: Points | None) -> tuple[int, ...]:
    """The shape (*space) of one frame that can be drawn.

    Raises:
        UpsError: it can't.
    """
    if isinstance(spec.domain, Grid):
        if points is not None:
            raise UpsError("`x` must be None: the data lie on a grid.")
        return spec.domain.shape
    if points is None:
        raise UpsError("`x` must be the points of `u`, got None: the data lie on points.")
    if not can_draw(spec):
        raise UpsError(f"points must lie on a plane to be drawn, got {spec.domain.num_dims}D.")
    return (points.mask.shape[1],)


def can_draw(spec: FieldSpec) -> bool:
    """Whether there are pictures of such fields: all on grids, and those on points of a plane."""
    return isinstance(spec.domain, Grid) or spec.domain.num_dims == 2


def _first_channels(
    fields: Mapping[str, Tensor | None], sample: int, space: tuple[int, ...], num_channels: int
) -> dict[str, Tensor]:
    """The first channel (T, *space) of a sample of those fields that are given.

    Raises:
        UpsError: their shapes differ, or do not fit the points, or there is no such sample.
    """
    given = {
        name: to_tensor(field, None, None) for name, field in fields.items() if field is not None
    }
    shapes = {tuple(field.shape) for field in given.values()}
    if len(shapes) > 1 or next(iter(shapes))[2:] not in (space, (*space, num_channels)):
        raise UpsError(
            f"`u` and `truth` must have one shape (B, T, {', '.join(map(str, space))}), the "
            f"points of the training grid or of `x`; got {', '.join(map(str, shapes))}."
        )
    (shape,) = shapes
    if not -shape[0] <= sample < shape[0]:
        raise UpsError(f"`sample` must be less than the {shape[0]} samples of `u`, got {sample}.")
    has_channels = len(shape) == len(space) + 3
    return {
        name: field[sample, ..., 0] if has_channels else field[sample]
        for name, field in given.items()
    }


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
    fields: Mapping[str, Tensor],
    spec: FieldSpec,
    about_zero: bool = True,
    panel_width: float = 1.2,
    points: Points | None = None,
) -> Picture:
    """Draw a few frames of fields on a plane, a column for each field and a row for each time.

    Args:
        fields: the frames (T, X, Y) by their titles, the first of them one step after the initial
            one. Of a box (T, X, Y, Z) the plane through the middle of the last axis is shown.
        spec: describes the field.
        about_zero: see ``color_scales``.
        panel_width: width of a frame in inches.
        points: where fields (T, P) on points lie, one sample without padding.
    """
    draw = painter(spec, points)
    planes = {title: middle_plane(field) for title, field in fields.items()}
    frames = few_frames(len(next(iter(planes.values()))))
    height = panel_width * panel_ratio(spec)
    margin = 0.9 if points is None else 1.5  # points have panels to scale, which need it all
    size = (panel_width * len(planes) + 0.5, height * len(frames) + margin)
    figure = Picture(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.02, w_pad=0.02))
    axes = figure.subplots(len(frames), len(planes), squeeze=False)
    scales = color_scales(planes, about_zero)
    for column, (title, field) in enumerate(planes.items()):
        for axis, frame in zip(axes[:, column], frames, strict=True):
            image = draw(axis, field[frame], scales[title])
            axis.label_outer()
            axis.tick_params(labelbottom=column == 0 and frame == frames[-1])
        axes[0, column].set_title(title, fontsize=9)
        add_color_bar(figure, list(axes[:, column]), image)
    for axis, frame in zip(axes[:, 0], frames, strict=True):
        axis.set_ylabel(f"t = {spec.dt * (frame + 1):.3g}", fontsize=8)
    return figure


def painter(spec: FieldSpec, points: Points | None) -> Painter:
    """What draws one field on a plane: (X, Y), or (P,) at ``points``."""
    if points is None:
        return partial(draw_plane, spec=spec)
    if not has_triangles(points):
        return partial(draw_dots, spec=spec, points=points)
    triangulation = triangulate(points, spec)
    edges = outline(triangulation)
    return partial(draw_triangles, spec=spec, triangulation=triangulation, edges=edges)


def draw_plane(axis: Axes, field: Tensor, scale: ColorScale, spec: FieldSpec) -> AxesImage:
    """Draw one field (X, Y), its first axis to the right and its second upwards."""
    image = axis.imshow(
        field.numpy(force=True).T,
        origin="lower",
        aspect="auto",
        extent=(*spec.grid.edges[0], *spec.grid.edges[1]),
        **scale,
    )
    axis.set_box_aspect(panel_ratio(spec))
    axis.tick_params(labelsize=7)
    axis.locator_params(nbins=2)
    return image


def draw_triangles(
    axis: Axes,
    field: Tensor,
    scale: ColorScale,
    spec: FieldSpec,
    triangulation: Triangulation,
    edges: NDArray[np.float64],
) -> ScalarMappable:
    """Draw one field (P,), linear in the triangles between its points, and their outer edges."""
    values = field.numpy(force=True)
    image = axis.tripcolor(triangulation, values, shading="gouraud", **scale)
    axis.add_collection(LineCollection(list(edges), colors="0.2", linewidths=0.6))
    _show_box(axis, spec)
    return image


def draw_dots(
    axis: Axes, field: Tensor, scale: ColorScale, spec: FieldSpec, points: Points
) -> ScalarMappable:
    """Draw one field (P,) as dots: fewer than three points, or all on one line."""
    x, y = points.positions[0].numpy(force=True).T
    image = axis.scatter(x, y, c=field.numpy(force=True), s=12, **scale)
    _show_box(axis, spec)
    return image


def _show_box(axis: Axes, spec: FieldSpec) -> None:
    (left, right), (lower, upper) = spec.domain.edges
    axis.set(xlim=(left, right), ylim=(lower, upper), aspect="equal", facecolor="0.85")
    axis.tick_params(labelsize=7)
    axis.locator_params(nbins=3)


def add_color_bar(figure: Figure, axes: Sequence[Axes], image: ScalarMappable) -> None:
    """Add the scale of ``image``, which all of ``axes`` share, below the last of them."""
    bar = figure.colorbar(image, ax=axes, location="bottom", format="%.2g", aspect=12, pad=0.02)
    low, high = image.get_clim()
    bar.set_ticks([low, (low + high) / 2, high])
    bar.ax.tick_params(labelsize=7)
    first, *_, last = bar.ax.get_xticklabels()
    first.set_horizontalalignment("left")  # within the width of the images
    last.set_horizontalalignment("right")


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
    width, height = spec.domain.extent[:2]
    return min(max(height / width, HEIGHTS[0]), HEIGHTS[1])


def few_frames(num_frames: int, at_most: int = NUM_FRAMES) -> list[int]:
    """Evenly spaced frames, the first and the last among them."""
    chosen = torch.linspace(0, num_frames - 1, min(at_most, num_frames))
    return [int(frame) for frame in chosen.round()]
