"""Viscous Burgers on a periodic line, in PDEBench's setting: u_t + (u^2/2)_x = (nu/pi) u_xx.

Energy and total variation never grow.

Source of the setting: Takamoto et al., "PDEBench", NeurIPS 2022 Datasets and Benchmarks.
Everything is dimensionless. Fields are (B, X) or (B, T, X) on a uniform periodic grid of X points.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.gradients import needs_gradients, to_tensor
from ups.physics import burgers_compiled, compilation
from ups.physics.equation import Boost, Law
from ups.physics.limiters import van_leer_half_slopes
from ups.physics.periodic_1d import (  # noqa: F401  # handed on, next to what is here
    cell_centers,
    energy,
    initial_conditions,
    mass,
    scalar_equation,
    total_variation,
    validate_fields_and_times,
    validate_solver_inputs,
)
from ups.physics.solver_inputs import validate_parameters, validate_positive

CFL = 0.8  # largest advective step in cells; the scheme is total-variation diminishing up to 1
LARGEST_CFL = 1.0
# Largest mu dt / dx^2 between two frames that is solved compiled. The compiled code applies the
# kernel in turn; above, torch is faster, with all kernels of a step at once in Fourier space.
LARGEST_COMPILED_DIFFUSION = 1000.0
TOO_LARGE = (
    "`u0` must be finite, and so small that the solver takes at most "
    f"{burgers_compiled.MAX_STEPS:g} steps from one time to the next."
)


def solve(
    u0: Tensor,
    t: Tensor | Sequence[float],
    nu: Tensor | float,
    length: float = 1.0,
    dtype: torch.dtype = torch.float64,
    cfl: float = CFL,
) -> Tensor:
    """Solve from cell averages with a finite-volume scheme in conservation form.

    MUSCL-Hancock (van Leer 1984) with van Leer's limiter and the exact Riemann flux, Strang-split
    from the diffusion, which is a positive, mass-conserving kernel. Second order if the solution is
    smooth. Mass is conserved to round-off and no new extrema appear.

    Each field takes its own steps, so its result does not depend on the other fields of the batch.
    It runs on the device of ``u0``, on a CPU compiled (``ups.physics.burgers_compiled``) unless
    gradients are needed or numba is not installed. Gradients with respect to ``u0`` and ``nu`` are
    exact, with fixed step sizes.

    Args:
        u0: cell averages (B, X).
        t: times (T,), increasing and >= 0.
        nu: the viscosity, >= 0: one number, or one for each field (B,).
        length: the length of the periodic line.
        dtype: the precision of the computation.
        cfl: the largest advective step, in cells.

    Returns:
        Cell averages (B, T, X), in u0's dtype.

    Raises:
        UpsError: an argument is invalid, or ``u0`` is so large that a step between two times takes
            more than ``MAX_STEPS`` steps.
    """
    u0, times = validate_fields_and_times(u0, t)
    validate_positive(length, "length")
    validate_positive(cfl, "cfl", LARGEST_CFL)
    mu = validate_parameters(nu, len(u0)) / np.pi
    dx = length / u0.shape[-1]
    u = u0.to(dtype)
    if needs_gradients(nu):
        with_gradient = to_tensor(nu, torch.float64, None).cpu().reshape(-1) / np.pi
        return _solve_in_torch(u, times, with_gradient, dx, cfl).to(u0.dtype)
    if not _can_be_compiled(u):
        return _solve_in_torch(u, times, torch.from_numpy(mu), dx, cfl).to(u0.dtype)
    longest = max(b - a for a, b in pairwise([0.0, *times]))
    is_diffusive = mu * (longest / dx**2) > LARGEST_COMPILED_DIFFUSION
    if not is_diffusive.any():
        return _solve_compiled(u, times, mu, dx, cfl).to(u0.dtype)
    frames = u.new_empty(len(u), len(times), u.shape[-1])
    rows = torch.from_numpy(is_diffusive)
    slow = torch.from_numpy(mu[is_diffusive])
    frames[rows] = _solve_in_torch(u[rows], times, slow, dx, cfl)
    frames[~rows] = _solve_compiled(u[~rows], times, mu[~is_diffusive], dx, cfl)
    return frames.to(u0.dtype)


def _can_be_compiled(u: Tensor) -> bool:
    return (
        u.device.type == "cpu"
        and u.dtype in (torch.float32, torch.float64)
        and not needs_gradients(u)
        and compilation.is_available()
    )


def _solve_compiled(u: Tensor, times: list[float], mu: np.ndarray, dx: float, cfl: float) -> Tensor:
    """Solve u (B, X) at diffusivities (B,) on the CPU: (B, T, X)."""
    frames = u.new_empty(len(u), len(times), u.shape[-1])
    rows = u.detach().contiguous().numpy()
    if not burgers_compiled.solve_rows(rows, np.array(times), mu, dx, cfl, frames.numpy()):
        raise UpsError(TOO_LARGE)
    return frames


def _solve_in_torch(u: Tensor, times: list[float], mu: Tensor, dx: float, cfl: float) -> Tensor:
    """Solve u (B, X) on any device: (B, T, X).

    The diffusivities ``mu`` are (B,) or (1,), float64 on the CPU.
    """
    frames = []
    now = 0.0
    for time in times:
        if time > now:
            u = _advance(u, time - now, dx, mu[:, None], cfl)
            now = time
        frames.append(u)
    return torch.stack(frames, 1)


def _advance(u: Tensor, span: float, dx: float, mu: Tensor, cfl: float) -> Tensor:
    """Advance u (B, X) by the time ``span`` at diffusivities (B, 1), in Strang-split steps.

    Half a diffusion step, then advection and diffusion in turn, and half a diffusion step at the
    end. Each row has its own number of steps; one that has taken all of them keeps its value.
    """
    # max |u| never grows, so one step size is safe until the next frame
    speed = u.detach().abs().amax(-1, keepdim=True).cpu().double()
    cells = span * speed / (cfl * dx)
    if not bool((cells < burgers_compiled.MAX_STEPS).all()):
        raise UpsError(TOO_LARGE)
    steps = cells.ceil().clamp_min(1)
    dt = span / steps
    r = mu * dt / dx**2
    in_fourier_space = bool((1.5 * r > 1).any())  # more than one kernel a step
    kernel = _fourier_kernel if in_fourier_space else _explicit_kernel
    diffuse = _diffuse_in_fourier_space if in_fourier_space else _diffuse
    half = kernel(r / 2, u)
    full = kernel(r, u)
    ratio = (dt / dx).to(u)
    remaining = steps.to(u)
    u = diffuse(u, half)
    for _ in range(int(steps.max())):
        advanced = diffuse(_hancock(u, ratio), torch.where(remaining > 1, full, half))
        u = torch.where(remaining > 0, advanced, u)
        remaining = remaining - 1
    return u


def _padded(u: Tensor, n: int) -> Tensor:
    return torch.cat((u[..., -n:], u, u[..., :n]), -1)


def _hancock(u: Tensor, ratio: Tensor) -> Tensor:
    """One MUSCL-Hancock step of u_t + (u^2/2)_x = 0; ``ratio`` (B, 1) is dt / dx."""
    v = _padded(u, 2)
    d = v[..., 1:] - v[..., :-1]  # differences across the faces
    half = van_leer_half_slopes(d[..., :-1], d[..., 1:])
    v = v[..., 1:-1]
    v = torch.addcmul(v, ratio * v, half, value=-1)  # half a step later: f(u+s/2) - f(u-s/2) = u s
    left = (v + half)[..., :-1].clamp_(min=0)
    right = (v - half)[..., 1:].clamp_(max=0)
    # twice Godunov's flux of a convex f with its minimum at 0
    flux2 = torch.maximum(left.square_(), right.square_())
    return torch.addcmul(u, ratio / 2, flux2[..., 1:] - flux2[..., :-1], value=-1)


def _kernel(r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A positive kernel that is the map u(t) -> u(t + dt) of u_t = mu u_xx and conserves mass.

    A 5-point kernel with a Gaussian's second and (from r = 1/6) fourth moment is positive up to
    r = 2/3. For larger r it is applied m times at r/m.

    Args:
        r: mu dt / dx^2 (B, 1).

    Returns:
        m and the kernel's weights of the next and of the second neighbors, (B, 1) each.
    """
    m = (1.5 * r.detach()).ceil().clamp_min(1)
    r = r / m
    far = ((6 * r**2 - r) / 12).clamp_min(0)
    return m, r - 4 * far, far


