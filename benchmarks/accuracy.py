"""Every model at equal training time: the same data and code.

    python benchmarks/accuracy.py [DATA]     DATA: burgers (default) or obstacles

Writes benchmarks/results/equal_time.json or equal_time_obstacles.json; flows on a periodic plane
are in benchmarks/navier_stokes.py. First each model's training speed is measured, alone on the
machine; its time is then the number of steps that fit, validation not counted. Each gets the same
search, one seed, judged by validation: on Burgers the squared and the unsquared loss, two minutes
each, then, with the better one, AdamW and Muon at three learning rates, a minute each; past
obstacles two rates, two minutes each. Runs have three seeds, on Burgers those of the two best
models five. The longer runs are of those models whose error is at most twice the least in the
shorter ones; past obstacles there is one length.

As the steps are fixed by then, the runs go side by side, with a core each, on a GPU if there is
one: that changes what the clock says, not what they learn. The seed is of data and weights, past
obstacles only of weights. What is finished is not repeated: the JSON is written after every
run, and the same command continues, on another machine too.
"""

import sys
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from runs import (
    SEEDS,
    Measured,
    own_rows,
    read,
    save,
    side_by_side,
    spread,
    train_side_by_side,
)

from ups.callbacks.graceful_stop import TimeLimit
from ups.pipeline import train
from ups.run import CONF
from ups.runs.stages import stage_config

EPOCHS = 10
OPTIMIZERS = ("adamw", "muon")


class Study(NamedTuple):
    """What is compared on one data set.

    Args:
        data: the setting ``data`` of all runs.
        result: the name of the JSON.
        models: the models, and their sizes where they are not the default ones.
        losses: the losses to try, two minutes each if there are several.
        rates: the learning rates to try with each optimizer.
        rate_seconds: the time to try an optimizer and a rate.
        finals_seconds: the time to try each model's two best again; None to take the best.
        train_seconds: the times of the runs, the shortest first.
        seeds_of: the settings that a seed sets.
        more_seeds: those of the two models that the search found best.
        may_win: the largest error, in units of the least, after the shortest runs with which a
            model gets longer ones.
    """

    data: str
    result: str
    models: dict[str, list[str]]
    losses: tuple[str, ...]
    rates: tuple[float, ...]
    rate_seconds: float
    finals_seconds: float | None
    train_seconds: dict[str, float]
    seeds_of: tuple[str, ...]
    more_seeds: tuple[int, ...]
    may_win: float

    @property
    def folder(self) -> Path:
        return Path("outputs") / self.result


STUDIES = {
    "burgers": Study(
        "burgers",
        "equal_time",
        {
            "memory_upt": [],
            "mixer_small": [],
            "patch_stepper": [],
            "resnet": [],
            "unet": [],
            "fno": [],
            "upt": [],
        },
        ("loss.squared=true", "loss.squared=false"),
        (0.001, 0.003, 0.009),
        60,
        None,
        {"5 minutes": 300, "10 minutes": 600},
        ("seed", "data.seed"),
        (3, 4),
        2.0,
    ),
    "obstacles": Study(
        "obstacles",
        "equal_time_obstacles",
        {
            "point_memory_upt": [],
            "point_upt": [],
            "unet_on_grid": [],
            "fno_on_grid": [],
            "mesh_graph_network": [],
            "gino": [],
            "upt": [],
        },
        ("loss.squared=false",),
        (0.003, 0.009),
        120,
        None,
        {"20 minutes": 1200},
        ("seed",),
        (),
        1.25,
    ),
}

# the rounds of a search, by the names of their scores
SEARCH, FINALS = "validation_nrmse", "finals_nrmse"
KEYS = ("nrmse", "vrmse", "one_step_nrmse")
# the settings to try for each model
Candidates = dict[str, list[list[str]]]


def command(study: Study, model: str, name: str, *settings: str) -> list[str]:
    return [
        f"output_dir={study.folder}",
        f"data={study.data}",
        f"model={model}",
        *study.models[model],
        f"name={name}",
        "preflight=false",
        *settings,
    ]


def run_name(model: str, length: str, seed: str) -> str:
    return f"{model}-{length.partition(' ')[0]}-{seed}"


def train_seconds(run: Path) -> float:
    """The time on two cores that gave a run its number of steps."""
    (study,) = (study for study in STUDIES.values() if study.folder.name == run.parent.name)
    minutes = run.name.split("-")[-2]
    return study.train_seconds[f"{minutes} minutes"]


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


def trial(model: str, settings: list[str], scores: str) -> str:
    """The name of a trial's run."""
    values = "-".join(setting.rpartition("=")[2] for setting in settings)
    return f"{model}-{'search' if scores == SEARCH else 'finals'}-{values}"


