"""The card of a model: what it is, its data, its training and its errors.

Every number comes from the files of its run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from ups.core.errors import UpsError
from ups.core.io import read_json, sha256
from ups.core.settings import is_bookkeeping_key
from ups.physics import EQUATIONS
from ups.simulation.checkpoint import CHAIN, load, read_checkpoint

ERRORS = {
    "nrmse": "rollout nRMSE",
    "one_step_nrmse": "one step",
    "rmse": "RMSE",
    "max_error": "max error",
}
CARD = """---
{front}---

# {name}

{equation}

    import ups
    sim = ups.load("{name}")    # a path to this folder, or the name of a model that comes with UPS
    u = sim.rollout(u0, steps={steps}, nu={nu:g})    # u0 (B, {points}) on x in [0, {length:g}) -> \
(B, {steps}, {points}), every {dt:g}

{parameters} parameters in float32: {parts}. The model: {model}.

## Data

{data}

## Training

    python -m ups.run {command}

| stage | epoch | steps | validation nRMSE, latent rollout |
| --- | --- | --- | --- |
{stages}

Averaged weights of the epoch with the lowest validation error. The run's last call: {time}, \
commit {commit}, {hardware}, torch {torch}.

## Test

{trajectories} trajectories that training never saw ({dataset}, test set {hash}), {frames} frames \
from t = 0, in physical space;
`{name}` beside persistence and the numerical solver, all by the same code. Metrics as PDEBench \
defines them; times on the hardware above.

{table}

## Limits

Trained for nu = {nus}, steps of {dt:g} and {points} points of a periodic line of length \
{length:g}, on initial conditions like those
of its data, and for nothing beyond. Where the rows of the solver stand below its own, the solver \
is the better choice.
{notes}
## Licence

{licence}
"""


def render_model_card(run: Path, name: str, licence: str | None = None, notes: str = "") -> str:
    """Render the card of a run's simulator in Markdown with Hugging Face's front matter.

    Args:
        run: the run directory.
        name: the name of the model.
        licence: the licence of the model; None if there is none.
        notes: additional text that no file of the run holds.

    Raises:
        UpsError: the run has no test results of its current weights.
    """
    simulator, results = load(run), load_test_results(run)
    cfg, dataset, origin, rows = (
        OmegaConf.load(run / "config.yaml"),
        results["dataset"],
        results["provenance"],
        results["rows"],
    )
    own = [row for row in rows if row["model"] == rows[0]["model"]]
    rows = own + [row for row in rows if row not in own]
    words = [
        word
        for word in origin["command"].split()[1:]
        if not is_bookkeeping_key(word.partition("=")[0]) and not word.startswith("name=")
    ]
    nus = dataset["nu"] if isinstance(dataset["nu"], list) else [dataset["nu"]]
    sizes = {"model": simulator.model, **simulator.correctors}
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in sizes.items()}
    data = {
        k: v
        for k, v in cfg.data.items()
        if v is not None and k != "_target_" and not is_bookkeeping_key(f"data.{k}")
    }
    front = {
        **({"license": licence.lower()} if licence else {}),
        "library_name": "ups",
        "tags": ["pde", simulator.equation, "neural-operator"],
        "model-index": [{"name": name, "results": [_result(row, dataset) for row in own]}],
    }
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=False),
        name=name,
        equation=str(EQUATIONS[simulator.equation].__doc__).splitlines()[0],
        nu=nus[0],
        nus=", ".join(f"{nu:g}" for nu in nus),
        steps=dataset["frames"] - 1,
        frames=dataset["frames"] - 1,
        points=dataset["points"],
        length=simulator.length,
        dt=simulator.dt,
        parameters=f"{sum(counts.values()):,}",
        parts=", ".join(f"{part} {count:,}" for part, count in counts.items()),
        model=", ".join(f"{key} {value}" for key, value in simulator.spec.items()),
        data="\n".join(f"- {key}: {value}" for key, value in data.items()),
        command=" ".join(words),
        stages="\n".join(_stage(run, stem) for stem in CHAIN[: 1 + len(simulator.correctors)]),
        time=origin["time"],
        commit=f"{origin['commit']}{' with changes' if origin['dirty'] else ''}",
        hardware=origin["hardware"],
        torch=origin["versions"]["torch"],
        trajectories=dataset["trajectories"],
        dataset=dataset["name"],
        hash=dataset["hash"],
        table=_table(rows),
        notes=f"\n## Notes\n\n{notes.strip()}\n" if notes else "",
        licence=licence or "Not stated",
    )


def load_test_results(run: Path) -> dict[str, Any]:
    """Read the test results of all evaluations of a run: {"dataset", "provenance", "rows"}.

    Raises:
        UpsError: there are none of the run's current weights.
    """
    results = [read_json(path) for path in sorted(run.glob("reports/eval_*.json"))]
    files = {path.name: sha256(path)[:12] for path in run.glob("checkpoints/*_ema.ckpt")}
    fresh = [r for r in results if files.items() <= r["provenance"]["evaluated"].items()]
    if not fresh:
        raise UpsError(
            f"{run} has no test results of the weights that it holds; stage=evaluate makes them"
        )
    # the key removes the copies of baselines, which each file holds
    rows = {
        (r["model"], r["mode"], r["correct"], r["ttc"]): r
        for result in fresh
        for r in result["rows"]
    }
    return {**fresh[0], "rows": list(rows.values())}


def _stage(run: Path, stem: str) -> str:
    checkpoint = read_checkpoint(run / "checkpoints" / f"{stem}_ema.ckpt")
    return (
        f"| {stem} | {checkpoint['epoch'] + 1} | {checkpoint['global_step']} "
        f"| {checkpoint['validation_nrmse']:.4f} |"
    )


def _label(row: Mapping[str, Any]) -> str:
    return (
        row["mode"]
        + (f" + {row['correct']}" if row["correct"] != "none" else "")
        + (" + ttc" if row["ttc"] else "")
    )


def _result(row: Mapping[str, Any], dataset: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of Hugging Face's model-index."""
    metrics = [{"type": key, "name": name, "value": row[key]} for key, name in ERRORS.items()]
    return {
        "task": {"type": "rollout", "name": _label(row)},
        "dataset": {"type": dataset["hash"], "name": dataset["name"], "split": dataset["split"]},
        "metrics": metrics,
    }


def _table(rows: list[Mapping[str, Any]]) -> str:
    heads = ["model", "rollout", *ERRORS.values(), "ms a trajectory"]
    lines = [
        [
            row["model"],
            _label(row),
            *(f"{row[key]:.4f}" for key in ERRORS),
            f"{1e3 * row['seconds_per_trajectory']:.1f}",
        ]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *lines))
