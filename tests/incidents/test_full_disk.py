"""Rows 3, 4, 13: what is written is planned, a reader never writes, and a full disk breaks
nothing.
"""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import TINY, make_simulator
from helpers.commands import call
from helpers.published import pdebench_file

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


def run(folder, *args):
    return call("ups.run", *TINY, *args, cwd=folder)


def refused(done):
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


def test_generation_is_refused_with_both_sizes_when_the_disk_is_too_small(small_disk, tmp_path):
    folder = small_disk("1m")
    text = refused(run(tmp_path, f"data.cache_dir={folder}/data", "data.num_train=2000"))
    assert "the generated data set needs 5.7 MB at" in text
    assert "only 1." in text
    assert not list(folder.rglob("*.hdf5"))


@pytest.mark.slow
def test_preflight_refuses_a_latent_cache_when_the_disk_is_too_small(small_disk, tmp_path):
    folder = small_disk("2m")
    args = [
        "stage=all",
        f"output_dir={folder}",
        f"data.cache_dir={tmp_path}/data",
        "stage.diffusion.data.samples_per_trajectory=2000",
    ]
    text = refused(run(tmp_path, *args, "preflight=true"))
    assert "this run needs" in text
    assert "Epoch" not in text  # before the first stage


def test_latent_cache_is_refused_when_larger_than_its_limit(tmp_path):
    text = refused(run(tmp_path, "stage=all", "stage.diffusion.module.latent_cache_max_bytes=1000"))
    assert "but latent_cache_max_bytes allows 1.0 kB; latent_cache_dtype=null does without" in text


def test_previous_checkpoint_stays_whole_when_the_next_does_not_fit(small_disk):
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


def test_run_ends_in_one_sentence_and_resumes_when_the_disk_fills_up(small_disk, tmp_path):
    folder = small_disk("300k")
    args = [
        "name=one",
        f"output_dir={folder}",
        f"data.cache_dir={tmp_path}/data",
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


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_files_stay_whole_when_any_step_finds_no_space(tmp_path, monkeypatch, step, number):
    path = tmp_path / "file.json"
    io.write_text(path, "before")

    def full(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(
        *{"write": (Path, "write_bytes"), "fsync": (os, "fsync"), "replace": (Path, "replace")}[
            step
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
    folder = tmp_path / "data"
    folder.mkdir()
    path = pdebench_file(
        folder / "1D_Burgers_Sols_Nu0.01.hdf5", trajectories=16, frames=31, points=128
    )
    path.chmod(0o444)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}
    sizes = [
        "data.num_train=8",
        "data.num_validation=2",
        "data.num_test=4",
        "data.batch_size=4",
        "data.num_workers=2",
        "data.in_memory=false",
    ]
    settings = [
        "data=pdebench",
        f"data.path={path}",
        "model=mixer_tiny",
        "trainer.max_epochs=1",
        "name=r",
        *sizes,
    ]
    done = call("ups.run", *settings, "preflight=false", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "outputs"]
    assert sorted(p.name for p in (tmp_path / "outputs").iterdir()) == [
        "leaderboard.csv",
        "leaderboard.csv.lock",
        "leaderboard.html",
        "r",
    ]


def test_latent_cache_changes_nothing_beyond_its_dtype(tmp_path):
    """The same windows by the cache and without it: equal in float32, close in float16."""
    from ups.datamodules import BurgersDataModule
    from ups.simulation.residual_targets import PARTS, LatentCache, residual_targets

    sizes = {
        "num_points": 32,
        "reference_num_points": 64,
        "num_frames": 8,
        "num_train": 4,
        "num_validation": 1,
        "num_test": 1,
    }
    data = BurgersDataModule(
        cache_dir=str(tmp_path),
        **sizes,
        unroll_steps=2,
        batch_size=4,
        samples_per_trajectory=3,
        fixed_windows=True,
    )
    data.prepare_data()
    data.setup()
    loader, simulator = data.train_dataloader(), make_simulator().eval()
    for dtype, close in (("float32", 0.0), ("float16", 1e-3)):
        batches = list(loader.sampler.iter_fixed_batches(loader.dataset))
        cache = LatentCache(
            tmp_path / dtype, simulator, batches, loader.sampler.num_windows, 3, dtype, 1
        )
        for batch in batches:
            anew, cached = residual_targets(simulator, batch, 1), cache.read(batch)
            for part in PARTS:
                assert torch.allclose(
                    getattr(anew, part), getattr(cached, part), rtol=close, atol=close
                ), (dtype, part)
        cache.remove()
