"""Batches split over CPU threads by the Trainer's strategy."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader

from ups.core.batch import Batch
from ups.modules import BaseModule
from ups.modules.sharding import ShardedDDP, ShardedSingleDevice, sharded_strategy


class CountedModule(BaseModule):
    """Its loss is (weight * drawn * parameter)^2. It records the sizes of its batches."""

    stage = "counted"

    def __init__(self, num_cpu_shards):
        super().__init__()
        self.save_hyperparameters()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.frozen = nn.Parameter(torch.tensor(1.0), requires_grad=False)
        self.sizes = []
        self.drawn = []
        self.gradients = []

    def sample_noise(self, batch, generator):
        drawn = torch.randn(len(batch), generator=generator)
        self.drawn.append(drawn)
        return (drawn,)

    def compute_losses(self, batch, *drawn):
        self.sizes.append(len(batch))
        value = (self.weight * drawn[0] * batch.parameters[:, 0]).square().mean()
        return {"loss": value, "half": value / 2}

    def on_before_optimizer_step(self, optimizer):
        self.gradients.append(self.weight.grad.item())

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.0)


def train(num_cpu_shards, size, num_batches=2, **options):
    torch.manual_seed(0)
    batches = [
        Batch(
            torch.randn(size, 2, 4, 1),
            torch.rand(size, 1) + 0.5,
            torch.arange(size),
            torch.arange(size),
        )
        for _ in range(num_batches)
    ]
    module = CountedModule(num_cpu_shards)
    options = {"strategy": ShardedSingleDevice(), "accelerator": "cpu", **options}
    trainer = pl.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return module, batches


@pytest.mark.parametrize(
    ("num_cpu_shards", "size", "sizes"),
    [(1, 8, [8]), (2, 8, [4, 4]), (4, 8, [2, 2, 2, 2]), (2, 7, [7]), (3, 8, [8])],
)
def test_strategy_splits_batches_that_divide_equally(num_cpu_shards, size, sizes):
    module, batches = train(num_cpu_shards, size)
    assert module.sizes == 2 * sizes
    assert "compute_losses" not in vars(module)
    for batch, drawn, gradient in zip(batches, module.drawn, module.gradients, strict=True):
        mean = (drawn * batch.parameters[:, 0]).square().mean().item()
        assert gradient == pytest.approx(4 * mean, rel=1e-5)  # d/dw of w^2 m, at w = 2
    assert module.terms["loss"].item() == pytest.approx(4 * mean, rel=1e-5)
    assert module.terms["half"].item() == pytest.approx(2 * mean, rel=1e-5)


def test_strategy_draws_the_same_numbers_for_any_number_of_shards():
    whole, _ = train(1, 8)
    split, _ = train(4, 8)
    assert all(torch.equal(a, b) for a, b in zip(whole.drawn, split.drawn, strict=True))


def test_strategy_keeps_batches_whole_under_autocast():
    module, _ = train(2, 8, precision="bf16-mixed")
    assert module.sizes == [8, 8]


def test_strategy_sums_shards_over_accumulated_batches():
    module, batches = train(2, 8, accumulate_grad_batches=2)
    means = [
        (drawn * batch.parameters[:, 0]).square().mean().item()
        for batch, drawn in zip(batches, module.drawn, strict=True)
    ]
    assert module.gradients == [pytest.approx(4 * sum(means) / 2, rel=1e-5)]


def test_strategy_restores_the_module_when_a_step_fails(monkeypatch):
    def fail(self, batch, *drawn):
        raise ZeroDivisionError

    monkeypatch.setattr(CountedModule, "compute_losses", fail)
    modules = []
    monkeypatch.setattr(CountedModule, "on_train_start", lambda self: modules.append(self))
    with pytest.raises(ZeroDivisionError):
        train(2, 8)
    assert "compute_losses" not in vars(modules[0])


def test_strategy_computes_shards_by_losses_that_are_set_on_the_module_and_leaves_them(monkeypatch):
    calls = []

    def replace(self):
        own = self.compute_losses
        self.compute_losses = lambda *shard: calls.append(len(shard[0])) or own(*shard)

    monkeypatch.setattr(CountedModule, "on_train_start", replace)
    module, _ = train(2, 8)
    assert calls == [4] * 4
    assert "<lambda>" in module.compute_losses.__name__


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"strategy": "auto", "accelerator": "cpu"}, ShardedSingleDevice),
        ({"strategy": "auto", "accelerator": "cpu", "devices": "1"}, ShardedSingleDevice),
        ({"strategy": "auto", "accelerator": "cpu", "devices": 2}, ShardedDDP),
        ({"strategy": "auto", "accelerator": "cpu", "num_nodes": 2}, ShardedDDP),
        ({"strategy": "ddp", "accelerator": "cpu"}, ShardedDDP),
        ({"strategy": "fsdp", "accelerator": "cpu"}, str),
        ({"strategy": "auto", "accelerator": "gpu"}, str),
    ],
)
def test_sharded_strategy_replaces_that_of_a_cpu_alone(options, expected):
    assert type(sharded_strategy(**options)) is expected


@pytest.mark.parametrize(("available", "expected"), [(False, ShardedSingleDevice), (True, str)])
def test_sharded_strategy_follows_the_accelerator_at_hand(monkeypatch, available, expected):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: available)
    assert type(sharded_strategy("auto", "auto")) is expected


def test_sharded_single_device_is_lightnings_own():
    trainer = pl.Trainer(strategy=ShardedSingleDevice(), accelerator="cpu", logger=False)
    assert isinstance(trainer.strategy, SingleDeviceStrategy)
    assert trainer.world_size == 1
