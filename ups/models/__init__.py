"""Plain torch.nn models. Knows nothing of Lightning or Hydra.

A model has three maps, for fields (B, X, F) of unit scale on a uniform periodic grid and latent tokens (B, N, C):
``encode(u) -> z``, ``step(z, dt, nu) -> z`` with dt and nu of shape (B,), ``decode(z) -> u``; and ``matrices()`` lists the weights
that the optimiser treats as matrices, if any. ``tokens`` and ``width`` are N and C; ``free`` says how many channels, from the first on,
a step may change. A model without latent tokens is a ``ups.models.field.FieldModel``, which needs one method.
"""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

from ups.errors import UpsError
from ups.models.field import FieldModel
from ups.models.fno import FNO
from ups.models.resnet import DilatedResNet
from ups.models.unet import UNet
from ups.models.upt import UPT
from ups.models.upt_absolute import PlainUPT

ARCHITECTURES: dict[str, type[nn.Module]] = {
    "upt": UPT,
    "upt_absolute": PlainUPT,
    "fno": FNO,
    "unet": UNet,
    "resnet": DilatedResNet,
}

__all__ = ["ARCHITECTURES", "FNO", "UPT", "DilatedResNet", "FieldModel", "PlainUPT", "UNet", "build"]


def build(spec: Mapping[str, Any], points: int) -> nn.Module:
    """Make the model that ``spec`` describes: {"architecture": one of ARCHITECTURES, **its arguments}; "name" is for people.

    An architecture of your own is given by its place, "package.module.Class", a torch module with the protocol above. A checkpoint holds
    that name and not the class, so that it can't bring code of its own.

    Raises:
        UpsError: an unknown architecture or argument, or sizes that don't fit ``points``.
    """
    arguments = {key: value for key, value in spec.items() if key not in ("architecture", "name")}
    architecture = find(str(spec.get("architecture")))
    known = inspect.signature(architecture).parameters
    unknown = sorted(arguments.keys() - known.keys())
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        raise UpsError(f"model.{unknown[0]}: {spec['architecture']} takes {', '.join(known)}")
    return architecture(points=points, **arguments)


def find(name: str) -> type[nn.Module]:
    """The class that ``model.architecture`` names."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    module, _, attribute = name.rpartition(".")
    allowed = f"allowed are {', '.join(ARCHITECTURES)}, or package.module.Class, a torch module"
    try:
        found = getattr(import_module(module), attribute) if module else None
    except (ImportError, AttributeError) as error:
        raise UpsError(f"model.architecture={name!r}: {error}; {allowed}") from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UpsError(f"model.architecture={name!r}: {allowed}")
    return found
