"""The datamodule: making, reusing, reading, splitting, refusing."""

import dataclasses
import json

import h5py
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from conftest import SPEC
from helpers.published import pdebench_file

from ups.core.errors import UpsError
from ups.datamodules import BurgersDataModule, TrajectoryDataModule, statistics
from ups.datamodules.readers.pdebench import TrajectoryFile
from ups.models import build
from ups.modules import OperatorModule
from ups.physics import burgers, navier_stokes
from ups.simulation.simulator import Simulator

SMALL = {
    "num_points": 32,
    "reference_num_points": 64,
    "num_frames": 6,
    "num_train": 6,
    "num_validation": 2,
    "num_test": 3,
    "unroll_steps": 2,
    "batch_size": 4,
    "eval_batch_size": 2,
}


def small(tmp_path, **changes):
    data = BurgersDataModule(cache_dir=str(tmp_path), **{**SMALL, **changes})
    data.prepare_data()
    data.setup()
    return data


def test_generated_data_solve_the_equation(tmp_path):
    data = small(tmp_path)
    with h5py.File(data.path) as file:
        assert file["tensor"].shape == (11, 6, 32)
        assert file["t-coordinate"].shape == (7,)
    u = data.values["test"][..., 0]
    fine = burgers.initial_conditions(3, burgers.cell_centers(64), seed=2)
    assert torch.allclose(u[:, 0], fine[:, ::2])
    assert torch.allclose(
        u, burgers.solve(fine, [0.05 * k for k in range(6)], 0.001)[..., ::2], atol=1e-6
    )


def test_generated_file_is_reused_when_the_recipe_is_the_same(tmp_path):
    first = small(tmp_path)
    stamp = first.path.stat().st_mtime_ns
    again = small(tmp_path, batch_size=2)
    assert again.path == first.path
    assert again.path.stat().st_mtime_ns == stamp
    other = small(tmp_path, num_train=7)
    assert other.path != first.path
    assert other.dataset["hash"] == first.dataset["hash"]  # the test set has a seed of its own


def test_default_data_set_has_another_name_than_that_of_version_1():
    # whose solver took other steps: such a file is not mistaken for one of this version
    name = BurgersDataModule().path.name
    assert name == "burgers-nu0.001-c5b52c21.hdf5"
    assert name != "burgers-nu0.001-e6a9b2e4.hdf5"


def test_generated_file_of_version_1_is_read_by_its_path(tmp_path):
    made = small(tmp_path)
    old = tmp_path / "burgers-nu0.001-old.hdf5"
    old.write_bytes(made.path.read_bytes())
    with h5py.File(old, "r+") as file:
        recipe = json.loads(file.attrs["recipe"])
        file.attrs["recipe"] = json.dumps({**recipe, "version": 1})
    read = small(tmp_path, path=str(old))
    assert np.array_equal(read.train_values, made.train_values)


