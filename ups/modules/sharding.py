"""Lightning strategies that split a batch over CPU threads, one shard for each thread.

The tensors of a small model are too small to split single operations over cores: two threads within
each operation gain nothing. Two shards of a batch of 16, each on its thread, took 0.74 of the time
in a trial. The gradients are those of the whole batch.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.autograd.function import FunctionCtx

from ups.core.batch import Batch

Terms = dict[str, Tensor]
Shard = TypeVar("Shard")


class CPUShards(Strategy):
    """Computes the losses of a training step in shards, each in its own thread.

    The number of shards is the module's hyperparameter ``num_cpu_shards``. A module draws its
    random numbers for the whole batch, so they do not depend on the number of shards. A batch that
    can't be split equally stays whole, and so does every batch under autocast, whose state belongs
    to one thread.
    """

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        module: Any = self.lightning_module
        num_shards = module.hparams.get("num_cpu_shards", 1)
        if num_shards == 1 or len(batch) % num_shards != 0:
            return super().training_step(batch, batch_idx)
        compute_losses = module.compute_losses
        replaced = vars(module).get("compute_losses")  # the compiled ones, if there are
        parameters = [p for p in module.parameters() if p.requires_grad]

        def compute_in_shards(batch: Batch, *drawn: Tensor) -> Terms:
            if torch.is_autocast_enabled("cpu"):
                return compute_losses(batch, *drawn)
            chunks = (d.chunk(num_shards) for d in drawn)
            shards = list(zip(batch.chunk(num_shards), *chunks, strict=True))
            return sharded_loss(lambda shard: compute_losses(*shard), shards, parameters)

        # DDP calls the module's own training_step within its forward, so what that step calls is
        # replaced, and not the step
        module.compute_losses = compute_in_shards
        try:
            return super().training_step(batch, batch_idx)
        finally:
            del module.compute_losses
            if replaced is not None:
                module.compute_losses = replaced


class ShardedSingleDevice(CPUShards, SingleDeviceStrategy):
    """Lightning's strategy for one CPU process, with ``CPUShards``."""


class ShardedDDP(CPUShards, DDPStrategy):
    """Lightning's strategy for several processes, with ``CPUShards`` in each of them."""


def sharded_strategy(
    strategy: str, accelerator: str, devices: int | str | Sequence[int] = 1, num_nodes: int = 1
) -> str | Strategy:
    """The strategy with CPU shards in place of the Trainer's own.

    Args:
        strategy: the Trainer's argument, and likewise the others.

    Returns:
        ``strategy`` itself if training is not on a CPU, or if it is neither "auto" nor "ddp".
    """
    on_cpu = accelerator == "cpu" or (
        accelerator == "auto" and not torch.accelerator.is_available()
    )
    if not on_cpu or strategy not in ("auto", "ddp"):
        return strategy
    is_single = strategy == "auto" and num_nodes == 1 and devices in (1, "1", "auto")
    return ShardedSingleDevice() if is_single else ShardedDDP()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    # each thread computes alone; the setting holds for this thread only
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


def sharded_loss(
    loss_of: Callable[[Shard], Terms], shards: Sequence[Shard], parameters: Sequence[Tensor]
) -> Terms:
    """Compute the mean of loss terms over shards, each shard in its thread.

    Gradients flow through the term "loss".

    Args:
        loss_of: computes the terms of a shard, each a mean over it.
        shards: shards of equal size.
        parameters: the parameters to differentiate by.

    Returns:
        The terms of the whole batch by name.
    """

    def work(shard: Shard) -> tuple[Terms, tuple[Tensor | None, ...]]:
        terms = loss_of(shard)
        gradients = torch.autograd.grad(terms["loss"], parameters, allow_unused=True)
        return {name: value.detach() for name, value in terms.items()}, gradients

    done = list(_pool(len(shards)).map(work, shards))
    terms = {name: sum(part[name] for part, _ in done) / len(done) for name in done[0][0]}
    gradients = [
        None if g[0] is None else sum(g) / len(done)
        for g in zip(*(grads for _, grads in done), strict=True)
    ]
    return {**terms, "loss": PrecomputedGradients.apply(terms["loss"], gradients, *parameters)}


class Context(FunctionCtx):
    """What ``PrecomputedGradients`` keeps for its backward pass."""

    gradients: Sequence[Tensor | None]


class PrecomputedGradients(torch.autograd.Function):
    """A value whose gradients are already known."""

    @staticmethod
    def forward(
        ctx: Context, value: Tensor, gradients: Sequence[Tensor | None], *parameters: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Context, outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if g is None else g * outer for g in ctx.gradients)
