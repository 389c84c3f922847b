"""Navier-Stokes at nu = 1e-5, the Fourier neural operator's hardest set: models beside the solver.

    python benchmarks/navier_stokes.py

First the same search for every model of SIZES, one seed, judged by validation: AdamW and Muon at
four learning rates, a minute each, then the two best of them again, two minutes each, as large
rates are ahead in a short training. Then the runs of RUNS, with three seeds of weights, for as long
as ``python -m ups.run stage=operator data=navier_stokes_1e-5`` takes: the number of epochs is by
steps a second of eager training, measured alone on the machine. Runs go side by side with a core
each, compiled where that is faster, which changes what the clock says and not what they learn. Then
benchmarks/pareto.py measures error and cost of all.

What is finished is not repeated. Writes benchmarks/results/navier_stokes_search.json and
pareto_navier_stokes.json.
"""

from pathlib import Path
from typing import Any

import pareto
from accuracy import Study, find_settings
from runs import SEEDS, side_by_side

# peers are as wide as is best in a short training, the FNO as published
SIZES: dict[str, list[str]] = {
    "memory_upt": [],
    "patch_stepper": [],
    "fno": ["model.modes=24", "model.hidden_channels=20"],
    "unet": ["model.hidden_channels=8"],
    "resnet": ["model.hidden_channels=16"],
    "upt": [],
}
STUDY = Study(
    data="navier_stokes_1e-5",
    result="navier_stokes_search",
    models=SIZES,
    losses=("loss.squared=false",),
    rates=(0.0003, 0.001, 0.003, 0.009),
    rate_seconds=60,
    finals_seconds=120,
    train_seconds={},
    seeds_of=("seed",),
    more_seeds=(),
    may_win=1.0,
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
TIMES_AS_LONG = {"three_times_as_long": 3}


def run_name(name: str, seed: int) -> str:
    return f"navier_stokes_{name}-{seed}"


def num_epochs(name: str, table: dict[str, Any]) -> int:
    """As many as take the default's time, or a multiple of it, by training steps a second."""
    fast, default = (table[m]["steps_per_second"] for m in (RUNS[name][0], "memory_upt"))
    return max(1, round(TIMES_AS_LONG.get(name, 1) * DEFAULT_EPOCHS * fast / default))


def command(name: str, seed: int, table: dict[str, Any]) -> list[str]:
    model, settings = RUNS[name]
    return [
        "stage=operator",
        f"data={STUDY.data}",
        f"model={model}",
        *SIZES[model],
        *table[model]["settings"],
        *settings,
        f"trainer.max_epochs={num_epochs(name, table)}",
        f"seed={seed}",
        f"name={run_name(name, seed)}",
        "preflight=false",
        "stage.evaluate=[]",
        "stage.operator.module.num_cpu_shards=1",
    ]


def main() -> None:
    table = find_settings(STUDY)
    commands = [command(name, seed, table) for seed in SEEDS for name in RUNS]
    for _ in side_by_side(commands):
        pass
    pareto.main([Path("outputs") / run_name(name, seed) for name in RUNS for seed in SEEDS])


if __name__ == "__main__":
    main()
