"""``ups.compare``: foreign models measured by the code that measures our own."""

import copy
import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import make_simulator
from helpers.commands import call
from test_obstacles import TINY
from torch import nn

import ups
from ups.core.errors import UpsError
from ups.core.points import Points
from ups.datamodules import BurgersDataModule, OwnDataModule, PointCloudDataModule
from ups.datamodules.obstacles import generate_obstacles
from ups.models import build
from ups.physics import burgers
from ups.simulation.simulator import Simulator

POINTS, FRAMES, NUM_TEST = 32, 6, 5
SIZES = {
    "num_points": POINTS, "reference_num_points": 64, "num_frames": FRAMES, "num_train": 4,
    "num_validation": 2, "num_test": NUM_TEST, "eval_batch_size": 3, "unroll_steps": 2,
}  # fmt: skip
SHAPE = (3, POINTS)  # of the first batch
BASELINES = ("persistence", "solver-16", "solver-32")


@pytest.fixture
def data(tmp_path):
    return BurgersDataModule(cache_dir=str(tmp_path / "data"), nu=0.02, **SIZES)


@pytest.fixture
def own_data(tmp_path):
    """Burgers without its equation, so that no frame moves along with a field."""
    nu = np.linspace(1e-3, 2e-3, 12).astype(np.float32)
    u0 = burgers.initial_conditions(12, burgers.cell_centers(POINTS), seed=3)
    u = burgers.solve(u0, [0.05 * k for k in range(FRAMES)], torch.from_numpy(nu))
    np.savez(tmp_path / "u.npz", u=u.numpy(), nu=nu)
    sizes = {"num_test": NUM_TEST, "eval_batch_size": 3, "unroll_steps": 2}
    return OwnDataModule(str(tmp_path / "u.npz"), dt=0.05, length=1.0, **sizes)


@pytest.fixture
def compare(tmp_path):
    def run(models, data, **options):
        return ups.compare(models, data, output_dir=tmp_path, **options)

    return run


def measured(row):
    """The numbers of a row but its time."""
    return {k: v for k, v in row.metrics.items() if k != "seconds_per_trajectory"}


def stays(u):
    return u


def test_a_simulators_own_functions_have_the_rows_of_the_simulator(compare, own_data):
    simulator = make_simulator(POINTS, equation=None).eval()
    found = compare(
        {
            "ours": simulator,
            "its step": lambda u, nu: simulator(u, nu=nu),
            "its rollout": ups.Predictor(
                lambda u0, steps, nu: simulator.rollout(u0, steps, nu=nu), returns="rollout"
            ),
        },
        own_data,
    ).rows
    labels = ["ours, latent", "ours, physical", "its step, physical", "its rollout, rollout"]
    assert list(found) == [*labels, "persistence"]
    assert measured(found["its step, physical"]) == measured(found["ours, physical"])
    assert measured(found["its rollout, rollout"]) == measured(found["ours, latent"])
    assert measured(found["ours, latent"]) != measured(found["ours, physical"])
    assert found["ours, latent"]["nrmse"] > 0
    assert all(row["seconds_per_trajectory"] > 0 for row in found.values())


def test_a_function_that_keeps_the_field_is_persistence(compare, data):
    found = compare({"stays": stays}, data).rows
    assert measured(found["stays, physical"]) == measured(found["persistence"])


def test_numpy_functions_and_parameters_in_both_forms(compare, data):
    seen = []

    def by_name(u, nu):
        seen.append((type(u), type(nu), u.dtype, u.shape, nu.shape, nu[0]))
        return (0.5 * u).astype(np.float64)

    def all_of_them(u, *, parameters):
        assert torch.equal(parameters, torch.full((len(u), 1), 0.02))
        return 0.5 * u

    def any_of_them(u, **parameters):
        assert parameters.keys() == {"nu"}
        return 0.5 * u

    models = {"by name": ups.Predictor(by_name, arrays="numpy"), "all": all_of_them}
    found = compare({**models, "any": any_of_them}, data).rows
    assert seen[0] == (np.ndarray, np.ndarray, np.float32, SHAPE, (3,), np.float32(0.02))
    one, other, third = (found[f"{name}, physical"] for name in ("by name", "all", "any"))
    assert measured(one) == measured(other)
    assert measured(other) == measured(third)


