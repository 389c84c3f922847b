"""What the inverse losses cost: time of a training step with lambda_inv = 0, with them in every
10th batch, and in every batch.

    python benchmarks/inverse_cost.py            writes benchmarks/results/inverse_cost.json

The three are run in turn, block by block, in one process, so that the machine's drift meets all
alike; the ratios are medians over blocks.
"""

import statistics
import time

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from runs import save

from ups.core.batch import Batch
from ups.core.fields import FieldSpec, Grid
from ups.models import build
from ups.modules.sharding import sharded_loss
from ups.physics import burgers
from ups.run import CONF
from ups.simulation.simulator import Simulator

BLOCKS, STEPS = 15, 20


def main() -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config")
    x = burgers.cell_centers(cfg.data.num_points)
    window = cfg.data.unroll_steps
    u = burgers.solve(
        burgers.initial_conditions(cfg.data.batch_size, x, 0),
        [cfg.data.dt * k for k in range(window + 1)],
        cfg.data.nu,
    )
    number = torch.arange(len(u))
    batch = Batch(u[..., None], torch.full((len(u), 1), cfg.data.nu), number, number)
    torch.manual_seed(0)
    grid = Grid((len(x),), (1.0,))
    spec = FieldSpec(grid, parameters=("nu",), dt=cfg.data.dt)
    simulator = Simulator(build(cfg.model, spec), spec)
    module = instantiate(cfg.stage.operator.module, simulator, lr=1e-4, _convert_="all")
    optimizer = module.build_optimizer()

    def block(every: int) -> float:
        start = time.perf_counter()
        for i in range(STEPS):
            module.compute_inverse_losses = every > 0 and i % every == 0
            terms = sharded_loss(
                module.compute_losses,
                batch.chunk(cfg.stage.operator.module.num_cpu_shards),
                list(module.parameters()),
            )
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
        return (time.perf_counter() - start) / STEPS

    times: dict[int, list[float]] = {0: [], 10: [], 1: []}
    for every in times:
        block(every)
    for _ in range(BLOCKS):
        for every, seconds in times.items():
            seconds.append(block(every))
    ratios = {
        n: statistics.median(a / b for a, b in zip(times[n], times[0], strict=True))
        for n in (10, 1)
    }
    result = {
        "milliseconds_a_step": {
            str(n): round(1e3 * statistics.median(seconds), 2) for n, seconds in times.items()
        },
        "ratio_to_lambda_0": {str(n): round(ratio, 3) for n, ratio in ratios.items()},
        "blocks": BLOCKS,
        "steps_a_block": STEPS,
    }
    save("inverse_cost", result)


if __name__ == "__main__":
    main()
