"""A simulator as a folder that other tools read too: config.json, model.safetensors and README.md, its card, as on Hugging Face.

Models that come with UPS are such folders in ``ups/shipped``.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

import ups
from ups.errors import UpsError
from ups.files import write_bytes, write_text

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
SHIPPED = Path(__file__).with_name("shipped")


def shipped() -> list[str]:
    """The names of the models that come with UPS."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))


def is_folder(path: Path) -> bool:
    """Whether ``path`` is such a folder, or what is left of one."""
    return (path / CONFIG).is_file() or (path / WEIGHTS).is_file()


def pack(state: Mapping[str, Tensor]) -> bytes:
    """Weights as safetensors: plain numbers, no code."""
    return save({name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in state.items()}, {"format": "pt"})


def write(folder: Path, about: Mapping[str, Any], state: Mapping[str, Tensor], card: str) -> None:
    """Write a simulator's description, weights and card; the description last, with the weights' hash, so that no two can be mixed up."""
    content = pack(state)
    told = {"library_name": "ups", "ups_version": ups.__version__, "sha256": hashlib.sha256(content).hexdigest()}
    told |= {key: value for key, value in about.items() if key != "x"}  # which stands among the weights
    write_bytes(folder / WEIGHTS, content)
    if card:
        write_text(folder / CARD, card)
    write_text(folder / CONFIG, json.dumps(told, indent=1) + "\n")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What ``write`` was given: description and weights; an UpsError where the folder is incomplete or damaged."""
    try:
        about, content = json.loads((folder / CONFIG).read_bytes()), (folder / WEIGHTS).read_bytes()
        if hashlib.sha256(content).hexdigest() != about["sha256"]:
            raise ValueError(f"{WEIGHTS} is not the file that {CONFIG} was written for")
        state = load(content)
        return {**about, "x": state["x"].tolist()}, state
    except Exception as error:
        reason = str(error).splitlines()[0][:120] if str(error) else ""
        raise UpsError(f"{folder} is not a model folder of UPS, or is damaged ({type(error).__name__}: {reason})") from None
