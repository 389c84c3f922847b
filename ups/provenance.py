"""Where a result comes from: code, configuration, data, versions, hardware."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from ups.config import decides_nothing, flat
from ups.errors import UpsError
from ups.files import sha256, write_text
from ups.parallel import is_first_process
from ups.stages import FILES, weights

PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "h5py", "numpy", "torchmetrics")


def note_provenance(cfg: DictConfig, folder: Path, data_hash: str | None = None) -> dict[str, Any]:
    """Write provenance.json, a description of this run that goes into every report and, where it is flat, every leaderboard row too."""
    commit, dirty = git_state()
    told = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "commit": commit,
        "dirty": dirty,
        "config_hash": config_hash(cfg),
        "data_hash": data_hash,
        "evaluated": evaluated(cfg, folder),
        "seed": cfg.seed,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in ("ups", *PACKAGES)}},
        "hardware": hardware(),
    }
    if is_first_process():
        write_text(folder / "provenance.json", json.dumps(told, indent=1) + "\n")
    return told


def refuse_other_than_expected(cfg: DictConfig) -> None:
    """Compare with ``expect.*`` what the code and the configuration of the command are.

    Raises:
        UpsError: one is another; says which, and what was expected.
    """
    commit, dirty = git_state()
    _refuse_other(cfg, "commit", commit)
    _refuse_other(cfg, "config_hash", config_hash(cfg))
    if cfg.expect.commit is not None and dirty:
        raise UpsError(f"expect.commit={cfg.expect.commit}, but files of the repository have been changed since")


def refuse_other_data(cfg: DictConfig, data_hash: str) -> None:
    """Compare with ``expect.data_hash``, once it is known, the test set's hash; an UpsError where it is another."""
    _refuse_other(cfg, "data_hash", data_hash)


def _refuse_other(cfg: DictConfig, name: str, found: str | None) -> None:
    expected = cfg.expect[name]
    if expected is not None and not (found or "").startswith(expected):
        raise UpsError(f"expect.{name}={expected}, but this is {found or 'unknown'}")


def evaluated(cfg: DictConfig, folder: Path) -> dict[str, str]:
    """What decides an evaluation: the hash of each file of weights in the run's folder, and that of the settings."""
    groups = ("data.", "ttc.", "stage.evaluate", "model.name")
    deciding = {key: value for key, value in flat(cfg).items() if key.startswith(groups) and not decides_nothing(key)}
    files = {stage: weights(folder, stage) for stage in FILES}
    hashes = {path.name: sha256(path)[:12] for path in files.values() if path.exists()}
    return {**hashes, "settings": _hash(deciding)}


def config_hash(cfg: DictConfig) -> str:
    """Hash of every key that decides a result."""
    deciding = {key: value for key, value in flat(cfg).items() if not decides_nothing(key)}
    return _hash(deciding)


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def hardware() -> str:
    """In words: processor and cores, or GPU."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{os.cpu_count()} x {model or platform.machine()}"


def git_state() -> tuple[str | None, bool | None]:
    """The commit that this code is of, and whether it has been changed since; nothing where it is installed without its repository."""
    folder = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder.parent:
            return None, None  # installed inside somebody else's repository
        known = git("status", "--porcelain", "--untracked-files=no")  # what somebody leaves beside the code is no change of it
        return git("rev-parse", "HEAD"), bool(known or git("status", "--porcelain", "--", ":/ups", ":/conf"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
