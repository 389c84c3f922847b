"""What leaves UPS and comes back: model folders, the shipped model, graphs, data sets."""

import importlib.util
import json
import random
import re
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import SPEC, TINY, damaged, line_spec, make_simulator
from helpers.points import PARAMETERS, draw_points, padded, simulator_of, waves
from omegaconf import OmegaConf
from safetensors.torch import load_file
from test_point_upt import MODEL as POINT_UPT

import ups
from ups.core.errors import UpsError
from ups.evaluation.metrics import pdebench_metrics
from ups.evaluation.results import Row
from ups.hub import export
from ups.hub.model_card import render_model_card
from ups.models import GridModel
from ups.physics import burgers, navier_stokes
from ups.runs.run_dir import run_directory
from ups.simulation import model_folder

NU = 0.001
NETS = {
    "mean_network": {"hidden_dim": 8, "depth": 1},
    "denoiser": {"hidden_dim": 8, "depth": 1},
    "num_steps": 2,
}


def fields(n=3, points=32, seed=0):
    """They hardly have a mean, so that no frame moves."""
    u0 = burgers.initial_conditions(n, burgers.cell_centers(points), seed)
    return u0 - u0.mean(1, keepdim=True)


@pytest.fixture
def folder(simulator, tmp_path):
    simulator.add_corrector("diffusion", NETS)
    simulator.training_parameters = [[NU]]
    simulator.save(tmp_path / "model", card="# a card\n")
    return tmp_path / "model"


def test_model_folder_save_load_roundtrip(simulator, folder):
    again = ups.load(folder)
    assert not again.training
    assert again.config() == simulator.config()
    own, read = simulator.state_dict(), again.state_dict()
    assert own.keys() == read.keys()
    assert all(torch.equal(own[key], read[key]) for key in own)
    for how in ({}, {"correct": "diffusion", "temperature": 0}):
        assert torch.equal(
            again.rollout(fields(), 3, nu=NU, **how), simulator.rollout(fields(), 3, nu=NU, **how)
        )
    assert (
        load_file(folder / "model.safetensors").keys() == own.keys()
    )  # as any other tool reads it
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["architecture"] == "mixer"
    assert (folder / "README.md").read_text() == "# a card\n"


def test_model_folder_is_refused_in_one_sentence_when_damaged(folder, tmp_path, simulator):
    rng, refused = random.Random(0), 0
    for i in range(100):
        name = ("config.json", "model.safetensors")[i % 2]
        bad = shutil.copytree(folder, tmp_path / f"bad{i}")
        (bad / name).write_bytes(damaged((folder / name).read_bytes(), rng))
        try:
            ups.load(bad)  # what config.json may say after a change, it says
            assert (
                name == "config.json" or (bad / name).read_bytes() == (folder / name).read_bytes()
            )
        except UpsError as error:
            refused += 1
            assert str(bad) in str(error) or "model." in str(error)
            assert "\n" not in str(error)
    assert refused > 80


def test_model_folder_is_refused_when_its_files_are_of_two_models(folder, tmp_path):
    make_simulator(seed=1).save(tmp_path / "other")
    shutil.copy(tmp_path / "other/model.safetensors", folder)
    with pytest.raises(
        UpsError,
        match=(
            r"model is not a model folder .*: model\.safetensors "
            r"is not the file that config\.json was written for"
        ),
    ):
        ups.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(
        UpsError, match=r"model is not a model folder of UPS, or is damaged \(FileNotFoundError"
    ):
        ups.load(folder)


@pytest.mark.parametrize("name", ["checkpoints", "config.yaml"])
def test_model_is_not_exported_into_a_run_directory(simulator, tmp_path, monkeypatch, capsys, name):
    run = tmp_path / "run"
    (run / name).mkdir(parents=True)
    with pytest.raises(UpsError, match="must not be a run directory"):
        simulator.save(run)
    monkeypatch.setattr("sys.argv", ["ups.export", "burgers-small", str(run)])
    with pytest.raises(SystemExit, match="2"):
        export.main()
    assert "must not be a run directory" in capsys.readouterr().err
    assert [path.name for path in run.iterdir()] == [name]


def test_folder_with_the_weights_of_a_run_and_of_an_export_is_refused(folder):
    ups.load(folder)
    (folder / "checkpoints").mkdir()
    ups.load(folder)  # no weights there
    (folder / "checkpoints/operator.ckpt").touch()
    with pytest.raises(UpsError, match="must not hold an exported model beside a run"):
        ups.load(folder)


def test_run_does_not_begin_in_the_folder_of_an_exported_model(folder):
    cfg = OmegaConf.create({"output_dir": str(folder.parent), "name": folder.name})
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UpsError, match="or choose another name"), run_directory(cfg):
        pass
    assert sorted(path.name for path in folder.iterdir()) == before


