"""Foreign models beside the baselines, on the test data of a run, in one call: ``ups.compare``."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ups.callbacks import LeaderboardWriter
from ups.core.errors import UpsError
from ups.core.precision import float32_by_default
from ups.core.renamed_keys import load_config
from ups.core.schema import arguments, validate
from ups.datamodules import PointCloudDataModule, TrajectoryDataModule
from ups.evaluation.foreign import ForeignModel, Predictor, in_eval_mode
from ups.evaluation.report.html import RunResults
from ups.evaluation.report.table import print_table
from ups.evaluation.results import Row
from ups.modules.evaluation import (
    Measurement,
    MeasurementModule,
    measure_baselines,
    measure_simulator,
)
from ups.run import compose_config
from ups.runs.config import validate_config
from ups.runs.data_defaults import with_default_model, without_generated_sizes
from ups.runs.reports import ReportWriter
from ups.runs.run_dir import run_directory
from ups.runs.session import restored_session
from ups.runs.settings import RunSettings
from ups.runs.training import make_test_trainer
from ups.simulation.checkpoint import check_data
from ups.simulation.simulator import Simulator

Model = Predictor | Callable[..., Any]
DataModule = TrajectoryDataModule | PointCloudDataModule
Data = DataModule | str | Path | Sequence[str]


@restored_session()
@float32_by_default()
def compare(
    models: Mapping[str, Model],
    data: Data,
    *,
    name: str = "comparison",
    output_dir: str | Path = "outputs",
) -> RunResults:
    """Measure foreign models as a run measures its own, beside the same baselines.

    Rollouts start from the first frames of the test trajectories and are measured in physical
    space. The folder ``output_dir/name`` receives the evaluation and the report, and the
    leaderboard of ``output_dir`` the rows; the same call again replaces them.

    Args:
        models: functions by name. A plain function or module, ``f(u)``, returns the next frame;
            see ``ups.Predictor`` for its arguments, whole rollouts and numpy arrays. A
            ``ups.Simulator`` is measured in both of its modes.
        data: whose test trajectories are predicted: a data module, set up or not; the folder of a
            run; the name of a file in conf/data, "burgers"; or settings as on the command line,
            ``["data=own", "data.path=waves.npy", "data.dt=0.1", "data.length=32"]``.
        name: the folder's name.
        output_dir: the folder of all runs.

    Returns:
        The results; ``rows`` has their rows by label, "mine, physical" or "persistence". A row has
        the metrics by name, with the cost as "seconds_per_trajectory".

    Raises:
        UpsError: a model can't be called, or returns other fields than it should; or the data or
            the folder can't be used.
    """
    validate(RunSettings, {"name": name, "output_dir": str(output_dir)}, "", required="none")
    _check_names(models)
    folder = Path(output_dir) / name
    if (folder / "checkpoints").exists():
        raise UpsError(f"`name` must not be that of a trained run, got {folder}.")
    datamodule = _data_module(data)
    datamodule.prepare_data()
    datamodule.setup()
    measurements = [
        measurement
        for model, function in models.items()
        for measurement in _measurements(model, function, datamodule)
    ]
    measurements += measure_baselines(datamodule.spec, datamodule.equation, datamodule.observation)
    tested = MeasurementModule(datamodule.spec, measurements)
    predictors = {model: _predictor(function) for model, function in models.items()}
    cfg = _settings(folder, predictors, datamodule)
    functions = [predictor.function for predictor in predictors.values()]
    with run_directory(cfg), in_eval_mode(functions):
        # on the CPU, where all are measured alike
        callbacks = [ReportWriter(cfg, folder), LeaderboardWriter(str(output_dir))]
        make_test_trainer("cpu", callbacks).test(tested, datamodule=datamodule, verbose=False)
        print_table(datamodule.dataset, tested.rows)
    return RunResults.read(folder)


def _check_names(models: object) -> None:
    if not isinstance(models, Mapping) or not models:
        kind = type(models).__name__
        raise UpsError(f'`models` must be functions by name, {{"mine": f}}, got {kind}.')
    for name in models:
        if not (isinstance(name, str) and name.isprintable() and name.strip()):
            raise UpsError(f"`models` must have names as keys, got {name!r}.")
        if Row(name, "physical", "none", False, {}).is_baseline:
            raise UpsError(f"`models` must have other names than the baselines, got {name!r}.")


def _settings(folder: Path, predictors: Mapping[str, Predictor], data: DataModule) -> DictConfig:
    """What the folder and the report of a comparison need of a run's configuration."""
    kind: type = type(data)
    known = arguments(kind).named
    given = {key: value for key, value in data.hparams.items() if key in known}
    return OmegaConf.create(
        {
            "name": folder.name,
            "output_dir": str(folder.parent),
            "overwrite": False,
            "seed": 0,  # of the draws of models that draw
            "stage": {"name": "compare", "train": []},
            "data": {"_target_": f"{kind.__module__}.{kind.__qualname__}", **given},
            "models": {name: str(predictor) for name, predictor in predictors.items()},
        }
    )


def _predictor(model: Model) -> Predictor:
    return model if isinstance(model, Predictor) else Predictor(model)


def _measurements(name: str, model: Model, data: DataModule) -> list[Measurement]:
    """The measurements of one model: two of a simulator, one of any other."""
    if isinstance(model, Simulator):
        check_data(model, data, f"`{name}`")
        simulator = copy.deepcopy(model).cpu().eval()
        return measure_simulator(simulator, name, ["none"], observation=data.observation)
    predictor = _predictor(model)
    foreign = ForeignModel(name, predictor, data.spec)
    mode = "physical" if predictor.returns == "frame" else "rollout"
    row = Row(name, mode, "none", False, {})
    return [
        Measurement(data.spec, data.equation, foreign.predict, row, observation=data.observation)
    ]


def _data_module(data: Data) -> DataModule:
    """The data module that ``data`` is or names."""
    module: object = data
    if isinstance(data, str | Path) and (Path(data) / "config.yaml").exists():
        module = instantiate(load_config(Path(data) / "config.yaml").data, _convert_="all")
    elif isinstance(data, str | Path):
        module = _compose_data([f"data={data}"])
    elif isinstance(data, Sequence):
        module = _compose_data(data)
    if not isinstance(module, DataModule):
        raise UpsError(
            "`data` must be a data module of ups.datamodules, the folder of a run, a name of "
            f"conf/data or a list of settings, got {type(module).__name__}."
        )
    return module


def _compose_data(overrides: Sequence[str]) -> object:
    rule = "`data` must be the folder of a run, a name of conf/data or settings"
    cfg = compose_config(overrides, rule)
    cfg = with_default_model(without_generated_sizes(cfg, overrides), overrides)
    validate_config(cfg)
    return instantiate(cfg.data, _convert_="all")
