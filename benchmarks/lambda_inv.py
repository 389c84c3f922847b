"""Latent rollouts with and without the inverse losses: the default, trained shortly, three seeds.

    python benchmarks/lambda_inv.py [epochs]

It writes benchmarks/results/lambda_inv.json. Finished runs are not repeated.
"""

import sys
from pathlib import Path
from typing import Any

from runs import save, side_by_side, spread

from ups.evaluation import leaderboard

OUT = Path("outputs/lambda_inv")
WEIGHTS = ("0", "1.0")


def main(epochs: int) -> None:
    common = [
        "-m",
        f"output_dir={OUT}",
        f"name=e{epochs}",
        "seed=0,1,2",
        "data.start_time_bias=1",
        f"trainer.max_epochs={epochs}",
    ]
    list(
        side_by_side(
            [
                [*common, "stage.operator.module.num_cpu_shards=1", f"lambda_inv={weight}"]
                for weight in WEIGHTS
            ]
        )
    )
    result: dict[str, Any] = {"epochs": epochs}
    rows = [
        row
        for row in leaderboard.read(OUT / "leaderboard.csv")
        if row["name"].startswith(f"e{epochs}-")
    ]
    for mode in ("latent", "physical"):
        for weight in WEIGHTS:
            values = [
                float(row["nrmse"])
                for row in rows
                if row["mode"] == mode and f"lambda_inv_{weight}-" in row["name"]
            ]
            result.setdefault(mode, {})[f"lambda_inv={weight}"] = spread(values)
    without, with_them = (result["latent"][f"lambda_inv={weight}"] for weight in WEIGHTS)
    result["latent_error_lower_by"] = 1 - with_them["mean"] / without["mean"]
    result["latent_error_lower_by_at_worst"] = 1 - max(with_them["seeds"]) / min(without["seeds"])
    save("lambda_inv", result)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
