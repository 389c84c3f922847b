"""Kuramoto-Sivashinsky in PDE-Refiner's setting: which training stays close to the truth longest?

    python benchmarks/kuramoto_sivashinsky.py [SECONDS [SEED ...]]

Every way of training gets the same time on one core, 600 SECONDS by default, validation not
counted; seeds 0, 1 and 2. The control is an operator trained on windows of one step. Beside it are
longer windows, squared errors, and two ways that spend the second half on a finished operator of
the control's kind: fair CRPS (``loss=crps``) and the diffusion stage. The data of all seeds are the
same. Judged by the time for which the correlation with the truth stays above 0.8, 0.9 and 0.95, the
mean over the test trajectories; validation chooses the epoch by the first of them, of fair CRPS by
the CRPS.

What is finished in outputs/kuramoto_sivashinsky is not repeated. Writes
benchmarks/results/kuramoto_sivashinsky.json.
"""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from runs import SEEDS, on_one_core, read, save, spread, train_side_by_side
from search import length, speed
from torch import Tensor

import ups
from ups.core.stepper import predict
from ups.datamodules import TrajectoryDataModule
from ups.evaluation.baselines import coarse_solvers
from ups.metrics import PhysicsChecks
from ups.pipeline import make_data
from ups.run import CONF
from ups.simulation.simulator import Simulator

RESULT = "kuramoto_sivashinsky"
OUT = Path("outputs") / RESULT
TRAIN_SECONDS = 600
MEMBERS = 8  # of the mean of draws
SOLVER_POINTS = (64, 128)
FIRST_HALF = "windows of 1 step, half the time"
WAYS: dict[str, list[str]] = {
    "windows of 1 step": ["data.unroll_steps=1"],
    "windows of 3 steps": ["data.unroll_steps=3"],
    "windows of 3 steps, squared errors": ["data.unroll_steps=3", "loss.squared=true"],
    FIRST_HALF: ["data.unroll_steps=1"],
}
# what follows the first half
LATER: dict[str, list[str]] = {
    "then fair CRPS": [
        "loss=crps",
        "data.unroll_steps=2",
        "stage.operator.module.shared_noise=false",
        "stage.operator.module.fairness=1",
    ],
    # without its cache the stage does nothing before the steps that are counted
    "then diffusion": ["stage=diffusion", "stage.diffusion.module.latent_cache_dtype=null"],
}


def run_name(way: str, seconds: float, seed: int) -> str:
    return f"{way.replace(',', '').replace(' ', '_')}-{seconds:g}-{seed}"


def config(way: str, seconds: float, seed: int, *settings: str) -> Any:
    """The training of a way; diffusion goes on in the folder of its operator."""
    first = run_name(FIRST_HALF, seconds, seed)
    name = first if "stage=diffusion" in settings else run_name(way, seconds, seed)
    start = [f"init_from={OUT / first}"] if "loss=crps" in settings else []
    fixed = [f"data={RESULT}", f"output_dir={OUT}", f"name={name}", f"seed={seed}", *start]
    fixed += ["data.cache_dir=outputs/data", "preflight=false"]
    shards = ("operator", "diffusion")
    fixed += [f"stage.{stage}.module.num_cpu_shards=1" for stage in shards]
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", [*fixed, *settings])


def train_all(result: dict[str, Any], way: str, settings: list[str], seeds: Sequence[int]) -> None:
    """Train one way for its time, and measure it."""
    seconds = result["seconds"]
    stage = "diffusion" if "stage=diffusion" in settings else "operator"
    found = result["ways"].setdefault(way, {"runs": {}})
    configs = [config(way, seconds, seed, *settings) for seed in seeds]
    if "steps_per_second" not in found:
        before = OUT / configs[0].name if stage == "diffusion" else None
        found["steps_per_second"] = on_one_core(partial(speed, configs[0], stage, before))
    share = 0.5 if way == FIRST_HALF or way in LATER else 1.0
    sizes = length(configs[0], found["steps_per_second"] * share * seconds, stage)
    left = [seed for seed in seeds if str(seed) not in found["runs"]]
    configs = [config(way, seconds, seed, *settings, *sizes) for seed in left]
    for seed, cfg, _ in zip(left, configs, train_side_by_side(configs), strict=True):
        data = make_data(cfg)
        found["runs"][str(seed)] = measure(ups.load(OUT / cfg.name, data), data, stage)
        print(way, seed, found["runs"][str(seed)], flush=True)
        summarize(result)


