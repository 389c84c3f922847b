"""Training on several processes: what a step computes, keeps and sends, and two processes on this
machine beside one.

    python benchmarks/scaling.py         writes benchmarks/results/scaling.json

Counts come from models without values (PyTorch's fake tensors), so that no size is too large. What
many GPUs may do with them is a plan on paper, by the figures of ``GPU``. Two CPU processes with DDP
are measured beside one, which has one thread or two, in turn, block by block. All take the same
global batches, and their losses are compared step by step.
"""

import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from hydra.utils import instantiate
from runs import save
from throughput import configuration, fields, simulator
from torch import Tensor, multiprocessing, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ups.core.batch import Batch
from ups.core.fields import FieldSpec, Grid
from ups.models import build
from ups.modules.sharding import sharded_loss
from ups.physics import get_equation
from ups.simulation.simulator import Simulator

SIZES = {
    "memory_upt": (),
    "memory_upt, 64 x 64 points": ("data=navier_stokes_1e-5",),
    "mixer_large": ("model=mixer_large",),
    "mixer_paper": ("model=mixer_paper",),
    "upt, width 1024": (
        "model=upt",
        "model.hidden_dim=1024",
        "model.num_heads=16",
        "model.encoder_depth=4",
        "model.approximator_depth=12",
        "model.decoder_depth=4",
    ),
}
# attention on a CPU, which PyTorch's counter leaves out
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda out, q, k, v, *_, **__: sdpa_backward_flop_count(out, q, k, v)
    ),
}
PROCESSES = 2
BLOCKS = 7
STEPS = 10  # of a block


class GPU(NamedTuple):
    """What the plan assumes of a GPU and its network.

    Args:
        flops: operations a second that training reaches.
        memory_bytes: its memory without a reserve.
        node_bandwidth: bytes a second that it sends to GPUs of its node.
        network_bandwidth: bytes a second that it sends to other nodes.
    """

    flops: float
    memory_bytes: float
    node_bandwidth: float
    network_bandwidth: float


# data sheet of the H100 SXM: half of its 989e12 operations a second in bfloat16, nine tenths of its
# 80 GB, one direction of NVLink; and a network of 400 Gb/s for each GPU
H100 = GPU(flops=495e12, memory_bytes=72e9, node_bandwidth=450e9, network_bandwidth=50e9)


def untrained(cfg: Any, number: int) -> tuple[Any, Batch]:
    """The operator stage's module for the field of ``cfg.data``, and a batch of windows."""
    equation = get_equation(cfg.data.get("equation", "burgers"))
    grid = Grid((cfg.data.num_points,) * equation.num_dims, (1.0,) * equation.num_dims)
    spec = FieldSpec(
        grid,
        equation.channels,
        equation.parameters,
        cfg.data.dt,
        conserves_mean=equation.conserves_mean,
        is_homogeneous=equation.is_homogeneous,
    )
    sim = Simulator(build(cfg.model, spec), spec)
    module = instantiate(cfg.stage.operator.module, sim, _convert_="all")
    u = torch.empty(number, cfg.data.unroll_steps + 1, *spec.shape)
    rows = torch.empty(number, dtype=torch.long)
    return module, Batch(u, torch.empty(number, len(spec.parameters)), rows, rows)


class Counts(NamedTuple):
    """Of a training step with inverse losses, in float32.

    Args:
        parameters: number of parameters.
        window_bytes: the fields of a window.
        window_flop: operations of the forward and backward pass, a window.
        window_activation_bytes: what the forward pass keeps for the backward pass, a window.
        optimizer_flop: operations of the optimizer, whatever the batch.
        gradient_bytes: gradients, which DDP averages over the processes in every step.
        state_bytes: parameters, gradients and the optimizer's state.
    """

    parameters: int
    window_bytes: float
    window_flop: float
    window_activation_bytes: float
    optimizer_flop: float
    gradient_bytes: int
    state_bytes: int


