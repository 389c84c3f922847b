"""Speed and memory: training steps, rollouts, and how both grow with points, tokens and batch.

    python benchmarks/throughput.py         writes benchmarks/results/throughput.json

Untrained weights: which operations are computed does not depend on them. Models are timed in turn,
block by block, so that the machine's drift meets all alike; ratios are medians over blocks. Peak
memory is that of a process of its own, which takes a few training steps.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from runs import save
from torch.utils.flop_counter import FlopCounterMode

import ups
from ups.core.batch import Batch
from ups.core.fields import FieldSpec, Grid
from ups.models import build
from ups.modules.sharding import sharded_loss
from ups.physics import burgers, navier_stokes
from ups.run import CONF
from ups.simulation.simulator import Simulator

BLOCKS = 7
DEFAULT = "memory_upt"
MODELS = (DEFAULT, "patch_stepper", "mixer_small", "upt", "fno", "resnet", "unet")


def configuration(*settings: str) -> Any:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", list(settings))


def simulator(cfg: Any, points: int | None = None) -> Simulator:
    """An untrained simulator whose rollouts keep the size of their fields, as trained ones do.

    With weights as drawn they may grow by a factor of a million in 40 frames, and activation
    functions of such numbers take several times as long.
    """
    grid = Grid((points or cfg.data.num_points,), (1.0,))
    spec = FieldSpec(grid, parameters=("nu",), dt=cfg.data.dt)
    sim = Simulator(build(cfg.model, spec), spec, "burgers", dict(cfg.model)).eval()
    with torch.no_grad():
        for parameter in sim.parameters():
            parameter.mul_(0.1)
    return sim


def fields(batch: int, points: int, frames: int = 1) -> torch.Tensor:
    """Smooth fields (B, frames, X, 1)."""
    u0 = burgers.initial_conditions(batch, burgers.cell_centers(points), 0)
    return (u0[:, None] * torch.linspace(1, 0.9, frames)[:, None])[..., None]


def trainer(cfg: Any, points: int | None = None) -> Callable[[], None]:
    """One training step of ``cfg``'s model on a batch that is at hand already."""
    torch.manual_seed(0)
    sim = simulator(cfg, points)
    size, options = cfg.data.batch_size, cfg.stage.operator.module
    module = instantiate(options, sim, _convert_="all")
    losses = module.compute_losses
    if cfg.compile:
        losses = torch.compile(losses, dynamic=False)
    optimizer = module.build_optimizer()
    batch = Batch(
        fields(size, len(sim.x), cfg.data.unroll_steps + 1),
        torch.full((size, 1), 1e-3),
        torch.arange(size),
        torch.arange(size),
    )

    def step() -> None:
        shards = batch.chunk(options.num_cpu_shards)
        terms = (
            sharded_loss(losses, shards, list(module.parameters()))
            if len(shards) > 1
            else losses(batch)
        )
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()

    return step


def in_turn(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds a call, one figure a block."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for block in range(BLOCKS + 1):  # the first is a warm-up
        for name, call in calls.items():
            # untimed: caches and allocator are as the one before left them
            call()
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            if block:
                times[name].append((time.perf_counter() - start) / repeats)
    return times


def compared(calls: Mapping[str, Callable[[], Any]], repeats: int, to: str) -> dict[str, Any]:
    """Median milliseconds a call, and the median over blocks of each one's ratio to the one
    called ``to``.
    """
    times = in_turn(calls, repeats)
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds, times[to], strict=True))
        for name, seconds in times.items()
    }
    found = {
        name: {"milliseconds": 1e3 * statistics.median(seconds), f"of_{to}": ratios[name]}
        for name, seconds in times.items()
    }
    for name, values in found.items():
        print(f"  {name}: {values['milliseconds']:.2f} ms, {ratios[name]:.2f} of {to}", flush=True)
    return found


def floor(call: Callable[[], Any], repeats: int = 10) -> dict[str, Any]:
    """Where the time of ``call`` goes: its matrix products' operations, how long they would take at
    the speed of a large product on as many threads, and the share of each PyTorch operation.
    """
    square = torch.randn(1024, 1024)
    times = in_turn({"call": call, "product": lambda: square @ square}, repeats)
    seconds = {name: min(each) for name, each in times.items()}
    with FlopCounterMode(display=False) as counter:
        call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            call()
    own = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    largest = sorted(own, key=lambda name: -own[name])[:8]
    flops = counter.get_total_flops()
    return {
        "milliseconds": 1e3 * seconds["call"],
        "gigaflops": flops / 1e9,
        "milliseconds_of_a_large_product_as_long": 1e3 * seconds["product"] * flops / (2 * 1024**3),
        "share": {name: own[name] / sum(own.values()) for name in largest},
    }


def floor_of_a_step(cfg: Any) -> dict[str, Any]:
    """``floor`` of a training step on one thread."""
    step = trainer(OmegaConf.merge(cfg, {"stage": {"operator": {"module": {"num_cpu_shards": 1}}}}))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = floor(step)
    torch.set_num_threads(threads)
    return found


