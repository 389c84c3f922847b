"""What a run remembers: hashes, settings, stages, needs, the leaderboard and the sweep's table."""

import copy
import hashlib
import json
import logging
import math
import os
import pickle
import re
import shutil
import signal
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import h5py
import hydra
import pytest
import torch
import yaml
from conftest import TINY
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from rich.console import Console

import ups
from ups import pipeline
from ups.callbacks import AtomicCheckpointIO, resource_probe
from ups.core.errors import UpsError
from ups.core.io import format_bytes
from ups.core.resolvers import folder_name
from ups.core.settings import diff_configs, flatten_config
from ups.evaluation import leaderboard
from ups.evaluation.results import Evaluation, Row
from ups.pipeline import run
from ups.run import CONF
from ups.runs import hydra_callbacks, preflight, provenance, run_dir, stages
from ups.runs.config import UNSUPPORTED, validate_config
from ups.runs.settings import BOOKKEEPING_KEYS, is_bookkeeping_key
from ups.simulation.residual_targets import LatentCache

STAGES = ("operator", "diffusion", "consistency")
NAMES = {"operator": "operator", "diffusion": "diffusion_residual", "consistency": "consistency"}


@pytest.fixture(scope="module")
def composed():
    """Composed configurations by stage=; not to be changed."""
    with initialize_config_dir(CONF, version_base="1.3"):
        found = {
            name: compose("config", ["model=mixer_tiny", f"stage={name}", "name=one"])
            for name in (*STAGES, "all", "evaluate", "preflight")
        }
    hydra.core.global_hydra.GlobalHydra.instance().clear()
    return found


def changed(cfg, key=None, value=None, **more):
    """A copy of ``cfg`` with one key changed."""
    cfg = copy.deepcopy(cfg)
    for name, new in {**({key: value} if key else {}), **more}.items():
        OmegaConf.update(cfg, name, new, force_add=True)
    return cfg


def sha(content):
    return hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------- what decides a result

# a key, another value, the stages that it belongs to, and whether it decides an evaluation
TABLE = [
    ("seed", 1, STAGES, None),  # and data.sampler_seed with it
    ("lambda_inv", 0.5, ("operator",), False),
    ("loss.lambda_inv_enc", 0.5, ("operator",), False),
    ("loss.lambda_inv_dec", 0.5, ("operator",), False),
    ("loss.squared", True, ("operator",), False),
    ("compile", True, STAGES, False),
    ("model.hidden_dim", 32, ("operator",), False),
    ("model.latent_rms_limit", 2.0, ("operator",), False),
    ("model.name", "other", ("operator",), True),
    ("data.nu", 0.002, STAGES, True),
    ("data.nu", [0.001, 0.01], STAGES, True),
    ("data.path", "a_nu0.1.hdf5", STAGES, True),
    ("data.num_points", 128, STAGES, True),
    ("data.reference_num_points", 512, STAGES, True),
    ("data.dt", 0.1, STAGES, True),
    ("data.num_frames", 21, STAGES, True),
    ("data.num_train", 500, STAGES, True),
    ("data.num_test", 64, STAGES, True),
    ("data.seed", 1, STAGES, True),
    ("data.sampler_seed", 1, STAGES, True),
    ("data.temporal_downsampling", 2, STAGES, True),
    ("data.spatial_downsampling", 2, STAGES, True),
    ("data.start_time_bias", 1.0, STAGES, True),
    ("data.augmentation.max_time_rescale", 1, STAGES, True),
    ("data.augmentation.translate", False, STAGES, True),
    ("data.augmentation.reflect", False, STAGES, True),
    # later stages have their own of these
    ("data.unroll_steps", 2, ("operator",), True),
    ("data.batch_size", 32, ("operator",), True),
    ("data.samples_per_trajectory", 5, ("operator",), True),
    ("data.fixed_windows", True, ("operator", "consistency"), True),
    ("trainer.max_epochs", 3, ("operator",), False),
    ("trainer.accumulate_grad_batches", 2, STAGES, False),
    ("trainer.gradient_clip_val", 0.5, STAGES, False),
    ("trainer.precision", "bf16-mixed", STAGES, False),
    ("trainer.devices", 2, STAGES, False),
    ("trainer.check_val_every_n_epoch", 2, STAGES, False),
    ("callbacks.ema.decay", 0.9, STAGES, False),
    ("callbacks.best.monitor", "other", STAGES, False),
    ("callbacks.early_stopping", {"patience": 1}, STAGES, False),
    ("stage.operator.module.lr", 0.1, ("operator",), False),
    ("stage.operator.module.weight_decay", 0.1, ("operator",), False),
    ("stage.operator.trainer.max_epochs", 2, ("operator",), False),
    ("stage.operator.data.batch_size", 2, ("operator",), False),
    ("stage.diffusion.module.lr", 0.1, ("diffusion",), False),
    ("stage.diffusion.module.corrector.num_steps", 4, ("diffusion",), False),
    ("stage.diffusion.trainer.max_epochs", 2, ("diffusion",), False),
    ("stage.diffusion.data.unroll_steps", 2, ("diffusion",), False),
    ("stage.consistency.module.projection_steps", 4, ("consistency",), False),
    ("stage.consistency.data.batch_size", 4, ("consistency",), False),
    ("ttc.enabled", False, (), True),
    ("ttc.num_candidates", 7, (), True),
    ("ttc.shock_threshold", 0.1, (), True),
    ("stage.evaluate", ["none"], (), True),
]
FREE = [
    ("name", "two"),
    ("output_dir", "elsewhere"),
    ("overwrite", True),
    ("preflight", False),
    ("expect.commit", "0123456"),
    ("expect.data_hash", "0123456"),
    ("compile_cache_max_bytes", 1.0),
    ("logger.name", "other"),
    ("logger", None),
    ("callbacks.on_finish", "true"),
    ("callbacks.epoch_log", None),
    ("callbacks.best.dirpath", "elsewhere"),
    ("callbacks.last.every_n_train_steps", 7),
    ("callbacks.learning_rate", None),
    ("callbacks.finite_loss", None),
    ("trainer.profiler", "simple"),
    ("trainer.detect_anomaly", True),
    ("trainer.max_time", "00:00:30:00"),
    ("trainer.log_every_n_steps", 5),
    ("data.cache_dir", "elsewhere"),
    ("data.num_workers", 2),
    ("data.in_memory", False),
    ("data.eval_batch_size", 8),
    ("stage.operator.module.num_cpu_shards", 1),
    ("stage.diffusion.module.num_cpu_shards", 1),
]


def decided(cfg, folder):
    """The configuration's hash, that of an evaluation's settings, and the settings by stage."""
    settings = {
        stage: stages.stage_fingerprint(stages.stage_config(cfg, stage), stage) for stage in STAGES
    }
    return provenance.config_hash(cfg), provenance.evaluation_fingerprint(cfg, folder), settings


@pytest.fixture(scope="module")
def original(composed, tmp_path_factory):
    return decided(composed["all"], tmp_path_factory.mktemp("empty"))


@pytest.mark.parametrize(("key", "value", "of", "evaluation"), TABLE)
def test_key_decides_the_configurations_hash_and_the_stages_that_it_belongs_to(
    composed, original, tmp_path, key, value, of, evaluation
):
    after = decided(changed(composed["all"], key, value), tmp_path)
    assert after[0] != original[0]
    if evaluation is not None:
        assert (after[1] != original[1]) == evaluation
    assert tuple(stage for stage in STAGES if after[2][stage] != original[2][stage]) == of


@pytest.mark.parametrize(("key", "value"), FREE)
def test_key_decides_nothing_when_it_may_differ_between_calls(
    composed, original, tmp_path, key, value
):
    cfg = changed(composed["all"], key, value)
    assert OmegaConf.select(cfg, key) != OmegaConf.select(composed["all"], key)
    assert decided(cfg, tmp_path) == original


def test_free_keys_free_only_themselves_and_what_stands_below_them():
    for key in (
        "name",
        "expect",
        "expect.commit",
        "logger.a.b",
        "a.save_dir",
        "a.b.num_cpu_shards",
    ):
        assert is_bookkeeping_key(key), key
    for key in ("names", "model.name", "stage.name", "expectation", "a.name", "threads", "data"):
        assert not is_bookkeeping_key(key), key


# key prefixes and ends
PREFIXES = {
    *("name", "output_dir", "overwrite", "preflight", "expect", "compile_cache_max_bytes"),
    *("logger", "callbacks.on_finish", "callbacks.epoch_log", "callbacks.leaderboard"),
    *("trainer.max_time", "trainer.log_every_n_steps", "data.cache_dir", "data.num_workers"),
    *("data.in_memory", "data.eval_batch_size"),
    *("callbacks.finite_loss", "callbacks.learning_rate", "callbacks.last"),
    *("trainer.profiler", "trainer.detect_anomaly"),
}
ENDS = (".dirpath", ".save_dir", ".num_cpu_shards")


def test_bookkeeping_keys_follow_from_the_annotations(composed):
    assert BOOKKEEPING_KEYS == PREFIXES
    for key in flatten_config(composed["all"]):
        is_below = any(key == prefix or key.startswith(f"{prefix}.") for prefix in PREFIXES)
        assert is_bookkeeping_key(key) == (is_below or key.endswith(ENDS)), key


def written_out(cfg):
    """A configuration on one level, with plain loops."""
    found, left = {}, [("", OmegaConf.to_container(cfg, resolve=True))]
    while left:
        prefix, node = left.pop()
        for key, value in node.items():
            if isinstance(value, dict):
                left.append((f"{prefix}{key}.", value))
            else:
                found[prefix + key] = value
    return found


def short_hash(values):
    return sha(json.dumps(values, sort_keys=True).encode())[:12]


def test_flat_configuration_is_resolved_and_keeps_lists(composed):
    found = flatten_config(composed["all"])
    assert found == written_out(composed["all"])
    assert found["data.sampler_seed"] == 0
    assert found["model.dilations"] == [1, 2, 1]
    assert found["callbacks.best.filename"] == "all-best"


def test_config_hash_equals_that_of_all_other_keys(composed):
    free = {key for key, _ in FREE} | {"stage.consistency.module.num_cpu_shards"}
    callbacks = ("epoch_log", "leaderboard", "last", "learning_rate", "finite_loss")
    below = ("expect.", "logger.", *(f"callbacks.{name}." for name in callbacks))
    deciding = {
        key: value
        for key, value in written_out(composed["all"]).items()
        if key not in free and not key.startswith(below)
    }
    assert provenance.config_hash(composed["all"]) == short_hash(deciding)


