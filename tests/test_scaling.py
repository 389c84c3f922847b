"""The benchmark behind docs/scaling.md: what it counts, what it plans, and two processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def scaling():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield pytest.importorskip("scaling")


@pytest.fixture(scope="module")
def counts(scaling):
    return scaling.count(scaling.configuration())


def test_counts_without_values_are_those_of_a_real_step(scaling, counts):
    torch.manual_seed(0)
    cfg = scaling.configuration()
    module, batch = scaling.untrained(cfg, 2)
    batch.u.copy_(torch.randn_like(batch.u))
    batch.parameters.fill_(1e-3)
    optimizer = module.build_optimizer()
    loss, kept = scaling.forward(module, batch)
    loss.backward()
    optimizer.step()
    parameters = list(module.parameters())
    state = [value for each in optimizer.state.values() for value in each.values()]
    held = [*parameters, *(p.grad for p in parameters), *state]
    assert counts.window_activation_bytes == kept / 2
    assert counts.state_bytes == sum(tensor.nbytes for tensor in held)
    assert counts.gradient_bytes == 4 * counts.parameters == 4 * sum(p.numel() for p in parameters)


def test_counts_of_a_window_do_not_depend_on_the_batch(scaling, counts):
    assert scaling.count(scaling.configuration(), 5) == counts


def test_counts_of_products_are_those_of_their_formula(scaling):
    """Of the optimizer: five iterations, of three products of each square matrix."""
    cfg = scaling.configuration("model.depth=3", "model.hidden_channels=16", "model.mlp_ratio=1")
    counts = scaling.count(cfg)
    square = 3 * 2 * 16**3
    wide = 2 * 16 * 48 * 16 + 2 * 16**3 + 2 * 16 * 16 * 48
    assert counts.optimizer_flop == 3 * 5 * (square + wide)


def test_counts_include_attention(scaling, monkeypatch):
    """Two products of Q x N x W operations forwards and five backwards, twice two encoders and
    decoders and once the approximator, of one block each.
    """
    depths = [f"model.{part}_depth=1" for part in ("encoder", "approximator", "decoder")]
    cfg = scaling.configuration("model=upt", "data.unroll_steps=1", *depths)
    found = scaling.count(cfg, 1).window_flop
    monkeypatch.setattr(scaling, "ATTENTION", {})
    without = scaling.count(cfg, 1).window_flop
    queries = 2 * (64 + 64) + 64 + 2 * (64 + 256)
    assert found - without == 7 * 2 * queries * 64 * 48


def test_plan_follows_from_counts(scaling):
    counts = scaling.Counts(
        parameters=10,
        window_bytes=0,
        window_flop=3e9,
        window_activation_bytes=1e6,
        optimizer_flop=5e9,
        gradient_bytes=4 * 10**7,
        state_bytes=10**8,
    )
    gpu = scaling.GPU(flops=1e12, memory_bytes=1e9, node_bandwidth=1e10, network_bandwidth=1e9)
    assert scaling.plan(counts, gpu) == {
        "windows_that_fit": 900,
        "seconds_of_a_window": pytest.approx(3e-3),
        "seconds_of_the_optimizer": pytest.approx(5e-3),
        "seconds_of_an_all_reduce_in_a_node": pytest.approx(8e-3),
        "seconds_of_an_all_reduce_between_nodes": pytest.approx(8e-2),
        "windows_that_hide_it_in_a_node": pytest.approx(4),
        "windows_that_hide_it_between_nodes": pytest.approx(40),
    }


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(counts):
    """With the same global batch, step by step; and they send all gradients once a step."""
    script = "import json, scaling; print(json.dumps(scaling.compare(1, 2)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=BENCHMARKS, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["losses"] == 4
    assert found["bytes_sent_a_step"] == counts.gradient_bytes
    differences = [way["largest_relative_difference_of_a_loss"] for way in found["ways"].values()]
    assert differences[0] == 0
    assert max(differences) < 1e-5