def test_generation_leaves_no_file_when_it_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("ups.datamodules.generate.digest", lambda values: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        small(tmp_path)
    assert not list(tmp_path.glob("*.hdf5*[!k]"))


def test_interrupted_generation_goes_on_with_what_is_left(tmp_path, monkeypatch):
    whole = small(tmp_path / "whole")
    monkeypatch.setattr("ups.datamodules.generate.GROUP", 0)  # one trajectory at a time
    monkeypatch.setattr("ups.datamodules.generate.os.cpu_count", lambda: 1)
    calls = []

    def interrupted(*arguments):
        calls.append(len(arguments[0]))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return burgers.EQUATION.solve(*arguments)

    data = BurgersDataModule(cache_dir=str(tmp_path / "parts"), **SMALL)
    data.equation = dataclasses.replace(burgers.EQUATION, solve=interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.prepare_data()
    assert not data.path.exists()
    folder = data.path.with_suffix(".parts")
    assert len(list(folder.glob("*.npy"))) >= 4
    data.prepare_data()
    data.setup()
    assert calls == [1] * (11 + 1)  # each once, and the one that failed again
    assert not folder.exists()
    assert np.array_equal(data.train_values, whole.train_values)
    assert data.dataset["hash"] == whole.dataset["hash"]


def test_generation_in_groups_of_another_size_takes_no_part_for_another(tmp_path, monkeypatch):
    whole = small(tmp_path / "whole")
    data = BurgersDataModule(cache_dir=str(tmp_path / "parts"), **SMALL)
    calls = []

    def interrupted(*arguments):
        calls.append(len(arguments[0]))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return burgers.EQUATION.solve(*arguments)

    monkeypatch.setattr("ups.datamodules.generate.os.cpu_count", lambda: 1)
    monkeypatch.setattr("ups.datamodules.generate.GROUP", 0)  # one trajectory at a time
    data.equation = dataclasses.replace(burgers.EQUATION, solve=interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.prepare_data()
    monkeypatch.undo()  # as on a GPU, after a CPU
    data.prepare_data()
    data.setup()
    assert np.array_equal(data.train_values, whole.train_values)
    assert data.dataset["hash"] == whole.dataset["hash"]


def test_generated_planes_solve_the_equation_and_are_read_as_they_were_written(tmp_path):
    settings = {
        "equation": "navier_stokes",
        "nu": 2e-3,
        "cache_dir": tmp_path,
        "num_points": 16,
        "reference_num_points": 32,
        "dt": 0.5,
        "num_frames": 4,
        "num_train": 5,
        "num_validation": 2,
        "num_test": 3,
        "unroll_steps": 2,
        "batch_size": 4,
    }
    data = TrajectoryDataModule(**settings)
    assert data.space() == (16, 16)
    assert data.to_be_made() == 2 * 10 * 4 * 16 * 16 * 4
    assert data.train_bytes() == 5 * 4 * 16 * 16 * 4
    data.prepare_data()
    data.setup()
    assert data.spec.shape == (16, 16, 1)
    assert data.spec.grid.extent == (1.0, 1.0)
    assert data.spec.grid.origin == (0.0, 0.0)  # whatever the solver's grid is
    assert (data.spec.channels, data.spec.parameters) == (("w",), ("nu",))
    assert data.spec.conserves_mean
    assert not data.spec.is_homogeneous
    fine = navier_stokes.EQUATION.grid(32)
    u0 = navier_stokes.EQUATION.initial_conditions["published"](3, fine, 2)
    times = [0.5 * k for k in range(4)]
    u = navier_stokes.EQUATION.solve(u0, times, [2e-3], fine, torch.float64)
    assert torch.allclose(data.values["test"], u[:, :, ::2, ::2], atol=1e-6)
    (batch, *_) = data.train_dataloader()
    assert batch.u.shape == (4, 3, 16, 16, 1)
    with h5py.File(data.path) as file:
        assert file["tensor"].shape == (10, 4, 16, 16)
        assert file["y-coordinate"].shape == (16,)
    thinned = TrajectoryFile(data.path, temporal_downsampling=2, spatial_downsampling=4)
    read = thinned.read([9], 1, 1)
    assert np.array_equal(read, data.values["test"][2:, 2:3, ::4, ::4].numpy())
    assert thinned.grid.origin == (0.0, 0.0)


def test_file_of_another_number_of_dimensions_than_the_equation_is_refused(tmp_path):
    path = pdebench_file(tmp_path / "nu0.002.hdf5")
    data = TrajectoryDataModule(
        equation="navier_stokes", path=str(path), num_train=5, num_validation=1, num_test=2
    )
    with pytest.raises(UpsError, match="navier_stokes, 2D with 1 channels; its fields are 1D"):
        data.setup()


def test_pdebench_file_is_read_into_splits_spec_and_batches(tmp_path):
    path = pdebench_file(tmp_path / "1D_Burgers_Sols_Nu0.002.hdf5")
    for in_memory in (False, True):
        data = BurgersDataModule(
            path=str(path),
            nu=None,
            num_train=5,
            num_validation=1,
            num_test=2,
            temporal_downsampling=5,
            spatial_downsampling=4,
            unroll_steps=2,
            in_memory=in_memory,
        )
        data.prepare_data()
        data.setup()
        assert data.training_parameters == [[0.002]]
        assert (data.num_frames, data.spec.shape) == (5, (16, 1))
        assert (data.spec.channels, data.spec.parameters) == (("u",), ("nu",))
        assert data.spec.dt == pytest.approx(0.05)
        assert data.spec.grid.extent == pytest.approx((1.0,))
        assert data.spec.grid.origin == pytest.approx((0.5 / 64,))
        with h5py.File(path) as file:
            test = data.values["test"].numpy()
            assert np.array_equal(test, file["tensor"][6:, ::5, ::4][..., None])
            train = file["tensor"][:5, ::5, ::4]
        # of the training trajectories alone
        assert data.spec.std == pytest.approx((train.std(),), rel=1e-5)
        assert data.spec.mean == (0.0,)
        batch = next(iter(data.train_dataloader()))
        assert batch.u.shape == (16, 3, 16, 1)
        assert batch.parameters.tolist() == [[pytest.approx(0.002)]] * 16
    assert set(batch.trajectory.tolist()) <= set(range(5))


def test_streamed_batches_equal_loaded_batches(tmp_path):
    path = pdebench_file(tmp_path / "1D_Burgers_Sols_Nu0.1.hdf5")
    batches = []
    for in_memory in (False, True):
        data = BurgersDataModule(
            path=str(path),
            nu=None,
            num_train=5,
            num_validation=1,
            num_test=2,
            unroll_steps=2,
            in_memory=in_memory,
        )
        data.setup()
        batches.append(next(iter(data.train_dataloader())))
    assert torch.equal(batches[0].u, batches[1].u)


def test_data_of_several_viscosities_are_one_data_set(tmp_path):
    nus = [0.001, 0.01]
    both, one = small(tmp_path, nu=nus, eval_batch_size=3), small(tmp_path, nu=0.001)
    assert both.path == one.path  # the first part is the data set of that viscosity alone
    n, tests = one.hparams["num_train"], one.hparams["num_test"]
    assert torch.equal(both.values["test"][:tests], one.values["test"])
    assert not torch.equal(
        both.values["test"][tests:, 0], one.values["test"][:, 0]
    )  # other initial conditions
    assert (both.dataset["name"], both.dataset["nu"], both.dataset["trajectories"]) == (
        "burgers-nu0.001,0.01",
        nus,
        2 * tests,
    )
    seen = torch.cat(
        [
            torch.stack((batch.trajectory.float(), batch.parameters[:, 0]), 1)
            for batch in both.train_dataloader()
        ]
    )
    times = seen[:, 1] / torch.tensor(nus)[seen[:, 0].int() // n]
    assert set(times.round(decimals=4).tolist()) == {1.0, 2.0}  # some are hastened, see below
    assert all(
        len(batch.parameters.unique(dim=0)) == 1 for batch in both.test_dataloader()
    )  # the solver beside it takes one
    streamed = small(tmp_path, nu=nus, in_memory=False)
    for a, b in zip(both.train_dataloader(), streamed.train_dataloader(), strict=True):
        assert torch.equal(a.u, b.u)
        assert torch.equal(a.parameters, b.parameters)


@pytest.mark.parametrize("nus", [0.01, [0.01, 0.02]])
def test_statistics_are_the_same_whether_data_are_in_memory(tmp_path, monkeypatch, nus):
    monkeypatch.setattr(statistics, "STATISTICS_TRAJECTORIES", 3)
    whole, streamed = (
        small(tmp_path, nu=nus, num_train=12, in_memory=in_memory) for in_memory in (True, False)
    )
    assert whole.spec == streamed.spec
    assert whole.input_range(whole.spec) == streamed.input_range(whole.spec)
    assert whole.amplitude_cap == streamed.amplitude_cap
    files = whole.open_files()
    every_fourth = np.concatenate([file.read(range(0, 12, 4)) for file in files])
    assert whole.spec.std[0] == pytest.approx(every_fourth.std(dtype=np.float64), rel=1e-6)


def test_files_of_one_data_set_must_agree(tmp_path):
    paths = [str(pdebench_file(tmp_path / f"1D_Burgers_Sols_Nu{nu}.hdf5")) for nu in (0.1, 0.2)]
    arguments = {"num_train": 5, "num_validation": 1, "num_test": 2, "unroll_steps": 2}
    data = BurgersDataModule(path=paths, nu=None, **arguments)
    data.setup()
    assert data.training_parameters == [[0.1], [0.2]]
    assert data.dataset["nu"] == [0.1, 0.2]
    with pytest.raises(UpsError, match=r"names 2 files and data\.nu 3"):
        BurgersDataModule(path=paths, nu=[0.1, 0.2, 0.4], **arguments)
    finer = str(pdebench_file(tmp_path / "1D_Burgers_Sols_Nu0.4.hdf5", points=128))
    with pytest.raises(UpsError, match="files of one data set must agree"):
        BurgersDataModule(path=[*paths, finer], nu=None, **arguments).setup()


def test_augmentation_applies_the_symmetries_of_the_equation(tmp_path):
    data = small(tmp_path)
    loader = data.train_dataloader()
    plain = small(tmp_path, augmentation={"translate": False, "reflect": False}).train_dataloader()
    for batch, original, windows in zip(
        loader, plain, data.train_dataloader().sampler, strict=True
    ):
        for u, v, shift, reflect in zip(
            batch.u, original.u, windows.translate, windows.reflect, strict=True
        ):
            own = -v.flip(1) if reflect else v
            assert torch.equal(u, own.roll(-shift.item(), 1))
    assert {0, 1} == {int(m) for w in data.train_dataloader().sampler for m in w.reflect}


def test_window_order_is_a_function_of_the_position(tmp_path):
    data = small(tmp_path)
    sampler = data.train_dataloader().sampler
    n = len(sampler)
    epochs = []
    for epoch in range(2):
        sampler.start_batch = lambda epoch=epoch: epoch * n
        epochs.append(list(sampler))
    sampler.start_batch = lambda: n + 3  # an interrupted run goes on with the very next batch
    rest = list(sampler)
    assert len(rest) == n - 3
    assert np.array_equal(rest[0].translate, epochs[1][3].translate)
    assert not np.array_equal(epochs[0][0].translate, epochs[1][0].translate)


def test_sampler_shares_each_global_batch_between_two_processes(tmp_path):
    whole = small(tmp_path, batch_size=4).train_dataloader().sampler
    halves = [small(tmp_path, batch_size=2).train_dataloader().sampler for _ in range(2)]
    for rank, half in enumerate(halves):
        half.rank, half.world = rank, 2
    for w, a, b in zip(whole, *halves, strict=True):
        assert np.array_equal(w.trajectory, np.concatenate([a.trajectory, b.trajectory]))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"names": ("u", "x-coordinate", "t-coordinate")}, "no dataset 'tensor'"),
        ({"t_extra": 2}, "'t-coordinate' must have 21 or 22 entries"),
        ({"dtype": np.int32}, "non-empty float array"),
        ({"points": 0}, "non-empty float array"),
    ],
)
def test_pdebench_file_of_another_layout_is_refused(tmp_path, damage, words):
    path = pdebench_file(tmp_path / "1D_Burgers_Sols_Nu0.1.hdf5", **damage)
    with pytest.raises(UpsError, match=words) as error:
        BurgersDataModule(
            path=str(path), nu=None, num_train=5, num_validation=1, num_test=2, unroll_steps=2
        ).setup()
    assert str(path) in str(error.value)


