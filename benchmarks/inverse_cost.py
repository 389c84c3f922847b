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
from ups.models import build
from ups.modules.sharding import sharded_loss
from ups.physics import burgers
from ups.run import CONF
from ups.simulation.simulator import Simulator

BLOCKS, STEPS = 15, 20


def main() -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config")
    x = burgers.cell_centers(cfg.data.points)
    window = cfg.data.window
    u = burgers.solve(
        burgers.initial_conditions(cfg.data.batch_size, x, 0),
        [cfg.data.dt * k for k in range(window + 1)],
        cfg.data.nu,
    )
    batch = Batch(u, torch.full((len(u),), cfg.data.nu), torch.arange(len(u)), torch.arange(len(u)))
    torch.manual_seed(0)
    simulator = Simulator(build(cfg.model, len(x)), x, cfg.data.dt)
    module = instantiate(cfg.stage.operator.module, simulator, lr=1e-4, _convert_="all")
    optimizer = module.build_optimizer()

    def block(every: int) -> float:
        start = time.perf_counter()
        for i in range(STEPS):
            module.inverse_now = every > 0 and i % every == 0
            terms = sharded_loss(
                module.compute_losses,
                batch.shards(cfg.stage.operator.module.threads),
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
