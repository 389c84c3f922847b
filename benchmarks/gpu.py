"""Speed on a GPU, in parts of which each has its own time; eight minutes in all.

    python benchmarks/gpu.py [PART ...]      writes benchmarks/results/gpu.json

A part is a process. What it has found when its time is over is in the JSON, and so is the message
of what failed. Without a GPU all parts run in small, in a minute or two: that shows that they work,
and its figures are worth nothing.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pdebench_file
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from runs import own_rows, read, save, ups_run
from search import speed
from throughput import configuration, fields, simulator
from torch.utils.benchmark import Timer

import ups
from ups.core.batch import Batch
from ups.core.fields import Grid
from ups.datamodules.generate import solve_all
from ups.physics import burgers, navier_stokes

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
NU, DT = 1e-3, 0.05


class Sizes(NamedTuple):
    """What the parts take.

    Args:
        models: those that are trained.
        batches: windows in a training batch.
        ways: of a training step.
        rollouts: trajectories at once.
        frames: steps of a rollout.
        line: numbers of points of the solver in one dimension.
        plane: numbers of points along an axis, in two dimensions.
        product: rows of the matrices whose product shows what the device can do.
        trajectories: how many are generated.
        seconds: the time to measure one call.
        speed_seconds: the time of a training before its speed is measured, and of that.
        schedule: settings of the production schedule with the trajectories of a part of its file.
        flow: settings of the run on Navier-Stokes.
        flow_seconds: the time of its training.
    """

    models: tuple[str, ...]
    batches: tuple[int, ...]
    ways: tuple[str, ...]
    rollouts: tuple[int, ...]
    frames: int
    line: tuple[int, ...]
    plane: tuple[int, ...]
    product: int
    trajectories: int
    seconds: float
    speed_seconds: float
    schedule: tuple[str, ...]
    flow: tuple[str, ...]
    flow_seconds: float


ON_GPU = Sizes(
    models=("memory_upt", "mixer_small", "mixer_paper", "patch_stepper", "upt", "fno", "unet"),
    batches=(16, 64, 256, 1024, 4096),
    ways=("float32", "bf16", "graph", "compiled"),
    rollouts=(1, 64, 1024),
    frames=40,
    line=(32, 64, 128, 256, 512, 1024),
    plane=(64, 128, 256),
    product=8192,
    trajectories=1000,
    seconds=0.2,
    speed_seconds=15,
    schedule=("data.num_train=400", "data.num_validation=40", "data.num_test=40"),
    flow=("data.num_train=400", "data.num_validation=40", "data.num_test=40"),
    flow_seconds=60,
)
IN_SMALL = Sizes(
    models=("memory_upt",),
    batches=(4,),
    ways=("float32", "bf16"),
    rollouts=(1, 2),
    frames=2,
    line=(32,),
    plane=(16,),
    product=256,
    trajectories=4,
    seconds=0.01,
    speed_seconds=1,
    schedule=("data.num_train=6", "data.num_validation=1", "data.num_test=1"),
    flow=(
        "experiment=smoke",
        "stage=operator",
        "data.num_points=16",
        "data.num_train=8",
        "data.num_validation=2",
        "data.num_test=2",
    ),
    flow_seconds=1,
)
SIZES = ON_GPU if HAS_GPU else IN_SMALL

Found = Iterator[tuple[str, Any]]


def milliseconds(call: Callable[[], Any]) -> float:
    """Median of a call, which includes what it leaves the device to do."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange(min_run_time=SIZES.seconds).median


def measured(call: Callable[[], Callable[[], Any]]) -> float | str:
    """Milliseconds of what ``call`` makes, or the message of what it can't do."""
    try:
        return milliseconds(call())
    except (RuntimeError, torch.AcceleratorError) as error:
        return str(error).strip().splitlines()[0]


