"""The results page: docs/results.md, from the JSON files of the other benchmarks.

python benchmarks/results.py
"""

from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from runs import DATA_VERSION, read, spread

READING = """Errors are rollout nRMSE on the test set, mean and standard deviation over seeds, \
which are of data and weights."""
OF_EARLIER_DATA = "*Of earlier data: made before version {version} of the generated data.*"
FOOTNOTE = "† The rollouts have diverged: the number is only larger than the field by far."
FOOT = """This page is made by `python benchmarks/results.py` from the JSON files that the other \
benchmarks write. Change those, not the page."""
DIVERGED = 1e3  # times the size of the field
PAGE = Path(__file__).parents[1] / "docs/results.md"
PICTURES = PAGE.parent / "pictures"


def rounded(value: float, digits: int = 3) -> str:
    """``value`` to so many digits that count, without an exponent if it is large."""
    return f"{float(f'{value:.{digits}g}'):,g}"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def error(value: float, digits: int = 4) -> str:
    """An error as text; one of a rollout that has diverged gets a footnote."""
    return f"{value:.{digits}f}" if value < DIVERGED else f"{value:.0e}†"


def number(cell: dict[str, Any], digits: int = 4) -> str:
    if cell["mean"] >= DIVERGED:
        return error(cell["mean"])
    spread = "" if cell["stdev"] is None else f" ± {cell['stdev']:.{digits}f}"
    return f"{cell['mean']:.{digits}f}{spread}"


def made_by(result: dict[str, Any], name: str) -> str:
    about = result["about"]
    command = about["command"].replace("benchmarks/", "python benchmarks/", 1)
    where = f"{about['hardware']}, torch {about['torch']}, commit {about['commit'][:7]}"
    return f"`{command}` (`benchmarks/results/{name}.json`); {where}."


def picture(columns: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6 * columns, 4.6), layout="constrained")
    return figure, figure.subplots(1, columns, sharey=True, squeeze=False)[0]