def test_differences_name_every_key_once_shallow_ones_first():
    old = {"b.a": 1, "a.b.c": 1, "z": 1, "same": 5, "gone.x": None, "lost.x": 2}
    new = {"b.a": 2, "a.b.c": 2, "z": 2, "same": 5, "lost.x": None, "new": [1]}
    assert diff_configs(old, new) == [
        "new: None -> [1]",
        "z: 1 -> 2",
        "b.a: 1 -> 2",
        "lost.x: 2 -> None",
        "a.b.c: 1 -> 2",
    ]
    assert diff_configs(None, new) == []
    assert diff_configs(new, new) == []


# ---------------------------------------------------------------- a stage's own configuration


def test_stage_config_lays_the_stages_own_trainer_and_data_over_the_general_ones(composed):
    cfg = composed["all"]
    expected = {
        "operator": (22, 3, 16, 10, False),
        "diffusion": (5, 4, 8, 10, True),
        "consistency": (1, 4, 8, 10, False),
    }
    for stage, values in expected.items():
        own = stages.stage_config(cfg, stage)
        data = own.data
        assert own.stage.name == stage
        assert own.callbacks.best.filename == f"{stage}-best"
        assert own.callbacks.best.monitor == f"validation/{stage}/nrmse"
        found = (
            own.trainer.max_epochs,
            data.unroll_steps,
            data.batch_size,
            data.samples_per_trajectory,
            data.fixed_windows,
        )
        assert found == values
        assert own.data.num_train == 1000
        assert own.trainer.gradient_clip_val == 1.0
    assert (cfg.stage.name, cfg.trainer.max_epochs, cfg.data.unroll_steps) == ("all", 22, 3)


@pytest.mark.parametrize("stage", STAGES)
def test_stage_settings_are_the_same_by_every_command_that_trains_it(composed, stage):
    known = [
        stages.stage_fingerprint(stages.stage_config(composed[name], stage), stage)
        for name in (stage, "all", "preflight")
    ]
    assert known[0] == known[1] == known[2]
    assert known[0][f"stage.{stage}.module.lr"] == composed["all"].stage[stage].module.lr
    assert (
        known[0]["trainer.max_epochs"] == {"operator": 22, "diffusion": 5, "consistency": 1}[stage]
    )
    others = set(STAGES) - {stage}
    assert not [key for key in known[0] if key.startswith(tuple(f"stage.{s}." for s in others))]


def test_batches_in_parts_keep_the_effective_batch(composed):
    cfg = changed(composed["operator"], **{"trainer.accumulate_grad_batches": 3})
    before = copy.deepcopy(cfg)
    for parts, batch in {1: 16, 2: 8, 4: 4}.items():
        own = stages.with_gradient_accumulation(cfg, parts)
        assert own.data.batch_size == batch
        assert own.trainer.accumulate_grad_batches == 3 * parts
        assert own.callbacks.inverse_loss_frequency.parts == parts
        assert own.callbacks.inverse_loss_frequency.every == 1
    assert cfg == before
    without = changed(cfg, "callbacks.inverse_loss_frequency", None)
    assert stages.with_gradient_accumulation(without, 2).callbacks.inverse_loss_frequency is None


# ---------------------------------------------------------------- finished, stale, pending


def save(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"w": torch.tensor(content)}}, path)
    return path


def make_folder(folder, cfg, last="consistency", content=1.0):
    """A run's folder as if every stage up to ``last`` had been trained, each on the one before."""
    before = None
    for stage in STAGES[: STAGES.index(last) + 1]:
        stem = folder / "checkpoints" / NAMES[stage]
        save(stem.with_name(f"{stem.name}_ema.ckpt"), content + STAGES.index(stage))
        save(stem.with_suffix(".ckpt"), -content - STAGES.index(stage))
        settings = stages.stage_fingerprint(stages.stage_config(cfg, stage), stage)
        stem.with_suffix(".json").write_text(
            json.dumps({"settings": settings, "made_from": before}, default=str)
        )
        before = sha(stem.with_name(f"{stem.name}_ema.ckpt").read_bytes())
    return folder


def change(folder, name):
    """Other weights in the folder's file ``name``."""
    save(folder / "checkpoints" / f"{name}.ckpt", 99.0)


def test_stages_go_on_from_each_other_in_order():
    assert {stage: stages.previous_stage(stage) for stage in STAGES} == {
        "operator": None,
        "diffusion": "operator",
        "consistency": "diffusion",
    }


def test_weights_are_the_averaged_file_unless_the_raw_one_is_asked_for(tmp_path):
    for stage, name in NAMES.items():
        assert stages.weights_path(tmp_path, stage) == tmp_path / "checkpoints" / f"{name}_ema.ckpt"
        raw = stages.weights_path(tmp_path, stage, raw=True)
        assert raw == tmp_path / "checkpoints" / f"{name}.ckpt"


def test_stage_is_finished_by_its_raw_file_and_begun_by_its_last_checkpoint(tmp_path):
    for stage, name in NAMES.items():
        assert not stages.is_finished(tmp_path, stage)
        assert not stages.has_resume_checkpoint(tmp_path, stage)
        save(tmp_path / "checkpoints" / f"{name}_ema.ckpt", 1.0)
        save(tmp_path / "checkpoints" / f"{stage}-best.ckpt", 1.0)
        assert not stages.is_finished(tmp_path, stage)
        assert not stages.has_resume_checkpoint(tmp_path, stage)
        save(tmp_path / "checkpoints" / f"{stage}-last.ckpt", 1.0)
        assert stages.has_resume_checkpoint(tmp_path, stage)
        assert not stages.is_finished(tmp_path, stage)
        save(tmp_path / "checkpoints" / f"{name}.ckpt", 1.0)
        assert stages.is_finished(tmp_path, stage)


def test_parent_hash_is_that_of_the_averaged_weights_before(composed, tmp_path):
    make_folder(tmp_path, composed["all"], "diffusion")
    assert stages.parent_hash(tmp_path, "operator") is None
    for stage, before in (("diffusion", "operator"), ("consistency", "diffusion_residual")):
        content = (tmp_path / "checkpoints" / f"{before}_ema.ckpt").read_bytes()
        assert stages.parent_hash(tmp_path, stage) == sha(content)
    with pytest.raises(UpsError, match="consistency continues from stage diffusion, which has not"):
        stages.parent_hash(tmp_path / "empty", "consistency")
    # averaged weights alone don't say that a stage has finished
    (tmp_path / "checkpoints/operator.ckpt").unlink()
    with pytest.raises(UpsError, match="diffusion continues from stage operator, which has not"):
        stages.parent_hash(tmp_path, "diffusion")


@pytest.mark.parametrize(
    ("last", "other", "gone", "expected"),
    [
        (None, (), (), ["operator", "diffusion", "consistency"]),
        ("operator", (), (), ["diffusion", "consistency"]),
        ("diffusion", (), (), ["consistency"]),
        ("consistency", (), (), []),
        ("consistency", ("operator_ema",), (), ["diffusion", "consistency"]),
        ("consistency", ("diffusion_residual_ema",), (), ["consistency"]),
        ("consistency", ("consistency_ema",), (), []),
        ("consistency", ("operator", "diffusion_residual"), (), []),  # raw weights are no parents
        ("consistency", (), ("diffusion_residual.ckpt",), ["diffusion", "consistency"]),
        ("consistency", (), ("operator.ckpt",), ["operator", "diffusion", "consistency"]),
        ("consistency", (), ("consistency.ckpt",), ["consistency"]),
        # a stage without a record is taken as it is
        ("consistency", ("operator_ema",), ("diffusion_residual.json",), []),
    ],
)
def test_pending_stages_are_the_unfinished_the_stale_and_what_follows(
    composed, tmp_path, last, other, gone, expected
):
    if last is not None:
        make_folder(tmp_path, composed["all"], last)
    for name in other:
        change(tmp_path, name)
    for name in gone:
        (tmp_path / "checkpoints" / name).unlink()
    assert stages.pending_stages(composed["all"], tmp_path) == expected
    assert stages.pending_stages(composed["preflight"], tmp_path) == expected
    assert stages.pending_stages(composed["evaluate"], tmp_path) == []
    # a command for one stage looks at that one alone
    alone = {stage: stages.pending_stages(composed[stage], tmp_path) for stage in STAGES}
    own = [stage for stage in STAGES if alone[stage] == [stage]]
    assert all(alone[stage] in ([], [stage]) for stage in STAGES)
    assert own == [
        stage
        for stage in expected
        if not stages.is_finished(tmp_path, stage)
        or (
            f"{NAMES[stages.previous_stage(stage)]}_ema" in other
            if stages.previous_stage(stage)
            else False
        )
    ]


def test_other_settings_of_a_finished_or_begun_stage_are_refused_by_name(composed, tmp_path):
    cfg = composed["all"]
    make_folder(tmp_path, cfg)
    stages.check_settings_unchanged(cfg, tmp_path)
    other = changed(cfg, "stage.diffusion.module.lr", 0.1)
    words = re.escape(
        "holds stage diffusion with other settings (stage.diffusion.module.lr: 0.003 -> 0.1);"
    )
    with pytest.raises(UpsError, match=words):
        stages.check_settings_unchanged(other, tmp_path)
    stages.check_settings_unchanged(
        changed(composed["operator"], "stage.diffusion.module.lr", 0.1), tmp_path
    )
    many = changed(cfg, seed=1, lambda_inv=0.5, **{"model.hidden_dim": 32, "data.dt": 0.1})
    # lambda_inv, seed, data.dt, data.sampler_seed, loss.lambda_inv_enc and _dec, model.hidden_dim,
    # and the two of the module that follow from the losses
    words = re.escape("(lambda_inv: 1.0 -> 0.5; seed: 0 -> 1; data.dt: 0.05 -> 0.1 and 6 more)")
    with pytest.raises(UpsError, match=words):
        stages.check_settings_unchanged(many, tmp_path)


def test_other_settings_count_while_a_stage_is_under_way_and_not_without_a_checkpoint(
    composed, tmp_path
):
    cfg = composed["operator"]
    make_folder(tmp_path, cfg, "operator")
    other = changed(cfg, seed=1)
    (tmp_path / "checkpoints/operator.ckpt").unlink()
    stages.check_settings_unchanged(other, tmp_path)  # it never came to a checkpoint
    save(tmp_path / "checkpoints/operator-last.ckpt", 1.0)
    with pytest.raises(UpsError, match="holds stage operator with other settings"):
        stages.check_settings_unchanged(other, tmp_path)


