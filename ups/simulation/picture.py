"""Pictures of fields on a line over space and time."""

from collections.abc import Mapping, Sequence
from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec
from ups.core.gradients import to_tensor


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
    points = spec.domain.shape
    if len(points) != 1 or len(shapes) > 1 or tuple(given["rollout"].shape[2:3]) != points:
        raise UpsError(
            f"`u` and `truth` must have one shape (B, T, {points[0]}), the points of the "
            f"training grid; got {', '.join(map(str, shapes))}."
        )
    fields = {
        name: field[sample, ..., 0] if field.ndim == 4 else field[sample]
        for name, field in given.items()
    }
    about_zero = bool(next(iter(fields.values())).min() < 0)
    if truth is not None:
        fields["error"] = fields["rollout"] - fields["truth"]
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

    A field named "error" has limits of its own, symmetric about zero; the others share those of the
    first, so that a rollout that explodes can't hide the truth.

    Args:
        figure: the figure of the axes.
        axes: as many axes as there are fields.
        fields: the frames, the first of them one step after the initial one.
        spec: describes the field.
        about_zero: whether the shared limits are symmetric about zero.
    """
    first = next(iter(fields.values()))
    low, high = float(first.min()), float(first.max())
    if about_zero:
        high = max(abs(low), abs(high))
        low = -high
    for axis, (title, field) in zip(axes, fields.items(), strict=True):
        worst = float(field.abs().max())
        limits = (-worst, worst) if title == "error" else (low, high)
        image = axis.imshow(
            field.numpy(force=True),
            origin="lower",
            aspect="auto",
            extent=(*spec.grid.edges[0], spec.dt, spec.dt * len(field)),
            cmap="RdBu_r" if about_zero or title == "error" else "viridis",
            vmin=limits[0],
            vmax=limits[1],
        )
        axis.set(title=title, xlabel="x", ylabel="t")
        figure.colorbar(image, ax=axis)
