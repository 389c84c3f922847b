"""Other systems than Linux, and file systems without locks."""

import errno
import importlib
import logging
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest
import torch
from filelock import FileLock, Timeout

from ups.callbacks import resource_probe
from ups.core import io
from ups.core.errors import UpsError
from ups.core.io import check_disk_space
from ups.core.locks import file_lock
from ups.runs.launchers import auto_accelerators, usable_accelerator


@pytest.fixture
def without_proc(monkeypatch):
    """A system without /proc and without a GPU."""

    def absent(self, *args, **options):
        raise FileNotFoundError(errno.ENOENT, "No such file", str(self))

    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_bytes_on_each_system(without_proc, monkeypatch, platform, unit):
    usage = SimpleNamespace(ru_maxrss=3_000_000)
    fake = SimpleNamespace(getrusage=lambda who: usage, RUSAGE_SELF=0)
    monkeypatch.setattr(resource_probe, "resource", fake)
    monkeypatch.setattr(sys, "platform", platform)
    assert resource_probe._peak_memory_bytes() == 3_000_000 * unit


def test_peak_memory_is_unknown_without_the_module_resource(without_proc, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    try:
        importlib.reload(resource_probe)
        assert resource_probe.resource is None
        assert resource_probe._peak_memory_bytes() == 0
    finally:
        monkeypatch.undo()
        importlib.reload(resource_probe)


def test_disk_space_is_known_without_statvfs(monkeypatch, tmp_path):
    monkeypatch.delattr(io.os, "statvfs")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    check_disk_space(tmp_path / "a/b", 1000, "this")
    with pytest.raises(UpsError, match=r"needs 1\.0 kB at .*only 1\.0 kB are free"):
        check_disk_space(tmp_path / "a/b", 1001, "this")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOLCK, "No locks available"),
        OSError(errno.EOPNOTSUPP, "Operation not supported"),
        NotImplementedError("flock"),
    ],
)
def test_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog, error):
    def refuse(self):
        raise error

    monkeypatch.setattr(filelock.FileLock, "_acquire", refuse)
    with caplog.at_level(logging.WARNING), file_lock(tmp_path / "lock"):
        pass
    assert "has no locks; don't start two calls there at once" in caplog.text


def test_other_errors_of_locks_are_raised(tmp_path, monkeypatch):
    def refuse(self):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(filelock.FileLock, "_acquire", refuse)
    with pytest.raises(OSError, match="Input/output"), file_lock(tmp_path / "lock"):
        pass


def test_lock_is_held_and_released(tmp_path):
    path = tmp_path / "lock"
    with file_lock(path):
        with pytest.raises(Timeout), FileLock(path).acquire(timeout=0):
            pass
        with pytest.raises(Timeout), file_lock(path, waits=False):
            pass
    with pytest.raises(ZeroDivisionError), file_lock(path, waits=False):
        raise ZeroDivisionError
    with file_lock(path, waits=False):
        pass


def test_mac_trains_on_its_cpu(monkeypatch):
    assert [usable_accelerator(name) for name in ("auto", "cpu", "gpu")] == ["auto", "cpu", "gpu"]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [usable_accelerator(name) for name in ("auto", "cpu")] == ["cpu", "cpu"]
    assert auto_accelerators() == ("auto", "cpu")
    for name in ("mps", "gpu"):
        with pytest.raises(UpsError, match=r"`trainer\.accelerator` must be cpu on this machine"):
            usable_accelerator(name)