def test_other_settings_of_stages_that_are_trained_anew_anyway_are_no_matter(composed, tmp_path):
    cfg = composed["all"]
    make_folder(tmp_path, cfg)
    change(tmp_path, "operator_ema")
    for stage in ("diffusion", "consistency"):
        key = f"stage.{stage}.module.lr"
        stages.check_settings_unchanged(changed(cfg, key, 0.1), tmp_path)
    with pytest.raises(UpsError, match="holds stage operator"):
        stages.check_settings_unchanged(changed(cfg, "stage.operator.module.lr", 0.1), tmp_path)


def test_begin_notes_settings_and_parent_and_removes_what_is_stale(composed, tmp_path):
    cfg = stages.stage_config(composed["all"], "diffusion")
    make_folder(tmp_path, composed["all"])
    folder = tmp_path / "checkpoints"
    save(folder / "diffusion-last.ckpt", 1.0)
    before = {path.name for path in folder.iterdir()}
    stages.record_stage_start(cfg, tmp_path, "diffusion")
    assert {path.name for path in folder.iterdir()} == before  # nothing is stale
    change(tmp_path, "operator_ema")
    stages.record_stage_start(cfg, tmp_path, "diffusion")
    left = {path.name for path in folder.iterdir()}
    assert before - left == {
        "diffusion-last.ckpt",
        "diffusion_residual.ckpt",
        "diffusion_residual_ema.ckpt",
    }
    record = json.loads((folder / "diffusion_residual.json").read_text())
    assert record["made_from"] == sha((folder / "operator_ema.ckpt").read_bytes())
    assert record["settings"] == stages.stage_fingerprint(cfg, "diffusion")
    stages.record_stage_start(
        stages.stage_config(composed["all"], "operator"), tmp_path, "operator"
    )
    record = json.loads((folder / "operator.json").read_text())
    assert record["made_from"] is None
    assert record["settings"]["model.hidden_dim"] == 16


def test_remove_takes_a_stages_own_files_and_no_others(composed, tmp_path):
    make_folder(tmp_path, composed["all"])
    folder = tmp_path / "checkpoints"
    for stage in STAGES:
        for name in ("last", "best"):
            save(folder / f"{stage}-{name}.ckpt", 1.0)
    before = {path.name for path in folder.iterdir()}
    stages.remove_stage(tmp_path, "diffusion")
    assert before - {path.name for path in folder.iterdir()} == {
        "diffusion-best.ckpt",
        "diffusion-last.ckpt",
        "diffusion_residual.ckpt",
        "diffusion_residual.json",
        "diffusion_residual_ema.ckpt",
    }
    stages.remove_stage(tmp_path, "diffusion")  # there is nothing left


def test_validation_score_is_that_of_the_last_stage_made_from_the_weights_that_stand_there(
    tmp_path,
):
    folder, before = tmp_path / "checkpoints", None
    for stage, score in zip(STAGES, (0.5, 0.25, 0.125), strict=True):
        for suffix, value in (("_ema", score), ("", 9.0)):
            path = folder / f"{NAMES[stage]}{suffix}.ckpt"
            content = {"state_dict": {}, "simulator": {}, "made_from": before}
            AtomicCheckpointIO().save_checkpoint({**content, "validation_nrmse": value}, path)
        assert stages.validation_score(tmp_path) == score
        before = sha((folder / f"{NAMES[stage]}_ema.ckpt").read_bytes())
    change(tmp_path, "consistency_ema")
    content = {"state_dict": {}, "simulator": {}, "made_from": "another", "validation_nrmse": 7.0}
    AtomicCheckpointIO().save_checkpoint(content, folder / "consistency_ema.ckpt")
    assert stages.validation_score(tmp_path) == 0.25


# ---------------------------------------------------------------- provenance


def test_evaluated_holds_the_hash_of_each_averaged_file_and_of_the_settings(composed, tmp_path):
    cfg = composed["all"]
    make_folder(tmp_path, cfg, "diffusion")
    found = provenance.evaluation_fingerprint(cfg, tmp_path)
    hashes = {
        name: sha((tmp_path / "checkpoints" / name).read_bytes())[:12]
        for name in ("operator_ema.ckpt", "diffusion_residual_ema.ckpt")
    }
    free = {"data.cache_dir", "data.num_workers", "data.in_memory", "data.eval_batch_size"}
    deciding = {
        key: value
        for key, value in written_out(cfg).items()
        if key.startswith(("data.", "ttc.")) and key not in free
    }
    deciding |= {"stage.evaluate": ["none", "diffusion", "consistency"], "model.name": "mixer-tiny"}
    assert found == {**hashes, "settings": short_hash(deciding)}
    change(tmp_path, "operator")  # raw weights are not what is tested
    assert provenance.evaluation_fingerprint(cfg, tmp_path) == found
    change(tmp_path, "operator_ema")
    after = provenance.evaluation_fingerprint(cfg, tmp_path)
    assert {key for key in found if found[key] != after[key]} == {"operator_ema.ckpt"}


def fake_git(monkeypatch, *, top, tracked=(), untracked=(), commit="a" * 40):
    """Answers git's questions as a repository at ``top`` with these changed files would."""

    def ask(command, *, cwd, **options):
        asked = list(command[1:])
        assert Path(cwd) == Path(ups.__file__).resolve().parent
        if asked[:2] == ["rev-parse", "--show-toplevel"]:
            answer = str(top)
        elif asked == ["rev-parse", "HEAD"]:
            answer = commit
        else:
            assert asked[:2] == ["status", "--porcelain"]
            seen = [*tracked, *(() if "--untracked-files=no" in asked else untracked)]
            within = [part.removeprefix(":/") for part in asked[3:]] if "--" in asked else [""]
            answer = "\n".join(f"?? {name}" for name in seen if name.startswith(tuple(within)))
        return SimpleNamespace(stdout=answer + "\n")

    fake = SimpleNamespace(run=ask, SubprocessError=provenance.subprocess.SubprocessError)
    monkeypatch.setattr(provenance, "subprocess", fake)


@pytest.mark.parametrize(
    ("tracked", "untracked", "dirty"),
    [
        ((), (), False),
        (("README.md",), (), True),
        (("ups/run.py",), (), True),
        ((), ("notes.txt",), False),  # what lies beside the code is no change of it
        ((), ("ups/mine.py",), True),
        ((), ("conf/mine.yaml",), True),
    ],
)
def test_git_state_is_dirty_by_changed_files_and_by_new_ones_of_the_code(
    monkeypatch, tracked, untracked, dirty
):
    root = Path(ups.__file__).resolve().parents[1]
    fake_git(monkeypatch, top=root, tracked=tracked, untracked=untracked)
    assert provenance.git_state() == ("a" * 40, dirty)


def test_git_state_is_unknown_outside_of_the_codes_own_repository(monkeypatch, tmp_path):
    root = Path(ups.__file__).resolve().parents[1]
    fake_git(monkeypatch, top=root.parent)
    assert provenance.git_state() == (None, None)
    for error in (FileNotFoundError("git"), provenance.subprocess.SubprocessError("128")):

        def fail(*args, error=error, **options):
            raise error

        monkeypatch.setattr(provenance.subprocess, "run", fail)
        assert provenance.git_state() == (None, None)


def test_expected_hashes_are_compared_by_their_first_digits(composed, monkeypatch):
    state = {"git": ("abcdef0123" * 4, False)}
    monkeypatch.setattr(provenance, "git_state", lambda: state["git"])
    cfg = composed["all"]
    found = provenance.config_hash(cfg)
    provenance.check_expected_provenance(cfg)
    for key, right, wrong in (
        ("commit", "abcdef0", "bcdef01"),
        ("config_hash", found[:7], found[1:8]),
    ):
        provenance.check_expected_provenance(changed(cfg, f"expect.{key}", right))
        words = f"expect.{key}={wrong}, but this is "
        with pytest.raises(UpsError, match=re.escape(words)):
            provenance.check_expected_provenance(changed(cfg, f"expect.{key}", wrong))
    # longer than the hash is not a prefix of it
    with pytest.raises(UpsError):
        provenance.check_expected_provenance(changed(cfg, "expect.config_hash", found + "0"))
    state["git"] = ("abcdef0123" * 4, True)
    provenance.check_expected_provenance(cfg)
    provenance.check_expected_provenance(changed(cfg, "expect.config_hash", found))
    with pytest.raises(UpsError, match="files of the repository have been changed since"):
        provenance.check_expected_provenance(changed(cfg, "expect.commit", "abcdef0"))
    state["git"] = (None, None)
    with pytest.raises(UpsError, match="but this is unknown"):
        provenance.check_expected_provenance(changed(cfg, "expect.commit", "abcdef0"))


def test_expected_data_hash_is_compared_with_the_test_sets(composed):
    cfg = changed(composed["all"], "expect.data_hash", "0123456")
    provenance.check_expected_data(cfg, "0123456789ab")
    with pytest.raises(UpsError, match="but this is 1234567"):
        provenance.check_expected_data(cfg, "123456789abc")
    provenance.check_expected_data(composed["all"], "123456789abc")


