"""Reports as one self-contained html file: of one run, and of several runs side by side."""

import csv
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader
from omegaconf import DictConfig, OmegaConf

from ups.core.errors import UpsError
from ups.core.fields import Grid
from ups.core.io import write_text
from ups.core.renamed_keys import load_config
from ups.core.settings import flatten_config
from ups.evaluation.ensembles import calibrated_coverage
from ups.evaluation.report import plots
from ups.evaluation.report.animation import animation
from ups.evaluation.report.point_plots import curves_on_points
from ups.evaluation.results import (
    DatasetInfo,
    Provenance,
    Row,
    Tested,
    TestedData,
    divergence_in_words,
    merge_evaluations,
    no_gain_in_words,
    read_evaluations,
    times_in_words,
)
from ups.simulation.picture import can_draw

Series = tuple[list[float], list[float]]  # steps and values
# heading, key, digits
HEADLINE = (
    ("rollout nRMSE", "nrmse", 4), ("last frame", "last_frame", 4),
    ("one step", "one_step_nrmse", 4), ("RMSE", "rmse", 4), ("max error", "max_error", 3),
    ("mass (cRMSE)", "crmse", 5), ("ms a trajectory", "milliseconds", 2),
)  # fmt: skip
CHECKS = (
    ("VRMSE, relative to the fluctuation", "vrmse"),
    ("mass drift", "mass_drift"), ("energy drift", "energy_drift"),
    ("boundary jump error", "boundary_jump_error"),
    ("beyond the initial range", "maximum_principle_violation"),
    ("growth of variation", "tv_growth"),
    ("growth of energy", "energy_growth"), ("correlation time", "correlation_time"),
)  # fmt: skip
ENSEMBLES = (
    ("CRPS", "crps", 4), ("energy score", "energy_score", 4),
    ("nRMSE of the mean", "ensemble_nrmse", 4), ("spread / error", "spread_skill_ratio", 2),
    ("coverage of 90 %", "coverage_90", 2),
)  # fmt: skip


@dataclass
class RunResults:
    """The results of a run, read from its folder.

    Args:
        folder: the run's folder.
        dataset: description of the test set.
        rows: rows of the evaluation by label.
        config: the run's configuration.
    """

    folder: Path
    dataset: DatasetInfo
    rows: dict[str, Row]
    config: DictConfig

    @classmethod
    def read(cls, folder: Path) -> "RunResults":
        """Read the fresh evaluations in ``folder`` that are of the newest one's test set.

        Raises:
            UpsError: ``folder`` is not a run that has been tested.
        """
        found = read_evaluations(folder)
        if not found or not (folder / "config.yaml").exists():
            raise UpsError(
                f"{folder} holds no reports/eval_*.json and config.yaml: "
                "it is not a run that has been tested"
            )
        result = merge_evaluations(list(found.values()))
        config = load_config(folder / "config.yaml")
        return cls(folder, result.dataset, {row.label: row for row in result.rows}, config)

    def curves(self) -> dict[str, dict[str, Series]]:
        """Read the series of the csv logger: steps and values by stage and name.

        A resumed run has several files.
        """
        found: dict[str, dict[str, dict[float, float]]] = {}
        for path in sorted(
            self.folder.glob("logs/version_*/metrics.csv"),
            key=lambda path: int(path.parent.name[8:]),
        ):
            with path.open(newline="") as file:
                for line in csv.DictReader(file):
                    for key, value in line.items():
                        kind, _, name = key.partition("/")
                        stage, _, name = name.partition("/")
                        if value and (
                            kind == "training" or (kind == "validation" and name == "nrmse")
                        ):
                            label = name if kind == "training" else "validation nRMSE"
                            found.setdefault(stage, {}).setdefault(label, {})[
                                float(line["step"])
                            ] = float(value)
        return {
            stage: {
                label: (sorted(values), [values[k] for k in sorted(values)])
                for label, values in series.items()
            }
            for stage, series in found.items()
        }


