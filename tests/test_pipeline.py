"""stage=all as a user calls it: files, skipping, what is trained again when what it was made from
has changed, resume in a later stage.
"""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from conftest import NUM_BASELINES
from helpers import commands
from helpers.killing import WITH_KILLER, call_killed

import ups
import ups.datamodules.readers.pdebench
import ups.simulation.guidance

pytestmark = pytest.mark.integration  # starts processes, or whole runs

SMALL = [
    "experiment=smoke", "data.num_points=32", "data.reference_num_points=64", "data.num_train=24",
    "data.num_validation=4", "data.num_test=4", "data.num_frames=11", "data.batch_size=8",
    "model.num_tokens=8", "trainer.max_epochs=2", "stage.diffusion.trainer.max_epochs=2",
    "ttc.num_candidates=3", "stage.diffusion.module.corrector.num_steps=2",
]  # fmt: skip


def call(folder, *args, code=0):
    done = commands.call("ups.run", *SMALL, *args, cwd=folder)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, call(folder, "name=one")


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole[0] / "outputs", tmp_path / "outputs")
    return tmp_path


def rows(folder, report, name="one"):
    return json.loads((folder / f"outputs/{name}/reports/{report}.json").read_text())["rows"]


def content(folder, name="one"):
    return {
        path.name: path.read_bytes()
        for path in (folder / f"outputs/{name}/checkpoints").glob("*.ckpt")
    }


def test_run_of_all_stages_writes_weights_rows_and_leaderboard(whole):
    folder, printed = whole
    names = {
        f"{stem}{suffix}.ckpt"
        for stem in ("operator", "diffusion_residual", "consistency")
        for suffix in ("", "_ema")
    }
    assert content(folder).keys() == names
    assert not list((folder / "outputs/one").rglob("*.latents"))
    own = [
        (row["mode"], row["correct"], row["ttc"])
        for row in rows(folder, "eval_baseline")
        if row["model"] == "mixer-tiny"
    ]
    assert own == [
        ("latent", "none", False),
        ("physical", "none", False),
        ("latent", "diffusion", False),
        ("latent", "consistency", False),
    ]
    own = [
        (row["mode"], row["correct"], row["ttc"])
        for row in rows(folder, "eval_ttc")
        if row["model"] == "mixer-tiny"
    ]
    assert own == [("latent", name, True) for name in ("none", "diffusion", "consistency")]
    for row in rows(folder, "eval_baseline") + rows(folder, "eval_ttc"):
        assert {
            *ups.metrics.NAMES,
            "mass_drift",
            "tv_growth",
            "energy_growth",
            "maximum_principle_violation",
            "boundary_jump_error",
            "correlation_time",
            "correlation_time_90",
            "correlation_time_95",
            "one_step_nrmse",
            "seconds_per_trajectory",
        } <= row.keys()
        assert row["mass_drift"] < 1e-2
    drawn = [row for row in rows(folder, "eval_baseline") if row["correct"] != "none"]
    names = [f"{when}spread_skill_ratio{how}" for when in ("", "one_step_") for how in ("", "_rms")]
    assert all({*names, "ensemble_nrmse"} <= row.keys() for row in drawn)
    assert "mixer-tiny + diffusion + ttc" in printed
    page = (folder / "outputs/leaderboard.html").read_text()
    assert page.count('"name": "one"') == 7
    assert "persistence" in page


def test_reported_errors_are_those_of_the_loaded_run(whole):
    folder, _ = whole
    sim = ups.load(folder / "outputs/one")
    sim.ttc = ups.simulation.guidance.TTC(num_candidates=3)
    (path,) = (folder / "outputs/data").glob("*.hdf5")
    file = ups.datamodules.readers.pdebench.TrajectoryFile(path)
    u = torch.from_numpy(file.read(range(28, 32)))[..., 0]
    own = [
        row
        for report in ("eval_baseline", "eval_ttc")
        for row in rows(folder, report)
        if row["model"] == "mixer-tiny"
    ]
    assert len(own) == 7
    for row in own:
        torch.manual_seed(0)
        how = {key: row[key] for key in ("mode", "correct", "ttc")}
        found = ups.metrics.pdebench_metrics(sim.rollout(u[:, 0], 10, nu=0.001, **how), u[:, 1:])
        assert {key: row[key] for key in found} == pytest.approx(found, rel=1e-4, abs=1e-7)


def test_loaded_run_has_all_trained_correctors(whole):
    folder, _ = whole
    sim = ups.load(folder / "outputs/one")
    assert set(sim.correctors) == {"diffusion", "consistency"}
    assert set(ups.load(folder / "outputs/one/checkpoints/diffusion_residual.ckpt").correctors) == {
        "diffusion"
    }
    u0 = ups.physics.burgers.initial_conditions(3, sim.x, 0)
    for correct in ("none", "diffusion", "consistency"):
        for ttc in (False, True):
            assert sim.rollout(u0, 3, nu=0.001, correct=correct, ttc=ttc).shape == (3, 3, 32)


def test_second_call_trains_and_tests_nothing(copied):
    before = content(copied)
    printed = call(copied, "name=one")
    assert "finished already" in printed
    assert "mixer-tiny + consistency + ttc" in printed
    assert content(copied) == before


def test_overwrite_tests_a_finished_model_again_without_training(copied):
    printed = call(copied, "name=one", "stage=evaluate", "overwrite=true")
    assert "testing outputs/one" in printed
    assert "Epoch" not in printed