def forecasts(simulator: Simulator, stage: str) -> dict[str, Callable[..., Tensor]]:
    """The ways to forecast with what a stage has trained: (u0, steps, parameters) -> frames."""

    def by(*options: Any, **more: Any) -> Callable[..., Tensor]:
        return partial(simulator.predict, simulator.stepper(*options, **more))

    if simulator.noise is not None:
        draw = by(temperature=1.0)
        return {
            "a forecast without noise": by(),
            "a draw": draw,
            f"the mean of {MEMBERS} draws": lambda *given: (
                sum((draw(*given) for _ in range(MEMBERS)), torch.zeros(())) / MEMBERS
            ),
        }
    if stage == "diffusion":
        return {
            "a draw": by("diffusion"),
            "the corrector's mean at every step": by("diffusion", temperature=0.0),
        }
    physical = partial(simulator.predict, simulator.stepper(), reencode=True)
    return {"latent rollout": by(), "physical rollout": physical}


def measure(simulator: Simulator, data: TrajectoryDataModule, stage: str) -> dict[str, Any]:
    ways = forecasts(simulator, stage)
    return {name: score(forecast, data) for name, forecast in ways.items()}


def score(forecast: Callable[..., Tensor], data: TrajectoryDataModule) -> dict[str, float]:
    """Correlation times on the test split, and the time of a trajectory.

    ``published`` is PDE-Refiner's definition: the time at which the correlation, averaged over
    trajectories first, falls below 0.8.
    """
    u = data.values["test"]
    torch.manual_seed(0)
    started = time.perf_counter()
    pred = forecast(u[:, 0], u.shape[1] - 1, data.parameters["test"])
    seconds = time.perf_counter() - started
    target = u[:, 1:]
    checks = PhysicsChecks(None, data.spec)
    checks.update(u[:, 0], pred, target)
    times = {name: t for name, t in checks.compute().items() if name.startswith("correlation")}
    axis = data.spec.space_axes[0]
    centered = [x - x.mean(axis, keepdim=True) for x in (pred, target)]
    correlation = torch.cosine_similarity(centered[0], centered[1], axis).mean((0, -1))
    published = (correlation > 0.8).cumprod(0).sum().item() * data.spec.dt
    return {**times, "published": published, "milliseconds": 1e3 * seconds / len(u)}


def measure_solvers(result: dict[str, Any], data: TrajectoryDataModule) -> None:
    solvers = coarse_solvers(data.equation, data.spec, SOLVER_POINTS)
    result["solvers"] = {each.name: score(partial(predict, each), data) for each in solvers}
    save(RESULT, result)


def summarize(result: dict[str, Any]) -> None:
    """Add mean and spread over seeds to each way and forecast, of the runs so far."""
    for found in result["ways"].values():
        rows = list(found["runs"].values())
        if not rows:
            continue
        found["summary"] = {
            name: {key: spread([row[name][key] for row in rows]) for key in scores}
            for name, scores in rows[0].items()
        }
    save(RESULT, result)


def main(seconds: float = TRAIN_SECONDS, *seeds: float) -> None:
    result = read(RESULT)
    if result.get("seconds") != seconds:
        result = {"seconds": seconds, "ways": {}}
    if "solvers" not in result:
        measure_solvers(result, make_data(config(FIRST_HALF, seconds, 0)))
    for way, settings in {**WAYS, **LATER}.items():
        train_all(result, way, settings, [int(seed) for seed in seeds] or SEEDS)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
