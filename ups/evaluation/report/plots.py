"""The plots of a report as text within its html: SVG for curves, PNG for fields."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO, StringIO
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from ups.core.fields import FieldSpec
from ups.core.io import atomic_write
from ups.evaluation.examples import Example
from ups.evaluation.results import Row
from ups.simulation.picture import draw_fields, few_frames, frames_figure

# Okabe and Ito's palette, distinguishable with color blindness
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#666666")
NUM_CHANNELS = 3  # of fields with more, the first ones are shown
# of a frame in inches; triangles between scattered points need more room
GRID_PANEL_WIDTH = 1.2
POINTS_PANEL_WIDTH = 2.4


def svg(figure: Figure, words: str = "") -> str:
    """Render the figure as an <svg> element; its text remains text.

    Args:
        figure: the figure.
        words: says what it shows to those who can't see it; default: its text says that.
    """
    out = StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    element = out.getvalue()[out.getvalue().index("<svg") :]
    label = f'<svg role="img" aria-label="{escape(words)}"' if words else "<svg"
    return element.replace("<svg", label, 1)


def png(figure: Figure) -> str:
    """Render the figure as the source of an <img>."""
    return _image(figure, "png")


def webp(figure: Figure) -> str:
    """The same in a tenth of the bytes, if colors change smoothly; not exactly to the pixel."""
    return _image(figure, "webp", pil_kwargs={"quality": 90})


def _image(figure: Figure, kind: str, **options: Any) -> str:
    out = BytesIO()
    figure.savefig(out, format=kind, dpi=100, **options)
    return f"data:image/{kind};base64," + b64encode(out.getvalue()).decode()


def axes(width: float = 5.2, height: float = 3.4) -> tuple[Figure, Axes]:
    """Make a figure with one axis."""
    figure = Figure(figsize=(width, height))
    axis = figure.add_axes((0.17, 0.15, 0.8, 0.8))
    axis.grid(alpha=0.3)
    return figure, axis


def rollouts(examples: Mapping[str, Example], spec: FieldSpec) -> list[dict[str, str]]:
    """Plot truth, prediction and error of each example.

    On a line these are three images over space and time of the first channel; in more dimensions
    one image of a few frames for each of the first channels.
    """
    if spec.domain.num_dims > 1:
        return [
            _frames(which, example, channel, spec)
            for channel in range(min(NUM_CHANNELS, spec.num_channels))
            for which, example in examples.items()
        ]
    found = []
    for which, example in examples.items():
        truth = example.truth[..., 0]
        pred = example.pred[..., 0]
        error = pred - truth
        nrmse = float((error.norm(dim=-1) / truth.norm(dim=-1).clamp_min(1e-30)).mean())
        top = max(float(truth.abs().max()), 1e-30)
        worst = max(float(error.abs().max()), 1e-30)
        for what, field, limit in (
            ("truth", truth, top),
            ("prediction", pred, top),
            ("error", error, worst),
        ):
            figure = Figure(figsize=(3.6, 2.6))
            axis = figure.add_axes((0.15, 0.18, 0.6, 0.78))
            extent = (*spec.grid.edges[0], spec.dt, spec.dt * len(truth))
            image = axis.imshow(
                field.numpy(),
                origin="lower",
                aspect="auto",
                extent=extent,
                cmap="RdBu_r",
                vmin=-limit,
                vmax=limit,
            )
            axis.set(xlabel="x", ylabel="t")
            bar = figure.colorbar(
                image, cax=figure.add_axes((0.78, 0.18, 0.03, 0.78)), format="%.2g"
            )
            bar.set_ticks([-limit, -limit / 2, 0, limit / 2, limit])
            bar.ax.tick_params(labelsize=8)
            words = (
                f"{which} test trajectory: {what} over space and time, "
                f"from {-limit:.2g} (blue) to {limit:.2g} (red)"
            )
            found.append(
                {
                    "title": f"{which} (nRMSE {nrmse:.4f}): {what}",
                    "source": png(figure),
                    "words": words,
                }
            )
    return found


def _frames(which: str, example: Example, channel: int, spec: FieldSpec) -> dict[str, str]:
    """One image of truth, prediction and error at a few times."""
    truth = example.truth[..., channel]
    pred = example.pred[..., channel]
    points = example.points
    width = GRID_PANEL_WIDTH if points is None else POINTS_PANEL_WIDTH
    sizes = truth.flatten(1).norm(dim=-1).clamp_min(1e-30)
    nrmse = float(((pred - truth).flatten(1).norm(dim=-1) / sizes).mean())
    fields = {"truth": truth, "prediction": pred, "error": pred - truth}
    times = ", ".join(f"{spec.dt * (frame + 1):.3g}" for frame in few_frames(len(truth)))
    name = f", {spec.channels[channel]}" if spec.num_channels > 1 else ""
    figure = frames_figure(fields, spec, bool(truth.min() < 0), width, points)
    return {
        "title": f"{which}{name} (nRMSE {nrmse:.4f})",
        "source": png(figure) if points is None else webp(figure),
        "words": f"{which} test trajectory{name}: truth, prediction and error at t = {times}",
    }


def error_over_time(rows: Mapping[str, Row], dt: float | None) -> str:
    """Plot the nRMSE of every frame.

    Args:
        rows: rows of an evaluation by the label of their line.
        dt: the time between frames; None to plot against the number of the frame.
    """
    figure, axis = axes()
    lines = cycle((":", "-.", "--", "-"))  # persistence, and solvers from the coarsest on
    for i, (label, row) in enumerate(rows.items()):
        style = (
            {"color": "0.55", "linestyle": next(lines)}
            if row.is_baseline
            else {"color": COLOURS[i % len(COLOURS)]}
        )
        errors = row["nrmse_over_time"]
        axis.semilogy(_times(errors, dt), errors, label=label, **style)
    axis.set(xlabel="t" if dt else "frame", ylabel="nRMSE of a frame")
    axis.legend(fontsize=7, framealpha=0.5)
    return svg(figure)


def channel_errors(errors: Tensor, spec: FieldSpec) -> str:
    """Plot the nRMSE (T, C) of each channel in every frame."""
    figure, axis = axes()
    times = [spec.dt * (frame + 1) for frame in range(len(errors))]
    for i, (name, values) in enumerate(zip(spec.channels, errors.unbind(-1), strict=True)):
        axis.semilogy(times, values, color=COLOURS[i % len(COLOURS)], label=name)
    axis.set(xlabel="t", ylabel="nRMSE of a frame")
    axis.legend(fontsize=7, framealpha=0.5)
    return svg(figure)


def error_against_cost(rows: Mapping[str, Row]) -> str:
    """Plot rollout nRMSE against time for each trajectory; a line joins the solver's grids."""
    figure, axis = axes()
    solvers = [row for row in rows.values() if row["model"].startswith("solver-")]
    axis.loglog(
        [1e3 * r["seconds_per_trajectory"] for r in solvers],
        [r["nrmse"] for r in solvers],
        "o-",
        color="0.55",
    )
    for row in solvers:
        place = 1e3 * row["seconds_per_trajectory"], row["nrmse"]
        axis.annotate(
            row["model"], place, xytext=(5, 4), textcoords="offset points", fontsize=7, color="0.4"
        )
    for i, (label, row) in enumerate(rows.items()):
        if not row.is_baseline:
            axis.loglog(
                1e3 * row["seconds_per_trajectory"],
                row["nrmse"],
                "s",
                color=COLOURS[i % len(COLOURS)],
                label=label,
            )
    for side in (axis.xaxis, axis.yaxis):
        side.set_minor_locator(LogLocator(subs=(2, 5)))
        side.set_major_formatter("{x:g}")
        side.set_minor_formatter("{x:g}")
    axis.margins(0.12)
    axis.set(xlabel="milliseconds a trajectory", ylabel="rollout nRMSE")
    axis.legend(fontsize=7, framealpha=0.5)
    return svg(figure)