def count(cfg: Any, number: int = 2) -> Counts:
    """Count a step of ``number`` windows."""
    with FakeTensorMode():
        module, batch = untrained(cfg, number)
        optimizer = module.build_optimizer()
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as passes:
            loss, activations = forward(module, batch)
            loss.backward()
    # AdamW reads its numbers of steps, which have values
    with FlopCounterMode(display=False) as update:
        optimizer.step()
    parameters = list(module.parameters())
    gradients = num_bytes([p.grad for p in parameters if p.grad is not None])
    state = [value for each in optimizer.state.values() for value in each.values()]
    return Counts(
        parameters=sum(p.numel() for p in parameters),
        window_bytes=batch.u.nbytes / number,
        window_flop=passes.get_total_flops() / number,
        window_activation_bytes=activations / number,
        optimizer_flop=update.get_total_flops(),
        gradient_bytes=gradients,
        state_bytes=num_bytes(parameters) + gradients + num_bytes(state),
    )


def forward(module: Any, batch: Batch) -> tuple[Tensor, int]:
    """The loss of a batch, and the bytes that its forward pass keeps for the backward pass."""
    given = {storage(tensor) for tensor in (*module.parameters(), *module.buffers(), batch.u)}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # held, so that no later tensor gets the address of its storage
        kept[storage(tensor)] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = module.compute_losses(batch)["loss"]
    return loss, sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in given)


def storage(tensor: Tensor) -> int:
    """What tensors that share memory have in common; without values they have no pointers."""
    return tensor.untyped_storage()._cdata


def num_bytes(tensors: list[Any]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def plan(counts: Counts, gpu: GPU) -> dict[str, float]:
    """What DDP on many GPUs may do with a model of ``counts``, on paper.

    In a ring of n GPUs each sends 2 (n - 1) / n times the gradients in a step, here twice for any
    n. DDP sends them during the backward pass, two thirds of the operations. Latency is left out.

    Returns:
        How many windows fit in the memory of a GPU; the seconds of a window, of the optimizer and
        of the communication, in a node and between nodes; and from how many windows a GPU on the
        backward pass takes as long as the communication.
    """
    seconds = counts.window_flop / gpu.flops
    in_node = 2 * counts.gradient_bytes / gpu.node_bandwidth
    between_nodes = 2 * counts.gradient_bytes / gpu.network_bandwidth
    free_bytes = gpu.memory_bytes - counts.state_bytes
    return {
        "windows_that_fit": free_bytes // counts.window_activation_bytes,
        "seconds_of_a_window": seconds,
        "seconds_of_the_optimizer": counts.optimizer_flop / gpu.flops,
        "seconds_of_an_all_reduce_in_a_node": in_node,
        "seconds_of_an_all_reduce_between_nodes": between_nodes,
        "windows_that_hide_it_in_a_node": in_node / (2 / 3 * seconds),
        "windows_that_hide_it_between_nodes": between_nodes / (2 / 3 * seconds),
    }


class Training:
    """A training of the default operator, step by step.

    Args:
        cfg: the configuration.
        num_shards: number of threads among which a batch is split; 1 for none.
        is_distributed: whether the processes of the group train together, each on its part.
    """

    def __init__(self, cfg: Any, num_shards: int = 1, is_distributed: bool = False) -> None:
        torch.manual_seed(0)
        self.module: Any = instantiate(cfg.stage.operator.module, simulator(cfg), _convert_="all")
        self.num_shards = num_shards
        self.optimizer = self.module.build_optimizer()
        self.sent_bytes = 0
        self.loss: nn.Module = Loss(self.module)
        if is_distributed:
            self.loss = DistributedDataParallel(self.loss)
            self.loss.register_comm_hook(None, self._send)

    def _send(self, state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        self.sent_bytes += bucket.buffer().nbytes
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]

    def take_steps(self, batches: list[Batch]) -> tuple[Tensor, float]:
        """A step for each batch: their losses (S,), and the seconds that a step takes."""
        losses = []
        start = time.perf_counter()
        for batch in batches:
            loss = self._loss(batch)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses), (time.perf_counter() - start) / len(batches)

    def _loss(self, batch: Batch) -> Tensor:
        if self.num_shards == 1:
            return self.loss(batch)
        shards = batch.chunk(self.num_shards)
        parameters = list(self.module.parameters())
        return sharded_loss(self.module.compute_losses, shards, parameters)["loss"]


