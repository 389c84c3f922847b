"""The operator stage is not hollow: gradients, losses, frequency, and what the inverse losses
are for.
"""

import itertools

import lightning.pytorch as pl
import pytest
import torch
from conftest import make_simulator

from ups.callbacks import InverseLossFrequency, TerminateOnNaN
from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.norms import relative_l2_squared
from ups.datamodules import BurgersDataModule
from ups.evaluation.metrics import pdebench_metrics
from ups.modules import OperatorModule
from ups.modules.base import warmup_cosine
from ups.modules.losses import operator_errors
from ups.modules.sharding import sharded_loss
from ups.physics import burgers

PARTS = ("encoder", "approximator", "decoder")


def windows(n=4, frames=4, points=32):
    """Solutions (n, frames, X, 1) and their parameters (n, 1)."""
    u0 = burgers.initial_conditions(n, burgers.cell_centers(points), seed=0)
    u = burgers.solve(u0, [0.05 * k for k in range(frames)], 0.001)
    return u[..., None], torch.full((n, 1), 0.001)


def gradient_norms(simulator, loss):
    simulator.zero_grad()
    loss.backward()
    return {
        part: sum(
            float(p.grad.norm())
            for p in getattr(simulator.model, part).parameters()
            if p.grad is not None
        )
        for part in PARTS
    }


def operator_losses(simulator, u, parameters, inverse):
    """The means of the squared errors, by name."""
    errors = operator_errors(simulator, u, parameters, inverse)
    return {name: error.mean() for name, error in errors.items()}


def test_operator_losses_equal_their_formulas():
    simulator = make_simulator()
    u, nu = windows()
    terms = operator_losses(simulator, u, nu, inverse=True)
    z = z0 = simulator.encode(u[:, 0])
    forward = []
    for k in range(1, 4):
        z = simulator.step(z, nu)
        error = simulator.decode(z) - u[:, k]
        forward.append(error.square().sum((1, 2)) / u[:, k].square().sum((1, 2)))
    assert terms["L_forward"].item() == pytest.approx(torch.stack(forward).mean().item(), rel=1e-4)
    assert terms["L_inv_enc"].item() == pytest.approx(
        relative_l2_squared(simulator.decode(z0), u[:, 0], (1,)).mean().item(), rel=1e-4
    )
    again = simulator.encode(simulator.decode(z))
    assert terms["L_inv_dec"].item() == pytest.approx(
        ((again - z).square().mean((1, 2)) / z.var((1, 2))).mean().item(), rel=1e-4
    )
    assert set(operator_losses(simulator, u, nu, inverse=False)) == {"L_forward"}


def test_decayed_field_does_not_dominate_the_loss():
    simulator = make_simulator()
    u, nu = windows()
    usual = operator_losses(simulator, u, nu, inverse=True)["L_forward"].item()
    u[0] *= 1e-9
    assert operator_losses(simulator, u, nu, inverse=True)["L_forward"].item() < 1e4 * usual


def test_each_loss_has_gradients_in_its_parts():
    simulator = make_simulator()
    u, nu = windows()
    reached = {
        name: gradient_norms(simulator, operator_losses(simulator, u, nu, inverse=True)[name])
        for name in ("L_forward", "L_inv_enc", "L_inv_dec")
    }
    for name, parts in {
        "L_forward": PARTS,
        "L_inv_enc": ("encoder", "decoder"),
        "L_inv_dec": PARTS,
    }.items():
        for part in parts:
            assert reached[name][part] > 1e-6, (name, part)


def test_inverse_decoding_loss_is_not_reduced_by_smaller_tokens():
    simulator = make_simulator()
    u, nu = windows()
    before = operator_losses(simulator, u, nu, inverse=True)["L_inv_dec"]
    with torch.no_grad():
        for name in ("patches_in", "constant"):
            getattr(simulator.model, name).mul_(0.01)
    assert operator_losses(simulator, u, nu, inverse=True)["L_inv_dec"] > 0.1 * before


class Computed(pl.Callback):
    def __init__(self):
        self.batches = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if "L_inv_enc" in outputs:
            self.batches.append(batch_idx)


def fit(tmp_path, epochs=1, callbacks=(), simulator=None, data=None, **module):
    data = data or BurgersDataModule(
        cache_dir=str(tmp_path),
        num_points=32,
        reference_num_points=64,
        num_frames=11,
        num_train=16,
        num_validation=4,
        num_test=4,
        samples_per_trajectory=4,
        batch_size=8,
    )
    data.prepare_data()
    data.setup()
    pl.seed_everything(0, verbose=False)
    simulator = simulator or make_simulator()
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        num_sanity_val_steps=0, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(OperatorModule(simulator, **module), datamodule=data)
    return simulator.eval(), data, trainer


def test_inverse_loss_frequency_computes_the_terms_in_every_nth_batch(tmp_path):
    seen = Computed()
    fit(tmp_path, callbacks=[InverseLossFrequency(3), seen])
    assert seen.batches == [0, 3, 6]
    seen = Computed()
    fit(tmp_path, callbacks=[InverseLossFrequency(1), seen], lambda_inv_enc=0.0, lambda_inv_dec=0.0)
    assert seen.batches == []


def test_fit_is_refused_when_inverse_losses_have_no_gradient(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ups.modules.operator.operator_errors",
        lambda s, u, nu, inverse, *places: (
            operator_errors(s, u, nu, inverse=False)
            | {"L_inv_enc": torch.zeros(()), "L_inv_dec": torch.zeros(())}
        ),
    )
    with pytest.raises(UpsError, match="L_inv_enc"):
        fit(tmp_path, callbacks=[InverseLossFrequency(1)])


