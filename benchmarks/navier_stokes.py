"""Navier-Stokes at nu = 1e-5, the Fourier neural operator's hardest set, from data to tables.

    python benchmarks/navier_stokes.py

Every model at equal training time (benchmarks/accuracy.py), and then error against cost beside the
solver, of the first seed of each model at the longest time that it was trained for
(benchmarks/pareto.py). What is finished is not repeated. Writes
benchmarks/results/equal_time_navier_stokes.json and pareto_navier_stokes.json.
"""

import accuracy
import pareto
from runs import SEEDS

STUDY = accuracy.STUDIES["navier_stokes_1e-5"]


def main() -> None:
    accuracy.main(STUDY)
    longest = {}
    for name in STUDY.train_seconds:
        for model in accuracy.MODELS:
            run = STUDY.folder / accuracy.run_name(model, name, str(SEEDS[0]))
            if run.exists():
                longest[model] = run
    pareto.main(list(longest.values()))


if __name__ == "__main__":
    main()