def test_pdebench_file_is_refused_when_truncated_not_finite_or_missing(tmp_path):
    path = pdebench_file(tmp_path / "1D_Burgers_Sols_Nu0.1.hdf5")
    arguments = {"nu": None, "num_train": 5, "num_validation": 1, "num_test": 2, "unroll_steps": 2}
    with h5py.File(path, "r+") as file:
        file["tensor"][3, 2, 1] = np.nan
    with pytest.raises(UpsError, match="not finite in trajectory 3"):
        BurgersDataModule(path=str(path), **arguments).setup()
    # another file: HDF5 would share the handle of the first one, if it has not been collected yet
    cut = tmp_path / "cut_Nu0.1.hdf5"
    cut.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UpsError, match="truncated"):
        BurgersDataModule(path=str(cut), **arguments).setup()
    with pytest.raises(UpsError, match="no data file"):
        BurgersDataModule(path=str(tmp_path / "Nu0.1"), **arguments).setup()
    with pytest.raises(UpsError, match="no data file"):
        BurgersDataModule(path=str(tmp_path / "x.hdf5"), **arguments)
    nameless = pdebench_file(tmp_path / "y.hdf5")
    with pytest.raises(UpsError, match=r"neither an attribute nor the name of .* says nu"):
        BurgersDataModule(path=str(nameless), **arguments)


