"""Row 5: a later stage that fails is found before the first one trains.

And what the preflight promises.
"""

import json
import re
import signal
import subprocess
import sys

import pytest
from conftest import TINY
from helpers.commands import call

pytestmark = pytest.mark.integration  # starts processes, or whole runs

ALL = [
    *(argument for argument in TINY if argument != "preflight=false"),
    "stage=all",
    "ttc.num_candidates=2",
]
SMALL_CORRECTOR = [
    f"stage.diffusion.module.corrector.{part}={{hidden_dim:16,depth:2,mlp_ratio:1.0,dilations:[1]}}"
    for part in ("mean_network", "denoiser")
]
MINE = """
from ups.modules import DiffusionModule

class Diffusion(DiffusionModule):
    def compute_losses(self, batch, *drawn):
        raise RuntimeError("stack expects each tensor to be equal size")

class Deaf(DiffusionModule):
    def compute_losses(self, batch, *drawn):
        terms = super().compute_losses(batch, *drawn)
        return terms | {"loss": terms["L_tokens"]}
"""


def run(folder, *args):
    (folder / "mine.py").write_text(MINE)
    return call("ups.run", *ALL, *SMALL_CORRECTOR, *args, cwd=folder)


def test_preflight_finds_a_later_stage_that_fails(tmp_path):
    done = run(tmp_path, "stage.diffusion.module._target_=mine.Diffusion")
    assert done.returncode == 2
    assert "preflight: stage diffusion fails" in done.stdout
    assert "stack expects each tensor to be equal size" in done.stdout
    assert "Epoch" not in done.stdout


@pytest.mark.slow
def test_preflight_finds_a_part_without_gradient(tmp_path):
    done = run(tmp_path, "stage.diffusion.module._target_=mine.Deaf")
    assert done.returncode == 2
    assert "preflight: stage diffusion: its part 'denoiser' gets no gradient" in done.stdout


@pytest.mark.slow
def test_preflight_alone_trains_nothing_and_prints_the_needs_of_all_stages(tmp_path):
    done = run(tmp_path, "stage=preflight", "name=p")
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in ("operator", "diffusion", "consistency", "test", "all"):
        assert re.search(rf"^│ {stage} +│.*(s|min) │$", done.stdout, re.MULTILINE), done.stdout
    folder = tmp_path / "outputs/p"
    assert {path.name for path in folder.iterdir()} == {
        *(".lock", "config.yaml", "overrides.yaml", "preflight.json", "provenance.json", "run.log")
    }
    found = json.loads((folder / "preflight.json").read_text())
    for stage in ("operator", "diffusion", "consistency"):
        assert found[stage]["memory"] > 1e8
        assert found[stage]["checkpoints"] > 1e4
        assert found[stage]["seconds"] > 0
    # 24 trajectories x 10 windows, 3 parts x 4 steps x 8 tokens x 16 channels in float16
    assert found["diffusion"]["cache"] == pytest.approx(240 * 3 * 4 * 8 * 16 * 2)
    again = run(tmp_path, "stage=preflight", "name=p")
    assert again.returncode == 0
    assert "│ all" in again.stdout


@pytest.mark.slow
def test_preflight_estimates_are_close_to_the_needs_of_the_run(tmp_path):
    """Within a factor of eight: the machine may do other things in one of the two, and not in
    the other.
    """
    done = run(tmp_path, "stage=operator", "name=o", "data.samples_per_trajectory=60")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "outputs/o/preflight.json").read_text())["operator"]
    log = (tmp_path / "outputs/o/run.log").read_text()
    took = sum(3 * 180 / 3 / float(rate) for rate in re.findall(r"([\d.]+) steps/s", log))
    assert took / 8 < found["seconds"] < took * 8
    assert re.search(r"(s|min) left, [\d.]+ (s|min) in all", log)  # the test comes after the stage


def stopped_while_training(folder, *args):
    """All that a call prints which is stopped after its first epoch line."""
    command = [sys.executable, "-m", "ups.run", *ALL, *SMALL_CORRECTOR, *args]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    printed = ""
    for line in process.stdout:
        printed += line
        if "Epoch" in line:
            break
    process.send_signal(signal.SIGTERM)
    printed += process.communicate(timeout=600)[0]
    assert process.returncode == 3, printed
    return printed


@pytest.mark.slow
def test_preflight_is_skipped_when_a_run_resumes(tmp_path):
    assert "preflight: every stage" in stopped_while_training(
        tmp_path, "name=r", "trainer.max_epochs=5000"
    )
    assert "preflight: every stage" not in stopped_while_training(
        tmp_path, "name=r", "trainer.max_epochs=5000"
    )