class Loss(nn.Module):
    """The loss of a stage as a forward pass, which is what DDP wraps."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        loss: Tensor = self.module.compute_losses(batch)["loss"]
        return loss


def global_batches(cfg: Any, number: int) -> list[Batch]:
    size = cfg.data.batch_size
    u = fields(size * number, cfg.data.num_points, cfg.data.unroll_steps + 1)
    rows = torch.arange(size)
    return [Batch(part, torch.full((size, 1), 1e-3), rows, rows) for part in u.split(size)]


def train_in_turn(rank: int, blocks: int, steps: int, folder: str) -> None:
    """What each process does: the first trains alone, with one thread and two, and both together.

    The first writes the losses and the seconds of every block.
    """
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    cfg = configuration()
    alone = {"one process": Training(cfg), "one process, two threads": Training(cfg, 2)}
    together = Training(cfg, is_distributed=True)
    taken: dict[str, list[tuple[Tensor, float]]] = {name: [] for name in (*alone, "two processes")}
    # the first block is a warm-up
    batches = global_batches(cfg, (blocks + 1) * steps)
    for first in range(0, len(batches), steps):
        block = batches[first : first + steps]
        for name, training in alone.items():
            dist.barrier()
            if rank == 0:
                taken[name].append(training.take_steps(block))
        dist.barrier()
        losses, seconds = together.take_steps([b.chunk(PROCESSES)[rank] for b in block])
        dist.all_reduce(losses)
        taken["two processes"].append((losses / PROCESSES, seconds))
    if rank == 0:
        sent = together.sent_bytes / len(batches)
        torch.save({"taken": taken, "sent": sent}, f"{folder}/found.pt")
    dist.destroy_process_group()
    # gloo's threads may still hold objects of the hook, which they could not free once the
    # interpreter has begun to end: the process would be aborted (pytorch/pytorch#179291)
    os._exit(0)


def compare(blocks: int, steps: int) -> dict[str, Any]:
    """Speed and losses of two processes beside those of one, in turn."""
    with TemporaryDirectory() as folder:
        multiprocessing.spawn(train_in_turn, (blocks, steps, folder), PROCESSES)
        found = torch.load(Path(folder) / "found.pt")
    seconds = {name: [s for _, s in each][1:] for name, each in found["taken"].items()}
    losses = {name: torch.cat([x for x, _ in each]) for name, each in found["taken"].items()}
    one = losses["one process"]
    return {
        "bytes_sent_a_step": found["sent"],
        "losses": len(one),
        "ways": {
            name: {
                "milliseconds": 1e3 * statistics.median(each),
                "of_one_process": statistics.median(
                    a / b for a, b in zip(each, seconds["one process"], strict=True)
                ),
                "largest_relative_difference_of_a_loss": float(
                    ((losses[name] - one) / one).abs().max()
                ),
            }
            for name, each in seconds.items()
        },
    }


def main() -> None:
    configurations = {name: configuration(*settings) for name, settings in SIZES.items()}
    counts = {name: count(cfg) for name, cfg in configurations.items()}
    result: dict[str, Any] = {
        "batch_size": configuration().data.batch_size,
        "steps_of_a_block": STEPS,
        "gpu": H100._asdict(),
        "counts": {name: each._asdict() for name, each in counts.items()},
        "plan": {name: plan(each, H100) for name, each in counts.items()},
    }
    print(result, flush=True)
    result["two_processes"] = compare(BLOCKS, STEPS)
    print(result["two_processes"], flush=True)
    save("scaling", result)


if __name__ == "__main__":
    main()
