"""What decides nothing does not block a resume, and what decides a result does.

Files count by their content, words by their meaning on this machine.
"""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from helpers.published import pdebench_file
from hydra import compose, initialize_config_dir

from ups.core.errors import UpsError
from ups.core.renamed_keys import ADDED
from ups.run import CONF
from ups.runs import provenance, stages
from ups.runs.launchers import auto_precision
from ups.runs.meaning import by_meaning

SIZES = ["data.num_train=4", "data.num_validation=2", "data.num_test=2"]


def configured(*overrides):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", ["model=mixer_tiny", *overrides])


def decided(cfg, folder):
    return (
        stages.stage_fingerprint(stages.stage_config(cfg, "operator"), "operator"),
        provenance.config_hash(cfg),
        provenance.evaluation_fingerprint(cfg, folder),
    )


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The same file by several paths, and another one."""
    monkeypatch.chdir(tmp_path)
    path = pdebench_file(tmp_path / "a_nu0.1.hdf5")
    shutil.copy(path, tmp_path / "moved_nu0.1.hdf5")
    (tmp_path / "link_nu0.1.hdf5").symlink_to(path)
    shutil.copy(path, tmp_path / "other_nu0.1.hdf5")
    with h5py.File(tmp_path / "other_nu0.1.hdf5", "r+") as file:
        file["tensor"][0, 0, 0] += 1e-3
    return tmp_path


def of_file(path, *overrides):
    return configured("data=pdebench", *SIZES, f"data.path={path}", *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ("data.path=./a_nu0.1.hdf5",),
        ("data.path=moved_nu0.1.hdf5",),
        ("data.path=link_nu0.1.hdf5",),
        ("data.path=[a_nu0.1.hdf5]",),
        ("data.nu=0.1",),
        ("data.nu=[0.1]",),
    ],
)
def test_same_data_by_another_path_or_words_are_the_same(files, overrides):
    expected = decided(of_file("a_nu0.1.hdf5"), files)
    assert decided(of_file(files / "a_nu0.1.hdf5", *overrides), files) == expected


def test_data_count_by_their_content(files):
    expected = decided(of_file("a_nu0.1.hdf5"), files)
    for other in (
        of_file("other_nu0.1.hdf5"),
        of_file("a_nu0.1.hdf5", "data.nu=0.2"),
        of_file("a_nu0.1.hdf5", "data.temporal_downsampling=4"),
        of_file("[a_nu0.1.hdf5,moved_nu0.1.hdf5]"),
    ):
        found = decided(other, files)
        assert all(a != b for a, b in zip(found, expected, strict=True))
    with h5py.File(files / "a_nu0.1.hdf5", "r+") as file:  # in its place
        file["tensor"][0, 0, 0] += 1e-3
    assert decided(of_file("a_nu0.1.hdf5"), files)[0] != expected[0]


def test_folder_counts_by_the_content_of_its_files(tmp_path):
    for name, value in (("a.zarr", 1), ("b.zarr", 1), ("c.zarr", 2)):
        (tmp_path / name / "u").mkdir(parents=True)
        (tmp_path / name / "u/0").write_bytes(bytes([value]))
    found = [by_meaning({"data.path": str(tmp_path / f"{name}.zarr")}) for name in "abc"]
    assert found[0] == found[1] != found[2]


def started(cfg, folder):
    """A run's folder in which the operator stage has started with ``cfg``."""
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/operator-last.ckpt").touch()
    stages.record_stage_start(stages.stage_config(cfg, "operator"), folder, "operator")
    return folder / "checkpoints/operator.json"


def test_run_resumes_with_its_data_elsewhere_and_not_with_other_data(files):
    run = files / "run"
    run.mkdir()
    started(of_file("a_nu0.1.hdf5"), run)
    stages.check_settings_unchanged(of_file(files / "moved_nu0.1.hdf5"), run)
    with pytest.raises(UpsError, match=r"data\.path: content \w{12} -> content \w{12}"):
        stages.check_settings_unchanged(of_file("other_nu0.1.hdf5"), run)
    with pytest.raises(UpsError, match=r"data\.nu: 0\.1 -> 0\.2"):
        stages.check_settings_unchanged(of_file("a_nu0.1.hdf5", "data.nu=0.2"), run)


def test_run_of_the_previous_release_resumes_from_its_recorded_path(files):
    run = files / "run"
    run.mkdir()
    path = started(of_file("a_nu0.1.hdf5"), run)
    record = json.loads(path.read_text())
    older = {
        "data.path": "a_nu0.1.hdf5", "data.nu": None, "callbacks.last.every_n_train_steps": 500,
        "callbacks.learning_rate._target_": "x", "trainer.gradient_clip_val": 1.0,
    }  # fmt: skip
    record["settings"] |= older
    path.write_text(json.dumps(record))
    stages.check_settings_unchanged(of_file(files / "moved_nu0.1.hdf5"), run)
    with pytest.raises(UpsError, match=r"data\.path: content"):
        stages.check_settings_unchanged(of_file("other_nu0.1.hdf5"), run)


