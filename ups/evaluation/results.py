"""Results are data: rows, evaluations, and the one reader of a run's evaluation files.

Tables, reports, the model card, the sweep's summary and the leaderboard are views of these.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict, cast

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec
from ups.core.io import read_json, write_text
from ups.core.settings import PlainDict
from ups.evaluation.examples import Example
from ups.evaluation.wall_distance import ErrorsByDistance

EVALUATIONS = "reports/eval_*.json"  # in a run's folder
Metric = float | list[float]  # a number, or one for each frame
DIVERGED = 1e3  # nRMSE beyond which a rollout only shows that it has diverged
log = logging.getLogger(__name__)


class DatasetInfo(TypedDict):
    """What identifies a test set.

    Args:
        name: the name of the data.
        hash: hash of the values.
        split: "test".
        trajectories: number of trajectories.
        points: number of points.
        frames: number of frames, the initial one included.
        nu: the parameter, one for each file, or None.
    """

    name: str
    hash: str
    split: str
    trajectories: int
    points: int
    frames: int
    nu: float | list[float | None] | None


class Provenance(TypedDict, total=False):
    """The origin of a result; see ``ups.runs.provenance``. Earlier versions lack some entries."""

    time: str
    command: str
    stage: str
    commit: str | None
    dirty: bool | None
    config_hash: str
    data_hash: str | None
    evaluated: dict[str, str]
    seed: int
    init_from: str | None
    init_hash: str
    versions: dict[str, str | None]
    hardware: str


@dataclass(frozen=True, eq=False)
class Row(Mapping[str, Any]):
    """The result of one way to predict; as a mapping it is its entry in an evaluation file.

    Args:
        model: the name of the model or of the baseline.
        mode: "latent" or "physical"; "rollout" of a function that makes whole rollouts.
        correct: the corrector, or "none".
        ttc: whether test-time conditioning was on.
        metrics: everything that was measured, by name.
    """

    model: str
    mode: str
    correct: str
    ttc: bool
    metrics: Mapping[str, Metric]

    @classmethod
    def from_dict(cls, values: PlainDict) -> "Row":
        """Take a row of an evaluation file; a missing setting raises a KeyError."""
        metrics = {RENAMED_METRICS.get(name, name): value for name, value in values.items()}
        return cls(
            model=metrics.pop("model"),
            mode=metrics.pop("mode"),
            correct=metrics.pop("correct"),
            ttc=metrics.pop("ttc"),
            metrics=metrics,
        )

    def to_dict(self) -> dict[str, object]:
        return {
            "model": self.model,
            "mode": self.mode,
            "correct": self.correct,
            "ttc": self.ttc,
            **self.metrics,
        }

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return len(self.to_dict())

    @property
    def setting(self) -> tuple[str, str, str, bool]:
        """What tells the rows of one test set apart."""
        return self.model, self.mode, self.correct, self.ttc

    @property
    def is_baseline(self) -> bool:
        """Whether it is of persistence or of the solver, and so belongs to no run."""
        return self.model == "persistence" or self.model.startswith("solver-")

    @property
    def label(self) -> str:
        """Its name for people: "mixer-small + diffusion + ttc, latent"."""
        corrections = [self.correct] if self.correct != "none" else []
        if self.ttc:
            corrections.append("ttc")
        name = " + ".join([self.model, *corrections])
        return name if self.is_baseline else f"{name}, {self.mode}"

    @property
    def series(self) -> str:
        """Its name in logged series: "ttc_diffusion_latent" in test/ttc_diffusion_latent/nrmse."""
        parts = ["ttc"] if self.ttc else []
        if self.correct != "none":
            parts.append(self.correct)
        return "_".join([*parts, self.mode])


@dataclass(frozen=True)
class Evaluation:
    """The content of an evaluation file.

    Args:
        dataset: description of the test set.
        rows: the results, the run's own first.
        provenance: description of the run. Its "evaluated" has hashes of the weights, by the name
            of their file, and of the settings.
    """

    dataset: DatasetInfo
    rows: Sequence[Row]
    provenance: Provenance

    @classmethod
    def read(cls, path: Path) -> "Evaluation":
        """Read the file ``path``.

        Raises:
            UpsError: it is damaged.
        """
        content = read_json(path)
        try:
            provenance = dict(content.get("provenance", {}))
            provenance["evaluated"] = dict(provenance.get("evaluated", {}))
            return cls(
                cast(DatasetInfo, dict(content["dataset"])),
                [Row.from_dict(row) for row in content["rows"]],
                cast(Provenance, provenance),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UpsError(f"{path} is damaged: it is no evaluation ({error!r})") from None

    def write(self, path: Path) -> None:
        """Write the file ``path``, completely or not at all."""
        content = {
            "dataset": self.dataset,
            "rows": [row.to_dict() for row in self.rows],
            "provenance": self.provenance,
        }
        write_text(path, json.dumps(content, indent=1) + "\n")

    @property
    def time(self) -> str:
        """When it was made, as text that sorts by time."""
        return str(self.provenance.get("time", ""))

    @property
    def weights(self) -> dict[str, str]:
        """Hashes of the weights that it measured, by the name of their file."""
        evaluated = self.provenance.get("evaluated", {})
        return {key: value for key, value in evaluated.items() if key != "settings"}

    def is_fresh(self, evaluated: Mapping[str, str]) -> bool:
        """Whether it measured exactly these weights; and with these "settings", if given."""
        own = dict(self.weights)
        if "settings" in evaluated:
            own["settings"] = self.provenance.get("evaluated", {}).get("settings", "")
        return own == evaluated


def read_evaluations(
    folder: Path, evaluated: Mapping[str, str] | None = None
) -> dict[Path, Evaluation]:
    """Read the fresh evaluations of the run in ``folder``, the newest last.

    A damaged file is left out with a warning.

    Args:
        folder: the run's folder.
        evaluated: what a fresh evaluation measured, see ``Evaluation.is_fresh``; default: the
            weights of the newest one. Comparing files with each other costs no hash of the weights,
            which a table of hundreds of runs could not pay.
    """
    found: dict[Path, Evaluation] = {}
    for path in sorted(folder.glob(EVALUATIONS)):
        try:
            found[path] = Evaluation.read(path)
        except UpsError as error:
            log.warning("%s; it is left out", error)
        except FileNotFoundError:  # its run is being removed
            continue
    ordered = sorted(found.items(), key=lambda item: item[1].time)
    if evaluated is None:
        evaluated = ordered[-1][1].weights if ordered else {}
    return {path: evaluation for path, evaluation in ordered if evaluation.is_fresh(evaluated)}


def merge_evaluations(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Join evaluations, the newest last, to one on the newest's test set.

    Each setting has one row, the newest: baselines are in every file.
    """
    newest = evaluations[-1]
    rows: dict[tuple[str, str, str, bool], Row] = {}
    for evaluation in evaluations:
        if evaluation.dataset == newest.dataset:
            rows |= {row.setting: row for row in evaluation.rows}
    return Evaluation(newest.dataset, list(rows.values()), newest.provenance)


