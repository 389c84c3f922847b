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
from typing import Any, NamedTuple

from runs import SEEDS, own_rows, save, side_by_side, spread
from search import FIRST, Search, command, config, find_settings, length

KEYS = ("nrmse", "vrmse", "one_step_nrmse")


class Study(NamedTuple):
    """What is compared on one data set.

    Args:
        search: how the settings of its models are found.
        train_seconds: the times of the runs, the shortest first.
        seeds_of: the settings that a seed sets.
        more_seeds: those of the two models that the search found best.
        may_win: the largest error, in units of the least, after the shortest runs with which a
            model gets longer ones.
    """

    search: Search
    train_seconds: dict[str, float]
    seeds_of: tuple[str, ...]
    more_seeds: tuple[int, ...]
    may_win: float


STUDIES = {
    "burgers": Study(
        Search(
            data="burgers",
            result="equal_time",
            models={
                "memory_upt": [],
                "mixer_small": [],
                "patch_stepper": [],
                "resnet": [],
                "unet": [],
                "fno": [],
                "upt": [],
            },
            losses=("loss.squared=true", "loss.squared=false"),
            rates=(0.001, 0.003, 0.009),
            rate_seconds=60,
        ),
        train_seconds={"5 minutes": 300, "10 minutes": 600},
        seeds_of=("seed", "data.seed"),
        more_seeds=(3, 4),
        may_win=2.0,
    ),
    "obstacles": Study(
        Search(
            data="obstacles",
            result="equal_time_obstacles",
            models={
                "point_memory_upt": [],
                "point_upt": [],
                "unet_on_grid": [],
                "fno_on_grid": [],
                "mesh_graph_network": [],
                "gino": [],
                "upt": [],
            },
            losses=("loss.squared=false",),
            rates=(0.003, 0.009),
            rate_seconds=120,
        ),
        train_seconds={"20 minutes": 1200},
        seeds_of=("seed",),
        more_seeds=(),
        may_win=1.25,
    ),
}


def run_name(model: str, length: str, seed: str) -> str:
    return f"{model}-{length.partition(' ')[0]}-{seed}"


def train_seconds(run: Path) -> float:
    """The time on two cores that gave a run its number of steps."""
    (study,) = (each for each in STUDIES.values() if each.search.folder.name == run.parent.name)
    minutes = run.name.split("-")[-2]
    return study.train_seconds[f"{minutes} minutes"]


def two_best(table: dict[str, Any]) -> list[str]:
    """By the lowest validation error in the search."""
    return sorted(table, key=lambda model: min(table[model][FIRST.scores].values()))[:2]


def train_all(study: Study, table: dict[str, Any], name: str, models: list[str]) -> None:
    """The runs of one length, a seed of all models first."""
    runs = [
        (model, str(seed))
        for seed in (*SEEDS, *study.more_seeds)
        for model in models
        if (seed in SEEDS or model in two_best(table))
        and str(seed) not in table[model]["runs"][name]
    ]
    search = study.search
    commands = [
        command(
            search,
            model,
            run_name(model, name, seed),
            *(f"{key}={seed}" for key in study.seeds_of),
            *table[model]["settings"],
            *length(
                config(search, model),
                table[model]["steps_per_second"] * study.train_seconds[name],
            ),
        )
        for model, seed in runs
    ]
    for (model, seed), _ in zip(runs, side_by_side(commands), strict=True):
        folder = search.folder / run_name(model, name, seed)
        rows = {row.mode: row.to_dict() for row in own_rows(folder, "eval_operator")}
        table[model]["runs"][name][seed] = {"rows": rows}
        summarize(table)
        save(search.result, {"models": table})


def may_win(study: Study, table: dict[str, Any], name: str) -> list[str]:
    """The models whose error in the runs of a length is close enough to the least."""
    errors = {
        model: found["summary"][name]["latent"]["nrmse"]["mean"] for model, found in table.items()
    }
    return [
        model for model, value in errors.items() if value <= study.may_win * min(errors.values())
    ]


def main(study: Study) -> None:
    table = find_settings(study.search)
    for found in table.values():
        for name in study.train_seconds:
            found.setdefault("runs", {}).setdefault(name, {})
    shortest, *longer = study.train_seconds
    train_all(study, table, shortest, list(study.search.models))
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
