"""The datamodule: making, reusing, reading, splitting, refusing."""

import h5py
import numpy as np
import pytest
import torch

from ups.core.errors import UpsError
from ups.datamodules import BurgersDataModule
from ups.physics import burgers

SMALL = {
    "points": 32,
    "solver_points": 64,
    "frames": 6,
    "train": 6,
    "validation": 2,
    "test": 3,
    "window": 2,
    "batch_size": 4,
    "eval_batch_size": 2,
}


def small(tmp_path, **changes):
    data = BurgersDataModule(directory=str(tmp_path), **{**SMALL, **changes})
    data.prepare_data()
    data.setup()
    return data


def pdebench_file(
    path,
    trajectories=8,
    frames=21,
    points=64,
    *,
    names=("tensor", "x-coordinate", "t-coordinate"),
    t_extra=1,
    dtype=np.float32,
):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file[names[0]] = rng.normal(size=(trajectories, frames, points)).astype(dtype)
        file[names[1]] = (np.arange(points, dtype=np.float32) + 0.5) / points
        file[names[2]] = np.arange(frames + t_extra, dtype=np.float32) * np.float32(0.01)
    return path


def test_generated_data_solve_the_equation(tmp_path):
    data = small(tmp_path)
    with h5py.File(data.path) as file:
        assert file["tensor"].shape == (11, 6, 32)
        assert file["t-coordinate"].shape == (7,)
    u = data.values["test"]
    fine = burgers.initial_conditions(3, burgers.cell_centers(64), seed=2)
    assert torch.allclose(u[:, 0], fine[:, ::2])
    assert torch.allclose(
        u, burgers.solve(fine, [0.05 * k for k in range(6)], 0.001)[..., ::2], atol=1e-6
    )


def test_a_file_of_the_same_recipe_is_reused_and_another_recipe_makes_another(tmp_path):
    first = small(tmp_path)
    stamp = first.path.stat().st_mtime_ns
    again = small(tmp_path, batch_size=2)
    assert again.path == first.path
    assert again.path.stat().st_mtime_ns == stamp
    other = small(tmp_path, train=7)
    assert other.path != first.path
    assert other.dataset["hash"] == first.dataset["hash"]  # the test set has a seed of its own


def test_the_default_data_set_keeps_its_name():
    assert (
        BurgersDataModule().path.name == "burgers-nu0.001-e6a9b2e4.hdf5"
    )  # files made by earlier versions are reused