def test_provenance_tells_and_writes_what_the_run_is_made_by(composed, monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "git_state", lambda: ("c" * 40, True))
    monkeypatch.setattr(sys, "argv", ["ups.run", "stage=all", "seed=3"])
    cfg = changed(composed["all"], seed=3)
    make_folder(tmp_path, cfg, "operator")
    told = provenance.write_provenance(cfg, tmp_path, "0123456789ab")
    assert json.loads((tmp_path / "provenance.json").read_text()) == told
    assert (told["commit"], told["dirty"], told["seed"]) == ("c" * 40, True, 3)
    assert told["command"] == "ups.run stage=all seed=3"
    assert told["config_hash"] == provenance.config_hash(cfg)
    assert told["data_hash"] == "0123456789ab"
    assert told["evaluated"] == provenance.evaluation_fingerprint(cfg, tmp_path)
    assert "operator_ema.ckpt" in told["evaluated"]
    noted = datetime.fromisoformat(told["time"])
    assert abs(noted - datetime.now(UTC)) < timedelta(minutes=10)
    assert told["versions"]["torch"] == version("torch")
    assert told["versions"]["hydra-core"] == version("hydra-core")
    assert told["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert told["hardware"].startswith(f"{os.cpu_count()} x ")
    assert provenance.write_provenance(cfg, tmp_path)["data_hash"] is None


# ---------------------------------------------------------------- allowed values

VALUES = [
    ("seed", [0, 1, 2**32 - 1], [-1, 0.5, True, 2**32]),
    ("lambda_inv", [0, 0.0, 0.5], [-0.1, math.inf, math.nan, "1", True]),
    ("compile", [True, False], [0, 1, "true"]),
    ("name", ["a", "a.b", ".a"], ["", ".", "..", "a/b", 3]),
    ("expect.commit", [None, "0123456"], ["012345", "012345G", 1234567]),
    ("data.nu", [0.001, 1, [0.1, 0.2]], [0, -1, [], [0.1, 0], "x", True]),
    ("data.dt", [0.01, 1000], [0, 1000.5]),
    ("data.num_points", [2], [1]),
    ("data.reference_num_points", [256], [3]),
    ("data.num_frames", [6], [1]),
    ("data.num_train", [1, 2**40], [0, 2**40 + 1, 1.0]),
    ("data.num_validation", [1], [0]),
    ("data.num_test", [1], [0]),
    ("data.unroll_steps", [1], [0]),
    ("data.batch_size", [1], [0]),
    ("data.augmentation.max_time_rescale", [1], [0]),
    ("data.start_time_bias", [0.1], [0, None]),
    ("data.num_workers", [0], [-1]),
    ("trainer.max_epochs", [1], [0]),
    ("trainer.max_time", [None, "00:01:00:00"], ["01:00:00", "1 h"]),
    ("trainer.accumulate_grad_batches", [1], [0]),
    ("trainer.gradient_clip_val", [None, 0, 0.5], [-1]),
    ("trainer.precision", ["auto", "32-true"], ["64-true", 32]),
    ("callbacks.ema.decay", [0, 0.9999, 0.5], [-0.1, 1, 1.1]),
    ("model.hidden_dim", [2], [1]),
    ("model.encoder_depth", [0, 1000], [-1, 1001]),
    ("model.dilations", [[0, 1]], [[], [-1], 3]),
    ("stage.operator.module.lr", [1e-9], [0]),
    ("stage.diffusion.module.lr", [1e-9], [0]),
    ("stage.consistency.module.warmup_fraction", [0, 1], [-0.1, 1.1]),
    ("stage.diffusion.module.latent_cache_dtype", [None, "float16", "float32"], ["float64"]),
    ("stage.diffusion.module.projection_steps", [1, 1000], [0, 1001]),
    ("stage.diffusion.module.corrector.temperature", [0], [-1]),
    ("stage.diffusion.module.corrector.num_steps", [1], [0]),
    ("stage.diffusion.data.unroll_steps", [1], [0, None]),
    ("ttc.guidance_strength", [0, 1], [1.1]),
    ("ttc.score_threshold", [0], [-1]),
    ("ttc.shock_threshold", [1e-9], [0]),
    ("stage.operator.module.optimizer", ["muon", "adamw"], ["sgd", None]),
    ("stage.operator.module.betas", [[0, 0.99]], [[0.9, 1], [0.9], 0.9]),
    ("stage.diffusion.module.corrector.sampler", ["heun", "consistency"], ["euler"]),
    ("stage.diffusion.module.corrector.denoiser.dilations", [[1]], [[], 1]),
    ("data.augmentation.translate", [False], [0, "no"]),
    ("trainer.devices", [2, "auto", [0, 1]], [True, 0.5]),
    ("trainer.strategy", ["ddp"], [3]),
    ("callbacks.on_finish", [None, "true"], ["", 3]),
    ("callbacks.last.every_n_train_steps", [1], [0]),
    ("callbacks.inverse_loss_frequency.every", [1], [0]),
]


@pytest.mark.parametrize(("key", "allowed", "refused"), VALUES)
def test_configuration_check_allows_up_to_the_edge_and_refuses_beyond(
    composed, key, allowed, refused
):
    cfg = copy.deepcopy(composed["all"])
    for value in allowed:
        OmegaConf.update(cfg, key, value, force_add=True)
        validate_config(cfg)
    for value in refused:
        OmegaConf.update(cfg, key, value, force_add=True)
        with pytest.raises(UpsError, match=f"^`{re.escape(key)}` must be [^\n]+, got [^\n]+\\.$"):
            validate_config(cfg)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("unknown", 1, "`unknown` is not a key of the configuration; the keys are: stage, "),
        ("callbacks.best", 3, "`callbacks.best` must be a mapping"),
        ("stage.diffusion.module", None, "`stage.diffusion.module` must be a mapping"),
        (
            "stage.diffusion.data",
            None,
            "`stage.diffusion.data` must be a mapping of what differs from `data`",
        ),
        (
            "trainer.check_val_every_n_epoch",
            2,
            "must be at most stage consistency's max_epochs=1, got 2.",
        ),
        ("data.nu", "???", "`data.nu` must be given."),
        (
            "data.batchsize",
            3,
            "`data.batchsize` is not a key of ups.datamodules.BurgersDataModule; "
            "did you mean `batch_size`?",
        ),
        ("data.equation", "advection", "`data.equation` is not a key of ups.datamodules."),
        ("data.num_points", 100, "`data.num_points` must be a divisor of"),
        ("data.unroll_steps", 41, "`data.unroll_steps` must be less than data.num_frames=41"),
        ("data._target_", "no.such.Class", "`data._target_` must be the path of a Lightning"),
        ("data._target_", "torch.nn.Linear", "`data._target_` must be the path of a Lightning"),
        ("model.depth", 3, "`model.depth` is not a key of ups.models.mixer.MixerUPT"),
        ("stage.diffusion.data.fixed_windows", False, "must be true, got false: latent_cache"),
        ("stage.diffusion.data.batchsize", 3, "`stage.diffusion.data.batchsize` is not a key"),
        ("stage.operator.optimizer", 3, "`stage.operator.optimizer` is not a key of"),
        ("stage.operator.trainer.max_time", "00:00:01:00", "must be null, got '00:00:01:00'"),
        ("trainer.max_epoch", 3, "`trainer.max_epoch` is not a key of lightning.pytorch.Trainer"),
        ("trainer.callbacks", [], "`trainer.callbacks` is not a key of lightning.pytorch.Trainer"),
        ("callbacks.best.patience", 3, "`callbacks.best.patience` is not a key of lightning."),
        ("logger", None, "`logger` must be a mapping, got null."),
        ("data.seed", "${nowhere}", "`data.seed` can't be read: Interpolation key 'nowhere'"),
    ],
)
def test_configuration_check_refuses_what_can_not_work_together(composed, key, value, words):
    with pytest.raises(UpsError, match=re.escape(words)):
        validate_config(changed(composed["all"], key, value))


@pytest.mark.parametrize("where", ["trainer", "stage.operator.trainer"])
@pytest.mark.parametrize("name", list(UNSUPPORTED))
def test_configuration_check_refuses_what_ends_a_run_without_weights(composed, where, name):
    cfg = OmegaConf.merge(composed["all"])
    OmegaConf.update(cfg, f"{where}.{name}", 5, force_add=True)
    with pytest.raises(UpsError, match=f"`{where}.{name}` is not supported: .*[a-z]"):
        validate_config(cfg)


def test_configuration_check_refuses_ttc_only_when_it_is_used_without_an_equation(composed):
    for name in ("all", "operator"):
        cfg = copy.deepcopy(composed[name])
        OmegaConf.update(cfg, "data.equation", None, force_add=True)
        cfg.data._target_ = "ups.datamodules.TrajectoryDataModule"
        cfg.data.path = "waves_Nu0.1.hdf5"
        if name == "all":
            with pytest.raises(UpsError, match=r"`ttc\.enabled` must be false, got true"):
                validate_config(cfg)
            cfg.ttc.enabled = False
        validate_config(cfg)


def test_configuration_check_looks_at_validation_epochs_of_the_trained_stages_alone(composed):
    validate_config(changed(composed["operator"], "trainer.check_val_every_n_epoch", 22))
    with pytest.raises(UpsError, match="at most stage operator's max_epochs=22,"):
        validate_config(changed(composed["operator"], "trainer.check_val_every_n_epoch", 23))
    validate_config(changed(composed["diffusion"], "trainer.check_val_every_n_epoch", 5))
    with pytest.raises(UpsError, match="at most stage diffusion's max_epochs=5,"):
        validate_config(changed(composed["diffusion"], "trainer.check_val_every_n_epoch", 6))


# ---------------------------------------------------------------- preflight: what a stage needs

SEEN = {
    "batch_seconds": 0.5,
    "validation_seconds": 0.25,
    "memory": 1e9,
    "checkpoint": 1000,
    "cache_of_a_window": 64.0,
}


def test_needs_of_a_stage_equal_the_written_out_arithmetic(composed):
    cfg = changed(
        composed["all"],
        **{"data.num_train": 100, "data.num_validation": 12, "trainer.max_epochs": 6},
    )
    found = preflight.estimate_requirements(cfg, "operator", 1, SEEN)
    assert found == {
        "parts": 1,
        "memory": 1e9,
        "checkpoints": 5 * 1000,
        "cache": 100 * 10 * 64.0,
        "step_seconds": 0.5,
        # 1000 windows in batches of 16, and 12 trajectories of validation, in each of six epochs
        "seconds": pytest.approx(6 * (1000 / 16 * 0.5 + 12 * 0.25)),
    }
    later = preflight.estimate_requirements(cfg, "diffusion", 1, SEEN)
    assert later["seconds"] == pytest.approx(5 * (1000 / 8 * 0.5 + 12 * 0.25))
    assert later["cache"] == 100 * 10 * 64.0


def test_needs_count_parts_accumulation_files_and_rarer_validation(composed):
    cfg = changed(
        composed["all"],
        **{
            "data.num_train": 100,
            "data.num_validation": 12,
            "trainer.max_epochs": 6,
            "trainer.accumulate_grad_batches": 3,
            "trainer.check_val_every_n_epoch": 2,
            "data.nu": [0.1, 0.2, 0.3, 0.4],
            "stage.operator.data.samples_per_trajectory": 7,
        },
    )
    found = preflight.estimate_requirements(cfg, "operator", 2, SEEN)
    windows = 100 * 4 * 7
    assert found["cache"] == windows * 64.0
    assert found["checkpoints"] == 5000
    # half a batch takes 0.5 s: a step is of three batches in two parts each
    assert found["step_seconds"] == 0.5 * 2 * 3
    training = windows / 16 * 2 * 0.5
    validation = 12 * 4 * 0.25 / 2
    assert found["seconds"] == pytest.approx(6 * (training + validation))
    read = changed(cfg, **{"data.nu": None, "data.path": ["a", "b"]})
    assert preflight.estimate_requirements(read, "operator", 2, SEEN)["cache"] == 100 * 2 * 7 * 64.0
    single = changed(cfg, **{"data.nu": 0.1})
    assert preflight.estimate_requirements(single, "operator", 2, SEEN)["cache"] == 100 * 7 * 64.0


