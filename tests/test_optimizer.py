"""The optimiser, its settings, learning rate, accumulation and clipping, each computed twice."""

import math
from typing import ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from conftest import TINY, make_simulator
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.datamodules import BurgersDataModule
from ups.modules import ConsistencyModule, DiffusionModule, OperatorModule
from ups.modules.base import warmup_cosine
from ups.modules.optim import Muon
from ups.modules.sharding import ShardedSingleDevice
from ups.run import CONF
from ups.runs.stages import with_gradient_accumulation

# --- Muon's matrices ---


def newton_schulz(matrix):
    """Jordan's quintic on X / |X|, five times, with the short side first."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (np.sqrt((x**2).sum()) + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x - 4.7750 * (a @ x) + 2.0315 * (a @ a @ x)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def written_out_muon(weight, gradients, lr, weight_decay, momentum):
    """Muon with Nesterov's momentum, decoupled weight decay, and steps of the size of AdamW's."""
    average = np.zeros_like(weight)
    for gradient in gradients:
        average = momentum * average + (1 - momentum) * gradient
        ahead = momentum * average + (1 - momentum) * gradient
        step = 0.2 * math.sqrt(max(weight.shape)) * newton_schulz(ahead)
        weight = weight - lr * weight_decay * weight - lr * step
    return weight


def random_problem(shapes, steps, seed=0):
    """Weights of some ``shapes``, and gradients of unlike sizes for each of ``steps``."""
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=shape) for shape in shapes]
    sizes = (1.0, 30.0, 0.2, 5.0, 0.01)
    gradients = [[sizes[t] * rng.normal(size=shape) for shape in shapes] for t in range(steps)]
    return weights, gradients


def parameters(weights):
    return [nn.Parameter(torch.tensor(weight)) for weight in weights]


def descend(optimizer, params, gradients):
    for of_step in gradients:
        for p, gradient in zip(params, of_step, strict=True):
            p.grad = None if gradient is None else torch.tensor(gradient)
        optimizer.step()


# wide, tall and square ones; several of one shape, which are orthogonalised together
SHAPES = [(4, 7), (7, 4), (4, 7), (5, 5), (4, 7), (1, 6)]


@pytest.mark.parametrize(
    ("lr", "weight_decay", "momentum"), [(0.02, 0.0, 0.95), (0.1, 0.5, 0.6), (0.05, 2.0, 0.0)]
)
def test_muon_equals_the_written_out_algorithm_over_three_steps(lr, weight_decay, momentum):
    weights, gradients = random_problem(SHAPES, 3)
    params = parameters(weights)
    optimizer = Muon(params, [], lr=lr, weight_decay=weight_decay, momentum=momentum)
    descend(optimizer, params, gradients)
    for i, (p, weight) in enumerate(zip(params, weights, strict=True)):
        own = [of_step[i] for of_step in gradients]
        expected = written_out_muon(weight, own, lr, weight_decay, momentum)
        assert p.detach().numpy() == pytest.approx(expected, rel=1e-9, abs=1e-10), i


def test_muon_equals_the_algorithm_of_torch():
    weights, gradients = random_problem([(8, 12), (12, 8)], 4)
    ours, theirs = parameters(weights), parameters(weights)
    options = {"lr": 0.05, "weight_decay": 0.3, "momentum": 0.8}
    descend(Muon(ours, [], **options), ours, gradients)
    reference = torch.optim.Muon(theirs, **options, nesterov=True, adjust_lr_fn="match_rms_adamw")
    descend(reference, theirs, gradients)
    for a, b, weight in zip(ours, theirs, weights, strict=True):
        # torch computes in bfloat16
        moved = (b.detach() - torch.tensor(weight)).norm()
        assert (a - b).norm() < 0.02 * moved


def test_muon_treats_the_weights_of_a_convolution_as_one_matrix():
    weights, gradients = random_problem([(5, 4, 3), (5, 4, 3), (6, 2, 1)], 3)
    params = parameters(weights)
    descend(Muon(params, [], lr=0.05, weight_decay=0.5, momentum=0.6), params, gradients)
    for i, (p, weight) in enumerate(zip(params, weights, strict=True)):
        rows = weight.reshape(len(weight), -1)  # (out, in * kernel)
        own = [of_step[i].reshape(rows.shape) for of_step in gradients]
        expected = written_out_muon(rows, own, 0.05, 0.5, 0.6).reshape(weight.shape)
        assert p.detach().numpy() == pytest.approx(expected, rel=1e-9, abs=1e-10), i


def test_muon_has_the_documented_defaults():
    weights, gradients = random_problem([(4, 7), (6,)], 3)
    params = parameters(weights)
    descend(Muon(params[:1], params[1:], 0.03), params, gradients)
    expected = written_out_muon(weights[0], [g[0] for g in gradients], 0.03, 0.0, 0.95)
    assert params[0].detach().numpy() == pytest.approx(expected, rel=1e-9, abs=1e-10)
    others = parameters(weights[1:])
    reference = torch.optim.AdamW(others, lr=0.03, betas=(0.9, 0.99), weight_decay=0.0)
    descend(reference, others, [g[1:] for g in gradients])
    assert torch.allclose(params[1], others[0], rtol=1e-10, atol=0)


def test_muon_step_is_of_the_size_of_one_of_adamw():
    # singular values near 1 make a root mean square of 0.2 sqrt(max) / sqrt(max) = 0.2, roughly
    weights, gradients = random_problem([(32, 48)], 1)
    params = parameters(weights)
    descend(Muon(params, [], lr=0.1), params, gradients)
    size = (params[0].detach() - torch.tensor(weights[0])).square().mean().sqrt().item()
    assert 0.7 * 0.1 * 0.2 < size < 1.2 * 0.1 * 0.2


def test_muon_decays_a_matrix_whose_gradient_is_zero_and_does_nothing_else_to_it():
    params = parameters([np.ones((3, 4)), np.full((3, 4), 2.0)])
    optimizer = Muon(params, [], lr=0.1, weight_decay=0.5)
    descend(optimizer, params, [[np.zeros((3, 4)), np.zeros((3, 4))]])
    assert params[0].tolist() == [pytest.approx([0.95] * 4)] * 3
    assert params[1].tolist() == [pytest.approx([1.9] * 4)] * 3


def test_muon_leaves_parameters_without_a_gradient_as_they_are():
    weights, gradients = random_problem([(4, 7), (4, 7), (3,), (3,)], 3)
    params = parameters(weights)
    optimizer = Muon(params[:2], params[2:], lr=0.1, weight_decay=0.5)
    descend(optimizer, params, [[g[0], None, g[2], None] for g in gradients])
    for i in (1, 3):
        assert params[i].detach().numpy() == pytest.approx(weights[i], rel=0, abs=0)
    expected = written_out_muon(weights[0], [g[0] for g in gradients], 0.1, 0.5, 0.95)
    assert params[0].detach().numpy() == pytest.approx(expected, rel=1e-9, abs=1e-10)


def test_muon_step_without_any_gradient_changes_nothing():
    weights, _ = random_problem([(4, 7), (3,)], 1)
    params = parameters(weights)
    Muon(params[:1], params[1:], lr=0.1, weight_decay=0.5).step()
    for p, weight in zip(params, weights, strict=True):
        assert p.detach().numpy() == pytest.approx(weight, rel=0, abs=0)


def test_muon_step_returns_the_loss_of_its_closure_and_uses_its_gradient():
    (p,) = parameters([np.array([1.0, -2.0])])
    optimizer = Muon([], [p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (3 * p).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx(-3.0)
    assert p.tolist() == pytest.approx([0.9, -2.1])
    assert optimizer.step() is None


# --- the other parameters: AdamW ---


@pytest.mark.parametrize(
    ("lr", "weight_decay", "betas"),
    [(0.01, 0.0, (0.9, 0.99)), (0.05, 0.7, (0.6, 0.8)), (0.02, 0.1, (0.0, 0.5))],
)
def test_muon_takes_the_steps_of_adamw_on_other_parameters(lr, weight_decay, betas):
    weights, gradients = random_problem([(5,), (2, 3, 2), (4, 4), ()], 5)
    # some gradients so small that the 1e-8 below counts
    gradients[0][0] *= 1e-8
    ours, theirs = parameters(weights), parameters(weights)
    # a momentum of the matrices is no business of these
    descend(Muon([], ours, lr, weight_decay, betas, momentum=0.3), ours, gradients)
    reference = torch.optim.AdamW(theirs, lr, betas, weight_decay=weight_decay, eps=1e-8)
    descend(reference, theirs, gradients)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-13)


def test_muon_takes_the_steps_of_adamw_where_a_gradient_comes_later_than_others():
    weights, gradients = random_problem([(5,), (3,)], 3)
    gradients[0][1] = None
    ours, theirs = parameters(weights), parameters(weights)
    descend(Muon([], ours, 0.02), ours, gradients)
    descend(torch.optim.AdamW(theirs, 0.02, (0.9, 0.99), weight_decay=0.0), theirs, gradients)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-13)


def test_muon_goes_on_like_adamw_from_a_saved_state():
    weights, gradients = random_problem([(4, 3), (5,)], 5)
    params, theirs = parameters(weights), parameters(weights[1:])
    first = Muon(params[:1], params[1:], 0.02, 0.2, (0.6, 0.8), 0.7)
    descend(first, params, gradients[:2])
    second = Muon(params[:1], params[1:], 0.5)
    second.load_state_dict(first.state_dict())
    descend(second, params, gradients[2:])
    reference = torch.optim.AdamW(theirs, 0.02, (0.6, 0.8), weight_decay=0.2)
    descend(reference, theirs, [g[1:] for g in gradients])
    assert torch.allclose(params[1], theirs[0], rtol=1e-10, atol=1e-13)
    expected = written_out_muon(weights[0], [g[0] for g in gradients], 0.02, 0.2, 0.7)
    assert params[0].detach().numpy() == pytest.approx(expected, rel=1e-9, abs=1e-10)


# --- what the stages build ---

UNUSUAL = {
    "lr": 0.0123,
    "weight_decay": 0.456,
    "betas": (0.71, 0.83),
    "muon_momentum": 0.62,
    "warmup_fraction": 0.4,
    "min_lr_ratio": 0.3,
    "num_cpu_shards": 3,
}
NETWORK = {"hidden_dim": 8, "mlp_ratio": 1.0, "depth": 2, "dilations": [1, 2]}
CORRECTOR = {"mean_network": NETWORK, "denoiser": {**NETWORK, "depth": 1}, "num_steps": 2}


def make_module(stage, **options):
    simulator = make_simulator()
    if stage == "operator":
        return OperatorModule(simulator, **options)
    if stage == "diffusion":
        return DiffusionModule(simulator, corrector=CORRECTOR, **options)
    simulator.add_corrector("diffusion", CORRECTOR)
    return ConsistencyModule(simulator, **options)


class Planned:
    """In the place of a trainer that has planned its steps."""

    def __init__(self, steps):
        self.estimated_stepping_batches = steps


def configured(module, steps=10):
    planned = Planned(steps)
    module.trainer = planned
    return module.configure_optimizers()


STAGES = ("operator", "diffusion", "consistency")
BLOCKS = {
    "operator": [
        f"simulator.model.{part}.{i}.{weight}"
        for part, depth in (("encoder", 1), ("approximator", 2), ("decoder", 1))
        for i in range(depth)
        for weight in ("w1", "w2")
    ],
    "diffusion": [
        f"corrector.{network}.blocks.{i}.{weight}"
        for network, depth in (("mean_network", 2), ("denoiser", 1))
        for i in range(depth)
        for weight in ("w1", "w2")
    ],
    "consistency": [f"corrector.denoiser.blocks.0.{weight}" for weight in ("w1", "w2")],
}
NETWORK_OTHERS = (
    "tokens_in",
    "constant",
    "condition.weight",
    "condition.bias",
    "tokens_out",
)
OTHERS = {
    "operator": [
        "simulator.model.patches_in",
        "simulator.model.constant",
        "simulator.model.patches_out",
        "simulator.model.condition.weight",
        "simulator.model.condition.bias",
        "simulator.model.encoder.0.b1",
        "simulator.model.approximator.0.b1",
        "simulator.model.approximator.1.b1",
        "simulator.model.decoder.0.b1",
    ],
    "diffusion": [
        *(f"corrector.mean_network.{name}" for name in NETWORK_OTHERS),
        *(f"corrector.denoiser.{name}" for name in NETWORK_OTHERS),
        "corrector.mean_network.blocks.0.b1",
        "corrector.mean_network.blocks.1.b1",
        "corrector.denoiser.blocks.0.b1",
    ],
    "consistency": [
        *(f"corrector.denoiser.{name}" for name in NETWORK_OTHERS),
        "corrector.denoiser.blocks.0.b1",
    ],
}


def names_in(module, params):
    known = {id(p): name for name, p in module.named_parameters(remove_duplicate=False)}
    # a corrector has two names, the module's and the simulator's
    for name, p in module.named_parameters():
        known[id(p)] = name
    return sorted(
        known[id(p)].replace("simulator.correctors.diffusion", "corrector") for p in params
    )


@pytest.mark.parametrize("stage", STAGES)
def test_stage_hyperparameters_arrive_in_muon(stage):
    module = make_module(stage, optimizer="muon", **UNUSUAL)
    optimizer = configured(module)["optimizer"]
    assert type(optimizer) is Muon
    assert len(optimizer.param_groups) == 2
    for group in optimizer.param_groups:
        assert group["initial_lr"] == 0.0123
        assert group["weight_decay"] == 0.456
        assert tuple(group["betas"]) == (0.71, 0.83)
        assert group["momentum"] == 0.62


@pytest.mark.parametrize("stage", STAGES)
def test_stage_hyperparameters_arrive_in_adamw(stage):
    module = make_module(stage, optimizer="adamw", **UNUSUAL)
    optimizer = configured(module)["optimizer"]
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert group["initial_lr"] == 0.0123
    assert group["weight_decay"] == 0.456
    assert tuple(group["betas"]) == (0.71, 0.83)
    assert group["amsgrad"] is False
    assert group["maximize"] is False
    assert names_in(module, group["params"]) == sorted(BLOCKS[stage] + OTHERS[stage])


@pytest.mark.parametrize("stage", STAGES)
def test_stage_gives_the_matrices_of_its_blocks_to_muon_and_all_else_to_adamw(stage):
    module = make_module(stage)
    optimizer = configured(module)["optimizer"]
    groups = {group["matrices"]: group["params"] for group in optimizer.param_groups}
    assert names_in(module, groups[True]) == sorted(BLOCKS[stage])
    assert names_in(module, groups[False]) == sorted(OTHERS[stage])


@pytest.mark.parametrize("stage", STAGES)
def test_stage_schedule_has_its_warmup_its_end_and_the_planned_steps(stage):
    module = make_module(stage, **UNUSUAL)
    scheduler = configured(module, steps=10)["lr_scheduler"]["scheduler"]
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    rates = []
    for _ in range(12):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    # 4 of 10 steps up, 6 down to 0.3, and then no further
    rise = [0.25, 0.5, 0.75, 1.0]
    fall = [0.3 + 0.7 * (1 + math.cos(math.pi * k / 6)) / 2 for k in range(7)]
    assert rates == pytest.approx([0.0123 * factor for factor in (*rise, *fall, 0.3)], rel=1e-9)


@pytest.mark.parametrize("stage", STAGES)
def test_stage_takes_muon_by_default_and_refuses_an_unknown_optimizer(stage):
    assert type(configured(make_module(stage))["optimizer"]) is Muon
    with pytest.raises(UpsError, match="`optimizer` must be one of muon, adamw, got 'sgd'"):
        configured(make_module(stage, optimizer="sgd"))


def test_stage_of_a_model_without_matrices_trains_it_by_adamw_alone():
    simulator = make_simulator()
    simulator.model.muon_parameters = list
    module = OperatorModule(simulator)
    (group,) = configured(module)["optimizer"].param_groups
    assert group["matrices"] is False
    assert names_in(module, group["params"]) == sorted(BLOCKS["operator"] + OTHERS["operator"])


def config(*overrides):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", list(overrides))


def from_config(cfg, stage):
    simulator = make_simulator()
    if stage == "consistency":
        simulator.add_corrector("diffusion", CORRECTOR)
    return instantiate(cfg.stage[stage].module, simulator, _convert_="all")


@pytest.mark.parametrize("stage", STAGES)
def test_configured_hyperparameters_arrive_in_each_stage(stage):
    unusual = {**UNUSUAL, "betas": "[0.71,0.83]", "optimizer": "adamw"}
    cfg = config(*(f"stage.{stage}.module.{key}={value}" for key, value in unusual.items()))
    module = from_config(cfg, stage)
    (group,) = configured(module)["optimizer"].param_groups
    assert (group["initial_lr"], group["weight_decay"]) == (0.0123, 0.456)
    assert tuple(group["betas"]) == (0.71, 0.83)
    assert dict(module.hparams) | UNUSUAL | {"betas": [0.71, 0.83]} == dict(module.hparams)
    # and the other stages keep their own
    for other in set(STAGES) - {stage}:
        assert from_config(cfg, other).hparams.lr != 0.0123


@pytest.mark.parametrize(
    ("stage", "lr", "weight_decay"),
    [("operator", 3e-3, 1e-4), ("diffusion", 3e-3, 1e-4), ("consistency", 2e-3, 0.0)],
)
def test_configuration_by_default_is_the_documented_one(stage, lr, weight_decay):
    module = from_config(config(), stage)
    documented = {
        "optimizer": "muon",
        "lr": lr,
        "weight_decay": weight_decay,
        "betas": [0.9, 0.99],
        "muon_momentum": 0.95,
        "warmup_fraction": 0.03,
        "min_lr_ratio": 0.0,
        "num_cpu_shards": 2,
    }
    assert {key: module.hparams[key] for key in documented} == documented


@pytest.mark.parametrize(
    ("stage", "lr", "weight_decay"),
    [("operator", 3e-3, 1e-4), ("diffusion", 3e-3, 1e-4), ("consistency", 2e-3, 0.0)],
)
def test_stage_without_a_configuration_has_the_defaults_of_its_signature(stage, lr, weight_decay):
    for group in configured(make_module(stage))["optimizer"].param_groups:
        assert (group["initial_lr"], group["weight_decay"]) == (lr, weight_decay)
        assert (group["betas"], group["momentum"]) == ((0.9, 0.99), 0.95)
    module = make_module(stage)
    assert (
        module.hparams.warmup_fraction,
        module.hparams.min_lr_ratio,
        module.hparams.num_cpu_shards,
    ) == (
        0.03,
        0.0,
        2,
    )


def test_configured_weights_of_the_inverse_losses_arrive_one_by_one():
    assert from_config(config(), "operator").hparams.lambda_inv_enc == 1.0
    assert from_config(config(), "operator").hparams.lambda_inv_dec == 1.0
    both = from_config(config("lambda_inv=0.4"), "operator").hparams
    assert (both.lambda_inv_enc, both.lambda_inv_dec) == (0.4, 0.4)
    each = from_config(config("loss.lambda_inv_enc=0.2", "loss.lambda_inv_dec=0.9"), "operator")
    assert (each.hparams.lambda_inv_enc, each.hparams.lambda_inv_dec) == (0.2, 0.9)


def test_configured_squared_arrives():
    assert from_config(config(), "operator").hparams.squared is False
    assert from_config(config("loss.squared=true"), "operator").hparams.squared is True


def test_configured_inverse_loss_frequency_arrives_in_its_callback():
    assert instantiate(config().callbacks.inverse_loss_frequency).every == 1
    callback = instantiate(config("loss.inverse_loss_frequency=7").callbacks.inverse_loss_frequency)
    assert (callback.every, callback.parts) == (7, 1)


def test_configured_average_arrives_in_its_callback():
    for overrides, decay in (([], 0.99), (["callbacks.ema.decay=0.7"], 0.7)):
        callback = instantiate(config(*overrides).callbacks.ema)
        # the new average of an old one of 0 and a weight of 1, which comes second
        zero, one = torch.tensor(0.0), torch.tensor(1.0)
        new = callback._kwargs["avg_fn"](zero, one, torch.tensor(3))
        assert new.item() == pytest.approx(1 - decay, rel=1e-5)


def test_in_parts_keeps_the_windows_of_a_step():
    cfg = config("data.batch_size=12", "trainer.accumulate_grad_batches=5")
    parts = with_gradient_accumulation(cfg, 3)
    assert parts.data.batch_size == 4
    assert parts.trainer.accumulate_grad_batches == 15
    assert instantiate(parts.callbacks.inverse_loss_frequency).parts == 3


# --- the schedule ---


@pytest.mark.parametrize(
    ("step", "total", "warmup", "final", "factor"),
    [
        (0, 10, 0.0, 0.1, 1.0),  # a rise of one step, whose first is whole
        (5, 11, 0.0, 0.0, 0.5 + 0.5 * math.cos(math.pi * 0.4)),
        (10, 10, 0.0, 0.1, 0.1),
        (17, 10, 0.0, 0.1, 0.1),  # beyond the end
        (6, 10, 0.2, 0.0, 0.5),  # half of the way down
        (6, 10, 0.2, 0.4, 0.7),
        (4, 10, 0.26, 0.0, 0.5 + 0.5 * math.cos(math.pi / 7)),  # 2.6 steps are rounded to 3
        (8, 10, 1.0, 0.0, 0.9),
        (9, 10, 1.0, 0.0, 1.0),
        (10, 10, 1.0, 0.2, 1.0),
        (0, 1, 0.03, 0.0, 1.0),
    ],
)
def test_warmup_cosine_equals_its_formula(step, total, warmup, final, factor):
    assert warmup_cosine(step, total, warmup, final) == pytest.approx(factor, rel=1e-12)


# --- a real training ---


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


def make_data(folder, **options):
    """16 trajectories, two windows each an epoch."""
    data = BurgersDataModule(
        cache_dir=folder,
        num_points=32,
        reference_num_points=32,
        num_frames=6,
        num_train=16,
        num_validation=1,
        num_test=1,
        unroll_steps=2,
        samples_per_trajectory=2,
        **options,
    )
    data.prepare_data()
    data.setup()
    return data


class Steps(pl.Callback):
    """Every step's learning rates, and its gradient before and after it was clipped."""

    def __init__(self):
        self.rates, self.whole, self.used = [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        self.whole.append(self.gradient(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.used.append(self.gradient(pl_module))

    def gradient(self, module):
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def train(data, module, epochs=2, **options):
    """Fit in float64, so that round-off is no excuse."""
    steps = Steps()
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_epochs=epochs,
        precision="64-true",
        callbacks=[steps],
        limit_val_batches=0,
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        strategy=ShardedSingleDevice(),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, datamodule=data)
    return steps, trainer


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "total"),
    [(4, 1, 16), (4, 2, 8), (4, 3, 6)],  # 8 batches in 3s: two whole steps and one of what is left
)
def test_learning_rate_of_a_fit_follows_the_schedule_over_all_optimizer_steps(
    data_folder, batch_size, accumulate, total
):
    module = OperatorModule(make_simulator(), lr=0.002, warmup_fraction=0.25, min_lr_ratio=0.2)
    data = make_data(data_folder, batch_size=batch_size)
    steps, trainer = train(data, module, accumulate_grad_batches=accumulate)
    assert trainer.global_step == total
    rise = round(total / 4)
    expected = []
    for n in range(total):
        if n < rise:
            expected.append(0.002 * (n + 1) / rise)
        else:
            down = (1 - math.cos(math.pi * (n - rise) / (total - rise))) / 2
            expected.append(0.002 * (1 - 0.8 * down))
    # of both groups, the matrices and all else
    assert np.array(steps.rates) == pytest.approx(np.array([expected, expected]).T, rel=1e-9)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx(
        [0.0004] * 2
    )


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_accumulated_batches_end_with_the_weights_of_whole_ones(data_folder, optimizer):
    ends = []
    for batch_size, accumulate in ((8, 1), (4, 2)):
        module = OperatorModule(make_simulator(), optimizer=optimizer, lr=0.01, weight_decay=0.1)
        start = weights(module)
        data = make_data(data_folder, batch_size=batch_size)
        _, trainer = train(data, module, accumulate_grad_batches=accumulate, gradient_clip_val=0.5)
        assert trainer.global_step == 8
        ends.append(weights(module))
    assert (ends[0] - start).norm() > 0.1
    assert torch.allclose(ends[0], ends[1], rtol=0, atol=1e-8)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_sharded_batches_end_with_the_weights_of_whole_ones(data_folder, optimizer):
    ends = []
    for threads in (1, 2, 4):
        module = OperatorModule(
            make_simulator(), optimizer=optimizer, lr=0.01, num_cpu_shards=threads
        )
        train(make_data(data_folder, batch_size=8), module, epochs=1)
        ends.append(weights(module))
    assert torch.allclose(ends[0], ends[1], rtol=0, atol=1e-8)
    assert torch.allclose(ends[0], ends[2], rtol=0, atol=1e-8)


