"""All stages on the default data, three seeds, beside an operator trained for the same total time (the control).

    python benchmarks/stages.py [OUTPUT_DIR]      writes benchmarks/results/stages.json and prints the table of docs/stages.md

The first seed has the machine for itself and is timed; the others run side by side, each on one core. What is finished in OUTPUT_DIR
(outputs/stages) is not repeated.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from ups.provenance import hardware

SEEDS = (0, 1, 2)
STAGES = ("operator", "diffusion", "consistency")
CONTROL_EPOCHS = 38  # of the operator: what diffusion and consistency take is as long as 16 more of its 22 epochs


def rows(folder: Path) -> dict[str, dict]:
    """The own rows of a run, by what corrects them."""
    found = {}
    for name in ("eval_operator", "eval_baseline", "eval_ttc"):
        path = folder / "reports" / f"{name}.json"
        for row in json.loads(path.read_text())["rows"] if path.exists() else []:
            if row["model"].startswith("upt"):
                label = [row["mode"]] + [row["correct"]] * (row["correct"] != "none") + ["ttc"] * row["ttc"]
                found[" + ".join(label)] = row
    return found


def spread(values: list[float]) -> dict:
    return {"mean": statistics.mean(values), "stdev": statistics.stdev(values), "seeds": values}


def train(out: Path, names: list[str], *settings: str) -> None:
    """Runs ``names``, which end in their seeds: one with the whole machine, several side by side with a core each."""
    calls = []
    for name in names:
        call = [
            sys.executable,
            "-m",
            "ups.run",
            f"output_dir={out}",
            "data.directory=outputs/data",
            f"name={name}",
            f"seed={name[-1]}",
            *settings,
        ]
        one_core = [
            f"stage.{stage}.module.threads=1" for stage in STAGES if len(names) > 1 and (stage == "operator" or "stage=all" in settings)
        ]
        calls.append(call + one_core)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if len(names) > 1 else None
    codes = [process.wait() for process in [subprocess.Popen(call, env=environment) for call in calls]]
    if any(codes):
        raise SystemExit(f"runs {names} ended with {codes}")


def main(out: Path) -> None:
    done = out / "all-0/reports/eval_ttc.json"
    if not done.exists():
        started = time.time()
        train(out, ["all-0"], "stage=all")
        (out / "all-0/wall_seconds").write_text(f"{time.time() - started:.0f}")
    control = [f"trainer.max_epochs={CONTROL_EPOCHS}"]
    for kind, settings, report in (("all", ["stage=all"], "eval_ttc"), ("control", control, "eval_operator")):
        left = [f"{kind}-{seed}" for seed in SEEDS if not (out / f"{kind}-{seed}/reports/{report}.json").exists()]
        for names in (left[i : i + 2] for i in range(0, len(left), 2)):
            train(out, names, *settings)
    runs = {kind: {seed: rows(out / f"{kind}-{seed}") for seed in SEEDS} for kind in ("all", "control")}
    result: dict = {"hardware": hardware(), "stage_all_seconds": int((out / "all-0/wall_seconds").read_text()), "rows": {}}
    labels = [("all", label) for label in runs["all"][SEEDS[0]]] + [("control", "latent")]
    print("| | rollout nRMSE | of the operator's | one step | spread / error, rollout | one step | ms a trajectory |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind, label in labels:
        own = {seed: found[label] for seed, found in runs[kind].items()}
        entry = {key: spread([row[key] for row in own.values()]) for key in ("nrmse", "one_step_nrmse", "seconds_per_trajectory")}
        entry["ratio"] = spread([row["nrmse"] / runs["all"][seed]["latent"]["nrmse"] for seed, row in own.items()])
        for key in ("spread_over_error", "one_step_spread_over_error"):
            if key in next(iter(own.values())):
                entry[key] = spread([row[key] for row in own.values()])
        name = f"control: operator, {CONTROL_EPOCHS} epochs" if kind == "control" else label
        result["rows"][name] = entry

        def cell(key: str, digits: int, entry: dict = entry) -> str:
            if key not in entry:
                return ""
            value = entry[key]
            return f"{value['mean']:.{digits}f}" + f" ± {value['stdev']:.{digits}f}"

        ms = f"{1e3 * entry['seconds_per_trajectory']['mean']:.0f}"
        cells = [cell("nrmse", 4), cell("ratio", 2), cell("one_step_nrmse", 4), cell("spread_over_error", 2)]
        print(f"| {name} | {' | '.join(cells)} | {cell('one_step_spread_over_error', 2)} | {ms} |")
    (Path(__file__).parent / "results" / "stages.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else "outputs/stages"))