def _explicit_kernel(r: Tensor, u: Tensor) -> Tensor:
    """The weights (B, 2) of a cell's next and second neighbors for ``_diffuse``, where m = 1."""
    _, near, far = _kernel(r)
    return torch.cat((near, far), -1).to(u)


def _fourier_kernel(r: Tensor, u: Tensor) -> Tensor:
    """What all m kernels add to each wave (B, X // 2 + 1), for ``_diffuse_in_fourier_space``."""
    m, near, far = _kernel(r)
    points = u.shape[-1]
    k = 2 * math.pi / points * torch.arange(points // 2 + 1, dtype=torch.float64)
    factors = 1 - 2 * near * (1 - k.cos()) - 2 * far * (1 - (2 * k).cos())
    return (factors**m - 1).to(u)


def _diffuse(u: Tensor, weights: Tensor) -> Tensor:
    near, far = weights.split(1, -1)
    v = _padded(u, 2)
    first = torch.sub(v[..., 1:-3] + v[..., 3:-1], u, alpha=2)
    second = torch.sub(v[..., :-4] + v[..., 4:], u, alpha=2)
    return torch.addcmul(torch.addcmul(u, near, first), far, second)


def _diffuse_in_fourier_space(u: Tensor, change: Tensor) -> Tensor:
    # as a change, so that rounding of the transforms does not change the mass step by step
    return u + torch.fft.irfft(torch.fft.rfft(u) * change, n=u.shape[-1])


def reflect(u: Tensor) -> Tensor:
    """u(x) -> -u(-x), which maps solutions to solutions: (..., X) -> (..., X)."""
    return -u.flip(-1)


def rescale_time(u: Tensor, factor: Tensor | float) -> Tensor:
    """u(x, t) -> a u(x, a t), with a = ``factor``: (..., X).

    If u solves the equation at nu, the result solves it at a nu.
    """
    return factor * u


def solver_step(
    u: Tensor, dt: float, nu: Tensor, length: float = 1.0, refinement_factor: int = 4
) -> Tensor:
    """Advance point values by one step with the equation alone.

    The values are interpolated linearly to a finer grid. There the fluxes are integrated in as many
    CFL steps as ``dt`` takes, so that moving shocks are resolved. ``shock_weight`` says where to
    trust the result.

    Args:
        u: point values (B, X).
        dt: the time of the step.
        nu: the viscosity (B,).
        length: the length of the periodic line.
        refinement_factor: how much finer the grid of the solver is.

    Returns:
        Point values (B, X), in u's dtype.
    """
    share = torch.arange(refinement_factor, device=u.device, dtype=u.dtype) / refinement_factor
    fine = torch.lerp(u[..., None], u.roll(-1, -1)[..., None], share).flatten(-2)
    return solve(fine, [dt], nu, length, dtype=u.dtype)[:, 0, ::refinement_factor]


def shock_weight(u: Tensor, shock_threshold: float = 0.03, shock_radius: int = 3) -> Tensor:
    """How far point values determine the solution: 1 if it is smooth, near 0 around shocks.

    The weight is 1 / sqrt(1 + (d / shock_threshold)^2), with d the largest difference of two
    neighbors within ``shock_radius`` points, relative to the root mean square of u. Point values do
    not determine where in its cell a shock lies, so ``solver_step`` has an error of a fraction of a
    cell around it.

    Args:
        u: point values (B, X).
        shock_threshold: the relative difference at which the weight is 1/sqrt(2).
        shock_radius: number of points around a shock that it affects.

    Returns:
        Weights (B, X), from 0 to 1.
    """
    d = (u.roll(-1, -1) - u).abs()
    # clamped before the root, whose gradient at 0 is infinite
    size = u.square().mean(-1, keepdim=True).clamp_min(1e-24).sqrt()
    nearby = [d.roll(k, -1) for k in range(-shock_radius, shock_radius + 2)]
    d = torch.stack(nearby).amax(0) / size
    return (1 + (d / shock_threshold).square()).rsqrt()


def residual(
    u: Tensor, v: Tensor, dt: float, nu: Tensor, length: float = 1.0, refinement_factor: int = 4
) -> Tensor:
    """The equation's residual v - u + int (u^2/2)_x - (nu/pi) u_xx dt over one step.

    Args:
        u: point values before the step (B, X).
        v: point values after the step (B, X).
        dt: the time of the step.
        nu: the viscosity (B,).
        length: the length of the periodic line.
        refinement_factor: how much finer the grid of the solver is.

    Returns:
        The residual (B, X).
    """
    return v - solver_step(u, dt, nu, length, refinement_factor)


def cole_hopf(u0: Tensor, t: Tensor | Sequence[float], nu: float, length: float = 1.0) -> Tensor:
    """The exact solution by the Cole-Hopf transform (Hopf 1950).

    With mu = nu/pi, u(x, t) is the mean of (x - y)/t under weights exp(-[(x - y)^2/(2t) +
    Phi(y)]/(2 mu)), Phi' = u0. All weights are positive, so a softmax is stable at any mu. ``u0``
    is read as its trigonometric interpolant; the trapezoid rule is refined until it resolves the
    narrowest weight.

    Args:
        u0: point values (B, X).
        t: times (T,), increasing and >= 0.
        nu: the viscosity, one number > 0. Gradients with respect to it are exact, on fixed points
            of the trapezoid rule.
        length: the length of the periodic line.

    Returns:
        Point values (B, T, X), in u0's dtype.

    Raises:
        UpsError: see ``ups.physics.periodic_1d.validate_solver_inputs``.
    """
    u0, times, number, with_gradient = validate_solver_inputs(u0, t, nu)
    validate_positive(length, "length")
    if not bool(u0.isfinite().all()):
        raise UpsError("`u0` must be finite.")
    if number == 0:
        raise UpsError("`nu` must be > 0 for the Cole-Hopf transform, got 0.")
    mu = number / math.pi
    exponent_scale = -2 * (with_gradient / math.pi)
    points = u0.shape[-1]
    spectrum = torch.fft.rfft(u0.double())
    speed = float(u0.detach().abs().max())
    mean = spectrum[..., :1].real / points
    k = 2j * math.pi / length * torch.arange(points // 2 + 1, dtype=torch.float64, device=u0.device)
    steepest = float(torch.fft.irfft(spectrum.detach() * k, n=points).abs().max())
    k[0] = 1.0  # the mean is integrated by hand: Phi = mean * y + a periodic part
    potential = spectrum / k
    potential[..., 0] = 0
    frames = []
    for time in times:
        if time == 0:
            frames.append(u0.double())
            continue
        narrowest = math.sqrt(2 * mu * time / (1 + time * steepest))
        refine = max(1, math.ceil(length / points / narrowest))
        h = length / points / refine
        phi = torch.fft.irfft(potential, n=points * refine) * refine
        # the weights peak at x - y = t u0(y); nine standard deviations of the heat kernel further
        # out they are below 1e-17
        reach = math.ceil((time * speed + 9 * math.sqrt(2 * mu * time)) / h)
        z = h * torch.arange(reach, -reach - 1, -1, dtype=torch.float64, device=u0.device)
        index = torch.arange(-reach, points * refine + reach, device=u0.device) % (points * refine)
        # (B, X, Y) view: phi at y = x - z
        windows = phi[:, index].unfold(-1, 2 * reach + 1, refine)[:, :points]
        kinetic = z.square() / (2 * time) - mean * z  # (B, Y)
        rows = max(1, 2**22 // len(z))
        frames.append(
            torch.stack(
                [
                    torch.cat(
                        [
                            torch.softmax((kinetic[b] + w) / exponent_scale, -1) @ z / time
                            for w in windows[b].split(rows)
                        ]
                    )
                    for b in range(len(u0))
                ]
            )
        )
    return torch.stack(frames, 1).to(u0.dtype)


EQUATION = scalar_equation(
    "burgers",
    "Viscous Burgers on a periodic line, in PDEBench's setting: u_t + (u^2/2)_x = (nu/pi) u_xx.",
    "nu",
    solve=solve,
    solver_step=solver_step,
    shock_weight=shock_weight,
    reflect=reflect,
    rescale_time=rescale_time,
    laws={"mass": Law.CONSERVED, "tv": Law.NON_INCREASING, "energy": Law.NON_INCREASING},
    has_maximum_principle=True,
    # u(x, t) -> u(x + c t, t) - c
    boost=Boost(lambda u: u.mean(1), lambda u, velocity: u - velocity[:, None]),
)
