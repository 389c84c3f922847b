"""The last stage: measure rollouts on the test split, next to the baselines.

Rollouts start from t = 0 and are measured in physical space.
"""

import time
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from torch import Tensor

from ups.core.batch import Batch
from ups.core.norms import relative_l2_squared
from ups.evaluation.baselines import Persistence, Solver
from ups.evaluation.metrics import PhysicsChecks, RolloutMetrics, energy_spectrum, spread_skill
from ups.simulation.simulator import Simulator

NUM_ENSEMBLE_MEMBERS = 3  # rollouts of a sampler that estimate its spread
ONE_STEP_STRIDE = 8  # ensembles of single steps are costly and start from every eighth frame only


class Predictor(Protocol):
    """Anything that can roll out fields (B, X)."""

    def rollout(self, u0: Tensor, steps: int, *, nu: Tensor) -> Tensor: ...


class ConfiguredRollout:
    """A simulator with fixed rollout options."""

    def __init__(self, simulator: Simulator, **options: Any) -> None:
        self.simulator, self.options = simulator, options

    def rollout(self, u0: Tensor, steps: int, *, nu: Tensor) -> Tensor:
        return self.simulator.rollout(u0, steps, nu=nu, **self.options)

    def draws(self, u0: Tensor, steps: int, nu: Tensor) -> Tensor:
        """Roll out an ensemble at temperature 1, the distribution that the corrector learned.

        Returns:
            Fields (NUM_ENSEMBLE_MEMBERS, B, steps, X).
        """
        return torch.stack(
            [
                self.simulator.rollout(u0, steps, nu=nu, **self.options, temperature=1.0)
                for _ in range(NUM_ENSEMBLE_MEMBERS)
            ]
        )


