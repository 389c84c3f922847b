"""Limited slopes of finite-volume schemes."""

from torch import Tensor


def van_leer_half_slopes(a: Tensor, b: Tensor) -> Tensor:
    """Half of van Leer's limited slope: a b / (a + b) if both have the same sign, else 0.

    Args:
        a: differences to the left.
        b: differences to the right.
    """
    return (a * b).clamp_(min=0).div_(a + b + 1e-30)
