"""The peers, and a model of one's own: the same protocol, the same symmetries, the same run."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import TINY, line_spec

import ups
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid, PointCloud
from ups.models import GridModel, build
from ups.modules import OperatorModule

POINTS = 32
SPECS = {
    "fno": {"modes": 8, "hidden_channels": 8, "num_layers": 2},
    "unet": {"hidden_channels": 4, "num_levels": 2},
    "resnet": {"hidden_channels": 8, "num_blocks": 2},
    "upt": {"num_patches": 8, "num_tokens": 4, "hidden_dim": 16, "num_heads": 2},
    "patch_stepper": {"num_tokens": 8, "hidden_channels": 8, "depth": 2},
    "memory_upt": {"num_tokens": 8, "memory_channels": 3, "hidden_channels": 8, "depth": 2},
}


SCALAR = line_spec(POINTS)
PAIR = line_spec(POINTS, channels=("h", "v"), parameters=("nu", "beta"))


def make(architecture, spec=SCALAR):
    torch.manual_seed(0)
    return build({"architecture": architecture, **SPECS[architecture]}, spec)


def one_step(model, u, dt=0.05, parameters=(1e-3,), steps=1):
    rows = torch.tensor([parameters]).expand(len(u), -1)
    z = model.encode(u)
    for _ in range(steps):
        z = model.step(z, torch.full((len(u),), dt), rows)
    return model.decode(z)


@pytest.mark.parametrize("architecture", SPECS)
@pytest.mark.parametrize("spec", [SCALAR, PAIR], ids=["scalar", "pair"])
def test_peer_keeps_the_protocol_and_depends_on_its_conditions(architecture, spec):
    model, u = make(architecture, spec), torch.randn(3, POINTS, spec.num_channels)
    usual = (1e-3, 0.4)[: len(spec.parameters)]
    assert model.encode(u).shape == (3, model.num_tokens, model.hidden_dim)
    plain = one_step(model, u, parameters=usual)
    assert plain.shape == u.shape
    # what a step writes to the memory reaches the field one step later
    one_step(model, u, parameters=usual, steps=2).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    if architecture == "upt":  # its modulation begins at zero
        torch.nn.init.normal_(model.approximator[0].modulation.weight)
        plain = one_step(model, u, parameters=usual)
    assert not torch.allclose(plain, one_step(model, u, dt=0.1, parameters=usual), atol=1e-6)
    for i in range(len(usual)):
        changed = [value * 10 if i == j else value for j, value in enumerate(usual)]
        assert not torch.allclose(plain, one_step(model, u, parameters=changed), atol=1e-6)
    for c in range(spec.num_channels):  # every channel of the result depends on each one before
        other = u.clone()
        other[..., c] += 0.1 * torch.randn(3, POINTS)
        change = (one_step(model, other, parameters=usual) - plain).abs().amax((0, 1))
        assert change.min() > 1e-6


@pytest.mark.parametrize(
    ("architecture", "shift"),
    [("fno", 5), ("resnet", 5), ("unet", 4), ("patch_stepper", 4), ("memory_upt", 4)],
)
@pytest.mark.parametrize("spec", [SCALAR, PAIR], ids=["scalar", "pair"])
def test_model_commutes_with_shifts_and_keeps_the_means(architecture, shift, spec):
    model, u = make(architecture, spec), torch.randn(2, POINTS, spec.num_channels)
    usual = (1e-3, 0.4)[: len(spec.parameters)]
    out = one_step(model, u, parameters=usual, steps=3)
    moved = one_step(model, u.roll(shift, 1), parameters=usual, steps=3)
    assert torch.allclose(moved, out.roll(shift, 1), rtol=1e-4, atol=1e-5)
    assert torch.allclose(out.mean(1), u.mean(1), atol=3e-6)


@pytest.mark.parametrize("architecture", ["patch_stepper", "memory_upt"])
def test_patches_decode_to_the_field_and_may_change_its_mean_if_told_to(architecture):
    spec, u = PAIR, torch.randn(2, POINTS, 2)
    config = {"architecture": architecture, **SPECS[architecture], "conserve_mean": False}
    model = build(config, spec)
    if architecture == "memory_upt":
        model.memory_out.data.zero_()
    assert torch.equal(model.decode(model.encode(u)), u)
    assert model.num_dynamic_channels == model.hidden_dim
    changed = one_step(model, u, parameters=(1e-3, 0.4)).mean(1) - u.mean(1)
    assert changed.abs().min() > 1e-4


@pytest.mark.parametrize("architecture", ["patch_stepper", "memory_upt"])
def test_rollout_that_goes_wrong_stays_within_twice_the_training_data(architecture):
    known = replace(PAIR, std=(0.5, 4.0), largest=(1.0, 6.0), conserves_mean=False)
    unknown = replace(known, largest=())
    bounded, free = make(architecture, known).eval(), make(architecture, unknown).eval()

    def rollout(model, size):
        model.load_state_dict(free.state_dict())
        model.patches_out.data *= size
        if architecture == "memory_upt":
            model.memory_out.data.zero_()
        u = torch.randn(2, POINTS, 2, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)
        return one_step(model, u, parameters=(1e-3, 0.4), steps=5)

    assert torch.equal(rollout(bounded, 1e-3), rollout(copy.deepcopy(free), 1e-3))
    # at unit scale: twice 1.0 / 0.5 and twice 6.0 / 4.0
    assert rollout(bounded, 1e4).abs().amax((0, 1)).tolist() == [4.0, 3.0]
    # gradients of training reach all values, as wild as they may be at first
    assert torch.equal(rollout(bounded.train(), 1e4), rollout(copy.deepcopy(free), 1e4))
    assert bounded.state_dict().keys() == free.state_dict().keys()


@pytest.mark.parametrize("architecture", SPECS)
def test_saved_model_is_loaded_with_the_same_rollouts(architecture, tmp_path):
    config = {"architecture": architecture, **SPECS[architecture]}
    spec = line_spec(POINTS, std=(0.6,))
    simulator = ups.Simulator(make(architecture, spec), spec, "burgers", config).eval()
    simulator.save(tmp_path)
    again, u0 = ups.load(tmp_path), torch.randn(2, POINTS)
    for mode in ("latent", "physical"):
        expected = simulator.rollout(u0, 3, nu=1e-3, mode=mode)
        assert torch.equal(again.rollout(u0, 3, nu=1e-3, mode=mode), expected)


# the matrices of the blocks, without what reads and writes the field, gates and complex weights
NUM_MATRICES = {
    "fno": 2 * 3,  # a skip connection and two layers of points a block
    "unet": 1 + 2 * (1 + 2 + 1 + 2),  # a level halves, convolves twice, widens, convolves twice
    "resnet": 2 * 7,
    "upt": 8 * 4 + 2 * 5,  # a perceiver has queries, keys and values, an output and two layers
    "patch_stepper": 2 * 2,
    "memory_upt": 2 * 2,
}


@pytest.mark.parametrize("architecture", SPECS)
def test_muon_takes_the_matrices_of_each_model_and_trains_it(architecture):
    model = make(architecture)
    matrices = model.muon_parameters()
    assert len({id(p) for p in matrices}) == len(matrices) == NUM_MATRICES[architecture]
    assert all(p.ndim >= 2 and p.is_floating_point() for p in matrices)
    module = OperatorModule(ups.Simulator(model, SCALAR), optimizer="muon")
    optimizer = module.build_optimizer()
    taken, others = (group["params"] for group in optimizer.param_groups)
    assert {id(p) for p in taken} == {id(p) for p in matrices}
    assert {id(p) for p in (*taken, *others)} == {id(p) for p in model.parameters()}
    u, losses = torch.randn(8, POINTS, 1), []
    for _ in range(20):
        loss = (one_step(model, u, steps=2) - u.roll(1, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


class Neighbors(GridModel):
    """On any grid: the sum of the inputs, with the last neighbor along each axis."""

    def forward(self, u):
        total = u.sum(1, keepdim=True)
        for axis in range(2, u.ndim):
            total = total + u[:, :1].roll(1, axis)
        return total.expand(-1, self.num_channels, *self.space)


def test_grid_model_on_a_plane_equals_written_out_loop():
    spec = FieldSpec(Grid((3, 5), (1.0, 1.0)), ("h", "v"), ("nu",))
    model = Neighbors(spec, conserve_mean=False)
    assert (model.num_tokens, model.hidden_dim, model.in_channels) == (15, 2, 4)
    u = torch.randn(2, 3, 5, 2)
    out = one_step(model, u, dt=0.1, parameters=(2e-3,))
    for b in range(2):
        for i in range(3):
            for j in range(5):
                inputs = u[b, i, j].sum() + 0.1 / 0.05 - 1 + math.log(2)
                change = inputs + u[b, i - 1, j, 0] + u[b, i, j - 1, 0]
                for c in range(2):
                    assert out[b, i, j, c].item() == pytest.approx(
                        (u[b, i, j, c] + change).item(), abs=1e-5
                    )
    kept = one_step(Neighbors(spec), u, dt=0.1, parameters=(2e-3,))
    assert torch.allclose(kept.mean((1, 2)), u.mean((1, 2)), atol=1e-6)
    means = (out - u).mean((1, 2), keepdim=True)
    assert torch.allclose(kept, out - means, atol=1e-5)


@pytest.mark.parametrize("architecture", ["mixer", *(name for name in SPECS if name != "upt")])
def test_model_of_grids_refuses_points(architecture):
    with pytest.raises(UpsError, match="needs a field on a grid"):
        build({"architecture": architecture}, FieldSpec(PointCloud(((0.0, 1.0),))))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"architecture": "resnett"},
            "one of mixer, upt, point_upt, memory_upt, point_memory_upt, patch_stepper, fno, unet, "
            "resnet, interpolated_grid, mesh_graph_network, gino, or ",
        ),
        ({"architecture": "no.such.Model"}, "No module named 'no'"),
        ({"architecture": "os.system"}, "a torch module"),
        ({"architecture": "unet", "num_levels": 6}, "multiple of 64"),
        (
            {"architecture": "patch_stepper", "num_tokens": 5},
            "must divide the 32 points",
        ),
        (
            {"architecture": "memory_upt", "num_tokens": 8, "patch_overlap": 2},
            "`model.patch_overlap` must be odd and at most 8",
        ),
        (
            {"architecture": "resnet", "depth": 6},
            "model.depth: resnet takes spec, hidden_channels",
        ),
    ],
)
def test_build_refuses_an_unknown_model_with_what_is_allowed(spec, words):
    with pytest.raises(UpsError, match=words):
        build(spec, SCALAR)


@pytest.mark.parametrize(
    "architecture", ["fno", "upt", "memory_upt"]
)  # complex weights; latent tokens and inverse losses; a memory and one of the losses
@pytest.mark.integration
def test_peer_trains_tests_and_loads_by_the_same_command(architecture, ups_run, tmp_path):
    size = [f"model.{key}={value}" for key, value in SPECS[architecture].items()]
    settings = [s for s in TINY if not s.startswith("model")]
    ups_run(
        f"model={architecture}",
        *size,
        *settings,
        "name=peer",
        "stage.operator.module.num_cpu_shards=1",
    )
    rows = json.loads((tmp_path / "outputs/peer/reports/eval_operator.json").read_text())["rows"]
    assert [(row["mode"], math.isfinite(row["nrmse"])) for row in rows[:2]] == [
        ("latent", True),
        ("physical", True),
    ]
    assert ups.load(tmp_path / "outputs/peer").rollout(
        torch.randn(2, POINTS), 3, nu=1e-3
    ).shape == (2, 3, POINTS)


OWN = """
from torch import nn
from ups.models import GridModel

