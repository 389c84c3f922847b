"""All stages on the default data, three seeds, and a control trained for the same total time.

    python benchmarks/stages.py [OUTPUT_DIR]

Writes benchmarks/results/stages.json. A seed is of data and weights. The control is an operator,
seeds 1 and 2. The errors of the operator alone are those of five seeds: two more are trained by the
README's command. The same command trains the peer that comes nearest, ``model=patch_stepper``: its
blocks on the field itself.

The first seed has the machine for itself and is timed; the others run side by side, each on one
core. What is finished in OUTPUT_DIR (outputs/stages) is not repeated.
"""

import sys
import time
from pathlib import Path
from typing import Any

from runs import SEEDS, own_rows, save, side_by_side, spread, ups_run

from ups.evaluation.results import Row

STAGES = ("operator", "diffusion", "consistency")
OF_DRAWS = (
    "ensemble_nrmse",
    "spread_skill_ratio",
    "one_step_spread_skill_ratio",
    "spread_skill_ratio_rms",
    "one_step_spread_skill_ratio_rms",
)
CONTROL_SEEDS = (1, 2)
OPERATOR_SEEDS = (3, 4)
# of the operator: what diffusion and consistency take is as long as 16 more of its 22 epochs
CONTROL_EPOCHS = 38


def by_series(folder: Path, *reports: str) -> dict[str, Row]:
    """A run's own rows by the name of their series: "latent", "ttc_diffusion_latent", ..."""
    return {row.series: row for row in own_rows(folder, *reports)}


def train(out: Path, kind: str, seeds: tuple[int, ...], report: str, *settings: str) -> None:
    """Those of ``seeds`` that are not finished yet."""
    stages = STAGES if "stage=all" in settings else STAGES[:1]
    one_core = [f"stage.{stage}.module.num_cpu_shards=1" for stage in stages]
    left = [seed for seed in seeds if not (out / f"{kind}-{seed}/reports/{report}.json").exists()]
    jobs = [
        [
            f"output_dir={out}",
            f"name={kind}-{seed}",
            f"seed={seed}",
            f"data.seed={seed}",
            *settings,
        ]
        for seed in left
    ]
    if kind == "all" and left[:1] == [0]:
        started = time.time()
        ups_run(jobs.pop(0))
        (out / "all-0/wall_seconds").write_text(f"{time.time() - started:.0f}")
    list(side_by_side([[*job, *one_core] for job in jobs]))


def main(out: Path) -> None:
    train(out, "all", SEEDS, "eval_ttc", "stage=all")
    train(out, "operator", OPERATOR_SEEDS, "eval_operator")
    train(out, "patch_stepper", SEEDS, "eval_operator", "model=patch_stepper")
    train(out, "control", CONTROL_SEEDS, "eval_operator", f"trainer.max_epochs={CONTROL_EPOCHS}")
    train(
        out,
        "control",
        CONTROL_SEEDS,
        "eval_ttc",
        "stage=evaluate",
        f"trainer.max_epochs={CONTROL_EPOCHS}",
    )
    runs = {seed: by_series(out / f"all-{seed}", "eval_baseline", "eval_ttc") for seed in SEEDS}
    table = {
        row.label: {seed: run[series] for seed, run in runs.items()}
        for series, row in runs[SEEDS[0]].items()
    }
    controls = {
        seed: by_series(out / f"control-{seed}", "eval_baseline", "eval_ttc")
        for seed in CONTROL_SEEDS
    }
    for series in ("latent", "ttc_latent"):
        label = controls[CONTROL_SEEDS[0]][series].label
        seeds = ", ".join(map(str, CONTROL_SEEDS))
        about = f"control: {label}, {CONTROL_EPOCHS} epochs, seeds {seeds}"
        table[about] = {seed: control[series] for seed, control in controls.items()}
    operators = [
        *runs.values(),
        *(by_series(out / f"operator-{seed}", "eval_operator") for seed in OPERATOR_SEEDS),
    ]
    peers = [by_series(out / f"patch_stepper-{seed}", "eval_operator") for seed in SEEDS]
    result: dict[str, Any] = {
        "stage_all_seconds": int((out / "all-0/wall_seconds").read_text()),
        "operator": {
            series: spread([run[series]["nrmse"] for run in operators])
            for series in ("latent", "physical")
        },
        "patch_stepper": spread([run["physical"]["nrmse"] for run in peers]),
        "rows": {},
    }
    for label, by_seed in table.items():
        rows = list(by_seed.values())
        entry = {
            key: spread([row[key] for row in rows])
            for key in ("nrmse", "one_step_nrmse", "seconds_per_trajectory")
        }
        entry["ratio"] = spread(
            [row["nrmse"] / runs[seed]["latent"]["nrmse"] for seed, row in by_seed.items()]
        )
        entry |= {key: spread([row[key] for row in rows]) for key in OF_DRAWS if key in rows[0]}
        result["rows"][label] = entry
    save("stages", result)


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else "outputs/stages"))