def equal_time(result: dict[str, Any]) -> str:
    parts = [equal_time_search(result)]
    for name in next(iter(result["models"].values()))["runs"]:
        tested = {
            model: found["summary"][name]
            for model, found in result["models"].items()
            if name in found.get("summary", {})
        }
        if not tested:
            continue
        order = sorted(tested, key=lambda model: tested[model]["latent"]["nrmse"]["mean"])
        rows = [
            [
                model,
                *(number(tested[model][mode]["nrmse"]) for mode in ("latent", "physical")),
                *(number(tested[model]["latent"][key]) for key in ("vrmse", "one_step_nrmse")),
                str(len(result["models"][model]["runs"][name])),
                " ".join(short(s) for s in result["models"][model]["settings"]),
            ]
            for model in order
        ]
        head = ["model", "latent rollout", "physical rollout", "VRMSE", "one step", "seeds", "best"]
        parts.append(f"{name}:\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def short(setting: str) -> str:
    """A setting by the last part of its key."""
    key, _, value = setting.partition("=")
    return f"{key.rpartition('.')[2]}={value}"


def equal_time_search(result: dict[str, Any]) -> str:
    """The trials of the search."""
    return f"""The search, as far as it has come: validation nRMSE after the steps of one or two \
minutes (losses first, then optimizer and
rate with the better loss), one seed. Trials ran on CPU cores; as the number of steps \
is fixed, the machine does not matter.

{trials(result, "validation_nrmse")}"""


def trials(result: dict[str, Any], scores: str) -> str:
    """A table of what one round of a search found."""
    # the loss of the later trials is the better one of the first two
    tried = {
        name: {trial.partition(" ")[2] or trial: error for trial, error in model[scores].items()}
        for name, model in result["models"].items()
    }
    columns = sorted({key for each in tried.values() for key in each}, key=order_of_trials)
    rows = [
        [
            model,
            f"{result['models'][model]['steps_per_second']:.1f}",
            *(error(each[key]) if key in each else "" for key in columns),
        ]
        for model, each in tried.items()
    ]
    heads = [key.replace("stage.operator.module.", "").replace("optimizer=", "") for key in columns]
    return table(["model", "steps a second", *heads], rows)


def order_of_trials(settings: str) -> tuple[bool, list[str]]:
    """Losses before rates, then by name."""
    return "loss." not in settings, settings.split()


def navier_stokes_search(result: dict[str, Any]) -> str:
    chosen = [
        [model, " ".join(short(s) for s in found["settings"])]
        for model, found in result["models"].items()
    ]
    return f"""At nu = 1e-5, for the comparison of the next section: validation nRMSE of rollouts \
from t = 0 after the steps of one minute, one seed.

{trials(result, "validation_nrmse")}

The two best of each again, after the steps of two minutes:

{trials(result, "finals_nrmse")}

Large rates are ahead in short trainings. So the rate is settled by trainings as long as those of \
the next section, seed 0: at the rate that was found and at the next lower one, and lower for as \
long as that gains. Blank: not trained so far.

{trials(result, "full_length_nrmse")}

{table(["model", "chosen"], chosen)}"""


COMPILERS = (
    "The solver is compiled with numba; models are eager PyTorch where their row does not say "
    "compiled."
)


def pareto(result: dict[str, Any]) -> str:
    (finest,) = (row for row in result["rows"] if row["name"] == "solver-1024")
    about = (
        "The solver's rows get the same 256 points as the models, which is what leaves "
        f"{finest['error']:.4f} of error at 1024: one that knows the first field between them "
        f"has less. {COMPILERS}"
    )
    return costs(result, "rollout nRMSE", "pareto", about)


def pareto_navier_stokes(result: dict[str, Any]) -> str:
    on_one_core = "; ".join(
        f"{row['name']} {' and '.join(f'{x:.1f}' for x in faster.values())}"
        for row in result["rows"]
        if "runs" in row and all((faster := row["times_faster_than_solver_on_one_core"]).values())
    )
    about = (
        "All models were trained for as long as the default, "
        "`python -m ups.run stage=operator data=navier_stokes_1e-5` "
        "(`benchmarks/navier_stokes.py`); the one without inverse losses for as many "
        "steps, and one for three times as many. Break-even counts the training on one core. "
        "Rollouts start from frame 10 at 64 x 64 points; the error is the relative L2 norm over "
        "frames 11 to 20 together; the truth was solved on 256 x 256 points. "
        f"{COMPILERS} On one core, for the models too, the solver takes these times as long at "
        f"equal error, one at a time and in batches: {on_one_core}."
    )
    return costs(result, "relative L2", "pareto_navier_stokes", about)


def costs(result: dict[str, Any], metric: str, name: str, about: str) -> str:
    """A table and a picture of error against cost, one trajectory and many at a time."""
    batches = list(result["rows"][0]["seconds"])
    from_start = "rollout_nrmse" in result["rows"][0]
    has_optimizer = any("trained_by" in row for row in result["rows"])
    words = {batch: "one at a time" if batch == "1" else f"{batch} at once" for batch in batches}
    head = [
        "",
        metric,
        *(["rollout nRMSE"] if from_start else []),
        *(["trained by"] if has_optimizer else []),
        *(f"ms, {words[batch]}" for batch in batches),
        *(f"solver's cost at equal error, {words[batch]}" for batch in batches),
        *(f"break-even, {words[batch]}" for batch in batches),
    ]
    rows = []
    for row in sorted(result["rows"], key=lambda row: row["error"]):
        faster = row.get("times_faster_than_solver", {})
        even = row.get("break_even_trajectories", {})
        rows.append(
            [
                row["name"],
                number(row["errors"]) if "errors" in row else error(row["error"]),
                *([error(row["rollout_nrmse"])] if from_start else []),
                *([row.get("trained_by", "")] if has_optimizer else []),
                *(f"{1e3 * row['seconds'][b]:.2f}" for b in batches),
                *(f"{x:.1f} x" if (x := faster.get(b)) else "" for b in batches),
                *(f"{n:,}" if (n := even.get(b)) else "" for b in batches),
            ]
        )
    figure, axes = picture(len(batches))
    for axis, batch in zip(axes, batches, strict=True):
        solvers = [row for row in result["rows"] if row["name"].startswith("solver")]
        axis.loglog(
            [r["seconds"][batch] for r in solvers],
            [r["error"] for r in solvers],
            "o-",
            color="0.5",
            label="reference solver",
        )
        for row in solvers:
            axis.annotate(
                row["name"][7:],
                (row["seconds"][batch], row["error"]),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=7,
            )
        for i, row in enumerate(r for r in result["rows"] if r not in solvers):
            axis.loglog(
                row["seconds"][batch],
                row["error"],
                "*" if row["name"].startswith("memory-upt") else "s",
                color=colormaps["tab20"](i),  # in pairs: dark and light
                ms=9,
                label=row["name"],
            )
        axis.set(xlabel="seconds a trajectory", title=words[batch])
        axis.grid(alpha=0.3, which="both")
    axes[0].set(ylabel=metric)
    labels = axes[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=3, fontsize=7)
    figure.savefig(PICTURES / f"{name}.png", dpi=110)
    fronts = "; ".join(
        f"{words[batch]}: {', '.join(front(result['rows'], batch))}" for batch in batches
    )
    first = f"On the front, where no other row is both faster and as accurate: {fronts}. {about}"
    return "\n\n".join((table(head, rows), first, f"![error against cost](pictures/{name}.png)"))


def front(rows: list[dict[str, Any]], batch: str) -> list[str]:
    """The rows for which no other is both faster and at least as accurate."""

    def beaten(row: dict[str, Any]) -> bool:
        return any(
            o["seconds"][batch] < row["seconds"][batch] and o["error"] <= row["error"] for o in rows
        )

    return [f"{row['name']} ({row['error']:.4f})" for row in rows if not beaten(row)]


def ablation(result: dict[str, Any]) -> str:
    rows = [
        [
            change,
            *(cell for mode in ("latent", "physical") for cell in compared(found, mode)),
            str(len(found["runs"])),
        ]
        for change, found in result["changes"].items()
    ]
    of = "of the default's"
    head = ["change", "latent rollout", of, "physical rollout", of, "seeds"]
    return f"""{result["epochs"]} epochs; one thing changed, nothing tuned again for it (AdamW has \
the default's learning rate).
A ratio in bold, of three seeds, differs from 1 by more than both standard deviations together.

{table(head, rows)}"""


def compared(found: dict[str, Any], mode: str) -> list[str]:
    ratio = f"{found[f'{mode}_ratio']:.2f}"
    return [number(found[mode]), f"**{ratio}**" if found[f"{mode}_beyond_spread"] else ratio]


def stages(result: dict[str, Any]) -> str:
    columns = {
        "nrmse": ("rollout nRMSE", 4),
        "ratio": ("of the operator's", 2),
        "one_step_nrmse": ("one step", 4),
        "ensemble_nrmse": ("mean of 3 draws", 4),
        "spread_skill_ratio": ("spread / error", 2),
        "one_step_spread_skill_ratio": ("of one step", 2),
    }
    rows = [
        [
            label,
            *(number(row[key], n) if key in row else "" for key, (_, n) in columns.items()),
            # seeds that ran side by side are slower
            f"{1e3 * min(row['seconds_per_trajectory']['seeds']):.0f}",
        ]
        for label, row in result["rows"].items()
    ]
    head = ["", *(name for name, _ in columns.values()), "ms a trajectory"]
    operator, peer = result["operator"], result["patch_stepper"]
    return f"""{table(head, rows)}

What the rows are: [stages](stages.md). `stage=all` took {result["stage_all_seconds"] / 60:.0f} \
minutes on two cores, tests included.

The operator alone, as `python -m ups.run stage=operator` trains it: {ranged(operator["latent"])} \
in latent rollouts, {ranged(operator["physical"])} in physical ones. `model=patch_stepper` by the \
same command: {ranged(peer)}."""


def ranged(cell: dict[str, Any]) -> str:
    """Mean and standard deviation, range and number of seeds."""
    seeds = cell["seeds"]
    return f"{number(cell)} ({min(seeds):.4f} to {max(seeds):.4f}, {len(seeds)} seeds)"


def ranking(result: dict[str, Any]) -> str:
    """Rank correlations of rewards, and what choosing by them gains."""
    steps, forecasts = result["steps"], result.get("forecasts")
    heads = ["reward of a step", "Spearman correlation with the true error"]
    parts = [table(heads, correlations(steps))]
    if RATIO in steps:
        parts.append(bounds(steps))
    if forecasts:
        costs = [number(cell, 2) for cell in forecasts["calls of the solver"].values()]
        rows = [[*row, cost] for row, cost in zip(correlations(forecasts), costs, strict=True)]
        heads = ["reward of a whole forecast", heads[1], "its cost in calls of the solver"]
        parts.append(table(heads, rows))
        parts.append(bounds(forecasts))
        rows = [[name, number(cell)] for name, cell in forecasts["nrmse"].items()]
        parts.append(table([f"of {result['candidates']} forecasts", "nRMSE"], rows))
    rows = [[name, number(cell)] for name, cell in result["rollouts"].items()]
    return "\n\n".join((*parts, table(["one step by", "rollout nRMSE"], rows)))


RATIO = "spread / error of the solve"


def correlations(found: dict[str, Any]) -> list[list[str]]:
    return [[name, number(cell, 2)] for name, cell in found["spearman"].items()]


def bounds(found: dict[str, Any]) -> str:
    """What bounds the rank correlation and the gain."""
    return (
        f"The candidates' errors have a standard deviation of {number(found[RATIO], 3)} of the "
        "error of the reward's own solve. The best candidate has "
        f"{number(found['best / random'], 3)} of the error of a random one."
    )


def throughput(result: dict[str, Any]) -> str:
    parts = []
    for name, found in result.items():
        if isinstance(found, dict) and all(
            isinstance(v, dict) and "milliseconds" in v for v in found.values()
        ):
            ratio = next(key for key in next(iter(found.values())) if key.startswith("of_"))
            rows = [
                [label, f"{v['milliseconds']:.2f}", f"{v[ratio]:.2f}"] for label, v in found.items()
            ]
            parts.append(table([name, "ms", f"of {ratio[3:]}'s"], rows))
    memory = [
        [name, f"{v['before']}", f"{v['peak']}"] for name, v in result["training_memory"].items()
    ]
    parts.append(table(["peak memory of training, MB", "before the first step", "peak"], memory))
    parts.append("A training step of `memory_upt` on one thread: " + floor(result["floor"]))
    if rollouts := result.get("floor of rollouts"):
        parts.append("64 rollouts of it on all threads: " + floor(rollouts))
    return "\n\n".join(parts)


def floor(found: dict[str, Any]) -> str:
    shares = ", ".join(f"`{name}` {share:.0%}" for name, share in found["share"].items())
    return (
        f"{found['milliseconds']:.1f} ms for {found['gigaflops']:.2f} GFLOP of matrix products, "
        f"which one large product does in {found['milliseconds_of_a_large_product_as_long']:.1f} "
        f"ms here. By operation: {shares}."
    )


def scaling(result: dict[str, Any]) -> str:
    """Two processes beside one, what a step takes, and the plan for GPUs."""
    found = result["two_processes"]
    ways = [
        [
            way,
            f"{row['milliseconds']:.1f}",
            f"{row['of_one_process']:.2f}",
            rounded(row["largest_relative_difference_of_a_loss"], 1),
        ]
        for way, row in found["ways"].items()
    ]
    head = ["`memory_upt` on a CPU", "ms a step", "of one's", "largest difference of a loss"]
    return f"""{table(head, ways)}

The same global batches of {result["batch_size"]} windows. The difference is relative to the loss \
of one process in the same step, over {found["losses"]} steps. Each of the two processes sends \
{found["bytes_sent_a_step"] / 1e6:.2f} MB of gradients a step.

{step_counts(result["counts"])}

The plan, not a measurement: {gpu_plan(result)}"""


def step_counts(counts: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{row['parameters']:,}",
            *(rounded(row[key] / 1e9) for key in ("window_flop", "optimizer_flop")),
            rounded(row["window_activation_bytes"] / 1e6),
            *(rounded(row[key] / 1e6) for key in ("state_bytes", "gradient_bytes")),
        ]
        for name, row in counts.items()
    ]
    head = [
        "a training step",
        "parameters",
        "GFLOP, a window",
        "GFLOP, optimizer",
        "MB of activations, a window",
        "MB of weights, gradients and optimizer",
        "MB of gradients",
    ]
    return table(head, rows)