def test_several_channels_have_a_channel_axis(compare, tmp_path):
    u = np.random.default_rng(0).normal(size=(12, FRAMES, POINTS, 2)).astype(np.float32)
    np.savez(tmp_path / "u.npz", u=u, re=np.full(12, 3.0))
    data = OwnDataModule(
        str(tmp_path / "u.npz"), dt=0.1, length=1.0, num_test=5, unroll_steps=2, eval_batch_size=3
    )
    shapes = []

    def step(u, re):
        shapes.append((tuple(u.shape), tuple(re.shape)))
        return u

    found = compare({"mine": step}, data)
    assert shapes[0] == ((3, POINTS, 2), (3,))
    assert list(found.rows) == ["mine, physical", "persistence"]
    assert found.dataset == data.dataset


@pytest.fixture(scope="module")
def flows(tmp_path_factory):
    """Two test trajectories at other numbers of points."""
    path = generate_obstacles(TINY, tmp_path_factory.mktemp("flows"))
    module = PointCloudDataModule(path=str(path), input_points=60, unroll_steps=1)
    module.setup()
    assert not module.points["test"].mask.all()
    return module


def test_functions_on_points_get_their_places_and_have_the_rows_of_the_simulator(compare, flows):
    sizes = {"num_tokens": 18, "hidden_dim": 16, "num_heads": 2, "approximator_depth": 1}
    model = build({"architecture": "point_upt", **sizes}, flows.spec)
    simulator = Simulator(model, flows.spec).eval()
    seen = []

    def its_step(u, reynolds, positions, features, mask):
        seen.append((u.shape, positions.shape, features.shape))
        out = simulator(u, x=Points(positions, features, mask), parameters={"reynolds": reynolds})
        return torch.where(mask[..., None], out, torch.nan)  # counts nowhere

    def its_rollout(u0, steps, *, positions, features, mask, parameters):
        points = Points(positions, features, mask)
        return simulator.rollout(
            u0, steps, x=points, parameters={"reynolds": parameters[:, 0]}
        ).masked_fill(~mask[:, None, :, None], torch.inf)

    found = compare(
        {
            "ours": simulator,
            "its step": its_step,
            "its rollout": ups.Predictor(its_rollout, returns="rollout"),
            "numpy": ups.Predictor(lambda u, mask: np.where(mask[..., None], u, 7), arrays="numpy"),
        },
        flows,
    ).rows
    shape = flows.points["test"].mask.shape
    assert seen[0] == ((*shape, 3), (*shape, 2), (*shape, len(flows.spec.point_cloud.features)))
    assert measured(found["its step, physical"]) == measured(found["ours, physical"])
    assert measured(found["its rollout, rollout"]) == measured(found["ours, latent"])
    assert measured(found["ours, latent"]) != measured(found["ours, physical"])
    assert measured(found["numpy, physical"]) == measured(found["persistence"])


@pytest.mark.usefixtures("drawn")
def test_report_of_a_comparison_on_points_is_drawn(compare, flows, tmp_path):
    compare({"mine": lambda u: 0.9 * u}, flows)
    page = (tmp_path / "comparison/reports/report.html").read_text()
    assert "mine, physical" in page
    assert "error over the distance from the nearest wall" in page


def test_points_may_be_named_by_settings_and_by_a_run(compare, flows):
    path = f"data.path={flows.path}"
    found = compare({"stays": stays}, ["data=obstacles", path, "data.unroll_steps=1"])
    assert found.dataset == flows.dataset
    assert measured(found.rows["stays, physical"]) == measured(found.rows["persistence"])


def test_parameters_with_names_of_other_arguments_are_in_parameters_only(compare, flows):
    named = copy.copy(flows)
    named.spec = dataclasses.replace(flows.spec, parameters=("mask",))

    def step(u, mask, parameters):
        assert mask.dtype == torch.bool
        assert parameters.shape == (len(u), 1)
        return u

    compare({"mine": step}, named)
    named.spec = dataclasses.replace(flows.spec, parameters=("u",))

    def any_of_them(u, **parameters):
        assert not parameters
        return u

    compare({"mine": stays, "any": any_of_them}, named)


