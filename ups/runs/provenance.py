"""The origin of a result: code, configuration, data, versions, hardware."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from omegaconf import DictConfig

from ups.core.errors import UpsError
from ups.core.io import sha256, write_text
from ups.evaluation.results import Provenance
from ups.runs.distributed import is_first_process
from ups.runs.meaning import deciding_settings
from ups.runs.stages import initial_weights_hash, weights_path
from ups.simulation.checkpoint import STAGES

PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "h5py", "numpy", "torchmetrics")


def write_provenance(cfg: DictConfig, folder: Path, data_hash: str | None = None) -> Provenance:
    """Write provenance.json, the description of this run in every report.

    Its flat entries are also columns of the leaderboard.

    Args:
        cfg: the configuration.
        folder: the run's folder.
        data_hash: hash of the test set, once it is known.

    Returns:
        The description.
    """
    commit, dirty = git_state()
    provenance: Provenance = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "stage": cfg.stage.name,
        "commit": commit,
        "dirty": dirty,
        "config_hash": config_hash(cfg),
        "data_hash": data_hash,
        "evaluated": evaluation_fingerprint(cfg, folder),
        "seed": cfg.seed,
        **_initial_weights(cfg, folder),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("ups", *PACKAGES)},
        },
        "hardware": hardware(),
    }
    if is_first_process():
        write_text(folder / "provenance.json", json.dumps(provenance, indent=1) + "\n")
    return provenance


def _initial_weights(cfg: DictConfig, folder: Path) -> Provenance:
    """With what the operator's training began, once it has."""
    initial = initial_weights_hash(folder)
    return {} if initial is None else {"init_from": cfg.get("init_from"), "init_hash": initial}


def check_expected_provenance(cfg: DictConfig) -> None:
    """Compare the code and the configuration with ``expect.*``.

    Raises:
        UpsError: one of them differs. The message has both values.
    """
    commit, dirty = git_state()
    _refuse_other(cfg, "commit", commit)
    _refuse_other(cfg, "config_hash", config_hash(cfg))
    if cfg.expect.commit is not None and dirty:
        raise UpsError(
            f"expect.commit={cfg.expect.commit}, but files of the repository "
            "have been changed since"
        )


def check_expected_data(cfg: DictConfig, data_hash: str) -> None:
    """Compare the test set's hash with ``expect.data_hash``.

    Raises:
        UpsError: they differ.
    """
    _refuse_other(cfg, "data_hash", data_hash)


def _refuse_other(cfg: DictConfig, name: str, actual: str | None) -> None:
    expected = cfg.expect[name]
    if expected is not None and not (actual or "").startswith(expected):
        raise UpsError(f"expect.{name}={expected}, but this is {actual or 'unknown'}")


def evaluation_fingerprint(cfg: DictConfig, folder: Path) -> dict[str, str]:
    """What decides an evaluation: a hash of each file of weights and one of the settings.

    Args:
        cfg: the configuration.
        folder: the run's folder.
    """
    groups = ("data.", "ttc.", "stage.evaluate", "model.name")
    settings = deciding_settings(cfg)
    deciding = {key: value for key, value in settings.items() if key.startswith(groups)}
    files = {stage: weights_path(folder, stage) for stage in STAGES}
    hashes = {path.name: sha256(path)[:12] for path in files.values() if path.exists()}
    return {**hashes, "settings": _hash(deciding)}


def config_hash(cfg: DictConfig) -> str:
    """A hash of all keys that decide a result."""
    return _hash(deciding_settings(cfg))


def _hash(values: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def hardware() -> str:
    """Describe the hardware: processor and number of cores, or GPU."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""
        )
    return f"{os.cpu_count()} x {model or platform.machine()}"


def git_state() -> tuple[str | None, bool | None]:
    """The commit of this code, and whether the code has been changed since.

    Both are None if it is installed without its repository.
    """
    folder = Path(__file__).resolve().parents[1]  # ups

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder.parent:
            return None, None  # installed inside another repository
        # untracked files outside ups and conf are no change of the code
        changed_files = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD"), bool(
            changed_files or git("status", "--porcelain", "--", ":/ups", ":/conf")
        )
    except (OSError, subprocess.SubprocessError):
        return None, None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
