"""The operator's losses: forward, inverse encoding and inverse decoding.

Source: Alkin et al., NeurIPS 2024, section 3.
"""

import torch
from torch import Tensor

from ups.core.norms import RELATIVE_ERROR_FLOOR, relative_l2_squared
from ups.simulation.simulator import Simulator

# under the root of an unsquared error: its gradient at zero stays finite
ROOT_FLOOR = 1e-8


def root_mean(error: Tensor) -> Tensor:
    """The mean of the roots of squared errors, of which the nRMSE is one."""
    return (error + ROOT_FLOOR).sqrt().mean()


def operator_errors(
    simulator: Simulator, u: Tensor, parameters: Tensor, inverse: bool
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

    Args:
        simulator: the simulator.
        u: windows (B, K+1, *space, C).
        parameters: the equation's parameters (B, P).
        inverse: whether to compute L_inv_enc and L_inv_dec.

    Returns:
        The errors by name: L_forward (B, K), L_inv_enc (B,) and L_inv_dec (B,).
    """
    z = [simulator.encode(u[:, 0])]
    for _ in range(u.shape[1] - 1):
        z.append(simulator.step(z[-1], parameters))
    decoded = z if inverse else z[1:]  # one call for all frames has larger matrix products
    frames = simulator.decode(torch.cat(decoded))
    u_hat = frames.unflatten(0, (len(decoded), len(u))).transpose(0, 1)
    error = relative_l2_squared(
        u_hat - simulator.mean,
        u[:, -len(decoded) :] - simulator.mean,
        simulator.spec.space_axes,
        RELATIVE_ERROR_FLOOR * simulator.std,
    )
    if not inverse:
        return {"L_forward": error}
    token_error = (simulator.encode(u_hat[:, -1]) - z[-1]).square().mean((1, 2))
    return {
        "L_forward": error[:, 1:],
        "L_inv_enc": error[:, 0],
        "L_inv_dec": token_error / z[-1].var((1, 2)),
    }