def environment() -> Found:
    yield "torch", torch.__version__
    if HAS_GPU:
        about = torch.cuda.get_device_properties(DEVICE)
        yield "device", about.name
        yield "memory, GB", about.total_memory / 1e9
    n = SIZES.product
    for name, dtype, precision in (
        ("float32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bf16", torch.bfloat16, "high"),
    ):
        torch.set_float32_matmul_precision(precision)
        square = torch.randn(n, n, device=DEVICE, dtype=dtype)
        yield f"{name}, TFLOP/s", 2e-9 * n**3 / milliseconds(partial(torch.matmul, square, square))


def training_step(model: str, batch_size: int, way: str) -> Callable[[], None]:
    """A training step of the operator on a batch that is at hand already."""
    cfg = configuration(f"model={model}", f"data.batch_size={batch_size}")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest" if way == "float32" else "high")
    module = instantiate(cfg.stage.operator.module, simulator(cfg), _convert_="all").to(DEVICE)
    optimizer = module.build_optimizer()
    u = fields(batch_size, cfg.data.num_points, cfg.data.unroll_steps + 1)
    places = torch.arange(batch_size)
    batch = Batch(u, torch.full((batch_size, 1), NU), places, places).to(DEVICE)
    losses = torch.compile(module.compute_losses) if way == "compiled" else module.compute_losses

    def step() -> None:
        optimizer.zero_grad()
        # a cache of weights would be made anew in each replay of a graph
        with torch.autocast(DEVICE.type, torch.bfloat16, way != "float32", way != "graph"):
            loss = losses(batch)["loss"]
        loss.backward()
        optimizer.step()

    return captured(step) if way == "graph" else step


def captured(step: Callable[[], Any]) -> Callable[[], Any]:
    """The kernels of a step as one graph, which a replay repeats."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def training() -> Found:
    """Milliseconds of a training step, by model, batch and way."""
    for model in SIZES.models:
        for batch_size in SIZES.batches:
            for way in SIZES.ways:
                name = f"{model}, batch {batch_size}, {way}"
                yield name, measured(partial(training_step, model, batch_size, way))


def memory() -> Found:
    """The production setting's training step: inverse losses, a batch of 12 of the 12 x 4."""
    if not HAS_GPU:
        return
    for model in SIZES.models:
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            training_step(model, 12, "bf16")()
        yield f"{model}, peak of a training step, MB", torch.cuda.max_memory_allocated() / 1e6


def rollouts() -> Found:
    """Milliseconds of latent rollouts: all frames on a line, the last one of a flow."""
    for model in SIZES.models:
        sim = simulator(configuration(f"model={model}")).to(DEVICE)
        for n in SIZES.rollouts:
            u0 = fields(n, len(sim.x))[:, 0].to(DEVICE)
            call = partial(sim.rollout, u0, SIZES.frames, nu=NU)
            yield f"{model}, {n} at once", milliseconds(call)
    flow = ups.load("navier-stokes-small").to(DEVICE)
    for n in SIZES.rollouts:
        w0 = navier_stokes.initial_conditions(n, 64, 0).to(DEVICE)
        for points in SIZES.plane:
            x_out = Grid((points, points), (1.0, 1.0)).positions().flatten(0, 1).to(DEVICE)
            call = partial(
                flow.rollout, w0, SIZES.frames, nu=1e-5, x_out=x_out, stride=SIZES.frames
            )
            yield f"flow at {points} x {points} points, {n} at once", milliseconds(call)


def solvers() -> Found:
    """Milliseconds of the solvers over the time of a rollout, eager and compiled.

    A graph of the whole solution can't be made: its number of steps depends on the field.
    """
    times = [DT * k for k in range(1, SIZES.frames + 1)]
    ways = {"eager": burgers.solve}
    if HAS_GPU:  # elsewhere a kernel is compiled already
        ways["compiled"] = torch.compile(burgers.solve)
    for points in SIZES.line:
        for n in SIZES.rollouts:
            u0 = burgers.initial_conditions(n, burgers.cell_centers(points), 0).to(DEVICE)
            for way, solve in ways.items():
                found = measured(partial(partial, solve, u0, times, NU))
                yield f"line of {points}, {n} at once, {way}", found
    for points in SIZES.plane:
        w0 = navier_stokes.initial_conditions(1, points, 0).to(DEVICE)
        call = partial(navier_stokes.solve, w0, [1.0], 1e-5)
        yield f"flow of {points} x {points}, a time unit", milliseconds(call)


