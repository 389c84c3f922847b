"""The evaluation: every number of every row recomputed from scratch, and what stands where."""

import dataclasses
import math
from functools import partial
from types import SimpleNamespace

import h5py
import lightning.pytorch as pl
import numpy as np
import pytest
import scoringrules
import torch
from conftest import SPEC

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.datamodules import BurgersDataModule
from ups.models import build
from ups.modules import EvaluationModule
from ups.modules import evaluation as evaluate_file
from ups.physics import advection, burgers
from ups.physics.periodic_1d import cell_averages, limited_linear_reconstruction
from ups.simulation.corrected import Corrected
from ups.simulation.guidance import TTC, Guided
from ups.simulation.simulator import Simulator

NETS = {
    "mean_network": {"hidden_dim": 16, "depth": 1},
    "denoiser": {"hidden_dim": 16, "depth": 1},
    "num_steps": 2,
}
POINTS, FRAMES, DT, LENGTH = 64, 11, 0.04, 2.0  # FRAMES with the initial one
TEST, BATCH = 5, 3  # batches of 3 and 2
NU = 0.02
DRAWS = 3
SPARSE = 8  # of frames 0..9 an ensemble of single steps starts from 0 and 8
CORRECT = ["none", "diffusion", "consistency"]
PDEBENCH = (
    *("rmse", "nrmse", "crmse", "brmse", "max_error"),
    *("frmse_low", "frmse_mid", "frmse_high"),
)
CORRELATION_TIMES = {
    "correlation_time": 0.8,
    "correlation_time_90": 0.9,
    "correlation_time_95": 0.95,
}
OF_DRAWS = (
    *("ensemble_nrmse", "spread_skill_ratio", "spread_skill_ratio_rms"),
    *("one_step_spread_skill_ratio", "one_step_spread_skill_ratio_rms"),
    *("crps", "energy_score", "coverage_90", "rank_histogram"),
    *("ensemble_nrmse_over_time", "ensemble_spread_over_time"),
)
CHECKS = (
    *("mass_drift", "boundary_jump_error", "maximum_principle_violation"),
    *("tv_growth", "energy_growth", *CORRELATION_TIMES),
)
SETTINGS = [
    ("mine", "latent", "none", False),
    ("mine", "physical", "none", False),
    ("mine", "latent", "diffusion", False),
    ("mine", "latent", "consistency", False),
    ("mine", "latent", "none", True),
    ("mine", "latent", "diffusion", True),
    ("mine", "latent", "consistency", True),
    ("persistence", "physical", "none", False),
    *((f"solver-{points}", "physical", "none", False) for points in (16, 32, 64)),
]


def new_simulator(points=POINTS, equation="burgers"):
    torch.manual_seed(0)
    grid = Grid((points,), (LENGTH,))
    spec = FieldSpec(grid, parameters=("nu",), dt=DT, std=(0.6,))
    return Simulator(build(SPEC, spec), spec, equation).eval()


def corrected_simulator(equation="burgers"):
    """With correctors whose means and draws change something."""
    simulator = new_simulator(equation=equation)
    torch.manual_seed(1)
    for name, sampler in (("diffusion", "heun"), ("consistency", "consistency")):
        corrector = simulator.add_corrector(name, {**NETS, "sampler": sampler})
        with torch.no_grad():
            corrector.mean_network.tokens_out.normal_(std=0.3)
            corrector.denoiser.tokens_out.normal_(std=0.3)
            corrector.scale.fill_(0.02)
    simulator.ttc = TTC(num_candidates=2, guidance_steps=1)
    return simulator.eval()


def write_file(path):
    """A file as PDEBench lays it out, on [0, 2), whose splits differ."""
    x = (torch.arange(4 * POINTS) + 0.5) * LENGTH / (4 * POINTS)
    u0 = burgers.initial_conditions(4 + 2 + TEST, x, seed=2, length=LENGTH) + 0.1
    t = DT * np.arange(FRAMES)
    u = burgers.solve(u0, t.tolist(), NU, LENGTH)[..., ::4]
    with h5py.File(path, "w") as file:
        file["tensor"] = u.numpy()
        file["x-coordinate"] = x[::4].numpy()
        file["t-coordinate"] = (DT * np.arange(FRAMES + 1)).astype(np.float32)
    return u[-TEST:]


