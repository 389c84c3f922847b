"""The last stage: measure rollouts on the test split, next to the baselines.

Rollouts start from t = 0 and are measured in physical space.
"""

import time
from dataclasses import replace

import lightning.pytorch as pl
import torch
from torch import Tensor

from ups.core.batch import Batch
from ups.core.norms import relative_l2_squared
from ups.core.stepper import Stepper, predict
from ups.evaluation.baselines import Persistence, SolverStepper, coarse_solvers
from ups.evaluation.metrics import PhysicsChecks, RolloutMetrics, energy_spectrum, spread_skill
from ups.evaluation.results import Row
from ups.simulation.correctors import ResidualCorrector
from ups.simulation.simulator import Simulator

NUM_ENSEMBLE_MEMBERS = 3  # rollouts of a sampler that estimate its spread
ONE_STEP_STRIDE = 8  # ensembles of single steps are costly and start from every eighth frame only


class EvaluationModule(pl.LightningModule):
    """Tests a simulator and the baselines with the same code.

    Data without an equation have no solver among the baselines.

    Args:
        simulator: the simulator to test.
        model: its name in the rows.
        correct: the correctors to test; those that the simulator lacks are skipped.
        with_ttc: whether to test with test-time conditioning too. A corrector that would repeat
            the rollout of another one is left out, see ``_distinct_guided``.
        solver_points: grid sizes of the solver baselines; those that don't divide the training grid
            are skipped.

    Attributes:
        rows: the results, one for each setting and baseline. A row has the settings ("mode",
            "correct", "ttc"), PDEBench's metrics over the whole rollout, the physics checks,
            ``one_step_nrmse`` and ``one_step_squared`` (the mean of |error|^2/|u|^2) of single
            steps from all true frames, ``seconds_per_trajectory`` and ``nrmse_over_time``.
        examples: truth and first prediction (T, *space, C) of the best, the median and the worst
            trajectory.
        spectra: energy of truth and first prediction at the last frame by wave number (K,), mean
            over trajectories.

    Rows with a corrector and without conditioning also hold the calibration of an ensemble of
    ``NUM_ENSEMBLE_MEMBERS`` rollouts at temperature 1: ``ensemble_nrmse`` of its mean, and
    ``spread_skill_ratio`` and ``one_step_spread_skill_ratio`` (1 is calibrated). Both are averaged
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
        settings = [("latent", "none", False), ("physical", "none", False)]
        settings += [("latent", name, False) for name in held if name != "none"]
        if with_ttc:
            settings += [("latent", name, True) for name in _distinct_guided(simulator, held)]
        self.measurements = [
            Measurement(
                simulator,
                simulator.stepper(name, ttc),
                Row(model, mode, name, ttc, {}),
                reencode=mode == "physical",
            )
            for mode, name, ttc in settings
        ]
        baselines: list[Persistence | SolverStepper] = [Persistence()]
        baselines += coarse_solvers(simulator.equation, simulator.spec, solver_points)
        self.measurements += [
            Measurement(simulator, baseline, Row(baseline.name, "physical", "none", False, {}))
            for baseline in baselines
        ]
        self.rows: list[Row] = []
        self.examples: dict[str, tuple[Tensor, Tensor]] = {}
        self.spectra: tuple[Tensor, Tensor] | None = None

    def on_test_start(self) -> None:
        self.first: list[tuple[Tensor, Tensor]] = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        for measurement in self.measurements:
            if batch_idx == 0:
                measurement.start(batch)
            torch.manual_seed(batch_idx)  # equal draws for all settings and evaluations
            pred = measurement.update(batch)
            if measurement is self.measurements[0]:
                self.first.append((batch.u[:, 1:], pred))

    def on_test_epoch_end(self) -> None:
        self.rows = [measurement.compute() for measurement in self.measurements]
        for row in self.rows:
            if not row.is_baseline:
                scalars = {k: v for k, v in row.metrics.items() if isinstance(v, float)}
                del scalars["seconds_per_trajectory"]
                self.log_dict({f"test/{row.series}/{name}": v for name, v in scalars.items()})
        spec = self.simulator.spec
        target, pred = (torch.cat(parts) for parts in zip(*self.first, strict=True))
        # by the error in the titles of the plots
        errors = relative_l2_squared(pred, target, spec.space_axes).sqrt().mean(1)
        order = errors.argsort().tolist()
        chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
        self.examples = {name: (target[k].cpu(), pred[k].cpu()) for name, k in chosen.items()}
        self.spectra = (
            energy_spectrum(target[:, -1], spec).mean(0).cpu(),
            energy_spectrum(pred[:, -1], spec).mean(0).cpu(),
        )


class Measurement:
    """Accumulates what one way to predict achieves on the batches of the test split.

    Args:
        simulator: the simulator under test, which describes the field.
        stepper: what predicts.
        settings: the row without its metrics.
        reencode: whether every step starts from the encoded field of the step before.
    """

    def __init__(
        self, simulator: Simulator, stepper: Stepper, settings: Row, reencode: bool = False
    ) -> None:
        self.simulator = simulator
        self.stepper = stepper
        self.settings = settings
        self.reencode = reencode
        # an ensemble draws from the distribution that the corrector learned
        is_sampled = settings.correct != "none" and not settings.ttc
        self.sampler = simulator.stepper(settings.correct, temperature=1.0) if is_sampled else None

    def start(self, batch: Batch) -> None:
        """Begin with the first batch."""
        spec = self.simulator.spec
        frames = batch.u.shape[1] - 1
        self.rollouts = RolloutMetrics(frames, spec).to(batch.u.device)
        self.checks = PhysicsChecks(self.simulator.equation, spec).to(batch.u.device)
        self.one_step: list[Tensor] = []
        self.spreads: dict[str, list[Tensor]] = {"": [], "one_step_": []}
        self.seconds = 0.0
        self.samples = 0
        self._predict(batch.u[:, 0], 1, batch.parameters)  # warm up, as the first call is slower

    def update(self, batch: Batch) -> Tensor:
        """Add a batch of whole trajectories and return the prediction (B, T, *space, C)."""
        target = batch.u[:, 1:]
        frames = target.shape[1]
        started = time.perf_counter()
        pred = self._predict(batch.u[:, 0], frames, batch.parameters)
        if pred.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - started
        self.samples += len(pred)
        self.rollouts.update(pred, target)
        self.checks.update(batch.u[:, 0], pred, target)
        parameters = batch.parameters.repeat_interleave(frames, 0)
        step = self._predict(batch.u[:, :-1].flatten(0, 1), 1, parameters)[:, 0]
        axes = self.simulator.spec.space_axes
        truth = target.flatten(0, 1).double()
        self.one_step.append(relative_l2_squared(step.double(), truth, axes))
        if self.sampler is not None:
            self._add_spreads(self.sampler, batch)
        return pred

    def _add_spreads(self, sampler: Stepper, batch: Batch) -> None:
        """Add the spread and the error of ensembles, of whole rollouts and of single steps."""
        spec = self.simulator.spec
        target = batch.u[:, 1:]
        samples = self._ensemble(sampler, batch.u[:, 0], target.shape[1], batch.parameters)
        self.spreads[""].append(spread_skill(samples, target, spec).flatten(0, 1))
        starts = batch.u[:, :-1:ONE_STEP_STRIDE]
        ends = target[:, ::ONE_STEP_STRIDE].flatten(0, 1)
        parameters = batch.parameters.repeat_interleave(starts.shape[1], 0)
        steps = self._ensemble(sampler, starts.flatten(0, 1), 1, parameters)[:, :, 0]
        self.spreads["one_step_"].append(spread_skill(steps, ends, spec))

    def compute(self) -> Row:
        """The result over all batches."""
        squared = torch.cat(self.one_step)
        rollouts = self.rollouts.compute()
        over_time = rollouts.pop("nrmse_over_time")
        metrics: dict[str, float | list[float]] = {
            **rollouts,
            **self.checks.compute(),
            "one_step_nrmse": squared.sqrt().mean().item(),
            "one_step_squared": squared.mean().item(),
        }
        for prefix, parts in self.spreads.items():
            if parts:
                metrics |= _calibration(prefix, torch.cat(parts).double())
        metrics["seconds_per_trajectory"] = self.seconds / self.samples
        metrics["nrmse_over_time"] = over_time
        return replace(self.settings, metrics=metrics)

    def _predict(self, u0: Tensor, steps: int, parameters: Tensor) -> Tensor:
        roll_out = predict if self.settings.is_baseline else self.simulator.predict
        return roll_out(self.stepper, u0, steps, parameters, self.reencode)

    def _ensemble(self, sampler: Stepper, u0: Tensor, steps: int, parameters: Tensor) -> Tensor:
        """Rollouts (NUM_ENSEMBLE_MEMBERS, B, steps, *space, C) of a sampler."""
        members = [
            self.simulator.predict(sampler, u0, steps, parameters)
            for _ in range(NUM_ENSEMBLE_MEMBERS)
        ]
        return torch.stack(members)


def _calibration(prefix: str, squared: Tensor) -> dict[str, float]:
    """The metrics of the squared spreads and errors (..., 2) of ensembles."""
    spread, error = squared.sqrt().mean(0).tolist()
    mean_square_spread, mean_square_error = squared.mean(0).tolist()
    metrics = {
        f"{prefix}spread_skill_ratio": spread / error,
        f"{prefix}spread_skill_ratio_rms": (mean_square_spread / mean_square_error) ** 0.5,
    }
    return metrics if prefix else {**metrics, "ensemble_nrmse": error}


def _distinct_guided(simulator: Simulator, names: list[str]) -> list[str]:
    """Leave out correctors whose guided rollout repeats that of an earlier one.

    With one candidate a guided rollout uses a corrector's mean and draws nothing. Consistency has
    diffusion's network of the mean, so both are the same computation, and one row reports it.
    """
    if simulator.ttc.num_candidates > 1:
        return names
    distinct: list[str] = []
    for name in names:
        correctors = [simulator.correctors[other] for other in distinct if other != "none"]
        if name == "none" or not any(
            _same_mean(simulator.correctors[name], other) for other in correctors
        ):
            distinct.append(name)
    return distinct


def _same_mean(one: ResidualCorrector, other: ResidualCorrector) -> bool:
    """Whether two correctors have the same mean: its network and its unit."""
    states = [
        {"scale": corrector.scale, **corrector.mean_network.state_dict()}
        for corrector in (one, other)
    ]
    return states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][key]) for key, value in states[0].items()
    )