@pytest.mark.parametrize(
    ("accumulate", "parts", "batches"),
    [(1, 1, 3), (2, 1, 4), (1, 4, 8), (3, 2, 12)],
)
def test_rehearsal_in_small_has_few_trajectories_and_enough_windows(
    composed, tmp_path, accumulate, parts, batches
):
    cfg = changed(
        composed["all"],
        **{
            "data.batch_size": 64,
            "trainer.accumulate_grad_batches": accumulate,
            "trainer.max_time": "00:01:00:00",
            "trainer.devices": 2,
            "trainer.check_val_every_n_epoch": 1,
            "expect.data_hash": "0123456",
        },
    )
    before = copy.deepcopy(cfg)
    small = preflight.make_dry_run_config(cfg, {"operator": parts, "diffusion": 1}, tmp_path)
    assert cfg == before
    # at least three batches, and two steps; of 32 trajectories
    own = stages.stage_config(small, "operator")
    assert own.data.samples_per_trajectory == math.ceil(batches * 64 / parts / 32)
    other = stages.stage_config(small, "diffusion")
    assert other.data.samples_per_trajectory == math.ceil(max(3, 2 * accumulate) * 8 / 32)
    for stage in (own, other):
        assert (stage.data.num_train, stage.data.num_validation, stage.data.num_test) == (32, 64, 8)
        assert stage.data.cache_dir == str(tmp_path / "data")
        assert stage.trainer.max_epochs == 1
        assert (stage.trainer.max_time, stage.trainer.devices) == (None, 1)
        assert stage.trainer.check_val_every_n_epoch == 1
    assert own.data.batch_size == 64
    assert (small.data.num_train, small.data.num_validation, small.data.num_test) == (32, 64, 8)
    assert small.expect == {"commit": None, "config_hash": None, "data_hash": None}
    assert (small.output_dir, small.stage.name) == (str(tmp_path), "all")
    # the training data of the whole run, beside what is kept free
    assert small.callbacks.watch.reserve == 2**28 + 1000 * 41 * 256 * 4
    assert small.callbacks.watch.folder == str(tmp_path)


def test_rehearsal_in_small_takes_no_more_than_there_is(composed, tmp_path):
    cfg = changed(
        composed["operator"],
        **{
            "data.num_train": 20,
            "data.num_validation": 5,
            "data.num_test": 3,
            "data.nu": [0.1, 0.2],
            "trainer.check_val_every_n_epoch": 7,
        },
    )
    small = preflight.make_dry_run_config(cfg, {"operator": 1}, tmp_path)
    assert (small.data.num_train, small.data.num_validation, small.data.num_test) == (20, 5, 3)
    own = stages.stage_config(small, "operator")
    assert own.data.samples_per_trajectory == math.ceil(3 * 16 / 20)
    assert own.trainer.check_val_every_n_epoch == 1
    assert small.stage.name == "operator"
    assert small.callbacks.watch.reserve == 2**28 + 2 * 20 * 41 * 256 * 4
    streamed = preflight.make_dry_run_config(
        changed(cfg, "data.in_memory", False), {"operator": 1}, tmp_path
    )
    assert streamed.callbacks.watch.reserve == 2**28
    alone = preflight.make_dry_run_config(composed["preflight"], {"operator": 1}, tmp_path)
    assert alone.stage.name == "all"


class Process:
    """Stands for the rehearsal's process: ends as told, one end a call, and leaves what it saw."""

    def __init__(self, monkeypatch, ends, seen=None):
        self.ends, self.calls, self.seen = list(ends), [], seen or {}
        monkeypatch.setattr(preflight, "run_rehearsal", self)

    def __call__(self, rehearse, config, parts, scratch):
        assert rehearse is pipeline.rehearse
        self.calls.append((dict(parts), config))
        self.files = {path.name for path in scratch.rglob("*.ckpt")}
        code, done, words = self.ends.pop(0)
        for stage in done:
            content = self.seen.get(stage, SEEN)
            (scratch / f"{stage}.json").write_text(json.dumps(content))
        return code, words


def profile_stages(cfg, todo, folder, scratch):
    return preflight.profile_stages(cfg, todo, folder, scratch, pipeline.rehearse)


def run_preflight(cfg, todo, folder):
    return preflight.preflight(cfg, todo, folder, pipeline.rehearse)


TEST_SEEN = {"seconds": 3.0, "beside": 1.5}


def test_rehearsal_halves_batches_until_they_fit_and_keeps_what_it_has_seen(
    composed, monkeypatch, tmp_path
):
    cfg = composed["all"]
    ends = [
        (4, ["operator"], ""),
        (-signal.SIGKILL, [], ""),
        (0, ["diffusion", "consistency", "test"], ""),
    ]
    process = Process(monkeypatch, ends, {"test": TEST_SEEN})
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    needs, test_seconds = profile_stages(cfg, list(STAGES), tmp_path, scratch)
    assert [asked for asked, _ in process.calls] == [
        {"operator": 1, "diffusion": 1, "consistency": 1},
        {"diffusion": 2, "consistency": 1},
        {"diffusion": 4, "consistency": 1},
    ]
    assert {stage: need["parts"] for stage, need in needs.items()} == {
        "operator": 1,
        "diffusion": 4,
        "consistency": 1,
    }
    # as many windows as four parts of a batch need, of batches of 8
    windows = [c.stage.diffusion.data.samples_per_trajectory for _, c in process.calls]
    assert windows == [math.ceil(3 * 8 / 32), math.ceil(4 * 4 / 32), math.ceil(8 * 2 / 32)]
    for stage in STAGES:
        expected = preflight.estimate_requirements(cfg, stage, needs[stage]["parts"], SEEN)
        assert needs[stage] == expected
    # eight trajectories took three seconds, the run tests 128
    assert test_seconds == pytest.approx(3.0 * 128 / 8 + 1.5)


def test_rehearsal_of_the_whole_test_set_is_not_extrapolated(composed, monkeypatch, tmp_path):
    Process(monkeypatch, [(0, ["operator", "test"], "")], {"test": TEST_SEEN})
    cfg = changed(composed["operator"], "data.num_test", 5)
    _, test_seconds = profile_stages(cfg, ["operator"], tmp_path, tmp_path)
    assert test_seconds == pytest.approx(4.5)


def test_rehearsal_of_a_later_stage_takes_the_weights_before_it_along(
    composed, monkeypatch, tmp_path
):
    make_folder(tmp_path / "run", composed["all"])
    scratch = tmp_path / "scratch"
    process = Process(monkeypatch, [(0, ["consistency", "test"], "")], {"test": TEST_SEEN})
    with pytest.raises(UpsError, match="which has not finished"):
        profile_stages(composed["consistency"], ["consistency"], tmp_path / "no", scratch)
    profile_stages(composed["consistency"], ["consistency"], tmp_path / "run", scratch)
    assert process.files == {"diffusion_residual.ckpt", "diffusion_residual_ema.ckpt"}
    for name in process.files:
        copied = scratch / "one/checkpoints" / name
        assert copied.read_bytes() == (tmp_path / "run/checkpoints" / name).read_bytes()


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ([(2, [], "some\nnot allowed\n")], "preflight: not allowed"),
        ([(1, ["operator"], "Traceback")], "preflight: stage diffusion fails:\nTraceback"),
        ([(1, STAGES, "Traceback")], "preflight: stage evaluate fails"),
        ([(4, STAGES, "")], "data.eval_batch_size=64 trajectories don't fit"),
        (
            [(4, ["operator"], "")] * 4,
            "stage diffusion: batches of 1 windows don't fit into memory and can't be halved",
        ),
    ],
)
def test_rehearsal_that_fails_is_refused_with_the_stage_and_what_may_fit(
    composed, monkeypatch, tmp_path, ends, words
):
    Process(monkeypatch, ends)
    with pytest.raises(UpsError, match=re.escape(words)):
        profile_stages(composed["all"], list(STAGES), tmp_path, tmp_path)


def test_rehearsal_refuses_an_odd_batch_that_does_not_fit_and_says_what_may(
    composed, monkeypatch, tmp_path
):
    Process(monkeypatch, [(4, [], "")] * 2)
    words = "operator: batches of 7 windows don't fit into memory and can't be halved; 3 may"
    with pytest.raises(UpsError, match=words):
        cfg = changed(composed["all"], "data.batch_size", 14)
        profile_stages(cfg, list(STAGES), tmp_path, tmp_path)


def end_as_asked(cfg, parts, scratch):
    """A rehearsal for ``run_rehearsal``, in a process of its own."""
    print("this goes nowhere")
    end = cfg.end
    if end == "refused":
        raise UpsError("not allowed")
    if end == "memory":
        raise RuntimeError("DefaultCPUAllocator: not enough memory")
    if end == "fault":
        raise KeyError("lost")
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    (scratch / "operator.json").write_text(json.dumps({**parts, "seed": cfg.seed}))


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        ("done", 0, ""),
        ("refused", preflight.REFUSED, "not allowed"),
        ("memory", preflight.OUT_OF_MEMORY, "out of memory"),
        ("fault", 1, "KeyError: 'lost'"),
        ("kill", -signal.SIGKILL, ""),
    ],
)
def test_rehearsal_process_ends_with_what_happened(tmp_path, capfd, end, code, words):
    cfg = OmegaConf.create({"end": end, "seed": 3, "same": "${seed}"})
    found, said = preflight.run_rehearsal(end_as_asked, cfg, {"operator": 2}, tmp_path)
    assert found == code
    assert words in said
    assert ("Traceback" in said) == (end == "fault")
    assert (tmp_path / "operator.json").exists() == (end == "done")
    assert capfd.readouterr() == ("", "")


def wait_for_ever(cfg, parts, scratch):
    (scratch / "pid").write_text(str(os.getpid()))
    time.sleep(600)


