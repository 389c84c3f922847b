"""What each part of the default operator is worth: one thing changed, short trainings, three seeds.

    python benchmarks/ablation.py        writes benchmarks/results/ablation.json

A training has 2500 steps; two run side by side, on a core each. The seed is of data and weights.
A difference counts where it is larger than the two standard deviations together. What the file
holds is not repeated.
"""

from pathlib import Path
from typing import Any

from runs import SEEDS, own_rows, read, save, side_by_side, spread

OUT = Path("outputs/ablation")
EPOCHS = 4
CHANGES: dict[str, list[str]] = {
    "default": [],
    "no inverse losses": ["lambda_inv=0"],
    "L_inv_enc alone": ["loss.lambda_inv_dec=0"],
    "L_inv_dec alone": ["loss.lambda_inv_enc=0"],
    "lambda_inv 0.1": ["lambda_inv=0.1"],
    "inverse losses in every 10th batch": ["loss.inverse_loss_frequency=10"],
    "squared losses": ["loss.squared=true"],
    "no memory: patch_stepper": ["model=patch_stepper"],
    "a latent of its own: mixer_small": ["model=mixer_small"],
    "window K 1": ["data.unroll_steps=1"],
    "window K 5": ["data.unroll_steps=5"],
    "no augmentation": ["data.augmentation.translate=false", "data.augmentation.reflect=false"],
    "windows with uniform starts": ["data.start_time_bias=1"],
    "AdamW": ["stage.operator.module.optimizer=adamw"],
}
MODES = ("latent", "physical")


def run_name(change: str, seed: int) -> str:
    words = change.replace(":", "").replace(".", "").split()
    return f"{'_'.join(words)}-{seed}"


def command(change: str, seed: int) -> list[str]:
    return [
        f"output_dir={OUT}",
        f"name={run_name(change, seed)}",
        f"seed={seed}",
        f"data.seed={seed}",
        f"trainer.max_epochs={EPOCHS}",
        "stage.operator.module.num_cpu_shards=1",
        "preflight=false",
        *CHANGES[change],
    ]


def compare(changes: dict[str, Any]) -> None:
    """Add mean, spread and the comparison with the default, of the runs so far."""
    for found in changes.values():
        for mode in MODES:
            found[mode] = spread([run[mode] for run in found["runs"].values()])
            base, own = changes["default"][mode], found[mode]
            found[f"{mode}_ratio"] = own["mean"] / base["mean"]
            difference = abs(own["mean"] - base["mean"])
            is_whole = len(found["runs"]) == len(changes["default"]["runs"]) == len(SEEDS)
            found[f"{mode}_beyond_spread"] = is_whole and difference > own["stdev"] + base["stdev"]


def main() -> None:
    changes: dict[str, Any] = read("ablation").get("changes", {})
    pairs = [(change, seed) for seed in SEEDS for change in CHANGES]
    left = [(c, s) for c, s in pairs if str(s) not in changes.get(c, {}).get("runs", {})]
    commands = [command(change, seed) for change, seed in left]
    for (change, seed), _ in zip(left, side_by_side(commands), strict=True):
        rows = own_rows(OUT / run_name(change, seed), "eval_operator")
        runs = changes.setdefault(change, {}).setdefault("runs", {})
        runs[str(seed)] = {row.mode: row["nrmse"] for row in rows}
        compare(changes)
        save("ablation", {"epochs": EPOCHS, "changes": changes})
    for change, found in changes.items():
        print(change, {mode: found[mode]["mean"] for mode in MODES})


if __name__ == "__main__":
    main()
