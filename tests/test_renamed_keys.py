"""Keys of the previous release: on the command line, in a user's yaml, in older run directories."""

import json

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ups.core import renamed_keys
from ups.core.renamed_keys import (
    load_config,
    rename_arguments,
    rename_config,
    rename_flat,
    rename_key,
)
from ups.evaluation.results import RENAMED_METRICS, Row
from ups.run import CONF
from ups.runs import stages

CORRECTOR = "stage.diffusion.module.corrector"


@pytest.fixture(scope="module")
def composed():
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", ["stage=all", "model.name=pinned"])


@pytest.fixture
def model_rows(monkeypatch):
    """Rows of the forms that data and ttc don't need."""
    monkeypatch.setattr(
        renamed_keys,
        "RENAMED",
        {
            **renamed_keys.RENAMED,
            "top": "new_top",
            "model.width": "model.hidden_dim",
            f"{CORRECTOR}.mean": f"{CORRECTOR}.net",
            f"{CORRECTOR}.net.width": f"{CORRECTOR}.net.dim",
        },
    )
    by_model = {"fno": {"model.width": "model.channels"}}
    monkeypatch.setattr(renamed_keys, "RENAMED_BY_MODEL", by_model)
    choices = {"model": {"small": "mixer_small", "tiny": "mixer_tiny"}}
    monkeypatch.setattr(renamed_keys, "RENAMED_CHOICES", choices)
    values = {"model.architecture": {"upt": "mixer", "upt_absolute": "upt"}}
    monkeypatch.setattr(renamed_keys, "RENAMED_VALUES", values)


# ---------------------------------------------------------------- the table


def test_renamed_table_leads_to_keys_of_the_configuration_and_from_none(composed):
    # not all models have all keys of model.*
    rows = {old: new for old, new in renamed_keys.RENAMED.items() if not old.startswith("model.")}
    places = ["", *(f"stage.{stage}." for stage in ("operator", "diffusion", "consistency"))]
    for old, new in rows.items():
        found = [OmegaConf.select(composed, place + new) for place in places]
        assert any(value is not None for value in found), new
        assert all(OmegaConf.select(composed, place + old) is None for place in places), old


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("data.window", "data.unroll_steps"),
        ("data.stretch", "data.augmentation.max_time_rescale"),
        ("stage.diffusion.data.window", "stage.diffusion.data.unroll_steps"),
        ("stage.mine.data.repeat", "stage.mine.data.fixed_windows"),
        ("data.unroll_steps", "data.unroll_steps"),
        ("data.test_more", "data.test_more"),
        ("other.data.window", "other.data.window"),
        ("data", "data"),
        ("model.width", "model.hidden_dim"),
        ("top", "new_top"),
        (f"{CORRECTOR}.mean", f"{CORRECTOR}.net"),
        (f"{CORRECTOR}.mean.depth", f"{CORRECTOR}.net.depth"),
        (f"{CORRECTOR}.mean.width", f"{CORRECTOR}.net.dim"),
    ],
)
def test_rename_key_matches_whole_parts_below_a_stage_too(model_rows, key, expected):
    assert rename_key(key) == expected


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("data.window=3", "data.unroll_steps=3"),
        ("data.window=2,3", "data.unroll_steps=2,3"),
        ("+data.window=3", "+data.unroll_steps=3"),
        ("++data.window=3", "++data.unroll_steps=3"),
        ("~data.window", "~data.unroll_steps"),
        ("stage.diffusion.data.window=2", "stage.diffusion.data.unroll_steps=2"),
        ("data.directory=a=b/data.window", "data.cache_dir=a=b/data.window"),
        ("data.directory=", "data.cache_dir="),
        ("model=small", "model=mixer_small"),
        ("model=small,fno,tiny", "model=mixer_small,fno,mixer_tiny"),
        ("model.width=8", "model.hidden_dim=8"),
    ],
)
def test_older_overrides_are_renamed_with_one_warning_each(model_rows, word, expected):
    words, warnings = rename_arguments(["-m", word, "seed=1"])
    assert words == ["-m", expected, "seed=1"]
    assert len(warnings) == 1


def test_warning_names_the_older_and_the_new_name(model_rows):
    _, warnings = rename_arguments(["+data.window=3", "model=small"])
    assert "`data.window` is now `data.unroll_steps`" in warnings[0]
    assert "`model=small` is now `model=mixer_small`" in warnings[1]


@pytest.mark.parametrize(
    "word",
    ["data.unroll_steps=3", "--cfg", "job", "name=data.window", "-cn=data.window", "stage=all"],
)
def test_other_words_of_the_command_are_left_alone(model_rows, word):
    assert rename_arguments([word]) == ([word], [])


def test_renamed_key_may_depend_on_the_model(model_rows):
    words, _ = rename_arguments(["model.width=8", "model=fno"])
    assert words == ["model.channels=8", "model=fno"]
    recorded = {"model.architecture": "fno", "model.width": 8}
    assert rename_flat(recorded) == {"model.architecture": "fno", "model.channels": 8}


# ---------------------------------------------------------------- a user's yaml