def test_model_folder_is_refused_when_its_config_describes_no_simulator(folder):
    config = json.loads((folder / "config.json").read_text())
    for change, words in (
        ({"spec": {**config["spec"], "dt": "soon"}}, "does not describe a simulator"),
        ({"spec": None}, "does not describe a simulator"),
        ({"model": {"architecture": "os.system"}}, "model.architecture"),
        ({"model": {**config["model"], "hidden_dim": 24}}, "keys differ"),
        ({"equation": "alchemy"}, "`data.equation` must be one of .*, got 'alchemy'"),
        ({"correctors": {}}, r"keys differ: correctors\.diffusion"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UpsError, match=words):
            ups.load(folder)


def test_shipped_model_has_small_errors_and_draws_that_know_where_it_errs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sim = ups.load("burgers-small")
    assert set(sim.correctors) == {"diffusion", "consistency"}
    u0 = burgers.initial_conditions(6, burgers.cell_centers(1024), 12345)  # of no split
    truth = burgers.solve(u0, [sim.dt * k for k in range(11)], NU)[..., ::4]
    u0, truth = truth[:, 0], truth[:, 1:]
    plain = pdebench_metrics(sim.rollout(u0, 10, nu=NU), truth)["nrmse"]
    assert plain < 0.0075
    for correct in ("diffusion", "consistency"):
        torch.manual_seed(0)
        corrected = sim.rollout(u0, 10, nu=NU, correct=correct)
        assert pdebench_metrics(corrected, truth)["nrmse"] < 1.1 * plain
        draws = torch.stack(
            [sim.rollout(u0, 10, nu=NU, correct=correct, temperature=1.0) for _ in range(4)]
        )
        spread, error = draws.std(0), (draws.mean(0) - truth).abs()
        assert 0.6 < spread.norm() / error.norm() < 1.4
        # of draws for another field it is 0.0
        assert torch.corrcoef(torch.stack((spread.flatten(), error.flatten())))[0, 1] > 0.6
    with pytest.raises(UpsError, match="nor a model that comes with UPS: burgers-small, nav"):
        ups.load("burgers-large")
    make_simulator().save("burgers-small")  # what stands there goes first
    assert len(ups.load("burgers-small").x) == 32


def test_shipped_models_are_small():
    names = model_folder.list_pretrained()
    assert names == ["burgers-small", "navier-stokes-small"]
    for name in names:
        assert sum(path.stat().st_size for path in (model_folder.SHIPPED / name).iterdir()) < 5e6


def test_shipped_flow_is_better_than_the_solver_on_half_its_points():
    """On flows of no split that it has seen, from the solver on twice the points."""
    sim = ups.load("navier-stokes-small")
    assert sim.x[0, 0].tolist() == [0, 0]
    w = navier_stokes.initial_conditions(3, 128, 30_000)
    w = navier_stokes.solve(w, range(21), 1e-5, dtype=torch.float32)[..., ::2, ::2]
    start, truth = w[:, 10], w[:, 11:]

    def error(found):
        return ((found - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).mean()

    coarse = navier_stokes.resample(start, 32)
    coarse = navier_stokes.solve(coarse, range(1, 11), 1e-5, dtype=torch.float32)
    for mode in ("latent", "physical"):
        found = error(sim.rollout(start, 10, nu=1e-5, mode=mode))
        assert found < 0.09
        assert found < 0.6 * error(navier_stokes.resample(coarse, 64))


@pytest.mark.slow
def test_shipped_model_card_holds_its_error(tmp_path):
    front = (model_folder.SHIPPED / "burgers-small/README.md").read_text().split("---\n")[1]
    (told,) = yaml.safe_load(front)["model-index"]
    data = ups.datamodules.BurgersDataModule(cache_dir=str(tmp_path), num_train=1, num_validation=1)
    data.prepare_data()
    data.setup()
    sim, truth = ups.load("burgers-small", data), data.values["test"]
    for result, mode in zip(told["results"], ("latent", "physical"), strict=False):
        assert result["task"]["name"].endswith(mode)
        (expected,) = (m["value"] for m in result["metrics"] if m["type"] == "nrmse")
        found = sim.rollout(truth[:, 0], 40, nu=NU, mode=mode)
        nrmse = pdebench_metrics(found[..., 0], truth[:, 1:, ..., 0])["nrmse"]
        assert nrmse == pytest.approx(expected, rel=0.01)


@pytest.mark.integration
@pytest.mark.slow
def test_model_card_of_a_run_holds_the_numbers_of_its_reports(
    ups_run, tmp_path, monkeypatch, capsys
):
    ups_run(*TINY, "trainer.max_epochs=1", "name=a")
    run = tmp_path / "outputs/a"
    monkeypatch.setattr(sys, "argv", ["ups.export", str(run), str(tmp_path / "mine")])
    export.main()
    assert "written: README.md config.json model.safetensors in" in capsys.readouterr().out
    u0 = fields(2)
    assert torch.equal(
        ups.load(tmp_path / "mine").rollout(u0, 3, nu=NU), ups.load(run).rollout(u0, 3, nu=NU)
    )
    text = (tmp_path / "mine/README.md").read_text()
    rows = json.loads((run / "reports/eval_operator.json").read_text())["rows"]
    for row in rows:
        assert re.search(
            rf"\| {re.escape(Row.from_dict(row).label)} \| {row['nrmse']:.4f} \| "
            rf"{row['one_step_nrmse']:.4f} \|",
            text,
        )
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["model-index"][0]["results"][0]["metrics"][0] == {
        "type": "nrmse",
        "name": "rollout nRMSE",
        "value": rows[0]["nrmse"],
    }
    assert (
        f"python -m ups.run {' '.join(word for word in TINY if word != 'preflight=false')} "
        "trainer.max_epochs=1\n" in text
    )
    assert "license" not in front
    shutil.copy(
        run / "checkpoints/operator.ckpt", run / "checkpoints/operator_ema.ckpt"
    )  # weights that were never tested
    with pytest.raises(UpsError, match="no test results of the weights"):
        render_model_card(run, "a")


def needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def rolled(encode, step, decode, u0, steps):
    z, frames = encode(u0), []
    for _ in range(steps):
        z = step(z, torch.full((len(u0),), NU))
        frames.append(decode(z))
    return torch.stack(frames, 1)


@pytest.mark.parametrize(
    "config",
    [
        SPEC,
        {"architecture": "resnet", "hidden_channels": 8, "num_blocks": 1},
        {"architecture": "memory_upt", "num_tokens": 8, "hidden_channels": 8, "depth": 1},
    ],
)  # with latent tokens, without, and with both
def test_torch_graphs_roll_out_like_the_simulator(config, tmp_path):
    torch.manual_seed(1)
    spec = line_spec(32, std=(0.6,))
    simulator = ups.Simulator(ups.models.build(config, spec), spec, "burgers", config).eval()
    simulator.add_corrector("diffusion", NETS)
    export.to_torch(simulator, tmp_path)
    maps = [
        torch.export.load(tmp_path / f"{name}.pt2").module()
        for name in ("encode", "step", "decode")
    ]
    for batch in (1, 5):
        u0 = fields(batch)
        assert torch.allclose(rolled(*maps, u0, 4), simulator.rollout(u0, 4, nu=NU), atol=1e-5)
    assert "diffusion" in simulator.correctors  # what was exported is as it was


@needs("onnx", "onnxscript", "onnxruntime")
def test_onnx_graphs_roll_out_like_the_simulator(simulator, tmp_path):
    import onnxruntime

    export.to_onnx(simulator, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "decode.onnx",
        "encode.onnx",
        "step.onnx",
    ]

    def graph(name):
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
        inputs = [i.name for i in session.get_inputs()]
        assert inputs == {"encode": ["u"], "step": ["z", "nu"], "decode": ["z"]}[name]
        return lambda *values: torch.from_numpy(
            session.run(None, {k: v.numpy() for k, v in zip(inputs, values, strict=True)})[0]
        )

    maps = [graph(name) for name in ("encode", "step", "decode")]
    for batch in (1, 5):
        u0 = fields(batch)
        assert torch.allclose(rolled(*maps, u0, 4), simulator.rollout(u0, 4, nu=NU), atol=1e-5)


class Drifting(GridModel):
    """Every call answers otherwise, which no graph can."""

    calls = 0

    def forward(self, u):
        Drifting.calls += 1
        return u[:, :1] * Drifting.calls


class Branching(GridModel):
    """Does what depends on values, which no graph can."""

    def forward(self, u):
        return u[:, :1] if u.sum() > 0 else -u[:, :1]


@pytest.mark.parametrize(
    ("model", "words"),
    [(Drifting, "would differ from the simulator by"), (Branching, "can't be made")],
)
def test_graphs_are_not_written_when_one_differs_from_the_simulator(model, words, tmp_path):
    spec = line_spec(32)
    simulator = ups.Simulator(model(spec, conserve_mean=False), spec)
    with pytest.raises(UpsError, match=rf"step\.pt2 {words}"):
        export.to_torch(simulator, tmp_path)
    assert not list(tmp_path.iterdir())


def test_export_names_missing_packages(monkeypatch, tmp_path, simulator):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(UpsError, match=r"pip install 'ups\[onnx\]'"):
        export.to_onnx(simulator, tmp_path)
    with pytest.raises(UpsError, match=r"pip install 'ups\[xarray\]'"):
        export.to_xarray(simulator, fields(), 2, nu=NU)


def test_export_command_fails_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        ["ups.export", str(tmp_path / "nothing"), str(tmp_path / "out"), "--to", "torch"],
    )
    with pytest.raises(SystemExit) as stopped:
        export.main()
    assert stopped.value.code == 2
    assert "neither a run directory" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@needs("xarray")
def test_xarray_rollouts_of_every_second_frame(simulator):
    made = export.to_xarray(simulator, fields(), 5, nu=NU, stride=2)
    every = export.to_xarray(simulator, fields(), 5, nu=NU)
    assert made.time.values == pytest.approx(every.time.values[::2])
    assert np.allclose(made.u.values, every.u.values[:, ::2], atol=1e-6)


@needs("xarray", "h5netcdf")
def test_xarray_rollouts_on_points(tmp_path):
    import xarray

    simulator = simulator_of(POINT_UPT)
    points, u0 = padded(draw_points(40), waves(draw_points(40)))
    u0[~points.mask] = float("nan")
    queries = draw_points(9, seed=2)
    options = {"parameters": {"re": PARAMETERS[:, 0]}, "x": points}
    export.to_xarray(simulator, u0, 2, **options).to_netcdf(tmp_path / "rollouts.nc")
    frames = simulator.rollout(u0, 2, **options)
    with xarray.open_dataset(tmp_path / "rollouts.nc") as read:
        assert read.u.dims == ("trajectory", "time", "point")
        assert read.p.shape == (3, 3, 47)
        assert read.x.dims == read.y.dims == ("trajectory", "point")
        assert np.array_equal(read.u.values[:, 1:, :40], frames[:, :, :40, 0].numpy())
        assert np.array_equal(read.p.values[:, 0, :40], u0[:, :40, 1].numpy())
        assert np.array_equal(read.y.values[:, :40], points.positions[:, :40, 1].numpy())
        assert all(np.isnan(read[name].values[..., 40:]).all() for name in ("u", "p", "x", "y"))
        assert read.re.values == pytest.approx(PARAMETERS[:, 0].numpy())
    some = export.to_xarray(simulator, u0, 2, **options, x_out=queries)
    frames = simulator.rollout(u0, 2, **options, x_out=queries)
    assert np.array_equal(some.u.values[:, 1:], frames[..., 0].numpy())
    assert np.array_equal(some.x.values, queries.positions[..., 0].numpy())
    with torch.no_grad():
        known = u0.nan_to_num()
        rebuilt = simulator.decode(simulator.encode(known, None, points), queries)
    assert np.allclose(some.p.values[:, 0], rebuilt[..., 1].numpy(), atol=1e-6)


@needs("xarray", "h5netcdf")
def test_xarray_rollouts_netcdf_roundtrip(simulator, folder, tmp_path):
    import xarray

    u0, nu, x_out = fields(), torch.tensor([0.001, 0.002, 0.004]), torch.tensor([0.1, 0.55])
    made = export.to_xarray(simulator, u0, 4, nu=nu, mode="physical")
    made.to_netcdf(tmp_path / "rollouts.nc")
    with xarray.open_dataset(tmp_path / "rollouts.nc") as read:
        assert read.identical(made)
        assert read.u.dims == ("trajectory", "time", "x")
        assert torch.equal(
            torch.from_numpy(read.u.values[:, 1:]), simulator.rollout(u0, 4, nu=nu, mode="physical")
        )
        assert torch.equal(torch.from_numpy(read.u.sel(time=0).values), u0)
        assert torch.equal(torch.tensor(read.x.values), simulator.x)
        assert read.time.values == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
        assert read.nu.values == pytest.approx(nu.numpy())
        assert read.u.attrs["units"] == read.time.attrs["units"] == "1"
        assert read.attrs["dt"] == simulator.dt
        assert read.attrs["equation"] == "burgers"
        assert json.loads(read.attrs["model"]) == simulator.model_config
        assert "mode=physical" in read.attrs["history"]
        assert (
            read.attrs["weights_sha256"]
            == json.loads((folder / "config.json").read_text())["sha256"]
        )
    some = export.to_xarray(simulator, u0, 2, nu=NU, x_out=x_out)
    assert torch.equal(
        torch.from_numpy(some.u.values[:, 1:]), simulator.rollout(u0, 2, nu=NU, x_out=x_out)
    )
    assert some.x.values == pytest.approx(x_out.numpy())
