"""Plain torch.nn models, independent of Lightning and Hydra.

A model has three maps between fields (B, X, F) of unit scale on a uniform periodic grid and latent
tokens (B, N, C):

- ``encode(u) -> z``;
- ``step(z, dt, nu) -> z`` with dt and nu of shape (B,);
- ``decode(z) -> u``.

``muon_parameters()`` lists the weights that the optimizer treats as matrices, if any. ``tokens``
and ``width`` are N and C; ``free`` is the number of channels, from the first, that a step may
change. A model without latent tokens is a ``ups.models.base.GridModel``, which needs one method.
"""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

from ups.core.errors import UpsError
from ups.models.base import GridModel
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

__all__ = ["ARCHITECTURES", "FNO", "UPT", "DilatedResNet", "GridModel", "PlainUPT", "UNet", "build"]


def build(spec: Mapping[str, Any], points: int) -> nn.Module:
    """Build the model that ``spec`` describes.

    A checkpoint holds the name of the architecture and not its class, so it can't bring code of its
    own.

    Args:
        spec: {"architecture": a name, **its arguments}. The architecture is one of ARCHITECTURES or
            "package.module.Class", any torch module with the protocol above. "name" is a label and
            is ignored.
        points: points of the training grid.

    Raises:
        UpsError: the architecture or an argument is unknown, or the sizes don't fit ``points``.
    """
    arguments = {key: value for key, value in spec.items() if key not in ("architecture", "name")}
    architecture = get_architecture(str(spec.get("architecture")))
    known = inspect.signature(architecture).parameters
    unknown = sorted(arguments.keys() - known.keys())
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        raise UpsError(f"model.{unknown[0]}: {spec['architecture']} takes {', '.join(known)}")
    return architecture(points=points, **arguments)


def get_architecture(name: str) -> type[nn.Module]:
    """Return the class that ``model.architecture`` names.

    Raises:
        UpsError: there is none.
    """
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
