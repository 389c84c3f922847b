"""Checkpoints, run directories and models of earlier versions load, and give the same numbers."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from conftest import SPEC, line_spec
from omegaconf import OmegaConf

import ups
from ups.callbacks import AtomicCheckpointIO
from ups.core.errors import UpsError
from ups.models import MixerUPT, build
from ups.models.upt import UPT
from ups.physics import burgers
from ups.runs.training import build_simulator
from ups.simulation import model_folder
from ups.simulation.checkpoint import from_config
from ups.simulation.converter import convert, convert_model_spec
from ups.simulation.simulator import Simulator

POINTS = 32
SPECS = {
    "mixer": {**SPEC, "mlp_ratio": 1.5, "patch_overlap": 3, "latent_rms_limit": 2.0},
    "upt": {
        "num_patches": 8,
        "num_tokens": 4,
        "hidden_dim": 16,
        "num_heads": 2,
        "encoder_depth": 1,
        "approximator_depth": 2,
        "decoder_depth": 1,
    },
    "fno": {"modes": 8, "hidden_channels": 8, "num_layers": 2, "conserve_mean": True},
    "unet": {"hidden_channels": 4, "num_levels": 2, "conserve_mean": False},
    "resnet": {"hidden_channels": 8, "num_blocks": 2, "dilations": [1, 2], "conserve_mean": True},
}
NETS = {
    "mean_network": {"hidden_dim": 8, "mlp_ratio": 1.5, "depth": 2, "dilations": [1, 2]},
    "denoiser": {"hidden_dim": 12, "depth": 1},
    "num_steps": 2,
}
SCALE = float(torch.tensor(0.6))  # as earlier versions kept it, in float32
# today's name -> the name in earlier versions
OLD_ARCHITECTURES = {"mixer": "upt", "upt": "upt_absolute"}
OLD = {
    "num_tokens": "tokens",
    "hidden_dim": "width",
    "mlp_ratio": "hidden",
    "dilations": "distances",
    "encoder_depth": "encoder",
    "approximator_depth": "approximator",
    "decoder_depth": "decoder",
    "patch_overlap": "patch",
    "latent_rms_limit": "limit",
    "conserve_mean": "conserve",
    "num_patches": "patches",
    "num_heads": "heads",
    "hidden_channels": "width",
    "num_layers": "layers",
    "num_levels": "levels",
    "num_blocks": "blocks",
    "num_dynamic_channels": "free",
    "mean_network": "mean",
    "denoiser": "noise",
    "num_steps": "steps",
}
OLD_RESNET = {key: key for key in ("dilations",)}  # the ResNet's name for them did not change


def renamed_back(spec, exceptions=()):
    """Arguments under the names of earlier versions, those of networks included."""
    return {
        key if key in exceptions else OLD.get(key, key): renamed_back(value)
        if isinstance(value, dict)
        else value
        for key, value in spec.items()
    }


def with_the_old_field(simulator):
    """The configuration and weights of a simulator as before there was a description of fields."""
    config, spec = simulator.config(), simulator.spec
    old = {
        "model": config["model"],
        "x": simulator.x.tolist(),
        "dt": spec.dt,
        "length": spec.grid.extent[0],
        "equation": simulator.equation_name,
        "nus": [row[0] for row in simulator.training_parameters],
        "correctors": {
            name: {key: value for key, value in corrector.items() if key != "num_parameters"}
            for name, corrector in config["correctors"].items()
        },
    }
    state = {"x": simulator.x, "scale": torch.tensor(SCALE), **simulator.state_dict()}
    return old, state


def in_the_old_form(simulator):
    """The configuration and weights of a simulator as the earliest versions wrote them."""
    config, state = with_the_old_field(simulator)
    architecture = config["model"]["architecture"]
    exceptions = OLD_RESNET if architecture == "resnet" else ()
    model = renamed_back(config["model"], exceptions)
    model["architecture"] = OLD_ARCHITECTURES.get(architecture, architecture)
    correctors = {name: renamed_back(spec) for name, spec in config["correctors"].items()}
    state = {
        re.sub(r"^(correctors\.\w+)\.denoiser\.", r"\1.noise_network.", key): value
        for key, value in state.items()
    }
    return {**config, "model": model, "correctors": correctors}, state


def trained(architecture, correctors=()):
    """A simulator whose networks all say something."""
    torch.manual_seed(0)
    spec = {"architecture": architecture, "name": "mine", **SPECS[architecture]}
    spec["architecture"] = architecture
    field = line_spec(POINTS, std=(SCALE,))
    simulator = Simulator(build(spec, field), field, "burgers", spec, [[1e-3], [2e-3]])
    for name in correctors:
        sampler = {"diffusion": "heun"}.get(name, name)
        simulator.add_corrector(name, {**NETS, "sampler": sampler})
    with torch.no_grad():
        for name, parameter in simulator.named_parameters():
            if name.endswith("tokens_out"):
                parameter.normal_(std=0.3)
    return simulator.eval()


def rollouts(simulator):
    u0 = burgers.initial_conditions(2, simulator.x, seed=0)
    results = [simulator.rollout(u0, 3, nu=1e-3)]
    for name in simulator.correctors:
        torch.manual_seed(1)
        results.append(simulator.rollout(u0, 3, nu=1e-3, correct=name, temperature=1.0))
    return torch.stack(results)


CASES = [(architecture, ()) for architecture in SPECS]
CASES += [("mixer", ("diffusion", "consistency")), ("resnet", ("diffusion",))]


@pytest.mark.parametrize(("architecture", "correctors"), CASES)
@pytest.mark.parametrize("form", [in_the_old_form, with_the_old_field])
def test_old_checkpoint_gives_the_same_rollouts(architecture, correctors, form, tmp_path):
    simulator = trained(architecture, correctors)
    config, state = form(simulator)
    if form is in_the_old_form:
        assert config["model"]["architecture"] == OLD_ARCHITECTURES.get(architecture, architecture)
        assert not correctors or any(".noise_network." in key for key in state)
    path = tmp_path / "operator_ema.ckpt"
    keys = {f"simulator.{key}": value for key, value in state.items()}
    torch.save({"simulator": config, "state_dict": keys}, path)
    loaded = ups.load(path)
    assert loaded.spec == simulator.spec
    assert type(loaded.model) is type(simulator.model)
    assert loaded.config() == simulator.config()
    assert torch.equal(rollouts(loaded), rollouts(simulator))


@pytest.mark.parametrize(("architecture", "correctors"), CASES)
def test_new_description_and_weights_pass_unchanged(architecture, correctors):
    simulator = trained(architecture, correctors)
    config, state = convert(simulator.config(), simulator.state_dict())
    assert config == simulator.config()
    assert list(state) == list(simulator.state_dict())


@pytest.mark.parametrize(("old", "now"), [("upt", MixerUPT), ("upt_absolute", UPT)])
def test_old_description_without_arguments_is_recognized_by_its_weights(old, now):
    torch.manual_seed(0)
    spec = line_spec(128, std=(SCALE,))
    simulator = Simulator(now(spec), spec, "burgers", {"architecture": old}).eval()
    loaded = from_config(*with_the_old_field(simulator), "here")
    assert type(loaded.model) is now
    assert torch.equal(rollouts(loaded), rollouts(simulator))


def test_new_upt_without_arguments_is_the_one_of_the_paper():
    assert convert_model_spec({"architecture": "upt"}) == {"architecture": "upt"}
    assert isinstance(build({"architecture": "upt"}, line_spec(64)), UPT)


def test_weights_of_a_custom_model_keep_their_names():
    state = {"model.corrector.noise_network.w": torch.zeros(1)}
    config = {"model": {"architecture": "mine.Own", "width": 3}, "spec": line_spec().to_dict()}
    _, converted = convert(config, state)
    assert list(converted) == list(state)
    spec = {"architecture": "mine.Own", "tokens": 3, "width": 5}
    assert convert_model_spec(spec) == spec


def test_resume_checkpoint_is_read_under_the_new_names(tmp_path):
    old = {
        "simulator.correctors.diffusion.noise_network.w": torch.ones(1),
        "corrector.noise_network.w": torch.ones(1),
        "simulator.model.noise_network.w": torch.ones(1),
    }
    torch.save({"state_dict": old, "current_model_state": old, "epoch": 2}, tmp_path / "last.ckpt")
    read = AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert read["epoch"] == 2
    for key in ("state_dict", "current_model_state"):
        assert list(read[key]) == [
            "simulator.correctors.diffusion.denoiser.w",
            "corrector.denoiser.w",
            "simulator.model.noise_network.w",
        ]


class Data:
    spec = line_spec(POINTS, std=(SCALE,))
    equation_name, training_parameters = "burgers", ((1e-3,), (2e-3,))

    @staticmethod
    def input_range(spec):
        return {}


def test_configuration_under_the_old_names_builds_the_same_model_with_a_warning(caplog):
    simulator = trained("mixer")
    old = in_the_old_form(simulator)[0]["model"]
    with caplog.at_level(logging.WARNING):
        built = build_simulator(OmegaConf.create({"model": old}), Data)
    assert built.config() == simulator.config()
    assert isinstance(built.model, MixerUPT)
    (record,) = caplog.records
    for words in ("'tokens': 8", "'num_tokens': 8", "'architecture': 'mixer'"):
        assert words in record.getMessage()
    caplog.clear()
    build_simulator(OmegaConf.create({"model": simulator.model_config}), Data)
    assert not caplog.records


def test_old_name_in_a_custom_file_overrides_the_default():
    spec = {"architecture": "mixer", "num_tokens": 64, "tokens": 16}
    assert convert_model_spec(spec) == {"architecture": "mixer", "num_tokens": 16}


def test_old_model_folder_keeps_the_grid_with_the_weights(tmp_path):
    """Its config.json has no positions: they are in model.safetensors."""
    simulator = trained("mixer", ("diffusion",))
    config, state = in_the_old_form(simulator)
    model_folder.write(tmp_path, {k: v for k, v in config.items() if k != "x"}, state, "")
    loaded = ups.load(tmp_path)
    assert loaded.config() == simulator.config()
    assert torch.equal(rollouts(loaded), rollouts(simulator))


def test_old_field_is_a_scalar_on_a_periodic_line():
    config = {"model": {"architecture": "mine.Own"}, "x": [0.1, 0.6, 1.1], "length": 1.5}
    config |= {"dt": 0.1, "equation": "advection", "nus": [0.4, 2.0]}
    converted, state = convert(config, {"x": torch.zeros(3), "scale": torch.tensor(0.5)})
    assert state == {}
    assert converted["spec"] == {
        "grid": {
            "shape": (3,),
            "extent": (1.5,),
            "boundary": [["periodic", "periodic"]],
            "origin": (0.1,),
        },
        "channels": ("u",),
        "parameters": ("beta",),
        "dt": 0.1,
        "mean": (0.0,),
        "std": (0.5,),
        "conserves_mean": True,
        "time_unit": 0.05,
        "parameter_units": (),
        "is_homogeneous": True,
        "largest": (),
    }
    assert converted["training_parameters"] == [[0.4], [2.0]]
    del config["nus"]
    converted, _ = convert(config, {"x": torch.zeros(3), "scale": torch.tensor(0.5)})
    assert converted["training_parameters"] == []


def test_damaged_description_is_refused():
    simulator = trained("mixer")
    for model in (None, [], "upt"):
        with pytest.raises(UpsError, match="does not describe a simulator"):
            from_config({**simulator.config(), "model": model}, simulator.state_dict(), "here")


# the first model that came with UPS, and the root mean square over all frames and u[1, -1, ::64] of
# its rollouts, computed with the version before the names changed
EARLIER_MODEL = Path(__file__).parent / "earlier_model"
EARLIER = {
    "none": (0.508827211013, [-0.602867723, 0.201896489, -0.314004570, 0.393384457]),
    "diffusion": (0.508621330151, [-0.601989269, 0.202098057, -0.313796550, 0.393279493]),
    "consistency": (0.508619644820, [-0.601989865, 0.202099070, -0.313816458, 0.393293858]),
}


@pytest.mark.parametrize("correct", EARLIER)
def test_earlier_model_gives_the_numbers_of_the_earlier_version(correct):
    simulator = ups.load(EARLIER_MODEL)
    torch.manual_seed(0)
    u0 = burgers.initial_conditions(2, simulator.x, 0, as_published=False)
    torch.manual_seed(0)
    u = simulator.rollout(u0, 5, nu=1e-3, correct=correct)
    size, values = EARLIER[correct]
    assert u.double().square().mean().sqrt().item() == pytest.approx(size, rel=1e-5)
    assert u[1, -1, ::64].tolist() == pytest.approx(values, abs=1e-5)


def test_earlier_model_has_old_names_and_is_saved_under_the_new(tmp_path):
    assert "tokens" in json.loads((EARLIER_MODEL / "config.json").read_text())["model"]
    simulator = ups.load(EARLIER_MODEL)
    simulator.save(tmp_path / "again")
    saved = json.loads((tmp_path / "again/config.json").read_text())
    assert saved["model"]["num_tokens"] == 64
    assert saved["correctors"]["diffusion"]["denoiser"]["hidden_dim"] == 48
    again = ups.load(tmp_path / "again")
    u0 = burgers.initial_conditions(1, simulator.x, seed=0)
    assert torch.equal(again.rollout(u0, 2, nu=1e-3), simulator.rollout(u0, 2, nu=1e-3))


def test_old_number_of_fields_is_left_to_the_fields_description():
    old = {"architecture": "upt", "tokens": 8, "fields": 1}
    assert convert_model_spec(old) == {"architecture": "mixer", "num_tokens": 8}
    own = {"architecture": "mine.Model", "fields": 1}
    assert convert_model_spec(own) == own