def test_settings_that_the_file_can_not_satisfy_are_refused(tmp_path):
    path = pdebench_file(tmp_path / "1D_Burgers_Sols_Nu0.1.hdf5")
    with pytest.raises(UpsError, match="holds 8 trajectories"):
        BurgersDataModule(
            path=str(path), nu=None, num_train=5, num_validation=1, num_test=3, unroll_steps=2
        ).setup()
    with pytest.raises(UpsError, match="at most 20"):
        BurgersDataModule(
            path=str(path), nu=None, num_train=5, num_validation=1, num_test=2, unroll_steps=21
        ).setup()
    with pytest.raises(UpsError, match="spatial_downsampling=3 must divide its 64 points"):
        BurgersDataModule(
            path=str(path),
            nu=None,
            num_train=5,
            num_validation=1,
            num_test=2,
            unroll_steps=2,
            spatial_downsampling=3,
        ).setup()


def test_generation_is_refused_before_anything_is_written_when_the_disk_is_too_full(tmp_path):
    with pytest.raises(UpsError, match=r"needs .*B at .* but only .*B are free"):
        small(tmp_path, num_train=10**12)
    assert not list(tmp_path.glob("*.hdf5"))


def test_rescaled_windows_stay_within_the_data_and_a_single_nu_has_none(tmp_path):
    sizes = {
        "num_points": 32,
        "reference_num_points": 64,
        "num_frames": 11,
        "num_train": 40,
        "num_validation": 2,
        "num_test": 2,
    }

    def module(nu, max_time_rescale=3):
        augmentation = {"translate": False, "reflect": False}
        data = BurgersDataModule(
            cache_dir=str(tmp_path),
            nu=nu,
            unroll_steps=2,
            samples_per_trajectory=8,
            **sizes,
            augmentation={**augmentation, "max_time_rescale": max_time_rescale},
        )
        data.equation = dataclasses.replace(burgers.EQUATION, boost=None)
        data.prepare_data()
        data.setup()
        return data

    several = module([0.002, 0.01])
    windows = list(several.train_dataloader())
    nu = torch.cat([w.parameters for w in windows])[:, 0]
    u = torch.cat([w.u for w in windows])[..., 0]
    trajectory = torch.cat([w.trajectory for w in windows])
    times = (nu / several.parameters["train"][trajectory, 0]).round().int()
    assert set(times[trajectory < 40].tolist()) == {1, 2, 3}  # 0.002 up to 0.006
    assert (times[trajectory >= 40] == 1).all()  # nothing beyond 0.01
    assert (u[times > 1, 0].abs().amax(-1) <= several.amplitude_cap).all()
    for i in (times == 3).nonzero()[
        :5, 0
    ]:  # three times the field at every third frame of its trajectory
        own = torch.from_numpy(several.train_values[trajectory[i], ..., 0])
        start = (3 * own - u[i, 0]).abs().amax(-1).argmin()
        assert torch.allclose(u[i], 3 * own[start : start + 7 : 3])
    one, other = (list(module(0.002, times).train_dataloader()) for times in (1, 3))
    assert all(
        torch.equal(a.u, b.u) and torch.equal(a.parameters, b.parameters)
        for a, b in zip(one, other, strict=True)
    )