def search(
    study: Study,
    table: dict[str, Any],
    candidates: Candidates,
    seconds: float,
    scores: str = SEARCH,
) -> None:
    """Try settings for each model, and note the validation error of each among its ``scores``."""
    left = [
        (model, settings)
        for model, each in candidates.items()
        for settings in each
        if " ".join(settings) not in table[model].setdefault(scores, {})
    ]
    configs = [
        config(
            study,
            model,
            trial(model, settings, scores),
            *settings,
            *length(config(study, model), table[model]["steps_per_second"] * seconds),
        )
        for model, settings in left
    ]
    for (model, settings), score in zip(left, train_side_by_side(configs), strict=True):
        print(model, *settings, score)
        table[model][scores][" ".join(settings)] = score
        save(study.result, {"models": table})


def by_score(
    found: dict[str, Any], candidates: list[list[str]], scores: str = SEARCH
) -> list[list[str]]:
    """Settings, the best first."""
    if len(candidates) == 1:
        return candidates
    return sorted(candidates, key=lambda settings: found[scores][" ".join(settings)])


def two_best(table: dict[str, Any]) -> list[str]:
    """By the lowest validation error in the search."""
    return sorted(table, key=lambda model: min(table[model]["validation_nrmse"].values()))[:2]


def config(study: Study, model: str, name: str = "run", *settings: str) -> Any:
    settings = ("data.cache_dir=outputs/data", *settings)
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", command(study, model, name, *settings))


def measure_speeds(study: Study, table: dict[str, Any]) -> None:
    for model in study.models:
        if model not in table:
            table[model] = {
                "steps_per_second": speed(config(study, model)),
                "validation_nrmse": {},
                "runs": {name: {} for name in study.train_seconds},
            }
            save(study.result, {"models": table})


def train_all(study: Study, table: dict[str, Any], name: str, models: list[str]) -> None:
    """The runs of one length, a seed of all models first."""
    runs = [
        (model, str(seed))
        for seed in (*SEEDS, *study.more_seeds)
        for model in models
        if (seed in SEEDS or model in two_best(table))
        and str(seed) not in table[model]["runs"][name]
    ]
    commands = [
        command(
            study,
            model,
            run_name(model, name, seed),
            *(f"{key}={seed}" for key in study.seeds_of),
            *table[model]["settings"],
            *length(
                config(study, model),
                table[model]["steps_per_second"] * study.train_seconds[name],
            ),
        )
        for model, seed in runs
    ]
    for (model, seed), _ in zip(runs, side_by_side(commands), strict=True):
        folder = study.folder / run_name(model, name, seed)
        rows = {row.mode: row.to_dict() for row in own_rows(folder, "eval_operator")}
        table[model]["runs"][name][seed] = {"rows": rows}
        summarize(table)
        save(study.result, {"models": table})


def may_win(study: Study, table: dict[str, Any], name: str) -> list[str]:
    """The models whose error in the runs of a length is close enough to the least."""
    errors = {
        model: found["summary"][name]["latent"]["nrmse"]["mean"] for model, found in table.items()
    }
    return [
        model for model, value in errors.items() if value <= study.may_win * min(errors.values())
    ]


def find_settings(study: Study) -> dict[str, Any]:
    """The table of a study with each model's speed and what the same search chose for it."""
    table = read(study.result).setdefault("models", {})
    measure_speeds(study, table)
    losses = [[loss] for loss in study.losses]
    if len(losses) > 1:
        search(study, table, dict.fromkeys(study.models, losses), seconds=120)
    rates = {
        model: [
            [
                *by_score(table[model], losses)[0],
                f"stage.operator.module.optimizer={optimizer}",
                f"stage.operator.module.lr={lr}",
            ]
            for optimizer in OPTIMIZERS
            for lr in study.rates
        ]
        for model in study.models
    }
    search(study, table, rates, study.rate_seconds)
    ranked = {model: by_score(table[model], rates[model]) for model in study.models}
    if study.finals_seconds is not None:
        finals = {model: settings[:2] for model, settings in ranked.items()}
        search(study, table, finals, study.finals_seconds, FINALS)
        ranked = {model: by_score(table[model], finals[model], FINALS) for model in finals}
    for model, (settings, *_) in ranked.items():
        table[model]["settings"] = settings
    save(study.result, {"models": table})
    return table


def main(study: Study) -> None:
    table = find_settings(study)
    shortest, *longer = study.train_seconds
    train_all(study, table, shortest, list(study.models))
    for name in longer:
        train_all(study, table, name, may_win(study, table, shortest))


def summarize(table: dict[str, Any]) -> None:
    """Add mean and spread over seeds to each model's runs."""
    for found in table.values():
        for name, runs in found["runs"].items():
            if not runs:
                continue  # of an earlier call that was stopped
            summary = found.setdefault("summary", {}).setdefault(name, {})
            for mode in ("latent", "physical"):
                rows = [run["rows"][mode] for run in runs.values()]
                summary[mode] = {
                    **{key: spread([row[key] for row in rows]) for key in KEYS},
                    "last_frame": spread([row["nrmse_over_time"][-1] for row in rows]),
                }


if __name__ == "__main__":
    main(STUDIES[sys.argv[1] if sys.argv[1:] else "burgers"])
