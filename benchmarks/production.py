"""9000 trajectories: the production schedule, all stages of it, beside the default operator on as
many; one seed each.

    python benchmarks/production.py      writes benchmarks/results/production.json

Data are made, 8900 trajectories to train on, 100 to validate, 1000 to test.
``experiment=burgers_upt`` has its whole length for the operator, while the later stages take one
window a trajectory and epoch instead of ten: the largest scale that two cores bear in an afternoon.
The default recipe gets as many steps as on its own 1000 trajectories. On a GPU leave LATER out. Its
error and cost stand beside the reference solver's, timed in turn as benchmarks/pareto.py does.
"""

from pathlib import Path
from typing import Any

import torch
from pareto import add_seconds, at_equal_error, model_rows, solver_rows
from runs import data_of, save, training_seconds, ups_run
from stages import by_series

OUT = Path("outputs/production")
DATA = ["data.num_train=8900", "data.num_test=1000"]
LATER = [
    "stage.diffusion.data.samples_per_trajectory=1",
    "stage.consistency.data.samples_per_trajectory=1",
]
RUNS = {
    "burgers_upt": ["stage=all", "experiment=burgers_upt", "data=burgers", *DATA, *LATER],
    "default": ["stage=operator", *DATA, "data.samples_per_trajectory=1", "trainer.max_epochs=25"],
}
REPORTS = {"burgers_upt": ("eval_baseline", "eval_ttc"), "default": ("eval_operator",)}
KEYS = ("nrmse", "one_step_nrmse", "seconds_per_trajectory")


@torch.no_grad()
def beside_the_solver(run: Path, trajectories: int = 128) -> list[dict[str, Any]]:
    """Error and seconds a trajectory of the solver at each of its grids and of a run's rollouts,
    on the first test trajectories.
    """
    data = data_of(run)
    u = data.values["test"][:trajectories]
    solvers, rollouts = solver_rows(data, u)
    models, ways = model_rows(run, data, u)
    add_seconds(solvers + models, rollouts + ways, u[:, 0])
    for row in models:
        equal = {batch: at_equal_error(row["nrmse"], solvers, batch) for batch in row["seconds"]}
        row["times_faster_than_solver"] = {
            b: None if s is None else s / row["seconds"][b] for b, s in equal.items()
        }
    return solvers + models


def main() -> None:
    result: dict[str, Any] = {"runs": {}}
    for name, settings in RUNS.items():
        ups_run([f"output_dir={OUT}", f"name={name}", *settings])
        rows = by_series(OUT / name, *REPORTS[name])
        minutes = training_seconds(OUT / name) / 60
        result["runs"][name] = {
            "settings": settings,
            "training_minutes": minutes,
            "rows": {
                series: {"label": row.label, **{key: row[key] for key in KEYS}}
                for series, row in rows.items()
            },
        }
        save("production", result)
    result["beside the solver"] = beside_the_solver(OUT / "default")
    save("production", result)


if __name__ == "__main__":
    main()
