"""The lattice Boltzmann method of ``ups.physics.lattice_boltzmann``, compiled with numba.

Populations f (9, X + 2, Y + 2) are those of X x Y nodes with a ghost node beyond each side. They
are stored less their values at rest, which keeps the digits of small velocities in float32. A step
takes each population from the neighbor that it comes from (pull), and then lets them collide. What
comes from beyond a boundary lies in the node there, where ``_reflect`` or ``_fill_ghosts`` has
written it before: the kernels that run over all nodes need no cases.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ups.physics.compilation import compiled

Array = NDArray[np.floating]
Integers = NDArray[np.int64]

# the velocities of D2Q9: rest, then pairs of opposite ones
CX = (0, 1, -1, 0, 0, 1, -1, 1, -1)
CY = (0, 0, 0, 1, -1, 1, -1, -1, 1)
WEIGHTS = (4 / 9, 1 / 9, 1 / 9, 1 / 9, 1 / 9, 1 / 36, 1 / 36, 1 / 36, 1 / 36)


class Links(NamedTuple):
    """Links from a fluid node to a node beyond a wall, L of them; indices are those of flat f.

    The population that comes back is ``direct`` times the one that leaves, and 1 - ``direct`` times
    a ``second`` one of the fluid.

    Args:
        leaving: the population that leaves the fluid (L,).
        second: another population of the fluid (L,).
        returning: where the population that comes back is put, beyond the wall (L,).
        direct: factors (L,).
        direction: number of the velocity that leaves (L,).
        body: number of the body that is hit (L,).
    """

    leaving: Integers
    second: Integers
    returning: Integers
    direct: Array
    direction: Integers
    body: Integers


class Stream(NamedTuple):
    """A flow along x that enters at the inflow, and is restored before the outflow.

    Args:
        velocity: its velocity (Y,), in nodes a step.
        sponge: the part of the difference to it that is taken away in a step (X,).
    """

    velocity: Array
    sponge: Array


@compiled
def equilibrium(k: int, density: float, u: float, v: float) -> float:
    """Population k at equilibrium, for an incompressible fluid (He and Luo 1997).

    Args:
        k: number of the velocity.
        density: the density less 1.
        u: the velocity along x, in nodes a step.
        v: the velocity along y.
    """
    along = CX[k] * u + CY[k] * v
    return WEIGHTS[k] * (density + 3 * along + 4.5 * along * along - 1.5 * (u * u + v * v))


@compiled
def _node(f: Array, i: int, j: int) -> tuple[float, float, float]:
    """The density less 1 and the velocity of a node."""
    density = 0.0
    u = 0.0
    v = 0.0
    for k in range(9):
        density += f[k, i, j]
        u += CX[k] * f[k, i, j]
        v += CY[k] * f[k, i, j]
    return density, u, v


@compiled
def _fill_ghosts(f: Array, is_periodic: tuple[bool, bool], stream: Stream) -> None:
    """Fill the ghost nodes along x and y, those beyond walls in vain.

    At the inflow they have the velocity of the stream, and all else from their neighbor (Guo, Zheng
    and Shi, Chinese Physics 11, 2002). At the outflow they are copies.
    """
    for j in range(1, f.shape[2] - 1):
        if is_periodic[0]:
            for k in range(9):
                f[k, 0, j] = f[k, -2, j]
                f[k, -1, j] = f[k, 1, j]
        else:
            density, u, v = _node(f, 1, j)
            for k in range(9):
                entering = equilibrium(k, density, stream.velocity[j - 1], 0.0)
                f[k, 0, j] = f[k, 1, j] + entering - equilibrium(k, density, u, v)
                f[k, -1, j] = f[k, -2, j]
    if is_periodic[1]:
        for i in range(f.shape[1]):
            for k in range(9):
                f[k, i, 0] = f[k, i, -2]
                f[k, i, -1] = f[k, i, 1]


@compiled
def _reflect(f: Array, links: Links, force: Array) -> None:
    """Put what comes back from walls beyond them, and sum the momentum that bodies take up.

    Args:
        f: populations after a collision.
        links: the links.
        force: receives the momentum (bodies, 2) of a step.
    """
    flat = f.reshape(-1)
    force[:] = 0
    for n in range(len(links.leaving)):
        leaving = flat[links.leaving[n]]
        second = flat[links.second[n]]
        returning = second + links.direct[n] * (leaving - second)
        flat[links.returning[n]] = returning
        k = links.direction[n]
        # Ladd 1994: what the fluid loses, the body gains
        force[links.body[n], 0] += CX[k] * (leaving + returning)
        force[links.body[n], 1] += CY[k] * (leaving + returning)


@compiled
def _pull(f: Array, g: Array, i: int) -> None:
    """Row i of ``g``: populations that arrive from the neighbors in ``f``."""
    n = f.shape[2] - 2
    for k in range(9):
        source = f[k, i - CX[k], 1 - CY[k] : 1 - CY[k] + n]
        target = g[k, i, 1:-1]
        for j in range(n):
            target[j] = source[j]


@compiled
def _moments(f: Array, i: int, density: Array, u: Array, v: Array) -> None:
    """The density less 1 and the velocity of row i, (Y,) each."""
    number = f.dtype.type  # float32 stays float32
    density[:] = f[0, i, 1:-1]
    u[:] = 0
    v[:] = 0
    for k in range(1, 9, 2):
        a = f[k, i, 1:-1]
        b = f[k + 1, i, 1:-1]
        cx = number(CX[k])
        cy = number(CY[k])
        # one array is written in each loop: with more, LLVM does not use vector instructions
        for j in range(len(density)):
            density[j] += a[j] + b[j]
        for j in range(len(u)):
            u[j] += cx * (a[j] - b[j])
        for j in range(len(v)):
            v[j] += cy * (a[j] - b[j])


@compiled
def _collide(
    f: Array, i: int, density: Array, u: Array, v: Array, rates: tuple[float, float]
) -> None:
    """Relax row i to its equilibrium, by two rates: of the even and of the odd parts of pairs."""
    number = f.dtype.type
    three = number(3)
    curvature = number(4.5)
    energy = number(1.5)
    rest_rate = number(rates[0])
    even_rate = number(rates[0] / 2)
    odd_rate = number(rates[1] / 2)
    # what the equilibria of all pairs share; the density is not needed any more
    for j in range(len(density)):
        density[j] -= energy * (u[j] * u[j] + v[j] * v[j])
    rest = f[0, i, 1:-1]
    rest_weight = number(WEIGHTS[0])
    for j in range(len(rest)):
        rest[j] -= rest_rate * (rest[j] - rest_weight * density[j])
    for k in range(1, 9, 2):
        a = f[k, i, 1:-1]
        b = f[k + 1, i, 1:-1]
        cx = number(CX[k])
        cy = number(CY[k])
        weight = number(2 * WEIGHTS[k])
        for j in range(len(a)):
            along = cx * u[j] + cy * v[j]
            even = a[j] + b[j] - weight * (density[j] + curvature * along * along)
            odd = a[j] - b[j] - weight * three * along
            a[j] -= even_rate * even + odd_rate * odd
            b[j] -= even_rate * even - odd_rate * odd


@compiled
def _absorb(f: Array, i: int, stream: Stream) -> None:
    """Take a part of the difference to the stream, at no pressure, from row i."""
    strength = stream.sponge[i - 1]
    for j in range(1, f.shape[2] - 1):
        density, u, v = _node(f, i, j)
        for k in range(9):
            wanted = equilibrium(k, 0.0, stream.velocity[j - 1], 0.0)
            f[k, i, j] += strength * (wanted - equilibrium(k, density, u, v))


@compiled
def _empty(f: Array, solid: Integers) -> None:
    """Nodes within obstacles stay at rest."""
    flat = f.reshape(9, -1)
    for k in range(9):
        for n in range(len(solid)):
            flat[k, solid[n]] = 0


@compiled
def advance(
    f: Array,
    num_steps: int,
    rates: tuple[float, float],
    is_periodic: tuple[bool, bool],
    stream: Stream,
    links: Links,
    solid: Integers,
    force: Array,
) -> None:
    """Take steps.

    Args:
        f: populations (9, X + 2, Y + 2), overwritten.
        num_steps: number of steps.
        rates: relaxation rates of the even and of the odd parts.
        is_periodic: whether x and y are periodic.
        stream: what enters if x is not periodic, and the layer before the outflow.
        links: links to walls and obstacles.
        solid: indices of the nodes within obstacles, in flat (X + 2, Y + 2).
        force: receives the momentum (bodies, 2) that bodies took up in the last step.
    """
    new = np.zeros_like(f)
    old = f
    density = np.empty(f.shape[2] - 2, f.dtype)
    u = np.empty_like(density)
    v = np.empty_like(density)
    for _ in range(num_steps):
        _fill_ghosts(old, is_periodic, stream)
        _reflect(old, links, force)
        for i in range(1, f.shape[1] - 1):
            _pull(old, new, i)
            _moments(new, i, density, u, v)
            _collide(new, i, density, u, v, rates)
            if stream.sponge[i - 1] > 0:
                _absorb(new, i, stream)
        _empty(new, solid)
        old, new = new, old
    if num_steps % 2 == 1:
        f[:] = old
