"""The search for each model's settings, benchmarks/search.py, with trials that train nothing."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCORES = {"adamw": 0.4, "muon": 0.2}


@pytest.fixture
def search(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    pytest.importorskip("runs")
    import runs
    import search

    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    monkeypatch.setattr(search, "speed", lambda cfg: 10.0)
    return search


def two_models(search, **changes):
    return search.Search(
        data="burgers",
        result="found",
        models={"memory_upt": [], "upt": []},
        losses=("loss.squared=false",),
        rates=(0.001, 0.01),
        rate_seconds=60,
        **changes,
    )


def trained(monkeypatch, search, tried):
    """Trials whose score is of optimizer and rate; the larger rate is ahead in short ones only."""

    def train_side_by_side(configs):
        for cfg in configs:
            module = cfg.stage.operator.module
            ahead = 0.1 if module.lr == 0.01 else 0.0
            tried.append(cfg.name)
            yield SCORES[module.optimizer] + (ahead if "finals" in cfg.name else -ahead)

    monkeypatch.setattr(search, "train_side_by_side", train_side_by_side)


def test_two_best_of_a_search_are_tried_again_and_the_better_one_is_taken(monkeypatch, search):
    tried = []
    trained(monkeypatch, search, tried)
    once = two_models(search)
    table = search.find_settings(once)
    assert len(tried) == 2 * 4
    muon = "loss.squared=false stage.operator.module.optimizer=muon stage.operator.module.lr="
    assert " ".join(table["upt"]["settings"]) == f"{muon}0.01"
    again = two_models(search, finals_seconds=120)
    table = search.find_settings(again)
    assert tried[8:] == [
        f"{model}-finals-false-muon-{lr}" for model in again.models for lr in (0.01, 0.001)
    ]
    assert " ".join(table["upt"]["settings"]) == f"{muon}0.001"
    assert search.find_settings(again) == table
    assert len(tried) == 12  # what is in the JSON is not tried again


@pytest.mark.parametrize("steps", [62.5, 200, 700, 1800, 9000])
def test_trial_has_about_its_number_of_steps(search, steps):
    cfg = search.config(two_models(search), "memory_upt")
    settings = dict(setting.split("=") for setting in search.length(cfg, steps))
    epochs = int(settings["trainer.max_epochs"])
    windows = epochs * int(settings["data.samples_per_trajectory"]) * cfg.data.num_train
    assert windows / cfg.data.batch_size == pytest.approx(steps, rel=0.1)
    assert 1 <= epochs <= 13


def test_rates_are_lowered_while_the_error_of_whole_trainings_falls(monkeypatch, search):
    import navier_stokes

    errors = {"0.009": 0.3, "0.003": 0.2, "0.001": 0.25, "0.0003": 0.1}
    trained = []

    def side_by_side(commands):
        for command in commands:
            (name,) = (word.partition("=")[2] for word in command if word.startswith("name="))
            trained.append(name)
            yield

    def validation_score(folder):
        assert folder.name == trained[-1]
        return errors[folder.name.split("-")[-2]]

    monkeypatch.setattr(navier_stokes, "side_by_side", side_by_side)
    monkeypatch.setattr(navier_stokes, "validation_score", validation_score)

    def found(rate):
        words = ("loss.squared=false", "a.optimizer=muon", f"a.lr={rate}")
        return {"steps_per_second": 10.0, "settings": list(words)}

    table = {"memory_upt": found(0.009), "fno": found(0.0003)}
    navier_stokes.settle_rates(table)
    assert [table[model]["settings"][-1] for model in table] == ["a.lr=0.003", "a.lr=0.0003"]
    assert trained == [
        "navier_stokes_memory_upt-muon-0.009-0",
        "navier_stokes_memory_upt-muon-0.003-0",
        "navier_stokes_fno-muon-0.0003-0",  # there is no lower one
        "navier_stokes_memory_upt-muon-0.001-0",
    ]
    # the search itself chooses as before when it is called again, the rest is known
    navier_stokes.settle_rates({**table, "memory_upt": {**table["memory_upt"], **found(0.009)}})
    assert len(trained) == 4