# --- data without an equation ---


def make_data_without_equation(path, **changes):
    sizes = {"num_train": 5, "num_validation": 1, "num_test": 2, "unroll_steps": 2, "batch_size": 4}
    data = TrajectoryDataModule(path=path, equation=None, **{**sizes, **changes})
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(("nu", "names", "row"), [(None, (), []), (0.25, ("nu",), [0.25])])
def test_data_without_equation_take_name_and_spec_from_the_file(
    tmp_path, nu, names, row, in_memory
):
    # a name from which an equation's parameter could be read is only a name
    path = pdebench_file(tmp_path / "2023_CFD_Nu0.1.hdf5", points=32)
    data = make_data_without_equation(
        str(path), nu=nu, in_memory=in_memory, temporal_downsampling=5, spatial_downsampling=2
    )
    with h5py.File(path) as file:
        values = file["tensor"][:, ::5, ::2]
    assert data.equation is None
    assert data.training_parameters == [row]
    assert (data.spec.channels, data.spec.parameters) == (("u",), names)
    assert data.spec.grid.shape == (16,)
    assert data.spec.dt == pytest.approx(0.05)
    assert data.spec.std == pytest.approx((values[:5].std(),), rel=1e-5)
    assert data.spec.largest == pytest.approx((abs(values[:5] - values[:5].mean()).max(),))
    assert (data.dataset["name"], data.dataset["nu"]) == ("2023_CFD_Nu0.1", nu)
    for split, rows in (("validation", values[5:6]), ("test", values[6:])):
        assert np.array_equal(data.values[split].numpy(), rows[..., None])
    assert {split: parameters.tolist() for split, parameters in data.parameters.items()} == {
        "train": [row] * 5,
        "validation": [row],
        "test": [row] * 2,
    }
    (batch,) = data.test_dataloader()
    assert batch.parameters.shape == (2, len(row))
    assert batch.parameters.dtype == torch.float32


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("nus", [None, [0.1, 0.3]])
def test_data_without_equation_are_not_augmented(tmp_path, nus, in_memory):
    paths = [str(pdebench_file(tmp_path / f"{name}.hdf5", points=8)) for name in ("a", "b")]
    # the largest change that the settings allow
    augmentation = {"translate": True, "reflect": True, "max_time_rescale": 3}
    data = make_data_without_equation(
        paths, nu=nus, in_memory=in_memory, augmentation=augmentation, samples_per_trajectory=20
    )
    assert data.dataset["name"] == "a,b"
    assert data.dataset["nu"] == (nus or [None, None])
    with h5py.File(paths[0]) as first, h5py.File(paths[1]) as second:
        values = np.concatenate((first["tensor"][:5], second["tensor"][:5]))
    loader = data.train_dataloader()
    seen = 0
    for batch, windows in zip(loader, loader.sampler, strict=True):
        for u, row, k, start in zip(
            batch.u, batch.parameters, batch.trajectory, windows.start, strict=True
        ):
            assert np.array_equal(u[..., 0].numpy(), values[k, start : start + 3])
            assert row.tolist() == ([] if nus is None else [pytest.approx(nus[k // 5])])
            seen += 1
    assert seen == 2 * 5 * 20


@pytest.mark.parametrize("nu", [None, 0.25])
def test_operator_trains_and_validates_on_data_without_equation(tmp_path, nu):
    path = pdebench_file(tmp_path / "a.hdf5", points=32)
    data = make_data_without_equation(str(path), nu=nu)
    torch.manual_seed(0)
    simulator = Simulator(build(SPEC, data.spec), data.spec, None, SPEC, data.training_parameters)
    before = {name: p.clone() for name, p in simulator.named_parameters()}
    trainer = pl.Trainer(
        max_steps=2, logger=False, accelerator="cpu", num_sanity_val_steps=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = OperatorModule(simulator)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 2
    assert all(torch.isfinite(value) for value in module.terms.values())
    assert any(not torch.equal(p, before[name]) for name, p in simulator.named_parameters())
    (values,) = trainer.validate(module, datamodule=data, verbose=False)
    assert np.isfinite(values["validation/operator/nrmse"])


def test_data_without_equation_need_a_file_and_parameters_for_all_files_or_none(tmp_path):
    with pytest.raises(UpsError, match=r"`data\.path` must be a PDEBench file"):
        TrajectoryDataModule(equation=None, nu=0.1)
    paths = [str(tmp_path / "a.hdf5"), str(tmp_path / "b.hdf5")]
    with pytest.raises(UpsError, match=r"`data\.nu` must be one value for each file, or null"):
        TrajectoryDataModule(equation=None, path=paths, nu=[0.1, None])


def test_files_may_differ_by_the_rounding_of_their_coordinates(tmp_path):
    """float32 in one file, another origin in the next one."""
    paths = [str(pdebench_file(tmp_path / f"1D_Burgers_Sols_Nu{nu}.hdf5")) for nu in (0.1, 0.2)]
    with h5py.File(paths[1], "r+") as file:
        for name, shift in (("t-coordinate", 10.0), ("x-coordinate", -1.0)):
            values = (np.asarray(file[name], np.float64) + shift).astype(np.float32)
            del file[name]
            file[name] = values
    data = BurgersDataModule(
        path=paths, nu=[0.1, 0.2 * (1 + 1e-12)], num_train=5, num_validation=1, num_test=2,
        unroll_steps=2,
    )  # fmt: skip
    data.setup()
    assert data.training_parameters == [[0.1], [0.2 * (1 + 1e-12)]]


@pytest.mark.parametrize("length", [1e-7, 3e-4, 0.1, 1.0, 2.0, 6.283185, 2000.0])
def test_a_files_length_is_without_the_rounding_of_its_coordinates(tmp_path, length):
    path = pdebench_file(tmp_path / "1D_Burgers_Sols_Nu0.1.hdf5")
    with h5py.File(path, "r+") as file:
        points = len(file["x-coordinate"])
        del file["x-coordinate"]
        file["x-coordinate"] = ((np.arange(points) + 0.5) * length / points).astype(np.float32)
    assert TrajectoryFile(path).grid.extent[0] == pytest.approx(length, rel=3e-7)


def test_file_with_both_ends_of_the_line_is_refused(tmp_path):
    path = pdebench_file(tmp_path / "1D_Burgers_Sols_Nu0.1.hdf5", points=65)
    with h5py.File(path, "r+") as file:
        file["x-coordinate"][:] = np.linspace(0, 1, 65)
        file["tensor"][:, :, -1] = file["tensor"][:, :, 0]
    with pytest.raises(UpsError, match="the last point must not repeat the first"):
        TrajectoryFile(path)
    with h5py.File(path, "r+") as file:
        file["tensor"][:] = 1.0  # a constant says nothing
    assert TrajectoryFile(path).grid.shape == (65,)
