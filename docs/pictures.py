"""Draw the picture of README and the first page, by the flow model that comes with UPS.

    python docs/pictures.py

The initial field has a seed of none of the data sets.
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure

import ups
from ups.physics import navier_stokes
from ups.simulation.picture import color_scales, draw_plane

PICTURE = Path(__file__).parent / "pictures/flow.png"
SEED = 2026
FRAMES = 20
FINE = 256  # points of the solver along an axis
SHOWN = (4, 9, 14, 19)


def flow() -> Figure:
    """Vorticity of a flow at nu = 1e-5: a row each of the solver's, the model's and their
    difference, from left to right at four times.
    """
    sim = ups.load("navier-stokes-small")
    points = sim.spec.grid.shape[0]
    fine = navier_stokes.initial_conditions(1, FINE, seed=SEED)
    times = [sim.dt * k for k in range(1, FRAMES + 1)]
    every = FINE // points
    truth = navier_stokes.solve(fine, times, 1e-5)[0, :, ::every, ::every]
    rollout = sim.rollout(navier_stokes.resample(fine, points), FRAMES, nu=1e-5)[0]
    fields = {f"solver on {FINE}²": truth, "UPS": rollout, "error": rollout - truth}
    scales = color_scales(fields)
    figure = Figure(figsize=(8, 6.2), layout="constrained")
    axes = figure.subplots(len(fields), len(SHOWN))
    for row, (title, field) in zip(axes, fields.items(), strict=True):
        for axis, frame in zip(row, SHOWN, strict=True):
            draw_plane(axis, field[frame], scales[title], sim.spec)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(title)
        figure.colorbar(row[-1].images[0], ax=list(row))
    for axis, frame in zip(axes[0], SHOWN, strict=True):
        axis.set_title(f"t = {times[frame]:.0f}")
    size = truth.square().mean((1, 2)).sqrt()
    errors = (rollout - truth).square().mean((1, 2)).sqrt() / size
    for axis, frame in zip(axes[-1], SHOWN, strict=True):
        axis.set_xlabel(f"{100 * errors[frame]:.1f} %")
    return figure


if __name__ == "__main__":
    with torch.no_grad():
        flow().savefig(PICTURE, dpi=100)
    print(PICTURE)
