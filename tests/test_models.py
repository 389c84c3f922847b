"""The peers, and a model of one's own: the same protocol, the same symmetries, the same run."""

import json
import math

import pytest
import torch
from conftest import TINY

from ups.core.errors import UpsError
from ups.models import build

POINTS = 32
SPECS = {
    "fno": {"modes": 8, "width": 8, "layers": 2},
    "unet": {"width": 4, "levels": 2},
    "resnet": {"width": 8, "blocks": 2},
    "upt_absolute": {"patches": 8, "tokens": 4, "width": 16, "heads": 2},
}


def make(architecture):
    torch.manual_seed(0)
    return build({"architecture": architecture, **SPECS[architecture]}, POINTS)


def one_step(model, u, dt=0.05, nu=1e-3):
    return model.decode(
        model.step(model.encode(u), torch.full((len(u),), dt), torch.full((len(u),), nu))
    )


@pytest.mark.parametrize("architecture", SPECS)
def test_a_peer_keeps_the_protocol_and_hears_its_conditions(architecture):
    model, u = make(architecture), torch.randn(3, POINTS, 1)
    assert model.encode(u).shape == (3, model.tokens, model.width)
    plain = one_step(model, u)
    assert plain.shape == u.shape
    plain.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    if architecture == "upt_absolute":  # its modulation begins at zero
        torch.nn.init.normal_(model.approximator[0].modulation.weight)
        plain = one_step(model, u)
    assert not torch.allclose(plain, one_step(model, u, dt=0.1), atol=1e-6)
    assert not torch.allclose(plain, one_step(model, u, nu=1e-2), atol=1e-6)


@pytest.mark.parametrize(("architecture", "shift"), [("fno", 5), ("resnet", 5), ("unet", 4)])
def test_a_peer_on_the_field_moves_with_it_and_keeps_its_mean(architecture, shift):
    model, u = make(architecture), torch.randn(2, POINTS, 1)
    out = one_step(model, u)
    assert torch.allclose(one_step(model, u.roll(shift, 1)), out.roll(shift, 1), atol=1e-5)
    assert torch.allclose(out.mean(1), u.mean(1), atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"architecture": "resnett"},
            "allowed are upt, upt_absolute, fno, unet, resnet, or package.module.Class",
        ),
        ({"architecture": "no.such.Model"}, "No module named 'no'"),
        ({"architecture": "os.system"}, "a torch module"),
        ({"architecture": "unet", "levels": 6}, "multiple of 64"),
        ({"architecture": "resnet", "depth": 6}, "model.depth: resnet takes points, width"),
    ],
)
def test_an_unknown_model_is_refused_with_what_is_allowed(spec, words):
    with pytest.raises(UpsError, match=words):
        build(spec, POINTS)


@pytest.mark.parametrize(
    "architecture", ["fno", "upt_absolute"]
)  # complex weights; latent tokens and inverse losses
@pytest.mark.integration
def test_a_peer_trains_tests_and_loads_by_the_same_command(architecture, ups_run, tmp_path):
    size = [f"model.{key}={value}" for key, value in SPECS[architecture].items()]
    settings = [s for s in TINY if not s.startswith("model")]
    ups_run(
        f"model={architecture}", *size, *settings, "name=peer", "stage.operator.module.threads=1"
    )
    rows = json.loads((tmp_path / "outputs/peer/reports/eval_operator.json").read_text())["rows"]
    assert [(row["mode"], math.isfinite(row["nrmse"])) for row in rows[:2]] == [
        ("latent", True),
        ("physical", True),
    ]
    import ups

    assert ups.load(tmp_path / "outputs/peer").rollout(
        torch.randn(2, POINTS), 3, nu=1e-3
    ).shape == (2, 3, POINTS)


OWN = """
from torch import nn
from ups.models import GridModel

class Shallow(GridModel):
    def __init__(self, points, width=8):
        super().__init__(points)
        self.layers = nn.Sequential(
            nn.Conv1d(self.fields + self.inputs, width, 5, padding=2, padding_mode="circular"),
            nn.GELU(),
            nn.Conv1d(width, self.fields, 5, padding=2, padding_mode="circular"),
        )

    def forward(self, u):
        return self.layers(u)
"""


@pytest.mark.integration
def test_a_model_of_ones_own_joins_by_one_file_and_one_yaml(ups_run, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/shallow.yaml").write_text(
        "# @package _global_\n"
        "model: {name: shallow, architecture: mine.Shallow, width: 4}\n"
        "lambda_inv: 0\n"
    )
    settings = [s for s in TINY if not s.startswith("model")]
    ups_run("--config-dir", "conf", "model=shallow", *settings, "name=own")
    assert (
        json.loads((tmp_path / "outputs/own/reports/eval_operator.json").read_text())["rows"][0][
            "model"
        ]
        == "shallow"
    )