def run_test(module, **data):
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.test(module, verbose=False, **data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """A tested simulator, its test split as it was written, and what was logged."""
    path = tmp_path_factory.mktemp("evaluation") / "mine.hdf5"
    truth = write_file(path)
    sizes = {
        "num_train": 4,
        "num_validation": 2,
        "num_test": TEST,
        "eval_batch_size": BATCH,
        "unroll_steps": 2,
    }
    data = BurgersDataModule(path=str(path), nu=NU, **sizes)
    module = EvaluationModule(corrected_simulator(), "mine", CORRECT, with_ttc=True)
    logged = run_test(module, datamodule=data)
    assert data.spec.grid.extent == (pytest.approx(LENGTH),)
    assert data.spec.dt == pytest.approx(DT)
    return SimpleNamespace(module=module, truth=truth, logged=logged)


@pytest.fixture(scope="module")
def expected(evaluation):
    """All predictions of every row, made anew: rollout, single steps and ensembles."""
    simulator, found = corrected_simulator(), []
    for model, mode, correct, ttc in SETTINGS:
        if model == "mine":
            options = {"mode": mode, "correct": correct, "ttc": ttc}
            found.append(predictions(simulator.rollout, evaluation.truth, **options))
        elif model == "persistence":
            found.append(predictions(persistence, evaluation.truth))
        else:
            points = int(model.removeprefix("solver-"))
            found.append(predictions(partial(solved, points), evaluation.truth))
    return found


def persistence(u0, steps, *, nu):
    return torch.stack([u0] * steps, 1)


def solved(points, u0, steps, *, nu):
    """The solver from averages over cells; the answer is made of lines."""
    times = [DT * (k + 1) for k in range(steps)]
    start = cell_averages(u0, POINTS // points)
    u = burgers.solve(start, times, nu[0].item(), LENGTH, dtype=torch.float32)
    return limited_linear_reconstruction(u, POINTS // points)


def predictions(rollout, truth, **options):
    ensemble = options.get("correct", "none") != "none" and not options["ttc"]
    parts = {"pred": [], "step": [], "draws": [], "step_draws": []}
    for number, u in enumerate(truth.split(BATCH)):
        steps = FRAMES - 1
        nu = torch.full((len(u),), NU)
        starts = u[:, :-1].reshape(-1, POINTS)
        torch.manual_seed(number)
        parts["pred"].append(rollout(u[:, 0], steps, nu=nu, **options))
        step = rollout(starts, 1, nu=nu.repeat_interleave(steps), **options)
        parts["step"].append(step.reshape(len(u), steps, POINTS))
        if ensemble:
            warm = {**options, "temperature": 1.0}
            draws = [rollout(u[:, 0], steps, nu=nu, **warm) for _ in range(DRAWS)]
            parts["draws"].append(torch.stack(draws))
            few = u[:, [0, 8]].reshape(-1, POINTS)
            draws = [rollout(few, 1, nu=nu.repeat_interleave(2), **warm) for _ in range(DRAWS)]
            parts["step_draws"].append(torch.stack(draws).reshape(DRAWS, len(u), 2, POINTS))
    along = {"pred": 0, "step": 0, "draws": 1, "step_draws": 1}
    return {name: torch.cat(p, along[name]).double().numpy() for name, p in parts.items() if p}


def row_ids():
    return [f"{model}-{mode}-{correct}-{ttc}" for model, mode, correct, ttc in SETTINGS]


every_row = pytest.mark.parametrize("place", range(len(SETTINGS)), ids=row_ids())
sampled_rows = pytest.mark.parametrize("place", [2, 3], ids=["diffusion", "consistency"])


def relative_squares(pred, truth):
    return ((pred - truth) ** 2).mean(-1) / (truth**2).mean(-1)


def test_evaluation_rows_have_their_settings_in_order(evaluation):
    found = [(r["model"], r["mode"], r["correct"], r["ttc"]) for r in evaluation.module.rows]
    assert found == SETTINGS


@every_row
def test_evaluation_row_has_its_keys(evaluation, place):
    row = evaluation.module.rows[place]
    keys = {*("model", "mode", "correct", "ttc"), *PDEBENCH, *CHECKS, "vrmse", "nrmse_over_time"}
    keys |= {"one_step_nrmse", "one_step_squared", "seconds_per_trajectory"}
    if place in (2, 3):
        keys |= {*OF_DRAWS}
    assert row.keys() == keys


@every_row
def test_evaluation_row_errors_equal_written_out_definitions(evaluation, expected, place):
    row, pred = evaluation.module.rows[place], expected[place]["pred"]
    truth = evaluation.truth[:, 1:].double().numpy()
    error = pred - truth
    rmse = np.sqrt((error**2).mean(2))
    over_time = (rmse / np.sqrt((truth**2).mean(2))).mean(0)
    transform = np.abs(np.fft.rfft(error)) ** 2
    amplitude = np.sqrt(transform.mean(0)) / POINTS * LENGTH
    assert row["nrmse_over_time"] == pytest.approx(over_time.tolist(), rel=1e-5)
    assert {name: row[name] for name in PDEBENCH} == pytest.approx(
        {
            "rmse": rmse.mean(),
            "nrmse": over_time.mean(),
            "crmse": (np.sqrt((error.sum(2) ** 2).mean(0)) / POINTS).mean(),
            "brmse": np.sqrt((error[..., 0] ** 2 + error[..., -1] ** 2) / 2).mean(),
            "max_error": np.abs(error).max((0, 2)).mean(),
            "frmse_low": amplitude[:, :4].mean(),
            "frmse_mid": amplitude[:, 4:12].mean(),
            "frmse_high": amplitude[:, 12:].mean(),
        },
        rel=1e-5,
        abs=1e-9,
    )


@every_row
def test_evaluation_row_one_step_errors_are_over_all_true_frames(evaluation, expected, place):
    row, step = evaluation.module.rows[place], expected[place]["step"]
    squares = relative_squares(step, evaluation.truth[:, 1:].double().numpy())
    assert squares.shape == (TEST, FRAMES - 1)
    assert row["one_step_nrmse"] == pytest.approx(np.sqrt(squares).mean(), rel=1e-5)
    assert row["one_step_squared"] == pytest.approx(squares.mean(), rel=1e-5)


@every_row
def test_evaluation_row_checks_equal_written_out_definitions(evaluation, expected, place):
    row, pred = evaluation.module.rows[place], expected[place]["pred"]
    truth = evaluation.truth.double().numpy()
    u0, target = truth[:, :1], truth[:, 1:]
    frames = np.concatenate((u0, pred), 1)
    above = np.maximum(pred.max(2) - u0.max(2), 0)
    below = np.maximum(u0.min(2) - pred.min(2), 0)
    jumps = (pred[..., 0] - pred[..., -1]) - (target[..., 0] - target[..., -1])
    variation = np.abs(frames - np.roll(frames, 1, 2)).sum(2)
    energy = (frames**2).sum(2)
    growth = {
        name: np.maximum(values[:, 1:] / values[:, :-1] - 1, 0).mean()
        for name, values in (("variation", variation), ("energy", energy))
    }
    frames_alike = {name: [] for name in CORRELATION_TIMES}
    for p, q in zip(pred, target, strict=True):
        correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)]
        for name, lowest in CORRELATION_TIMES.items():
            alike = [correlation > lowest for correlation in correlations]
            frames_alike[name].append(alike.index(False) if False in alike else len(alike))
    assert {name: row[name] for name in CHECKS} == pytest.approx(
        {
            "mass_drift": np.abs(pred.sum(2) - u0.sum(2)).mean() * LENGTH / POINTS,
            "boundary_jump_error": np.abs(jumps).mean(),
            "maximum_principle_violation": (above + below).mean(),
            "tv_growth": growth["variation"],
            "energy_growth": growth["energy"],
            **{name: DT * np.mean(frames) for name, frames in frames_alike.items()},
        },
        rel=1e-4,
        abs=1e-7,
    )


def spreads_and_errors(draws, truth):
    """Roots of the relative squared spread and error of each trajectory and frame, in numpy."""
    size = (truth**2).mean(-1)
    spread = draws.var(0, ddof=1).mean(-1) * (DRAWS + 1) / DRAWS / size
    return np.sqrt(spread), np.sqrt(relative_squares(draws.mean(0), truth))


@sampled_rows
def test_evaluation_row_ensemble_equals_written_out_definitions(evaluation, expected, place):
    row, truth = evaluation.module.rows[place], evaluation.truth[:, 1:].double().numpy()
    spread, error = spreads_and_errors(expected[place]["draws"], truth)
    rms = math.sqrt((spread**2).mean() / (error**2).mean())
    assert row["ensemble_nrmse"] == pytest.approx(error.mean(), rel=1e-4)
    assert row["spread_skill_ratio"] == pytest.approx(spread.mean() / error.mean(), rel=1e-4)
    assert row["spread_skill_ratio_rms"] == pytest.approx(rms, rel=1e-4)
    assert abs(rms - spread.mean() / error.mean()) > 1e-3 * rms  # the two are told apart
    assert row["ensemble_nrmse_over_time"] == pytest.approx(error.mean(0).tolist(), rel=1e-4)
    assert row["ensemble_spread_over_time"] == pytest.approx(spread.mean(0).tolist(), rel=1e-4)


@sampled_rows
def test_evaluation_row_scores_of_draws_equal_those_of_scoringrules(evaluation, expected, place):
    row, truth = evaluation.module.rows[place], evaluation.truth[:, 1:].double().numpy()
    draws = expected[place]["draws"]
    fair = {"m_axis": 0, "estimator": "fair", "backend": "numpy"}
    crps = scoringrules.crps_ensemble(truth, draws, **fair).mean()
    energy = scoringrules.es_ensemble(truth, draws, v_axis=-1, **fair)
    ranks = (draws < truth).sum(0)
    shares = [(ranks == k).mean() for k in range(DRAWS + 1)]
    std = evaluation.module.spec.std[0]
    assert row["crps"] == pytest.approx(crps / std, rel=1e-4)
    norms = np.sqrt((truth**2).sum(-1))
    assert row["energy_score"] == pytest.approx((energy / norms).mean(), rel=1e-4)
    # a draw may equal the truth to rounding
    assert row["rank_histogram"] == pytest.approx(shares, abs=2e-3)
    assert row["coverage_90"] == pytest.approx(shares[1] + shares[2], abs=2e-3)


@sampled_rows
def test_evaluation_row_one_step_spread_is_from_every_eighth_frame(evaluation, expected, place):
    row = evaluation.module.rows[place]
    truth = evaluation.truth[:, [1, 9]].double().numpy()  # where steps from 0 and 8 lead
    spread, error = spreads_and_errors(expected[place]["step_draws"], truth)
    rms = math.sqrt((spread**2).mean() / (error**2).mean())
    ratio = spread.mean() / error.mean()
    assert row["one_step_spread_skill_ratio"] == pytest.approx(ratio, rel=1e-4)
    assert row["one_step_spread_skill_ratio_rms"] == pytest.approx(rms, rel=1e-4)


def test_evaluation_rows_differ_from_each_other(evaluation):
    """Modes, correctors and conditioning arrive."""
    rows = evaluation.module.rows
    assert len({round(row["nrmse"], 6) for row in rows}) == len(rows)
    # a single step is the same in both modes
    one_step = [round(row["one_step_nrmse"], 6) for row in rows]
    assert one_step[0] == one_step[1]
    assert len(set(one_step)) == len(rows) - 1


def test_evaluation_logs_every_number_under_its_rows_series(evaluation):
    labels = [
        *("latent", "physical", "diffusion_latent", "consistency_latent"),
        *("ttc_latent", "ttc_diffusion_latent", "ttc_consistency_latent"),
    ]
    wanted = {}
    for label, row in zip(labels, evaluation.module.rows, strict=False):
        left_out = {"model", "mode", "correct", "ttc", "seconds_per_trajectory", "rank_histogram"}
        left_out |= {name for name in row if name.endswith("_over_time")}
        for name in row.keys() - left_out:
            wanted[f"test/{label}/{name}"] = row[name]
    assert evaluation.logged.keys() == wanted.keys()
    assert evaluation.logged == pytest.approx(wanted, rel=1e-5)


def test_evaluation_examples_are_the_best_the_median_and_the_worst(evaluation, expected):
    truth = evaluation.truth[:, 1:].double().numpy()
    errors = np.sqrt(relative_squares(expected[0]["pred"], truth)).mean(1)
    order = np.argsort(errors)
    examples = evaluation.module.examples
    assert list(examples) == ["best", "median", "worst"]
    for name, k in zip(examples, (order[0], order[TEST // 2], order[-1]), strict=True):
        found_truth, found_pred, _ = examples[name]
        assert found_truth.shape == found_pred.shape == (FRAMES - 1, POINTS, 1)
        assert np.allclose(found_truth[..., 0].numpy(), truth[k], atol=1e-6), name
        assert np.allclose(found_pred[..., 0].numpy(), expected[0]["pred"][k], atol=1e-5), name


def test_evaluation_examples_are_ranked_by_the_nrmse_of_the_plots():
    """Frame errors of 0.3 and 0.3 against 0 and 0.5: mean squares would rank them otherwise."""
    module = EvaluationModule(new_simulator(), "mine", ["none"])
    module.measurements = []
    module.on_test_start()
    truth = torch.ones(3, 2, POINTS)
    frame_errors = torch.tensor([[0.3, 0.3], [0.0, 0.5], [0.9, 0.9]])
    u = torch.cat((truth[:, :1], truth), 1)[..., None]
    index = torch.arange(3)
    batch = Batch(u, torch.ones(3, 1), index, index)
    module._keep((truth + frame_errors[..., None])[..., None], batch)
    module.on_test_epoch_end()
    last = {name: float(pred[-1, 0, 0]) for name, (_, pred, _) in module.examples.items()}
    assert last == pytest.approx({"best": 1.5, "median": 1.3, "worst": 1.9})


def test_evaluation_spectra_are_of_the_last_frame_the_truth_first(evaluation, expected):
    truth, pred = evaluation.truth[:, -1].double().numpy(), expected[0]["pred"][:, -1]
    for found, fields in zip(evaluation.module.spectra, (truth, pred), strict=True):
        power = np.abs(np.fft.rfft(fields) / POINTS) ** 2
        power[:, 1:-1] *= 2  # a wave and its conjugate
        assert np.allclose(found.numpy(), power.mean(0) / 2, rtol=1e-4, atol=1e-10)


def test_evaluation_of_a_corrector_that_does_nothing_equals_the_plain_one():
    simulator = corrected_simulator()
    for corrector in simulator.correctors.values():
        corrector.scale.zero_()
    module = EvaluationModule(simulator, "mine", CORRECT)
    run_test(module, dataloaders=batches(two_batches()))
    plain, _, *corrected = module.rows[:4]
    for row in corrected:
        assert row["one_step_nrmse"] == plain["one_step_nrmse"]
        assert row["one_step_squared"] == plain["one_step_squared"]
        assert row["nrmse_over_time"] == plain["nrmse_over_time"]
        assert row["ensemble_nrmse"] == pytest.approx(plain["nrmse"], rel=1e-5)
        assert row["spread_skill_ratio"] == pytest.approx(0.0, abs=1e-5)


# --- with predictors whose answers are known ---


def two_batches(frames=3, nus=(0.02, 0.02)):
    """(u, nu) of 3 and 2 trajectories, each a wave of its own size and level."""
    x = 2 * math.pi * torch.arange(POINTS) / POINTS
    sizes = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5])[:, None, None]
    fade = torch.linspace(1.0, 0.6, frames + 1)[:, None]
    u = sizes * fade * (x.sin() + 0.4)
    return list(zip(u.split(BATCH), nus, strict=True))


def batches(parts):
    """A loader of whole batches of fields (B, T, X), as the data module makes them."""
    made = []
    for u, nu in parts:
        number = torch.arange(len(u))
        made.append(Batch(u[..., None], torch.full((len(u), 1), nu), number, number))
    return torch.utils.data.DataLoader(made, batch_size=None)


class Stub:
    """In the place of ``predict``: notes its calls, moves a fake clock, and answers by ``answer``.

    A call is the kind of the stepper, fields (B, X), the number of steps, nu (B,) and options. The
    options of a simulator's stepper are those of ``Simulator.rollout`` that give the same.
    """

    def __init__(self, monkeypatch, answer):
        self.now, self.calls = 0.0, []
        correctors = {}
        build_stepper = Simulator.stepper

        def stepper_of(simulator, correct="none", ttc=False, temperature=None, group_size=1):
            if correct != "none":
                correctors[simulator.correctors[correct]] = correct
            return build_stepper(simulator, correct, ttc, temperature, group_size)

        def options_of(stepper, reencode):
            options = {"mode": "physical" if reencode else "latent"}
            options["ttc"] = isinstance(stepper, Guided)
            stepper = stepper.stepper if options["ttc"] else stepper
            options["correct"] = "none"
            if isinstance(stepper, Corrected):
                options["correct"] = correctors[stepper.corrector]
                if stepper.temperature is not None:
                    options["temperature"] = stepper.temperature
            return options

        def predict(stepper, u0, steps, parameters, reencode=False):
            own = isinstance(stepper, Simulator | Corrected | Guided)
            name = "Simulator" if own else type(stepper).__name__
            options = options_of(stepper, reencode) if own else {}
            self.now += 2.0 * len(u0) + steps
            u, nu = u0[..., 0].clone(), parameters[:, 0].clone()
            self.calls.append((name, u, steps, nu, options))
            return answer(name, u, steps, options)[..., None]

        monkeypatch.setattr(Simulator, "stepper", stepper_of)
        monkeypatch.setattr(evaluate_file, "predict", predict)
        monkeypatch.setattr(Simulator, "predict", lambda simulator, *args: predict(*args))
        clock = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr(evaluate_file, "time", clock)


def stays(name, u0, steps, options):
    return u0[:, None].expand(-1, steps, -1).contiguous()


def test_evaluation_seconds_are_those_of_the_rollouts_over_all_samples(monkeypatch):
    """Neither the first call, nor single steps, nor ensembles count."""
    Stub(monkeypatch, stays)
    module = EvaluationModule(corrected_simulator(), "mine", CORRECT, with_ttc=True)
    run_test(module, dataloaders=batches(two_batches(frames=3)))
    # a call takes 2 seconds a trajectory and 1 a frame: (6 + 3) + (4 + 3) for 5 trajectories
    seconds = [row["seconds_per_trajectory"] for row in module.rows]
    assert seconds == [pytest.approx(16 / 5)] * len(SETTINGS)
    # which take 2 seconds for each of the 3 first trajectories and 1 for a frame
    assert module.warm_up_seconds == 7 * len(SETTINGS)


def test_evaluation_warms_every_stepper_up_once_before_timing(monkeypatch):
    stub = Stub(monkeypatch, stays)
    module = EvaluationModule(new_simulator(), "mine", ["none"])
    run_test(module, dataloaders=batches(two_batches(frames=3)))
    calls = [(name, len(u0), steps) for name, u0, steps, _, _ in stub.calls]
    names = ["Simulator", "Simulator", "Persistence", *["SolverStepper"] * 3]
    first = [call for n in names for call in ((n, 3, 1), (n, 3, 3), (n, 9, 1))]
    second = [call for n in names for call in ((n, 2, 3), (n, 6, 1))]
    assert calls == first + second


def test_evaluation_predicts_with_each_trajectorys_nu_and_each_rows_options(monkeypatch):
    stub = Stub(monkeypatch, stays)
    u = torch.randn(TEST, FRAMES, POINTS, generator=torch.Generator().manual_seed(0))
    nu = torch.arange(1.0, TEST + 1)  # each trajectory's own, so that a wrong order is seen
    number = torch.arange(TEST)
    values = (u[..., None], nu[:, None], number, number)
    made = [Batch(*(t.split(BATCH)[k] for t in values)) for k in range(2)]
    module = EvaluationModule(corrected_simulator(), "mine", ["diffusion"], with_ttc=True)
    run_test(module, dataloaders=torch.utils.data.DataLoader(made, batch_size=None))
    nu_of = {tuple(frame.tolist()): k + 1.0 for k in range(TEST) for frame in u[k]}
    for _, fields, _, values, _ in stub.calls:
        assert values.tolist() == [nu_of[tuple(field.tolist())] for field in fields]
    options = [call[4] for call in stub.calls if call[0] == "Simulator"]
    base = {"mode": "latent", "correct": "diffusion", "ttc": False}
    # a first call, and in each of two batches a rollout and the single steps
    assert options.count(base) == 1 + 2 * 2
    assert options.count({**base, "ttc": True}) == 1 + 2 * 2
    assert options.count({**base, "correct": "none"}) == 1 + 2 * 2
    assert options.count({**base, "correct": "none", "mode": "physical"}) == 1 + 2 * 2
    # in each batch an ensemble of rollouts and one of single steps
    assert options.count({**base, "temperature": 1.0}) == 2 * 2 * DRAWS
    assert len(options) == 4 * 5 + 4 * DRAWS
    ensembles = [call for call in stub.calls if call[4].get("temperature") and call[2] == 1]
    firsts = [u[:BATCH, ::SPARSE].flatten(0, 1)] * DRAWS + [
        u[BATCH:, ::SPARSE].flatten(0, 1)
    ] * DRAWS
    for (_, fields, *_), first in zip(ensembles, firsts, strict=True):
        assert torch.equal(fields, first)


@pytest.mark.parametrize(
    ("correct", "with_ttc", "wanted"),
    [
        (["none"], False, SETTINGS[:2]),
        (["none", "consistency"], False, SETTINGS[:2]),  # which this simulator doesn't have
        (["diffusion"], True, [*SETTINGS[:3], SETTINGS[5]]),
        (["none", "diffusion", "consistency"], True, [*SETTINGS[:3], *SETTINGS[4:6]]),
        ([], True, SETTINGS[:2]),
    ],
)
def test_evaluation_rows_are_those_asked_for_and_held(monkeypatch, correct, with_ttc, wanted):
    Stub(monkeypatch, stays)
    simulator = corrected_simulator()
    del simulator.correctors["consistency"]
    module = EvaluationModule(simulator, "mine", correct, with_ttc)
    run_test(module, dataloaders=batches(two_batches()))
    found = [(r["model"], r["mode"], r["correct"], r["ttc"]) for r in module.rows]
    assert found == [*wanted, *SETTINGS[-4:]]


@pytest.mark.parametrize(
    ("candidates", "change", "guided"),
    [
        (1, None, ["none", "diffusion"]),
        (2, None, ["none", "diffusion", "consistency"]),  # which also draw
        (1, "mean", ["none", "diffusion", "consistency"]),
        (1, "scale", ["none", "diffusion", "consistency"]),
    ],
)
def test_evaluation_reports_equal_guided_rollouts_once(candidates, change, guided):
    simulator = corrected_simulator()
    teacher, student = (simulator.correctors[name] for name in CORRECT[1:])
    student.load_state_dict(teacher.state_dict())  # as the consistency stage begins
    with torch.no_grad():
        student.denoiser.tokens_out.add_(0.1)  # which it trains
        if change == "mean":
            student.mean_network.tokens_out[0, 0] += 1e-3
        elif change == "scale":
            student.scale.mul_(1.01)
    simulator.ttc = TTC(num_candidates=candidates, guidance_steps=1)
    module = EvaluationModule(simulator, "mine", CORRECT, with_ttc=True)
    settings = [measurement.settings for measurement in module.measurements]
    found = [row.correct for row in settings if row.ttc]
    assert found == guided
    plain = [row.correct for row in settings[:4] if row.mode == "latent"]
    assert plain == CORRECT
    u = 0.3 * torch.randn(2, POINTS, generator=torch.Generator().manual_seed(0))
    one, other = (simulator.rollout(u, 2, nu=NU, correct=name, ttc=True) for name in CORRECT[1:])
    assert torch.equal(one, other) == (guided == ["none", "diffusion"])


@pytest.mark.parametrize(
    ("points", "solvers"),
    [(32, [16, 32]), (40, [20, 40]), (64, [16, 32, 64]), (256, [64, 128, 256])],
)
def test_evaluation_has_solvers_on_grids_that_divide_the_simulators(monkeypatch, points, solvers):
    Stub(monkeypatch, stays)
    module = EvaluationModule(new_simulator(points), "mine", ["none"])
    u = torch.randn(2, 3, points, generator=torch.Generator().manual_seed(0))
    run_test(module, dataloaders=batches([(u, 0.02)]))
    names = [row["model"] for row in module.rows]
    assert names == ["mine", "mine", "persistence", *(f"solver-{n}" for n in solvers)]


def simulator_that(monkeypatch, change):
    """Let simulators answer with the initial field plus ``change``."""
    monkeypatch.setattr(Simulator, "encode", lambda _, u, parameters=None: u)
    monkeypatch.setattr(Simulator, "step", lambda _, state, parameters: state)
    monkeypatch.setattr(Simulator, "decode", lambda _, state: state + change)


def test_evaluation_takes_checks_and_solver_of_the_simulators_equation(monkeypatch):
    module = EvaluationModule(new_simulator(equation="advection"), "mine", ["none"])
    simulator_that(monkeypatch, 0.0)
    x = (torch.arange(POINTS) + 0.5) * LENGTH / POINTS
    u0 = (math.pi * x).sin()[None] + 0.3
    u = advection.exact(u0, [DT * k for k in range(4)], 0.7, LENGTH)
    run_test(module, dataloaders=batches([(u, 0.7)]))
    rows = {row["model"]: row for row in module.rows}
    assert rows["solver-64"]["energy_drift"] < 1e-4
    assert rows["solver-64"]["nrmse"] < 1e-3
    assert rows["persistence"]["energy_drift"] == 0.0


def test_evaluation_checks_know_the_length_and_what_the_equation_keeps(monkeypatch):
    """Every prediction is a quarter above the initial field."""
    simulator_that(monkeypatch, 0.25)
    u0 = (2 * math.pi * torch.arange(POINTS) / POINTS).sin()[None] + 0.5
    for equation in ("burgers", "advection"):
        module = EvaluationModule(new_simulator(equation=equation), "mine", ["none"])
        run_test(module, dataloaders=batches([(u0[:, None].repeat(1, 3, 1), 0.02)]))
        row = module.rows[0]
        assert row["mass_drift"] == pytest.approx(0.25 * LENGTH, rel=1e-5)
        # the mean of (sin + m)^2 is 1/2 + m^2
        gap = (0.75**2 - 0.5**2) / 2 * LENGTH
        wanted = {"energy_drift": pytest.approx(gap, rel=1e-5)} if equation == "advection" else {}
        assert {name: value for name, value in row.items() if name == "energy_drift"} == wanted


# --- without an equation ---


def test_evaluation_has_persistence_alone_and_no_equations_checks_without_an_equation():
    simulator = new_simulator(equation=None)
    module = EvaluationModule(simulator, "mine", ["none"])
    logged = run_test(module, dataloaders=batches(two_batches()))
    rows = {(row["model"], row["mode"]): row for row in module.rows}
    assert list(rows) == [("mine", "latent"), ("mine", "physical"), ("persistence", "physical")]
    keys = {*("model", "mode", "correct", "ttc"), *PDEBENCH, "vrmse", "nrmse_over_time"}
    keys |= {"one_step_nrmse", "one_step_squared", "seconds_per_trajectory"}
    keys |= {"boundary_jump_error", *CORRELATION_TIMES}
    for row in module.rows:
        assert row.keys() == keys
    assert "test/latent/mass_drift" not in logged
    # fields fade by 0.4 / 3 of their first size in a frame
    fades = [1 - 0.4 * k / 3 for k in (1, 2, 3)]
    assert rows["persistence", "physical"]["nrmse_over_time"] == pytest.approx(
        [1 / fade - 1 for fade in fades], rel=1e-5
    )


def test_evaluation_rows_without_an_equation_equal_those_with_one():
    """What both have; correctors too."""
    found = []
    for equation in (dataclasses.replace(burgers.EQUATION, boost=None), None):
        simulator = corrected_simulator("burgers" if equation else None)
        simulator.equation = equation
        module = EvaluationModule(simulator, "mine", CORRECT)
        run_test(module, dataloaders=batches(two_batches()))
        found.append({row.label: dict(row) for row in module.rows})
    with_equation, without = found
    assert with_equation.keys() - without.keys() == {"solver-16", "solver-32", "solver-64"}
    for label, row in without.items():
        del row["seconds_per_trajectory"]
        assert row == {key: with_equation[label][key] for key in row}, label


def test_evaluation_refuses_ttc_without_an_equation():
    with pytest.raises(UpsError, match=r"^`ttc` must be False: these data have no equation"):
        EvaluationModule(new_simulator(equation=None), "mine", ["none"], with_ttc=True)


def test_simulator_refuses_ttc_without_an_equation():
    simulator = corrected_simulator(None)
    u0 = torch.zeros(2, POINTS)
    assert simulator.rollout(u0, 1, nu=NU, correct="diffusion").shape == (2, 1, POINTS)
    for correct in CORRECT:
        with pytest.raises(UpsError, match=r"^`ttc` must be False: these data have no equation"):
            simulator.stepper(correct, ttc=True)
        with pytest.raises(UpsError, match=r"^`ttc` must be False: these data have no equation"):
            simulator.rollout(u0, 1, nu=NU, correct=correct, ttc=True)


# --- what the examples and the spectra are of ---


def test_evaluation_examples_and_spectra_are_of_the_plain_latent_rollout(monkeypatch):
    """Trajectories are off by known shares in each frame, other rows by far more."""
    off = torch.tensor(
        [
            [0.2, 0.2, 0.2],
            [0.1, 0.1, 0.3],  # the best on average, but neither in the last nor in the worst frame
            [0.5, 0.5, 0.1],  # the worst, but not at the end
            [0.3, 0.3, 0.4],
            [0.25, 0.25, 0.25],
        ]
    )
    truth = torch.cat([u for u, _ in two_batches()])
    pred = truth[:, 1:] * (1 + off[..., None])

    def answer(name, u0, steps, options):
        plain = options == {"mode": "latent", "correct": "none", "ttc": False}
        if not plain or steps == 1:
            return 9.0 * stays(name, u0, steps, options)
        return pred[:BATCH] if len(u0) == BATCH else pred[BATCH:]

    Stub(monkeypatch, answer)
    module = EvaluationModule(corrected_simulator(), "mine", CORRECT)
    run_test(module, dataloaders=batches(two_batches()))
    assert module.rows[0]["nrmse"] == pytest.approx(off.mean().item())
    for name, k in (("best", 1), ("median", 4), ("worst", 2)):
        found_truth, found_pred, points = module.examples[name]
        assert points is None
        assert torch.equal(found_truth, truth[k, 1:, :, None])
        assert torch.equal(found_pred, pred[k, ..., None])
    # waves (sin + 0.4) of size s at the last frame: energies 0.16 s^2 / 2 and s^2 / 4
    sizes = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64) * 0.6
    for found, s in zip(module.spectra, (sizes, sizes * (1 + off[:, -1])), strict=True):
        square = s.square().mean().item()
        assert found[:2].tolist() == pytest.approx([0.08 * square, square / 4], rel=1e-5)
        assert found[2:].abs().max() < 1e-9


def test_evaluation_results_are_new_when_the_test_is_run_again(monkeypatch):
    Stub(monkeypatch, stays)
    module = EvaluationModule(corrected_simulator(), "mine", ["none", "diffusion"])
    run_test(module, dataloaders=batches(two_batches()))
    first = module.rows
    run_test(module, dataloaders=batches(two_batches()[:1]))
    assert module.rows[0]["nrmse_over_time"] == pytest.approx(first[0]["nrmse_over_time"])
    assert module.rows[0]["max_error"] < first[0]["max_error"]
    # of three trajectories, of sizes 1, 2 and 0.5 that have faded to 0.6
    square = 0.36 * (1 + 4 + 0.25) / 3
    assert module.spectra[0][1].item() == pytest.approx(square / 4, rel=1e-5)
    run_test(module, dataloaders=batches(two_batches()))
    assert [dict(row) for row in module.rows] == [dict(row) for row in first]


def test_evaluation_draws_do_not_depend_on_what_came_before():
    rows = []
    for before in (3, 4):
        torch.manual_seed(before)
        module = EvaluationModule(corrected_simulator(), "mine", ["diffusion"])
        run_test(module, dataloaders=batches(two_batches()))
        rows.append([{k: v for k, v in row.items() if "seconds" not in k} for row in module.rows])
    assert rows[0] == rows[1]
