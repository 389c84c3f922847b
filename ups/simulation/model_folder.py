"""A simulator as a folder that other tools read too, as on Hugging Face.

It holds config.json, model.safetensors and README.md, the model card.

The models that come with UPS are such folders in ``ups/hub/shipped``.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

import ups
from ups.core.errors import UpsError
from ups.core.io import unreadable, write_bytes, write_text
from ups.core.settings import PlainDict

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
RUN_FILES = ("checkpoints", "config.yaml")  # by these a run directory is known
SHIPPED = Path(__file__).parents[1] / "hub/shipped"


def list_pretrained() -> list[str]:
    """The names of the models that come with UPS."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))


def is_folder(path: Path) -> bool:
    """Whether ``path`` is such a folder, complete or not."""
    return (path / CONFIG).is_file() or (path / WEIGHTS).is_file()


def check_not_run(folder: Path) -> None:
    """Check that ``folder`` is no run directory, whose weights are its checkpoints.

    Raises:
        UpsError: it is one.
    """
    if any((folder / name).exists() for name in RUN_FILES):
        raise UpsError(
            f"the folder of an exported model must not be a run directory, got {folder}; "
            "choose another folder."
        )


def check_not_model_folder(folder: Path) -> None:
    """Check that ``folder``, of a run, holds no exported model beside its checkpoints.

    Raises:
        UpsError: it does, so that there are two sources of weights.
    """
    if is_folder(folder):
        raise UpsError(
            f"{folder} must not hold an exported model beside a run. "
            f"Move its {CONFIG} and {WEIGHTS} to another folder, or choose another name."
        )


def to_safetensors(state: Mapping[str, Tensor]) -> bytes:
    """Serialize weights as safetensors: plain numbers, no code."""
    return save(
        {
            name: t.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, t in state.items()
        },
        {"format": "pt"},
    )


def write(
    folder: Path, config: Mapping[str, object], state: Mapping[str, Tensor], card: str
) -> None:
    """Write the configuration, weights and card of a simulator.

    The configuration is written last and holds the hash of the weights, so that ``read`` notices
    files of different models.

    Args:
        folder: where to write; not a run directory.
        config: what ``Simulator.config`` returned.
        state: the weights.
        card: text of the model card; empty for none.

    Raises:
        UpsError: ``folder`` is a run directory.
    """
    check_not_run(folder)
    weights = to_safetensors(state)
    content = {
        "library_name": "ups",
        "ups_version": ups.__version__,
        "sha256": hashlib.sha256(weights).hexdigest(),
        **config,
    }
    write_bytes(folder / WEIGHTS, weights)
    if card:
        write_text(folder / CARD, card)
    write_text(folder / CONFIG, json.dumps(content, indent=1) + "\n")


def read(folder: Path) -> tuple[PlainDict, dict[str, Tensor]]:
    """Read the configuration and weights that ``write`` wrote.

    Raises:
        UpsError: the folder is incomplete or damaged.
    """
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        content = (folder / WEIGHTS).read_bytes()
        if hashlib.sha256(content).hexdigest() != config["sha256"]:
            raise ValueError(f"{WEIGHTS} is not the file that {CONFIG} was written for")
        state = load(content)
        if "x" in state:  # earlier versions kept the grid with the weights
            config["x"] = state["x"].tolist()
        return config, state
    except PermissionError as error:
        raise unreadable(Path(error.filename), error, "a file of a model") from None
    except Exception as error:
        reason = str(error).splitlines()[0][:120] if str(error) else ""
        raise UpsError(
            f"{folder} is not a model folder of UPS, or is damaged "
            f"({type(error).__name__}: {reason})"
        ) from None