def test_training_takes_the_steps_of_adamw_along_the_gradient_of_the_loss(data_folder):
    """The whole loop, written out: batches in their order, loss, clipping, schedule, AdamW."""
    module = OperatorModule(
        make_simulator(),
        optimizer="adamw",
        lr=0.01,
        weight_decay=0.3,
        betas=(0.5, 0.8),
        warmup_fraction=0.5,
    )
    data = make_data(data_folder, batch_size=8)
    twin = OperatorModule(make_simulator(), lambda_inv_enc=1.0, lambda_inv_dec=1.0).double()
    train(data, module, epochs=1, gradient_clip_val=0.5)
    data.trainer = None  # as before the training, whose position the order of the windows follows
    own = torch.optim.AdamW(twin.parameters(), lr=0.01, betas=(0.5, 0.8), weight_decay=0.3)
    # four steps: two up, and two of half a cosine to zero
    for batch, factor in zip(data.train_dataloader(), (0.5, 1.0, 1.0, 0.5), strict=True):
        own.param_groups[0]["lr"] = 0.01 * factor
        own.zero_grad()
        u, parameters = batch.u.double(), batch.parameters.double()
        double = Batch(u, parameters, batch.trajectory, batch.window)
        twin.compute_losses(double)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        own.step()
    assert torch.allclose(weights(module), weights(twin), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("option", "clipped"), [("0.05", 0.05), ("null", None), (None, 1.0)])