def gpu_plan(result: dict[str, Any]) -> str:
    """On how many windows a GPU the plan rests, size by size."""
    gpu = result["gpu"]
    head = [
        "DDP on paper",
        "us, a window",
        "us, optimizer",
        "us, all-reduce in a node",
        "between nodes",
        "windows a GPU that hide it, in a node",
        "between nodes",
        "windows that fit",
    ]
    rows = [
        [
            name,
            *(rounded(1e6 * value) for key, value in row.items() if key.startswith("seconds")),
            f"{row['windows_that_hide_it_in_a_node']:.0f}",
            f"{row['windows_that_hide_it_between_nodes']:.0f}",
            f"{row['windows_that_fit']:,.0f}",
        ]
        for name, row in result["plan"].items()
    ]
    return f"""a GPU of {gpu["flops"] / 1e12:.0f} TFLOP/s and \
{gpu["memory_bytes"] / 1e9:.0f} GB that sends {gpu["node_bandwidth"] / 1e9:.0f} GB/s in its node \
and {gpu["network_bandwidth"] / 1e9:.0f} GB/s to others. [Scaling](scaling.md) says what follows.

{table(head, rows)}"""


def generality(result: dict[str, Any]) -> str:
    points = [
        [name, number(v), f"{v['of_the_training_grid']:.2f}"]
        for name, v in result["points and times"].items()
    ]
    parts = [table(["points and times", "rollout nRMSE", "of the training grid's"], points)]
    rows = [
        [
            nu,
            "yes" if found["seen"] else "no",
            number(found),
            "" if found["seen"] else f"{found['of_the_neighbors_mean']:.2f}",
        ]
        for nu, found in result.get("viscosities", {}).items()
    ]
    head = ["nu", "seen in training", "error relative to the trajectory", "of its neighbors'"]
    if rows:
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def solver(result: dict[str, Any]) -> str:
    head = ["", "rollout nRMSE", "ms, one at a time", "ms, 64 at once"]
    rows = [
        [name, error(row["nrmse"]), *(f"{row[key]:.2f}" for key in list(row)[1:])]
        for name, row in sorted(result["rows"].items(), key=lambda item: item[1]["nrmse"])
    ]
    made = result["generation"]["trajectories_per_second"]
    return f"""{table(head, rows)}

From PDEBench's published initial conditions; `model` is {result["model"]}. The solver is compiled \
with numba; `torch` is its path for
GPUs and gradients, here with gradients. Data of 1024 points are generated at {made:.0f} \
trajectories a second."""


