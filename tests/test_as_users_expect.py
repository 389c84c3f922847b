"""What users of such software met: other dtypes, foreign arrays, processes started anew."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from conftest import make_simulator

import ups
from ups.core.errors import UpsError
from ups.datamodules import BurgersDataModule
from ups.export import to_xarray
from ups.metrics import pdebench_metrics
from ups.modules import OperatorModule
from ups.physics import advection, burgers, get_equation
from ups.simulation.simulator import Simulator

NETS = {"mean_network": {"hidden_dim": 8, "depth": 1}, "denoiser": {"hidden_dim": 8, "depth": 1}}


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def fields(n=2, points=32):
    return burgers.initial_conditions(n, burgers.cell_centers(points), seed=1)


def test_a_model_is_float32_and_the_same_under_another_default_dtype(float64_by_default):
    sim = ups.load("burgers-small")
    u0 = burgers.initial_conditions(2, sim.x, seed=1)
    found = sim.rollout(u0, 3, nu=0.001, correct="consistency", temperature=0)
    made = make_simulator()
    made.add_corrector("diffusion", {**NETS, "num_steps": 2})
    assert {p.dtype for p in [*made.parameters(), *made.buffers()] if p.is_floating_point()} == {
        torch.float32
    }
    assert made.rollout(fields(), 2, nu=0.001, correct="diffusion").dtype == torch.float32
    torch.set_default_dtype(torch.float32)
    again = ups.load("burgers-small").rollout(u0, 3, nu=0.001, correct="consistency", temperature=0)
    assert torch.equal(found, again)


def test_data_and_losses_are_float32_under_another_default_dtype(float64_by_default, tmp_path):
    settings = {
        "num_points": 32, "reference_num_points": 32, "num_frames": 5, "num_train": 4,
        "num_validation": 1, "num_test": 1, "batch_size": 2, "cache_dir": str(tmp_path),
    }  # fmt: skip
    data = BurgersDataModule(**settings)
    data.prepare_data()
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert (batch.u.dtype, batch.parameters.dtype) == (torch.float32, torch.float32)
    simulator = Simulator(make_simulator().model, data.spec, "burgers")
    assert OperatorModule(simulator).compute_losses(batch)["loss"].dtype == torch.float32


@pytest.mark.parametrize("kind", [">f4", ">f8", "<f8"])
def test_arrays_of_any_byte_order_are_taken(kind):
    u0, sim = fields().numpy(), make_simulator().eval()
    foreign, times = u0.astype(kind), np.array([0.1, 0.2], ">f8")
    assert torch.equal(sim.rollout(foreign, 2, nu=0.001), sim.rollout(u0, 2, nu=0.001))
    for solve in (burgers.solve, advection.solve):
        assert np.allclose(solve(foreign, times, 0.01), solve(u0, [0.1, 0.2], 0.01), atol=1e-6)
    assert np.allclose(burgers.cole_hopf(foreign, times, 0.1), burgers.cole_hopf(u0, times, 0.1))
    frames = np.stack((foreign, foreign), 1)
    assert pdebench_metrics(frames, 2 * frames)["nrmse"] == pytest.approx(0.5)
    nus = np.array([0.001, 0.002], ">f4")
    assert torch.equal(sim.rollout(u0, 1, nu=nus)[1:], sim.rollout(u0[1:], 1, nu=0.002))


def test_cole_hopf_refuses_no_viscosity():
    with pytest.raises(UpsError, match="`nu` must be > 0 for the Cole-Hopf transform, got 0"):
        burgers.cole_hopf(fields(), [0.1], 0.0)


@pytest.mark.parametrize("path", [None, 3, b"burgers-small"])
def test_load_refuses_what_is_no_path(path):
    with pytest.raises(
        UpsError, match=r"`path` must be a run directory.*burgers-small, navier-stokes-small; got"
    ):
        ups.load(path)


@pytest.mark.parametrize("dt", [0.05, float(np.float32(0.05)), 0.05000000074505806])
def test_times_of_a_data_set_are_decimal(dt):
    simulator = make_simulator().eval()
    spec = dataclasses.replace(simulator.spec, dt=dt)
    rollout = to_xarray(Simulator(simulator.model, spec), fields(), 40, nu=0.001)
    for k in range(41):
        time = float(f"{0.05 * k:.2f}")
        assert (rollout.sel(time=time).u == rollout.isel(time=k).u).all()


def test_an_equation_is_pickled_by_its_name(tmp_path, monkeypatch):
    for name in ("burgers", "advection"):
        assert pickle.loads(pickle.dumps(get_equation(name))) is get_equation(name)
    (tmp_path / "heat_module.py").write_text(
        "import dataclasses\nfrom ups.physics import burgers\n"
        "EQUATION = dataclasses.replace(burgers.EQUATION, name='heat')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = get_equation("heat_module")
    assert pickle.loads(pickle.dumps(own)) is own


def test_what_workers_get_can_be_pickled(tmp_path):
    data = BurgersDataModule(
        num_points=32, reference_num_points=32, num_frames=5, num_train=4, num_validation=1,
        num_test=1, batch_size=2, cache_dir=str(tmp_path), in_memory=False,
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    loader = data.train_dataloader()
    dataset = pickle.loads(pickle.dumps(loader.dataset))
    for windows in loader.sampler:
        assert torch.equal(dataset[windows].u, loader.dataset[windows].u)
    assert pickle.loads(pickle.dumps(BurgersDataModule())).equation is get_equation("burgers")
    assert pickle.loads(pickle.dumps(make_simulator())).spec == make_simulator().spec


@pytest.mark.parametrize("points", [65, 129])
def test_positions_with_both_ends_of_the_line_are_taken(points):
    sim = make_simulator().eval()
    x = torch.linspace(0, 1, points)
    u0 = torch.sin(2 * torch.pi * x)[None]
    both = sim.rollout(u0, 3, nu=0.001, x=x, x_out=x)
    one = sim.rollout(u0[:, :-1], 3, nu=0.001, x=x[:-1], x_out=x[:-1])
    assert torch.allclose(both[..., :-1], one, atol=1e-4)
    assert torch.allclose(both[..., -1], both[..., 0], atol=1e-5)


@pytest.mark.parametrize(
    "given",
    [
        {"dt": np.float32(0.1)},
        {"num_points": np.int64(32)},
        {"nu": np.float32(0.02)},
        {"nu": np.array([0.01, 0.02], np.float32)},
        {"seed": np.int64(3), "batch_size": np.int32(2)},
    ],
)
def test_numbers_of_numpy_make_the_data_of_plain_ones(tmp_path, given):
    sizes = {
        "num_points": 32, "reference_num_points": 64, "num_frames": 5, "num_train": 4,
        "num_validation": 1, "num_test": 1, "batch_size": 2, "cache_dir": str(tmp_path),
    }  # fmt: skip
    plain = {key: value.tolist() for key, value in given.items()}
    data, same = (BurgersDataModule(**{**sizes, **changes}) for changes in (given, plain))
    for each in (data, same):
        each.prepare_data()
        each.setup()
    assert data.parts == same.parts  # one file
    assert data.spec == same.spec
    json.dumps(dict(data.hparams))


def test_checkpoints_hold_numbers_of_numpy_as_plain_ones(tmp_path):
    simulator = make_simulator(hidden_dim=np.int64(16))
    simulator.training_parameters = [[np.float32(0.01)]]
    module = OperatorModule(simulator, lr=np.float64(1e-3), betas=(np.float32(0.5), 0.75))
    path = tmp_path / "a.ckpt"
    torch.save({"module": dict(module.hparams), "simulator": simulator.config()}, path)
    found = torch.load(path, weights_only=True)
    assert found["module"]["lr"] == 1e-3
    assert list(found["module"]["betas"]) == [0.5, 0.75]
    assert found["simulator"]["model"]["hidden_dim"] == 16
    simulator.save(tmp_path / "model")
    assert ups.load(tmp_path / "model").model_config["hidden_dim"] == 16


def test_completion_offers_the_public_names_and_no_others():
    hidden = {"__version__"}
    assert set(dir(ups)) - hidden == set(ups.__all__)
    assert {"Simulator", "fit", "load", "metrics", "physics"} <= set(dir(ups))
    for name in dir(ups):
        assert getattr(ups, name) is not None
