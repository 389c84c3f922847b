"""A thousand random overrides: each is accepted, and then builds, or is refused with a sentence."""

import copy
import random
from functools import cache

import pytest
from conftest import TINY, line_spec
from helpers.commands import call
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ups.core.errors import UpsError, to_user_error
from ups.run import CONF, is_raised_by_hydra
from ups.runs.config import known_keys, validate_config
from ups.runs.stages import stage_config
from ups.runs.training import build_simulator, make_callbacks

GROUPS = ("stage", "loss", "data", "model", "trainer", "callbacks", "ttc", "logger")
VALUES = (
    *("0", "1", "2", "3", "8", "64", "-1", "0.5", "1.5", "-0.5", "1e-3", "1e9", "1e400", ".nan"),
    *(".inf", "99999999999999999999", "true", "false", "null", "text", "''", "'1'", "[]", "[1,2]"),
    *("[0.5,0.5]", "[1,text]", "[[1]]", "{}", "{a:1}", "a/b", "../..", "???", "${seed}", "${no}"),
    *("auto", "muon", "adamw", "float16", "heun", "00:00:10:00", "os.path", "torch.nn.Linear"),
)
# keys with a rule that is not in the annotations, and values that conflict
CONFLICTS = (
    ("data.num_points=48",),
    ("data.unroll_steps=11",),
    ("data=pdebench",),
    ("data=pdebench", "data.path=menu2.hdf5"),
    ("data=pdebench", "data.path=[a.hdf5,b.hdf5]", "data.nu=[0.1]"),
    ("data=pdebench", "data.path=a_Nu0.1.hdf5", "data.equation=null", "stage=all"),
    ("data=pdebench", "data.path=a_Nu0.1.hdf5", "data.equation=no.such"),
    ("trainer.check_val_every_n_epoch=9",),
    ("stage.diffusion.data.fixed_windows=false", "stage=all"),
    ("+stage.operator.trainer.max_time=00:00:00:10",),
    ("+data.equation=advection",),
    ("model.num_tokens=7",),
    ("model.patch_overlap=2",),
)


def misspelt(key, rng):
    """``key`` with one letter dropped, doubled or replaced."""
    place = rng.randrange(len(key))
    return key[:place] + rng.choice(("", 2 * key[place], "q")) + key[place + 1 :]


def draw(rng):
    """The overrides of one case."""
    kind = rng.random()
    if kind < 0.1:
        return list(rng.choice(CONFLICTS))
    keys = [rng.choice(known_keys()) for _ in range(rng.choice((1, 1, 1, 2)))]
    if kind < 0.25:
        keys = [misspelt(key, rng) for key in keys]
    stage = [f"stage={rng.choice(('operator', 'all', 'evaluate'))}"] if kind > 0.8 else []
    marks = ("", "", "++", "+", "~")
    overrides = [f"{rng.choice(marks)}{key}={rng.choice(VALUES)}" for key in keys]
    return [*stage, *(o.partition("=")[0] if o.startswith("~") else o for o in overrides)]


def build(cfg):
    """Make the data modules, the model, the stages' modules and the callbacks, without training."""
    make_callbacks(cfg)
    for stage in cfg.stage.train:
        data = instantiate(stage_config(cfg, stage).data, _convert_="all")
        data.spec = line_spec(cfg.data.num_points)
        data.input_sizes = {}
        simulator = build_simulator(cfg, data)
        if stage == "consistency":
            instantiate(cfg.stage.diffusion.module, simulator, _convert_="all")
        instantiate(cfg.stage[stage].module, simulator, _convert_="all")


@cache
def composed(overrides):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", [*TINY, *overrides])


def composed_with(overrides):
    """The configuration of ``overrides``.

    Those of groups choose files, which takes long. The others are applied to a copy, as Hydra
    applies them after it has read the files.
    """
    choices = tuple(o for o in overrides if name_of(o) in GROUPS)
    cfg = copy.deepcopy(composed(choices))
    rest = [o for o in overrides if o not in choices]
    parsed = OverridesParser.create().parse_overrides(rest)
    ConfigLoaderImpl._apply_overrides_to_config(parsed, cfg)
    return cfg


def name_of(override):
    """The key of an override."""
    return override.lstrip("+~").partition("=")[0]


def outcome(overrides):
    """ "accepted", or the sentence with which the overrides are refused."""
    try:
        cfg = composed_with(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        return str(error)
    except (ValueError, TypeError, AttributeError) as error:
        if not is_raised_by_hydra(error):
            raise
        return str(error)
    finally:
        GlobalHydra.instance().clear()
    before = OmegaConf.to_yaml(cfg)
    try:
        validate_config(cfg)
    except UpsError as error:
        assert "\n" not in str(error)
        assert str(error).endswith((".", "?")), error
        assert OmegaConf.to_yaml(cfg) == before
        return str(error)
    try:
        build(cfg)
    except UpsError as error:  # sizes that do not fit the data's grid
        assert "\n" not in str(error)
        return str(error)
    return "accepted"


@pytest.mark.parametrize(
    ("seed", "num_cases"), [(0, 100), pytest.param(1, 1000, marks=pytest.mark.slow)]
)
def test_random_overrides_are_accepted_or_refused_with_a_sentence(
    tmp_path, monkeypatch, seed, num_cases
):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(seed)
    found = []
    for _ in range(num_cases):
        overrides = draw(rng)
        try:
            found.append(outcome(overrides))
        except Exception as error:
            raise AssertionError(f"{overrides}: {type(error).__name__}: {error}") from error
    assert found.count("accepted") > num_cases / 20
    assert sum("must be" in text for text in found) > num_cases / 5
    assert sum("is not a key" in text for text in found) > num_cases / 100
    assert not list(tmp_path.iterdir())


@pytest.mark.integration
@pytest.mark.slow
def test_random_overrides_end_command_without_traceback(tmp_path):
    rng = random.Random(1)
    refused = 0
    while refused < 10:
        overrides = draw(rng)
        if outcome(overrides) == "accepted":
            continue
        refused += 1
        done = call("ups.run", *TINY, *overrides, cwd=tmp_path, timeout=300)
        text = done.stdout + done.stderr
        assert done.returncode == 2, (overrides, text)
        assert text.strip()
        assert "Traceback" not in text, (overrides, text)


@pytest.mark.slow
def test_random_accepted_overrides_pass_preflight(ups_run, tmp_path):
    rng = random.Random(2)
    accepted = 0
    while accepted < 3:
        overrides = [o for o in draw(rng) if not o.startswith("stage=")]
        if not overrides or outcome(["stage=all", *overrides]) != "accepted":
            continue
        accepted += 1
        done = ups_run(*TINY, *overrides, "stage=preflight", f"name=p{accepted}", check=False)
        text = done.stdout + done.stderr
        assert done.returncode in (0, 2, 3), (overrides, text)
        assert "Traceback" not in text, (overrides, text)


def test_a_key_that_was_taken_away_is_asked_for_by_its_name():
    cfg = OmegaConf.create({"ttc": {"num_candidates": 1}})
    OmegaConf.set_struct(cfg, True)
    for read in (lambda: cfg.ttc.enabled, lambda: cfg["ttc"]["enabled"]):
        with pytest.raises(OmegaConfBaseException) as raised:
            read()
        assert str(to_user_error(raised.value)) == "`ttc.enabled` must be given."
