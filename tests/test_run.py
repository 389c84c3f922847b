"""`python -m ups.run` as a user calls it: files, log, resume, refusals, sweeps."""

import csv
import json
import re
import subprocess
import sys

import pytest
import torch
from conftest import NUM_BASELINES, TINY
from helpers import pictures
from helpers.commands import call, run_python
from helpers.published import pdebench_file

import ups
from ups.datamodules.readers.pdebench import TrajectoryFile

pytestmark = pytest.mark.integration  # starts processes, or whole runs

ONE = [
    "ups.run", "stage=operator", "name=one", *TINY,
    "callbacks.ema.decay=0.8", "trainer.log_every_n_steps=5",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished tiny run, shared by the tests that only look at it."""
    folder = tmp_path_factory.mktemp("finished")
    with pictures.drawn():
        done = call(*ONE, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_files(finished):
    folder, _ = finished
    run = folder / "outputs" / "one"
    for name in ("checkpoints/operator.ckpt", "checkpoints/operator_ema.ckpt",
                 "reports/eval_operator.json", "reports/eval_operator.png",
                 "config.yaml", "provenance.json", "run.log"):  # fmt: skip
        assert (run / name).stat().st_size > 100, name
    assert not list(run.rglob("*.part"))
    origin = json.loads((run / "provenance.json").read_text())
    assert {
        "commit",
        "dirty",
        "config_hash",
        "data_hash",
        "versions",
        "hardware",
        "seed",
    } <= origin.keys()


def test_evaluation_json_and_leaderboard(finished):
    folder, _ = finished
    report = json.loads((folder / "outputs/one/reports/eval_operator.json").read_text())
    assert report["dataset"].keys() == {
        "name",
        "hash",
        "split",
        "trajectories",
        "points",
        "frames",
        "nu",
    }
    assert [(row["model"], row["mode"]) for row in report["rows"]] == [
        ("mixer-tiny", "latent"),
        ("mixer-tiny", "physical"),
        *((name, "physical") for name in ("persistence", "solver-16", "solver-32")),
    ]
    for row in report["rows"]:
        assert len(row["nrmse_over_time"]) == 10
        assert {
            *ups.metrics.NAMES,
            "correct",
            "ttc",
            "one_step_nrmse",
            "seconds_per_trajectory",
        } <= row.keys()
    with (folder / "outputs/leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["one", "one", *["baseline"] * NUM_BASELINES]
    assert float(rows[0]["nrmse"]) == report["rows"][0]["nrmse"]
    assert rows[0]["dataset.hash"] == report["dataset"]["hash"]


def test_the_reported_error_is_that_of_the_loaded_weights_in_physical_space(finished, tmp_path):
    folder, _ = finished
    report = json.loads((folder / "outputs/one/reports/eval_operator.json").read_text())
    (path,) = (folder / "outputs/data").glob("*.hdf5")
    u = torch.from_numpy(TrajectoryFile(path).read(range(28, 34)))
    sim = ups.load(folder / "outputs/one")
    for row in report["rows"][:2]:
        pred = sim.rollout(u[:, 0], 10, nu=0.001, mode=row["mode"])
        assert row["nrmse"] == pytest.approx(
            ups.metrics.pdebench_metrics(pred, u[:, 1:])["nrmse"], rel=1e-4
        )


def test_raw_and_averaged_weights_differ(finished):
    folder, _ = finished
    raw, ema = (
        ups.load(folder / f"outputs/one/checkpoints/operator{suffix}.ckpt").state_dict()
        for suffix in ("", "_ema")
    )
    assert any(not torch.equal(raw[key], ema[key]) for key in raw)


def test_log_lines_and_series(finished):
    folder, printed = finished
    log = (folder / "outputs/one/run.log").read_text()
    lines = [line for line in log.splitlines() if re.search(r"Epoch|L_inv|loss:", line)]
    assert len(lines) == 3
    assert re.search(
        r"operator  Epoch 1/3  loss: \d+\.\d+  L_forward \d+\.\d+  L_inv_enc \d+\.\d+"
        r"  L_inv_dec \d+\.\d+",
        lines[0],
    )
    assert "nRMSE" in printed
    (metrics,) = (folder / "outputs/one/logs").rglob("metrics.csv")
    header = metrics.read_text().splitlines()[0].split(",")
    assert {"training/operator/loss", "training/operator/L_forward",
            "training/operator/L_inv_enc", "training/operator/L_inv_dec",
            "validation/operator/nrmse", "test/latent/nrmse"} <= set(header)  # fmt: skip


def test_the_same_command_again_trains_nothing(finished):
    folder, _first = finished
    before = (folder / "outputs/one/checkpoints/operator.ckpt").read_bytes()
    done = call(*ONE, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "finished already" in done.stdout
    assert (folder / "outputs/one/checkpoints/operator.ckpt").read_bytes() == before
    assert len((folder / "outputs/leaderboard.csv").read_text().splitlines()) == 3 + NUM_BASELINES
    done = call(*ONE, "lambda_inv=0.3", cwd=folder)
    assert done.returncode == 2
    assert "lambda_inv: 1.0 -> 0.3" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.batch_size=0", "`data.batch_size` must be an integer >= 1, got 0."),
        ("data.batch_size=many", "`data.batch_size` must be an integer >= 1, got 'many'."),
        ("lambda_inv=-1", "`lambda_inv` must be a number >= 0, got -1."),
        ("name=a/b", "folder's name"),
        ("trainer.max_time=soon", "DD:HH:MM:SS"),
        ("model.num_tokens=7", "`model.num_tokens` must divide the 32 points"),
        ("data=pdebench", "`data.path` must be a PDEBench file"),
        ("lambda_invv=1", "`lambda_invv` is not a key of this configuration"),
        ("lamda_inv=1", "Close to it: lambda_inv"),
        ("stage=operetta", "`stage` must be one of all, consistency, diffusion, evaluate"),
    ],
)
def test_wrong_values_are_refused_with_a_sentence(ups_run, override, words):
    done = ups_run(*TINY, override, check=False)
    text = done.stdout + done.stderr
    assert done.returncode != 0
    assert words in text
    assert "Traceback" not in text


def test_sweep(ups_run, tmp_path):
    ups_run(
        "-m",
        "stage=operator",
        "name=sweep",
        "lambda_inv=0,0.5",
        *TINY,
        "trainer.max_epochs=1",
        timeout=600,
    )
    with (tmp_path / "outputs/leaderboard.csv").open() as file:
        names = {row["name"] for row in csv.DictReader(file)}
    runs = [p for p in (tmp_path / "outputs").glob("sweep*") if p.is_dir()]
    assert len(runs) == 2
    assert names == {"baseline", *(run.name for run in runs)}


def test_a_sweep_goes_on_where_a_job_fails_and_redoes_only_what_is_left(ups_run, tmp_path):
    sweep = ["-m", "name=sweep", "lambda_inv=0.5,-1,0", *TINY, "trainer.max_epochs=1"]
    done = ups_run(*sweep, check=False, timeout=600)
    text = done.stdout + done.stderr
    assert done.returncode == 2
    assert "Traceback" not in text
    assert "`lambda_inv` must be a number >= 0, got -1." in text
    assert "1 of 3 jobs have not finished, the same command resumes them: sweep-" in text
    assert "sweep: rollout nRMSE on the test set" in done.stdout
    before = {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*.ckpt")}
    assert len(before) == 4
    again = ups_run(*sweep, check=False, timeout=600)
    assert again.stdout.count("finished already") == 2
    assert "Epoch" not in again.stdout
    assert {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*.ckpt")} == before


def test_a_run_returns_its_validation_error_for_sweepers(tmp_path, monkeypatch):
    """Never the test error: a search that is driven by it would be tuned on the test set."""
    import hydra
    from hydra import compose, initialize_config_dir

    from ups.pipeline import run
    from ups.run import CONF

    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", [*TINY, "trainer.max_epochs=2", "name=one"])
    value = run(cfg)
    hydra.core.global_hydra.GlobalHydra.instance().clear()
    log = (tmp_path / "outputs/one/run.log").read_text()
    assert min(
        float(found) for found in re.findall(r"validation nRMSE (\S+)", log)
    ) == pytest.approx(value, abs=6e-5)
    assert value != pytest.approx(
        json.loads((tmp_path / "outputs/one/reports/eval_operator.json").read_text())["rows"][0][
            "nrmse"
        ],
        rel=1e-3,
    )


@pytest.mark.slow
def test_optuna_drives_a_search(ups_run, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    ups_run(
        "-m",
        "hparams_search=optuna",
        "hydra.sweeper.n_trials=2",
        "name=search",
        *TINY,
        "trainer.max_epochs=1",
        timeout=600,
    )
    assert len([path for path in (tmp_path / "outputs").glob("search-*") if path.is_dir()]) == 2
    assert "best_value" in (tmp_path / "outputs/optimization_results.yaml").read_text()


def test_help_reads_like_a_manual_page(ups_run):
    text = ups_run("--help").stdout
    for words in (
        "usage: python -m ups.run",
        "Groups",
        "lambda_inv",
        "Examples",
        "Exit codes",
        "stage: all, ",
    ):
        assert words in text, words


def test_early_stopping_ends_the_stage(ups_run, tmp_path):
    args = [
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=10",
    ]
    done = ups_run(*TINY, *args, "name=early", "trainer.max_epochs=50")
    assert "Epoch 2/50" in done.stdout
    assert "Epoch 5/50" not in done.stdout
    assert (tmp_path / "outputs/early/checkpoints/operator.ckpt").exists()


def test_a_command_that_evaluates_nothing_trains_alone(ups_run, tmp_path):
    command = [*TINY, "name=only", "trainer.max_epochs=1", "stage.evaluate=[]"]
    ups_run(*command)
    again = ups_run(*command)
    assert "Epoch" not in again.stdout
    assert (tmp_path / "outputs/only/checkpoints/operator.ckpt").exists()
    assert not (tmp_path / "outputs/only/reports").exists()


@pytest.mark.slow
def test_a_pdebench_file_trains_from_the_command_line(ups_run, tmp_path):
    path = pdebench_file(
        tmp_path / "1D_Burgers_Sols_Nu0.01.hdf5", trajectories=16, frames=31, points=128
    )
    sizes = [
        "data.num_train=8",
        "data.num_validation=2",
        "data.num_test=4",
        "data.samples_per_trajectory=4",
        "data.batch_size=8",
    ]
    ups_run(
        "data=pdebench",
        f"data.path={path}",
        "model=mixer_tiny",
        "trainer.max_epochs=1",
        *sizes,
        "name=real",
    )
    report = json.loads((tmp_path / "outputs/real/reports/eval_operator.json").read_text())
    assert report["dataset"]["nu"] == 0.01
    assert (report["dataset"]["frames"], report["dataset"]["points"]) == (7, 32)


@pytest.mark.slow
def test_one_model_over_several_viscosities_is_tested_on_another(ups_run, tmp_path):
    ups_run(*TINY, "name=many", "data.nu=[0.001,0.01]")
    ups_run("stage=evaluate", *TINY, "name=many", "data.nu=0.004", "ttc.enabled=false")
    reports = tmp_path / "outputs/many/reports"
    trained, other = (
        json.loads((reports / f"{name}.json").read_text())
        for name in ("eval_operator", "eval_baseline")
    )
    assert (trained["dataset"]["nu"], other["dataset"]["nu"]) == ([0.001, 0.01], 0.004)
    assert trained["dataset"]["hash"] != other["dataset"]["hash"]


@pytest.mark.slow
def test_the_wheel_holds_the_configurations_and_the_shipped_model(tmp_path):
    from pathlib import Path
    from zipfile import ZipFile

    root = Path(__file__).parents[1]
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-q",
        "-w",
        str(tmp_path),
        str(root),
    ]
    subprocess.run(build, check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    installed = {
        str(p.relative_to(tmp_path / "site/ups/conf"))
        for p in (tmp_path / "site/ups/conf").rglob("*.yaml")
    }
    assert installed == {str(p.relative_to(root / "conf")) for p in (root / "conf").rglob("*.yaml")}
    done = subprocess.run(
        [sys.executable, "-c", "import ups.run; print(ups.run.CONF); ups.run.main()", "--help"],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert str(tmp_path / "site/ups/conf") in done.stdout, done.stderr
    assert "usage: python -m ups.run" in done.stdout
    done = subprocess.run(
        [sys.executable, "-c",
         "import ups; print(ups.__file__, ups.load('burgers-small').equation_name)"],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.stdout == f"{tmp_path / 'site/ups/__init__.py'} burgers\n", done.stderr


def test_run_says_that_it_has_started_before_it_imports_torch(ups_run, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
    done = run_python("-m", "ups.run", cwd=tmp_path)
    assert done.stdout == "loading torch and lightning\n"
    assert "torch is imported" in done.stderr
    for options in (["--help"], ["--cfg", "job"], ["--cfg=job"]):
        assert "loading" not in ups_run(*options).stdout.splitlines()[0]