def test_a_simulator_may_be_measured_on_other_points_of_its_box(compare, flows):
    sizes = {"num_tokens": 18, "hidden_dim": 16, "num_heads": 2, "approximator_depth": 1}

    def simulator_of(factor):
        edges = tuple((first, factor * last) for first, last in flows.spec.domain.edges)
        spec = flows.spec.with_domain(dataclasses.replace(flows.spec.domain, edges=edges))
        return Simulator(build({"architecture": "point_upt", **sizes}, spec), spec).eval()

    compare({"ours": simulator_of(1.01)}, flows)
    with pytest.raises(UpsError, match=r"`box` must be 0 to 9\.6 x 0 to 4\.8, got 0 to 8 x 0 to 4"):
        compare({"ours": simulator_of(1.2)}, flows)
    with pytest.raises(UpsError, match="`ours` was trained for other data"):
        compare({"ours": make_simulator(64, equation=None)}, flows)


def test_what_is_not_finite_at_a_point_is_refused(compare, flows):
    with pytest.raises(UpsError, match="must return finite fields, got NaN or inf in frame 1"):
        compare({"bad": lambda u, mask: u.masked_fill(mask[..., None], torch.nan)}, flows)


def test_functions_that_reuse_their_memory_change_neither_data_nor_earlier_frames(compare, data):
    out = torch.empty(0)

    def halves_its_argument(u):
        u *= 0.5
        return u

    def fills_one_buffer(u):
        nonlocal out
        out = out if out.shape == u.shape else torch.empty_like(u)
        return torch.mul(u, 0.5, out=out)

    def in_numpy(u):
        u *= 0.5
        return u

    data.prepare_data()
    data.setup()
    before = data.values["test"].clone()
    models = {"a": halves_its_argument, "b": fills_one_buffer, "c": lambda u: 0.5 * u}
    found = compare({**models, "d": ups.Predictor(in_numpy, arrays="numpy")}, data).rows
    assert torch.equal(data.values["test"], before)
    for name in "abd":
        assert measured(found[f"{name}, physical"]) == measured(found["c, physical"])


def test_a_module_is_in_eval_mode_and_gets_back_its_own(compare, data):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))
            self.dropout = nn.Dropout(0.5)
            self.frozen = nn.Dropout(0.5).eval()

        def forward(self, u):
            assert not torch.is_grad_enabled()
            return self.dropout(self.weight * u)

    module = Noisy()
    found = compare({"net": module}, data).rows
    assert measured(found["net, physical"]) == measured(found["persistence"])
    assert [part.training for part in module.modules()] == [True, True, False]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            lambda u: u[:, None],
            r"`bad` must return the next frame, of shape \(3, 32\), got \(3, 1, ",
        ),
        (lambda u: u[..., :9], r"of shape \(3, 32\), got \(3, 9\)"),
        (lambda u: None, "`bad` must return a tensor or an array, got NoneType"),
        (lambda u: u.long(), "must return real floating-point numbers, got torch.int64"),
        (lambda u: u.numpy().astype(object), "must return real floating-point numbers, got object"),
        (lambda u: u + 1j, "must return real floating-point numbers, got torch.complex64"),
        (lambda u: u / 0 * 0, "`bad` must return finite fields, got NaN or inf in frame 1 of 1"),
        (lambda u: 1e30 * u, "must return finite fields, got NaN or inf in frame 2 of 5"),
        (lambda: 1, r"must be a function of \(u\) and of any of the keywords nu, parameters"),
        (lambda u, dt: u, "can't be called so: missing a required argument: 'dt'"),
        (3, "`bad` must be a function or a module, got int"),
        (ups.Predictor(stays, returns="rollout"), r"must be a function of \(u0, steps\)"),
        (ups.Predictor(stays, returns="frames"), "`bad.returns` must be one of frame, rollout"),
        (ups.Predictor(stays, arrays="jax"), "`bad.arrays` must be one of torch, numpy"),
        (
            ups.Predictor(lambda u0, steps: u0, returns="rollout"),
            r"must return all frames, of shape \(3, 1, 32\), got \(3, 32\)",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_answered_in_one_sentence(compare, data, model, words):
    with pytest.raises(UpsError, match=words) as refusal:
        compare({"bad": model}, data)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("models", "options", "words"),
    [
        ({}, {}, "`models` must be functions by name, .* got dict"),
        (stays, {}, "`models` must be functions by name, .* got function"),
        ({"persistence": stays}, {}, "other names than the baselines, got 'persistence'"),
        ({"solver-64": stays}, {}, "other names than the baselines, got 'solver-64'"),
        ({"": stays}, {}, "must have names as keys, got ''"),
        ({"mine": stays}, {"name": "a/b"}, "`name` must be a folder's name"),
        ({"mine": stays}, {"data": 3}, "`data` must be a data module .* got int"),
        (
            {"mine": stays},
            {"data": "nothing"},
            "`data` must be the folder of a run, .* `data` must be one of .*, got nothing",
        ),
        ({"mine": stays}, {"data": "pdebench"}, "data"),
    ],
)
def test_arguments_that_can_not_be_used_are_answered_in_one_sentence(
    compare, data, models, options, words
):
    with pytest.raises(UpsError, match=words) as refusal:
        compare(models, **{"data": data, **options})
    assert "\n" not in str(refusal.value)