def test_a_failed_generation_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("ups.datamodules.trajectories.digest", lambda values: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        small(tmp_path)
    assert not list(tmp_path.glob("*.hdf5*[!k]"))


def test_pdebench_file(tmp_path):
    path = pdebench_file(tmp_path / "1D_Burgers_Sols_Nu0.002.hdf5")
    for in_memory in (False, True):
        data = BurgersDataModule(
            path=str(path),
            nu=None,
            train=5,
            validation=1,
            test=2,
            time_stride=5,
            space_stride=4,
            window=2,
            in_memory=in_memory,
        )
        data.prepare_data()
        data.setup()
        assert (data.nu, data.frames, data.points) == (0.002, 5, 16)
        assert data.dt == pytest.approx(0.05)
        assert data.length == pytest.approx(1.0)
        with h5py.File(path) as file:
            assert np.array_equal(data.values["test"].numpy(), file["tensor"][6:, ::5, ::4])
            train = file["tensor"][:5, ::5, ::4]
        assert data.scale == pytest.approx(
            train.std(), rel=1e-5
        )  # of the training trajectories alone
        batch = next(iter(data.train_dataloader()))
        assert batch.u.shape == (16, 3, 16)
    assert set(batch.trajectory.tolist()) <= set(range(5))


def test_streamed_and_loaded_batches_are_the_same(tmp_path):
    path = pdebench_file(tmp_path / "1D_Burgers_Sols_Nu0.1.hdf5")
    batches = []
    for in_memory in (False, True):
        data = BurgersDataModule(
            path=str(path), nu=None, train=5, validation=1, test=2, window=2, in_memory=in_memory
        )
        data.setup()
        batches.append(next(iter(data.train_dataloader())))
    assert torch.equal(batches[0].u, batches[1].u)


def test_several_viscosities_are_one_data_set(tmp_path):
    nus = [0.001, 0.01]
    both, one = small(tmp_path, nu=nus, eval_batch_size=3), small(tmp_path, nu=0.001)
    assert both.path == one.path  # the first part is the data set of that viscosity alone
    n, tests = one.hparams["train"], one.hparams["test"]
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
        [torch.stack((batch.trajectory.float(), batch.nu), 1) for batch in both.train_dataloader()]
    )
    times = seen[:, 1] / torch.tensor(nus)[seen[:, 0].int() // n]
    assert set(times.round(decimals=4).tolist()) == {1.0, 2.0}  # some are hastened, see below
    assert all(
        batch.nu.unique().numel() == 1 for batch in both.test_dataloader()
    )  # the solver beside it takes one
    streamed = small(tmp_path, nu=nus, in_memory=False)
    for a, b in zip(both.train_dataloader(), streamed.train_dataloader(), strict=True):
        assert torch.equal(a.u, b.u)
        assert torch.equal(a.nu, b.nu)


def test_files_of_one_data_set_must_agree(tmp_path):
    paths = [str(pdebench_file(tmp_path / f"1D_Burgers_Sols_Nu{nu}.hdf5")) for nu in (0.1, 0.2)]
    arguments = {"train": 5, "validation": 1, "test": 2, "window": 2}
    data = BurgersDataModule(path=paths, nu=None, **arguments)
    data.setup()
    assert data.nu == [0.1, 0.2]
    with pytest.raises(UpsError, match=r"names 2 files and data\.nu 3"):
        BurgersDataModule(path=paths, nu=[0.1, 0.2, 0.4], **arguments)
    finer = str(pdebench_file(tmp_path / "1D_Burgers_Sols_Nu0.4.hdf5", points=128))
    with pytest.raises(UpsError, match="files of one data set must agree"):
        BurgersDataModule(path=[*paths, finer], nu=None, **arguments).setup()


def test_augmentation_uses_the_symmetries_of_the_equation(tmp_path):
    data = small(tmp_path)
    loader = data.train_dataloader()
    plain = small(tmp_path, shift=False, mirror=False).train_dataloader()
    for batch, original, windows in zip(
        loader, plain, data.train_dataloader().sampler, strict=True
    ):
        for u, v, shift, mirror in zip(
            batch.u, original.u, windows.shift, windows.mirror, strict=True
        ):
            expected = -v.flip(-1).roll(-int(shift), -1) if mirror else v.roll(-int(shift), -1)
            assert torch.equal(u, expected)
    assert {0, 1} == {int(m) for w in data.train_dataloader().sampler for m in w.mirror}


def test_the_order_is_a_function_of_the_position(tmp_path):
    data = small(tmp_path)
    sampler = data.train_dataloader().sampler
    n = len(sampler)
    epochs = []
    for epoch in range(2):
        sampler.position = lambda epoch=epoch: epoch * n
        epochs.append(list(sampler))
    sampler.position = lambda: n + 3  # an interrupted run goes on with the very next batch
    rest = list(sampler)
    assert len(rest) == n - 3
    assert np.array_equal(rest[0].shift, epochs[1][3].shift)
    assert not np.array_equal(epochs[0][0].shift, epochs[1][0].shift)


def test_two_processes_share_each_global_batch(tmp_path):
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
        ({"t_extra": 2}, "'t-coordinate' has 23 entries"),
        ({"dtype": np.int32}, "non-empty float array"),
        ({"points": 0}, "non-empty float array"),
    ],
)
def test_damaged_files_are_refused(tmp_path, damage, words):
    path = pdebench_file(tmp_path / "1D_Burgers_Sols_Nu0.1.hdf5", **damage)
    with pytest.raises(UpsError, match=words) as error:
        BurgersDataModule(path=str(path), nu=None, train=5, validation=1, test=2, window=2).setup()
    assert str(path) in str(error.value)


