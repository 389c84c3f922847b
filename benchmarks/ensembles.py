"""Ensembles of an uncertain future, each trained for the same time in all: which is best?

    python benchmarks/ensembles.py [SECONDS [SEED ...]]

On ``data=navier_stokes_uncertain``, seeds 0, 1 and 2 of weights. The trainings of an ensemble take
SECONDS of one core together, 600 by default, validation not counted. Three quarters of it are spent
on an operator, from which fair CRPS (``loss=crps``), the diffusion stage, or diffusion and
consistency go on. Beside them are four operators of a quarter of the time each, with seeds of their
own, and one operator of the whole time whose initial fields are perturbed: by white noise or by
random waves for those that are not seen, of the kind and size with the least CRPS on validation
trajectories. The solver's ensemble is what all are compared with.

What is finished in outputs/ensembles is not repeated. Writes benchmarks/results/ensembles.json.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from shutil import copytree
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from navier_stokes_uncertain import MEMBERS, measure_ensemble, measure_single, solvers_ensemble
from runs import SEEDS, on_one_core, read, save, spread, train_side_by_side
from search import length, speed
from torch import Tensor

import ups
from ups.datamodules import TrajectoryDataModule
from ups.evaluation.baselines import RandomStart
from ups.modules.evaluation import Predict
from ups.pipeline import make_data
from ups.run import CONF

OUT = Path("outputs/ensembles")
TRAIN_SECONDS = 600
NUM_OPERATORS = 4
WHITE_NOISE = (0.05, 0.1, 0.2, 0.4, 0.8)  # in standard deviations of the field
MISSING_WAVES = (0.5, 1.0, 2.0)  # times their usual size
SUMMARY = ("crps", "ensemble_nrmse", "spread_skill_ratio", "coverage_90", "milliseconds")


class Training(NamedTuple):
    """A training of one stage.

    Args:
        share: of the whole time.
        first: the training that it goes on from; None for none.
        stage: the stage that is trained.
        settings: settings of it.
    """

    share: float
    first: str | None = None
    stage: str = "operator"
    settings: tuple[str, ...] = ()


# without its cache a stage does nothing before the steps that are counted
DIFFUSION = ("stage=diffusion", "stage.diffusion.module.latent_cache_dtype=null")
QUARTERS = [f"quarter-{k}" for k in range(NUM_OPERATORS)]
TRAININGS = {
    "whole": Training(1.0),
    "most": Training(0.75),
    **{name: Training(1 / NUM_OPERATORS) for name in QUARTERS},
    "crps": Training(0.25, "most", settings=("loss=crps",)),
    "diffusion": Training(0.25, "most", "diffusion", DIFFUSION),
    "diffusion-eighth": Training(0.125, "most", "diffusion", DIFFUSION),
    "consistency": Training(0.125, "diffusion-eighth", "consistency", ("stage=consistency",)),
}


def config(name: str, seconds: float, seed: int, *sizes: str) -> Any:
    """The configuration of a training."""
    training = TRAININGS[name]
    first = OUT / folder_name(training.first, seconds, seed) if training.first else None
    own_seed = NUM_OPERATORS * seed + QUARTERS.index(name) if name in QUARTERS else seed
    fixed = [
        "data=navier_stokes_uncertain",
        "data.cache_dir=outputs/data",
        f"output_dir={OUT}",
        f"name={folder_name(name, seconds, seed)}",
        f"seed={own_seed}",
        "preflight=false",
        *([f"init_from={first}"] if training.stage == "operator" and first else []),
        *training.settings,
    ]
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", [*fixed, *sizes])


def folder_name(name: str, seconds: float, seed: int) -> str:
    return f"{name}-{seconds:g}-{seed}"


def train_all(result: dict[str, Any], seeds: Sequence[int]) -> None:
    """All trainings of the seeds, those together that go on from finished ones."""
    left = dict(TRAININGS)
    while left:
        ready = [name for name, training in left.items() if training.first not in left]
        jobs = [job for name in ready for job in prepared(result, name, seeds)]
        for cfg, score in zip(jobs, train_side_by_side(jobs), strict=True):
            print(cfg.name, score, flush=True)
        for name in ready:
            del left[name]


def prepared(result: dict[str, Any], name: str, seeds: Sequence[int]) -> list[Any]:
    """The configurations of one training of the seeds, for its share of the time."""
    training, seconds = TRAININGS[name], result["seconds"]
    kind = f"{training.stage} {' '.join(training.settings)}"
    before = OUT / folder_name(training.first, seconds, seeds[0]) if training.first else None
    later = before if training.stage != "operator" else None
    base = config(name, seconds, seeds[0])
    if kind not in result["steps_per_second"]:
        measure = partial(speed, base, training.stage, later)
        result["steps_per_second"][kind] = on_one_core(measure)
        save("ensembles", result)
    steps = result["steps_per_second"][kind] * training.share * seconds
    sizes = length(base, steps, training.stage)
    for seed in seeds:
        folder = OUT / folder_name(name, seconds, seed)
        if later is not None and not folder.exists():
            copytree(OUT / folder_name(str(training.first), seconds, seed), folder)
    return [config(name, seconds, seed, *sizes) for seed in seeds]


def perturbed(data: TrajectoryDataModule, simulator: Any) -> tuple[Predict, str]:
    """The forecast from perturbed initial fields that is best on validation trajectories."""
    assert data.observation is not None
    std = torch.tensor(data.spec.std)
    missing = data.observation.draw_missing

    def white(size: float, u: Tensor) -> Tensor:
        return size * std * torch.randn_like(u)

    def waves(size: float, u: Tensor) -> Tensor:
        return size * missing(u)

    draws: dict[str, Callable[[Tensor], Tensor]] = {
        **{f"white noise {size}": partial(white, size) for size in WHITE_NOISE},
        **{f"missing waves {size}": partial(waves, size) for size in MISSING_WAVES},
    }
    forecasts = {
        name: partial(simulator.predict, RandomStart(simulator, draw))
        for name, draw in draws.items()
    }
    crps = {
        name: measure_ensemble(data, forecast, (4,), "validation")["members"]["4"]["crps"]
        for name, forecast in forecasts.items()
    }
    best = min(crps, key=lambda name: crps[name])
    return forecasts[best], best


def measurements(
    data: TrajectoryDataModule, seconds: float, seed: int
) -> dict[str, Callable[[], dict[str, Any]]]:
    """What measures each kind of ensemble of a seed, by its name."""

    def load(name: str) -> Any:
        return ups.load(OUT / folder_name(name, seconds, seed), data)

    def one_forecast() -> dict[str, Any]:
        operator = load("whole")
        return measure_single(data, partial(operator.predict, operator))

    def perturbed_inputs() -> dict[str, Any]:
        forecast, chosen = perturbed(data, load("whole"))
        return {"chosen": chosen, **measure_ensemble(data, forecast)}

    def independent_operators() -> dict[str, Any]:
        members = cycle([load(name) for name in QUARTERS])
        return measure_ensemble(
            data, lambda *given: (s := next(members)).predict(s, *given), (NUM_OPERATORS,)
        )

    def draws(name: str, correct: str) -> dict[str, Any]:
        simulator = load(name)
        stepper = simulator.stepper(correct, temperature=1.0)
        return measure_ensemble(data, partial(simulator.predict, stepper))

    return {
        "one forecast": one_forecast,
        "perturbed inputs": perturbed_inputs,
        "independent operators": independent_operators,
        "crps": partial(draws, "crps", "none"),
        "diffusion": partial(draws, "diffusion", "diffusion"),
        "consistency": partial(draws, "consistency", "consistency"),
    }


def summarize(seeds: dict[str, Any]) -> dict[str, Any]:
    """Mean and spread over seeds of the largest ensemble of each name."""
    first = next(iter(seeds.values()))
    largest = {
        name: [list(found[name]["members"].values())[-1] for found in seeds.values()]
        for name in first
        if "members" in first[name]
    }
    return {
        name: {key: spread([row[key] for row in rows]) for key in SUMMARY}
        for name, rows in largest.items()
    }


def main(seconds: float = TRAIN_SECONDS, *numbers: float) -> None:
    seeds = [int(number) for number in numbers] or SEEDS
    about = {"seconds": seconds, "members": max(MEMBERS)}
    result = read("ensembles")
    if {key: result.get(key) for key in about} != about:
        result = {**about, "steps_per_second": {}, "seeds": {}}
    train_all(result, seeds)
    torch.set_num_threads(1)  # times are of one core, as those of the trainings are
    data = make_data(config("whole", seconds, seeds[0]))
    result["dataset"] = data.dataset
    if "solver" not in result:
        result["solver"] = solvers_ensemble(data)
        save("ensembles", result)
    for seed in seeds:
        found = result["seeds"].setdefault(str(seed), {})
        for name, measure in measurements(data, seconds, seed).items():
            if name not in found:
                found[name] = measure()
                save("ensembles", result)
    result["summary"] = summarize(result["seeds"])
    save("ensembles", result)
    for name, found in result["summary"].items():
        print(name, {key: found[key]["mean"] for key in SUMMARY})


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
