"""README and docs: every command and every piece of Python in them runs, at small sizes.

The site builds without a warning.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import call, run_python
from helpers.pages import blocks, write_files
from helpers.published import pdebench_file
from test_point_readers import write_transient_flows, write_vtk

import ups

# starts processes, or whole runs, which draw what their readers see
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("drawn")]

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SIZES = [
    "data.num_train=8", "data.num_validation=2", "data.num_test=4", "data.samples_per_trajectory=4",
    "data.batch_size=8", "preflight=false", "trainer.max_epochs=1",
    "stage.diffusion.trainer.max_epochs=1", "stage.consistency.trainer.max_epochs=1",
    "ttc.num_candidates=2",
]  # fmt: skip
GENERATED = ["data.num_points=32", "data.reference_num_points=64", "data.num_frames=7"]
ALL_STAGES = "python -m ups.run stage=all"  # README and others show it
FIRST = ["model=mixer_tiny", "model.num_tokens=16", "model.hidden_dim=16"]


def commands():
    """The commands of all pages but that of the fixture; of those the same in small, the first."""
    found = {}
    for page in PAGES:
        lines = [line for block in blocks(page.read_text()) for line in block.splitlines()]
        inline = [
            line
            for line in re.findall(r"`(python -m ups[^`]*)`", page.read_text())
            if "launcher" not in line
        ]
        for line in [*lines, *inline]:
            line = " ".join(line.split("  #")[0].split())
            if re.match(r"python -m ups\.", line):
                found.setdefault(what_runs(line), (page.name, line))
    del found[what_runs(ALL_STAGES)]
    return [pytest.param(line, id=f"{name}: {line[14:]}") for name, line in found.values()]


def what_runs(line):
    """The words of a command but those that change nothing, once it is small."""
    words = small(shlex.split(line))
    last = {word.partition("=")[0]: word for word in words}  # of two values the last one counts
    if last.get("stage") == "stage=operator" and "experiment" not in last:
        del last["stage"]  # the default
    if "stage=evaluate" not in words:  # which is of the run of that name
        last.pop("name", None)
    return frozenset(last.values())


def pieces():
    texts = [
        (page.name, block)
        for page in PAGES
        for block in blocks(page.read_text())
        if re.search(r"^(import|from) ups", block, flags=re.M)
    ]
    return [pytest.param(text, id=f"{name} {i}") for i, (name, text) in enumerate(texts)]


FLOWS = [
    "data.num_frames=10", "data.flows.resolution=8", "data.flows.start_time=0.5",
    "data.flows.num_points=[100,200]",
]  # fmt: skip
POINT_MODEL = ["++model.num_points=128"]


def small(words):
    """The command's words, and what makes it small; of the values in a sweep the first two."""
    if "-m" in words[3:]:
        words = [re.sub(r"^([\w.]+=[^,\[]+,[^,]+),.*", r"\1", word) for word in words]
    if words[2] != "ups.run" or {"--help", "--cfg"} & set(words):
        return words
    if {"data=meshes", "data=transient_flow", "data.path=flows.h5"} & set(words):
        lengths = [word for word in SIZES if not word.startswith("data.num_")]
        return [*words, *lengths, *POINT_MODEL, "data.unroll_steps=2"]  # a few frames
    if "data=obstacles" in words:
        return [*words, *SIZES, *FLOWS, *POINT_MODEL]
    if "init_from=burgers-small" in words:  # which has 256 points
        return [*words, *SIZES, "data.num_frames=7"]
    sizes = [
        *SIZES,
        *(
            []
            if any("pdebench" in w or w in ("experiment=burgers_upt", "data=own") for w in words)
            else GENERATED
        ),
    ]
    if not any(word.startswith("model=") or "experiment=smoke" in word for word in words):
        sizes += FIRST
    if "data=navier_stokes_uncertain" in words:
        sizes += ["data.observed_points=16", "data.start_time=0.5"]
    if "hparams_search=optuna" in words:
        sizes += ["hydra.sweeper.n_trials=2"]
    return [*words, *sizes]


