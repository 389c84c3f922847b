"""A file that can't be read is refused by its cause: locked, no permission, absent, damaged."""

import json
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import torch
from conftest import make_simulator
from helpers.published import pdebench_file

import ups
from ups.callbacks import AtomicCheckpointIO
from ups.core.errors import UpsError
from ups.core.io import read_json, unreadable
from ups.datamodules.readers.arrays import ArrayFile
from ups.datamodules.readers.pdebench import TrajectoryFile
from ups.evaluation.results import read_evaluations
from ups.simulation.checkpoint import read_checkpoint

U = np.zeros((3, 4, 8), np.float32)
OPEN_ELSEWHERE = """
import h5py, sys
file = h5py.File(sys.argv[1], "r+")
print("open", flush=True)
sys.stdin.read()
"""
KILLED_WRITER = """
import h5py, os, sys
file = h5py.File(sys.argv[1], "w", libver="latest")
file["u"] = [0.0]
file.flush()
os._exit(1)
"""


def open_pdebench(path):
    return TrajectoryFile(path)


def open_array(path):
    return ArrayFile(path, dt=0.1, length=1.0)


READERS = [open_pdebench, open_array]


@pytest.mark.integration
@pytest.mark.parametrize("read", READERS)
def test_file_that_another_process_writes_is_locked_and_not_damaged(tmp_path, read):
    path = pdebench_file(tmp_path / "a.hdf5")
    writer = subprocess.Popen(
        [sys.executable, "-c", OPEN_ELSEWHERE, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    writer.stdout.readline()
    with pytest.raises(UpsError, match="is locked: another process has it open") as error:
        read(path)
    writer.communicate()
    assert "damaged" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.integration
@pytest.mark.parametrize("read", READERS)
def test_file_of_a_killed_writer_is_named_so(tmp_path, read):
    path = tmp_path / "a.hdf5"
    subprocess.run([sys.executable, "-c", KILLED_WRITER, path], check=False)
    with pytest.raises(UpsError, match=r"is locked: .* or ended while it did"):
        read(path)


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "is not an HDF5 file"), (b"text" * 99, "is not an HDF5 file")]
)
def test_file_of_another_kind_is_named_so(tmp_path, content, words):
    path = tmp_path / "a.hdf5"
    path.write_bytes(content)
    for read in READERS:
        with pytest.raises(UpsError, match="is not an HDF5 file") as error:
            read(path)
        assert "truncated" not in str(error.value)


def test_truncated_file_is_named_so(tmp_path):
    path = pdebench_file(tmp_path / "a.hdf5")
    path.write_bytes(path.read_bytes()[:900])
    for read in READERS:
        with pytest.raises(UpsError, match="damaged or truncated"):
            read(path)


@pytest.mark.parametrize("suffix", [".hdf5", ".npy", ".npz"])
def test_folder_and_absent_file_are_named_so(tmp_path, suffix):
    read = READERS if suffix == ".hdf5" else READERS[1:]
    path = tmp_path / f"a{suffix}"
    for each in read:
        with pytest.raises(UpsError, match="there is no data file"):
            each(path)
    path.mkdir()
    for each in read:
        with pytest.raises(UpsError, match=r"must be .*, got a folder"):
            each(path)


def write_array(path):
    if path.suffix == ".npy":
        np.save(path, U)
    elif path.suffix == ".npz":
        np.savez(path, u=U)
    elif path.suffix == ".hdf5":
        with h5py.File(path, "w") as file:
            file["u"] = U
    else:
        xarray = pytest.importorskip("xarray")
        xarray.Dataset({"u": (("n", "t", "x"), U)}).to_netcdf(path, engine="h5netcdf")
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".hdf5", ".nc"])
@pytest.mark.parametrize("content", [b"", b"text" * 99, None])
def test_damaged_arrays_are_refused_in_a_sentence(tmp_path, suffix, content):
    path = write_array(tmp_path / f"a{suffix}")
    assert open_array(path).trajectories == 3
    path = tmp_path / f"b{suffix}"
    whole = (tmp_path / f"a{suffix}").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UpsError) as error:
        open_array(path).read(range(3))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_chunk_is_refused_when_it_is_read(tmp_path):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("u", data=U + 1, chunks=(1, 4, 8), compression="gzip")
        place = file["u"].id.get_chunk_info(2)
    content = bytearray(path.read_bytes())
    content[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    path.write_bytes(content)
    with pytest.raises(UpsError, match=r"'u' can't be read, it is damaged"):
        open_array(path).read([2])


ERRORS = [
    (PermissionError(13, "Permission denied"), "can't be read: no permission"),
    (BlockingIOError(11, "Resource temporarily unavailable"), "is locked"),
    (OSError(5, "Input/output error"), "can't be read: Input/output error"),
    (OSError("truncated file: eof = 3"), "damaged or truncated"),
]


@pytest.mark.parametrize(("raised", "words"), ERRORS)
def test_cause_is_that_of_the_system_for_every_reader(tmp_path, monkeypatch, raised, words):
    def fail(*args, **options):
        raise raised

    arrays = {suffix: write_array(tmp_path / f"a{suffix}") for suffix in (".npy", ".npz", ".hdf5")}
    checkpoint = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, checkpoint)
    monkeypatch.setattr(h5py, "File", fail)
    monkeypatch.setattr(np, "load", fail)
    monkeypatch.setattr(zipfile, "ZipFile", fail)
    calls = [(open_array, path) for path in arrays.values()]
    calls += [(AtomicCheckpointIO().load_checkpoint, checkpoint), (read_checkpoint, checkpoint)]
    for call, path in calls:
        with pytest.raises(UpsError, match=words) as error:
            call(path)
        assert str(path) in str(error.value)


def test_cause_of_wrapped_errors_is_found_by_opening_the_file(tmp_path):
    """Readers report a file that they may not open as one of another kind."""
    wrapped = ValueError("did not find a match in any of the installed backends")
    assert "there is no file" in str(unreadable(tmp_path / "a.nc", wrapped, "a NetCDF file"))


def test_permission_of_a_runs_files_is_named(tmp_path, monkeypatch, caplog):
    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied", str(self))

    folder = tmp_path / "run"
    (folder / "reports").mkdir(parents=True)
    path = folder / "reports/eval_operator.json"
    path.write_text(json.dumps({}))
    model = tmp_path / "model"
    make_simulator().save(model)
    monkeypatch.setattr(type(path), "read_bytes", refuse)
    with pytest.raises(UpsError, match="can't be read: no permission"):
        read_json(path)
    assert read_evaluations(folder) == {}
    assert "no permission; it is left out" in caplog.text.replace(".", "")
    with pytest.raises(UpsError, match=r"config\.json can't be read: no permission"):
        ups.load(model)


def test_checkpoint_of_another_kind_is_named_so(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save(make_simulator().state_dict(), path)
    with pytest.raises(UpsError, match="is not a checkpoint of UPS, or is damaged or truncated"):
        ups.load(path)
