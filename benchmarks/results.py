"""The results page: docs/results.md, from the JSON files of the other benchmarks.

python benchmarks/results.py
"""

from pathlib import Path
from typing import Any

from runs import read

HEAD = """Made by `python benchmarks/results.py` from the JSON files that the other benchmarks write: not to be edited. Errors are rollout
nRMSE on the test set, mean and standard deviation over seeds."""
PAGE = Path(__file__).parents[1] / "docs/results.md"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def number(cell: dict[str, Any], digits: int = 4) -> str:
    spread = "" if cell["stdev"] is None else f" ± {cell['stdev']:.{digits}f}"
    return f"{cell['mean']:.{digits}f}{spread}"


def made_by(result: dict[str, Any], name: str) -> str:
    about = result["about"]
    command = about["command"].replace("benchmarks/", "python benchmarks/", 1)
    where = f"{about['hardware']}, torch {about['torch']}, commit {about['commit'][:7]}"
    return f"`{command}` ([JSON](../benchmarks/results/{name}.json)); {where}."


def accuracy(result: dict[str, Any]) -> str:
    head = ["model", "rollout nRMSE", "last frame", "one step", "learning rate", "training", "ms a trajectory"]
    rows = []
    for model, found in sorted(result["models"].items(), key=lambda item: item[1]["nrmse"]["mean"]):
        cells = [number(found[key]) for key in ("nrmse", "last_frame", "one_step_nrmse")]
        rows.append(
            [
                model,
                *cells,
                found["lr"],
                f"{found['training_seconds']['mean']:.0f} s",
                f"{1e3 * found['seconds_per_trajectory']['mean']:.1f}",
            ]
        )
    return table(head, rows)


def pareto(result: dict[str, Any]) -> str:
    head = [
        "",
        "rollout nRMSE",
        "ms, one at a time",
        "ms, 64 at once",
        "solver's cost at equal error, one at a time",
        "64 at once",
        "break-even, one at a time",
    ]
    rows = []
    for row in sorted(result["rows"], key=lambda row: row["nrmse"]):
        faster = [f"{x:.1f} x" if (x := row.get("times_faster_than_solver", {}).get(batch)) else "" for batch in ("1", "64")]
        even = row.get("break_even_trajectories", {}).get("1")
        rows.append(
            [
                row["name"],
                f"{row['nrmse']:.4f}",
                *(f"{1e3 * row['seconds'][b]:.2f}" for b in ("1", "64")),
                *faster,
                f"{even:,}" if even else "",
            ]
        )
    return table(head, rows) + "\n\n![error against cost](../benchmarks/results/pareto.png)"


def ablation(result: dict[str, Any]) -> str:
    rows = []
    for change, found in result["changes"].items():
        verdict = "" if change == "default" else "yes" if found["beyond_spread"] else "no"
        rows.append([change, number(found["latent"]), number(found["physical"]), f"{found['ratio']:.2f}", verdict])
    return table(["change", "latent rollout", "physical rollout", "of the default's", "beyond the spread"], rows)


def throughput(result: dict[str, Any]) -> str:
    parts = []
    for name, found in result.items():
        if isinstance(found, dict) and all(isinstance(v, dict) and "milliseconds" in v for v in found.values()):
            ratio = next(key for key in next(iter(found.values())) if key.startswith("of_"))
            rows = [[label, f"{v['milliseconds']:.2f}", f"{v[ratio]:.2f}"] for label, v in found.items()]
            parts.append(table([name, "ms", f"of {ratio[3:]}'s"], rows))
    memory = [[name, f"{v['before']}", f"{v['peak']}"] for name, v in result["training_memory"].items()]
    parts.append(table(["peak memory of training, MB", "before the first step", "peak"], memory))
    return (
        "\n\n".join(parts)
        + f"\n\nThe reference solver makes {result['data, trajectories a second']:.0f} trajectories a second at 1024 points."
    )


def generality(result: dict[str, Any]) -> str:
    points = [[name, number(v), f"{v['of_the_training_grid']:.2f}"] for name, v in result["points and times"].items()]
    parts = [table(["points and times", "rollout nRMSE", "of the training grid's"], points)]
    if "viscosities" in result:
        rows = [
            [nu, "yes" if v["seen"] else "no", number(v), "" if v["seen"] else f"{v['of_the_neighbours_mean']:.2f}"]
            for nu, v in result["viscosities"].items()
        ]
        parts.append(table(["nu", "seen in training", "rollout nRMSE", "of the mean of its neighbours'"], rows))
    return "\n\n".join(parts)


SECTIONS = {
    "accuracy": ("Accuracy at equal training time", accuracy),
    "pareto": ("Error against cost, beside the numerical method", pareto),
    "ablation": ("What each part is worth", ablation),
    "throughput": ("Speed and memory", throughput),
    "generality": ("Other viscosities, points and times", generality),
}


def main() -> None:
    parts = ["# Results", HEAD]
    for name, (title, section) in SECTIONS.items():
        if result := read(name):
            parts.append(f"## {title}\n\n{made_by(result, name)}\n\n{section(result)}")
    PAGE.write_text("\n\n".join(parts) + "\n")
    print(PAGE)


if __name__ == "__main__":
    main()
