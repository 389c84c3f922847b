"""Read what earlier versions wrote: descriptions and weights under the names of those versions.

Descriptions of new versions pass through unchanged.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from ups.core.fields import FieldSpec, Grid
from ups.core.settings import PlainDict
from ups.physics import get_equation

T = TypeVar("T")
# the architecture "upt" of earlier versions is the token mixer, now "mixer"
MIXER = "mixer"
ARCHITECTURES = {"upt": MIXER, "upt_absolute": "upt"}

_DEPTHS = {
    "encoder": "encoder_depth",
    "approximator": "approximator_depth",
    "decoder": "decoder_depth",
}
_BLOCKS = {
    "width": "hidden_dim",
    "hidden": "mlp_ratio",
    "distances": "dilations",
}
_GRID = {
    "width": "hidden_channels",
    "conserve": "conserve_mean",
}
MODEL_KEYS: dict[str, dict[str, str]] = {
    MIXER: {
        **_DEPTHS,
        **_BLOCKS,
        "tokens": "num_tokens",
        "patch": "patch_overlap",
        "limit": "latent_rms_limit",
        "conserve": "conserve_mean",
    },
    "upt": {
        **_DEPTHS,
        "patches": "num_patches",
        "tokens": "num_tokens",
        "width": "hidden_dim",
        "heads": "num_heads",
    },
    "fno": {**_GRID, "layers": "num_layers"},
    "unet": {**_GRID, "levels": "num_levels"},
    "resnet": {**_GRID, "blocks": "num_blocks"},
}
CORRECTOR_KEYS = {
    "tokens": "num_tokens",
    "width": "hidden_dim",
    "free": "num_dynamic_channels",
    "mean": "mean_network",
    "noise": "denoiser",
    "steps": "num_steps",
}

# the weights of a model keep their names
_MODEL_PREFIXES = ("model.", "simulator.model.")
_NOISE_NETWORK = re.compile(r"((?:^|\.)(?:correctors\.\w+|corrector|teacher)\.)noise_network\.")


def convert(config: PlainDict, state: Mapping[str, Tensor]) -> tuple[PlainDict, dict[str, Tensor]]:
    """Convert a simulator's configuration and weights to the current names.

    Args:
        config: what ``Simulator.config`` of this or an earlier version returned.
        state: the simulator's weights.

    Returns:
        Both under the current names.
    """
    spec = config["model"]
    if spec.get("architecture") == "upt" and "model.patches_in" in state:
        # a description without any argument does not tell; the weights do
        spec = {**spec, "architecture": MIXER}
    correctors = {
        name: convert_corrector_spec(corrector)
        for name, corrector in config.get("correctors", {}).items()
    }
    converted = {**config, "model": convert_model_spec(spec), "correctors": correctors}
    state = convert_state(state)
    if "spec" not in converted:
        converted |= _field_spec(converted, float(state["scale"]))
        state = {key: value for key, value in state.items() if key not in ("x", "scale")}
    return converted, state


def _field_spec(config: PlainDict, scale: float) -> dict[str, object]:
    """What earlier versions say about the field: one scalar on a periodic line."""
    x = config["x"]
    grid = Grid((len(x),), (config["length"],), origin=(x[0],))
    parameter = get_equation(config["equation"]).parameters
    spec = FieldSpec(grid, parameters=parameter, dt=config["dt"], std=(scale,))
    return {
        "spec": spec.to_dict(),
        "training_parameters": [[nu] for nu in config.get("nus", ())],
    }


def convert_model_spec(spec: PlainDict) -> PlainDict:
    """Convert the description of a model.

    Descriptions by earlier versions are recognized by the names of their arguments.

    Args:
        spec: what ``ups.models.build`` of this or an earlier version takes.
    """
    architecture = spec.get("architecture")
    if architecture == "upt_absolute" or (
        architecture == "upt" and spec.keys() & MODEL_KEYS[MIXER].keys()
    ):
        architecture = ARCHITECTURES[architecture]
        spec = {**spec, "architecture": architecture}
    names = MODEL_KEYS.get(str(architecture), {})
    if names:  # one of our own: the number of fields is now in the field's description
        spec = {key: value for key, value in spec.items() if key != "fields"}
    return _renamed(spec, names)


def convert_corrector_spec(spec: PlainDict) -> PlainDict:
    """Convert the arguments of ``ups.simulation.correctors.ResidualCorrector``."""
    converted = _renamed(spec, CORRECTOR_KEYS)
    converted.pop("num_tokens", None)  # the model now says where its tokens lie
    for network in ("mean_network", "denoiser"):
        if network in converted:
            converted[network] = _renamed(converted[network], _BLOCKS)
    return converted


def convert_state(state: Mapping[str, T]) -> dict[str, T]:
    """Convert the keys of the weights of a simulator, or of a module that trains one."""
    return {
        key if key.startswith(_MODEL_PREFIXES) else _NOISE_NETWORK.sub(r"\1denoiser.", key): value
        for key, value in state.items()
    }


def _renamed(spec: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    # an argument under its earlier name counts more: it comes from a file that overrides defaults
    new = {key: value for key, value in spec.items() if key not in names}
    return new | {names[key]: value for key, value in spec.items() if key in names}
