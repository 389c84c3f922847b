"""What each part of the default operator is worth: one thing changed, three epochs, three seeds.

    python benchmarks/ablation.py [epochs]

It writes benchmarks/results/ablation.json, one change at a time. Results that the file holds are
not repeated.

Each change is a Hydra sweep over the seeds; two sweeps run side by side, on a core each. A
difference counts where it is larger than the two standard deviations together.
"""

import os
import sys
from pathlib import Path
from typing import Any

from runs import SEEDS, read, save, side_by_side, spread

from ups.evaluation import leaderboard

OUT = Path("outputs/ablation")
CHANGES: dict[str, list[str]] = {
    "default": [],
    "lambda_inv 0": ["lambda_inv=0"],
    "tokens by LayerNorm": ["model.architecture=variants.LayerNormUPT"],
    "absolute positions": ["model.architecture=variants.PlacedUPT"],
    "window K 1": ["data.unroll_steps=1"],
    "inverse losses in every 10th batch": ["loss.inverse_loss_frequency=10"],
    "no augmentation": ["data.augmentation.translate=false", "data.augmentation.reflect=false"],
    "32 tokens x 64": ["model.num_tokens=32", "model.hidden_dim=64"],
    "128 tokens x 32": ["model.num_tokens=128", "model.hidden_dim=32"],
    "window K 5": ["data.unroll_steps=5"],
    "window K 2": ["data.unroll_steps=2"],
    "lambda_inv 0.1": ["lambda_inv=0.1"],
    "lambda_inv 0.5": ["lambda_inv=0.5"],
    "tokens without a bound": ["model.latent_rms_limit=1e6"],
    "mean not carried": ["model.conserve_mean=false"],
    "windows with uniform starts": ["data.start_time_bias=1"],
    "AdamW": ["stage.operator.module.optimizer=adamw"],
}


def slug(change: str) -> str:
    return change.replace(" ", "_")


def main(epochs: int) -> None:
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    )  # for variants.py
    common = [
        "-m",
        f"output_dir={OUT}",
        f"seed={','.join(map(str, SEEDS))}",
        f"trainer.max_epochs={epochs}",
        "stage.operator.module.num_cpu_shards=1",
        "preflight=false",
    ]
    result: dict[str, Any] = read("ablation")
    if result.get("epochs") != epochs:
        result = {"epochs": epochs, "changes": {}}
    left = [change for change in CHANGES if change not in result["changes"]]
    sweeps = [[*common, f"name={slug(change)}-e{epochs}", *CHANGES[change]] for change in left]
    for change, _ in zip(left, side_by_side(sweeps), strict=True):
        board = leaderboard.read(OUT / "leaderboard.csv")
        rows = [
            row
            for row in board
            if row["name"] != "baseline" and row["name"].startswith(f"{slug(change)}-e{epochs}-")
        ]
        found = {
            mode: spread(
                [
                    float(row["nrmse"])
                    for row in rows
                    if row["mode"] == mode and row["correct"] == "none"
                ]
            )
            for mode in ("latent", "physical")
        }
        result["changes"][change] = found
        base = result["changes"]["default"]["latent"]
        found["ratio"] = found["latent"]["mean"] / base["mean"]
        found["beyond_spread"] = (
            abs(found["latent"]["mean"] - base["mean"]) > found["latent"]["stdev"] + base["stdev"]
        )
        print(
            f"{change}: {found['latent']['mean']:.4f} +- {found['latent']['stdev']:.4f}, "
            f"{found['ratio']:.2f} of the default's",
            flush=True,
        )
        save("ablation", result)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
