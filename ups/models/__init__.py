"""Plain torch.nn models. Knows nothing of Lightning or Hydra.

A model has three maps, for fields (B, X, F) of unit scale on a uniform periodic grid and latent tokens (B, N, C):
``encode(u) -> z``, ``step(z, dt, nu) -> z`` with dt and nu of shape (B,), ``decode(z) -> u``; and ``matrices()`` lists the weights
that the optimiser treats as matrices, if any. ``tokens`` and ``width`` are N and C; ``free`` says how many channels, from the first on,
a step may change.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from ups.errors import UpsError
from ups.models.upt import UPT

ARCHITECTURES: dict[str, type[nn.Module]] = {"upt": UPT}

__all__ = ["ARCHITECTURES", "UPT", "build"]


def build(spec: Mapping[str, Any], points: int) -> nn.Module:
    """Make the model that ``spec`` describes: {"architecture": one of ARCHITECTURES, **its arguments}; "name" is for people.

    Only architectures listed here are built, so that a checkpoint can't run code of its own.

    Raises:
        UpsError: an unknown architecture or argument, or sizes that don't fit ``points``.
    """
    arguments = {key: value for key, value in spec.items() if key not in ("architecture", "name")}
    architecture = ARCHITECTURES.get(str(spec.get("architecture")))
    if architecture is None:
        raise UpsError(f"model.architecture={spec.get('architecture')!r}: allowed are {', '.join(ARCHITECTURES)}")
    known = inspect.signature(architecture).parameters
    unknown = sorted(arguments.keys() - known.keys())
    if unknown:
        raise UpsError(f"model.{unknown[0]}: {spec['architecture']} takes {', '.join(known)}")
    return architecture(points=points, **arguments)
