"""The curves of a report that only fields on points have."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ups.core.fields import FieldSpec, Grid
from ups.evaluation.examples import Example
from ups.evaluation.report.plots import COLOURS, NUM_CHANNELS, axes, svg
from ups.evaluation.results import Tested
from ups.evaluation.wall_distance import ErrorsByDistance

NUM_PROBES = 3
PROBE_SPACING = 0.1  # the least distance of two probes, relative to the longest side of the box


def curves_on_points(tested: Tested, spec: FieldSpec) -> list[dict[str, str]]:
    """Titles and pictures of the curves; none for fields on a grid."""
    if isinstance(spec.domain, Grid):
        return []
    found = [
        {
            "title": "truth (line) and prediction (dashed) over time where the median trajectory "
            "varies most",
            "svg": probe_curves(tested.examples["median"], spec),
        }
    ]
    if tested.errors_by_distance is not None:
        title = "error over the distance from the nearest wall, all frames, of the first row"
        found.append({"title": title, "svg": distance_curve(tested.errors_by_distance, spec)})
    return found


def choose_probes(truth: Tensor, positions: Tensor, spec: FieldSpec) -> list[int]:
    """The points where a trajectory varies most over time, not too close to each other.

    The variation is the sum over channels of the variance in time, in the channels' own units.

    Args:
        truth: fields (T, P, C).
        positions: positions (P, D).
        spec: describes the field.

    Returns:
        Indices of at most ``NUM_PROBES`` points.
    """
    variation = (truth.var(0, correction=0) / truth.new_tensor(spec.std) ** 2).sum(-1)
    spacing = PROBE_SPACING * max(spec.domain.extent)
    probes: list[int] = []
    for i in variation.argsort(descending=True).tolist():
        distances = (positions[probes] - positions[i]).norm(dim=-1)
        if bool((distances >= spacing).all()):
            probes.append(i)
        if len(probes) == NUM_PROBES:
            break
    return probes


def probe_curves(example: Example, spec: FieldSpec) -> str:
    """Plot truth and prediction of each of the first channels over time at a few points."""
    assert example.points is not None
    positions = example.points.positions[0]
    names = spec.channels[:NUM_CHANNELS]
    figure = Figure(figsize=(5.2, 0.6 + 1.5 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    times = spec.dt * torch.arange(1, len(example.truth) + 1)
    probes = choose_probes(example.truth, positions, spec)
    places = [", ".join(f"{x:.3g}" for x in positions[i].tolist()) for i in probes]
    for c, (name, axis) in enumerate(zip(names, panels, strict=True)):
        for i, place, color in zip(probes, places, COLOURS, strict=False):
            axis.plot(times, example.truth[:, i, c], color=color, label=f"({place})")
            axis.plot(times, example.pred[:, i, c], "--", color=color)
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    panels[-1].set_xlabel("t")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3,
                  fontsize=7)  # fmt: skip
    return svg(figure, f"truth and prediction over time at the points {'; '.join(places)}")


def distance_curve(errors: ErrorsByDistance, spec: FieldSpec) -> str:
    """Plot the error of each channel over the distance from the nearest wall."""
    figure, axis = axes()
    for i, (name, values) in enumerate(zip(spec.channels, errors.rmse.T, strict=True)):
        color = COLOURS[i % len(COLOURS)]
        axis.plot(errors.distance, values, "o-", markersize=3, color=color, label=name)
    axis.set(
        xlabel="distance from the nearest wall", ylabel="RMSE / standard deviation", ylim=(0, None)
    )
    axis.legend(fontsize=7, framealpha=0.5)
    return svg(figure)
