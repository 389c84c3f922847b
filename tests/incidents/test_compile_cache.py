"""Row 6: compiled kernels stay in the run's folder, within a limit.

Where they can't be written, training goes on without them.
"""

import logging
import os
import shutil

import pytest
import torch
from conftest import TINY, make_simulator
from helpers.commands import call, run_python

import ups
from ups.callbacks import CompileCachePruner
from ups.core.batch import Batch
from ups.modules import OperatorModule
from ups.runs.training import compile_losses, keep_kernels

pytestmark = pytest.mark.integration  # starts processes, or whole runs

RUN = [
    "-m",
    "ups.run",
    *TINY,
    "trainer.max_epochs=1",
    "name=c",
    "compile=true",
    "stage.operator.module.num_cpu_shards=1",
]


def test_compile_cache_is_emptied_when_larger_than_its_limit(tmp_path, caplog):
    folder = tmp_path / "cache"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/kernel").write_bytes(b"0" * 2000)
    CompileCachePruner(folder, 2000).on_train_epoch_end(None, None)
    assert (folder / "deep/kernel").exists()
    with caplog.at_level(logging.INFO):
        CompileCachePruner(folder, 1999).on_train_epoch_start(None, None)
    assert not folder.exists()
    assert (
        "held 2.0 kB, more than compile_cache_max_bytes allows (2.0 kB), and was emptied"
        in caplog.text
    )


def fail(*arguments, **options):
    raise OSError("no space left on device\nand more")


@pytest.mark.parametrize("compile", [fail, lambda *arguments, **options: fail])
def test_losses_that_can_not_be_compiled_are_eager(monkeypatch, tmp_path, caplog, compile):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # restored after the test
    monkeypatch.setattr(torch, "compile", compile)
    module = OperatorModule(make_simulator())
    batch = Batch(torch.rand(2, 3, 32, 1), torch.ones(2, 1), torch.arange(2), torch.arange(2))
    expected = module.compute_losses(batch)["loss"]
    compile_losses(module, tmp_path)
    with pytest.raises(AttributeError):  # an error of the losses themselves is theirs
        module.compute_losses(None)
    assert not caplog.messages
    assert [module.compute_losses(batch)["loss"] for _ in range(2)] == [expected, expected]
    assert caplog.messages == [
        "torch.compile failed: falling back to eager (no space left on device)"
    ]


def test_kernels_of_the_rehearsal_are_kept_where_they_can_be(tmp_path):
    rehearsed, folder = tmp_path / "rehearsed", tmp_path / "run"
    keep_kernels(rehearsed, folder)  # it compiled none
    (rehearsed / "compile_cache/ab").mkdir(parents=True)
    (rehearsed / "compile_cache/ab/kernel.so").write_text("machine code")
    keep_kernels(rehearsed, folder)
    assert (folder / "compile_cache/ab/kernel.so").read_text() == "machine code"
    (tmp_path / "full").mkdir()
    (tmp_path / "full/compile_cache").write_text("a file where the folder should be")
    keep_kernels(rehearsed, tmp_path / "full")
    assert (tmp_path / "full/compile_cache").is_file()


@pytest.mark.slow
def test_compile_falls_back_to_eager_when_kernels_can_not_be_written(tmp_path):
    (tmp_path / "outputs/c").mkdir(parents=True)
    (tmp_path / "outputs/c/compile_cache").write_text("a file where the folder should be")
    done = run_python(*RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "torch.compile failed: falling back to eager" in done.stdout
    assert (tmp_path / "outputs/c/checkpoints/operator.ckpt").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler on this machine")
def test_compiled_training_has_the_weights_of_eager_training_and_its_kernels_in_the_run(tmp_path):
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    eager = call(*RUN[1:], "compile=false", "name=eager", cwd=tmp_path)
    assert eager.returncode == 0, eager.stdout + eager.stderr
    done = run_python(*RUN, cwd=tmp_path, env={**os.environ, "TMPDIR": str(scratch)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "falling back" not in done.stdout
    kernels = (tmp_path / "outputs/c/compile_cache").rglob("*")
    assert any(path.suffix in (".cpp", ".so") for path in kernels)
    assert not any(path.is_file() for path in scratch.rglob("*.so"))
    eager, compiled = (
        ups.load(tmp_path / f"outputs/{name}").state_dict() for name in ("eager", "c")
    )
    assert all(torch.allclose(eager[key], compiled[key], atol=1e-3) for key in eager)
