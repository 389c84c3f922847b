"""Rows 3, 4, 13: what is written is planned, a reader never writes, and a full disk breaks
nothing.
"""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, make_simulator

from ups.callbacks import AtomicCheckpointIO
from ups.core import io
from ups.core.errors import UpsError

pytestmark = pytest.mark.integration  # starts processes, or whole runs


@pytest.fixture
def small_disk(tmp_path):
    """Makes a filesystem of a given size, mounted for real."""
    mounted = []

    def make(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        if (
            shutil.which("mount") is None
            or subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
            ).returncode
        ):
            pytest.skip("a small filesystem can't be mounted here, which needs root")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def run(folder, *args, timeout=600):
    return subprocess.run(
        [sys.executable, "-m", "ups.run", *TINY, *args],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def refused(done):
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


def test_generated_data_that_the_disk_can_not_hold_are_refused_with_both_numbers(
    small_disk, tmp_path
):
    folder = small_disk("1m")
    text = refused(run(tmp_path, f"data.directory={folder}/data", "data.train=2000"))
    assert "the generated data set needs 2.8 MB at" in text
    assert "only 1." in text
    assert not list(folder.rglob("*.hdf5"))


def test_a_latent_cache_that_the_disk_can_not_hold_is_refused_by_the_preflight(
    small_disk, tmp_path
):
    folder = small_disk("2m")
    args = [
        "stage=all",
        f"output_dir={folder}",
        f"data.directory={tmp_path}/data",
        "stage.diffusion.data.windows_per_trajectory=2000",
    ]
    text = refused(run(tmp_path, *args, "preflight=true"))
    assert "this run needs" in text
    assert "Epoch" not in text  # before the first stage


def test_a_latent_cache_beyond_its_limit_is_refused(tmp_path):
    text = refused(run(tmp_path, "stage=all", "stage.diffusion.module.latent_cache_limit=1000"))
    assert "but latent_cache_limit allows 1.0 kB; latent_cache=null does without" in text


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_it_whole(small_disk):
    folder = small_disk("1m")
    path = folder / "one.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.ones(1000)}}, path)
    with pytest.raises(
        UpsError,
        match=r"one\.ckpt needs 2\.\d MB at .*one\.ckpt, but only \d+\.\d [kM]B are free there",
    ):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(500_000)}}, path)
    assert bool((AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["w"] == 1).all())
    assert os.listdir(folder) == ["one.ckpt"]


def test_a_disk_that_fills_up_during_a_run_ends_it_with_a_sentence_and_it_goes_on_later(
    small_disk, tmp_path
):
    folder = small_disk("300k")
    args = [
        "name=one",
        f"output_dir={folder}",
        f"data.directory={tmp_path}/data",
        "callbacks.last.every_n_train_steps=2",
    ]
    (folder / "ballast").write_bytes(b"0" * 150_000)
    text = refused(run(tmp_path, *args))
    assert "free there" in text or "no space left" in text
    for path in folder.rglob("*.ckpt"):
        torch.load(path, weights_only=True)  # whole
    assert not list(folder.rglob("*.part"))
    (folder / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", folder], check=True)
    done = run(tmp_path, *args)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_at_any_call_leaves_what_was_there(tmp_path, monkeypatch, call, number):
    path = tmp_path / "file.json"
    io.write_text(path, "before")

    def full(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(
        *{"write": (Path, "write_bytes"), "fsync": (os, "fsync"), "replace": (Path, "replace")}[
            call
        ],
        full,
    )
    with pytest.raises(
        UpsError,
        match=(
            r"no space left on the disk while .*file\.json was written; "
            r"the file that stood there before is whole"
        ),
    ):
        io.write_text(path, "after")
    monkeypatch.undo()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file.json"]


def test_readers_and_workers_never_write(tmp_path):
    """Training from a file, by the main process and by workers, leaves the data's folder as it
    was, also where it can't be written.
    """
    from test_data import pdebench_file

    folder = tmp_path / "data"
    folder.mkdir()
    path = pdebench_file(
        folder / "1D_Burgers_Sols_Nu0.01.hdf5", trajectories=16, frames=31, points=128
    )
    path.chmod(0o444)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}
    sizes = [
        "data.train=8",
        "data.validation=2",
        "data.test=4",
        "data.batch_size=4",
        "data.num_workers=2",
        "data.in_memory=false",
    ]
    command = [
        sys.executable,
        "-m",
        "ups.run",
        "data=pdebench",
        f"data.path={path}",
        "model=tiny",
        "trainer.max_epochs=1",
        "name=r",
        *sizes,
    ]
    done = subprocess.run(
        [*command, "preflight=false"], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "outputs"]
    assert sorted(p.name for p in (tmp_path / "outputs").iterdir()) == [
        "leaderboard.csv",
        "leaderboard.csv.lock",
        "leaderboard.html",
        "r",
    ]


def test_a_cache_changes_nothing_beyond_its_dtype(tmp_path):
    """The same windows by the cache and without it: equal in float32, close in float16."""
    from ups.datamodules import BurgersDataModule
    from ups.simulation.residual_targets import PARTS, LatentCache, residual_targets

    sizes = {"points": 32, "solver_points": 64, "frames": 8, "train": 4, "validation": 1, "test": 1}
    data = BurgersDataModule(
        directory=str(tmp_path),
        **sizes,
        window=2,
        batch_size=4,
        windows_per_trajectory=3,
        repeat=True,
    )
    data.prepare_data()
    data.setup()
    loader, simulator = data.train_dataloader(), make_simulator().eval()
    for dtype, close in (("float32", 0.0), ("float16", 1e-3)):
        batches = list(loader.sampler.iter_fixed_batches(loader.dataset))
        cache = LatentCache(
            tmp_path / dtype, simulator, batches, loader.sampler.windows, 3, dtype, 1
        )
        for batch in batches:
            anew, cached = residual_targets(simulator, batch, 1), cache.read(batch)
            for part in PARTS:
                assert torch.allclose(
                    getattr(anew, part), getattr(cached, part), rtol=close, atol=close
                ), (dtype, part)
        cache.remove()
