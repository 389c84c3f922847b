"""The constructor is the schema: checks, words, defaults, and the page that is made of them."""

import inspect
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from annotated_types import Gt, Le
from conftest import line_spec, make_simulator
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from ups.callbacks import InverseLossFrequency, ResumeCheckpoint
from ups.core.errors import UpsError
from ups.core.schema import (
    Fraction,
    NonEmpty,
    NonNegativeInt,
    OneOrMore,
    PathStr,
    PositiveFloat,
    PositiveInt,
    SettingsOf,
    Without,
    arguments,
    validate,
    words,
)
from ups.core.settings import quoted
from ups.datamodules import BurgersDataModule
from ups.models import build
from ups.modules import OperatorModule
from ups.run import CONF
from ups.runs.config import validate_config
from ups.runs.settings import SECTIONS

ROOT = Path(__file__).parents[1]


class Inner:
    def __init__(self, size: int, depth: PositiveInt = 1) -> None: ...


class Base:
    def __init__(
        self,
        first: object,
        *,
        kind: str,
        steps: PositiveInt = 1,
        rate: PositiveFloat | None = None,
        inner: Annotated[Mapping[str, Any] | None, SettingsOf(Inner, ("size",))] = None,
        pair: tuple[Fraction, Fraction] = (0, 1),
        flag: bool = False,
    ) -> None: ...


class Derived(Base):
    def __init__(
        self,
        first: object,
        values: OneOrMore[PositiveInt] = 1,
        **options: Annotated[Any, Without(("kind",))],
    ) -> None: ...


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (PositiveInt, "an integer >= 1"),
        (PositiveFloat | None, "a number > 0, or null"),
        (bool, "true or false"),
        (Literal["muon", "adamw"], "one of muon, adamw"),
        (OneOrMore[PositiveInt], "an integer >= 1, or a list of such"),
        (OneOrMore[PositiveFloat] | None, "a number > 0, or a list of such, or null"),
        (NonEmpty[NonNegativeInt], "a non-empty list of integers >= 0"),
        (tuple[Fraction, Fraction], "a list of 2 numbers >= 0 and <= 1"),
        (Annotated[float, Gt(0), Le(1000)], "a number > 0 and <= 1000"),
        (PathStr | None, "a path, or null"),
        (Mapping[str, Any], "a mapping"),
        (list[Literal["a", "b"]], "a list of one of a, b"),
    ],
)
def test_words_follow_from_annotation(annotation, expected):
    assert words(annotation) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "`x.steps` must be an integer >= 1, got 0."),
        ({"steps": True}, "`x.steps` must be an integer >= 1, got true."),
        ({"steps": 1.0}, "`x.steps` must be an integer >= 1, got 1.0."),
        ({"steps": "1"}, "`x.steps` must be an integer >= 1, got '1'."),
        ({"steps": 2**41}, f"`x.steps` must be an integer >= 1, and at most {2**40}, got {2**41}."),
        ({"rate": float("nan")}, "`x.rate` must be a number > 0, or null, got nan."),
        ({"rate": float("inf")}, "`x.rate` must be a number > 0, or null, got inf."),
        ({"flag": None}, "`x.flag` must be true or false, got null."),
        ({"pair": [0, 2]}, "`x.pair` must be a list of 2 numbers >= 0 and <= 1, got [0, 2]."),
        ({"inner": {"depth": 0}}, "`x.inner.depth` must be an integer >= 1, got 0."),
        ({"inner": {"size": 1}}, "`x.inner.size` is not a key of test_schema.Inner; the keys"),
        ({"inner": 3}, "`x.inner` must be a mapping, or null, got 3."),
        ({"values": []}, "`x.values` must be an integer >= 1, or a list of such, got []."),
        ({"stepps": 1}, "`x.stepps` is not a key of test_schema.Derived; did you mean `steps`?"),
        ({"kind": "a"}, "`x.kind` is not a key of test_schema.Derived"),
        ({"first": 1}, "`x.first` is not a key of test_schema.Derived"),
    ],
)
def test_validate_refuses_with_one_sentence(values, message):
    with pytest.raises(UpsError) as error:
        validate(Derived, values, "x", skip=1)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_validate_accepts_what_fits():
    values = {"steps": 2, "rate": 1, "pair": [0, 0.5], "values": [1, 2], "inner": {"depth": 2}}
    validate(Derived, values, "x", skip=1)
    validate(Base, {"kind": "a"}, "x", skip=1)
    validate(Base, {"inner": {"_target_": "some.Class", "anything": 1}, "kind": "a"}, "x", skip=1)


def test_validate_asks_for_required_arguments():
    with pytest.raises(UpsError, match=r"^`x\.kind` must be given\.$"):
        validate(Base, {}, "x", skip=1)
    validate(Base, {}, "x", skip=1, required="none")


def test_validate_checks_only_names_without_annotations():
    class Own:
        def __init__(self, width=3, later: "no_such_name" = 1):  # noqa: F821
            pass

    class Open:
        def __init__(self, **anything):
            pass

    validate(Own, {"width": "wide", "later": None}, "x")
    with pytest.raises(UpsError, match="did you mean `width`"):
        validate(Own, {"widht": 1}, "x")
    validate(Open, {"whatever": 1}, "x")


