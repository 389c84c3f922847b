"""Navier-Stokes at nu = 1e-5, the Fourier neural operator's hardest set: models beside the solver.

    python benchmarks/navier_stokes.py

Trains every model of MODELS with three seeds of weights for as long as
``python -m ups.run stage=operator data=navier_stokes_1e-5`` takes: the number of epochs is by steps
a second of eager training, measured alone on the machine. Optimizer and rate are those of each
model's file in conf/model, which the search of benchmarks/accuracy.py chose on Burgers; nothing is
tuned again. Runs go side by side with a core each, compiled where that is faster, which changes
what the clock says and not what they learn. Then benchmarks/pareto.py measures error and cost of
all.

What is finished in outputs is not repeated. Writes benchmarks/results/navier_stokes_speed.json and
pareto_navier_stokes.json.
"""

from pathlib import Path

import pareto
from accuracy import CONF, speed
from hydra import compose, initialize_config_dir
from runs import SEEDS, read, save, side_by_side

DATA = "data=navier_stokes_1e-5"
# peers as wide as is best in a short training, the FNO as published
MODELS = {
    "memory_upt": ["compile=true"],
    "patch_stepper": ["compile=true"],
    "fno": ["model.modes=24", "model.hidden_channels=20"],
    "unet": ["model.hidden_channels=8"],
    "resnet": ["model.hidden_channels=16"],
    "upt": [],
}
DEFAULT_EPOCHS = 22


def speeds() -> dict[str, float]:
    """Training steps a second of each model."""
    found: dict[str, float] = read("navier_stokes_speed").get("steps_per_second", {})
    for model, settings in MODELS.items():
        if model not in found:
            eager = [each for each in settings if not each.startswith("compile")]
            words = [DATA, f"model={model}", *eager, "data.cache_dir=outputs/data"]
            with initialize_config_dir(CONF, version_base="1.3"):
                found[model] = speed(compose("config", words))
            save("navier_stokes_speed", {"steps_per_second": found})
    return found


def run_name(model: str, seed: int) -> str:
    return f"navier_stokes_{model}-{seed}"


def command(model: str, seed: int, epochs: int) -> list[str]:
    return [
        "stage=operator",
        DATA,
        f"model={model}",
        *MODELS[model],
        f"trainer.max_epochs={epochs}",
        f"seed={seed}",
        f"name={run_name(model, seed)}",
        "preflight=false",
        "stage.evaluate=[]",
        "stage.operator.module.num_cpu_shards=1",
    ]


def main() -> None:
    fast = speeds()
    epochs = {
        model: max(1, round(DEFAULT_EPOCHS * fast[model] / fast["memory_upt"])) for model in MODELS
    }
    commands = [command(model, seed, epochs[model]) for seed in SEEDS for model in MODELS]
    for _ in side_by_side(commands):
        pass
    pareto.main([Path("outputs") / run_name(model, seed) for model in MODELS for seed in SEEDS])


if __name__ == "__main__":
    main()
