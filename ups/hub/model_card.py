"""The card of a model: what it is, its data, its training and its errors.

Every number comes from the files of its run.
"""

from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from ups.core.errors import UpsError
from ups.core.fields import PERIODIC_AXIS, FieldSpec, Grid, PointCloud
from ups.core.io import sha256
from ups.core.renamed_keys import load_config
from ups.evaluation.results import (
    DatasetInfo,
    Evaluation,
    Row,
    merge_evaluations,
    read_evaluations,
    times_in_words,
)
from ups.runs.settings import is_bookkeeping_key
from ups.simulation.checkpoint import STAGES, load, read_checkpoint
from ups.simulation.simulator import Simulator

COMMANDS = ("run.py", "ups.run", "ups")  # names under which ups.run is started
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
    u = sim.rollout(u0, steps={frames}{nu}{given})    # u0 (B, {sizes}) {where} -> \
(B, {frames}, {sizes}), every {dt:g}

{parameters} parameters in float32: {parts}. The model: {model}.

## Data

{data}

## Training

    {command}

| stage | epoch | steps | validation {score} |
| --- | --- | --- | --- |
{stages}

Averaged weights of the epoch with the lowest validation error. The run's last call: {time}, \
commit {commit}, {hardware}, torch {torch}.

## Test

{trajectories} trajectories that training never saw ({dataset}, test set {hash}), {frames} frames \
after the first, in physical space;
`{name}` beside the baselines, {baselines}, all by the same code. Metrics as PDEBench \
defines them; {times}, on the hardware above.

{table}

## Limits

Trained for {nus}steps of {dt:g} and {points}, on initial conditions like those
of its data, and for nothing beyond. Where a baseline has a smaller error at a lower cost, it is \
the better choice.
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
    simulator = load(run)
    results = load_test_results(run)
    cfg = load_config(run / "config.yaml")
    dataset = results.dataset
    origin = results.provenance
    own = [row for row in results.rows if not row.is_baseline]
    rows = own + [row for row in results.rows if row.is_baseline]
    spec = simulator.spec
    values = dataset["nu"] if isinstance(dataset["nu"], list) else [dataset["nu"]]
    nus = [f"{nu:g}" for nu in values if nu is not None]
    sizes = {"model": simulator.model, **simulator.correctors}
    if simulator.noise is not None:
        sizes["noise"] = simulator.noise
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in sizes.items()}
    data = {
        k: v
        for k, v in cfg.data.items()
        if v is not None and k != "_target_" and not is_bookkeeping_key(f"data.{k}")
    }
    if "init_hash" in origin:
        data["init_from"] = f"{origin['init_from']} ({origin['init_hash']})"
    front = {
        **({"license": licence.lower()} if licence else {}),
        "library_name": "ups",
        "tags": ["pde", simulator.equation_name or "data", "neural-operator"],
        "model-index": [{"name": name, "results": [_result(row, dataset) for row in own]}],
    }
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=False),
        name=name,
        equation=simulator.equation.title if simulator.equation else dataset["name"],
        nu=f", nu={nus[0]}" if nus else "",
        nus=f"nu = {', '.join(nus)}, " if nus else "",
        frames=dataset["frames"] - 1,
        **_space(spec),
        dt=simulator.dt,
        parameters=f"{sum(counts.values()):,}",
        parts=", ".join(f"{part} {count:,}" for part, count in counts.items()),
        model=", ".join(f"{key} {value}" for key, value in simulator.model_config.items()),
        data="\n".join(f"- {key}: {value}" for key, value in data.items()),
        command=_training_command(origin["command"]),
        score=_score(cfg, simulator),
        stages="\n".join(
            _stage(run, stem) for stem in list(STAGES.values())[: 1 + len(simulator.correctors)]
        ),
        time=origin["time"],
        commit=f"{origin['commit']}{' with changes' if origin['dirty'] else ''}",
        hardware=origin["hardware"],
        torch=origin["versions"]["torch"],
        baselines="persistence and the numerical solver" if simulator.equation else "persistence",
        trajectories=dataset["trajectories"],
        dataset=dataset["name"],
        hash=dataset["hash"],
        table=_table(rows),
        times=times_in_words(cfg, dataset),
        notes=f"\n## Notes\n\n{notes.strip()}\n" if notes else "",
        licence=licence or "Not stated",
    )


