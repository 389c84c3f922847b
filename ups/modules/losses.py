"""The operator's losses: forward or of an ensemble, inverse encoding and inverse decoding.

Source of the first and of the inverse ones: Alkin et al., NeurIPS 2024, section 3.
"""

import torch
from torch import Tensor

from ups.core.norms import RELATIVE_ERROR_FLOOR, relative_l2_squared
from ups.core.points import Points
from ups.evaluation.ensembles import fair_crps
from ups.simulation.latent import LatentStepper
from ups.simulation.simulator import Simulator

# under the root of an unsquared error: its gradient at zero stays finite
ROOT_FLOOR = 1e-8


def root(error: Tensor) -> Tensor:
    """The roots of squared errors, of which the nRMSE is one."""
    return (error + ROOT_FLOOR).sqrt()


def inverse_decoding_weight(inverse_encoding: Tensor) -> Tensor:
    """The adaptive weight (B,) of samples in L_inv_dec: (1 - e)^2, where e <= 1 is the root of the
    sample's L_inv_enc (B,).

    An encoder that ignores the field has E(D(z)) = z at no cost, and L_inv_dec alone would teach
    it to. So it counts as far as the tokens carry the field.
    """
    return (1 - inverse_encoding.detach().sqrt()).clamp(min=0).square()


def operator_errors(
    simulator: Simulator,
    u: Tensor,
    parameters: Tensor,
    inverse: bool,
    points: Points | None = None,
    start: tuple[Tensor, Points | None] | None = None,
) -> dict[str, Tensor]:
    """Compute the squared errors of one batch of windows u_0, ..., u_K.

    With z_0 = E(u_0) and z_k = A(z_{k-1}):

    - L_forward = |D(z_k) - u_k|^2 / |u_k|^2 for each k >= 1;
    - L_inv_enc = |D(z_0) - u_0|^2 / |u_0|^2;
    - L_inv_dec = |E(D(z_K)) - z_K|^2 / var(z_K), relative to the variance of each sample's tokens,
      so that shrinking them does not reduce the loss.

    Fields are relative to the mean of the training data, if the spec has one. If the root mean
    square of u is smaller than ``RELATIVE_ERROR_FLOOR`` times the data's standard
    deviation, the denominator uses that value instead.

    On points, z_0 is encoded from the points of ``start``, and all fields are decoded, and encoded
    again for L_inv_dec, at ``points``. If those are drawn separately, the inverse losses ask
    for maps that do not depend on the points.

    Args:
        simulator: the simulator.
        u: windows (B, K+1, *space, C).
        parameters: the equation's parameters (B, P).
        inverse: whether to compute L_inv_enc and L_inv_dec.
        points: where ``u`` lies; None on a grid.
        start: see ``Batch.start``; default: u_0.

    Returns:
        The errors by name: L_forward (B, K), L_inv_enc (B,) and L_inv_dec (B,).
    """
    stepper = simulator.on(points)
    u_0, points_0 = (u[:, 0], points) if start is None else start
    z = [simulator.on(points_0).encode(u_0, parameters)]
    for _ in range(u.shape[1] - 1):
        z.append(simulator.step(z[-1], parameters))
    decoded = z if inverse else z[1:]  # one call for all frames has larger matrix products
    frames = stepper.decode(torch.cat(decoded))
    u_hat = frames.unflatten(0, (len(decoded), len(u))).transpose(0, 1)
    mask = None if points is None else points.mask[:, None]
    error = _field_error(simulator, u_hat, u[:, -len(decoded) :], mask)
    if not inverse:
        return {"L_forward": error}
    return {
        "L_forward": error[:, 1:],
        "L_inv_enc": error[:, 0],
        "L_inv_dec": _token_error(stepper, u_hat[:, -1], z[-1], parameters),
    }


def ensemble_errors(
    simulator: Simulator,
    u: Tensor,
    parameters: Tensor,
    noise: Tensor,
    inverse: bool,
    fairness: float = 1.0,
) -> dict[str, Tensor]:
    """Compute the errors of ensembles of M draws from one batch of windows u_0, ..., u_K.

    L_crps is the almost fair CRPS of the draws' values D(z_k) for each k >= 1, a mean over points
    and channels, in units of the channel's standard deviation. The inverse losses are those of
    ``operator_errors``, of z_0 without noise and of the z_K of all draws.

    Source: Lang et al., "AIFS-CRPS", 2024, train an operator by this score with M draws.

    Args:
        simulator: the simulator, with noise.
        u: windows (B, K+1, *space, C).
        parameters: the equation's parameters (B, P).
        noise: white noise (B, M, K, N or 1, R).
        inverse: whether to compute L_inv_enc and L_inv_dec.
        fairness: 1 for the fair CRPS, 0 for that of the M draws alone, see ``almost_fair_crps``.

    Returns:
        The errors by name: L_crps (K, B), L_inv_enc (B,) and L_inv_dec (B M,).
    """
    assert simulator.noise is not None
    b, m, k = noise.shape[:3]
    z_0 = simulator.encode(u[:, 0])
    z = z_0.repeat_interleave(m, 0)
    repeated = parameters.repeat_interleave(m, 0)
    states = []
    for step_noise in noise.flatten(0, 1).unbind(1):
        z = simulator.step(simulator.noise(z, step_noise), repeated)
        states.append(z)
    frames = simulator.decode(torch.cat(states)).unflatten(0, (k, b, m))
    crps = almost_fair_crps(frames.movedim(2, 0), u[:, 1:].transpose(0, 1), fairness)
    errors = {"L_crps": (crps / simulator.std).flatten(2).mean(2)}
    if not inverse:
        return errors
    return {
        **errors,
        "L_inv_enc": _field_error(simulator, simulator.decode(z_0), u[:, 0]),
        "L_inv_dec": _token_error(simulator, frames[-1].flatten(0, 1), z, repeated),
    }


def almost_fair_crps(samples: Tensor, target: Tensor, fairness: float) -> Tensor:
    """The CRPS (...) of draws (M, ...), ``fairness`` times the fair one and the rest that of the M
    draws as they are.

    The fair one does not change with one draw that is far from the truth and all others: such a
    draw is not called back. The other one asks for less spread than is right.

    Source: Lang et al., "AIFS-CRPS", 2024, equation 4.
    """
    fair = fair_crps(samples, target)
    half_distance = (samples - target).abs().mean(0) - fair  # of two draws, on average
    return fair + (1 - fairness) * half_distance / len(samples)


def _field_error(
    simulator: Simulator, u_hat: Tensor, u: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The squared error (...) of fields (..., *space, C), relative to those without the mean."""
    return relative_l2_squared(
        u_hat - simulator.mean,
        u - simulator.mean,
        simulator.spec.space_axes,
        RELATIVE_ERROR_FLOOR * simulator.std,
        mask,
    )


def _token_error(stepper: LatentStepper, u_hat: Tensor, z: Tensor, parameters: Tensor) -> Tensor:
    """The squared distance (B,) of encoded fields (B, *space, C) from tokens (B, N, W), relative
    to the variance of these.
    """
    distance = (stepper.encode(u_hat, parameters) - z).square().mean((1, 2))
    return distance / z.var((1, 2))
