"""The last stage: measure rollouts on the test split, next to the baselines.

Rollouts start from the first frame and are measured in physical space.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from ups.core.batch import Batch
from ups.core.fields import FieldSpec, Grid
from ups.core.norms import negligible_size, relative_squares
from ups.core.points import Points
from ups.core.stepper import Stepper, predict
from ups.evaluation.baselines import Persistence, RandomStart, SolverStepper, coarse_solvers
from ups.evaluation.ensembles import EnsembleMetrics
from ups.evaluation.examples import Example, choose_examples
from ups.evaluation.metrics import PhysicsChecks, RolloutMetrics, energy_spectrum
from ups.evaluation.results import Row
from ups.evaluation.wall_distance import ErrorsByDistance, errors_by_distance
from ups.physics import Equation
from ups.physics.observation import Observation
from ups.simulation.correctors import ResidualCorrector
from ups.simulation.simulator import Simulator

NUM_ENSEMBLE_MEMBERS = 3  # rollouts of a sampler that estimate its spread
ONE_STEP_STRIDE = 8  # ensembles of single steps are costly and start from every eighth frame only
SOLVER_FACTORS = (4, 2, 1)  # by which the grids of the solver baselines are coarser than the data's
MIN_SOLVER_POINTS = 16  # along an axis of these grids
# maps initial fields (B, *space, C), a number of steps and parameters (B, P) to all frames
# (B, steps, *space, C); on points it takes the fields' ``points`` too
Predict = Callable[..., Tensor]


class MeasurementModule(pl.LightningModule):
    """Tests several ways to predict with the same code.

    Args:
        spec: describes the field.
        measurements: one for each way to predict.

    Attributes:
        rows: the results, one for each measurement. A row has the settings ("mode", "correct",
            "ttc"), PDEBench's metrics over the whole rollout, the physics checks,
            ``one_step_nrmse`` and ``one_step_squared`` (the mean of |error|^2/|u|^2) of single
            steps from all true frames, ``seconds_per_trajectory`` and ``nrmse_over_time``.
        examples: truth and first prediction of the best, the median and the worst trajectory.
        spectra: energy of truth and first prediction at the last frame by wave number (K,), mean
            over trajectories; None for fields on points.
        channel_nrmse: nRMSE of the first prediction in each frame and channel (T, C), mean over
            trajectories.
        errors_by_distance: errors of the first prediction by the distance from a wall; None for
            fields on a grid, or if the distances are not known.
    """

    def __init__(self, spec: FieldSpec, measurements: "Sequence[Measurement]") -> None:
        super().__init__()
        self.spec = spec
        self.measurements = list(measurements)
        self.rows: list[Row] = []
        self.examples: dict[str, Example] = {}
        self.spectra: tuple[Tensor, Tensor] | None = None
        self.channel_nrmse: Tensor | None = None
        self.errors_by_distance: ErrorsByDistance | None = None

    def on_test_start(self) -> None:
        self.first: list[tuple[Tensor, Tensor]] = []
        self.points: list[Points] = []
        self.channel_errors: list[Tensor] = []
        self.warm_up_seconds = 0.0

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        for measurement in self.measurements:
            if batch_idx == 0:
                started = time.perf_counter()
                measurement.start(batch)
                self.warm_up_seconds += time.perf_counter() - started
            torch.manual_seed(batch_idx)  # equal draws for all settings and evaluations
            pred = measurement.update(batch)
            if measurement is self.measurements[0]:
                self._keep(pred, batch)

    def _keep(self, pred: Tensor, batch: Batch) -> None:
        """Keep what pictures need of the first prediction (B, T, *space, C)."""
        target = batch.u[:, 1:]
        errors = relative_squares(
            pred, target, self.spec.space_axes, negligible_size(self.spec), _mask(batch.points)
        ).sqrt()
        self.channel_errors.append(errors)
        self.first.append((target, pred))
        if batch.points is not None:
            self.points.append(batch.points)

    def on_test_epoch_end(self) -> None:
        self.rows = [measurement.compute() for measurement in self.measurements]
        self.channel_nrmse = torch.cat(self.channel_errors).mean(0).cpu()
        spec = self.spec
        target, pred = (torch.cat(parts) for parts in zip(*self.first, strict=True))
        points = Points.cat(self.points) if self.points else None
        self.examples = choose_examples(target, pred, spec, points)
        if points is not None:
            self.errors_by_distance = errors_by_distance(pred, target, points, spec)
            return
        self.spectra = (
            energy_spectrum(target[:, -1], spec).mean(0).cpu(),
            energy_spectrum(pred[:, -1], spec).mean(0).cpu(),
        )


def _mask(points: Points | None) -> Tensor | None:
    """Where there is a point in fields (B, T, P, C)."""
    return None if points is None else points.mask[:, None]


class EvaluationModule(MeasurementModule):
    """Tests a simulator and the baselines, and logs the simulator's results.

    Args:
        simulator: the simulator to test.
        model: its name in the rows.
        correct: the correctors to test; those that the simulator lacks are skipped.
        with_ttc: whether to test with test-time conditioning too. A corrector that would repeat
            the rollout of another one is left out, see ``_distinct_guided``.
        observation: what is seen of initial fields; None if they are seen whole.

    Rows that draw, with a corrector or by an operator with noise, also hold the scores of an
    ensemble of ``NUM_ENSEMBLE_MEMBERS`` rollouts at temperature 1, if there is no conditioning. So
    does the solver on the data's own points, if not all of the initial fields is seen: its members
    have random fields for the rest. The scores are those of ``EnsembleMetrics``: ``crps``,
    ``energy_score``, ``ensemble_nrmse`` of its mean, ``spread_skill_ratio`` (1 is calibrated),
    ``coverage_90`` and the list ``rank_histogram``; and of each frame the lists
    ``ensemble_nrmse_over_time`` and ``ensemble_spread_over_time``. The ratio is mean relative
    spread over mean relative error, both averaged like the nRMSE; with the suffix ``_rms`` it is
    that of root mean squares, which a single trajectory may dominate. Single steps have
    ``one_step_spread_skill_ratio`` and ``one_step_spread_skill_ratio_rms``.
    """

    def __init__(
        self,
        simulator: Simulator,
        model: str,
        correct: list[str],
        with_ttc: bool = False,
        observation: Observation | None = None,
    ) -> None:
        measurements = measure_simulator(simulator, model, correct, with_ttc, observation)
        measurements += measure_baselines(simulator.spec, simulator.equation, observation)
        super().__init__(simulator.spec, measurements)
        self.simulator = simulator

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        for row in self.rows:
            if not row.is_baseline:
                scalars = {k: v for k, v in row.metrics.items() if isinstance(v, float)}
                del scalars["seconds_per_trajectory"]
                self.log_dict({f"test/{row.series}/{name}": v for name, v in scalars.items()})


class Measurement:
    """Accumulates what one way to predict achieves on the batches of the test split.

    Args:
        spec: describes the field.
        equation: the equation, for the physics checks; None if there is none.
        predict: what predicts.
        settings: the row without its metrics.
        sample: draws one member of an ensemble, whose calibration is measured too; None for none.
        observation: what single steps see of true frames; None if all. Rollouts start from what the
            batches hold.
    """

    def __init__(
        self,
        spec: FieldSpec,
        equation: Equation | None,
        predict: Predict,
        settings: Row,
        sample: Predict | None = None,
        observation: Observation | None = None,
    ) -> None:
        self.spec = spec
        self.equation = equation
        self.predict = predict
        self.settings = settings
        self.sample = sample
        self.observation = observation

    def start(self, batch: Batch) -> None:
        """Begin with the first batch."""
        frames = batch.u.shape[1] - 1
        self.rollouts = RolloutMetrics(frames, self.spec).to(batch.u.device)
        self.checks = PhysicsChecks(self.equation, self.spec).to(batch.u.device)
        self.one_step: list[Tensor] = []
        if self.sample is not None:
            self.ensembles = self._new_ensembles(frames).to(batch.u.device)
            self.steps = self._new_ensembles(1).to(batch.u.device)
        self.seconds = 0.0
        self.samples = 0
        self._roll_out(batch.u[:, 0], 1, batch)  # warm up, as the first call is slower

    def update(self, batch: Batch) -> Tensor:
        """Add a batch of whole trajectories and return the prediction (B, T, *space, C)."""
        target = batch.u[:, 1:]
        frames = target.shape[1]
        started = time.perf_counter()
        pred = self._roll_out(batch.u[:, 0], frames, batch)
        if pred.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - started
        self.samples += len(pred)
        mask = None if batch.points is None else batch.points.mask
        self.rollouts.update(pred, target, mask)
        self.checks.update(batch.u[:, 0], pred, target, mask)
        steps = self._single_steps(batch).double()
        errors = relative_squares(
            steps,
            target.double(),
            self.spec.space_axes,
            negligible_size(self.spec),
            _mask(batch.points),
        )
        self.one_step.append(errors.flatten())
        if self.sample is not None:
            self._add_ensembles(self.sample, batch)
        return pred

    def _roll_out(self, u0: Tensor, steps: int, batch: Batch) -> Tensor:
        """Predict from fields (B, *space, C) of the trajectories of a batch."""
        places = {} if batch.points is None else {"points": batch.points}
        return self.predict(u0, steps, batch.parameters, **places)

    def _single_steps(self, batch: Batch) -> Tensor:
        """Single steps from all true frames but the last (B, T, *space, C)."""
        if batch.points is not None:
            starts = batch.u[:, :-1].unbind(1)  # all at once, they need much memory
            return torch.cat([self._roll_out(u0, 1, batch) for u0 in starts], 1)
        frames = batch.u.shape[1] - 1
        parameters = batch.parameters.repeat_interleave(frames, 0)
        return self.predict(self._starts(batch), 1, parameters).unflatten(0, (-1, frames))[:, :, 0]

    def _starts(self, batch: Batch, stride: int = 1) -> Tensor:
        """What single steps from every ``stride``-th frame see (B T / stride, *space, C)."""
        starts = batch.u[:, :-1:stride].flatten(0, 1)
        return starts if self.observation is None else self.observation(starts)

    def _new_ensembles(self, frames: int) -> EnsembleMetrics:
        return EnsembleMetrics(frames, self.spec, NUM_ENSEMBLE_MEMBERS)

    def _add_ensembles(self, sample: Predict, batch: Batch) -> None:
        """Add ensembles of whole rollouts and of single steps."""
        target = batch.u[:, 1:]
        samples = _ensemble(sample, batch.u[:, 0], target.shape[1], batch.parameters)
        self.ensembles.update(samples, target)
        starts = self._starts(batch, ONE_STEP_STRIDE)
        ends = target[:, ::ONE_STEP_STRIDE].flatten(0, 1)
        parameters = batch.parameters.repeat_interleave(len(starts) // len(batch), 0)
        steps = _ensemble(sample, starts, 1, parameters)
        self.steps.update(steps, ends[:, None])

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
        if self.sample is not None:
            metrics |= _ensemble_scores(self.ensembles.compute(), self.steps.compute())
        metrics["seconds_per_trajectory"] = self.seconds / self.samples
        metrics["nrmse_over_time"] = over_time
        return replace(self.settings, metrics=metrics)


def measure_simulator(
    simulator: Simulator,
    model: str,
    correct: Sequence[str],
    with_ttc: bool = False,
    observation: Observation | None = None,
) -> list[Measurement]:
    """The measurements of a simulator, see ``EvaluationModule``."""
    held = [name for name in correct if name == "none" or name in simulator.correctors]
    settings = [("latent", "none", False), ("physical", "none", False)]
    settings += [("latent", name, False) for name in held if name != "none"]
    if with_ttc:
        settings += [("latent", name, True) for name in _distinct_guided(simulator, held)]
    rows = [Row(model, mode, name, ttc, {}) for mode, name, ttc in settings]
    return [_measure(simulator, row, observation) for row in rows]


def _measure(simulator: Simulator, settings: Row, observation: Observation | None) -> Measurement:
    reencode = settings.mode == "physical"
    options = {"correct": settings.correct, "ttc": settings.ttc}
    roll_out = _predict_with(simulator, options, reencode)
    sample = None
    draws = settings.correct != "none" or simulator.noise is not None
    if draws and not settings.ttc:
        # an ensemble draws from the distribution that was learned
        sample = _predict_with(simulator, {**options, "temperature": 1.0}, reencode)
    return Measurement(simulator.spec, simulator.equation, roll_out, settings, sample, observation)


def _predict_with(
    simulator: Simulator, options: Mapping[str, Any], reencode: bool = False
) -> Predict:
    """Rollouts of the stepper that these options of ``Simulator.stepper`` select."""
    stepper = simulator.stepper(**options)

    def roll_out(
        u0: Tensor, steps: int, parameters: Tensor, points: Points | None = None
    ) -> Tensor:
        on_points = stepper if points is None else simulator.stepper(**options, points=points)
        return simulator.predict(on_points, u0, steps, parameters, reencode)

    return roll_out


def measure_baselines(
    spec: FieldSpec, equation: Equation | None, observation: Observation | None = None
) -> list[Measurement]:
    """The measurements of persistence and of the equation's solver.

    The solver is measured on those grids that are coarser than the data's by ``SOLVER_FACTORS``
    and have at least ``MIN_SOLVER_POINTS``; data without an equation have none.
    """
    baselines: list[Persistence | SolverStepper] = [Persistence()]
    if isinstance(spec.domain, Grid):
        coarser = [spec.domain.shape[0] // factor for factor in SOLVER_FACTORS]
        points = [n for n in coarser if n >= MIN_SOLVER_POINTS]
        baselines += coarse_solvers(equation, spec, points)
    return [_measure_baseline(baseline, spec, equation, observation) for baseline in baselines]


def _measure_baseline(
    baseline: Persistence | SolverStepper,
    spec: FieldSpec,
    equation: Equation | None,
    observation: Observation | None,
) -> Measurement:
    sample = None
    # of the solvers only that on the data's own points has a place for what is not seen
    if observation is not None and isinstance(baseline, SolverStepper) and baseline.factor == 1:
        sample = partial(predict, RandomStart(baseline, observation.draw_missing))
    row = Row(baseline.name, "physical", "none", False, {})
    return Measurement(spec, equation, _predict_by(baseline), row, sample, observation)


def _predict_by(baseline: Stepper) -> Predict:
    """Rollouts of a baseline, which need not know where the fields lie."""

    def roll_out(
        u0: Tensor, steps: int, parameters: Tensor, points: Points | None = None
    ) -> Tensor:
        return predict(baseline, u0, steps, parameters)

    return roll_out


def _ensemble(sample: Predict, u0: Tensor, steps: int, parameters: Tensor) -> Tensor:
    """Rollouts (NUM_ENSEMBLE_MEMBERS, B, steps, *space, C) of a sampler."""
    return torch.stack([sample(u0, steps, parameters) for _ in range(NUM_ENSEMBLE_MEMBERS)])


def _ensemble_scores(
    rollouts: Mapping[str, Tensor], steps: Mapping[str, Tensor]
) -> dict[str, float | list[float]]:
    """The metrics of ensembles of rollouts and of single steps, see ``EnsembleMetrics``."""
    ratios = ("spread_skill_ratio", "spread_skill_ratio_rms")
    means = (*ratios, "ensemble_nrmse", "crps", "energy_score", "coverage_90")
    over_time = ("ensemble_nrmse", "ensemble_spread")
    return {
        **{name: rollouts[name].item() for name in means},
        **{f"one_step_{name}": steps[name].item() for name in ratios},
        "rank_histogram": rollouts["rank_histogram"].tolist(),
        **{
            f"{name}_over_time": rollouts[f"{name}_by_frame"].mean(-1).tolist()
            for name in over_time
        },
    }


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