def compose_with(tmp_path, content, *overrides):
    """The configuration with a user's own experiment file, as ``ups.run`` gets it."""
    folder = tmp_path / "mine/experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\n" + yaml.safe_dump(content))
    path = f"hydra.searchpath=[file://{tmp_path}/mine]"
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", [path, "experiment=mine", *overrides])


MINE = {
    "data": {"window": 7, "shift": False, "points": 32},
    "stage": {"diffusion": {"data": {"window": 2}}},
    "ttc": {"jump": 0.5},
}


def test_yaml_of_the_previous_release_sets_the_new_keys(tmp_path):
    cfg = compose_with(tmp_path, MINE)
    warnings = rename_config(cfg)
    assert len(warnings) == 5
    assert any("`stage.diffusion.data.window` is now" in text for text in warnings)
    assert (cfg.data.unroll_steps, cfg.data.num_points) == (7, 32)
    assert cfg.data.augmentation == {"translate": False, "reflect": True, "max_time_rescale": 3}
    assert cfg.stage.diffusion.data.unroll_steps == 2
    assert cfg.ttc.shock_threshold == 0.5
    assert not {"window", "shift", "points"} & set(cfg.data)
    assert OmegaConf.is_struct(cfg)
    assert rename_config(cfg) == []


def test_command_line_takes_precedence_over_a_yaml_of_the_previous_release(tmp_path):
    given = "data.unroll_steps=5"
    cfg = compose_with(tmp_path, MINE, given)
    rename_config(cfg, [given])
    assert cfg.data.unroll_steps == 5
    assert "window" not in cfg.data


def test_interpolations_and_nested_mappings_are_moved_as_they_are(model_rows):
    network = {"mean": {"width": 8, "depth": 2}}
    cfg = OmegaConf.create(
        {
            "seed": 4,
            "data": {"order_seed": "${seed}"},
            "stage": {"diffusion": {"module": {"corrector": network}}},
        }
    )
    rename_config(cfg)
    assert OmegaConf.to_container(cfg.data) == {"sampler_seed": "${seed}"}
    assert cfg.data.sampler_seed == 4
    assert cfg.stage.diffusion.module.corrector == {"net": {"dim": 8, "depth": 2}}


# ---------------------------------------------------------------- older run directories


def older(settings):
    """Settings under the names of the previous release, written out for data and ttc."""
    names = {
        "data.unroll_steps": "data.window",
        "data.num_train": "data.train",
        "data.augmentation.translate": "data.shift",
        "data.augmentation.reflect": "data.mirror",
        "data.augmentation.max_time_rescale": "data.stretch",
        "data.fixed_windows": "data.repeat",
        "data.start_time_bias": "data.early",
        "data.sampler_seed": "data.order_seed",
    }
    return {names.get(key, key): value for key, value in settings.items()}


def test_recorded_settings_of_the_previous_release_compare_equal(composed, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    weights = stages.weights_path(tmp_path, "operator", raw=True)
    own = stages.stage_config(composed, "operator")
    stages.record_stage_start(own, tmp_path, "operator")
    weights.touch()
    path = weights.with_suffix(".json")
    record = json.loads(path.read_text())
    record["settings"] = older(record["settings"])
    assert "data.window" in record["settings"]
    path.write_text(json.dumps(record))
    cfg = composed.copy()
    cfg.stage.train = ["operator"]
    stages.check_settings_unchanged(cfg, tmp_path)
    assert stages.pending_stages(cfg, tmp_path) == []
    record["settings"]["data.window"] = 9
    path.write_text(json.dumps(record))
    with pytest.raises(Exception, match=r"data\.unroll_steps: 9 -> 3"):
        stages.check_settings_unchanged(cfg, tmp_path)


def test_recorded_values_are_renamed_in_records_of_the_previous_release_only(model_rows):
    recorded = {"model.architecture": "upt", "model.width": 8}
    assert rename_flat(recorded) == {"model.architecture": "mixer", "model.hidden_dim": 8}
    recorded = {"model.architecture": "upt", "model.hidden_dim": 8}
    assert rename_flat(recorded) == recorded


def test_config_of_an_older_run_is_read_under_the_new_names(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("data: {window: 3, shift: true, nu: 0.1}\nttc: {jump: 0.2}\n")
    expected = {
        "data": {"unroll_steps": 3, "augmentation": {"translate": True}, "nu": 0.1},
        "ttc": {"shock_threshold": 0.2},
    }
    assert load_config(path) == expected


def test_metrics_of_older_files_are_renamed_on_read():
    settings = {"model": "upt-small", "mode": "latent", "correct": "none", "ttc": False}
    older = {name: i for i, name in enumerate(RENAMED_METRICS)}
    row = Row.from_dict({**settings, **older, "nrmse": 0.5})
    assert row.metrics == {new: i for i, new in enumerate(RENAMED_METRICS.values())} | {
        "nrmse": 0.5
    }
    assert row["mass_drift"] == 0


def test_rows_of_the_correctors_networks_apply_part_by_part():
    new = "stage.diffusion.module.corrector.mean_network.hidden_dim"
    assert rename_key("stage.diffusion.module.corrector.mean.width") == new