def test_truncated_and_not_finite_and_missing(tmp_path):
    path = pdebench_file(tmp_path / "1D_Burgers_Sols_Nu0.1.hdf5")
    arguments = {"nu": None, "train": 5, "validation": 1, "test": 2, "window": 2}
    with h5py.File(path, "r+") as file:
        file["tensor"][3, 2, 1] = np.nan
    with pytest.raises(UpsError, match="not finite in trajectory 3"):
        BurgersDataModule(path=str(path), **arguments).setup()
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UpsError, match="truncated"):
        BurgersDataModule(path=str(path), **arguments).setup()
    with pytest.raises(UpsError, match="no data file"):
        BurgersDataModule(path=str(tmp_path / "Nu0.1"), **arguments).setup()
    with pytest.raises(UpsError, match="doesn't say nu"):
        BurgersDataModule(path=str(tmp_path / "x.hdf5"), **arguments)


def test_too_few_trajectories_and_too_long_a_window(tmp_path):
    path = pdebench_file(tmp_path / "1D_Burgers_Sols_Nu0.1.hdf5")
    with pytest.raises(UpsError, match="holds 8 trajectories"):
        BurgersDataModule(path=str(path), nu=None, train=5, validation=1, test=3, window=2).setup()
    with pytest.raises(UpsError, match="at most 20"):
        BurgersDataModule(path=str(path), nu=None, train=5, validation=1, test=2, window=21).setup()
    with pytest.raises(UpsError, match=r"says nu 0\.1, data\.nu 0\.001"):
        BurgersDataModule(path=str(path), train=5, validation=1, test=2, window=2)
    with pytest.raises(UpsError, match="space_stride=3 must divide its 64 points"):
        BurgersDataModule(
            path=str(path), nu=None, train=5, validation=1, test=2, window=2, space_stride=3
        ).setup()


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UpsError, match=r"needs .*B at .* but only .*B are free"):
        small(tmp_path, train=10**12)
    assert not list(tmp_path.glob("*.hdf5"))


def test_hastened_windows_stay_within_the_data_and_a_single_nu_has_none(tmp_path):
    sizes = {
        "points": 32,
        "solver_points": 64,
        "frames": 11,
        "train": 40,
        "validation": 2,
        "test": 2,
        "shift": False,
        "mirror": False,
    }

    def module(nu, **settings):
        data = BurgersDataModule(
            directory=str(tmp_path), nu=nu, window=2, windows_per_trajectory=8, **sizes, **settings
        )
        data.prepare_data()
        data.setup()
        return data

    several = module([0.002, 0.01])
    windows = list(several.train_dataloader())
    nu, u = torch.cat([w.nu for w in windows]), torch.cat([w.u for w in windows])
    trajectory = torch.cat([w.trajectory for w in windows])
    times = (nu / several.nus["train"][trajectory]).round().int()
    assert set(times[trajectory < 40].tolist()) == {1, 2, 3}  # 0.002 up to 0.006
    assert (times[trajectory >= 40] == 1).all()  # nothing beyond 0.01
    assert (u[times > 1, 0].abs().amax(-1) <= several.usual_size).all()
    for i in (times == 3).nonzero()[
        :5, 0
    ]:  # three times the field at every third frame of its trajectory
        own = torch.from_numpy(several.train_values[trajectory[i]])
        start = (3 * own - u[i, 0]).abs().amax(-1).argmin()
        assert torch.allclose(u[i], 3 * own[start : start + 7 : 3])
    one, other = (list(module(0.002, stretch=stretch).train_dataloader()) for stretch in (1, 3))
    assert all(
        torch.equal(a.u, b.u) and torch.equal(a.nu, b.nu) for a, b in zip(one, other, strict=True)
    )