@pytest.fixture(scope="module")
def config():
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", ["stage=all"])


# what a constructor can't know: a reference to another key, or what only the files of conf decide
EXCEPTIONS = {
    "data.start_time_bias",  # of TrajectoryDataModule; BurgersDataModule has the default of conf
    "data.nu",
    "data.augmentation",  # null stands for the defaults
    "stage.diffusion.module.latent_cache_dtype",  # needs data.fixed_windows, which conf sets
    "stage.diffusion.module.corrector.denoiser.hidden_dim",  # smaller than mean_network
    "stage.diffusion.module.corrector.denoiser.depth",
    "callbacks.epoch_log",
    *("callbacks.finite_loss", "callbacks.learning_rate", "callbacks.last"),
    *("callbacks.last.save_on_train_epoch_end", "callbacks.last.enable_version_counter"),
    "callbacks.leaderboard",
    "expect",
}


def test_defaults_of_conf_equal_those_of_constructors(config):
    checked = 0
    for section in SECTIONS:
        group = OmegaConf.select(config, section.key) if section.key else config
        for name, argument in section.named.items():
            key = section.full(name)
            if key in EXCEPTIONS or argument.is_required or name not in group:
                continue
            raw = OmegaConf.to_container(group, resolve=False)[name]
            is_reference = isinstance(raw, str) and "${" in raw
            if is_reference or argument.default is inspect.Parameter.empty:
                continue
            default = argument.default
            default = list(default) if isinstance(default, tuple) else default
            assert raw == default, key
            checked += 1
    assert checked > 80


def test_burgers_defaults_equal_those_of_conf(config):
    from ups.datamodules.burgers import DEFAULT_NU, BurgersDataModule

    named = arguments(BurgersDataModule).named
    for name in ("start_time_bias", "path"):
        assert named[name].default == config.data[name]
    assert config.data.nu == DEFAULT_NU


def test_settings_page_and_help_are_up_to_date():
    command = [sys.executable, "docs/settings_tables.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def simulator():
    return make_simulator()


# a class called from Python, the override of the command line, and the sentence of both
CALLS = [
    (lambda: OperatorModule(simulator(), lr=-1.0), "stage.operator.module.lr=-1.0"),
    (lambda: OperatorModule(simulator(), optimizer="sgd"), "stage.operator.module.optimizer=sgd"),
    (lambda: OperatorModule(simulator(), lambda_inv_enc=-1), "lambda_inv=-1"),
    (
        lambda: OperatorModule(simulator(), betas=(0.9, 2.0)),
        "stage.operator.module.betas=[0.9,2.0]",
    ),
    (lambda: BurgersDataModule(batch_size=0), "data.batch_size=0"),
    (lambda: BurgersDataModule(nu=-1.0), "data.nu=-1.0"),
    (lambda: BurgersDataModule(num_workers=-1), "data.num_workers=-1"),
    (
        lambda: BurgersDataModule(augmentation={"max_time_rescale": 0}),
        "data.augmentation.max_time_rescale=0",
    ),
    (lambda: InverseLossFrequency(every=0), "loss.inverse_loss_frequency=0"),
    (lambda: ResumeCheckpoint(every_n_train_steps=0), "callbacks.last.every_n_train_steps=0"),
    (lambda: build({"architecture": "no"}, line_spec()), "model.architecture=no"),
    (
        lambda: build({"architecture": "memory_upt", "num_tokens": 0}, line_spec()),
        "model.num_tokens=0",
    ),
]


@pytest.mark.parametrize(("call", "override"), CALLS, ids=[override for _, override in CALLS])
def test_classes_refuse_what_the_command_line_refuses(call, override):
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", [override])
    with pytest.raises(UpsError) as from_command_line:
        validate_config(cfg)
    with pytest.raises(UpsError) as from_python:
        call()
    # the same but for the key, which is the argument's name in Python
    rules = [str(error.value).partition("` ")[2] for error in (from_command_line, from_python)]
    assert rules[0] == rules[1]
    assert rules[0].startswith("must be ")


def test_classes_take_the_values_of_numpy_and_paths(tmp_path):
    data = BurgersDataModule(
        nu=np.array([0.001, 0.01]).tolist(), batch_size=np.int64(4), cache_dir=tmp_path
    )
    assert data.training_parameters == [[0.001], [0.01]]
    module = OperatorModule(simulator(), lr=np.float32(1e-3), betas=[0.9, 0.95])
    assert module.hparams.lr == np.float32(1e-3)


@pytest.mark.parametrize(
    "text",
    ["burgers", "1", "null", "a b", "a (b), c=d {e}", "it's", "[1,2]", "~/x", "é", "0x1", ""],
)
def test_quoted_text_stays_a_text_in_an_override(text):
    (override,) = OverridesParser.create().parse_overrides([f"name={quoted(text)}"])
    assert override.value() == text
