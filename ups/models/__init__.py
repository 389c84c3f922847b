"""Plain torch.nn models, independent of Lightning and Hydra.

A model has three maps between fields (B, *space, C) of unit scale and latent tokens (B, N, W):

- ``encode(u) -> z``;
- ``step(z, dt, parameters) -> z`` with dt (B,) and parameters (B, P);
- ``decode(z) -> u``.

``muon_parameters()`` lists the weights that the optimizer treats as matrices, if any.
``num_tokens`` and ``hidden_dim`` are N and W; ``num_dynamic_channels`` is the number of channels,
from the first, that a step may change; ``tokens`` is the grid on which the tokens lie, without it
they lie on a ring. A model without latent tokens is a
``ups.models.base.GridModel``, which needs one method.

On points a model has ``encode(u, points)`` and ``decode(z, points)``, with fields (B, P, C) at the
``ups.core.points.Points`` of each sample.
"""

import inspect
from collections.abc import Mapping
from importlib import import_module

from torch import nn

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec
from ups.core.precision import float32_by_default
from ups.core.schema import validate_arguments
from ups.models.base import GridModel
from ups.models.fno import FNO
from ups.models.gino import GINO
from ups.models.interpolated import InterpolatedGridModel
from ups.models.memory import MemoryUPT
from ups.models.mesh_graph_network import MeshGraphNetwork
from ups.models.mixer import MixerUPT
from ups.models.patch_stepper import PatchStepper
from ups.models.point_memory import PointMemoryUPT
from ups.models.point_upt import PointUPT
from ups.models.resnet import DilatedResNet
from ups.models.unet import UNet
from ups.models.upt import UPT

ARCHITECTURES: dict[str, type[nn.Module]] = {
    "mixer": MixerUPT,
    "upt": UPT,
    "point_upt": PointUPT,
    "memory_upt": MemoryUPT,
    "point_memory_upt": PointMemoryUPT,
    "patch_stepper": PatchStepper,
    "fno": FNO,
    "unet": UNet,
    "resnet": DilatedResNet,
    "interpolated_grid": InterpolatedGridModel,
    "mesh_graph_network": MeshGraphNetwork,
    "gino": GINO,
}

__all__ = [
    "ARCHITECTURES",
    "FNO",
    "GINO",
    "UPT",
    "DilatedResNet",
    "GridModel",
    "InterpolatedGridModel",
    "MemoryUPT",
    "MeshGraphNetwork",
    "MixerUPT",
    "PatchStepper",
    "PointMemoryUPT",
    "PointUPT",
    "UNet",
    "build",
]


@float32_by_default()
def build(config: Mapping[str, object], spec: FieldSpec) -> nn.Module:
    """Build the model that ``spec`` describes.

    A checkpoint holds the name of the architecture and not its class, so it can't bring code of its
    own.

    Args:
        config: {"architecture": a name, **its arguments}. The architecture is one of
            ARCHITECTURES or "package.module.Class", any torch module with the protocol above.
            "name" is a label and is ignored.
        spec: describes the field; the first argument of the architecture.

    Raises:
        UpsError: the architecture or an argument is unknown, or the field does not fit the
            model.
    """
    arguments = {key: value for key, value in config.items() if key not in ("architecture", "name")}
    architecture = get_architecture(str(config.get("architecture")))
    known = inspect.signature(architecture).parameters
    unknown = sorted(arguments.keys() - known.keys())
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    if unknown and not takes_any:
        raise UpsError(f"model.{unknown[0]}: {config['architecture']} takes {', '.join(known)}")
    validate_arguments(architecture, arguments, "model", skip=1)
    return architecture(spec, **arguments)


def get_architecture(name: str) -> type[nn.Module]:
    """Return the class that ``model.architecture`` names.

    Raises:
        UpsError: there is none.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    module, _, attribute = name.rpartition(".")
    words = (
        f"`model.architecture` must be one of {', '.join(ARCHITECTURES)}, or package.module.Class, "
        f"a torch module; got {name!r}"
    )
    try:
        found = getattr(import_module(module), attribute) if module else None
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UpsError(f"{words}: {error}.") from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UpsError(f"{words}.")
    return found
