"""Every model at equal training time: five minutes each on the whole machine, three seeds, the same
data and code.

    python benchmarks/accuracy.py [MODEL ...]        writes benchmarks/results/accuracy.json

First each model's training speed is measured, alone on the machine; its time is then the number of
steps that fit, validation not counted. Each gets the same search: three learning rates, its own and
a third and three times that, two minutes each, one seed, judged by validation. As the steps are
fixed by then, the runs go two at a time, with a core each: that changes what the clock says, not
what they learn. What is finished is not repeated: the JSON is written after every run.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from runs import SEEDS, Measured, own_rows, read, save, side_by_side, spread

from ups.pipeline import train
from ups.run import CONF
from ups.runs.stages import validation_score

OUT = Path("outputs/accuracy")
MODELS = ("mixer_small", "resnet", "unet", "fno", "upt")
SEARCH_SECONDS, TRAIN_SECONDS, EPOCHS = 120, 300, 10
FACTORS = (1 / 3, 1.0, 3.0)
LR = "stage.operator.module.lr"


def command(model: str, name: str, *settings: str) -> list[str]:
    return [f"output_dir={OUT}", f"model={model}", f"name={model}-{name}", *settings]


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
            train(cfg, "operator", Path(folder), CSVLogger(folder))
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


def main(models: list[str]) -> None:
    result = read("accuracy")
    table = result.setdefault("models", {})
    with initialize_config_dir(CONF, version_base="1.3"):
        configs = {model: compose("config", [f"model={model}"]) for model in models}
    for model in models:
        if model not in table:
            table[model] = {
                "steps_per_second": speed(configs[model]),
                "validation_nrmse": {},
                "runs": {},
            }
            save("accuracy", result)
    speeds = {model: table[model]["steps_per_second"] for model in models}

    rates = {
        model: [f"{cfg.stage.operator.module.lr * factor:.3g}" for factor in FACTORS]
        for model, cfg in configs.items()
    }
    left = [
        (model, lr)
        for model in models
        for lr in rates[model]
        if lr not in table[model]["validation_nrmse"]
    ]
    commands = [
        command(m, f"lr{lr}", f"{LR}={lr}", *length(configs[m], speeds[m] * SEARCH_SECONDS))
        for m, lr in left
    ]
    for (model, lr), _ in zip(left, side_by_side(commands), strict=True):
        table[model]["validation_nrmse"][lr] = validation_score(OUT / f"{model}-lr{lr}")
        save("accuracy", result)

    for model in models:
        table[model]["lr"] = min(
            table[model]["validation_nrmse"], key=table[model]["validation_nrmse"].get
        )
        table[model]["steps"] = round(speeds[model] * TRAIN_SECONDS)
        table[model]["settings"] = [
            f"{LR}={table[model]['lr']}",
            *length(configs[model], speeds[model] * TRAIN_SECONDS),
        ]
    runs = [
        (model, str(seed))
        for model in models
        for seed in SEEDS
        if str(seed) not in table[model]["runs"]
    ]
    commands = [
        command(model, seed, f"seed={seed}", *table[model]["settings"]) for model, seed in runs
    ]
    for (model, seed), _ in zip(runs, side_by_side(commands), strict=True):
        folder = OUT / f"{model}-{seed}"
        rows = {row.mode: row.to_dict() for row in own_rows(folder, "eval_operator")}
        table[model]["runs"][seed] = {"rows": rows}
        save("accuracy", result)

    for model, found in table.items():
        rows = [run["rows"]["latent"] for run in found["runs"].values()]
        if not rows:
            continue  # of an earlier call that was stopped
        found |= {key: spread([row[key] for row in rows]) for key in ("nrmse", "one_step_nrmse")}
        found["last_frame"] = spread([row["nrmse_over_time"][-1] for row in rows])
        print(
            model,
            {
                key: round(found[key]["mean"], 4)
                for key in ("nrmse", "last_frame", "one_step_nrmse")
            },
        )
    save("accuracy", result)


if __name__ == "__main__":
    main(sys.argv[1:] or list(MODELS))
