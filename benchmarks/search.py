"""The same search for every model: its training speed, then optimizer, learning rate and loss.

One seed, judged by validation. What is finished is not repeated: the JSON is written after every
trial.
"""

from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from runs import Measured, read, save, train_side_by_side

from ups.callbacks.graceful_stop import TimeLimit
from ups.pipeline import train
from ups.run import CONF
from ups.runs.stages import stage_config

EPOCHS = 10
OPTIMIZERS = ("adamw", "muon")
# the settings to try for each model
Candidates = dict[str, list[list[str]]]


class Search(NamedTuple):
    """What is tried for the models on one data set.

    Args:
        data: the setting ``data`` of all runs.
        result: the name of the JSON.
        models: the models, and their sizes where they are not the default ones.
        losses: the losses to try, two minutes each if there are several.
        rates: the learning rates to try with each optimizer.
        rate_seconds: the time to try an optimizer and a rate.
        finals_seconds: the time to try each model's two best again; None to take the best.
    """

    data: str
    result: str
    models: dict[str, list[str]]
    losses: tuple[str, ...]
    rates: tuple[float, ...]
    rate_seconds: float
    finals_seconds: float | None = None

    @property
    def folder(self) -> Path:
        return Path("outputs") / self.result


class Round(NamedTuple):
    """A round of a search: its part of the names of runs, and the name of its scores."""

    name: str
    scores: str


FIRST, FINALS = Round("search", "validation_nrmse"), Round("finals", "finals_nrmse")


def command(search: Search, model: str, name: str, *settings: str) -> list[str]:
    return [
        f"output_dir={search.folder}",
        f"data={search.data}",
        f"model={model}",
        *search.models[model],
        f"name={name}",
        "preflight=false",
        *settings,
    ]


def config(search: Search, model: str, name: str = "run", *settings: str) -> Any:
    settings = ("data.cache_dir=outputs/data", *settings)
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", command(search, model, name, *settings))


def find_settings(search: Search) -> dict[str, Any]:
    """The table of models, each with its speed and the ``settings`` that the search chose."""
    table = read(search.result).setdefault("models", {})
    measure_speeds(search, table)
    losses = [[loss] for loss in search.losses]
    if len(losses) > 1:
        try_all(search, table, dict.fromkeys(search.models, losses), seconds=120)
    rates = {
        model: [
            [
                *by_score(table[model], losses)[0],
                f"stage.operator.module.optimizer={optimizer}",
                f"stage.operator.module.lr={lr}",
            ]
            for optimizer in OPTIMIZERS
            for lr in search.rates
        ]
        for model in search.models
    }
    try_all(search, table, rates, search.rate_seconds)
    ranked = {model: by_score(table[model], rates[model]) for model in search.models}
    if search.finals_seconds is not None:
        finals = {model: settings[:2] for model, settings in ranked.items()}
        try_all(search, table, finals, search.finals_seconds, FINALS)
        ranked = {model: by_score(table[model], finals[model], FINALS) for model in finals}
    for model, (settings, *_) in ranked.items():
        table[model]["settings"] = settings
    save(search.result, {"models": table})
    return table


def measure_speeds(search: Search, table: dict[str, Any]) -> None:
    for model in search.models:
        if model not in table:
            table[model] = {"steps_per_second": speed(config(search, model))}
            save(search.result, {"models": table})


def trial(model: str, settings: list[str], which: Round) -> str:
    """The name of a trial's run."""
    values = "-".join(setting.rpartition("=")[2] for setting in settings)
    return f"{model}-{which.name}-{values}"


def try_all(
    search: Search,
    table: dict[str, Any],
    candidates: Candidates,
    seconds: float,
    which: Round = FIRST,
) -> None:
    """Try settings for each model, and note the validation error of each among its scores."""
    left = [
        (model, settings)
        for model, each in candidates.items()
        for settings in each
        if " ".join(settings) not in table[model].setdefault(which.scores, {})
    ]
    configs = [
        config(
            search,
            model,
            trial(model, settings, which),
            *settings,
            *length(config(search, model), table[model]["steps_per_second"] * seconds),
        )
        for model, settings in left
    ]
    for (model, settings), score in zip(left, train_side_by_side(configs), strict=True):
        print(model, *settings, score)
        table[model][which.scores][" ".join(settings)] = score
        save(search.result, {"models": table})


def by_score(
    found: dict[str, Any], candidates: list[list[str]], which: Round = FIRST
) -> list[list[str]]:
    """Settings, the best first."""
    if len(candidates) == 1:
        return candidates
    return sorted(candidates, key=lambda settings: found[which.scores][" ".join(settings)])


def speed(
    cfg: Any,
    stage: str = "operator",
    before: Path | None = None,
    warm_up: float = 15,
    seconds: float = 30,
) -> float:
    """Training steps a second, sustained: counted for ``seconds``, after ``warm_up`` of them in
    which a cool processor is faster.

    ``before`` is the run whose weights a later ``stage`` begins with.
    """
    with TemporaryDirectory() as folder:
        if before is not None:
            copytree(before / "checkpoints", Path(folder) / "checkpoints")
        cfg = OmegaConf.merge(cfg, {"output_dir": folder})
        key = f"stage.{stage}.data.samples_per_trajectory"
        OmegaConf.update(cfg, key, 1000, force_add=True)
        OmegaConf.update(
            cfg,
            "callbacks.speed",
            {"_target_": "runs.Speed", "warm_up": warm_up, "seconds": seconds},
            force_add=True,
        )
        try:
            train(cfg, stage, Path(folder), CSVLogger(folder), 1, TimeLimit())
        except Measured as measured:
            return measured.steps_per_second
    raise RuntimeError("the training was over before its speed was measured")


def length(cfg: Any, steps: float, stage: str = "operator") -> list[str]:
    """Settings of a run of about so many steps of ``stage``, in about ten epochs or fewer."""
    data = stage_config(cfg, stage).data
    windows = steps * data.batch_size / data.num_train  # a trajectory, in all
    fewest = min(EPOCHS - 3, max(1, int(windows)))
    epochs, each = min(
        ((e, max(1, round(windows / e))) for e in range(fewest, EPOCHS + 4)),
        key=lambda p: abs(p[0] * p[1] - windows),
    )
    own = "" if stage == "operator" else f"stage.{stage}."
    return [
        f"{own}trainer.max_epochs={epochs}",
        f"{own}data.samples_per_trajectory={each}",
        f"stage.{stage}.module.num_cpu_shards=1",
    ]