@pytest.fixture
def interruptible():
    """Ctrl-C interrupts, also where the tests were started in the background of a shell."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


def test_rehearsal_process_is_killed_when_the_call_is_interrupted(tmp_path, interruptible):
    def interrupt():
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        preflight.run_rehearsal(wait_for_ever, OmegaConf.create({}), {}, tmp_path)
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.fixture
def rehearsed(monkeypatch):
    """Rehearsals that say what is put here; the calls, and what the disk was asked for."""
    told = SimpleNamespace(calls=[], asked=[], needs={}, seconds=7.0)

    def profile(cfg, todo, folder, scratch, rehearse):
        told.calls.append(list(todo))
        return {stage: told.needs[stage] for stage in todo}, told.seconds

    monkeypatch.setattr(preflight, "profile_stages", profile)
    monkeypatch.setattr(preflight, "hardware", lambda: "2 x Abacus")
    monkeypatch.setattr(preflight, "check_disk_space", lambda *asked: told.asked.append(asked))
    common = {"memory": 1e6, "step_seconds": 0.1, "seconds": 60.0}
    for parts, stage in enumerate(STAGES, 1):
        disk = {"checkpoints": 100 * parts, "cache": {1: 0, 2: 5000, 3: 700}[parts]}
        told.needs[stage] = {"parts": parts, **common, **disk}
    return told


def test_preflight_asks_for_all_checkpoints_the_largest_cache_and_the_data(
    composed, rehearsed, tmp_path
):
    folder = tmp_path / "run"
    cfg = changed(composed["all"], "data.cache_dir", str(tmp_path / "data"))
    parts = run_preflight(cfg, list(STAGES), folder)
    assert parts == {"operator": 1, "diffusion": 2, "consistency": 3}
    generated = 2 * (1000 + 100 + 128) * 41 * 256 * 4  # the file, and its parts before
    ((where, planned, what),) = rehearsed.asked
    assert (where, what) == (folder, "this run")
    assert planned == 100 + 200 + 300 + 5000 + generated
    written = json.loads((folder / "preflight.json").read_text())
    assert written["test"] == {"seconds": 7.0}
    assert written["diffusion"]["parts"] == 2
    assert written["diffusion"]["hardware"] == "2 x Abacus"
    own = stages.stage_fingerprint(cfg, "diffusion")
    assert written["diffusion"]["settings"] == own


def test_preflight_remembers_stages_by_settings_and_hardware(
    composed, rehearsed, monkeypatch, tmp_path
):
    cfg = changed(composed["all"], "data.cache_dir", str(tmp_path / "data"))
    folder = tmp_path / "run"
    run_preflight(cfg, ["operator", "diffusion"], folder)
    assert run_preflight(cfg, ["operator", "diffusion"], folder) == {
        "operator": 1,
        "diffusion": 2,
    }
    assert len(rehearsed.calls) == 1
    run_preflight(cfg, list(STAGES), folder)  # one of them is not known
    assert rehearsed.calls[1:] == [list(STAGES)]
    run_preflight(changed(cfg, seed=1), ["diffusion"], folder)
    assert rehearsed.calls[2:] == [["diffusion"]]
    known = json.loads((folder / "preflight.json").read_text())
    assert set(known) == {*STAGES, "test"}  # the others stay known
    run_preflight(cfg, ["operator"], folder)
    assert len(rehearsed.calls) == 3
    monkeypatch.setattr(preflight, "hardware", lambda: "9 x Abacus")
    run_preflight(cfg, ["operator"], folder)
    assert len(rehearsed.calls) == 4


def test_preflight_does_not_rehearse_a_stage_that_has_begun(composed, rehearsed, tmp_path):
    cfg = changed(composed["all"], "data.cache_dir", str(tmp_path / "data"))
    folder = tmp_path / "run"
    run_preflight(cfg, ["diffusion"], folder)
    save(folder / "checkpoints/diffusion-last.ckpt", 1.0)
    assert run_preflight(changed(cfg, seed=1), ["diffusion"], folder) == {"diffusion": 2}
    assert len(rehearsed.calls) == 1


def test_preflight_runs_when_it_is_asked_for(composed, rehearsed, tmp_path):
    directory = {"data.cache_dir": str(tmp_path / "data")}
    off = changed(composed["operator"], preflight=False, **directory)
    assert run_preflight(off, ["operator"], tmp_path / "off") == {}
    assert rehearsed.calls == []
    alone = changed(composed["preflight"], preflight=False, **directory)
    for _ in range(2):  # alone it does nothing else, and so does it again
        run_preflight(alone, ["operator"], tmp_path / "alone")
    assert len(rehearsed.calls) == 2


def test_printed_needs_hold_every_stage_in_parts_and_the_whole_time(composed, capsys):
    need = {"memory": 2.5e9, "checkpoints": 3e6, "cache": 4e6, "step_seconds": 0.125}
    found = {
        "operator": {**need, "parts": 1, "seconds": 90.0},
        "diffusion": {**need, "parts": 4, "seconds": 30.0},
    }
    preflight.print_requirements(composed["all"], found, 24.0)
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("│")
    ]
    assert rows == [
        ["operator", "16", "2.5 GB", "7.0 MB", "125 ms", "1.5 min"],
        ["diffusion", "4 x 2", "2.5 GB", "7.0 MB", "125 ms", "30 s"],
        ["test", "", "", "", "", "24 s"],
        ["all", "", "", "", "", "2.4 min"],
    ]


def test_watch_notes_the_fastest_later_step_and_the_cost_of_each_trajectory(monkeypatch, tmp_path):
    reserve = 2**27
    watch = resource_probe.ResourceProbe(str(tmp_path), reserve)
    clock = iter([0.0, 0.125, 10.0, 14.0, 20.0, 22.0, 30.0, 33.0, 50.0, 56.0])
    monkeypatch.setattr(resource_probe, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    loader = SimpleNamespace(sampler=SimpleNamespace(num_windows=40))
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(
            values={"validation": torch.zeros(12, 2, 2), "test": torch.zeros(5, 2, 2)},
            train_dataloader=lambda: loader,
        ),
        save_checkpoint=lambda path: Path(path).write_bytes(b"0" * 777),
    )
    module = SimpleNamespace(
        device=torch.device("cpu"),
        stage="diffusion",
        terms={"loss": torch.tensor(1.0)},
        cache=SimpleNamespace(bytes=1000),
    )
    monkeypatch.setattr(resource_probe, "_peak_memory_bytes", lambda: 5 * reserve)
    watch.on_fit_start(trainer, module)
    assert watch.held.nbytes == reserve
    for batch in range(4):
        watch.on_train_batch_start(trainer, module, None, batch)
        watch.on_train_batch_end(trainer, module, None, None, batch)
    watch.on_validation_epoch_start(trainer, module)
    watch.on_validation_epoch_end(trainer, module)
    seen = json.loads((tmp_path / "diffusion.json").read_text())
    assert seen["batch_seconds"] == 2.0  # not the first one
    assert seen["validation_seconds"] == 6.0 / 12
    assert seen["checkpoint"] == 777
    assert seen["cache_of_a_window"] == 1000 / 40
    assert seen["memory"] == 4 * reserve  # the peak without what was held beside it
    module.cache, module.stage = None, "operator"
    clock = iter(range(100))
    watch.on_fit_start(trainer, module)
    watch.on_validation_epoch_start(trainer, module)
    watch.on_validation_epoch_end(trainer, module)
    assert json.loads((tmp_path / "operator.json").read_text())["cache_of_a_window"] == 0


def test_watch_refuses_a_part_without_gradient_from_the_second_step_on(tmp_path):
    part = torch.nn.Linear(2, 2)
    trained = torch.nn.ModuleDict({"deaf": part, "frozen": torch.nn.Linear(1, 1)})
    trained["frozen"].requires_grad_(False)
    module = SimpleNamespace(trainable_module=lambda: trained, stage="operator")
    watch = resource_probe.ResourceProbe(str(tmp_path), 1)
    watch.on_before_optimizer_step(None, module, None)
    with pytest.raises(UpsError, match="its part 'deaf' gets no gradient"):
        watch.on_before_optimizer_step(None, module, None)
    part.bias.grad = torch.zeros(2)
    with pytest.raises(UpsError, match="its part 'deaf' gets no gradient"):
        watch.on_before_optimizer_step(None, module, None)
    part.bias.grad = torch.ones(2)
    watch.on_before_optimizer_step(None, module, None)


@pytest.fixture
def quiet_logging():
    """The root logger as it was: a run puts its own handlers there."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level = before, level
    logging.raiseExceptions = True


def test_estimates_of_a_rehearsal_equal_the_sizes_of_the_runs_files(
    monkeypatch, tmp_path, quiet_logging
):
    sizes = "{hidden_dim:16,depth:2,mlp_ratio:1.0,dilations:[1]}"
    networks = [
        f"stage.diffusion.module.corrector.{part}={sizes}" for part in ("mean_network", "denoiser")
    ]
    short = ["data.num_train=12", "trainer.max_epochs=1", "stage.diffusion.trainer.max_epochs=1"]
    short += ["stage.diffusion.data.samples_per_trajectory=7", "ttc.enabled=false"]
    short += ["stage.diffusion.module.corrector.num_steps=1"]
    every = ["stage=all", "name=one", "callbacks.last.every_n_train_steps=1"]
    every.append(f"output_dir={tmp_path}/outputs")
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", [*TINY, *short, *networks, *every])
    hydra.core.global_hydra.GlobalHydra.instance().clear()
    cfg.stage.train, cfg.stage.evaluate = ["operator", "diffusion"], ["none"]
    sizes = {"checkpoints": {}, "cache": []}
    save_checkpoint, remove = AtomicCheckpointIO.save_checkpoint, LatentCache.remove

    def saving(self, checkpoint, path, **more):
        save_checkpoint(self, checkpoint, path, **more)
        sizes["checkpoints"].setdefault(Path(path).name, Path(path).stat().st_size)

    def removing(self):
        if self.path.exists():  # it is called once more at the end
            sizes["cache"].append(self.path.stat().st_size)
        remove(self)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", saving)
    monkeypatch.setattr(LatentCache, "remove", removing)
    monkeypatch.setattr(preflight, "RESERVE", 2**20)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    small = preflight.make_dry_run_config(cfg, {"operator": 1, "diffusion": 1}, scratch)
    pipeline.rehearse(small, {"operator": 1, "diffusion": 1}, scratch)
    seen = {
        stage: json.loads((scratch / f"{stage}.json").read_text())
        for stage in ("operator", "diffusion", "test")
    }
    planned = {
        stage: preflight.estimate_requirements(cfg, stage, 1, seen[stage])
        for stage in ("operator", "diffusion")
    }
    assert not (tmp_path / "outputs").exists()
    sizes["checkpoints"].clear()
    sizes["cache"].clear()
    run(cfg)
    for stage in ("operator", "diffusion"):
        real = sizes["checkpoints"][f"{stage}-last.ckpt"]
        assert planned[stage]["checkpoints"] == pytest.approx(5 * real, rel=0.05)
    # 12 trajectories x 7 windows, 3 parts x 4 steps x 8 tokens x 16 channels of two bytes
    assert sizes["cache"] == [12 * 7 * 3 * 4 * 8 * 16 * 2]
    assert planned["diffusion"]["cache"] == pytest.approx(sizes["cache"][0])
    assert planned["operator"]["cache"] == 0
    assert seen["test"]["seconds"] > 0
    # and the generated file is as large as planned
    (path,) = (tmp_path / "outputs/data").glob("*.hdf5")
    with h5py.File(path) as file:
        assert file["tensor"].size * 4 == (12 + 4 + 6) * 11 * 32 * 4