def shifts(result: dict[str, Any]) -> str:
    names = list(next(iter(result["cases"].values()))["nrmse"])
    rows = [
        [name, *(error(case["nrmse"][column]) for column in names), f"{case['warned']:.0%}"]
        for name, case in result["cases"].items()
    ]
    predicted = sorted(result["rank_correlation_with_error"].items(), key=lambda item: -item[1])
    ranked = ", ".join(f"{name} {value:.2f}" for name, value in predicted)
    return f"""{table(["inputs", *names, "warned"], rows)}

`model` ({result["model"]}) sees a field from a frame that moves by whole cells a step \
([method](method.md#moving-frames)), and at a larger nu
as a slower solution of its own ([method](method.md#slower-solutions)); `without symmetries` it \
does neither, and `in an exact frame` the frame moves
at the field's mean. `warned`: the share of fields beyond the training range.

What warns best: Spearman's rank correlation of a number of the input with the error, over all \
fields of the table at the trained nu: {ranked}."""


def inverse_problem(result: dict[str, Any]) -> str:
    rows = [
        [
            name,
            *(
                f"{middle:.2f} ({low:.2f} to {high:.2f})"
                for low, middle, high in (row["initial_field"], row["log_nu"])
            ),
            f"{row['misfit']:.2f}" if "misfit" in row else "",
            f"{row['seconds']:.1f}",
        ]
        for name, row in result["ways"].items()
    ]
    head = ["forward map", "initial field", "nu", "misfit", "seconds of a core"]
    return f"""{table(head, rows)}

Medians (and quartiles) over the trajectories: of the relative L2 error of the \
initial field, and of the error of log nu. The
misfit is that of the readings, relative to their noise; the seconds are those of one trajectory. \
What was read: [inverse problems](inverse_problems.md)."""


