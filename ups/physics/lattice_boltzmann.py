"""Flow past obstacles by the lattice Boltzmann method, on a plane.

u_t + u . grad u = -grad p + (1 / Re) lap u, div u = 0, in units of a reference diameter D, the mean
velocity U of the inflow and the density: times are in D / U, the pressure in rho U^2, and
Re = U D / nu. A frequency f is a Strouhal number f D / U as it is. The channels are the velocity
along x and y and the pressure.

The method is D2Q9 with two relaxation times (Ginzburg, Verhaeghe and d'Humieres, Commun. Comput.
Phys. 3, 2008) and the equilibrium of an incompressible fluid (He and Luo, J. Stat. Phys. 88, 1997).
Boundaries: ``lattice_boltzmann_links``; the kernels: ``lattice_boltzmann_compiled``.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ups.core.errors import Diverged, UpsError
from ups.core.fields import Boundary, Grid
from ups.core.gradients import numbers
from ups.physics import compilation
from ups.physics.ellipses import Ellipse
from ups.physics.lattice_boltzmann_compiled import CX, CY, Stream, advance, equilibrium
from ups.physics.lattice_boltzmann_links import FLUID, make_links, node_kinds
from ups.physics.solver_inputs import validate_positive, validate_times

Real = NDArray[np.floating]

CHANNELS = ("u", "v", "p")
# U in nodes a step; the error of compressibility is of the order of 3 times its square
LATTICE_SPEED = 1 / 16
# of the odd parts of populations, less a half step; times above 0.5, the magic ones of Poiseuille
# flow among them, let waves grow at the inflow
ODD_RELAXATION_TIME = 0.1
SPONGE_LENGTH = 3.0  # before the outflow, in D
SPONGE_STRENGTH = 8.0  # part of the difference taken in a step, times the layer's nodes


class Flow(NamedTuple):
    """A flow at one time.

    Args:
        fields: velocity along x and y and pressure (X, Y, 3), zero within obstacles.
        forces: drag and lift coefficients (E, 2) of each obstacle, its force / (rho U^2 D / 2),
            whatever its own size; zero at t = 0.
    """

    fields: Tensor
    forces: Tensor


def channel(length: float, height: float, resolution: int, has_walls: bool = True) -> Grid:
    """A grid between an inflow and an outflow, with walls along its sides or periodic ones.

    Args:
        length: its length in D, the ``SPONGE_LENGTH`` before the outflow included.
        height: its height in D.
        resolution: number of nodes along D.
        has_walls: whether there are walls along x.
    """
    for name, value in {"length": length, "height": height, "resolution": resolution}.items():
        validate_positive(value, name)
    side = Boundary.WALL if has_walls else Boundary.PERIODIC
    shape = (round(length * resolution), round(height * resolution))
    extent = (shape[0] / resolution, shape[1] / resolution)
    return Grid(shape, extent, ((Boundary.OPEN, Boundary.OPEN), (side, side)))


def undisturbed(grid: Grid) -> Tensor:
    """The fields (X, Y, 3), float64, that flow in, everywhere."""
    fields = torch.zeros(*grid.shape, len(CHANNELS), dtype=torch.float64)
    fields[..., 0] = torch.from_numpy(_inflow(grid))
    return fields


def _inflow(grid: Grid) -> NDArray[np.float64]:
    """The velocity (Y,) along x at the inflow: its mean is 1, between walls a parabola."""
    height = (np.arange(grid.shape[1]) + 0.5) / grid.shape[1]
    has_walls = grid.boundary[1][0] is Boundary.WALL
    return 6 * height * (1 - height) if has_walls else np.ones_like(height)


def solve(
    u0: Tensor,
    t: Tensor | Sequence[float],
    reynolds: float,
    grid: Grid,
    obstacles: Sequence[Ellipse] = (),
    dtype: torch.dtype = torch.float32,
    lattice_speed: float = LATTICE_SPEED,
) -> Iterator[Flow]:
    """Solve, one frame after the other.

    Along x the grid is periodic or open: then the flow enters at x = 0 with the mean velocity 1, as
    a parabola between walls and uniform between periodic sides, and within the last
    ``SPONGE_LENGTH`` it is relaxed to the inflow again. That damps pressure waves without
    reflecting them, since it damps velocity and pressure alike, and vortices before they leave.
    These fields are no solution. Along y the grid has walls or is periodic.

    The error is of second order in the size of cells, if ``lattice_speed`` is as small as they are.

    Args:
        u0: the first fields (X, Y, 3), see ``undisturbed``.
        t: times (T,), increasing and >= 0, rounded to steps of ``lattice_speed`` times a cell.
        reynolds: the Reynolds number Re.
        grid: the nodes, in the centers of square cells.
        obstacles: the bodies, within the grid and apart from each other.
        dtype: the precision of the computation.
        lattice_speed: the mean velocity of the inflow in nodes a step.

    Yields:
        The flow at each time, in u0's dtype.

    Raises:
        UpsError: an argument is invalid, the flow diverges (``Diverged``), or numba is not
            installed.
    """
    times = validate_times(t)
    validate_positive(reynolds, "reynolds")
    _validate(grid, lattice_speed)
    _validate_obstacles(obstacles, grid)
    start = numbers(u0, "u0", device=torch.device("cpu"))
    if start.shape != (*grid.shape, len(CHANNELS)) or not start.is_floating_point():
        raise UpsError(
            f"`u0` must be velocity and pressure {(*grid.shape, len(CHANNELS))} of a floating "
            f"type, got {start.dtype} of shape {tuple(start.shape)}."
        )
    return _solve(start, times, float(reynolds), grid, obstacles, dtype, lattice_speed)


def _solve(
    u0: Tensor,
    times: Sequence[float],
    reynolds: float,
    grid: Grid,
    obstacles: Sequence[Ellipse],
    dtype: torch.dtype,
    speed: float,
) -> Iterator[Flow]:
    kind = node_kinds(grid, obstacles)
    precision = "float32" if dtype is torch.float32 else "float64"
    f = _populations(u0.double().numpy(), speed).astype(precision)
    solid = np.flatnonzero(kind >= 0)
    f.reshape(9, -1)[:, solid] = 0
    links = make_links(grid, obstacles, kind, precision)
    stream = Stream(speed * _inflow(grid), _sponge(grid))
    (left, _), (below, _) = grid.boundary
    is_periodic = (left is Boundary.PERIODIC, below is Boundary.PERIODIC)
    rates = _relaxation_rates(speed / grid.cell_size[0] / reynolds)
    force = np.zeros((len(obstacles) + 1, 2))
    done = 0
    for time in times:
        steps = round(time / (speed * grid.cell_size[0]))
        advance(f, steps - done, rates, is_periodic, stream, links, solid, force)
        done = steps
        fields = _fields(f, speed)
        if not np.isfinite(fields).all():
            # somewhere it is too fast for the lattice, or too finely vortical
            raise Diverged(
                f"the flow diverged before t = {time:g}; a smaller lattice_speed or a larger "
                "resolution may solve it."
            )
        fields[kind[1:-1, 1:-1] != FLUID] = 0
        coefficients = force[:-1] / (speed**2 / grid.cell_size[0] / 2)
        yield Flow(torch.from_numpy(fields).to(u0.dtype), torch.from_numpy(coefficients).to(u0))


def _validate_obstacles(obstacles: Sequence[Ellipse], grid: Grid) -> None:
    (left, right), (bottom, top) = grid.edges
    for number, obstacle in enumerate(obstacles):
        (x, y), (width, height) = obstacle.center, obstacle.half_extent
        if not (left <= x - width and x + width <= right) or not (
            bottom <= y - height and y + height <= top
        ):
            raise UpsError(f"`obstacles` must lie within the grid, got {obstacle}.")
        around = obstacle.perimeter(np.linspace(0, 2 * math.pi, 65))
        if any(other.signed_distance(around).min() <= 0 for other in obstacles[:number]):
            raise UpsError(f"`obstacles` must be apart from each other, got {obstacle}.")


def _validate(grid: Grid, speed: float) -> None:
    if not compilation.is_installed():
        raise UpsError("the lattice Boltzmann solver needs numba and rocket-fft: pip install ups.")
    if not 0 < speed <= 0.2:
        raise UpsError(f"`lattice_speed` must be > 0 and <= 0.2, got {speed}.")
    allowed = (
        ((Boundary.OPEN, Boundary.OPEN), (Boundary.PERIODIC, Boundary.PERIODIC)),
        ((Boundary.WALL, Boundary.WALL), (Boundary.PERIODIC, Boundary.PERIODIC)),
    )
    if grid.num_dims != 2 or any(
        sides not in choice for sides, choice in zip(grid.boundary, allowed, strict=True)
    ):
        raise UpsError(
            "`grid` must be a plane, open or periodic along x, with walls or periodic along y, "
            f"got {grid.boundary}."
        )
    if grid.boundary[0][1] is Boundary.OPEN and grid.extent[0] <= SPONGE_LENGTH:
        raise UpsError(
            f"`grid` must be longer than its layer of {SPONGE_LENGTH:g} before the outflow, "
            f"got {grid.extent[0]:g}."
        )
    if not math.isclose(*grid.cell_size, rel_tol=1e-6):
        raise UpsError(f"`grid` must have square cells, got {grid.cell_size}.")


def _relaxation_rates(viscosity: float) -> tuple[float, float]:
    """The rates of the even and of the odd parts, for a viscosity in nodes^2 a step."""
    return 1 / (3 * viscosity + 0.5), 1 / (ODD_RELAXATION_TIME + 0.5)


def _sponge(grid: Grid) -> NDArray[np.float64]:
    """The strength (X,) of the layer before the outflow, zero on a periodic axis."""
    x = grid.axis(0).double().numpy()
    depth = (x - (grid.extent[0] - SPONGE_LENGTH)) / SPONGE_LENGTH
    is_open = grid.boundary[0][1] is Boundary.OPEN
    strength = SPONGE_STRENGTH * grid.cell_size[0] / SPONGE_LENGTH
    return strength * is_open * depth.clip(0) ** 3


def _populations(fields: Real, speed: float) -> Real:
    """Populations (9, X + 2, Y + 2) at the equilibrium of fields (X, Y, 3)."""
    u, v, pressure = np.moveaxis(np.pad(fields, ((1, 1), (1, 1), (0, 0))), -1, 0)
    density = 3 * speed**2 * pressure
    # the uncompiled function, which takes arrays
    at_equilibrium = getattr(equilibrium, "py_func", equilibrium)
    return np.stack([at_equilibrium(k, density, speed * u, speed * v) for k in range(9)])


def _fields(f: Real, speed: float) -> NDArray[np.float64]:
    """The fields (X, Y, 3) of populations (9, X + 2, Y + 2)."""
    inner = f[:, 1:-1, 1:-1].astype(np.float64)
    u = np.tensordot(CX, inner, 1) / speed
    v = np.tensordot(CY, inner, 1) / speed
    pressure = inner.sum(0) / (3 * speed**2)
    return np.stack([u, v, pressure], -1)
