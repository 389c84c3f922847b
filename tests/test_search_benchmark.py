"""The search for each model's settings, benchmarks/accuracy.py, with trials that train nothing."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCORES = {"adamw": 0.4, "muon": 0.2}


@pytest.fixture
def accuracy(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    pytest.importorskip("runs")
    import accuracy
    import runs

    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    monkeypatch.setattr(accuracy, "speed", lambda cfg: 10.0)
    return accuracy


def study(accuracy, **changes):
    return accuracy.STUDIES["burgers"]._replace(
        result="found", models={"memory_upt": [], "upt": []}, rates=(0.001, 0.01), **changes
    )


def trained(monkeypatch, accuracy, tried):
    """Trials whose score is of optimizer and rate; the larger rate is ahead in short ones only."""

    def train_side_by_side(configs):
        for cfg in configs:
            module = cfg.stage.operator.module
            ahead = 0.1 if module.lr == 0.01 else 0.0
            tried.append(cfg.name)
            yield SCORES[module.optimizer] + (ahead if "finals" in cfg.name else -ahead)

    monkeypatch.setattr(accuracy, "train_side_by_side", train_side_by_side)


def test_two_best_of_a_search_are_tried_again_and_the_better_one_is_taken(monkeypatch, accuracy):
    tried = []
    trained(monkeypatch, accuracy, tried)
    losses = ("loss.squared=false",)
    once = study(accuracy, losses=losses, finals_seconds=None)
    table = accuracy.find_settings(once)
    assert len(tried) == 2 * 4
    muon = "loss.squared=false stage.operator.module.optimizer=muon stage.operator.module.lr="
    assert " ".join(table["upt"]["settings"]) == f"{muon}0.01"
    again = study(accuracy, losses=losses, finals_seconds=120)
    table = accuracy.find_settings(again)
    assert tried[8:] == [
        f"{model}-finals-false-muon-{lr}" for model in again.models for lr in (0.01, 0.001)
    ]
    assert " ".join(table["upt"]["settings"]) == f"{muon}0.001"
    assert accuracy.find_settings(again) == table
    assert len(tried) == 12  # what is in the JSON is not tried again


@pytest.mark.parametrize("steps", [62.5, 200, 700, 1800, 9000])
def test_trial_has_about_its_number_of_steps(accuracy, steps):
    cfg = accuracy.config(accuracy.STUDIES["burgers"], "memory_upt")
    settings = dict(setting.split("=") for setting in accuracy.length(cfg, steps))
    epochs = int(settings["trainer.max_epochs"])
    windows = epochs * int(settings["data.samples_per_trajectory"]) * cfg.data.num_train
    assert windows / cfg.data.batch_size == pytest.approx(steps, rel=0.1)
    assert 1 <= epochs <= 13