def readings(result: dict[str, Any]) -> str:
    """A row for each number of points and each way."""
    rows = []
    finished = {p: list(found["seeds"].values()) for p, found in result["points"].items()}
    for points, seeds in finished.items():
        for name in ("model", "filter") if seeds else ():
            of_seeds = [seed[name] for seed in seeds]
            members = [row["members"] for row in of_seeds if "members" in row]
            rows.append(
                [
                    points,
                    "ensemble Kalman filter" if members else "model",
                    *at_frames(of_seeds),
                    f"{mean([row['seconds'] for row in of_seeds]):.1f}",
                    f"{min(members)} to {max(members)}" if members else "",
                ]
            )
    # the same trajectories for all seeds
    seeds = next(iter(finished.values()))
    known = seeds[0]["from the true frame 0"]
    rows += [["the true frame 0", name, *at_frames([known[name]]), "", ""] for name in known]
    head = ["points read", "", "frame 10", "frame 20", "seconds of a core", "members"]
    return f"""{table(head, rows)}

nRMSE of {result["trajectories"]} test trajectories, mean and standard deviation over {len(seeds)} \
draws of positions and noise; the model is one training, {result["model"]}. The filter's mean is \
that of as many members as take the same time. The last rows are rollouts from the true initial \
field. How it works: [forecasts from readings](readings.md)."""