def load_test_results(run: Path) -> Evaluation:
    """Read the test results of all evaluations of a run's weights.

    Raises:
        UpsError: there are none of the run's current weights.
    """
    weights = {path.name: sha256(path)[:12] for path in run.glob("checkpoints/*_ema.ckpt")}
    fresh = read_evaluations(run, weights)
    if not fresh:
        raise UpsError(
            f"{run} has no test results of the weights that it holds; stage=evaluate makes them"
        )
    return merge_evaluations(list(fresh.values()))


def _score(cfg: DictConfig, simulator: Simulator) -> str:
    """The name of what chose the weights."""
    monitor = str(OmegaConf.select(cfg, "callbacks.best.monitor"))
    rollout = "decorrelated fraction" if monitor.endswith("decorrelated_fraction") else "nRMSE"
    if simulator.noise is not None:
        return f"CRPS of draws (operator) or {rollout}"
    return f"{rollout}, latent rollout"


def _stage(run: Path, stem: str) -> str:
    checkpoint = read_checkpoint(run / "checkpoints" / f"{stem}_ema.ckpt")
    return (
        f"| {stem} | {checkpoint['epoch'] + 1} | {checkpoint['global_step']} "
        f"| {checkpoint['validation_nrmse']:.4f} |"
    )


def _result(row: Row, dataset: DatasetInfo) -> dict[str, object]:
    """One entry of Hugging Face's model-index."""
    metrics = [{"type": key, "name": name, "value": row[key]} for key, name in ERRORS.items()]
    return {
        "task": {"type": "rollout", "name": row.label},
        "dataset": {"type": dataset["hash"], "name": dataset["name"], "split": dataset["split"]},
        "metrics": metrics,
    }


def _table(rows: list[Row]) -> str:
    heads = ["rollout", *ERRORS.values(), "ms a trajectory"]
    lines = [
        [
            row.label,
            *(f"{row[key]:.4f}" for key in ERRORS),
            f"{1e3 * row['seconds_per_trajectory']:.1f}",
        ]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *lines))


def _space(spec: FieldSpec) -> dict[str, str]:
    """What the card says of where the fields lie."""
    channels = (str(spec.num_channels),) if spec.num_channels > 1 else ()
    if isinstance(spec.domain, PointCloud):
        names = ", ".join(f'"{name}": ...' for name in spec.parameters)
        parameters = f", parameters={{{names}}}" if names else ""
        box = " x ".join(f"[{first:g}, {last:g}]" for first, last in spec.domain.edges)
        return {
            "sizes": ", ".join(("P", *channels)),
            "where": f"at x, ups.Points in {box}",
            "points": f"points in {box}",
            "given": f"{parameters}, x=x",
        }
    domain = _domain(spec.domain)
    return {
        "sizes": ", ".join((*map(str, spec.domain.shape), *channels)),
        "where": f"on {', '.join('xyz'[: spec.domain.num_dims])} in {domain}",
        "points": f"{' x '.join(map(str, spec.domain.shape))} points of {domain}",
        "given": "",
    }


def _domain(grid: Grid) -> str:
    """Where each axis begins and ends. A periodic one may begin at its first point."""
    axes = []
    for (low, high), first, sides in zip(grid.edges, grid.origin, grid.boundary, strict=True):
        start = first if sides == PERIODIC_AXIS and first == 0 else low
        axes.append(f"[{start:g}, {start + high - low:g})")
    return " x ".join(axes)


def _training_command(recorded: str) -> str:
    """The command without what decides nothing, or how else the run was started."""
    program, *words = recorded.split()
    if Path(program).name not in COMMANDS:
        return "# in Python, with the settings above: ups.fit or ups.pipeline.run"
    decisive = [
        word
        for word in words
        if not is_bookkeeping_key(word.partition("=")[0]) and not word.startswith("name=")
    ]
    return " ".join(["python -m ups.run", *decisive])