def data() -> Found:
    """Trajectories a second, as they are generated."""
    grid = Grid((1024,), (1.0,))
    u0 = burgers.EQUATION.initial_conditions["published"](SIZES.trajectories, grid, 0)
    times = [DT * k for k in range(SIZES.frames + 1)]
    start = time.perf_counter()
    solve_all(burgers.EQUATION, [u0], times, [NU], grid, keep=4)
    yield "trajectories a second", SIZES.trajectories / (time.perf_counter() - start)


def schedule() -> Found:
    """Batches a second of ``experiment=burgers_upt`` with its loader, and what its epochs take."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "1D_Burgers_Sols_Nu0.001.hdf5"
        settings = ("experiment=burgers_upt", f"data.path={path}")
        part = configuration(*settings, *SIZES.schedule)
        trajectories = part.data.num_train + part.data.num_validation + part.data.num_test
        pdebench_file.main(path, trajectories)
        batches = speed(part, warm_up=SIZES.speed_seconds, seconds=SIZES.speed_seconds)
        whole = configuration(*settings)
    yield "operator, batches a second", batches
    total = batches_per_epoch(whole) * whole.trainer.max_epochs
    yield "operator, minutes of all epochs", total / batches / 60


def batches_per_epoch(cfg: Any) -> float:
    return cfg.data.num_train * cfg.data.samples_per_trajectory / cfg.data.batch_size


def flow() -> Found:
    """A training on Navier-Stokes at nu = 1e-5, and its error on the test set."""
    with TemporaryDirectory() as folder:
        settings = (f"output_dir={folder}", "data=navier_stokes_1e-5", *SIZES.flow)
        cfg = OmegaConf.merge(configuration(*settings), {"data": {"cache_dir": "outputs/data"}})
        batches = speed(cfg, warm_up=SIZES.speed_seconds, seconds=SIZES.speed_seconds)
        yield "batches a second", batches
        epochs = max(1, round(batches * SIZES.flow_seconds / batches_per_epoch(cfg)))
        start = time.perf_counter()
        run = ("name=flow", f"trainer.max_epochs={epochs}", "preflight=false")
        ups_run([*settings, *run])
        yield "seconds of the whole command", time.perf_counter() - start
        for row in own_rows(Path(folder) / "flow", "eval_operator"):
            yield f"rollout nRMSE, {row.mode}", row["nrmse"]


class Part(NamedTuple):
    """A part and the seconds that it may take."""

    run: Callable[[], Found]
    seconds: float


PARTS = {
    "environment": Part(environment, 20),
    "training": Part(training, 130),
    "memory": Part(memory, 20),
    "rollouts": Part(rollouts, 40),
    "solvers": Part(solvers, 40),
    "data": Part(data, 20),
    "schedule": Part(schedule, 70),
    "flow": Part(flow, 140),
}


def run_part(name: str) -> None:
    found: dict[str, Any] = {}
    save("gpu", {**read("gpu"), name: found})
    for key, value in PARTS[name].run():
        found[key] = value
        print(f"  {key}: {value}", flush=True)
        save("gpu", {**read("gpu"), name: found})


def main(names: list[str]) -> None:
    for name in names:
        print(name, flush=True)
        command = [sys.executable, __file__, "--part", name]
        # a session, so that what the part has started is stopped with it
        with subprocess.Popen(command, start_new_session=True) as process:
            try:
                # elsewhere nothing is measured, and a part may take its time
                process.wait(PARTS[name].seconds if HAS_GPU else None)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                print(f"  stopped after {PARTS[name].seconds:.0f} s")
        if process.returncode > 0:
            print(f"  ended with exit code {process.returncode}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        run_part(sys.argv[2])
    else:
        main(sys.argv[1:] or list(PARTS))
