"""The operator's losses: forward, inverse encoding and inverse decoding (Alkin et al., NeurIPS 2024, section 3)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ups.rollout import Simulator


FLOOR = 0.01  # of the data's standard deviation


def relative_l2_squared(pred: Tensor, target: Tensor, floor: Tensor | float = 0.0) -> Tensor:
    """|pred - target|^2 / |target|^2 over the last dimension: (..., X), (..., X) -> (...).

    A ``target`` whose root mean square is below ``floor`` counts as if it were ``floor``: of a field that has decayed to nothing the
    relative error is noise, and without a floor it is all that a loss sees.
    """
    return (pred - target).square().sum(-1) / target.square().sum(-1).clamp_min(target.shape[-1] * floor**2 + 1e-12)


def operator_losses(simulator: "Simulator", u: Tensor, nu: Tensor, inverse: bool) -> dict[str, Tensor]:
    """The loss terms of one batch of windows ``u`` (B, K+1, X), u_0..u_K, at ``nu`` (B,).

    With z_0 = E(u_0), z_k = A(z_{k-1}):
    L_forward = mean_k |D(z_k) - u_k|^2/|u_k|^2; and, if ``inverse``, L_inv_enc = |D(z_0) - u_0|^2/|u_0|^2 and
    L_inv_dec = |E(D(z_K)) - z_K|^2 / var(z_K), each sample's tokens brought to unit variance, so that shrinking them gains nothing.
    Where u is smaller than ``FLOOR`` times the data's scale, that stands below instead of |u|.
    """
    z = [simulator.encode(u[:, 0])]
    for _ in range(u.shape[1] - 1):
        z.append(simulator.step(z[-1], nu))
    decoded = z if inverse else z[1:]  # one call for all frames: larger matrix products
    u_hat = simulator.decode(torch.cat(decoded)).unflatten(0, (len(decoded), len(u))).transpose(0, 1)
    error = relative_l2_squared(u_hat, u[:, -len(decoded) :], FLOOR * simulator.scale)
    if not inverse:
        return {"L_forward": error.mean()}
    return {
        "L_forward": error[:, 1:].mean(),
        "L_inv_enc": error[:, 0].mean(),
        "L_inv_dec": ((simulator.encode(u_hat[:, -1]) - z[-1]).square().mean((1, 2)) / z[-1].var((1, 2))).mean(),
    }