# ---------------------------------------------------------------- the run's folder


def test_open_folder_writes_the_configuration_and_lets_one_call_in(
    composed, tmp_path, quiet_logging
):
    cfg = changed(composed["all"], output_dir=str(tmp_path))
    with run_dir.run_directory(cfg) as folder:
        assert folder == tmp_path / "one"
        assert "${" not in (folder / "config.yaml").read_text()  # it holds what was used
        written = OmegaConf.load(folder / "config.yaml")
        assert flatten_config(written) == flatten_config(cfg)
        assert yaml.safe_load((folder / "overrides.yaml").read_text()) == []
        logging.getLogger("ups").info("a line")
        with pytest.raises(UpsError, match="another call is at work"), run_dir.run_directory(cfg):
            pass
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d a line$", (folder / "run.log").read_text())
    lock = FileLock(folder / ".lock")
    lock.acquire(timeout=0)  # it was given back
    lock.release()


def test_open_folder_overwrites_the_stages_to_train_alone(composed, tmp_path, quiet_logging):
    make_folder(tmp_path / "one", composed["all"])
    before = {path.name for path in (tmp_path / "one/checkpoints").iterdir()}
    cfg = changed(composed["diffusion"], output_dir=str(tmp_path))
    with run_dir.run_directory(cfg) as folder:
        assert {path.name for path in (folder / "checkpoints").iterdir()} == before
    other = changed(cfg, "stage.diffusion.module.lr", 0.1)
    with pytest.raises(UpsError, match="other settings"), run_dir.run_directory(other):
        pass
    with run_dir.run_directory(changed(other, overwrite=True)) as folder:
        left = {path.name for path in (folder / "checkpoints").iterdir()}
        assert before - left == {
            "diffusion_residual.ckpt",
            "diffusion_residual.json",
            "diffusion_residual_ema.ckpt",
        }


def test_open_folder_of_a_sweeps_job_has_the_jobs_name_and_overrides(
    composed, monkeypatch, tmp_path, quiet_logging
):
    def hydra_of(mode):
        job = SimpleNamespace(
            mode=mode,
            runtime=SimpleNamespace(output_dir="elsewhere/sweep-seed_1"),
            overrides=SimpleNamespace(task=["seed=1", "lambda_inv=0"]),
        )
        return SimpleNamespace(initialized=lambda: True, get=lambda: job)

    for mode, name in ((RunMode.MULTIRUN, "sweep-seed_1"), (RunMode.RUN, "one")):
        monkeypatch.setattr(run_dir, "HydraConfig", hydra_of(mode))
        cfg = changed(composed["all"], output_dir=str(tmp_path))
        with run_dir.run_directory(cfg) as folder:
            assert folder == tmp_path / name
            assert cfg.name == name
            overrides = yaml.safe_load((folder / "overrides.yaml").read_text())
            assert overrides == ["seed=1", "lambda_inv=0"]


def test_only_the_first_of_several_processes_writes(
    composed, rehearsed, monkeypatch, tmp_path, quiet_logging
):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    cfg = changed(composed["operator"], output_dir=str(tmp_path))
    with run_dir.run_directory(cfg) as folder:
        assert folder == tmp_path / "one"
        provenance.write_provenance(cfg, folder)
        assert run_preflight(cfg, ["operator"], folder) == {}
        stages.record_stage_start(stages.stage_config(cfg, "operator"), folder, "operator")
    assert rehearsed.calls == []
    assert not folder.exists()


def test_folder_name_of_a_job_is_cut_with_a_hash_when_it_is_long():
    assert folder_name("a=1/b") == "a=1_b"
    assert folder_name("x" * 120) == "x" * 120
    long = "x" * 121
    assert folder_name(long) == "x" * 100 + "-" + sha(long.encode())[:8]


# ---------------------------------------------------------------- the leaderboard

ROW = {"model": "upt", "mode": "latent", "correct": "none", "ttc": False}
OTHER = {"model": "fno", "mode": "physical", "correct": "diffusion", "ttc": True}


def write_evaluation(folder, *rows, name="operator", time="2026-01-01", weights="a", **dataset):
    """An evaluation file of a run."""
    path = folder / f"reports/eval_{name}.json"
    origin = {"time": time, "evaluated": {"operator_ema.ckpt": weights, "settings": "s"}}
    evaluation = Evaluation(
        {"hash": "0123", **dataset}, [Row.from_dict(row) for row in rows], origin
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    evaluation.write(path)
    return path


def written_table(output_dir):
    leaderboard.write(output_dir)
    return leaderboard.read(output_dir / "leaderboard.csv")


@pytest.mark.parametrize("key", ["name", *ROW, "dataset.hash"])
def test_leaderboard_row_is_another_when_one_key_of_its_identity_is(tmp_path, key):
    assert set(leaderboard.ROW_KEY) == {"name", *ROW, "dataset.hash"}
    name = "two" if key == "name" else "one"
    row = {**ROW, key: OTHER[key], "nrmse": 0.25} if key in ROW else {**ROW, "nrmse": 0.25}
    other = {"hash": "4567"} if key == "dataset.hash" else {}
    write_evaluation(tmp_path / "one", {**ROW, "nrmse": 0.5})
    write_evaluation(tmp_path / name, row, name="baseline", time="2026-01-02", **other)
    rows = written_table(tmp_path)
    assert [row["nrmse"] for row in rows] == ["0.5", "0.25"]
    if key in ROW:
        assert rows[1][key] == str(OTHER[key])


@pytest.mark.parametrize("key", ["seed", "commit", "nrmse", "dataset.name"])
def test_leaderboard_row_is_the_same_when_anything_else_differs(tmp_path, key):
    write_evaluation(tmp_path / "one", {**ROW, key: "1"}, name="z", time="2026-01-01")
    write_evaluation(tmp_path / "one", {**ROW, key: "2"}, name="a", time="2026-01-02")
    assert [row[key] for row in written_table(tmp_path)] == ["2"]


def test_leaderboard_keeps_numbers_exactly(tmp_path):
    values = {"a": 0.1 + 0.2, "b": 1e-17, "c": 1 / 3, "d": 5e300, "e": -0.0, "f": float("nan")}
    more = {"g": None, "h": 3, "i": 'a,"b"\nc', "j": True}
    write_evaluation(tmp_path / "one", {**ROW, **values, **more})
    (row,) = written_table(tmp_path)
    for key in "abcde":
        assert float(row[key]) == values[key], key
        assert row[key] == repr(values[key])
    assert (row["f"], row["g"], row["h"]) == ("nan", "", "3")
    assert (row["i"], row["j"], row["ttc"]) == ('a,"b"\nc', "True", "False")
    write_evaluation(tmp_path / "two", ROW)
    assert written_table(tmp_path)[0] == row
    assert leaderboard.read(tmp_path / "leaderboard.csv")[1]["a"] == ""


def test_leaderboard_columns_stand_in_the_order_of_their_first_appearance(tmp_path):
    write_evaluation(tmp_path / "a", {**ROW, "z": 1}, time="1")
    write_evaluation(tmp_path / "b", {**ROW, "y": 2}, time="2")
    write_evaluation(tmp_path / "c", {"x": 3, **ROW, "z": 4}, time="3")
    rows = written_table(tmp_path)
    heads = (tmp_path / "leaderboard.csv").read_text().splitlines()[0].split(",")
    settings = ["name", "stage", "label", "model", "mode", "correct", "ttc"]
    assert heads == [*settings, "z", "dataset.hash", "time", "y", "x"]
    assert [[row[key] for key in ("name", "z", "y", "x")] for row in rows] == [
        ["a", "1", "", ""],
        ["b", "", "2", ""],
        ["c", "4", "", "3"],
    ]


def test_leaderboard_baselines_stand_once_for_each_test_set(tmp_path):
    own, baseline = {**ROW, "nrmse": 0.5}, {**ROW, "model": "solver-64", "mode": "physical"}
    write_evaluation(tmp_path / "b", own, {**baseline, "nrmse": 0.1}, time="1")
    write_evaluation(tmp_path / "a", own, {**baseline, "nrmse": 0.2}, time="2")
    write_evaluation(tmp_path / "c", own, {**baseline, "nrmse": 0.3}, time="3", hash="4567")
    found = [(row["name"], row["label"], row["nrmse"]) for row in written_table(tmp_path)]
    assert found == [
        ("b", "upt, latent", "0.5"),
        ("baseline", "solver-64", "0.2"),  # at its first place, with its newest value
        ("a", "upt, latent", "0.5"),
        ("c", "upt, latent", "0.5"),
        ("baseline", "solver-64", "0.3"),
    ]


def test_leaderboard_shows_no_results_of_replaced_weights(tmp_path):
    corrected = {**ROW, "correct": "diffusion", "nrmse": 0.1}
    write_evaluation(tmp_path / "one", {**ROW, "nrmse": 0.2}, corrected, name="baseline", time="1")
    write_evaluation(tmp_path / "one", {**ROW, "nrmse": 0.3}, time="2", weights="b")
    assert [row["nrmse"] for row in written_table(tmp_path)] == ["0.3"]


def test_leaderboard_follows_the_runs_that_are_there(tmp_path):
    table = tmp_path / "leaderboard.csv"
    table.write_text("name,nrmse\nof an earlier version,0.5\n")
    for name in ("one", "two"):
        write_evaluation(tmp_path / name, ROW)
    assert [row["name"] for row in written_table(tmp_path)] == ["one", "two"]
    shutil.rmtree(tmp_path / "one")
    assert [row["name"] for row in written_table(tmp_path)] == ["two"]
    assert '"name": "one"' not in table.with_suffix(".html").read_text()
    shutil.rmtree(tmp_path / "two")
    assert written_table(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"dataset": {}, "rows": [{}]}',
        b'{"dataset": 1, "rows": []}',
        b"\xff",
    ],
)
def test_leaderboard_leaves_a_damaged_evaluation_out_and_names_its_file(tmp_path, caplog, content):
    write_evaluation(tmp_path / "one", ROW)
    damaged = write_evaluation(tmp_path / "two", ROW)
    damaged.write_bytes(content)
    assert [row["name"] for row in written_table(tmp_path)] == ["one"]
    assert f"{damaged} is damaged" in caplog.text