class Shallow(GridModel):
    def __init__(self, spec, width=8):
        super().__init__(spec)
        self.layers = nn.Sequential(
            nn.Conv1d(self.in_channels, width, 5, padding=2, padding_mode="circular"),
            nn.GELU(),
            nn.Conv1d(width, self.num_channels, 5, padding=2, padding_mode="circular"),
        )

    def forward(self, u):
        return self.layers(u)
"""


@pytest.mark.integration
def test_custom_model_joins_by_one_file_and_one_yaml(ups_run, tmp_path):
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


@pytest.mark.parametrize("architecture", ["memory_upt", "mixer"])
@pytest.mark.parametrize("options", [{"correct": "diffusion"}, {"ttc": True}])
def test_correctors_and_guidance_keep_the_mean_that_tokens_carry(architecture, options):
    spec = line_spec(POINTS)
    sizes = SPECS.get(architecture, {"num_tokens": 8})
    simulator = ups.Simulator(
        make(architecture, spec)
        if architecture in SPECS
        else build({"architecture": architecture, **sizes}, spec),
        spec,
        "burgers",
    )
    nets = {
        "mean_network": {"hidden_dim": 8, "depth": 1},
        "denoiser": {"hidden_dim": 8, "depth": 1},
    }
    corrector = simulator.eval().add_corrector("diffusion", {**nets, "num_steps": 2})
    torch.nn.init.normal_(corrector.mean_network.tokens_out)  # it is zero at first
    u0 = torch.randn(3, POINTS) * 0.3
    u = simulator.rollout(u0, 4, nu=0.01, **options)
    plain = simulator.rollout(u0, 4, nu=0.01)
    assert not torch.allclose(u, plain, atol=1e-3)
    assert torch.allclose(u.mean(-1), u0.mean(-1, keepdim=True), atol=1e-5)


@pytest.mark.parametrize("architecture", ["mixer", "memory_upt", "patch_stepper"])
def test_smallest_mlp_ratio_leaves_one_channel(architecture):
    config = {"architecture": architecture, "num_tokens": 8, "mlp_ratio": 1e-3}
    model = build(config, line_spec())
    assert all(p.numel() > 0 for p in model.parameters())
    assert model.encode(torch.randn(2, 32, 1)).isfinite().all()