def at_frames(of_seeds: list[dict[str, Any]]) -> list[str]:
    """The errors at frames 10 and 20, of errors of trajectories for each seed."""
    frames = ("frame 10", "frame 20")
    return [number(spread([mean(row[frame]) for row in of_seeds]), 3) for frame in frames]


def correlation_times(result: dict[str, Any]) -> str:
    """A row for each way of training and forecast, and for each coarse solver."""
    thresholds = {
        "correlation_time": "0.8",
        "correlation_time_90": "0.9",
        "correlation_time_95": "0.95",
        "published": "0.8, as published",
    }
    keys = [*thresholds, "milliseconds"]
    rows = [
        [way, name, *(number(cell[key], 1) for key in keys), str(len(found["runs"]))]
        for way, found in result["ways"].items()
        if "summary" in found
        for name, cell in found["summary"].items()
    ]
    rows += [
        [name, "", *(f"{scores[key]:.1f}" for key in keys), ""]
        for name, scores in result["solvers"].items()
    ]
    head = ["training", "forecast", *thresholds.values(), "ms a trajectory", "seeds"]
    return f"""{table(head, rows)}

The time until the correlation with the truth falls to a threshold, in the equation's unit; of the \
mean correlation of all trajectories, as PDE-Refiner has it, in the column *as published*. Every \
training took {result["seconds"]:g} s on a core, or half of that."""


ENSEMBLES = {
    "crps": "an operator, then CRPS",
    "diffusion": "an operator, then diffusion",
    "consistency": "an operator, then diffusion and consistency",
}


SINGLE_FORECASTS = {
    "one forecast": "no ensemble: the operator's forecast",
    "one forecast after crps": "no ensemble: an operator, then CRPS, without noise",
    "one forecast, continued": "no ensemble: an operator, then more of the same",
}


def ensembles(result: dict[str, Any]) -> str:
    """A row for each kind of ensemble, beside the solver's and single forecasts."""
    runs = result["seeds"].values()
    digits = {"crps": 5, "ensemble_nrmse": 4, "spread_skill_ratio": 2, "coverage_90": 2}
    rows = []
    if "solver" in result:
        *_, solver = result["solver"]["members"].values()
        found = [number(spread([solver[key]]), n) for key, n in digits.items()]
        rows.append(["the solver's", *found, f"{solver['milliseconds']:.0f}", ""])
    for name, summary in result["summary"].items():
        found = [number(summary[key], n) for key, n in digits.items()]
        time = f"{min(summary['milliseconds']['seeds']):.0f}"
        chosen = ", ".join(run[name].get("chosen", "") for run in runs)
        rows.append([ENSEMBLES.get(name, name), *found, time, chosen.strip(", ")])
    for name, text in SINGLE_FORECASTS.items():
        crps, nrmse = (spread([run[name][key] for run in runs]) for key in ("crps", "nrmse"))
        time = min(run[name]["milliseconds"] for run in runs)
        rows.append([text, number(crps, 5), number(nrmse), "", "", f"{time:.0f}", ""])
    scores = ["fair CRPS", "nRMSE of the mean", "spread / error", "coverage"]
    head = ["ensemble", *scores, "ms of a core", "chosen on validation"]
    return f"""`data={result["data"]}`. Seeds of weights: {len(result["seeds"])}. The trainings of \
an ensemble take {result["seconds"]:g} seconds of a core in all. {result["members"]} members, of \
independent operators four. Coverage is of the central interval that holds nearly 90 % of \
calibrated ensembles: 88 % of those of 16 members, 60 % of those of four. The CRPS of one forecast \
is its mean absolute error.

{table(head, rows)}"""


