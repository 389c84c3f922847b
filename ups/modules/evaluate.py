"""The last stage: measure rollouts from t = 0 on the test split, in physical space, beside the baselines."""

import statistics
import time
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from torch import Tensor

from ups.baselines import Persistence, Solver
from ups.datamodules.windows import Batch
from ups.losses import relative_l2_squared
from ups.metrics import RolloutMetrics
from ups.rollout import Simulator


class Predictor(Protocol):
    def rollout(self, u0: Tensor, steps: int, *, nu: Tensor) -> Tensor: ...


class _Fixed:
    """A simulator with its rollout options chosen."""

    def __init__(self, simulator: Simulator, **options: Any) -> None:
        self.simulator, self.options = simulator, options

    def rollout(self, u0: Tensor, steps: int, *, nu: Tensor) -> Tensor:
        return self.simulator.rollout(u0, steps, nu=nu, **self.options)


class EvaluateModule(pl.LightningModule):
    """Tests a simulator in each mode, and the baselines, by the same code; ``rows`` holds the results.

    A row has the settings, PDEBench's metrics over the whole rollout, ``one_step_nrmse`` and ``one_step_squared`` (the mean of
    |error|^2/|u|^2) of single steps from the truth, ``seconds_per_trajectory`` (the median of three timed rollouts, after a first one,
    of the first batch) and ``nrmse_over_time``. ``example`` holds truth and latent prediction (T, X) of the median trajectory.
    """

    def __init__(self, simulator: Simulator, model: str, solver_points: tuple[int, ...] = (64, 128, 256)) -> None:
        super().__init__()
        self.simulator = simulator
        self.predictors: list[tuple[dict[str, Any], Predictor]] = [
            ({"model": model, "mode": mode, "correct": "none", "ttc": False}, _Fixed(simulator, mode=mode))
            for mode in ("latent", "physical")
        ]
        solvers = [Solver(n, simulator.dt, simulator.length) for n in solver_points if len(simulator.x) % n == 0]
        baselines: list[Persistence | Solver] = [Persistence(), *solvers]
        for baseline in baselines:
            self.predictors.append(({"model": baseline.name, "mode": "physical", "correct": "none", "ttc": False}, baseline))
        self.rows: list[dict[str, Any]] = []
        self.example: tuple[Tensor, Tensor] | None = None

    def on_test_start(self) -> None:
        self.rollouts: list[RolloutMetrics] = []
        self.one_step: list[list[Tensor]] = [[] for _ in self.predictors]
        self.seconds: list[float] = []
        self.latent: list[tuple[Tensor, Tensor]] = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        u0, target = batch.u[:, 0], batch.u[:, 1:]
        frames, points = target.shape[1:]
        for row, (_, predictor) in enumerate(self.predictors):
            if batch_idx == 0:
                self.rollouts.append(RolloutMetrics(frames, points, self.simulator.length).to(self.device))
                self.seconds.append(self._seconds(predictor, u0, frames, batch.nu))
            pred = predictor.rollout(u0, frames, nu=batch.nu)
            self.rollouts[row].update(pred, target)
            starts = batch.u[:, :-1].flatten(0, 1)
            step = predictor.rollout(starts, 1, nu=batch.nu.repeat_interleave(frames))[:, 0]
            self.one_step[row].append(relative_l2_squared(step.double(), target.flatten(0, 1).double()))
            if row == 0:
                self.latent.append((target, pred))

    def on_test_epoch_end(self) -> None:
        self.rows = []
        for (settings, _), rollout, steps, seconds in zip(self.predictors, self.rollouts, self.one_step, self.seconds, strict=True):
            values = rollout.compute()
            squared = torch.cat(steps)
            over_time = values.pop("nrmse_over_time")
            single = {"one_step_nrmse": squared.sqrt().mean().item(), "one_step_squared": squared.mean().item()}
            self.rows.append({**settings, **values, **single, "seconds_per_trajectory": seconds, "nrmse_over_time": over_time})
        for row in self.rows[:2]:
            self.log_dict({f"test/{row['mode']}/{name}": value for name, value in row.items() if type(value) is float})
        target, pred = (torch.cat(parts) for parts in zip(*self.latent, strict=True))
        error = relative_l2_squared(pred, target).mean(1)
        middle = int(error.argsort()[len(error) // 2])
        self.example = target[middle].cpu(), pred[middle].cpu()

    @staticmethod
    def _seconds(predictor: Predictor, u0: Tensor, frames: int, nu: Tensor) -> float:
        def once() -> float:
            start = time.perf_counter()
            predictor.rollout(u0, frames, nu=nu)
            if u0.is_cuda:
                torch.cuda.synchronize()
            return time.perf_counter() - start

        once()
        return statistics.median(once() for _ in range(3)) / len(u0)