def spectra(truth: Tensor, pred: Tensor) -> str:
    """Plot energy by wave number at the last frame."""
    figure, axis = axes()
    for label, values, style in (
        ("truth", truth, {"color": "0.3"}),
        ("prediction", pred, {"color": COLOURS[1], "linestyle": "--"}),
    ):
        axis.loglog(range(1, len(values)), values[1:].clamp_min(1e-30), label=label, **style)
    axis.set(xlabel="wave number", ylabel="energy, last frame")
    axis.legend(fontsize=7, framealpha=0.5)
    return svg(figure)


def _times(frames: Sequence[float], dt: float | None) -> list[float]:
    """The times of frames, the first a step after t = 0; without ``dt`` their numbers."""
    return [(k + 1) * (dt or 1) for k in range(len(frames))]


def spread_and_error(rows: Mapping[str, Row], dt: float | None) -> str:
    """Plot the spread of draws and the error of their mean in every frame.

    Args:
        rows: rows with draws by label.
        dt: the time between frames; None to plot against the number of the frame.
    """
    figure, axis = axes()
    words = []
    for i, (label, row) in enumerate(rows.items()):
        errors = row["ensemble_nrmse_over_time"]
        spreads = row["ensemble_spread_over_time"]
        times = _times(errors, dt)
        color = COLOURS[i % len(COLOURS)]
        axis.semilogy(times, errors, color=color, label=f"{label}: error of the mean")
        axis.semilogy(times, spreads, "--", color=color, label=f"{label}: spread")
        words.append(
            f"{label}: error of the mean from {errors[0]:.2g} to {errors[-1]:.2g}, "
            f"spread from {spreads[0]:.2g} to {spreads[-1]:.2g}"
        )
    axis.set(xlabel="t" if dt else "frame", ylabel="relative, of a frame")
    axis.legend(fontsize=7, framealpha=0.5)
    return svg(figure, f"spread of draws and error of their mean over time; {'; '.join(words)}")


