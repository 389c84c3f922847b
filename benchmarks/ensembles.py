"""Ensembles, each trained for the same time in all: which is best?

    python benchmarks/ensembles.py [DATA [SECONDS [SEED ...]]]

On DATA, ``navier_stokes_uncertain`` by default, seeds 0, 1 and 2 of weights. The trainings of an
ensemble take SECONDS of one core together, 600 by default, validation not counted. Three quarters
of it are spent on an operator, from which fair CRPS (``loss=crps``), the diffusion stage, or
diffusion and consistency go on. Beside them are four operators of a quarter of the time each, with
seeds of their own, and one operator of the whole time whose initial fields are perturbed: by white
noise, or by random waves for those that are not seen. Kind and size of perturbations and the
temperature of draws are those with the least CRPS on validation trajectories. Where the future is
uncertain, the solver's ensemble is what all are compared with. Forecasts without an ensemble are
those of the operator of the whole time, of the one after fair CRPS without its noise, and of its
control: as much training at the same learning rate, by the loss of operators.

What is finished in outputs/ensembles is not repeated. Writes benchmarks/results/ensembles.json, or
ensembles_DATA.json for other data.
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

UNCERTAIN = "navier_stokes_uncertain"
TRAIN_SECONDS = 600
NUM_OPERATORS = 4
# in standard deviations of the field
WHITE_NOISE = (0.000625, 0.00125, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
MISSING_WAVES = (0.5, 1.0, 2.0, 3.0, 4.0)  # times their usual size
TEMPERATURES = (0.125, 0.25, 0.5, 0.75, 1.0, 1.25)
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
    "continued": Training(0.25, "most", settings=("stage.operator.module.lr=0.001",)),
    "diffusion": Training(0.25, "most", "diffusion", DIFFUSION),
    "diffusion-eighth": Training(0.125, "most", "diffusion", DIFFUSION),
    "consistency": Training(0.125, "diffusion-eighth", "consistency", ("stage=consistency",)),
}


class Comparison(NamedTuple):
    """The ensembles on some data, each trained for so many seconds."""

    data: str = UNCERTAIN
    seconds: float = TRAIN_SECONDS

    @property
    def result_name(self) -> str:
        return "ensembles" if self.data == UNCERTAIN else f"ensembles_{self.data}"

    def folder(self, name: str, seed: int) -> Path:
        """Where a training is kept."""
        return Path("outputs") / self.result_name / f"{name}-{self.seconds:g}-{seed}"

    def config(self, name: str, seed: int, *sizes: str) -> Any:
        """The configuration of a training."""
        training, folder = TRAININGS[name], self.folder(name, seed)
        goes_on = training.stage == "operator" and training.first
        own_seed = NUM_OPERATORS * seed + QUARTERS.index(name) if name in QUARTERS else seed
        fixed = [
            f"data={self.data}",
            "data.cache_dir=outputs/data",
            f"output_dir={folder.parent}",
            f"name={folder.name}",
            f"seed={own_seed}",
            "preflight=false",
            *([f"init_from={self.folder(goes_on, seed)}"] if goes_on else []),
            *training.settings,
        ]
        with initialize_config_dir(CONF, version_base="1.3"):
            return compose("config", [*fixed, *sizes])


def train_all(comparison: Comparison, result: dict[str, Any], seeds: Sequence[int]) -> None:
    """All trainings of the seeds, those together that go on from finished ones."""
    left = dict(TRAININGS)
    while left:
        ready = [name for name, training in left.items() if training.first not in left]
        jobs = [job for name in ready for job in prepared(comparison, result, name, seeds)]
        for cfg, score in zip(jobs, train_side_by_side(jobs), strict=True):
            print(cfg.name, score, flush=True)
        for name in ready:
            del left[name]


def prepared(
    comparison: Comparison, result: dict[str, Any], name: str, seeds: Sequence[int]
) -> list[Any]:
    """The configurations of one training of the seeds, for its share of the time."""
    training = TRAININGS[name]
    kind = f"{training.stage} {' '.join(training.settings)}"
    before = comparison.folder(training.first, seeds[0]) if training.first else None
    later = before if training.stage != "operator" else None
    base = comparison.config(name, seeds[0])
    if kind not in result["steps_per_second"]:
        measure = partial(speed, base, training.stage, later)
        result["steps_per_second"][kind] = on_one_core(measure)
        save(comparison.result_name, result)
    steps = result["steps_per_second"][kind] * training.share * comparison.seconds
    sizes = length(base, steps, training.stage)
    for seed in seeds:
        folder = comparison.folder(name, seed)
        if later is not None and not folder.exists():
            copytree(comparison.folder(str(training.first), seed), folder)
    return [comparison.config(name, seed, *sizes) for seed in seeds]


def best_of(data: TrajectoryDataModule, forecasts: dict[str, Predict]) -> dict[str, Any]:
    """The scores of the forecast whose draws have the least CRPS on validation trajectories."""
    tried = {
        name: measure_ensemble(data, forecast, (4,), "validation")["members"]["4"]["crps"]
        for name, forecast in forecasts.items()
    }
    chosen = min(tried, key=lambda name: tried[name])
    scores = measure_ensemble(data, forecasts[chosen])
    return {"chosen": chosen, "validation_crps": tried, **scores}


def perturbed(data: TrajectoryDataModule, simulator: Any) -> dict[str, Predict]:
    """Forecasts from perturbed initial fields, by the kind and size of perturbations."""
    std = torch.tensor(data.spec.std)

    def white(size: float, u: Tensor) -> Tensor:
        return size * std * torch.randn_like(u)

    draws: dict[str, Callable[[Tensor], Tensor]] = {
        f"white noise {size}": partial(white, size) for size in WHITE_NOISE
    }
    if data.observation is not None:
        missing = data.observation.draw_missing

        def waves(size: float, u: Tensor) -> Tensor:
            return size * missing(u)

        draws |= {f"missing waves {size}": partial(waves, size) for size in MISSING_WAVES}
    return {
        name: partial(simulator.predict, RandomStart(simulator, draw))
        for name, draw in draws.items()
    }


def drawn(simulator: Any, correct: str) -> dict[str, Predict]:
    """Draws of a simulator by their temperature."""
    return {
        f"temperature {temperature}": partial(
            simulator.predict, simulator.stepper(correct, temperature=temperature)
        )
        for temperature in TEMPERATURES
    }


def measurements(
    data: TrajectoryDataModule, comparison: Comparison, seed: int
) -> dict[str, Callable[[], dict[str, Any]]]:
    """What measures each kind of ensemble of a seed, by its name."""

    def load(name: str) -> Any:
        return ups.load(comparison.folder(name, seed), data)

    def one_forecast(name: str) -> dict[str, Any]:
        operator = load(name)
        return measure_single(data, partial(operator.predict, operator))

    def independent_operators() -> dict[str, Any]:
        members = cycle([load(name) for name in QUARTERS])
        return measure_ensemble(
            data, lambda *given: (s := next(members)).predict(s, *given), (NUM_OPERATORS,)
        )

    return {
        "one forecast": partial(one_forecast, "whole"),
        "one forecast after crps": partial(one_forecast, "crps"),
        "one forecast, continued": partial(one_forecast, "continued"),
        "perturbed inputs": lambda: best_of(data, perturbed(data, load("whole"))),
        "independent operators": independent_operators,
        "crps": lambda: best_of(data, drawn(load("crps"), "none")),
        "diffusion": lambda: best_of(data, drawn(load("diffusion"), "diffusion")),
        "consistency": lambda: best_of(data, drawn(load("consistency"), "consistency")),
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


def main(data_name: str = UNCERTAIN, seconds: str = str(TRAIN_SECONDS), *numbers: str) -> None:
    comparison, seeds = Comparison(data_name, float(seconds)), list(map(int, numbers)) or SEEDS
    about = {**comparison._asdict(), "members": max(MEMBERS)}
    result = read(comparison.result_name)
    if {key: result.get(key) for key in about} != about:
        result = {**about, "steps_per_second": {}, "seeds": {}}
    keep = partial(save, comparison.result_name, result)
    train_all(comparison, result, seeds)
    torch.set_num_threads(1)  # times are of one core, as those of the trainings are
    data = make_data(comparison.config("whole", seeds[0]))
    result["dataset"] = data.dataset
    if "solver" not in result and data.observation is not None:
        result["solver"] = solvers_ensemble(data)
        keep()
    for seed in seeds:
        found = result["seeds"].setdefault(str(seed), {})
        for name, measure in measurements(data, comparison, seed).items():
            if name not in found:
                found[name] = measure()
                keep()
    result["summary"] = summarize(result["seeds"])
    keep()
    for name, found in result["summary"].items():
        print(name, {key: found[key]["mean"] for key in SUMMARY})


if __name__ == "__main__":
    main(*sys.argv[1:])
