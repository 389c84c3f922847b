"""Viscous Burgers on a periodic line, in PDEBench's setting: u_t + (u^2/2)_x = (nu/pi) u_xx.

Energy and total variation never grow.

Source of the setting: Takamoto et al., "PDEBench", NeurIPS 2022 Datasets and Benchmarks.
Everything is dimensionless. Fields are (B, X) or (B, T, X) on a uniform periodic grid of X points.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ups.physics.equation import Boost, Law
from ups.physics.periodic_1d import (  # noqa: F401  # handed on, next to what is here
    cell_centers,
    energy,
    initial_conditions,
    mass,
    scalar_equation,
    total_variation,
    validate_solver_inputs,
    van_leer_half_slopes,
)

CFL = 0.8  # largest advective step in cells; the scheme is total-variation diminishing up to 1


def solve(
    u0: Tensor,
    t: Tensor | Sequence[float],
    nu: float,
    length: float = 1.0,
    dtype: torch.dtype = torch.float64,
    cfl: float = CFL,
) -> Tensor:
    """Solve from cell averages with a finite-volume scheme in conservation form.

    MUSCL-Hancock (van Leer 1984) with van Leer's limiter and the exact Riemann flux, Strang-split
    from the diffusion, which is a positive, mass-conserving kernel. Second order if the solution is
    smooth. Mass is conserved to round-off and no new extrema appear. It runs on the device of
    ``u0``.

    Args:
        u0: cell averages (B, X).
        t: times (T,), increasing and >= 0.
        nu: the viscosity, >= 0.
        length: the length of the periodic line.
        dtype: the precision of the computation.
        cfl: the largest advective step, in cells.

    Returns:
        Cell averages (B, T, X), in u0's dtype.

    Raises:
        UpsError: see ``ups.physics.periodic_1d.validate_solver_inputs``.
    """
    u0, times, nu = validate_solver_inputs(u0, t, nu)
    dx, mu = length / u0.shape[-1], nu / math.pi
    u = u0.to(dtype)
    frames, now = [], 0.0
    for time in times:
        if time > now:
            # max |u| never grows, so one step size is safe until the next frame
            steps = max(1, math.ceil((time - now) * float(u.abs().max()) / (cfl * dx)))
            u = _advance(u, steps, (time - now) / steps, dx, mu)
            now = time
        frames.append(u)
    return torch.stack(frames, 1).to(u0.dtype)


def _advance(u: Tensor, steps: int, dt: float, dx: float, mu: float) -> Tensor:
    """Take ``steps`` Strang-split steps of ``dt``.

    Half a diffusion step, then advection and diffusion in turn, and half a diffusion step at the
    end.
    """
    half, full = _diffusion(u, mu * dt / 2 / dx**2), _diffusion(u, mu * dt / dx**2)
    u = half(u)
    for step in range(steps):
        u = _hancock(u, dt / dx)
        u = full(u) if step < steps - 1 else half(u)
    return u


def _padded(u: Tensor, n: int) -> Tensor:
    return torch.cat((u[..., -n:], u, u[..., :n]), -1)


def _hancock(u: Tensor, ratio: float) -> Tensor:
    """One MUSCL-Hancock step of u_t + (u^2/2)_x = 0; ``ratio`` is dt / dx."""
    v = _padded(u, 2)
    d = v[..., 1:] - v[..., :-1]  # differences across the faces
    half = van_leer_half_slopes(d[..., :-1], d[..., 1:])
    v = v[..., 1:-1]
    v = torch.addcmul(v, v, half, value=-ratio)  # half a step later: f(u + s/2) - f(u - s/2) = u s
    left = (v + half)[..., :-1].clamp_(min=0)
    right = (v - half)[..., 1:].clamp_(max=0)
    # twice Godunov's flux of a convex f with its minimum at 0
    flux2 = torch.maximum(left.square_(), right.square_())
    return torch.sub(u, flux2[..., 1:] - flux2[..., :-1], alpha=ratio / 2)


def _diffusion(u: Tensor, r: float) -> Callable[[Tensor], Tensor]:
    """The map u(t) -> u(t + dt) of u_t = mu u_xx as a positive kernel that conserves mass.

    ``r`` = mu dt / dx^2. A 5-point kernel with a Gaussian's second and (from r = 1/6) fourth moment
    is positive up to r = 2/3. For larger r it is applied m times at r/m, all at once in Fourier
    space.
    """
    m = max(1, math.ceil(1.5 * r))
    c2 = max(0.0, (6 * (r / m) ** 2 - r / m) / 12)
    c1 = r / m - 4 * c2
    if m > 1:
        n = u.shape[-1]
        k = 2 * math.pi / n * torch.arange(n // 2 + 1, device=u.device, dtype=torch.float64)
        symbol = (1 - 2 * c1 * (1 - k.cos()) - 2 * c2 * (1 - (2 * k).cos())).pow(m).to(u.dtype)
        return lambda u: torch.fft.irfft(torch.fft.rfft(u) * symbol, n=n)

    def explicit(u: Tensor) -> Tensor:
        v = _padded(u, 2)
        out = torch.add(u * (1 - 2 * c1 - 2 * c2), v[..., 1:-3] + v[..., 3:-1], alpha=c1)
        return out.add_(v[..., :-4] + v[..., 4:], alpha=c2) if c2 else out

    return explicit


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
    out = torch.empty_like(u)
    for value in nu.unique().tolist():
        rows = nu == value
        out[rows] = solve(fine[rows], [dt], value, length, dtype=u.dtype)[:, 0, ::refinement_factor]
    return out


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
    size = u.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
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
        nu: the viscosity.
        length: the length of the periodic line.

    Returns:
        Point values (B, T, X), in u0's dtype.

    Raises:
        UpsError: see ``ups.physics.periodic_1d.validate_solver_inputs``.
    """
    u0, times, nu = validate_solver_inputs(u0, t, nu)
    mu, points = nu / math.pi, u0.shape[-1]
    spectrum = torch.fft.rfft(u0.double())
    speed, mean = float(u0.abs().max()), spectrum[..., :1].real / points
    k = 2j * math.pi / length * torch.arange(points // 2 + 1, dtype=torch.float64, device=u0.device)
    steepest = float(torch.fft.irfft(spectrum * k, n=points).abs().max())
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
                            torch.softmax((kinetic[b] + w) / (-2 * mu), -1) @ z / time
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
    energy_law=Law.NON_INCREASING,
    # u(x, t) -> u(x + c t, t) - c
    boost=Boost(lambda u: u.mean(1), lambda u, velocity: u - velocity[:, None]),
)
