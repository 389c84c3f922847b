"""Every model at equal training time: five and ten minutes on the whole machine, the same data and
code.

    python benchmarks/accuracy.py [MODEL ...]        writes benchmarks/results/equal_time.json

First each model's training speed is measured, alone on the machine; its time is then the number of
steps that fit, validation not counted. Each gets the same search, one seed, judged by validation:
the squared and the unsquared loss, two minutes each, then, with the better one, AdamW and Muon at
three learning rates, a minute each. Runs have three seeds, those of the two best models five. As
the steps are fixed by then, the runs go side by side, with a core each, on a GPU if there is one:
that changes what the clock says, not what they learn. The seed is of data and weights. What is
finished is not repeated: the JSON is written after every run, and the same command goes on, on
another machine too.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from runs import SEEDS, Measured, own_rows, read, save, side_by_side, spread

from ups.callbacks.graceful_stop import TimeLimit
from ups.pipeline import train
from ups.run import CONF
from ups.runs.stages import validation_score

OUT = Path("outputs/accuracy")
MODELS = ("memory_upt", "mixer_small", "patch_stepper", "resnet", "unet", "fno", "upt")
EPOCHS = 10
TRAIN_SECONDS = {"5 minutes": 300, "10 minutes": 600}
RATES = {"adamw": (0.001, 0.003, 0.009), "muon": (0.001, 0.003, 0.009)}
LOSSES = ("true", "false")
MORE_SEEDS = (3, 4)  # of the two models that the search found best

KEYS = ("nrmse", "vrmse", "one_step_nrmse")
# the settings to try for each model
Candidates = dict[str, list[list[str]]]


def command(model: str, name: str, *settings: str) -> list[str]:
    return [f"output_dir={OUT}", f"model={model}", f"name={name}", "preflight=false", *settings]


def run_name(model: str, length: str, seed: str) -> str:
    return f"{model}-{length.partition(' ')[0]}-{seed}"


def train_seconds(run: Path) -> float:
    """The time on two cores that gave a run its number of steps."""
    minutes = run.name.split("-")[-2]
    return TRAIN_SECONDS[f"{minutes} minutes"]


def speed(cfg: Any) -> float:
    """Training steps a second, sustained: counted for half a minute, after a quarter of one in
    which a cool processor is faster.
    """
    with TemporaryDirectory() as folder:
        cfg = OmegaConf.merge(
            cfg,
            {
                "data": {"cache_dir": "outputs/data", "samples_per_trajectory": 1000},
                "output_dir": folder,
            },
        )
        OmegaConf.update(
            cfg,
            "callbacks.speed",
            {"_target_": "runs.Speed", "warm_up": 15, "seconds": 30},
            force_add=True,
        )
        try:
            train(cfg, "operator", Path(folder), CSVLogger(folder), 1, TimeLimit())
        except Measured as measured:
            return measured.steps_per_second
    raise RuntimeError("the training was over before its speed was measured")


def length(cfg: Any, steps: float) -> list[str]:
    """Settings of a run of about so many steps, in about ten epochs."""
    windows = steps * cfg.data.batch_size / cfg.data.num_train  # a trajectory, in all
    epochs, each = min(
        ((e, max(1, round(windows / e))) for e in range(EPOCHS - 3, EPOCHS + 4)),
        key=lambda p: abs(p[0] * p[1] - windows),
    )
    return [
        f"trainer.max_epochs={epochs}",
        f"data.samples_per_trajectory={each}",
        "stage.operator.module.num_cpu_shards=1",
    ]


def trial(model: str, settings: list[str]) -> str:
    """The name of a trial's run."""
    values = "-".join(setting.rpartition("=")[2] for setting in settings)
    return f"{model}-search-{values}"


def search(
    table: dict[str, Any], configs: dict[str, Any], candidates: Candidates, seconds: float
) -> None:
    """Try settings for each model, and note the validation error of each."""
    left = [
        (model, settings)
        for model, each in candidates.items()
        for settings in each
        if " ".join(settings) not in table[model]["validation_nrmse"]
    ]
    commands = [
        command(
            model,
            trial(model, settings),
            *settings,
            *length(configs[model], table[model]["steps_per_second"] * seconds),
        )
        for model, settings in left
    ]
    for (model, settings), _ in zip(left, side_by_side(commands), strict=True):
        score = validation_score(OUT / trial(model, settings))
        table[model]["validation_nrmse"][" ".join(settings)] = score
        save("equal_time", {"models": table})


def best(found: dict[str, Any], candidates: list[list[str]]) -> list[str]:
    return min(candidates, key=lambda settings: found["validation_nrmse"][" ".join(settings)])


def two_best(table: dict[str, Any]) -> list[str]:
    """By the lowest validation error in the search."""
    return sorted(table, key=lambda model: min(table[model]["validation_nrmse"].values()))[:2]


def main(models: list[str]) -> None:
    table = read("equal_time").setdefault("models", {})
    with initialize_config_dir(CONF, version_base="1.3"):
        configs = {model: compose("config", [f"model={model}"]) for model in models}
    for model in models:
        if model not in table:
            table[model] = {
                "steps_per_second": speed(configs[model]),
                "validation_nrmse": {},
                "runs": {name: {} for name in TRAIN_SECONDS},
            }
            save("equal_time", {"models": table})
    losses = {model: [[f"loss.squared={value}"] for value in LOSSES] for model in models}
    search(table, configs, losses, seconds=120)
    rates = {
        model: [
            [
                *best(table[model], losses[model]),
                f"stage.operator.module.optimizer={optimizer}",
                f"stage.operator.module.lr={lr}",
            ]
            for optimizer, each in RATES.items()
            for lr in each
        ]
        for model in models
    }
    search(table, configs, rates, seconds=60)
    for model in models:
        table[model]["settings"] = best(table[model], rates[model])

    runs = [
        (model, name, str(seed))
        for name in TRAIN_SECONDS
        for model in models
        for seed in (*SEEDS, *(MORE_SEEDS if model in two_best(table) else ()))
        if str(seed) not in table[model]["runs"][name]
    ]
    commands = [
        command(
            model,
            run_name(model, name, seed),
            *(f"seed={seed}", f"data.seed={seed}"),
            *table[model]["settings"],
            *length(configs[model], table[model]["steps_per_second"] * TRAIN_SECONDS[name]),
        )
        for model, name, seed in runs
    ]
    for (model, name, seed), _ in zip(runs, side_by_side(commands), strict=True):
        folder = OUT / run_name(model, name, seed)
        rows = {row.mode: row.to_dict() for row in own_rows(folder, "eval_operator")}
        table[model]["runs"][name][seed] = {"rows": rows}
        save("equal_time", {"models": table})
    report(table)
    save("equal_time", {"models": table})


def report(table: dict[str, Any]) -> None:
    """Add mean and spread over seeds to each model's runs, and print them."""
    for model, found in table.items():
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
            print(model, name, {mode: each["nrmse"]["mean"] for mode, each in summary.items()})


if __name__ == "__main__":
    main(sys.argv[1:] or list(MODELS))