@pytest.fixture(scope="session")
def run_of_all_stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("all")
    run(folder, shlex.split(ALL_STAGES))
    return folder / "outputs/burgers"


def prepare(folder, words, trained):
    """What the reader of the page has at hand: PDEBench's files, the runs that are named, the
    files that the page shows.
    """
    for name in ("1D_Burgers_Sols_Nu0.001.hdf5", "1D_Advection_Sols_beta0.4.hdf5"):
        pdebench_file(folder / name, trajectories=16, frames=31, points=128)
    for name in {
        match[1] for word in words if (match := re.match(r"(?:init_from=)?outputs/(\w+)", word))
    }:
        if "loss=crps" in words:  # begins with an operator of the same data
            before = [w for w in words if not w.startswith(("loss=", "init_from=", "name="))]
            run(folder, [*before, f"name={name}"])
        else:
            shutil.copytree(trained, folder / "outputs" / name)
    if "--config-dir" in words or any("sobolev" in word for word in words):
        for page in ("extending", "korteweg_de_vries"):
            write_files((ROOT / f"docs/{page}.md").read_text(), folder)
    write_waves(folder)
    if "data.path=flows" in words:
        write_transient_flows(folder / "flows")
    if "data.path=flows.h5" in words:
        write_point_cloud(folder)
    if "data.path=meshes" in words:
        write_vtk(folder / "meshes")
    if "stage=evaluate" in words:
        run(folder, ["stage=operator" if word == "stage=evaluate" else word for word in words])


def write_point_cloud(folder):
    """By the page's own piece of Python."""
    (piece,) = (
        block
        for block in blocks((ROOT / "docs/own_data.md").read_text())
        if 'h5py.File("flows.h5"' in block
    )
    rng = np.random.default_rng(0)
    positions = [rng.random((points, 2)) for points in rng.integers(20, 40, 100)]
    arrays = {
        "positions": positions,
        "distances": [np.ones(len(each)) for each in positions],
        "fields": [rng.normal(size=(6, len(each), 3)) for each in positions],
        "reynolds": np.full(100, 50.0),
    }
    with contextlib.chdir(folder):
        exec(piece, arrays)


def write_waves(folder):
    np.save(folder / "waves.npy", np.random.default_rng(0).normal(size=(24, 31, 128)))


def run(folder, words):
    words = small(words)[2:]
    starts_processes = any("launcher" in word or "devices=2" in word for word in words)
    done = run_python("-m", *words, cwd=folder) if starts_processes else call(*words, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_a_command(command, tmp_path, run_of_all_stages):
    words = shlex.split(command)
    prepare(tmp_path, words, run_of_all_stages)
    run(tmp_path, words)


@pytest.mark.slow
@pytest.mark.parametrize("text", pieces())
def test_a_piece_of_python(text, tmp_path, run_of_all_stages, monkeypatch):
    shutil.copytree(run_of_all_stages, tmp_path / "outputs/burgers")
    monkeypatch.chdir(tmp_path)
    write_waves(tmp_path)
    if "outputs/smoke-obstacles" in text:
        words = ["stage=operator", "data=obstacles", "experiment=smoke"]
        run(tmp_path, ["python", "-m", "ups.run", *words])
    torch.manual_seed(0)
    sim = ups.load("outputs/burgers")
    exec(text, {"sim": sim, "u0": torch.randn(2, 32), "x": torch.rand(32), "x_out": torch.rand(50)})


def test_all_pages_are_read():
    assert len(commands()) > 15
    assert len(pieces()) >= 3


def test_benchmarks_that_are_named_are_there():
    named = {
        name for page in PAGES for name in re.findall(r"benchmarks/(\w+)\.py", page.read_text())
    }
    assert named
    subprocess.run(
        [sys.executable, "-c", f"import {', '.join(sorted(named))}"],
        cwd=ROOT / "benchmarks",
        check=True,
    )


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the docs extra")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tutorial/index.html").exists()