# older name: name. Evaluation files and leaderboards of older versions hold the older names.
RENAMED_METRICS = {
    "mass_gap": "mass_drift",
    "energy_gap": "energy_drift",
    "periodic_gap": "boundary_jump_error",
    "maximum_violation": "maximum_principle_violation",
    "variation_growth": "tv_growth",
    "spread_over_error": "spread_skill_ratio",
    "spread_over_error_rms": "spread_skill_ratio_rms",
    "one_step_spread_over_error": "one_step_spread_skill_ratio",
    "one_step_spread_over_error_rms": "one_step_spread_skill_ratio_rms",
}


class Tested(Protocol):
    """What reports need from a finished test; see ``ups.modules.EvaluationModule``."""

    rows: list[Row]
    examples: dict[str, Example]
    spectra: tuple[Tensor, Tensor] | None
    channel_nrmse: Tensor | None
    errors_by_distance: ErrorsByDistance | None


class TestedData(Protocol):
    """What reports need from the test data."""

    dataset: DatasetInfo
    spec: FieldSpec


def divergence_in_words(rows: Iterable[Row]) -> str:
    """Which rows have diverged, in words; "" if none has."""
    labels = [row.label for row in rows if not row["nrmse"] < DIVERGED]
    return f"diverged: {', '.join(labels)}" if labels else ""


def no_gain_in_words(rows: Iterable[Row]) -> str:
    """Which correctors make single forecasts no more accurate, in words; "" if all do."""
    by_setting = {row.setting: row for row in rows}
    idle = [
        row.correct
        for (model, mode, correct, ttc), row in by_setting.items()
        if correct != "none"
        and (plain := by_setting.get((model, mode, "none", ttc))) is not None
        and not row["nrmse"] < plain["nrmse"]
    ]
    names = ", ".join(dict.fromkeys(idle))
    return f"no more accurate than the operator alone: {names}" if names else ""


def times_in_words(cfg: DictConfig, dataset: DatasetInfo) -> str:
    """How many trajectories were rolled out at once when their time was taken."""
    size = OmegaConf.select(cfg, "data.eval_batch_size")
    if size is None:
        return "times of one trajectory in a batch"
    return f"times of one trajectory in batches of {min(size, dataset['trajectories'])}"