def rank_histograms(rows: Mapping[str, Row]) -> str:
    """Plot how often the truth has each rank among the draws of rows by label, 1 if calibrated.

    Ranks are shown between 0 and 1, so that numbers of draws may differ.
    """
    figure, axis = axes()
    words = []
    for i, (label, row) in enumerate(rows.items()):
        shares = row["rank_histogram"]
        edges = [k / len(shares) for k in range(len(shares) + 1)]
        heights = [share * len(shares) for share in shares]
        axis.stairs(heights, edges, color=COLOURS[i % len(COLOURS)], label=label, linewidth=1.5)
        words.append(f"{label}: {', '.join(f'{height:.2f}' for height in heights)}")
    axis.axhline(1.0, color="0.55", linestyle=":", label="calibrated")
    axis.set(xlabel="rank of the truth, lowest to highest", ylabel="frequency", ylim=(0, None))
    axis.legend(fontsize=7, framealpha=0.5)
    return svg(figure, f"frequency of the truth's rank among draws; {'; '.join(words)}")


def learning_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """Plot logged values against steps, by the label of their line."""
    figure, axis = axes()
    for i, (label, (steps, values)) in enumerate(curves.items()):
        style = "--." if "validation" in label else "-"
        color = COLOURS[i % len(COLOURS)]
        axis.plot(steps, values, style, label=label, linewidth=1.2, color=color)
    if any(value > 0 for _, values in curves.values() for value in values):
        axis.set_yscale("log")
    axis.set(xlabel="step", ylabel="loss, nRMSE")
    axis.legend(fontsize=7, framealpha=0.5)
    return svg(figure)


def draw_rollout(path: Path, example: Example, spec: FieldSpec, title: str) -> None:
    """Draw truth, prediction and error of the first channel.

    On a line they are drawn over space and time, with three frames beside them.

    Args:
        path: the png file to write.
        example: what to draw.
        spec: describes the field.
        title: title of the figure.
    """
    truth = example.truth[..., 0]
    pred = example.pred[..., 0]
    fields = {"truth": truth, "rollout": pred, "error": pred - truth}
    if spec.domain.num_dims == 1:
        figure = _line_figure(fields, spec)
    else:
        figure = frames_figure(fields, spec, bool(truth.min() < 0), 2.4, example.points)
    figure.suptitle(title, fontsize=10)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _line_figure(fields: Mapping[str, Tensor], spec: FieldSpec) -> Figure:
    """Truth, rollout and error (T, X) over space and time, and three frames of the first two."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    axes = figure.subplots(1, 4)
    draw_fields(figure, axes[:3], fields, spec)
    truth, pred = fields["truth"], fields["rollout"]
    x = spec.grid.axis(0)
    for frame, colour in zip((0, len(truth) // 4, len(truth) - 1), ("C0", "C1", "C2"), strict=True):
        axes[3].plot(x, truth[frame], color=colour, label=f"t = {spec.dt * (frame + 1):.2f}")
        axes[3].plot(x, pred[frame], color=colour, linestyle="--")
    axes[3].set(title="truth (line), rollout (- -)", xlabel="x", ylabel="u")
    axes[3].legend()
    return figure
