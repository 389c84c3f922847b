"""Navier-Stokes at nu = 1e-5, the Fourier neural operator's hardest set: models beside the solver.

    python benchmarks/navier_stokes.py

Trains every model of MODELS with three seeds of weights for as long as
``python -m ups.run stage=operator data=navier_stokes_1e-5`` takes, and the default for three times
that too: the number of epochs is by steps a second of eager training, measured alone on the
machine. Optimizer and rate are those of each model's file in conf/model, which the search of
benchmarks/accuracy.py chose on Burgers; nothing is tuned again. Runs go side by side with a core
each, compiled where that is faster, which changes what the clock says and not what they learn. Then
benchmarks/pareto.py measures error and cost of all.

What is finished in outputs is not repeated. Writes benchmarks/results/navier_stokes_speed.json and
pareto_navier_stokes.json.
"""

from pathlib import Path

import pareto
from accuracy import CONF, speed
from hydra import compose, initialize_config_dir
from runs import SEEDS, read, save, side_by_side

DATA = "data=navier_stokes_1e-5"
# by the names of their runs; the one without inverse losses gets as many steps as with them; peers
# are as wide as is best in a short training, the FNO as published; the ResNet and the UPT of the
# paper don't learn with their settings (docs/notes/model.md)
MODELS = {
    "memory_upt": ["model=memory_upt", "compile=true"],
    "three_times_as_long": [
        "model=memory_upt",
        "model.name=memory-upt-three-times-as-long",
        "compile=true",
    ],
    "without_inverse_losses": [
        "model=memory_upt",
        "model.name=memory-upt-without-inverse-losses",
        "lambda_inv=0",
        "compile=true",
    ],
    "patch_stepper": ["model=patch_stepper", "compile=true"],
    "fno": ["model=fno", "model.modes=24", "model.hidden_channels=20"],
    "unet": ["model=unet", "model.hidden_channels=8"],
}
DEFAULT_EPOCHS = 22
TIMES_AS_LONG = {"three_times_as_long": 3}


def model_of(settings: list[str]) -> str:
    return settings[0].removeprefix("model=")


def speeds() -> dict[str, float]:
    """Training steps a second of each model, with its usual losses."""
    found: dict[str, float] = read("navier_stokes_speed").get("steps_per_second", {})
    for settings in MODELS.values():
        model = model_of(settings)
        if model not in found:
            sizes = [each for each in settings if each.startswith("model")]
            words = [DATA, *sizes, "data.cache_dir=outputs/data"]
            with initialize_config_dir(CONF, version_base="1.3"):
                found[model] = speed(compose("config", words))
            save("navier_stokes_speed", {"steps_per_second": found})
    return found


def run_name(name: str, seed: int) -> str:
    return f"navier_stokes_{name}-{seed}"


def num_epochs(name: str, fast: dict[str, float]) -> int:
    """As many as take the default's time, or a multiple of it, by training steps a second."""
    ratio = fast[model_of(MODELS[name])] / fast["memory_upt"]
    return max(1, round(TIMES_AS_LONG.get(name, 1) * DEFAULT_EPOCHS * ratio))


def command(name: str, seed: int, epochs: int) -> list[str]:
    return [
        "stage=operator",
        DATA,
        *MODELS[name],
        f"trainer.max_epochs={epochs}",
        f"seed={seed}",
        f"name={run_name(name, seed)}",
        "preflight=false",
        "stage.evaluate=[]",
        "stage.operator.module.num_cpu_shards=1",
    ]


def main() -> None:
    fast = speeds()
    commands = [command(name, seed, num_epochs(name, fast)) for seed in SEEDS for name in MODELS]
    for _ in side_by_side(commands):
        pass
    pareto.main([Path("outputs") / run_name(name, seed) for name in MODELS for seed in SEEDS])


if __name__ == "__main__":
    main()
