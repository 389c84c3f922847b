"""Refused commands say it in one sentence and leave nothing; hints can be pasted."""

import logging
import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import TINY
from helpers.commands import run_python
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from test_session import configured

from ups import pipeline, report
from ups.run import CONF, cli, unknown_key_or_choice
from ups.runs.config import UNSUPPORTED
from ups.runs.reports import log_next_steps


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["data.equation=burgers"],
            "`data.equation` is not a key of this configuration. Other choices of `data` have it: "
            "advection, ",
        ),
        (
            ["data=obstacles", "model.place_depth=1"],
            "`model.place_depth` is not a key of this configuration. Other choices of `model` have "
            "it: point_memory_upt.",
        ),
        *(
            (["data=obstacles", words], f"`data` must be fields on a grid: {name} does not take")
            for words, name in {
                "loss=crps": "EnsembleOperatorModule",
                "stage=diffusion": "DiffusionModule",
                "stage=all": "DiffusionModule",
                "stage=consistency": "ConsistencyModule",
            }.items()
        ),
        (
            ["data.batchsize=3"],
            "`data.batchsize` is not a key of this configuration. Close to it: data.batch_size, ",
        ),
        (["logger=null"], "`logger` must be one of csv, mlflow, tensorboard, wandb, got null."),
        (["data=null"], "`data` must be one of advection, burgers, kuramoto_sivashinsky, "),
        (["lambda_inv=0,", "0.5"], "`lambda_inv=0,` must be KEY=VALUE, with quotes around"),
        (["lambda_inv", "0.5"], "`lambda_inv` must be KEY=VALUE, with quotes around"),
        (["seed=5000000000"], "`seed` must be an integer >= 0 and <= 4294967295, got 5000000000."),
        *(([f"+trainer.{name}=1"], f"`trainer.{name}` is not supported") for name in UNSUPPORTED),
    ],
)
def test_refused_command_is_one_sentence_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, caplog, words, sentence
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ups.run", *words])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.delenv("HYDRA_FULL_ERROR")
    with pytest.raises(SystemExit) as stopped:
        cli()
    assert stopped.value.code == 2
    printed = [*capsys.readouterr().err.splitlines(), *caplog.messages]
    assert len(printed) == 1, printed
    assert printed[0].startswith(sentence)
    assert list(tmp_path.iterdir()) == []


def test_key_that_was_just_typed_is_not_suggested():
    for key in ("data.equation", "data.batch_size"):
        assert key not in unknown_key_or_choice(f"Could not override '{key}'.").partition(".")[2]


@pytest.mark.integration
def test_refused_job_of_a_sweep_leaves_no_folder(ups_run, tmp_path):
    done = ups_run("-m", "data.batch_size=0,-1", check=False)
    assert done.returncode == 2
    assert [path.name for path in (tmp_path / "outputs").iterdir() if path.is_dir()] == []


NAMES = ["plain", "a b", "a[1]", "a$b", "it's", "ä", "a,b", "a=b", r"a\b"]


@pytest.mark.parametrize("name", NAMES)
def test_hints_at_the_end_are_quoted_for_the_shell_and_for_python(tmp_path, caplog, name):
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", TINY)
    OmegaConf.update(cfg, "name", name)
    folder = Path("outputs") / name
    with caplog.at_level(logging.INFO):
        log_next_steps(cfg, folder)
    (hint,) = [line for line in caplog.messages if line.startswith("next: ")]
    found = re.fullmatch(
        r"next: ups\.load\((.+)\) in Python; python -m ups\.report (.+) RUN compares; "
        r"python -m ups\.run stage=all (.+) \.\.\. trains the later stages",
        hint,
    )
    assert eval(found[1]) == str(folder)
    assert shlex.split(found[2]) == [str(folder)]
    (override,) = OverridesParser.create().parse_overrides(shlex.split(found[3]))
    assert (override.key_or_group, override.value()) == ("name", name)


@pytest.mark.parametrize("data", ["burgers", "obstacles"])
def test_later_stages_are_only_advised_for_data_that_have_them(caplog, data):
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", [f"data={data}"])
    with caplog.at_level(logging.INFO):
        log_next_steps(cfg, Path("outputs/mine"))
    assert ("stage=all" in caplog.text) == (data == "burgers")


def test_report_takes_the_runs_among_all_that_a_pattern_matches(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pipeline.run(configured("name=one"))
    (tmp_path / "outputs/notes.txt").touch()
    matched = sorted(map(str, Path("outputs").iterdir()))
    assert len(matched) > 3
    monkeypatch.setattr(sys, "argv", ["ups.report", *matched])
    report.main()
    printed = capsys.readouterr()
    assert "written: comparison.html" in printed.out
    assert "outputs/data" in printed.err
    assert "outputs/notes.txt" in printed.err
    assert "outputs/one" not in printed.err
    monkeypatch.setattr(sys, "argv", ["ups.report", "outputs/data", "outputs/notes.txt"])
    with pytest.raises(SystemExit) as stopped:
        report.main()
    assert stopped.value.code == 2
    assert "RUN must be a run's folder" in capsys.readouterr().err


@pytest.mark.integration
@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_run_with_a_worker_under_each_start_method(tmp_path, method):
    """`spawn` is the default on macOS and Windows, `forkserver` that of Python 3.14."""
    code = (
        "import multiprocessing as mp, sys\n"
        "from ups.run import cli\n"
        "if __name__ == '__main__':\n"
        "    mp.set_start_method(sys.argv.pop(1))\n"
        "    cli()\n"
    )
    (tmp_path / "start.py").write_text(code)
    words = [method, *TINY, "trainer.max_epochs=1", "data.num_workers=1", "name=one"]
    done = run_python("start.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "outputs/one/reports/eval_operator.json").exists()
