"""What each part of the default operator is worth: one thing changed at a time, four epochs, three seeds.

    python benchmarks/ablation.py [epochs]     writes benchmarks/results/ablation.json and prints its table; finished runs are not repeated

Each change is a Hydra sweep over the seeds; two sweeps run side by side, on a core each. A difference counts where it is larger than the
two standard deviations together.
"""

import os
import sys
from pathlib import Path
from typing import Any

from runs import SEEDS, save, side_by_side, spread

from ups import leaderboard

OUT = Path("outputs/ablation")
CHANGES: dict[str, list[str]] = {
    "default": [],
    "lambda_inv 0": ["lambda_inv=0"],
    "lambda_inv 0.1": ["lambda_inv=0.1"],
    "lambda_inv 0.5": ["lambda_inv=0.5"],
    "inverse losses in every 10th batch": ["loss.inverse_loss_frequency=10"],
    "window K 1": ["data.window=1"],
    "window K 2": ["data.window=2"],
    "window K 5": ["data.window=5"],
    "tokens by LayerNorm": ["model.architecture=variants.LayerNormUPT"],
    "tokens without a bound": ["model.limit=1e6"],
    "absolute positions": ["model.architecture=variants.PlacedUPT"],
    "32 tokens x 64": ["model.tokens=32", "model.width=64"],
    "128 tokens x 32": ["model.tokens=128", "model.width=32"],
    "no augmentation": ["data.shift=false", "data.mirror=false"],
    "mean not carried": ["model.conserve=false"],
    "windows with uniform starts": ["data.early=1"],
    "AdamW": ["stage.operator.module.optimizer=adamw"],
}


def slug(change: str) -> str:
    return change.replace(" ", "_")


def main(epochs: int) -> None:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])  # for variants.py
    common = [
        "-m",
        f"output_dir={OUT}",
        f"seed={','.join(map(str, SEEDS))}",
        f"trainer.max_epochs={epochs}",
        "stage.operator.module.threads=1",
    ]
    sweeps = [[*common, f"name={slug(change)}-e{epochs}", *settings] for change, settings in CHANGES.items()]
    list(side_by_side(sweeps))
    board = [row for row in leaderboard.read(OUT / "leaderboard.csv") if row["name"] != "baseline"]
    result: dict[str, Any] = {"epochs": epochs, "changes": {}}
    for change in CHANGES:
        rows = [row for row in board if row["name"].startswith(f"{slug(change)}-e{epochs}-")]
        result["changes"][change] = {
            "latent": spread([float(row["nrmse"]) for row in rows if row["mode"] == "latent"]),
            "physical": spread([float(row["nrmse"]) for row in rows if row["mode"] == "physical"]),
        }
    base = result["changes"]["default"]["latent"]
    print("| change | latent rollout | physical rollout | of the default's | beyond the spread |\n| --- | --- | --- | --- | --- |")
    for change, found in result["changes"].items():
        latent, physical = found["latent"], found["physical"]
        found["ratio"] = latent["mean"] / base["mean"]
        found["beyond_spread"] = abs(latent["mean"] - base["mean"]) > latent["stdev"] + base["stdev"]
        cells = [f"{cell['mean']:.4f} ± {cell['stdev']:.4f}" for cell in (latent, physical)]
        verdict = "" if change == "default" else "yes" if found["beyond_spread"] else "no"
        print(f"| {change} | {' | '.join(cells)} | {found['ratio']:.2f} | {verdict} |")
    save("ablation", result)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