def test_lost_report_is_written_again_without_training(copied):
    before = content(copied)
    (copied / "outputs/one/reports/eval_ttc.json").unlink()
    assert "Epoch" not in call(copied, "name=one")
    assert content(copied) == before
    assert len(rows(copied, "eval_ttc")) == 3 + NUM_BASELINES


@pytest.mark.slow
def test_later_stages_are_trained_anew_when_earlier_weights_have_changed(copied):
    before = content(copied)
    call(copied, "name=one", "stage=operator", "seed=1", "overwrite=true")
    changed = content(copied)
    assert {name for name in before if before[name] != changed[name]} == {
        "operator.ckpt",
        "operator_ema.ckpt",
    }
    assert (
        set(ups.load(copied / "outputs/one").correctors) == set()
    )  # they belong to another operator
    printed = call(copied, "name=one", "seed=1")
    assert (
        "diffusion: the weights that it was made from have changed; it is trained again" in printed
    )
    assert "operator  Epoch" not in printed
    after = content(copied)
    assert {name for name in after if after[name] != changed[name]} == {
        name for name in after if not name.startswith("operator")
    }
    assert set(ups.load(copied / "outputs/one").correctors) == {"diffusion", "consistency"}


@pytest.mark.slow
def test_other_settings_are_refused_and_train_their_stage_alone_with_overwrite(copied):
    before = content(copied)
    other = "stage.diffusion.module.lr=0.001"
    assert (
        "holds stage diffusion with other settings (stage.diffusion.module.lr: 0.003 -> 0.001)"
        in call(copied, "name=one", other, code=2)
    )
    assert content(copied) == before
    call(copied, "name=one", "stage=diffusion", other, "overwrite=true")
    assert all(
        content(copied)[name] == before[name] for name in ("operator.ckpt", "operator_ema.ckpt")
    )
    assert content(copied)["diffusion_residual.ckpt"] != before["diffusion_residual.ckpt"]


def test_stage_is_refused_when_the_one_before_has_not_finished(tmp_path):
    printed = call(tmp_path, "name=alone", "stage=consistency", code=2)
    assert "stage consistency continues from stage diffusion, which has not finished" in printed
    assert "Traceback" not in printed
    printed = call(tmp_path, "name=alone", "stage=evaluate", code=2)
    assert "its operator stage has not finished" in printed


def test_evaluation_is_refused_when_the_data_are_not_those_of_the_training(copied):
    printed = call(copied, "name=one", "stage=evaluate", "data.num_points=16", code=2)
    assert "`points` must be 32, got 16." in printed


@pytest.mark.slow
def test_killed_later_stage_resumes_to_the_same_weights(whole, tmp_path):
    longer = [
        "stage.diffusion.trainer.max_epochs=4",
        "callbacks.last.every_n_train_steps=5",
        "callbacks.ema.decay=0.9",
        "stage=diffusion",
    ]
    ends = []
    for name in ("calm", "killed"):
        shutil.copytree(whole[0] / "outputs/one", tmp_path / f"outputs/{name}")
        for path in (tmp_path / f"outputs/{name}/checkpoints").glob("[dc]*"):
            path.unlink()
        words = [*longer, f"name={name}"]
        if name == "killed":
            done = call_killed(tmp_path, "step 18", "ups.run", *SMALL, *words)
            assert done.returncode == -9, done.stdout + done.stderr
            words.append(WITH_KILLER)
        printed = call(tmp_path, *words)
        assert ("resuming from" in printed) == (name == "killed")
        ends.append(ups.load(tmp_path / f"outputs/{name}").state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


@pytest.mark.slow
def test_all_stages_train_and_are_tested_on_data_without_an_equation(tmp_path):
    rng = np.random.default_rng(0)
    x, t = (np.arange(64) + 0.5) / 64, 0.01 * np.arange(22)
    wave, phase = rng.integers(1, 4, size=(40, 1, 1)), rng.uniform(0, 2 * np.pi, (40, 1, 1))
    with h5py.File(tmp_path / "waves.hdf5", "w") as file:
        file["tensor"] = np.sin(2 * np.pi * wave * (x - t[:21, None]) + phase).astype(np.float32)
        file["x-coordinate"] = x.astype(np.float32)
        file["t-coordinate"] = t.astype(np.float32)
    arguments = [
        "data=pdebench", f"data.path={tmp_path}/waves.hdf5", "data.equation=null",
        "data.temporal_downsampling=2", "data.spatial_downsampling=2", "name=waves",
    ]  # fmt: skip
    refused = call(tmp_path, *arguments, code=2)
    assert "`ttc.enabled` must be false, got true" in refused
    call(tmp_path, *arguments, "ttc.enabled=false")
    found = {
        (row["model"], row["mode"], row["correct"]): row
        for row in rows(tmp_path, "eval_baseline", "waves")
    }
    assert list(found) == [
        ("mixer-tiny", "latent", "none"),
        ("mixer-tiny", "physical", "none"),
        ("mixer-tiny", "latent", "diffusion"),
        ("mixer-tiny", "latent", "consistency"),
        ("persistence", "physical", "none"),
    ]
    for row in found.values():
        assert np.isfinite(row["nrmse"])
        assert "correlation_time" in row
        assert "mass_drift" not in row
    report = json.loads((tmp_path / "outputs/waves/reports/eval_baseline.json").read_text())
    assert (report["dataset"]["name"], report["dataset"]["nu"]) == ("waves", None)
    sim = ups.load(tmp_path / "outputs/waves")
    assert (sim.equation, sim.spec.parameters) == (None, ())
    u0 = torch.randn(2, 32)
    assert sim.rollout(u0, 3, correct="consistency").shape == (2, 3, 32)
