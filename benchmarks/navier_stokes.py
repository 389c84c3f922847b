"""Navier-Stokes at nu = 1e-5, the Fourier neural operator's hardest set, from data to tables.

    python benchmarks/navier_stokes.py

Every model at equal training time (benchmarks/accuracy.py), and then error against cost beside the
solver, of all seeds of each model at the longest time that it was trained for
(benchmarks/pareto.py). What is finished is not repeated. Writes
benchmarks/results/equal_time_navier_stokes.json and pareto_navier_stokes.json.
"""

import accuracy
import pareto
from runs import SEEDS

STUDY = accuracy.STUDIES["navier_stokes_1e-5"]


def main() -> None:
    accuracy.main(STUDY)
    runs = []
    for model in STUDY.models:
        by_length = [
            [
                run
                for seed in SEEDS
                if (run := STUDY.folder / accuracy.run_name(model, name, str(seed))).exists()
            ]
            for name in STUDY.train_seconds
        ]
        runs += next(found for found in reversed(by_length) if found)
    pareto.main(runs)


if __name__ == "__main__":
    main()