def test_an_error_of_a_function_says_whose_it_is(compare, data):
    with pytest.raises(RuntimeError) as raised:
        compare({"fine": stays, "double": nn.Linear(POINTS, POINTS).double()}, data)
    assert raised.value.__notes__ == ["This is an error of the model `double`."]


def test_a_simulator_for_other_data_is_refused(compare, data):
    words = "`ours` was trained for other data .* `points` must be 64, got 32"
    with pytest.raises(UpsError, match=words):
        compare({"ours": make_simulator(64)}, data)


@pytest.mark.usefixtures("drawn")
def test_results_stand_on_the_leaderboard_and_beside_runs(compare, data, tmp_path):
    compare({"first": stays}, data)
    result = compare({"mine": lambda u: 0.5 * u}, data)  # the same folder: replaced
    compare({"mine": lambda u: 0.8 * u}, data, name="other")
    content = json.loads((tmp_path / "comparison/reports/eval_compare.json").read_text())
    assert [row["model"] for row in content["rows"]] == ["mine", *BASELINES]
    assert content["rows"][0]["nrmse"] == result.rows["mine, physical"]["nrmse"]
    with (tmp_path / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["model"]) for row in rows] == [
        ("comparison", "mine"),
        *(("baseline", name) for name in BASELINES),
        ("other", "mine"),
    ]  # fmt: skip
    assert float(rows[0]["nrmse"]) == result.rows["mine, physical"]["nrmse"]
    assert rows[0]["stage"] == "compare"
    page = (tmp_path / "comparison/reports/report.html").read_text()
    assert "mine, physical" in page
    assert "BurgersDataModule" in page
    done = call("ups.report", "comparison", "other", "-o", "both.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "other: mine, physical" in (tmp_path / "both.html").read_text()


def test_data_may_be_the_folder_of_a_run_or_settings(compare, data, tmp_path):
    first = compare({"mine": stays}, data)
    again = compare({"mine": stays}, tmp_path / "comparison", name="again")
    assert again.dataset == first.dataset
    assert measured(again.rows["mine, physical"]) == measured(first.rows["mine, physical"])
    np.save(tmp_path / "waves.npy", np.random.default_rng(0).normal(size=(12, FRAMES, POINTS)))
    settings = ["data=own", f"data.path={tmp_path}/waves.npy", "data.dt=0.1", "data.length=32"]
    own = compare({"mine": stays}, settings, name="own")
    assert own.dataset["name"] == "waves"
    (tmp_path / "trained/checkpoints").mkdir(parents=True)
    with pytest.raises(UpsError, match="`name` must not be that of a trained run"):
        compare({"mine": stays}, data, name="trained")
