"""Training that begins with the weights of a finished model, ``init_from``.

The new run's model has the settings of the finished one and sees fields in its units. Data must
therefore be of the same channels, points, length, dt and parameters. The values of the parameters,
the equation and the distribution of the fields may differ.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

from omegaconf import DictConfig

from ups.core.agreement import disagreements
from ups.core.errors import UpsError
from ups.core.fields import PARAMETER_UNIT, FieldSpec, PointCloud
from ups.core.schema import arguments
from ups.core.settings import to_plain
from ups.datamodules import TrajectoryDataModule
from ups.models import get_architecture
from ups.simulation.checkpoint import load, mismatched_keys
from ups.simulation.converter import convert_model_spec
from ups.simulation.model_folder import to_safetensors
from ups.simulation.simulator import Simulator


def check_same_model(cfg: DictConfig) -> None:
    """Check that ``model`` is that of ``init_from``, before anything is written.

    The settings are demanded, not taken over: config.yaml says which model the run trains, and no
    setting of the command is overruled.

    Raises:
        UpsError: there is no finished model, or its settings differ. The message lists them.
    """
    if cfg.init_from is None:
        return
    expected = _model_settings(load(cfg.init_from).model_config)
    found = _model_settings(to_plain(cfg.model))
    if expected["model.architecture"] != found["model.architecture"]:
        # the other keys are then others
        expected = {"model.architecture": expected["model.architecture"]}
    differ = disagreements(expected, found)
    if differ:
        raise UpsError(
            f"`model` must be that of init_from={cfg.init_from}; give the model=... of its "
            f"training: {', '.join(differ)}."
        )


def _model_settings(config: dict[str, object]) -> dict[str, object]:
    """The settings of a model by key, with its architecture's defaults and without its label."""
    config = convert_model_spec(config)
    architecture: Callable[..., object] = get_architecture(str(config["architecture"]))
    defaults = {key: value.default for key, value in arguments(architecture, 1).named.items()}
    settings = {**defaults, **config}
    del settings["name"]
    return {
        f"model.{key}": tuple(value) if isinstance(value, list) else value
        for key, value in settings.items()
    }


def check_not_own_folder(cfg: DictConfig, folder: Path) -> None:
    """Check that a run does not begin with the weights of its own folder, which it replaces.

    Raises:
        UpsError: it does.
    """
    if cfg.get("init_from") is None:
        return
    if Path(cfg.init_from).resolve().is_relative_to(folder.resolve()):
        raise UpsError(
            f"`init_from` must not lie in the run's own folder {folder}, got {cfg.init_from}; "
            "give another name=..."
        )


def content_hash(path: str) -> str:
    """A hash of the operator at ``path``: its weights, its settings and its units.

    The stages after the operator, and where the folder lies, make no difference.
    """
    simulator = load(path)
    config = {"model": simulator.model_config, "spec": simulator.spec.to_dict()}
    content = json.dumps(config, sort_keys=True, default=str).encode()
    content += to_safetensors(simulator.model.state_dict())
    return hashlib.sha256(content).hexdigest()[:12]


def with_units_of(data: TrajectoryDataModule, finished: Simulator) -> FieldSpec:
    """Describe the field of ``data`` in the units in which a finished model sees it.

    With mean, standard deviation and the units of time and parameters of the finished model,
    training begins with the very function that it has learned; with those of the new data, with
    another one (docs/notes/training.md has both measured). But of a parameter that had one value in
    its training, the model has not learned what another value does: the usual value of the new data
    looks to it like the one that it knows. It sees positions if it has learned to.
    """
    spec = finished.spec
    units = spec.parameter_units or (PARAMETER_UNIT,) * len(spec.parameters)
    if finished.training_parameters:
        known = zip(*finished.training_parameters, strict=True)
        new = zip(*data.training_parameters, strict=True)
        units = tuple(map(_unit, units, known, new))
    domain = data.spec.domain
    if isinstance(spec.domain, PointCloud):
        domain = replace(data.spec.point_cloud, feature_units=spec.domain.feature_units)
    return replace(
        data.spec,
        domain=domain,
        mean=spec.mean,
        std=spec.std,
        largest=_largest(data.spec, spec.mean),
        time_unit=spec.time_unit,
        parameter_units=units,
        is_homogeneous=spec.is_homogeneous,
    )


def _largest(spec: FieldSpec, mean: Sequence[float]) -> tuple[float, ...]:
    """The largest distances of the data of ``spec`` from another ``mean``, if they are known."""
    moved = [abs(own - kept) for own, kept in zip(spec.mean, mean, strict=True)]
    return tuple(size + move for size, move in zip(spec.largest, moved, strict=False))


def _unit(unit: float, known: Sequence[float], new: Sequence[float]) -> float:
    """The unit of a parameter of the ``new`` values, after training in ``unit`` at ``known``."""
    return unit * geometric_mean(new) / known[0] if len(set(known)) == 1 else unit


def load_weights(simulator: Simulator, finished: Simulator, path: str) -> None:
    """Give ``simulator`` the weights of the finished model at ``path``.

    Raises:
        UpsError: they don't fit.
    """
    own: Mapping[str, object] = finished.model.state_dict()
    differ = mismatched_keys(simulator.model.state_dict(), own)
    if differ:
        raise UpsError(
            f"`init_from` must hold weights of the same architecture, got {path}; "
            f"{len(differ)} keys differ: {', '.join(differ[:6])}."
        )
    simulator.model.load_state_dict(own)


def load_finished(path: str, data: TrajectoryDataModule) -> Simulator:
    """Load the finished model at ``path``, and check that it is one of the field of ``data``.

    Raises:
        UpsError: it is of another field. The message lists in what they differ.
    """
    finished = load(path)
    differ = disagreements(_essentials(finished.spec), _essentials(data.spec))
    if differ:
        raise UpsError(
            f"`data` must be of the field that init_from={path} was trained for; in {data.path} "
            f"{', '.join(differ)}."
        )
    return finished


def _essentials(spec: FieldSpec) -> dict[str, object]:
    """What new data and a finished model must agree in: as ``FieldSpec.essentials``, but channels
    may have other names.
    """
    return {**spec.essentials(), "channels": spec.num_channels}
