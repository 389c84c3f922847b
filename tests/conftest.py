"""Small things that many tests need."""

import subprocess
import sys

import pytest
import torch

from ups.models import build
from ups.simulation.simulator import Simulator

SPEC = {
    "architecture": "upt",
    "tokens": 8,
    "width": 16,
    "distances": [1, 2],
    "encoder": 1,
    "approximator": 2,
    "decoder": 1,
}
# a run of seconds: the same code, small sizes
TINY = [
    "model=tiny", "model.tokens=8", "model.width=16", "data.points=32", "data.solver_points=64",
    "data.frames=11", "data.train=24", "data.validation=4", "data.test=6",
    "data.windows_per_trajectory=4", "data.batch_size=8", "trainer.max_epochs=3", "preflight=false",
]  # fmt: skip


def make_simulator(points=32, seed=0, **changes):
    torch.manual_seed(seed)
    spec = {**SPEC, **changes}
    x = (torch.arange(points) + 0.5) / points
    return Simulator(build(spec, points), x, dt=0.05, scale=0.6, spec=spec)


def damaged(content, rng):
    """``content`` cut, with bytes flipped, a stretch zeroed, random, doubled or moved."""
    data, kind = bytearray(content), rng.randrange(6)
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    if kind == 0:
        del data[a:]
    elif kind == 1:
        for _ in range(rng.choice((1, 3, 30))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        data[a:b] = bytes(b - a)
    elif kind == 3:
        data[a : a + 64] = rng.randbytes(64)
    elif kind == 4:
        data[a:a] = data[a:b]
    else:
        del data[a:b]
    return bytes(data)


@pytest.fixture
def simulator():
    return make_simulator().eval()


@pytest.fixture
def ups_run(tmp_path):
    """Runs `python -m ups.run ...` in a fresh folder, as a user does."""

    def run(*args, check=True, timeout=600, cwd=tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", "ups.run", *args],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run