def test_run_from_before_a_setting_was_added_resumes_unless_it_changes_the_run(tmp_path):
    path = started(configured(), tmp_path)
    record = json.loads(path.read_text())
    for key in ADDED:
        assert record["settings"].pop(key) == ADDED[key]
    path.write_text(json.dumps(record))
    stages.check_settings_unchanged(configured(), tmp_path)
    with pytest.raises(UpsError, match=r"adaptive_inv_dec: False -> True"):
        stages.check_settings_unchanged(configured("loss.adaptive_inv_dec=true"), tmp_path)


def device(monkeypatch, *, cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def trainer(**changes):
    settings = {"accelerator": "auto", "devices": 1, "precision": "auto", **changes}
    return by_meaning({f"trainer.{key}": value for key, value in settings.items()})


def test_words_of_the_trainer_count_by_their_meaning_on_a_cpu(monkeypatch):
    device(monkeypatch, cuda=False)
    for same in (
        {"accelerator": "cpu"},
        {"devices": "auto"},
        {"devices": "1"},
        {"devices": [0]},
        {"precision": "32-true"},
        {"accelerator": "cpu", "devices": "auto", "precision": "32-true"},
    ):
        assert trainer(**same) == trainer(), same
    for other in (
        {"accelerator": "gpu"},
        {"devices": 2},
        {"precision": "bf16-mixed"},
        {"precision": "16-mixed"},
    ):
        assert trainer(**other) != trainer(), other
    assert trainer(devices=2) == trainer(devices="2")
    assert trainer(gradient_clip_val=0.0) == trainer(gradient_clip_val=None)
    assert trainer(gradient_clip_val=0.5) != trainer(gradient_clip_val=None)


def test_words_of_the_trainer_count_by_their_meaning_on_gpus(monkeypatch):
    device(monkeypatch, cuda=True)
    for same in ({"accelerator": "gpu"}, {"accelerator": "cuda"}, {"precision": "bf16-mixed"}):
        assert trainer(**same) == trainer(), same
    for other in ({"accelerator": "cpu"}, {"devices": "auto"}, {"precision": "32-true"}):
        assert trainer(**other) != trainer(), other
    assert trainer(devices=-1) == trainer(devices=2) == trainer(devices="0,1")
    assert trainer(accelerator="cpu", devices="auto") == trainer(accelerator="cpu")


def test_automatic_precision_is_that_of_the_accelerator(monkeypatch):
    device(monkeypatch, cuda=True)
    found = {name: auto_precision(name) for name in ("auto", "gpu", "cuda", "cpu")}
    mixed = dict.fromkeys(("auto", "gpu", "cuda"), "bf16-mixed")
    assert found == {**mixed, "cpu": "32-true"}


def test_meaning_of_a_meaning_is_itself(files):
    settings = {"data.path": "a_nu0.1.hdf5", "data.nu": [0.1], "trainer.accelerator": "cpu"}
    once = by_meaning(settings)
    assert by_meaning(once) == once
    assert once["data.nu"] == 0.1


def test_absent_file_counts_by_its_path():
    assert by_meaning({"data.path": "no/such.hdf5"}) == {"data.path": "no/such.hdf5"}
    assert by_meaning({"data.path": None, "data.nu": 0.1}) == {"data.path": None, "data.nu": 0.1}
    assert np.isclose(by_meaning({"data.nu": [0.1]})["data.nu"], 0.1)


def test_large_files_count_by_blocks_from_their_beginning_to_their_end(tmp_path, monkeypatch):
    monkeypatch.setattr("ups.runs.meaning.WHOLE", 1000)
    monkeypatch.setattr("ups.runs.meaning.BLOCK", 4)

    def meaning(name, content):
        (tmp_path / name).write_bytes(content)
        return by_meaning({"data.path": str(tmp_path / name)})["data.path"]

    content = bytes(range(250)) * 40
    assert meaning("a", content) == meaning("b", content)
    first = meaning("a", content)
    changed = [b"x" + content[1:], content[:-1] + b"x", content + b"x", content[:5000]]
    assert len({first, *(meaning(f"c{i}", each) for i, each in enumerate(changed))}) == 5
    # and in the middle: the second of 64 blocks
    place = (len(content) - 4) // 63
    assert meaning("d", content[:place] + b"wxyz" + content[place + 4 :]) != first