def write_run(
    cfg: DictConfig, tested: Tested, data: TestedData, folder: Path, origin: Provenance
) -> Path:
    """Write ``reports/report.html`` of a run that has just been tested.

    Args:
        cfg: the run's configuration.
        tested: results of the test.
        data: the test data.
        folder: the run's folder.
        origin: the run's provenance.

    Returns:
        The path of the page.
    """
    dataset = data.dataset
    run = RunResults(folder, dataset, {row.label: row for row in tested.rows}, cfg)
    spec = data.spec
    by_channel = []
    if spec.num_channels > 1 and tested.channel_nrmse is not None:
        svg = plots.channel_errors(tested.channel_nrmse, spec)
        by_channel = [{"title": "error over time of each channel, of the first row", "svg": svg}]
    curves = [
        {"title": "error over time", "svg": plots.error_over_time(run.rows, spec.dt)},
        *by_channel,
        *curves_on_points(tested, spec),
        *_ensemble_curves(run.rows, spec.dt),
        {"title": "error against cost, on this machine", "svg": plots.error_against_cost(run.rows)},
        *_spectra(tested),
        *(
            {"title": f"learning curves: {stage}", "svg": plots.learning_curves(series)}
            for stage, series in run.curves().items()
        ),
    ]
    median = tested.examples["median"]
    is_on_grid = isinstance(spec.domain, Grid)
    is_animated = is_on_grid and spec.domain.num_dims > 1
    path = folder / "reports/report.html"
    commit = (
        f"{origin['commit'][:10]}{' and changes' if origin['dirty'] else ''}"
        if origin["commit"]
        else "unknown"
    )
    _write(
        path,
        title=f"UPS: {cfg.name}",
        lines=[
            "{name}: {trajectories} test trajectories (set {hash}), {points} points, "
            "{n} frames after the first.".format(**dataset, n=dataset["frames"] - 1),
            f"Commit {commit}, seed {origin['seed']}, {origin['hardware']}, {origin['time']}.",
        ],
        tables=[
            _headline(run.rows, {times_in_words(cfg, dataset)}),
            *_ensembles(run.rows),
            _checks(run.rows),
        ],
        images=plots.rollouts(tested.examples, spec) if can_draw(spec) else [],
        has_wide_images=not is_on_grid,
        animation=animation(median.truth, median.pred, spec) if is_animated else None,
        curves=curves,
        texts=[
            {"title": "Settings", "text": OmegaConf.to_yaml(cfg, resolve=True)},
            {"title": "Provenance", "text": json.dumps(origin, indent=1)},
        ],
    )
    return path


def _spectra(tested: Tested) -> list[dict[str, str]]:
    """The picture of the spectra, if there are any: fields on points have none."""
    if tested.spectra is None:
        return []
    title = "energy spectrum at the last frame, mean over test trajectories"
    return [{"title": title, "svg": plots.spectra(*tested.spectra)}]


def write_comparison(
    folders: Sequence[Path], path: Path, is_hidden: Callable[[str], bool] = lambda key: False
) -> None:
    """Write the headline tables, curves and settings of several runs side by side.

    Args:
        folders: the runs' folders.
        path: the html file to write.
        is_hidden: whether a key is left out of the settings that differ.

    Raises:
        UpsError: a folder is not a run that has been tested.
    """
    runs = {str(folder): RunResults.read(folder) for folder in folders}
    hashes = {run.dataset["hash"] for run in runs.values()}
    rows: dict[str, Row] = {}
    for label, run in runs.items():
        # baselines belong to a test set
        apart = (
            f" ({run.dataset['name']}, test set {run.dataset['hash']})" if len(hashes) > 1 else ""
        )
        rows |= {
            f"{key}{apart}" if row.is_baseline else f"{label}: {key}": row
            for key, row in run.rows.items()
        }
    stages: dict[str, dict[str, Series]] = {}
    for label, run in runs.items():
        for stage, series in run.curves().items():
            stages.setdefault(stage, {}).update(
                {
                    f"{label}: {name}": values
                    for name, values in series.items()
                    if name in ("loss", "validation nRMSE")
                }
            )
    times = {times_in_words(run.config, run.dataset) for run in runs.values()}
    lines = ["Compared: " + ", ".join(runs) + "."]
    if len(hashes) > 1:
        lines.append(
            f"Careful: they were tested on different test sets ({', '.join(sorted(hashes))}); "
            "their errors are not comparable."
        )
    _write(
        path,
        title="UPS: " + " beside ".join(runs),
        lines=lines,
        tables=[
            _headline(rows, times),
            *_ensembles(rows),
            _checks(rows),
            _differences(runs, is_hidden),
        ],
        curves=[
            {"title": "error over time", "svg": plots.error_over_time(rows, None)},
            *_ensemble_curves(rows, None),
            {
                "title": "error against cost, each on the machine that tested it",
                "svg": plots.error_against_cost(rows),
            },
            *(
                {"title": f"learning curves: {stage}", "svg": plots.learning_curves(series)}
                for stage, series in stages.items()
            ),
        ],
    )


def _write(path: Path, **content: object) -> None:
    template = Environment(
        loader=PackageLoader("ups.evaluation.report", "."), autoescape=True, trim_blocks=True
    ).get_template("page.html")
    write_text(path, template.render(**content))


