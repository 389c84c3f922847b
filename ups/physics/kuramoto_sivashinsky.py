"""Kuramoto-Sivashinsky on a periodic line: u_t + u u_x + u_xx + nu u_xxxx = 0, with nu = 1.

Long waves grow, short ones decay, and the nonlinear term carries energy from the former to the
latter. On a long line the solution is chaotic: two close ones are e times as far apart after about
ten units of time.

The setting is that of PDE-Refiner (Lippe et al., NeurIPS 2023), whose data follow Brandstetter et
al. ("Lie point symmetry data augmentation for neural PDE solvers", ICML 2022): a line of length 64,
and fields that have forgotten how they began. There, length and time step of each trajectory vary
by a tenth; here they do not. A viscosity nu is the same as a line of length 64 / sqrt(nu), by
u(x, t) -> sqrt(nu) u(sqrt(nu) x, nu t), so the equation of the data has no parameter.

Everything is dimensionless. Fields are (B, X) or (B, T, X), values at the points i L / X. Their
mean is conserved.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ups.core.errors import Diverged, UpsError
from ups.core.fields import Grid
from ups.core.gradients import to_tensor
from ups.physics import spectral
from ups.physics.equation import TRANSLATE, Boost, Equation, Functional, Law, Symmetry
from ups.physics.periodic_1d import energy, mass, validate_fields_and_times
from ups.physics.solver_inputs import (
    validate_parameters,
    validate_positions,
    validate_positive,
)

LENGTH = 64.0
STEP = 0.1  # largest step of the solver, in units of the distance of two points
GROWTH_TOLERANCE = 1.1  # of the norm, for errors of the time step
CONTOUR_POINTS = 32  # of the mean over a circle around each argument; the error is at round-off
# of the initial conditions, as published
NUM_SINES = 10
TRANSIENT = 72.0  # 360 frames of 0.2, which are dropped
TRANSIENT_SPACING = 0.5  # distance of two points while the transient is solved


def initial_conditions(n: int, x: Tensor, seed: int, length: float = LENGTH) -> Tensor:
    """Draw fields of the attractor.

    Each starts as a sum of ten sines of one or two waves on the line, with amplitudes uniform in
    [-0.5, 0.5) and random phases, and is solved for 72 units of time. That is done on a grid of its
    own, so that the same seed gives the same fields on every grid, as far as the grid holds their
    waves.

    Args:
        n: number of fields.
        x: positions (X,).
        seed: the same seed gives the same fields.
        length: the length of the periodic line.

    Returns:
        Fields (n, X) without a mean, float32.
    """
    validate_positive(length, "length")
    positions = validate_positions(x)
    points = math.ceil(length / TRANSIENT_SPACING)
    start = _sines(n, torch.arange(points, dtype=torch.float64) / points, seed)
    u = solve(start, [TRANSIENT], length=length)[:, 0]
    kept = (min(points, len(positions)) - 1) // 2 + 1  # without the wave of two points
    coefficients = torch.fft.rfft(u, norm="forward")[:, :kept]
    k = 2 * math.pi / length * torch.arange(kept, dtype=torch.float64)
    waves = torch.exp(1j * k[:, None] * positions)
    # a real field has each wave twice, with conjugate coefficients; it has no mean
    return (2 * (coefficients @ waves).real).float()


def _sines(n: int, x: Tensor, seed: int) -> Tensor:
    """Random sums of sines (n, X) at positions ``x`` of the unit line, float64."""
    rng = np.random.default_rng(seed)
    amplitude = rng.uniform(-0.5, 0.5, (n, NUM_SINES, 1))
    waves = rng.integers(1, 3, (n, NUM_SINES, 1))
    phase = rng.uniform(0, 2 * np.pi, (n, NUM_SINES, 1))
    return torch.from_numpy((amplitude * np.sin(2 * np.pi * waves * x.numpy() + phase)).sum(1))


def solve(
    u0: Tensor,
    t: Tensor | Sequence[float],
    nu: Tensor | float = 1.0,
    length: float = LENGTH,
    dtype: torch.dtype = torch.float64,
    step: float | None = None,
) -> Tensor:
    """Solve by a pseudo-spectral scheme with 2/3 dealiasing.

    The fourth-order exponential scheme ETDRK4 (Cox & Matthews, J. Comput. Phys. 176, 2002), in
    which the linear terms are exact, with coefficients as Kassam & Trefethen compute them (SIAM J.
    Sci. Comput. 26, 2005). Its order falls to about three while the shortest waves decay much in a
    step, as they do in the default one. The wave numbers above a third of the number of points are
    removed from ``u0``.

    All fields take the same steps, so the result for one does not depend on the others. It runs on
    the device of ``u0``. Gradients with respect to ``u0`` and ``nu`` are exact, with fixed steps.

    Args:
        u0: point values (B, X), or (X,).
        t: times (T,), increasing and >= 0.
        nu: the factor of u_xxxx, >= 0: one number, or one for each field (B,).
        length: the length of the periodic line.
        dtype: the precision of the computation.
        step: the largest time step; None for a tenth of the distance of two points, which is 0.025
            for 256 points on the line of length 64.

    Returns:
        Point values (B, T, X), in u0's dtype.

    Raises:
        UpsError: an argument is invalid, or the solution does not stay finite.
    """
    u0, times = validate_fields_and_times(u0, t)
    validate_parameters(nu, len(u0))
    validate_positive(length, "length")
    largest = _largest_step(step, length / u0.shape[-1])
    if dtype not in (torch.float32, torch.float64):
        raise UpsError(f"`dtype` must be torch.float32 or torch.float64, got {dtype}.")
    if len(u0) == 0:
        return u0.new_empty(0, len(times), u0.shape[1])
    viscosity = to_tensor(nu, torch.float64, u0.device).reshape(-1, 1)
    scheme = _Scheme(u0.shape[-1], length, viscosity, dtype)
    spectrum = torch.fft.rfft(u0.to(dtype)) * scheme.kept
    frames = []
    now = 0.0
    for time in times:
        spectrum = scheme.advance(spectrum, time - now, largest)
        frames.append(torch.fft.irfft(spectrum, n=u0.shape[-1]) if time > 0 else u0.to(dtype))
        now = time
    u = torch.stack(frames, 1).to(u0.dtype)
    if not _is_bounded(u.detach(), u0.detach(), scheme, times):
        raise Diverged(
            f"`u0` must be finite, and so small that steps of {largest:g} are stable; take a "
            "smaller `step`."
        )
    return u


def _is_bounded(u: Tensor, u0: Tensor, scheme: "_Scheme", times: Sequence[float]) -> bool:
    """Whether fields (B, T, X) at ``times`` after ``u0`` (B, X) are as small as they must be.

    Advection keeps the mean square, so the norm grows no faster than the fastest wave.
    """
    norm = torch.linalg.vector_norm(u.double(), dim=-1)
    start = torch.linalg.vector_norm(u0.double(), dim=-1, keepdim=True)
    rate = scheme.growth.amax(-1, keepdim=True).clamp_min(0)  # (1 or B, 1)
    allowed = start * torch.exp(rate * torch.tensor(times, dtype=torch.float64, device=u.device))
    return bool(((norm <= GROWTH_TOLERANCE * allowed) & norm.isfinite()).all())


def _largest_step(step: float | None, spacing: float) -> float:
    if step is None:
        return STEP * spacing
    validate_positive(step, "step")
    return step


class _Scheme:
    """The equation for Fourier coefficients (B, X // 2 + 1).

    Args:
        points: number of points X.
        length: the length of the periodic line.
        viscosity: the factor of u_xxxx, (1, 1) or (B, 1), float64.
        dtype: the precision of the computation.
    """

    def __init__(self, points: int, length: float, viscosity: Tensor, dtype: torch.dtype) -> None:
        wave = torch.arange(points // 2 + 1, device=viscosity.device, dtype=torch.float64)
        k = 2 * math.pi / length * wave
        self.points = points
        self.dtype = dtype
        self.growth = k**2 - viscosity * k**4
        # products of waves below a third of the points have no aliases among them
        self.kept = (3 * wave < points).to(dtype)
        # -u u_x = -(u^2 / 2)_x
        self.half_slope = (-0.5j * k).to(dtype.to_complex()) * self.kept

    def advance(self, u: Tensor, span: float, largest: float) -> Tensor:
        """Advance coefficients by the time ``span``, in equal steps of at most ``largest``."""
        if span == 0:
            return u
        steps = math.ceil(span / largest * (1 - 1e-9))  # rounding makes no further step
        weights = _Weights.of(self.growth, span / steps, self.dtype)
        for _ in range(steps):
            u = self.step(u, weights)
        return u

    def step(self, u: Tensor, w: "_Weights") -> Tensor:
        """One step of ETDRK4; the names are those of Kassam & Trefethen."""
        linear = w.half * u
        at_u = self.advection(u)
        a = linear + w.stage * at_u
        at_a = self.advection(a)
        b = linear + w.stage * at_a
        at_b = self.advection(b)
        c = w.half * a + w.stage * (2 * at_b - at_u)
        at_c = self.advection(c)
        return w.whole * u + w.first * at_u + w.middle * (at_a + at_b) + w.last * at_c

    def advection(self, u: Tensor) -> Tensor:
        """The rate of change by -u u_x."""
        values = torch.fft.irfft(u, n=self.points)
        return self.half_slope * torch.fft.rfft(values.square())


@dataclass(frozen=True)
class _Weights:
    """The weights (1 or B, X // 2 + 1) of a step of ETDRK4.

    Args:
        whole: what the linear terms make of a wave in a step.
        half: the same in half a step.
        stage: the weight of the advection in a stage.
        first: its weight at the beginning of the step.
        middle: its weight at each of both points in the middle.
        last: its weight at the end.
    """

    whole: Tensor
    half: Tensor
    stage: Tensor
    first: Tensor
    middle: Tensor
    last: Tensor

    @classmethod
    def of(cls, growth: Tensor, dt: float, dtype: torch.dtype) -> "_Weights":
        """The weights of a step ``dt`` at rates of growth (1 or B, X // 2 + 1), float64.

        Near 0 the formulas lose all digits to cancellation. As they are analytic, their values are
        also means over a circle of radius 1 around the argument, where they lose none.
        """
        half_circle = (torch.arange(CONTOUR_POINTS).to(growth) + 0.5) * (math.pi / CONTOUR_POINTS)
        z = dt * growth[..., None] + torch.exp(1j * half_circle)
        exp_z = z.exp()

        def mean(values: Tensor) -> Tensor:
            # the other half of the circle has the conjugate values
            return (dt * values.mean(-1).real).to(dtype)

        return cls(
            whole=(dt * growth).exp().to(dtype),
            half=(dt / 2 * growth).exp().to(dtype),
            stage=mean(((z / 2).exp() - 1) / z),
            first=mean((-4 - z + exp_z * (4 - 3 * z + z**2)) / z**3),
            middle=mean(2 * (2 + z + exp_z * (z - 2)) / z**3),
            last=mean((-4 - 3 * z - z**2 + exp_z * (4 - z)) / z**3),
        )


def restrict(u: Tensor, factor: int) -> Tensor:
    """The waves of a field (..., X) that every ``factor``-th point can hold: (..., X / factor)."""
    return spectral.resample(u, [u.shape[-1] // factor])


def prolong(u: Tensor, factor: int) -> Tensor:
    """The trigonometric interpolant of a field (..., X) at more points: (..., X * factor)."""
    return spectral.resample(u, [u.shape[-1] * factor])


def reflect(u: Tensor) -> Tensor:
    """u(x) -> -u(-x), which maps solutions to solutions: (..., X) -> (..., X)."""
    return -u.flip(-1)


def _drawn(n: int, grid: Grid, seed: int) -> Tensor:
    return initial_conditions(n, grid.axis(0), seed, grid.extent[0])[..., None]


def _solve_field(
    u0: Tensor,
    times: Sequence[float],
    parameters: Sequence[float],
    grid: Grid,
    dtype: torch.dtype,
) -> Tensor:
    return solve(u0[..., 0], times, length=grid.extent[0], dtype=dtype)[..., None]


EQUATION = Equation(
    name="kuramoto_sivashinsky",
    title="Kuramoto-Sivashinsky on a periodic line: u_t + u u_x + u_xx + u_xxxx = 0.",
    channels=("u",),
    parameters=(),
    num_dims=1,
    initial_conditions={"attractor": _drawn},
    solve=_solve_field,
    restrict=lambda u, factor: restrict(u[..., 0], factor)[..., None],
    prolong=lambda u, factor: prolong(u[..., 0], factor)[..., None],
    symmetries=(
        TRANSLATE,
        Symmetry("reflect", lambda u, amount, grid: reflect(u[..., 0])[..., None]),
    ),
    # u(x, t) -> u(x + c t, t) - c, as for Burgers
    boost=Boost(lambda u: u.mean(1), lambda u, velocity: u - velocity[:, None]),
    functionals=(
        Functional("mass", lambda u, grid: mass(u[..., 0], grid.extent[0]), Law.CONSERVED),
        # the nonlinear term conserves it, and no wave grows faster than at k^2 - k^4 = 1/4
        Functional(
            "energy",
            lambda u, grid: energy(u[..., 0], grid.extent[0]),
            Law.NON_INCREASING,
            degree=2,
            instability_rate=0.25,
        ),
    ),
    solver_refinement=1,  # spectral
    length=LENGTH,
    first_point=0.0,
)
