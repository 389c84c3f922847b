"""The benchmark of a GPU, which runs in small where there is none."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU it takes eight minutes")
def test_all_parts_of_the_gpu_benchmark_run_in_small(tmp_path):
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")  # it writes beside itself
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "benchmarks/results/gpu.json").read_text())
    parts = ("environment", "training", "memory", "rollouts", "solvers", "data", "schedule", "flow")
    assert found.keys() == {*parts, "about"}
    numbers = {
        f"{part}, {name}": value
        for part in found.keys() - {"about", "environment"}
        for name, value in found[part].items()
    }
    assert all(math.isfinite(value) and value > 0 for value in numbers.values()), numbers
    assert numbers.keys() >= {
        "training, memory_upt, batch 4, float32",
        "rollouts, memory_upt, 2 at once",
        "schedule, operator, minutes of all epochs",
        "flow, rollout nRMSE, latent",
    }