def obstacles(result: dict[str, Any]) -> str:
    """What finished runs were asked on flows past obstacles."""
    rows = [
        [name, number(found), f"{found['of_the_test_sets']:.2f}"]
        for name, found in result["errors"].items()
    ]
    parts = [table(["", "rollout nRMSE", "of the test set's"], rows)]
    seconds, ratio = result["queries"]["seconds"], result["queries"]["ratio"]
    parts.append(
        f"`{result['model']}`, {len(result['runs'])} seeds. The encoder gets half or twice the "
        "points of a flow, the error is at those of the test set. Other obstacles than in the "
        "training set: as the name says, the rest alike. Asked at four times as many points, the "
        f"decoder takes {ratio['decode']:.2f} times as long, and the rollout of one flow "
        f"{ratio['rollout']:.2f} times ({1e3 * seconds['rollout']:.0f} and "
        f"{1e3 * seconds['rollout at more points']:.0f} ms)."
    )
    if near := result["by_distance"]:
        rows = [
            [f"{d:.2f}", f"{e:.3f}"] for d, e in zip(near["distance"], near["rmse"], strict=True)
        ]
        head = ["distance from the nearest wall, D", "RMSE / standard deviation"]
        parts.append(table(head, rows))
    return "\n\n".join((*parts, obstacle_costs(result)))


def obstacle_costs(result: dict[str, Any]) -> str:
    """The lattice Boltzmann solver beside the model, by their errors."""
    costs, own = result["costs"], result["errors"]["test set"]["mean"]
    batches = list(costs["seconds"])
    model = {"name": f"**{result['model']}**", "error": own, "seconds": costs["seconds"]}
    rows = [
        [row["name"], error(row["error"]), *(f"{1e3 * row['seconds'][b]:.0f}" for b in batches)]
        for row in sorted((*costs["solvers"], model), key=lambda row: row["error"])
    ]
    words = {b: "one at a time" if b == "1" else f"{b} at once" for b in batches}
    head = ["", "rollout nRMSE", *(f"ms of a core, {words[b]}" for b in batches)]
    spent = costs["spent_seconds"]
    return f"""{table(head, rows)}

The number of a solver is that of its nodes along D; it starts from its own first fine frame, \
which has more than the model sees. {" ".join(verdict(costs, own, b, words[b]) for b in batches)}
The data took {spent["data"]:.0f} and the training {spent["training"]:.0f} seconds of a core."""


def verdict(costs: dict[str, Any], own: float, batch: str, words: str) -> str:
    """Whether the model pays beside the solver at equal error."""
    faster, even = (
        costs[key][batch] for key in ("times_faster_than_solver", "break_even_trajectories")
    )
    if faster is None:
        errors = [row["error"] for row in costs["solvers"]]
        side = "more" if own > max(errors) else "less"
        return f"{words.capitalize()}: the model has {side} error than the solver on any lattice."
    if even is None:
        return f"{words.capitalize()}: it does not pay, the solver is {1 / faster:.1f} x as fast."
    return (
        f"{words.capitalize()}: the model is {faster:.1f} x as fast as the solver at equal error, "
        f"and has paid after {even:,} trajectories."
    )


