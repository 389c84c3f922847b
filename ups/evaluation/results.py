"""Results as rows, the content of an evaluation file and of the leaderboard."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ups.core.io import write_text

Row = Mapping[str, Any]


class Tested(Protocol):
    """What reports need from a finished test; see ``ups.modules.EvaluationModule``."""

    rows: list[dict[str, Any]]
    examples: dict[str, tuple[Tensor, Tensor]]
    spectra: tuple[Tensor, Tensor] | None


class TestedData(Protocol):
    """What reports need from the test data."""

    dataset: dict[str, Any]
    dt: float
    length: float


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON, completely or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def leaderboard_rows(
    name: str,
    stage: str,
    dataset: Mapping[str, Any],
    rows: Sequence[Row],
    provenance: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Flatten the rows of an evaluation for the leaderboard; lists are left out.

    The entries of the data set and of the provenance become columns.

    Args:
        name: name of the run.
        stage: the ``stage`` of the command.
        dataset: description of the test set.
        rows: rows of the evaluation, the run's own first.
        provenance: description of the run.
    """
    about = {f"dataset.{key}": value for key, value in dataset.items()}
    origin = {key: value for key, value in provenance.items() if not isinstance(value, Mapping)}
    versions = {f"version.{key}": value for key, value in provenance["versions"].items()}
    flat = [
        {key: value for key, value in row.items() if not isinstance(value, list)} for row in rows
    ]
    own = rows[0]["model"]
    # baselines belong to the data set and not to a run: they have one row each
    return [
        {
            "name": name if r["model"] == own else "baseline",
            "stage": stage,
            **r,
            **about,
            **origin,
            **versions,
        }
        for r in flat
    ]
