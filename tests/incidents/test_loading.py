"""Loading is safe: nothing is unpickled but tensors and plain values, and what doesn't fit says
which keys differ.
"""

import os
import pickle

import h5py
import numpy as np
import pytest
import torch
from conftest import TINY, make_simulator
from helpers.commands import call

import ups
from ups.callbacks import AtomicCheckpointIO
from ups.core.errors import UpsError
from ups.datamodules.readers.pdebench import TrajectoryFile

pytestmark = pytest.mark.integration  # starts processes, or whole runs


class Evil:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def test_load_refuses_a_checkpoint_with_code_and_does_not_run_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, save in (
        ("a.ckpt", torch.save),
        ("b.ckpt", lambda value, path: path.write_bytes(pickle.dumps(value))),
    ):
        save({"state_dict": {}, "simulator": Evil()}, tmp_path / name)
        with pytest.raises(UpsError, match=rf"{name} is not a checkpoint of UPS"):
            ups.load(tmp_path / name)
        with pytest.raises(UpsError, match=rf"{name} is not a checkpoint"):
            AtomicCheckpointIO().load_checkpoint(tmp_path / name)
    assert not (tmp_path / "hacked").exists()


def test_trajectory_file_refuses_pickled_objects(tmp_path):
    path = tmp_path / "1D_Burgers_Sols_Nu0.01.hdf5"
    with h5py.File(path, "w") as file:
        file["tensor"] = np.array([np.void(pickle.dumps(Evil()))] * 3)
        file["x-coordinate"] = file["t-coordinate"] = np.arange(4.0)
    with pytest.raises(UpsError, match="'tensor' must be"):
        TrajectoryFile(path)


def test_load_names_the_keys_that_differ_when_the_architecture_does(tmp_path):
    simulator = make_simulator()
    state = {f"simulator.{k}": v for k, v in make_simulator(hidden_dim=24).state_dict().items()}
    AtomicCheckpointIO().save_checkpoint(
        {"state_dict": state, "simulator": simulator.config()}, tmp_path / "x.ckpt"
    )
    with pytest.raises(
        UpsError,
        match=(
            r"x\.ckpt holds weights of another architecture; \d+ keys differ: "
            r"model\.approximator\.0\.b1, .*"
        ),
    ):
        ups.load(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    "override",
    [
        "name=../out",
        "name=..",
        "name=a/b",
        "name=/tmp/out",
        "stage.name=../../out",
        "model.name=../../out",
        "stage.operator.data.cache_dir=null",
    ],
)
def test_run_writes_nowhere_else_when_names_in_configs_are_paths(tmp_path, override):
    folder = tmp_path / "inner"
    folder.mkdir()
    call("ups.run", *TINY, "trainer.max_epochs=1", override, cwd=folder)
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    assert {path.name for path in folder.iterdir()} <= {"outputs"}