SECTIONS = {
    "solver": ("The solver's cost, beside a model's", solver),
    "shifts": ("Inputs unlike the training data", shifts),
    "equal_time": ("Accuracy at equal training time", equal_time),
    "pareto": ("Error against cost, beside the numerical method", pareto),
    "navier_stokes_search": ("Navier-Stokes: the search", navier_stokes_search),
    "pareto_navier_stokes": (
        "Navier-Stokes: error against cost, beside the numerical method",
        pareto_navier_stokes,
    ),
    "equal_time_obstacles": ("Flow past obstacles: accuracy at equal training time", equal_time),
    "obstacles": ("Flow past obstacles: other obstacles, points, and the cost", obstacles),
    "ablation": ("What each part is worth", ablation),
    "stages": ("The later stages", stages),
    "ranking": ("The reward of test-time conditioning", ranking),
    "ranking_navier_stokes": ("Navier-Stokes with an uncertain future: choosing a draw", ranking),
    "kuramoto_sivashinsky": ("Kuramoto-Sivashinsky: time close to the truth", correlation_times),
    "ensembles": ("Ensembles of an uncertain future", ensembles),
    "ensembles_burgers": ("Ensembles of a future that is known", ensembles),
    "throughput": ("Speed and memory", throughput),
    "scaling": ("Training on several processes", scaling),
    "inverse_problem": ("An inverse problem", inverse_problem),
    "readings": ("A flow behind scattered readings", readings),
    "generality": ("Other viscosities, points and times", generality),
}


def summary() -> str:
    """What the tables say, in words."""
    found = []
    if result := read("solver"):
        model, solver = result["rows"]["model"], result["rows"]["solver-256"]
        found.append(
            "In 1D on a CPU the compiled solver is far faster than any model whose error it "
            "reaches. "
            f"On the model's 256 points it has an error of {error(solver['nrmse'])} in "
            f"{solver['ms, one at a time']:.2f} ms a trajectory; {result['model']} has "
            f"{error(model['nrmse'])} in {model['ms, one at a time']:.0f} ms."
        )
    if result := read("pareto_navier_stokes"):
        rows = [row for row in result["rows"] if row.get("times_faster_than_solver", {}).get("1")]
        row = max(rows, key=lambda row: row["times_faster_than_solver"]["1"])
        at_once = next(batch for batch in row["seconds"] if batch != "1")
        faster, even = row["times_faster_than_solver"], row["break_even_trajectories"]["1"]
        found.append(
            "In 2D, over ten frames of flows at nu = 1e-5, the model that saves most is "
            f"{row['name']}: an error of {number(row['errors'])} in "
            f"{1e3 * row['seconds']['1']:.0f} ms. The compiled solver of that error takes "
            f"{faster['1']:.1f} times as long for one trajectory, and {faster[at_once]:.1f} times "
            f"for each of {at_once}"
            + (f"; training has paid after {even:,} of them." if even else ".")
        )
    if result := read("equal_time"):
        errors = {
            name: model["summary"]["5 minutes"]["latent"]["nrmse"]
            for name, model in result["models"].items()
            if "5 minutes" in model.get("summary", {})
        }
        order = sorted(errors, key=lambda name: errors[name]["mean"])
        ranked = ", ".join(f"{name} {number(errors[name])}" for name in order)
        found.append(f"After five minutes of training on Burgers: {ranked}.")
    if result := read("shifts"):
        cases = result["cases"]
        worst = max(cases, key=lambda name: cases[name]["nrmse"]["model"])
        found.append(
            f"{result['model']} fails on fields unlike its training data: its error is "
            f"{error(cases[worst]['nrmse']['model'], 2)} for {worst}, where it warns of "
            f"{cases[worst]['warned']:.0%} of them."
        )
    return "\n".join(f"- {line}" for line in found)


def main() -> None:
    parts = ["# Results", summary(), READING]
    for name, (title, section) in SECTIONS.items():
        if result := read(name):
            earlier = result["about"].get("data") != DATA_VERSION
            mark = [OF_EARLIER_DATA.format(version=DATA_VERSION)] if earlier else []
            made = f"Made by {made_by(result, name)}"
            parts += [f"## {title}", *mark, section(result), made]
    if any("†" in part for part in parts):
        parts.append(FOOTNOTE)
    PAGE.write_text("\n\n".join([*parts, FOOT]) + "\n")
    print(PAGE)


if __name__ == "__main__":
    main()
