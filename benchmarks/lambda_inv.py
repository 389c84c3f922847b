"""Latent rollouts with and without the inverse losses: three seeds each, the default data and model, a short training.

python benchmarks/lambda_inv.py [epochs]     writes benchmarks/results/lambda_inv.json; runs that are finished are not repeated
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from ups import leaderboard
from ups.provenance import hardware

OUT = Path("outputs/lambda_inv")
WEIGHTS = ("0", "1.0")


def main(epochs: int) -> None:
    command = [sys.executable, "-m", "ups.run", "-m", f"output_dir={OUT}", "data.directory=outputs/data", f"name=e{epochs}",
               "seed=0,1,2", "data.early=1", f"trainer.max_epochs={epochs}", "stage.operator.module.threads=1"]  # fmt: skip
    # one core for each of the two, side by side
    sweeps = [subprocess.Popen([*command, f"lambda_inv={weight}"], env={**os.environ, "OMP_NUM_THREADS": "1"}) for weight in WEIGHTS]
    codes = [sweep.wait() for sweep in sweeps]
    if any(codes):
        sys.exit("a sweep failed; the same command goes on with what is left")
    result = {"epochs": epochs, "hardware": hardware(), "command": " ".join(command[1:])}
    rows = [row for row in leaderboard.read(OUT / "leaderboard.csv") if row["name"].startswith(f"e{epochs}-")]
    for mode in ("latent", "physical"):
        for weight in WEIGHTS:
            values = [float(row["nrmse"]) for row in rows if row["mode"] == mode and f"lambda_inv_{weight}-" in row["name"]]
            spread = {"mean": statistics.mean(values), "stdev": statistics.stdev(values), "seeds": values}
            result.setdefault(mode, {})[f"lambda_inv={weight}"] = spread
    latent = result["latent"]
    result["latent_error_lower_by"] = 1 - latent["lambda_inv=1.0"]["mean"] / latent["lambda_inv=0"]["mean"]
    result["latent_error_lower_by_at_worst"] = 1 - max(latent["lambda_inv=1.0"]["seeds"]) / min(latent["lambda_inv=0"]["seeds"])
    print(json.dumps(result, indent=1))
    (Path(__file__).parent / "results" / "lambda_inv.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