def test_configured_gradient_clipping_arrives_in_the_trainer(
    tmp_path, monkeypatch, option, clipped
):
    from ups import pipeline

    monkeypatch.chdir(tmp_path)
    # tests have files of their own; here only the steps matter
    monkeypatch.setattr(pipeline, "test", lambda *args: None)
    monkeypatch.setattr(StepsOfRuns, "made", [])
    overrides = [] if option is None else [f"trainer.gradient_clip_val={option}"]
    cfg = config(
        *TINY,
        *overrides,
        "trainer.max_epochs=1",
        "data.num_train=8",
        "data.num_validation=1",
        "data.num_test=1",
        "trainer.accumulate_grad_batches=1",
        "stage.operator.module.num_cpu_shards=1",
        "+callbacks.steps._target_=test_optimizer.StepsOfRuns",
    )
    pipeline.run(cfg)
    (steps,) = StepsOfRuns.made
    assert len(steps.whole) == 4
    for whole, used in zip(steps.whole, steps.used, strict=True):
        norm = whole.norm().item()
        assert norm > 1.1  # so that there is something to clip
        expected = whole if clipped is None else whole * clipped / norm
        assert torch.allclose(used, expected, rtol=1e-4, atol=1e-9)


class StepsOfRuns(Steps):
    """``Steps`` by the configuration of a run, which makes it."""

    made: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.made.append(self)
