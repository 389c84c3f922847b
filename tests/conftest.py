"""Small things that many tests need."""

import os

# workers side by side, each with a thread for every core, wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from helpers import pictures
from helpers.commands import call

from ups.callbacks import GracefulStop
from ups.core.fields import FieldSpec, Grid
from ups.models import build
from ups.simulation.simulator import Simulator

SPEC = {
    "architecture": "mixer",
    "num_tokens": 8,
    "hidden_dim": 16,
    "dilations": [1, 2],
    "encoder_depth": 1,
    "approximator_depth": 2,
    "decoder_depth": 1,
}
# a run of seconds: the same code, small sizes
TINY = [
    "model=mixer_tiny", "model.num_tokens=8", "model.hidden_dim=16", "data.num_points=32",
    "data.reference_num_points=64", "data.num_frames=11",
    "data.num_train=24", "data.num_validation=4", "data.num_test=6",
    "data.samples_per_trajectory=4", "data.batch_size=8", "trainer.max_epochs=3", "preflight=false",
]  # fmt: skip
NUM_BASELINES = 3  # of such a run: persistence, and the solver on 16 and 32 points


def stop_after(patch, steps):
    """Have every training stop, as at a signal, after so many steps."""

    def stop(self, trainer):
        if trainer.global_step == steps:
            self.signal = "SIGTERM"
        stop_if_asked(self, trainer)

    stop_if_asked = GracefulStop._stop_if_asked
    patch.setattr(GracefulStop, "_stop_if_asked", stop)


def ring(tokens):
    """The grid of so many tokens on a periodic line."""
    return Grid((tokens,), (1.0,))


def line_spec(points=32, **changes):
    """A scalar with one parameter on a periodic line of ``points`` points."""
    return FieldSpec(Grid((points,), (1.0,)), **{"parameters": ("nu",), "dt": 0.05, **changes})


def make_simulator(points=32, seed=0, equation="burgers", **changes):
    torch.manual_seed(seed)
    config = {**SPEC, **changes}
    spec = line_spec(points, std=(0.6,))
    return Simulator(build(config, spec), spec, equation, config)


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


pictures.blank()


@pytest.fixture
def drawn():
    """Runs draw their pictures and pages, which are blank in other tests."""
    with pictures.drawn():
        yield


@pytest.fixture
def simulator():
    return make_simulator().eval()


@pytest.fixture
def ups_run(tmp_path):
    """Runs `python -m ups.run ...` in a fresh folder, as a user does."""

    def run(*args, check=True, timeout=600, cwd=tmp_path):
        done = call("ups.run", *args, cwd=cwd, timeout=timeout)
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run