def peak(settings: list[str], answer: Any) -> None:
    step = trainer(configuration(*settings))
    before = most_resident()
    for _ in range(5):
        step()
    answer.put((before, most_resident()))


def most_resident() -> float:
    """This process's peak so far, in MB (Linux); getrusage would count its parent's too."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def peak_megabytes(*settings: str) -> dict[str, float]:
    """Of a process that takes training steps: before the first, and at its peak."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=peak, args=(list(settings), answer))
    process.start()
    before, most = answer.get()
    process.join()
    return {"before": round(before), "peak": round(most)}


def rollout(sim: Simulator, batch: int, frames: int = 40, **way: Any) -> Callable[[], Any]:
    u0 = fields(batch, len(sim.x))[:, 0]

    def all_frames() -> None:
        for _ in sim.stream(u0, frames, nu=1e-3, **way):
            pass

    return all_frames


def last_frame(sim: Simulator, batch: int, frames: int = 40) -> Callable[[], Any]:
    return partial(sim.rollout, fields(batch, len(sim.x))[:, 0], frames, nu=1e-3, stride=frames)


def last_frame_of_a_flow() -> dict[str, Callable[[], Any]]:
    """Of the flow that comes with UPS, on its own points and on sixteen times as many."""
    sim = ups.load("navier-stokes-small")
    start = navier_stokes.initial_conditions(1, 64, 0)
    places = Grid((256, 256), (1.0, 1.0)).positions().flatten(0, 1)
    ends = partial(sim.rollout, start, 10, nu=1e-5, stride=10)
    return {"64 x 64": ends, "256 x 256": partial(ends, x_out=places)}


def main() -> None:
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "blocks": BLOCKS}
    own = configuration(f"model={DEFAULT}")
    # equal batch and window; the rest by each model's own recipe
    alike = [
        f"data.batch_size={own.data.batch_size}",
        f"data.unroll_steps={own.data.unroll_steps}",
    ]
    print("training steps, the same batch and window")
    models = {name: configuration(f"model={name}", *alike) for name in MODELS}
    steps = {name: trainer(cfg) for name, cfg in models.items()}
    for setting in ("lambda_inv=0", "compile=true"):
        steps[f"{DEFAULT}, {setting}"] = trainer(configuration(f"model={DEFAULT}", setting))
    result["training_step"] = compared(steps, 5, DEFAULT)
    result["floor"] = floor_of_a_step(own)
    print(result["floor"], flush=True)
    print("peak memory of training, MB")
    result["training_memory"] = {name: peak_megabytes(f"model={name}", *alike) for name in MODELS}
    result["training_memory"]["burgers_upt, one batch of 12"] = peak_megabytes(
        "experiment=burgers_upt", "data.path=none"
    )
    print(result["training_memory"], flush=True)
    for batch in (1, 64):
        print(f"rollouts of 40 frames, batch {batch}")
        sims = {name: simulator(cfg) for name, cfg in models.items()}
        calls = {name: rollout(sim, batch) for name, sim in sims.items()}
        calls[f"{DEFAULT}, physical"] = rollout(sims[DEFAULT], batch, mode="physical")
        fast = simulator(own)
        fast.compile()
        calls[f"{DEFAULT}, compiled"] = rollout(fast, batch)
        result[f"rollout, batch {batch}"] = compared(calls, 1, DEFAULT)
    result["floor of rollouts"] = floor(rollout(sims[DEFAULT], batch), 1)
    print(result["floor of rollouts"], flush=True)
    print(
        "with points: training step, latent rollout that decodes the last frame alone, "
        "and all frames; batch 16"
    )
    sizes = (256, 1024, 4096, 16384)
    result["points, training step"] = compared({str(n): trainer(own, n) for n in sizes}, 2, "256")
    sims_at = {n: simulator(own, n) for n in sizes}
    ends = {str(n): last_frame(sim, 16) for n, sim in sims_at.items()}
    result["points, last frame"] = compared(ends, 1, "256")
    result["points, all frames"] = compared(
        {str(n): rollout(sim, 16) for n, sim in sims_at.items()}, 1, "256"
    )
    print("the last frame of a flow of 64 x 64 points, given at more positions")
    result["positions, last frame"] = compared(last_frame_of_a_flow(), 10, "64 x 64")
    print("with tokens, at 256 points: training step")
    result["tokens, training step"] = compared(
        {str(n): trainer(configuration(f"model.num_tokens={n}")) for n in (16, 32, 64, 128)},
        3,
        "64",
    )
    print("with the batch: training step")
    result["batch, training step"] = compared(
        {str(n): trainer(configuration(f"data.batch_size={n}")) for n in (8, 16, 64, 256)}, 2, "16"
    )
    save("throughput", result)


if __name__ == "__main__":
    main()
