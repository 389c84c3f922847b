"""Navier-Stokes at nu = 1e-5, the Fourier neural operator's hardest set: models beside the solver.

    python benchmarks/navier_stokes.py

First the same search for every model of SIZES, one seed, judged by validation: AdamW and Muon at
four learning rates, a minute each, then the two best of them again, two minutes each. Large rates
are ahead in short trainings: so each model is then trained for the whole time at the rate that was
found and at the next lower one, one seed, and lower for as long as validation gains by it. Then the
runs of RUNS, with three seeds of weights. The whole time is what
``python -m ups.run stage=operator data=navier_stokes_1e-5`` takes: the number of epochs is by steps
a second of eager training, measured alone on the machine. Runs go side by side with a core each,
compiled where that is faster, which changes what the clock says and not what they learn. Then
benchmarks/pareto.py measures error and cost of all.

What is finished is not repeated. Writes benchmarks/results/navier_stokes_search.json and
pareto_navier_stokes.json.
"""

from pathlib import Path
from typing import Any

import pareto
from runs import SEEDS, save, side_by_side
from search import Search, find_settings

from ups.runs.stages import validation_score

# peers are as wide as is best in a short training, the FNO as published
SIZES: dict[str, list[str]] = {
    "memory_upt": [],
    "patch_stepper": [],
    "fno": ["model.modes=24", "model.hidden_channels=20"],
    "unet": ["model.hidden_channels=8"],
    "resnet": ["model.hidden_channels=16"],
    "upt": [],
}
SEARCH = Search(
    data="navier_stokes_1e-5",
    result="navier_stokes_search",
    models=SIZES,
    losses=("loss.squared=false",),
    rates=(0.0003, 0.001, 0.003, 0.009),
    rate_seconds=60,
    finals_seconds=120,
)
# each with its model and settings; the one without inverse losses gets as many steps as with them
RUNS: dict[str, tuple[str, list[str]]] = {
    "memory_upt": ("memory_upt", ["compile=true"]),
    "without_inverse_losses": (
        "memory_upt",
        ["model.name=memory-upt-without-inverse-losses", "lambda_inv=0", "compile=true"],
    ),
    "patch_stepper": ("patch_stepper", ["compile=true"]),
    "fno": ("fno", []),
    "unet": ("unet", []),
    "resnet": ("resnet", []),
    "upt": ("upt", []),
    "three_times_as_long": (
        "memory_upt",
        ["model.name=memory-upt-three-times-as-long", "compile=true"],
    ),
}
DEFAULT_EPOCHS = 22
SCORES = "full_length_nrmse"
TIMES_AS_LONG = {"three_times_as_long": 3}


def run_name(name: str, settings: list[str], seed: int) -> str:
    optimizer, rate = (setting.partition("=")[2] for setting in settings[-2:])
    return f"navier_stokes_{name}-{optimizer}-{rate}-{seed}"


def num_epochs(name: str, table: dict[str, Any]) -> int:
    """As many as take the default's time, or a multiple of it, by training steps a second."""
    fast, default = (table[m]["steps_per_second"] for m in (RUNS[name][0], "memory_upt"))
    return max(1, round(TIMES_AS_LONG.get(name, 1) * DEFAULT_EPOCHS * fast / default))


def command(name: str, settings: list[str], seed: int, table: dict[str, Any]) -> list[str]:
    model, own = RUNS[name]
    return [
        "stage=operator",
        f"data={SEARCH.data}",
        f"model={model}",
        *SIZES[model],
        *settings,
        *own,
        f"trainer.max_epochs={num_epochs(name, table)}",
        f"seed={seed}",
        f"name={run_name(name, settings, seed)}",
        "preflight=false",
        "stage.evaluate=[]",
        "stage.operator.module.num_cpu_shards=1",
    ]


def at_next_lower_rate(settings: list[str]) -> list[str] | None:
    """The same settings at the next rate of the search; None if there is none."""
    key, _, rate = settings[-1].partition("=")
    lower = [each for each in SEARCH.rates if each < float(rate)]
    return [*settings[:-1], f"{key}={max(lower)}"] if lower else None


def best(found: dict[str, Any]) -> list[str]:
    """The settings of a model with the least error at full length, or else those of the search."""
    scores = found.setdefault(SCORES, {})
    return min(scores, key=scores.get).split() if scores else found["settings"]


def settle_rates(table: dict[str, Any]) -> None:
    """Lower each model's rate for as long as its validation error at full length gains by it."""
    while left := [
        (model, settings)
        for model, found in table.items()
        for settings in (best(found), at_next_lower_rate(best(found)))
        if settings and " ".join(settings) not in found[SCORES]
    ]:
        commands = [command(model, settings, 0, table) for model, settings in left]
        for (model, settings), _ in zip(left, side_by_side(commands), strict=True):
            score = validation_score(Path("outputs") / run_name(model, settings, 0))
            table[model][SCORES][" ".join(settings)] = score
            save(SEARCH.result, {"models": table})
    for found in table.values():
        found["settings"] = best(found)
    save(SEARCH.result, {"models": table})


def main() -> None:
    table = find_settings(SEARCH)
    settle_rates(table)
    chosen = {name: table[model]["settings"] for name, (model, _) in RUNS.items()}
    commands = [
        command(name, settings, seed, table) for seed in SEEDS for name, settings in chosen.items()
    ]
    for _ in side_by_side(commands):
        pass
    runs = [run_name(name, settings, seed) for name, settings in chosen.items() for seed in SEEDS]
    pareto.main([Path("outputs") / run for run in runs])


if __name__ == "__main__":
    main()
