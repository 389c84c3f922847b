"""Load simulators from run directories, checkpoints, model folders and the models of UPS itself."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ups.core.agreement import disagreements
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec
from ups.core.io import read_tensors, sha256, unreadable
from ups.core.settings import PlainDict
from ups.models import build
from ups.simulation import converter, model_folder
from ups.simulation.simulator import Simulator

# the training stages in order, each with the name of its files of weights; each stage continues
# from the simulator in the files of the stage before
STAGES = {"operator": "operator", "diffusion": "diffusion_residual", "consistency": "consistency"}
log = logging.getLogger(__name__)


class TrainingData(Protocol):
    """What a simulator is compared with; see ``ups.datamodules.TrajectoryDataModule``."""

    equation_name: str | None
    spec: FieldSpec
    path: Path


def load(path: str | Path, data: TrainingData | None = None) -> Simulator:
    """Load a trained simulator, in eval mode.

    Only tensors and plain values are unpickled (``weights_only=True``). A model that is not of
    ``ups.models`` is imported by the name of its class, as Python would.

    Args:
        path: a run directory (the EMA weights of all finished stages), a checkpoint file, a folder
            that ``Simulator.save`` wrote, or the name of a model that comes with UPS:
            "burgers-small" or "navier-stokes-small".
        data: a datamodule to compare with the simulator's training data; default: no check.

    Raises:
        UpsError: nothing is there, a folder holds weights of a run and of an export, the file is
            not a checkpoint of UPS, the weights are of another architecture (the message lists the
            keys that differ), or the data differ.
    """
    names = model_folder.list_pretrained()
    if not isinstance(path, str | os.PathLike):
        raise UpsError(
            f"`path` must be a run directory, a checkpoint, a folder or one of {', '.join(names)}; "
            f"got {path!r}."
        )
    path = (
        model_folder.SHIPPED / path
        if str(path) in names and not Path(path).exists()
        else Path(path)
    )
    if next((path / "checkpoints").glob("*.ckpt"), None) is not None:
        model_folder.check_not_model_folder(path)
    if model_folder.is_folder(path):
        simulator = from_config(*model_folder.read(path), path)
    else:
        path = latest_checkpoint(path) if path.is_dir() else path
        if not path.is_file():
            raise UpsError(
                f"{path} is neither a run directory nor a checkpoint file, "
                f"nor a model that comes with UPS: {', '.join(names)}"
            )
        checkpoint = read_checkpoint(path)
        simulator = from_config(checkpoint["simulator"], checkpoint["state_dict"], path)
    if data is not None:
        check_data(simulator, data, path)
    return simulator


def check_data(simulator: Simulator, data: TrainingData, name: str | Path) -> None:
    """Check that data are of the equation and the grid that a simulator was trained for.

    Args:
        simulator: the simulator.
        data: a datamodule.
        name: the simulator's name in the message.

    Raises:
        UpsError: they are not.
    """
    expected = {"equation": simulator.equation_name or "none", **simulator.spec.essentials()}
    given = {"equation": data.equation_name or "none", **data.spec.essentials()}
    if simulator.equation is not None and not simulator.equation.is_homogeneous:
        # its terms depend on the position
        expected["first point"] = _first_point(simulator.spec)
        given["first point"] = _first_point(data.spec)
    found = disagreements(expected, given)
    if found:
        raise UpsError(f"{name} was trained for other data than {data.path}: {', '.join(found)}.")


def _first_point(spec: FieldSpec) -> tuple[float, ...]:
    """The position of the first point, without the rounding of float32."""
    return tuple(round(first, 6) for first in spec.grid.origin)


def latest_checkpoint(folder: Path) -> Path:
    """The checkpoint of the last stage of a run directory.

    A later stage counts only if it was trained on the current checkpoint of the stage before.
    """
    names = [
        folder / "checkpoints" / f"{stem}{suffix}.ckpt"
        for stem in STAGES.values()
        for suffix in ("_ema", "")
    ]
    weights = [
        next((path for path in names[i : i + 2] if path.is_file()), None)
        for i in range(0, len(names), 2)
    ]
    best = weights[0]
    if best is None:
        wanted = " or ".join(f"checkpoints/{path.name}" for path in names[:2])
        raise UpsError(f"{folder} holds no {wanted}: its operator stage has not finished")
    for path in filter(None, weights[1:]):
        if read_checkpoint(path)["made_from"] != sha256(best):
            log.warning(
                "%s was trained on another %s than the one beside it, and is left out",
                path,
                best.name,
            )
            break
        best = path
    return best


def read_checkpoint(path: Path) -> PlainDict:
    """Read the checkpoint file of a finished stage.

    The keys of its weights are the simulator's own.

    Raises:
        UpsError: the file is not a checkpoint of UPS.
    """
    try:
        checkpoint = read_tensors(path)
        state = {
            k.removeprefix("simulator."): v
            for k, v in checkpoint["state_dict"].items()
            if k.startswith("simulator.")
        }
        return {
            "made_from": None,
            **checkpoint,
            "simulator": dict(checkpoint["simulator"]),
            "state_dict": state,
        }
    except Exception as error:
        raise unreadable(path, error, "a checkpoint of UPS") from None


def mismatched_keys(own: Mapping[str, Tensor], loaded: Mapping[str, object]) -> list[str]:
    """The keys in which two sets of weights differ.

    A key differs if one side lacks it, or if the layout, shape or dtype of the tensors differs.

    Args:
        own: the weights of a model.
        loaded: the weights from a file.
    """

    def fits(a: Tensor | None, b: object) -> bool:
        return (
            a is not None
            and isinstance(b, Tensor)
            and (b.layout, b.shape, b.dtype) == (a.layout, a.shape, a.dtype)
        )

    return sorted(k for k in own.keys() | loaded.keys() if not fits(own.get(k), loaded.get(k)))


def from_config(config: PlainDict, state: Mapping[str, Tensor], where: str | Path) -> Simulator:
    """Build a simulator from its configuration and weights.

    Args:
        config: what ``Simulator.config`` of this or an earlier version returned.
        state: the weights.
        where: the source of both, for messages.

    Raises:
        UpsError: the configuration does not describe a simulator, or the weights do not fit it or
            are not finite.
    """
    try:
        config, state = converter.convert(config, state)
        spec = FieldSpec.from_dict(config["spec"])
        simulator = Simulator(
            build(config["model"], spec),
            spec,
            config["equation"],
            config["model"],
            config["training_parameters"],
            config.get("input_range"),  # versions before had none
        )
        for name, settings in config["correctors"].items():
            simulator.add_corrector(name, settings)
        if config.get("noise") is not None:  # versions before had none
            simulator.add_noise(config["noise"])
    except UpsError:
        raise
    except Exception as error:  # the file may have been edited by hand
        raise UpsError(
            f"{where} does not describe a simulator ({type(error).__name__}: {error})"
        ) from None
    own = simulator.state_dict()
    differ = mismatched_keys(own, state)
    if differ:
        raise UpsError(
            f"{where} holds weights of another architecture; {len(differ)} keys differ: "
            f"{', '.join(differ[:6])}"
        )
    spoilt = [k for k, v in state.items() if not bool(torch.isfinite(v).all())]
    if spoilt:
        raise UpsError(f"{where} holds values that are not finite: {', '.join(spoilt)}")
    simulator.load_state_dict(state)
    return simulator.eval()
