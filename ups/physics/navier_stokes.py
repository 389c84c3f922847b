"""Navier-Stokes on a periodic square in vorticity form: w_t + u . grad w = nu lap w + f.

The velocity is u = (psi_y, -psi_x) with -lap psi = w, and has no mean. The setting is that of the
Fourier neural operator's data (Li et al., ICLR 2021): the square [0, 1)^2, initial conditions of a
Gaussian random field, and the constant forcing f = 0.1 (sin 2 pi (x + y) + cos 2 pi (x + y)).

Everything is dimensionless. Fields are (B, X, Y) or (B, T, X, Y), values at the points (i/X, j/Y).
The mean of w stays zero. Without forcing, energy and enstrophy never grow.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ups.core.errors import Diverged, UpsError
from ups.core.fields import Grid
from ups.core.gradients import needs_gradients, numbers, to_tensor
from ups.physics import compilation, navier_stokes_compiled, spectral
from ups.physics.equation import Equation, Functional, Law, Symmetry, translate
from ups.physics.solver_inputs import (
    validate_parameters,
    validate_positions,
    validate_positive,
    validate_times,
)

CFL = 1.2  # largest advective step in cells; the scheme is stable up to about 1.35
LARGEST_CFL = 2.0  # the fastest flow is rarely along the shortest waves; 2.2 is unstable
DECAY = 0.1  # largest decay of the longest wave in a step, which limits it at high viscosity
MAX_STEPS = 1e7  # between two times
FORCING = 0.1  # root mean square of the forcing
TOO_LARGE = (
    "`w0` must be finite, and so small that the solver takes at most "
    f"{MAX_STEPS:g} steps from one time to the next."
)
# of the random initial conditions: covariance TAU^3 (-lap + TAU^2)^(-2.5), as published
TAU = 7.0
MODES = 64  # wave numbers below this are drawn; the rest has 1e-5 of the variance
# of the force whose curl is the forcing: a wave number of 2 pi sqrt(2)
FORCE = FORCING / (2 * math.pi * math.sqrt(2))


def initial_conditions(n: int, x: Tensor | int, seed: int) -> Tensor:
    """Draw the random initial vorticity of the Fourier neural operator's data.

    It is a Gaussian random field of mean zero with covariance 7^3 (-lap + 49)^(-2.5) on the unit
    square, up to a factor of 2 as in the published code. The same seed gives the same fields on
    every grid, as far as the grid holds their modes.

    Args:
        n: number of fields.
        x: number of points along each axis, or the positions (X,) of one.
        seed: the same seed gives the same fields.

    Returns:
        Fields (n, X, X), float32.
    """
    places = torch.arange(x, dtype=torch.float64) / x if isinstance(x, int) else x
    positions = validate_positions(places)
    points = len(positions)
    rng = np.random.default_rng(seed)
    k = np.arange(-MODES + 1, MODES)
    coefficients = np.stack([_coefficients(rng, k) for _ in range(n)])
    # the positions' phases, for grids that do not begin at 0
    wave = np.exp(2j * np.pi * np.outer(positions.numpy(), k))
    wave[:, np.abs(k) * 2 >= points] = 0
    return torch.from_numpy((wave @ coefficients @ wave.T).real).float()


def _coefficients(rng: np.random.Generator, k: np.ndarray) -> np.ndarray:
    """The Fourier coefficients of one field, of wave numbers ``k`` along both axes."""
    square = (2 * np.pi) ** 2 * (k[:, None] ** 2 + k**2)
    size = math.sqrt(2) * TAU**1.5 * (square + TAU**2) ** -1.25
    size[square == 0] = 0
    real, imaginary = rng.standard_normal((2, len(k), len(k)))
    return size * (real + 1j * imaginary)


def forcing(x: Tensor, y: Tensor) -> Tensor:
    """The constant forcing of the published data at positions ``x`` and ``y`` of the unit square.

    Args:
        x: positions of any shape.
        y: positions of a shape that broadcasts with ``x``'s.
    """
    angle = 2 * math.pi * (x + y)
    return FORCING * (angle.sin() + angle.cos())


def solve(
    w0: Tensor,
    t: Tensor | Sequence[float],
    nu: Tensor | float,
    length: float = 1.0,
    force: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    cfl: float = CFL,
) -> Tensor:
    """Solve by a pseudo-spectral scheme with 2/3 dealiasing.

    The fourth-order Runge-Kutta scheme with an integrating factor for the viscous term and the
    forcing, so that advection limits the step (Canuto et al., "Spectral Methods", 2006, appendix
    D.3). The wave numbers above a third of the number of points are removed from ``w0``.

    Each field takes its own steps, so its result does not depend on the other fields of the batch.
    It runs on the device of ``w0``, on a CPU compiled (``ups.physics.navier_stokes_compiled``)
    unless gradients are needed or numba is not installed. Gradients with respect to ``w0``, ``nu``
    and ``force`` are exact, with fixed step sizes.

    Args:
        w0: vorticity (B, X, Y), or (X, Y).
        t: times (T,), increasing and >= 0.
        nu: the viscosity, >= 0: one number, or one for each field (B,).
        length: the length of both axes.
        force: the forcing (X, Y) or (B, X, Y) of the vorticity; None for the published one.
        dtype: the precision of the computation.
        cfl: the largest advective step, in cells.

    Returns:
        Vorticity (B, T, X, Y), in w0's dtype.

    Raises:
        UpsError: an argument is invalid, or ``w0`` is so large that a step between two times takes
            more than ``MAX_STEPS`` steps.
    """
    w0, times, viscosity = _validated(w0, t, nu)
    validate_positive(length, "length")
    validate_positive(cfl, "cfl", LARGEST_CFL)
    force = _validated_force(force, w0)
    scheme = _Scheme(length, viscosity.to(w0.device, dtype), force.to(w0.device, dtype))
    on_cpu = w0.device.type == "cpu" and dtype in (torch.float32, torch.float64)
    compiles = on_cpu and not needs_gradients(w0, nu, force) and compilation.is_available()
    solver = _solve_compiled if compiles else _solve_in_torch
    return solver(w0.to(dtype), times, scheme, cfl).to(w0.dtype)


def _solve_in_torch(w0: Tensor, times: list[float], scheme: "_Scheme", cfl: float) -> Tensor:
    """Solve w0 (B, X, Y) on any device: (B, T, X, Y)."""
    w_hat = torch.fft.rfft2(w0) * scheme.kept
    frames = []
    now = 0.0
    for time in times:
        w_hat = scheme.advance(w_hat, time - now, cfl)
        frames.append(torch.fft.irfft2(w_hat, s=scheme.space) if time > 0 else w0)
        now = time
    return torch.stack(frames, 1)


def _solve_compiled(w0: Tensor, times: list[float], scheme: "_Scheme", cfl: float) -> Tensor:
    """Solve w0 (B, X, Y) on the CPU: (B, T, X, Y)."""
    frames = w0.new_empty(len(w0), len(times), *scheme.space)
    kept = int(scheme.kept[0].sum())

    def flat(x: Tensor) -> np.ndarray:
        array: np.ndarray = x[..., :kept].flatten(-2).contiguous().numpy()
        return array

    to_u, to_v = scheme.to_velocity
    from_product, from_squares = scheme.to_advection
    solved = navier_stokes_compiled.solve_rows(
        w0.contiguous().numpy(),
        np.array(times),
        scheme.viscosity.flatten().expand(len(w0)).double().numpy(),
        flat(scheme.force.view(-1, *scheme.force.shape[-2:])),
        navier_stokes_compiled.Waves(
            flat(to_u),
            flat(to_v),
            flat(from_product),
            flat(from_squares),
            flat(scheme.square),
            flat(scheme.kept),
        ),
        tuple(scheme.cells.tolist()),
        cfl,
        scheme.slowest_wave / DECAY,
        MAX_STEPS,
        frames.numpy(),
    )
    if not solved:
        raise Diverged(TOO_LARGE)
    return frames


class _Scheme:
    """Steps Fourier coefficients (B, X, Y // 2 + 1) of the vorticity.

    Args:
        length: the length of both axes.
        viscosity: (1, 1, 1) or (B, 1, 1), in the precision of the computation.
        force: the forcing (X, Y) or (B, X, Y), likewise; its mean does not count.
    """

    def __init__(self, length: float, viscosity: Tensor, force: Tensor) -> None:
        space = tuple(force.shape[-2:])
        dtype, device = force.dtype, force.device
        kx, ky = (k.to(device, dtype) for k in wave_numbers(space, length))
        square = kx**2 + ky**2
        inverse = torch.where(square > 0, 1 / square.clamp_min(1e-30), 0.0)
        self.space = space
        self.viscosity = viscosity
        self.square = square
        self.cells = torch.tensor([length / n for n in space], dtype=dtype, device=device)
        self.kept = is_kept(space).to(device)
        self.decay = -viscosity * square
        self.nonzero_decay = torch.where(self.decay < 0, self.decay, -1.0)
        self.slowest_wave = (2 * math.pi / length) ** 2
        # u = i ky psi and v = -i kx psi
        self.to_velocity = 1j * torch.stack((ky * inverse, -kx * inverse))
        # -u . grad w is (kx^2 - ky^2) of u v, and kx ky of v^2 - u^2
        self.to_advection = torch.stack((kx**2 - ky**2, kx * ky)) * self.kept
        force = force - force.mean((-2, -1), keepdim=True)
        self.force = torch.fft.rfft2(force) * self.kept

    def advance(self, w: Tensor, span: float, cfl: float) -> Tensor:
        """Advance coefficients by the time ``span``, each row in its own steps."""
        remaining = torch.full((len(w), 1, 1), span, dtype=self.decay.dtype, device=w.device)
        while bool((remaining > 0).any()):
            velocity = self.velocity(w)
            speed = velocity.detach().abs() / self.cells[:, None, None]
            fastest = speed.sum(1).amax((-2, -1))[:, None, None]
            steps = (
                remaining
                * torch.maximum(fastest / cfl, self.viscosity * (self.slowest_wave / DECAY))
            ).ceil()
            if not bool((steps < MAX_STEPS).all()):
                raise Diverged(TOO_LARGE)
            dt = remaining / steps.clamp_min(1)
            w = self.step(w, velocity, dt)
            remaining = torch.where(steps > 1, remaining - dt, 0.0)
        return w

    def step(self, w: Tensor, velocity: Tensor, dt: Tensor) -> Tensor:
        """One Runge-Kutta step of ``dt`` (B, 1, 1), from a state of known ``velocity``.

        Decay and forcing alone are exact, and advection is added to what they do.
        """
        half = (self.decay * (dt / 2)).exp()
        forced = self.force * torch.where(
            self.decay < 0, torch.expm1(self.decay * (dt / 2)) / self.nonzero_decay, dt / 2
        )
        middle = torch.addcmul(forced, half, w)
        end = torch.addcmul(forced, half, middle)
        k1 = half * (dt * self.advection(velocity))
        k2 = dt * self.rate(torch.add(middle, k1, alpha=0.5))
        k3 = dt * self.rate(torch.add(middle, k2, alpha=0.5))
        k4 = dt * self.rate(torch.addcmul(end, half, k3))
        slow = torch.addcmul(k4, half, k1 + 2 * (k2 + k3))
        return torch.add(end, slow, alpha=1 / 6)

    def rate(self, w: Tensor) -> Tensor:
        return self.advection(self.velocity(w))

    def velocity(self, w: Tensor) -> Tensor:
        """The velocity (B, 2, X, Y) at the points."""
        return torch.fft.irfft2(w[:, None] * self.to_velocity, s=self.space)

    def advection(self, velocity: Tensor) -> Tensor:
        """The rate of change by advection."""
        u, v = velocity.unbind(1)
        products = torch.fft.rfft2(torch.stack((u * v, (v - u) * (v + u)), 1))
        return (products * self.to_advection).sum(1)


def wave_numbers(space: Sequence[int], length: float = 1.0) -> tuple[Tensor, Tensor]:
    """The wave numbers (X, 1) and (1, Y // 2 + 1) of ``torch.fft.rfft2``, float64."""
    points_x, points_y = space
    kx = torch.fft.fftfreq(points_x, length / points_x, dtype=torch.float64)
    ky = torch.fft.rfftfreq(points_y, length / points_y, dtype=torch.float64)
    return 2 * math.pi * kx[:, None], 2 * math.pi * ky[None]


def is_kept(space: Sequence[int]) -> Tensor:
    """Whether the solver keeps a wave number: those below a third of the points, (X, Y // 2 + 1).

    Products of such waves have no aliases among them.
    """
    # in whole numbers: rounding would keep some waves of exactly a third
    nx, ny = space
    kx = torch.minimum(torch.arange(nx), nx - torch.arange(nx))
    ky = torch.arange(ny // 2 + 1)
    return (3 * kx[:, None] < nx) & (3 * ky < ny)


def velocity(w: Tensor, length: float = 1.0) -> Tensor:
    """The velocity (..., X, Y, 2), without a mean, of a vorticity (..., X, Y)."""
    space = w.shape[-2:]
    kx, ky = (k.to(w.device, w.dtype) for k in wave_numbers(space, length))
    square = kx**2 + ky**2
    psi = torch.fft.rfft2(w) / torch.where(square > 0, square, math.inf)
    u, v = (torch.fft.irfft2(part, s=space) for part in (1j * ky * psi, -1j * kx * psi))
    return torch.stack((u, v), -1)


def vorticity(u: Tensor, length: float = 1.0) -> Tensor:
    """The vorticity v_x - u_y (..., X, Y) of a velocity (..., X, Y, 2)."""
    space = u.shape[-3:-1]
    kx, ky = (k.to(u.device, u.dtype) for k in wave_numbers(space, length))
    u_hat, v_hat = (torch.fft.rfft2(part) for part in u.unbind(-1))
    return torch.fft.irfft2(1j * (kx * v_hat - ky * u_hat), s=space)


def mean_vorticity(w: Tensor) -> Tensor:
    """The mean of the vorticity, which is zero: (..., X, Y) -> (...)."""
    return w.mean((-2, -1))


def enstrophy(w: Tensor) -> Tensor:
    """Half the mean of w^2: (..., X, Y) -> (...)."""
    return w.square().mean((-2, -1)) / 2


def energy(w: Tensor, length: float = 1.0) -> Tensor:
    """Half the mean of |u|^2: (..., X, Y) -> (...)."""
    return velocity(w, length).square().sum(-1).mean((-2, -1)) / 2


def _validated(w0: object, t: object, nu: Tensor | float) -> tuple[Tensor, list[float], Tensor]:
    """Check the arguments of ``solve``: vorticity (B, X, Y), times and viscosities (B or 1, 1, 1).

    Raises:
        UpsError: the shape or type of ``w0`` is another, the times do not increase from 0, or the
            viscosities are not one number >= 0, or one for each field.
    """
    w0 = numbers(w0, "w0")
    w0 = w0[None] if w0.ndim == 2 else w0
    if w0.ndim != 3 or min(w0.shape[1:]) < 4 or not w0.is_floating_point():
        raise UpsError(
            "`w0` must be real fields of shape (B, X, Y) or (X, Y) of at least 4 points an axis, "
            f"got {w0.dtype} of shape {tuple(w0.shape)}."
        )
    validate_parameters(nu, len(w0))
    return w0, validate_times(t), to_tensor(nu, torch.float64, None).reshape(-1, 1, 1)


def _validated_force(force: object, w0: Tensor) -> Tensor:
    """The forcing (X, Y) or (B, X, Y) of ``w0`` (B, X, Y); that of the published data for None.

    Raises:
        UpsError: it has another shape.
    """
    space = tuple(w0.shape[-2:])
    if force is None:
        axes = [torch.arange(n, dtype=torch.float64) / n for n in space]
        return forcing(*torch.meshgrid(*axes, indexing="ij"))
    force = numbers(force, "force")
    if tuple(force.shape) not in (space, (1, *space), tuple(w0.shape)):
        raise UpsError(
            f"`force` must be (X, Y) or (B, X, Y), as `w0` {tuple(w0.shape)}, got shape "
            f"{tuple(force.shape)}."
        )
    return force


def resample(w: Tensor, points: int) -> Tensor:
    """The field (..., X, Y) on ``points`` along each axis of the square, the first where it was.

    It has the waves that both grids can hold.
    """
    return spectral.resample(w, [points, points])


def restrict(w: Tensor, factor: int) -> Tensor:
    """The field (..., X / factor, Y / factor) at the centers of cells of ``factor`` points.

    It has the waves that the coarser grid can hold.
    """
    return spectral.resample(w, [n // factor for n in w.shape[-2:]], first_is_kept=False)


def prolong(w: Tensor, factor: int) -> Tensor:
    """The field (..., X * factor, Y * factor) on a finer grid, of which ``w`` are the centers."""
    return spectral.resample(w, [n * factor for n in w.shape[-2:]], first_is_kept=False)


def _drawn(n: int, grid: Grid, seed: int) -> Tensor:
    return initial_conditions(n, _unit_positions(grid, 0), seed)[..., None]


def _solve_field(
    u0: Tensor,
    times: Sequence[float],
    parameters: Sequence[float] | Tensor,
    grid: Grid,
    dtype: torch.dtype,
) -> Tensor:
    (nu,) = parameters
    return solve(u0[..., 0], times, nu, grid.extent[0], _forcing_on(grid), dtype)[..., None]


def _step_field(
    u: Tensor, dt: float, parameters: Tensor, grid: Grid, refinement_factor: int
) -> Tensor:
    """One step on the grid itself: the scheme is spectral, and a finer grid adds little."""
    force = _forcing_on(grid)
    frames = solve(u[..., 0], [dt], parameters[:, 0], grid.extent[0], force, u.dtype)
    return frames[:, 0, ..., None]


def _forcing_on(grid: Grid) -> Tensor:
    return forcing(_unit_positions(grid, 0)[:, None], _unit_positions(grid, 1))


def _unit_positions(grid: Grid, axis: int) -> Tensor:
    """The positions of an axis in units of its length, float64."""
    n = grid.shape[axis]
    return grid.origin[axis] / grid.extent[axis] + torch.arange(n, dtype=torch.float64) / n


def _shift_along_forcing(u: Tensor, points: Tensor, grid: Grid) -> Tensor:
    """Shift trajectories (B, T, X, Y, 1) by (a, -a), along which the forcing does not change.

    ``points`` (B, D) are numbers of points, of which the first counts.
    """
    steps = torch.stack((points[:, 0], -points[:, 0]), -1)
    return translate(u, steps, grid)


def _swap_axes(u: Tensor, amount: Tensor, grid: Grid) -> Tensor:
    """w(x, y) -> -w(y + 1/2, x) of trajectories (B, T, X, Y, 1)."""
    swapped = -u.transpose(-3, -2)
    points = grid.shape[1]
    if points % 2 == 0:
        return swapped.roll(points // 2, -2)
    # half a period is between two points
    signs = (-1.0) ** torch.arange(points // 2 + 1, device=u.device)
    return torch.fft.irfft(torch.fft.rfft(swapped, dim=-2) * signs[:, None], n=points, dim=-2)


EQUATION = Equation(
    name="navier_stokes",
    title="Navier-Stokes on a periodic square, in vorticity form, with a constant forcing.",
    channels=("w",),
    parameters=("nu",),
    num_dims=2,
    initial_conditions={"published": _drawn},
    solve=_solve_field,
    restrict=lambda u, factor: restrict(u[..., 0], factor)[..., None],
    prolong=lambda u, factor: prolong(u[..., 0], factor)[..., None],
    solver_step=_step_field,
    symmetries=(Symmetry("translate", _shift_along_forcing), Symmetry("reflect", _swap_axes)),
    functionals=(
        Functional("mean", lambda u, grid: mean_vorticity(u[..., 0]), Law.CONSERVED),
        Functional("enstrophy", lambda u, grid: enstrophy(u[..., 0]), Law.NON_INCREASING, 2,
                   FORCING / math.sqrt(2)),
        Functional("energy", lambda u, grid: energy(u[..., 0], grid.extent[0]),
                   Law.NON_INCREASING, 2, FORCE / math.sqrt(2)),
    ),
    is_homogeneous=False,
    solver_refinement=1,  # spectral
    first_point=0.0,  # on every grid, so that the forcing is the same at the points of the data
)  # fmt: skip