class Poison(pl.Callback):
    """Makes one gradient infinite in the third batch."""

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == 2:
            pl_module.simulator.model.patches_in.grad[0, 0] = torch.inf


def test_fit_stops_before_the_optimizer_when_a_gradient_is_not_finite(tmp_path):
    simulator = make_simulator()
    with pytest.raises(UpsError, match="step 2: the gradient is not finite"):
        fit(tmp_path, callbacks=[Poison(), TerminateOnNaN()], simulator=simulator)
    assert all(torch.isfinite(p).all() for p in simulator.parameters())


def test_fit_stops_and_names_the_trajectories_when_a_loss_is_not_finite(tmp_path):
    simulator = make_simulator()
    with torch.no_grad():
        simulator.model.patches_out[0, 0] = torch.nan
    with pytest.raises(UpsError, match=r"L_forward is not finite \(trajectories \d"):
        fit(tmp_path, callbacks=[TerminateOnNaN()], simulator=simulator)


def test_fit_gives_the_same_weights_when_the_seed_is_the_same(tmp_path):
    runs = [fit(tmp_path)[0].state_dict() for _ in range(2)]
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


def test_accumulated_gradients_equal_those_of_one_large_batch():
    a, b = make_simulator(), make_simulator()
    u, nu = windows(8)
    operator_losses(a, u, nu, inverse=True)["L_forward"].backward()
    for half, v in zip(u.split(4), nu.split(4), strict=True):
        (operator_losses(b, half, v, inverse=True)["L_forward"] / 2).backward()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        if p.grad is not None:
            assert torch.allclose(p.grad, q.grad, atol=1e-5)


def test_sharded_gradients_equal_those_of_the_whole_batch():
    u, nu = windows(8)
    batch = Batch(u, nu, torch.arange(8), torch.arange(8))
    gradients = []
    for threads in (1, 2):
        module = OperatorModule(make_simulator(), num_cpu_shards=threads)
        terms = (
            module.compute_losses(batch)
            if threads == 1
            else sharded_loss(module.compute_losses, batch.chunk(2), list(module.parameters()))
        )
        (3 * terms["loss"]).backward()
        gradients.append([p.grad for p in module.parameters()])
    for p, q in zip(*gradients, strict=True):
        assert torch.allclose(p, q, atol=2e-5)


def test_schedule_rises_then_falls_to_its_end():
    factors = [warmup_cosine(step, 100, 0.1, 0.05) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == pytest.approx(1.0)
    assert factors.index(max(factors)) in (9, 10)
    assert factors[-1] == pytest.approx(0.05)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


def test_latent_rollout_is_far_worse_without_inverse_losses(tmp_path):
    """The point of the method: seconds of training, the same but for lambda."""
    nrmse = {}
    for weight in (0.0, 1.0):
        sizes = {
            "num_points": 64,
            "reference_num_points": 128,
            "num_train": 128,
            "num_validation": 16,
            "num_test": 4,
        }
        data = BurgersDataModule(
            cache_dir=str(tmp_path),
            unroll_steps=2,
            samples_per_trajectory=8,
            batch_size=16,
            **sizes,
        )
        simulator = make_simulator(
            points=64,
            num_tokens=16,
            hidden_dim=24,
            encoder_depth=1,
            approximator_depth=2,
            decoder_depth=1,
            latent_rms_limit=1.0,
        )
        simulator, data, _ = fit(
            tmp_path,
            epochs=8,
            data=data,
            simulator=simulator,
            lambda_inv_enc=weight,
            lambda_inv_dec=weight,
        )
        u = data.values["validation"][..., 0]
        nrmse[weight] = pdebench_metrics(simulator.rollout(u[:, 0], 40, nu=0.001), u[:, 1:])[
            "nrmse"
        ]
    assert nrmse[1.0] < 0.5 * nrmse[0.0], nrmse


def test_muon_takes_orthogonal_steps_and_resumes():
    from ups.modules.optim import Muon, orthogonalize

    torch.manual_seed(0)
    for shape in ((3, 16, 40), (2, 40, 16)):
        singular = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert 0.6 < singular.min() < singular.max() < 1.3

    def problem():
        torch.manual_seed(1)
        return [torch.nn.Parameter(torch.randn(8, 4)), torch.nn.Parameter(torch.randn(5))]

    def descend(params, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            sum((p - 1).square().sum() for p in params).backward()
            optimizer.step()

    whole, halves = problem(), problem()
    optimizer = Muon(whole[:1], whole[1:], lr=0.02)
    descend(whole, optimizer, 20)
    first = Muon(halves[:1], halves[1:], lr=0.02)
    descend(halves, first, 10)
    second = Muon(halves[:1], halves[1:], lr=0.5)
    second.load_state_dict(first.state_dict())
    descend(halves, second, 10)
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))
    start = problem()
    assert all((a - 1).norm() < (b - 1).norm() for a, b in zip(whole, start, strict=True))
    # the vector's first step is AdamW's own
    ours, theirs = problem(), problem()
    descend(ours, Muon(ours[:1], ours[1:], lr=0.02, weight_decay=0.1), 3)
    descend(theirs, torch.optim.AdamW(theirs, lr=0.02, weight_decay=0.1, betas=(0.9, 0.99)), 3)
    assert torch.allclose(ours[1], theirs[1], atol=1e-6)
