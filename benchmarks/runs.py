"""What the benchmarks share: a run of the command line, a run's own results, mean and spread over seeds, a JSON that is always whole."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from ups.files import write_text
from ups.provenance import git_state, hardware

SEEDS = (0, 1, 2)
RESULTS = Path(__file__).parent / "results"


def ups_runs(*commands: Sequence[str]) -> None:
    """``python -m ups.run`` with each of ``commands``' settings: one with the whole machine, several side by side with a core each.

    Their data are kept in outputs/data. Ends the benchmark where one fails; the same command goes on.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if len(commands) > 1 else None
    calls = [[sys.executable, "-m", "ups.run", "data.directory=outputs/data", *settings] for settings in commands]
    codes = [process.wait() for process in [subprocess.Popen(call, env=environment) for call in calls]]
    if any(codes):
        raise SystemExit(f"runs ended with exit codes {codes}; the same command goes on with what is left")


def own_rows(folder: Path, report: str) -> list[dict[str, Any]]:
    """The rows of a run's own model in one of its reports, without the baselines."""
    rows = json.loads((folder / f"reports/{report}.json").read_text())["rows"]
    return [row for row in rows if row["model"] == rows[0]["model"]]


def training_seconds(folder: Path) -> float:
    """From the first stage's beginning to the test, by the clock of a run's log; the run must not have been interrupted."""

    def when(words: str) -> datetime:
        line = next(line for line in (folder / "run.log").read_text().splitlines() if words in line)
        return datetime.fromisoformat(line[:19])

    return (when("testing") - when("parameters to train")).total_seconds()


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": statistics.mean(values), "stdev": statistics.stdev(values) if len(values) > 1 else None, "seeds": list(values)}


def read(name: str) -> dict[str, Any]:
    """What ``results/<name>.json`` holds so far."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def save(name: str, result: dict[str, Any]) -> None:
    """Write ``results/<name>.json``, with the machine, versions and commit that it was made by."""
    commit, dirty = git_state()
    about = {"hardware": hardware(), "torch": torch.__version__, "commit": commit, "dirty": dirty, "command": " ".join(sys.argv)}
    path = RESULTS / f"{name}.json"
    write_text(path, json.dumps({**result, "about": about}, indent=1) + "\n")
    print("written:", path)