def test_leaderboard_that_is_no_text_is_refused_and_written_again(tmp_path):
    path = tmp_path / "leaderboard.csv"
    path.write_bytes(b"name\n\xff\xfe\n")
    with pytest.raises(UpsError, match="is damaged"):
        leaderboard.read(path)
    write_evaluation(tmp_path / "one", ROW)
    assert len(written_table(tmp_path)) == 1


def test_leaderboard_saved_by_a_spreadsheet_loses_no_row(tmp_path):
    path = tmp_path / "leaderboard.csv"
    for k in range(50):
        write_evaluation(tmp_path / f"{k:02}", ROW)
    before = written_table(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert leaderboard.read(path) == before
    write_evaluation(tmp_path / "50", ROW)
    assert len(written_table(tmp_path)) == 51


def test_leaderboard_with_other_columns_is_refused(tmp_path):
    path = tmp_path / "leaderboard.csv"
    write_evaluation(tmp_path / "one", ROW)
    written_table(tmp_path)
    path.write_text(path.read_text().replace(",", ";"))
    with pytest.raises(UpsError, match="separated by commas"):
        leaderboard.read(path)
    assert len(written_table(tmp_path)) == 1
    path.write_text("")
    assert leaderboard.read(path) == []


def test_leaderboard_of_hundreds_of_runs_takes_seconds(tmp_path):
    rows = [{**ROW, "correct": f"c{k}", "nrmse_over_time": [0.1] * 40} for k in range(8)]
    for place in range(400):
        write_evaluation(tmp_path / f"{place}", *rows)
    started = time.monotonic()
    leaderboard.write(tmp_path)
    assert time.monotonic() - started < 10  # half a second on an idle core
    assert len(leaderboard.read(tmp_path / "leaderboard.csv")) == 3200


# ---------------------------------------------------------------- the sweep's table

JOBS = {
    "s-a": (["lambda_inv=0", "data.num_train=8", "seed=0", "name=s", "stage=operator"], 0.10),
    "s-b": (["lambda_inv=0", "data.num_train=8", "seed=1", "name=s", "stage=operator"], 0.16),
    "s-c": (["lambda_inv=0", "data.num_train=8", "seed=2", "name=s", "stage=operator"], 0.19),
    "s-d": (["lambda_inv=1", "data.num_train=8", "seed=0", "name=s", "stage=operator"], 0.70),
}


@pytest.fixture
def swept(tmp_path):
    """The runs of a sweep over two settings; the leaderboard is not needed."""
    for name, (_, nrmse) in JOBS.items():
        rows = [{**ROW, "nrmse": nrmse}, {**ROW, "mode": "physical", "nrmse": 2 * nrmse}]
        rows.append({**ROW, "model": "persistence", "mode": "physical", "nrmse": 5.0})
        if name == "s-d":
            rows += [
                {**ROW, "correct": "diffusion", "nrmse": 0.6},
                {**ROW, "correct": "diffusion", "ttc": True, "nrmse": 0.5},
                {**ROW, "ttc": True, "nrmse": 0.4},
            ]
        write_evaluation(tmp_path / name, *rows)
        # another sweep of these folders, or a later call, may have left others
        (tmp_path / name / "overrides.yaml").write_text(yaml.safe_dump(["seed=9"]))
    write_evaluation(tmp_path / "s-a", {**ROW, "nrmse": 0.9}, name="baseline", hash="other")
    # tested twice, the newer result counts
    write_evaluation(tmp_path / "s-b", {**ROW, "nrmse": 0.7}, name="diffusion", time="2025-01-01")
    write_evaluation(tmp_path / "t-a", {**ROW, "nrmse": 6.0})  # of another sweep
    return tmp_path


def table_of(console):
    lines = [line for line in console.export_text().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def sweep_jobs(folder, unfinished=()):
    return [
        hydra_callbacks.SweepJob(folder / name, tuple(overrides), name not in unfinished)
        for name, (overrides, _) in JOBS.items()
    ]


def test_sweep_table_has_mean_and_spread_over_seeds_of_each_setting(swept):
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    hydra_callbacks.print_sweep(sweep_jobs(swept), "s", console)
    # of 0.10, 0.16, 0.19: the mean 0.15, and the root of (0.05^2 + 0.01^2 + 0.04^2) / (3 - 1)
    assert table_of(console) == [
        ["lambda_inv=0", "upt, latent", "3", "0.1500", "0.0458", "0.1000", "0.1900"],
        ["lambda_inv=0", "upt, latent", "1", "0.9000", "-", "0.9000", "0.9000"],
        ["lambda_inv=0", "upt, physical", "3", "0.3000", "0.0917", "0.2000", "0.3800"],
        ["lambda_inv=1", "upt + diffusion + ttc, latent", "1", "0.5000", "-", "0.5000", "0.5000"],
        ["lambda_inv=1", "upt + diffusion, latent", "1", "0.6000", "-", "0.6000", "0.6000"],
        ["lambda_inv=1", "upt + ttc, latent", "1", "0.4000", "-", "0.4000", "0.4000"],
        ["lambda_inv=1", "upt, latent", "1", "0.7000", "-", "0.7000", "0.7000"],
        ["lambda_inv=1", "upt, physical", "1", "1.4000", "-", "1.4000", "1.4000"],
    ]


def test_sweep_table_of_seeds_alone_says_that_settings_are_the_same(swept):
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    hydra_callbacks.print_sweep(sweep_jobs(swept)[:3], "s", console)
    assert table_of(console) == [
        ["(the same)", "upt, latent", "3", "0.1500", "0.0458", "0.1000", "0.1900"],
        ["(the same)", "upt, latent", "1", "0.9000", "-", "0.9000", "0.9000"],
        ["(the same)", "upt, physical", "3", "0.3000", "0.0917", "0.2000", "0.3800"],
    ]


def test_sweep_table_leaves_out_jobs_that_have_not_finished(swept):
    """Their folders may hold results of an earlier call."""
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    hydra_callbacks.print_sweep(sweep_jobs(swept, {"s-a", "s-d"}), "s", console)
    assert table_of(console) == [
        ["lambda_inv=0", "upt, latent", "2", "0.1750", "0.0212", "0.1600", "0.1900"],
        ["lambda_inv=0", "upt, physical", "2", "0.3500", "0.0424", "0.3200", "0.3800"],
    ]


def test_sweep_table_tells_runs_of_different_names_apart(swept):
    jobs = [
        hydra_callbacks.SweepJob(swept / f"s-{name}", (f"name={name}", "seed=0"), True)
        for name in "bc"
    ]
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    hydra_callbacks.print_sweep(jobs, "s", console)
    assert [row[:4] for row in table_of(console)] == [
        ["name=b", "upt, latent", "1", "0.1600"],
        ["name=b", "upt, physical", "1", "0.3200"],
        ["name=c", "upt, latent", "1", "0.1900"],
        ["name=c", "upt, physical", "1", "0.3800"],
    ]


def job_config(folder, num, overrides=()):
    hydra = {
        "runtime": {"output_dir": str(folder)},
        "overrides": {"task": list(overrides)},
        "job": {"num": num},
    }
    return OmegaConf.create({"hydra": hydra})


def job_return(value):
    returned = JobReturn()
    returned.status = JobStatus.FAILED if isinstance(value, Exception) else JobStatus.COMPLETED
    returned.return_value = value
    return returned


def test_sweep_knows_its_jobs_and_their_outcomes_from_their_records(swept, caplog, capsys):
    """Jobs run on copies of the callback, in other processes; folders of others don't count."""
    config = OmegaConf.create({"output_dir": str(swept), "name": "s"})
    (swept / "s-old").mkdir()  # of an earlier sweep, failed
    outcomes = {"s-a": 0.1, "s-b": 0.2, "s-c": 0.3}

    def sweep(outcomes, killed=()):
        table = hydra_callbacks.SweepTable()
        table.on_multirun_start(config)
        for num, (name, value) in enumerate(outcomes.items()):
            copy = pickle.loads(pickle.dumps(table))
            cfg = job_config(swept / name, num, JOBS[name][0])
            copy.on_job_start(config=cfg)
            if name not in killed:
                copy.on_job_end(config=cfg, job_return=job_return(value))
        table.on_multirun_end(config)

    sweep(outcomes)
    assert " 3 " in capsys.readouterr().out
    for changes, killed, left in (
        ({"s-b": math.nan}, (), "1 of 3 jobs have not finished"),
        ({"s-b": OSError()}, {"s-c"}, "2 of 3 jobs have not finished"),
    ):
        caplog.clear()
        with pytest.raises(SystemExit) as end:
            sweep({**outcomes, **changes}, killed)
        assert end.value.code == 2
        assert left in caplog.text
        assert "s-b" in caplog.text
        assert "s-old" not in caplog.text
    with pytest.raises(SystemExit):
        sweep({})


@pytest.mark.parametrize("value", [0.1, math.nan, OSError()], ids=["good", "refused", "failed"])
def test_single_runs_leave_no_records_of_a_sweep_and_the_folder_of_the_call(tmp_path, value):
    table = hydra_callbacks.SweepTable()
    table.on_job_start(config=job_config(tmp_path, 0))
    table.on_job_end(config=job_config(tmp_path, 0), job_return=job_return(value))
    assert not list(tmp_path.iterdir())


@pytest.mark.integration
@pytest.mark.parametrize("override", ["data.num_points=${nowhere}", "data.num_points=7"])
def test_a_command_that_is_refused_leaves_the_empty_folder_of_its_call(ups_run, tmp_path, override):
    done = ups_run(*TINY, override, check=False)
    assert done.returncode == 2, done
    assert tmp_path.is_dir()
    assert not list(tmp_path.iterdir())


def test_sizes_in_words_have_one_digit_and_steps_of_a_thousand():
    words = {999: "999 B", 1000: "1.0 kB", 1_500_000: "1.5 MB", 2e9: "2.0 GB", 3e12: "3.0 TB"}
    for count, expected in words.items():
        assert format_bytes(count) == expected