class EvaluationModule(pl.LightningModule):
    """Tests a simulator and the baselines with the same code.

    Args:
        simulator: the simulator to test.
        model: its name in the rows.
        correct: the correctors to test; those that the simulator lacks are skipped.
        with_ttc: whether to test with test-time conditioning too.
        solver_points: grid sizes of the solver baselines; those that don't divide the training grid
            are skipped.

    Attributes:
        rows: the results, one for each setting and baseline. A row has the settings ("mode",
            "correct", "ttc"), PDEBench's metrics over the whole rollout, the physics checks,
            ``one_step_nrmse`` and ``one_step_squared`` (the mean of |error|^2/|u|^2) of single
            steps from all true frames, ``seconds_per_trajectory`` and ``nrmse_over_time``.
        examples: truth and first prediction (T, X) of the best, the median and the worst
            trajectory.
        spectra: energy of truth and first prediction at the last frame by wave number (X/2 + 1,),
            mean over trajectories.

    Rows with a corrector and without conditioning also hold the calibration of an ensemble of
    ``NUM_ENSEMBLE_MEMBERS`` rollouts at temperature 1: ``ensemble_nrmse`` of its mean, and
    ``spread_over_error`` and ``one_step_spread_over_error`` (1 is calibrated). Both are averaged
    like the nRMSE: mean relative spread over mean relative error. With the suffix ``_rms`` they are
    the ratio of root mean squares, which a single trajectory may dominate.
    """

    def __init__(
        self,
        simulator: Simulator,
        model: str,
        correct: list[str],
        with_ttc: bool = False,
        solver_points: tuple[int, ...] = (64, 128, 256),
    ) -> None:
        super().__init__()
        self.simulator = simulator
        held = [name for name in correct if name == "none" or name in simulator.correctors]
        settings: list[dict[str, Any]] = [
            {"mode": mode, "correct": "none", "ttc": False} for mode in ("latent", "physical")
        ]
        settings += [
            {"mode": "latent", "correct": name, "ttc": False} for name in held if name != "none"
        ]
        settings += [{"mode": "latent", "correct": name, "ttc": True} for name in held if with_ttc]
        self.predictors: list[tuple[dict[str, Any], Predictor]] = [
            ({"model": model, **s}, ConfiguredRollout(simulator, **s)) for s in settings
        ]
        solvers = [
            Solver(simulator.physics, n, simulator.dt, simulator.length)
            for n in solver_points
            if len(simulator.x) % n == 0
        ]
        baselines: list[Persistence | Solver] = [Persistence(), *solvers]
        for baseline in baselines:
            self.predictors.append(
                (
                    {"model": baseline.name, "mode": "physical", "correct": "none", "ttc": False},
                    baseline,
                )
            )
        self.rows: list[dict[str, Any]] = []
        self.examples: dict[str, tuple[Tensor, Tensor]] = {}
        self.spectra: tuple[Tensor, Tensor] | None = None

    def on_test_start(self) -> None:
        self.rollouts: list[RolloutMetrics] = []
        self.checks: list[PhysicsChecks] = []
        self.one_step: list[list[Tensor]] = [[] for _ in self.predictors]
        self.spreads: list[dict[str, list[Tensor]]] = [
            {"": [], "one_step_": []} for _ in self.predictors
        ]
        self.seconds = [0.0] * len(self.predictors)
        self.first: list[tuple[Tensor, Tensor]] = []
        self.samples = 0

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        u0, target, frames = batch.u[:, 0], batch.u[:, 1:], batch.u.shape[1] - 1
        starts, nus = batch.u[:, :-1].flatten(0, 1), batch.nu.repeat_interleave(frames)
        few_starts, few_ends = (u[:, ::ONE_STEP_STRIDE] for u in (batch.u[:, :-1], target))
        self.samples += len(u0)
        for row, (settings, predictor) in enumerate(self.predictors):
            if batch_idx == 0:
                self.rollouts.append(
                    RolloutMetrics(frames, target.shape[2], self.simulator.length).to(self.device)
                )
                self.checks.append(
                    PhysicsChecks(
                        self.simulator.physics, self.simulator.dt, self.simulator.length
                    ).to(self.device)
                )
                predictor.rollout(u0, 1, nu=batch.nu)  # warm up, as the first call is slower
            torch.manual_seed(batch_idx)  # equal draws for all settings and evaluations
            pred, seconds = _timed(predictor, u0, frames, batch.nu)
            self.seconds[row] += seconds
            self.rollouts[row].update(pred, target)
            self.checks[row].update(u0, pred, target)
            step = predictor.rollout(starts, 1, nu=nus)[:, 0]
            self.one_step[row].append(
                relative_l2_squared(step.double(), target.flatten(0, 1).double())
            )
            if (
                isinstance(predictor, ConfiguredRollout)
                and settings["correct"] != "none"
                and not settings["ttc"]
            ):
                draws = predictor.draws(u0, frames, batch.nu)
                few_nus = batch.nu.repeat_interleave(few_starts.shape[1])
                steps = predictor.draws(few_starts.flatten(0, 1), 1, few_nus)[:, :, 0]
                self.spreads[row][""].append(spread_skill(draws, target).flatten(0, 1))
                self.spreads[row]["one_step_"].append(spread_skill(steps, few_ends.flatten(0, 1)))
            if row == 0:
                self.first.append((target, pred))

    def on_test_epoch_end(self) -> None:
        self.rows = []
        for row, (settings, _) in enumerate(self.predictors):
            values = self.rollouts[row].compute()
            over_time = values.pop("nrmse_over_time")
            squared = torch.cat(self.one_step[row])
            values |= {
                **self.checks[row].compute(),
                "one_step_nrmse": squared.sqrt().mean().item(),
                "one_step_squared": squared.mean().item(),
            }
            for name, parts in self.spreads[row].items():
                if parts:
                    squared = torch.cat(parts).double()
                    (spread, error), (spread2, error2) = (
                        squared.sqrt().mean(0).tolist(),
                        squared.mean(0).tolist(),
                    )
                    values[f"{name}spread_over_error"] = spread / error
                    values[f"{name}spread_over_error_rms"] = (spread2 / error2) ** 0.5
                    if not name:
                        values["ensemble_nrmse"] = error
            seconds = self.seconds[row] / self.samples
            self.rows.append(
                {
                    **settings,
                    **values,
                    "seconds_per_trajectory": seconds,
                    "nrmse_over_time": over_time,
                }
            )
            if isinstance(self.predictors[row][1], ConfiguredRollout):
                label = "_".join(
                    ["ttc"] * settings["ttc"]
                    + [settings["correct"]] * (settings["correct"] != "none")
                    + [settings["mode"]]
                )
                self.log_dict({f"test/{label}/{name}": value for name, value in values.items()})
        target, pred = (torch.cat(parts) for parts in zip(*self.first, strict=True))
        # by the error in the titles of the plots
        order = relative_l2_squared(pred, target).sqrt().mean(1).argsort().tolist()
        chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
        self.examples = {name: (target[k].cpu(), pred[k].cpu()) for name, k in chosen.items()}
        self.spectra = (
            energy_spectrum(target[:, -1]).mean(0).cpu(),
            energy_spectrum(pred[:, -1]).mean(0).cpu(),
        )


def _timed(predictor: Predictor, u0: Tensor, frames: int, nu: Tensor) -> tuple[Tensor, float]:
    """Roll out and return the prediction with its wall time in seconds."""
    start = time.perf_counter()
    pred = predictor.rollout(u0, frames, nu=nu)
    if u0.is_cuda:
        torch.cuda.synchronize()
    return pred, time.perf_counter() - start
