"""All stages on the default data, three seeds, beside an operator trained for the same total time (the control).

    python benchmarks/stages.py [OUTPUT_DIR]      writes benchmarks/results/stages.json and prints the table of docs/stages.md

Runs that are finished in OUTPUT_DIR (outputs/stages) are not repeated. A control that isn't there is trained last; `--no-control` leaves it out.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

from ups.provenance import hardware

SEEDS = (0, 1, 2)
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
    return {"mean": statistics.mean(values), "stdev": statistics.stdev(values) if len(values) > 1 else None, "seeds": values}


def main(out: Path, control: bool) -> None:
    call = [sys.executable, "-m", "ups.run", f"output_dir={out}", "data.directory=outputs/data"]
    runs: dict[str, dict[int, dict]] = {"all": {}, "control": {}}
    for seed in SEEDS:
        if not (out / f"all-{seed}/reports/eval_ttc.json").exists():
            subprocess.run([*call, "stage=all", f"name=all-{seed}", f"seed={seed}"], check=True)
        runs["all"][seed] = rows(out / f"all-{seed}")
    for seed in SEEDS:
        folder = out / f"control-{seed}"
        if control and not (folder / "reports/eval_operator.json").exists():
            subprocess.run([*call, f"name=control-{seed}", f"seed={seed}", f"trainer.max_epochs={CONTROL_EPOCHS}"], check=True)
        if (folder / "reports/eval_operator.json").exists():
            runs["control"][seed] = rows(folder)
    result: dict = {"hardware": hardware(), "rows": {}}
    labels = [("all", label) for label in runs["all"][SEEDS[0]]] + ([("control", "latent")] if runs["control"] else [])
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
            return f"{value['mean']:.{digits}f}" + (f" ± {value['stdev']:.{digits}f}" if value["stdev"] is not None else " (one seed)")

        ms = f"{1e3 * entry['seconds_per_trajectory']['mean']:.0f}"
        cells = [cell("nrmse", 4), cell("ratio", 2), cell("one_step_nrmse", 4), cell("spread_over_error", 2)]
        print(f"| {name} | {' | '.join(cells)} | {cell('one_step_spread_over_error', 2)} | {ms} |")
    (Path(__file__).parent / "results" / "stages.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    main(Path(arguments[0] if arguments else "outputs/stages"), "--no-control" not in sys.argv)