def _headline(rows: Mapping[str, Row], times: Collection[str]) -> dict[str, object]:
    """The table of errors and cost.

    Args:
        rows: rows by label.
        times: what the times of the rows are of.
    """
    known = {
        label: {
            **row,
            "last_frame": row["nrmse_over_time"][-1],
            "milliseconds": 1e3 * row["seconds_per_trajectory"],
        }
        for label, row in rows.items()
    }
    # fields on points lack some metrics
    columns = [each for each in HEADLINE if any(each[1] in values for values in known.values())]
    found = [
        [label, *(_cell(values.get(key), digits) for _, key, digits in columns)]
        for label, values in known.items()
    ]
    remarks = (divergence_in_words(rows.values()), no_gain_in_words(rows.values()))
    words = (" or ".join(sorted(times)), *remarks)
    note = (
        "In physical space, of rollouts from the first frame; the mean over frames and "
        f"trajectories; {'; '.join(filter(None, words))}. Grey: baselines."
    )
    return _table("Errors and cost", note, [head for head, _, _ in columns], rows, found)


def _cell(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if value < 1e6 else f"{value:.1e}"


def _checks(rows: Mapping[str, Row]) -> dict[str, object]:
    checks = [(head, key) for head, key in CHECKS if any(key in row for row in rows.values())]
    found = [
        [label, *(f"{row[key]:.3g}" if key in row else "-" for _, key in checks)]
        for label, row in rows.items()
    ]
    note = (
        "What a solution must not do (0 is right), "
        "and the time for which the correlation with the truth stays above 0.8."
    )
    return _table("Physics checks", note, [head for head, _ in checks], rows, found)


def _with_draws(rows: Mapping[str, Row]) -> dict[str, Row]:
    """The rows that have an ensemble; evaluations of earlier versions have no scores of it."""
    return {label: row for label, row in rows.items() if "rank_histogram" in row}


def _ensembles(rows: Mapping[str, Row]) -> list[dict[str, object]]:
    """The table of the scores of draws, if there are any."""
    drawn = _with_draws(rows)
    if not drawn:
        return []
    cells = [
        [label, *(f"{row[key]:.{digits}f}" for _, key, digits in ENSEMBLES)]
        for label, row in drawn.items()
    ]
    sizes = sorted({len(row["rank_histogram"]) - 1 for row in drawn.values()})
    reached = [f"{calibrated_coverage(size):.2f} for {size} draws" for size in sizes]
    note = (
        "Of rollouts drawn at temperature 1. The CRPS is in standard deviations of the field, the "
        "energy score relative to the truth; lower is better. Calibrated draws have a spread / "
        f"error of 1 and a coverage of {' and '.join(reached)}."
    )
    return [_table("Ensembles", note, [head for head, _, _ in ENSEMBLES], drawn, cells)]


def _ensemble_curves(rows: Mapping[str, Row], dt: float | None) -> list[dict[str, str]]:
    """The pictures of the calibration of draws, if there are any."""
    drawn = _with_draws(rows)
    if not drawn:
        return []
    return [
        {
            "title": "spread of draws and error of their mean over time",
            "svg": plots.spread_and_error(drawn, dt),
        },
        {
            "title": "rank of the truth among draws, at all points and frames",
            "svg": plots.rank_histograms(drawn),
        },
    ]


def _table(
    title: str, note: str, heads: list[str], rows: Mapping[str, Row], cells: list[list[str]]
) -> dict[str, object]:
    """A table without the columns that say the same in all rows; its note says them once."""
    columns = list(zip(*cells, strict=True))
    same = [i for i, column in enumerate(columns) if i and len(rows) > 1 and len(set(column)) == 1]
    if same:
        named = ", ".join(f"{heads[i - 1]} {columns[i][0]}" for i in same)
        note += f" The same in all rows: {named}."
    heads = [head for i, head in enumerate(heads, 1) if i not in same]
    cells = [[cell for i, cell in enumerate(line) if i not in same] for line in cells]
    lines = zip(rows.values(), cells, strict=True)
    baselines_last = sorted(lines, key=lambda line: line[0].is_baseline)
    return {
        "title": title,
        "note": note,
        "heads": ["", *heads],
        "rows": [{"baseline": row.is_baseline, "cells": line} for row, line in baselines_last],
    }


def _differences(
    runs: Mapping[str, RunResults], is_hidden: Callable[[str], bool]
) -> dict[str, object]:
    settings = [
        {key: str(value) for key, value in flatten_config(run.config).items() if not is_hidden(key)}
        for run in runs.values()
    ]
    lines = [
        [key, *(values.get(key, "-") for values in settings)]
        for key in sorted({key for values in settings for key in values})
    ]
    return {
        "title": "Settings that differ",
        "heads": ["", *runs],
        "rows": [{"cells": line} for line in lines if len(set(line[1:])) > 1],
    }
