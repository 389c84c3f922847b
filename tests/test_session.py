"""A run in a notebook leaves its process as it was, also when it fails."""

import logging
import os
import random
import signal
import warnings

import numpy as np
import pytest
import torch
from conftest import TINY
from hydra import compose, initialize_config_dir
from lightning.pytorch.utilities import rank_zero_only

import ups
from ups import pipeline
from ups.core.errors import UpsError
from ups.run import CONF
from ups.runs.session import restored_session

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1)


def state():
    """Everything of a process that a run might change."""
    root = logging.getLogger()
    numbers = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    return {
        "handlers": root.handlers[:],
        "levels": [
            logging.getLogger(name).level
            for name in ("", "lightning", "lightning.pytorch", "lightning.fabric", "ups")
        ],
        "raises": logging.raiseExceptions,
        "signals": [signal.getsignal(sign) for sign in SIGNALS],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "filters": warnings.filters[:],
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "compiler": torch._dynamo.config.suppress_errors,
        "numbers": str(numbers),
        "rank": rank_zero_only.rank,
    }


@pytest.fixture
def session(tmp_path, monkeypatch):
    """A session with its own handlers, as a notebook has them."""
    monkeypatch.chdir(tmp_path)
    handlers = {sign: signal.signal(sign, lambda *_: None) for sign in SIGNALS}
    stream = logging.StreamHandler()
    logging.getLogger().addHandler(stream)
    yield stream
    logging.getLogger().removeHandler(stream)
    for sign, handler in handlers.items():
        signal.signal(sign, handler)


def configured(*overrides):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", [*TINY, "trainer.max_epochs=1", *overrides])


@pytest.mark.parametrize(
    "overrides",
    [
        ("trainer.max_time=00:01:00:00",),
        ("+trainer.deterministic=true", "+trainer.benchmark=true"),
        ("seed=3", "callbacks.best=null"),  # fails at its end
        ("data.path=nowhere_nu0.1.hdf5",),  # fails at its start
    ],
)
def test_run_restores_the_session(session, overrides):
    before = state()
    fails = any("null" in word or "nowhere" in word for word in overrides)
    try:
        pipeline.run(configured(*overrides))
    except UpsError:
        assert fails
    else:
        assert not fails
    after = state()
    assert {key for key in before if before[key] != after[key]} == set()
    assert logging.getLogger().handlers.count(session) == 1


def test_fit_restores_the_session(session):
    u = np.sin(np.linspace(0, 6, 16) + np.arange(20)[:, None, None] + np.arange(6)[:, None] / 5)
    before = state()
    overrides = ["model=mixer_tiny", "model.num_tokens=8", "preflight=false"]
    overrides.append("trainer.max_epochs=1")
    ups.fit(u, dt=0.1, length=1.0, overrides=overrides)
    after = state()
    assert {key for key in before if before[key] != after[key]} == set()


def test_comparison_restores_the_session(session):
    phase = np.arange(20)[:, None, None] + np.arange(6)[:, None] / 5
    np.save("waves.npy", np.sin(phase + np.arange(32) * np.pi / 16))
    before = state()
    data = [
        "data=own",
        "data.path=waves.npy",
        "data.dt=0.1",
        "data.length=1",
        "data.unroll_steps=2",
    ]
    ups.compare({"same": lambda u: u}, data)
    after = state()
    assert {key for key in before if before[key] != after[key]} == set()


def test_block_restores_what_it_changes(session):
    before = state()
    with pytest.raises(KeyboardInterrupt), restored_session():
        logging.getLogger().handlers[:] = [logging.NullHandler()]
        logging.getLogger("lightning").setLevel(logging.CRITICAL)
        logging.raiseExceptions = False
        for sign in SIGNALS:
            signal.signal(sign, signal.SIG_IGN)
        os.environ["UPS_OF_A_TEST"] = "1"
        os.environ.pop("PATH")
        os.chdir("/")
        warnings.simplefilter("ignore")
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(before["threads"] + 1)
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(True)
        torch.set_grad_enabled(False)
        torch.backends.cudnn.benchmark = not before["cudnn"][0]
        torch._dynamo.config.suppress_errors = True
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        rank_zero_only.rank = 5
        raise KeyboardInterrupt
    after = state()
    assert {key for key in before if before[key] != after[key]} == set()
