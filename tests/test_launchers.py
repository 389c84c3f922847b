"""A sweep by any launcher leaves what the basic one leaves; several machines train as one.

The file for rented GPUs is one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import NUM_BASELINES, TINY
from helpers.commands import run_python
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from ups.evaluation import leaderboard
from ups.run import CONF

pytestmark = pytest.mark.integration  # starts processes, or whole runs

TASK = Path(__file__).parents[1] / "launch/sky.yaml"


def hydra_config(*args):
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", [*args], return_hydra_config=True)
    GlobalHydra.instance().clear()
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "plugin"),
    [
        ("local", "hydra_plugins.hydra_joblib_launcher"),
        ("submitit_local", "hydra_plugins.hydra_submitit_launcher"),
        ("ray", "hydra_plugins.hydra_ray_launcher"),
    ],
)
def test_a_sweep_leaves_what_the_basic_launcher_leaves(tmp_path, monkeypatch, launcher, plugin):
    pytest.importorskip(plugin, reason=f"{plugin} is not installed, see docs/launching.md")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes a token there
    sweep = ["-m", "name=sweep", "lambda_inv=0.5,-1,0", *TINY, "trainer.max_epochs=1"]
    done = run_python("-m", "ups.run", *sweep, f"hydra/launcher={launcher}", cwd=tmp_path)
    text = done.stdout + done.stderr
    assert done.returncode == 2, text
    assert (
        "`lambda_inv` must be a number >= 0, got -1." in text or launcher == "submitit_local"
    )  # whose jobs write to files of their own
    assert "1 of 3 jobs have not finished" in text
    assert "sweep: rollout nRMSE on the test set" in text
    table = tmp_path / "outputs/leaderboard.csv"
    before, rows = table.read_bytes(), leaderboard.read(table)
    assert sorted((row["name"] == "baseline", row["mode"]) for row in rows) == [
        *[(False, "latent")] * 2,
        *[(False, "physical")] * 2,
        *[(True, "physical")] * NUM_BASELINES,
    ]
    again = run_python("-m", "ups.run", *sweep, cwd=tmp_path)
    assert again.stdout.count("finished already") == 2
    assert table.read_bytes() == before


def test_a_slurm_job_asks_for_what_the_configuration_says(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
    from omegaconf import OmegaConf

    cfg = hydra_config(
        "hydra/launcher=slurm",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.gpus_per_node=1",
        "output_dir=somewhere",
    )
    asked = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
    assert asked.pop("submitit_folder") == "somewhere/.submitit/%j"
    asked = {
        key if key in set(OmegaConf.structured(BaseQueueConf)) else f"slurm_{key}": asked[key]
        for key in asked
        if key != "_target_"
    }
    (tmp_path / "srun").touch(0o755)  # by which submitit knows a cluster
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    executor = submitit.AutoExecutor(
        tmp_path, cluster="slurm", slurm_max_num_timeout=asked.pop("slurm_max_num_timeout")
    )
    executor.update_parameters(**asked)
    script = executor._executor._make_submission_file_text("python -m x", "uid")
    for line in (
        "--partition=gpu",
        "--gpus-per-node=1",
        "--cpus-per-task=4",
        "--mem=16GB",
        "--time=240",
    ):
        assert f"#SBATCH {line}\n" in script


def starts(kind, rank):
    """The environment and the program by which torchrun, or srun, starts one of two processes."""
    if kind == "torchrun":
        program = [
            "-m",
            "torch.distributed.run",
            "--nnodes=2",
            f"--node-rank={rank}",
            "--nproc-per-node=1",
            "--master-addr=127.0.0.1",
        ]
        return {}, [
            *program,
            "--master-port=29617",
            "-m",
            "ups.run",
            "trainer.num_nodes=2",
            "trainer.devices=1",
        ]
    job = {
        "JOB_ID": 77,
        "JOB_NAME": "ups",
        "NTASKS": 2,
        "NTASKS_PER_NODE": 2,
        "NNODES": 1,
        "NODELIST": "127.0.0.1",
        "NODEID": 0,
    }
    task = {"PROCID": rank, "LOCALID": rank}
    return {f"SLURM_{key}": str(value) for key, value in {**job, **task}.items()}, [
        "-m",
        "ups.run",
        "trainer.devices=2",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torchrun", "srun"])
def test_processes_that_are_started_from_outside_train_as_one(tmp_path, kind):
    args = [
        "name=one",
        *TINY,
        "data.batch_size=4",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
        "stage.operator.module.num_cpu_shards=1",
    ]
    args += ["callbacks.on_finish='echo x >> over'"]
    processes = []
    for rank in (0, 1):
        environment, program = starts(kind, rank)
        where = {"cwd": tmp_path, "env": {**os.environ, **environment, "OMP_NUM_THREADS": "1"}}
        command = [sys.executable, *program, *args]
        processes.append(
            subprocess.Popen(
                command, **where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    texts = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    assert [text.count("Epoch 1/1") for text in texts] == [1, 0]
    assert [row["name"] for row in leaderboard.read(tmp_path / "outputs/leaderboard.csv")] == [
        "one",
        "one",
        *["baseline"] * NUM_BASELINES,
    ]
    assert (tmp_path / "over").read_text() == "x\n" * (
        2 if kind == "torchrun" else 1
    )  # once a machine


def test_the_rented_machine_runs_a_command_of_ups():
    task = yaml.safe_load(TASK.read_text())
    command = (
        task["run"]
        .strip()
        .removeprefix(".venv/bin/python -m ups.run ")
        .replace("$ARGS", task["envs"]["ARGS"])
    )
    cfg = hydra_config(*command.split())
    assert (cfg.stage.name, cfg.output_dir, cfg.data.cache_dir) == ("all", "/outputs", "data")
    assert cfg.output_dir in task["file_mounts"]


def test_skypilot_reads_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(TASK.parents[1])  # where its workdir is meant to be
    sky = pytest.importorskip(
        "sky",
        reason=(
            "SkyPilot is no part of the environment: it wants an older click, see docs/launching.md"
        ),
    )
    task = sky.Task.from_yaml(str(TASK))
    for resources in task.resources:
        assert resources.autostop_config.enabled
        assert not resources.autostop_config.down
        assert resources.job_recovery["recover_on_exit_codes"] == [3]
    assert task.storage_mounts["/outputs"].mode.value == "MOUNT_CACHED"
