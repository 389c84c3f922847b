"""Every model at equal training time: five minutes each on the whole machine, three seeds, the same data and code.

    python benchmarks/accuracy.py [MODEL ...]        writes benchmarks/results/accuracy.json

Each model gets the same search first: three learning rates, its own and a third and three times that, two minutes each, one seed, judged by
validation. An epoch's windows are chosen so that its steps, at the speed that the model shows in a first run, fill the time in about ten
epochs. What is finished is not repeated: the JSON is written after every run.
"""

import re
import sys
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from runs import SEEDS, own_rows, read, save, spread, training_seconds, ups_runs

from ups.run import CONF
from ups.stages import validation_score

OUT = Path("outputs/accuracy")
MODELS = ("small", "resnet", "unet", "fno", "upt_absolute")
SEARCH_SECONDS, TRAIN_SECONDS, EPOCHS = 120, 300, 10
FACTORS = (1 / 3, 1.0, 3.0)


def train(model: str, name: str, *settings: str) -> Path:
    ups_runs([f"output_dir={OUT}", f"model={model}", f"name={name}", *settings])
    return OUT / name


def length(cfg: Any, speed: float, seconds: float) -> list[str]:
    """Settings of a run of about ``seconds`` at ``speed`` steps a second."""
    windows = speed * seconds * cfg.data.batch_size / cfg.data.train  # a trajectory, in all
    epochs, each = min(((e, max(1, round(windows / e))) for e in range(EPOCHS - 3, EPOCHS + 4)), key=lambda p: abs(p[0] * p[1] - windows))
    return [f"trainer.max_epochs={epochs}", f"data.windows_per_trajectory={each}"]


def measure(model: str, found: dict[str, Any], result: dict[str, Any]) -> None:
    """Fill ``found`` with a model's speed, learning rate and seeds, as far as it doesn't hold them yet."""
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", [f"model={model}"])
    if "steps_per_second" not in found:
        few = max(1, round(60 * cfg.data.batch_size / cfg.data.train))
        folder = train(model, f"{model}-speed", "trainer.max_epochs=3", f"data.windows_per_trajectory={few}", "overwrite=true")
        speeds = re.findall(r"([\d.]+) steps/s", (folder / "run.log").read_text())
        found["steps_per_second"] = float(speeds[-1])
        save("accuracy", result)
    speed = found["steps_per_second"]
    for factor in FACTORS:
        lr = f"{cfg.stage.operator.module.lr * factor:.3g}"
        if lr not in found.setdefault("validation_nrmse", {}):
            folder = train(model, f"{model}-lr{lr}", f"stage.operator.module.lr={lr}", *length(cfg, speed, SEARCH_SECONDS))
            found["validation_nrmse"][lr] = validation_score(folder)
            save("accuracy", result)
    found["lr"] = min(found["validation_nrmse"], key=found["validation_nrmse"].get)
    for seed in map(str, SEEDS):
        if seed not in found.setdefault("runs", {}):
            settings = [f"seed={seed}", f"stage.operator.module.lr={found['lr']}", *length(cfg, speed, TRAIN_SECONDS)]
            folder = train(model, f"{model}-{seed}", *settings)
            rows = {row["mode"]: row for row in own_rows(folder, "eval_operator")}
            found["runs"][seed] = {"training_seconds": training_seconds(folder), "settings": settings, "rows": rows}
            save("accuracy", result)


def main(models: list[str]) -> None:
    result = read("accuracy")
    for model in models:
        measure(model, result.setdefault("models", {}).setdefault(model, {}), result)
    for model, found in result["models"].items():
        rows = [run["rows"]["latent"] for run in found["runs"].values()]
        found |= {key: spread([row[key] for row in rows]) for key in ("nrmse", "one_step_nrmse", "seconds_per_trajectory")}
        found["last_frame"] = spread([row["nrmse_over_time"][-1] for row in rows])
        found["training_seconds"] = spread([run["training_seconds"] for run in found["runs"].values()])
        print(model, {key: round(found[key]["mean"], 4) for key in ("nrmse", "last_frame", "one_step_nrmse")})
    save("accuracy", result)


if __name__ == "__main__":
    main(sys.argv[1:] or list(MODELS))
