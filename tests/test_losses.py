"""The operator's losses and its validation error, against formulas written out in NumPy."""

from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from ups.callbacks import InverseLossFrequency
from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid
from ups.core.norms import relative_l2_squared
from ups.core.stepper import predict
from ups.models.memory import MemoryUPT
from ups.modules import OperatorModule
from ups.modules.base import BaseModule
from ups.modules.losses import inverse_decoding_weight, operator_errors, root
from ups.modules.sharding import ShardedSingleDevice, sharded_loss
from ups.runs.distributed import is_first_process
from ups.simulation.simulator import Simulator

POINTS, DT, SCALE, LENGTH = 6, 0.05, 0.7, 2.0
SPEC = FieldSpec(Grid((POINTS,), (LENGTH,), origin=(0.0,)), parameters=("nu",), dt=DT, std=(SCALE,))


class WrittenOutModel(nn.Module):
    """Maps that NumPy can repeat: every point is a token of two channels."""

    num_tokens, hidden_dim, num_dynamic_channels = POINTS, 2, 2

    def __init__(self):
        super().__init__()
        self.encoding = nn.Parameter(torch.tensor([0.9, -0.4]))
        self.offset = nn.Parameter(torch.tensor([0.05, 0.3]))
        self.motion = nn.Parameter(torch.tensor(3.0))
        self.drag = nn.Parameter(torch.tensor(-0.8))
        self.decoding = nn.Parameter(torch.tensor([0.7, -1.1]))

    def encode(self, u):
        return u * self.encoding + self.offset

    def step(self, z, dt, parameters):
        moved = z.roll(1, dims=1)
        return (
            z
            + dt[:, None, None] * self.motion * (moved - z)
            + parameters[..., None] * self.drag * z.square()
        )

    def decode(self, z):
        return (z * self.decoding).sum(-1, keepdim=True)

    def muon_parameters(self):
        return []


def numbers(model):
    """The model's parameters as one flat array: encoding, offset, motion, drag, decoding."""
    return torch.cat([p.detach().double().flatten() for p in model.parameters()]).numpy()


def encoded(p, u):
    return u[:, None] / SCALE * p[0:2] + p[2:4]


def stepped(p, z, nu):
    return z + DT * p[4] * (np.roll(z, 1, axis=0) - z) + nu * p[5] * z**2


def decoded(p, z):
    return SCALE * (z @ p[6:8])


def relative(pred, target):
    """|pred - target|^2 / |target|^2 of a field of at least a hundredth of the data's size."""
    smallest = len(target) * (0.01 * SCALE) ** 2
    return ((pred - target) ** 2).sum() / max((target**2).sum(), smallest)


def written_out_losses(p, u, nu):
    """The forward, the inverse encoding and the inverse decoding term, frame by frame."""
    forward, inv_enc, inv_dec = [], [], []
    for window, own in zip(u, nu, strict=True):
        z = encoded(p, window[0])
        inv_enc.append(relative(decoded(p, z), window[0]))
        for true in window[1:]:
            z = stepped(p, z, own)
            forward.append(relative(decoded(p, z), true))
        again = encoded(p, decoded(p, z))
        inv_dec.append(((again - z) ** 2).mean() / z.var(ddof=1))
    return np.mean(forward), np.mean(inv_enc), np.mean(inv_dec)


def make_written_out_simulator():
    return Simulator(WrittenOutModel(), SPEC)


def windows(n=4, frames=4, seed=0):
    """Windows (n, frames, X) of unlike sizes, with a parameter (n,) of its own for each."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(n, frames, POINTS)) * rng.uniform(0.3, 2.0, size=(n, frames, 1))
    return u, rng.uniform(0.1, 0.5, size=n)


def make_batch(u, nu):
    each = torch.arange(len(u))
    return Batch(torch.from_numpy(u)[..., None], torch.from_numpy(nu)[:, None], each, each)


def operator_losses(simulator, u, parameters, inverse):
    """The means of the squared errors, by name."""
    errors = operator_errors(simulator, u, parameters, inverse)
    return {name: error.mean() for name, error in errors.items()}


def make_terms(u, nu, inverse=True):
    batch = make_batch(u, nu)
    simulator = make_written_out_simulator().double()
    terms = operator_losses(simulator, batch.u, batch.parameters, inverse)
    return {name: value.item() for name, value in terms.items()}


# --- the relative error ---


LINE = (-2,)  # the axis of space of a field on a line


def test_relative_l2_squared_sums_squares_over_space():
    pred = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 2.0]])[..., None]
    target = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])[..., None]
    # squared errors 0 + 4 + 1 over 1 + 4, and 0 + 1 + 1 over 1 + 1
    assert relative_l2_squared(pred, target, LINE).tolist() == pytest.approx([1.0, 1.0])
    # the denominator is the target
    assert relative_l2_squared(2 * pred, target, LINE)[1].item() == pytest.approx((1 + 9) / 2)
    assert relative_l2_squared(pred, 2 * target, LINE)[1].item() == pytest.approx(4 / 8)


@pytest.mark.parametrize(("space", "axes"), [((5,), (-2,)), ((5, 4), (-3, -2))])
def test_relative_l2_squared_keeps_all_dimensions_but_space_and_channels(space, axes):
    shape = (2, 3, *space, 2)
    error = relative_l2_squared(torch.ones(shape), torch.full(shape, 2.0), axes)
    assert error.shape == (2, 3)
    assert error.flatten().tolist() == pytest.approx([0.25] * 6)


def test_relative_l2_squared_counts_a_small_channel_as_much_as_a_large_one():
    target = torch.tensor([[3.0, 0.003], [-4.0, 0.004]], dtype=torch.float64)
    pred = target * torch.tensor([1.1, 2.0])
    # the mean of 0.1^2 and 1^2, and not the ratio of the sums
    error = relative_l2_squared(pred, target, LINE)
    assert error.item() == pytest.approx((0.01 + 1.0) / 2, rel=1e-6)


def test_relative_l2_squared_takes_a_floor_for_each_channel():
    target = torch.tensor([[0.05, 0.05], [-0.05, -0.05]], dtype=torch.float64)
    floor = torch.tensor([0.1, 0.2], dtype=torch.float64)
    error = relative_l2_squared(target + 0.03, target, LINE, floor)
    expected = (0.03**2 / 0.1**2 + 0.03**2 / 0.2**2) / 2
    assert error.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("size", "below"), [(0.05, 0.1), (0.0999, 0.1), (0.1001, 0.1001), (0.4, 0.4)]
)
def test_relative_l2_squared_floor_bounds_the_root_mean_square_of_the_target(size, below):
    target = torch.full((4,), size, dtype=torch.float64) * torch.tensor([1.0, -1.0, 1.0, -1.0])
    target = target[:, None]
    pred = target + 0.03
    expected = 4 * 0.03**2 / (4 * below**2)
    for floor in (0.1, torch.tensor([0.1], dtype=torch.float64)):
        error = relative_l2_squared(pred, target, LINE, floor)
        assert error.item() == pytest.approx(expected, rel=1e-6)


def test_relative_l2_squared_has_no_floor_by_default():
    target = torch.tensor([[3e-4], [-4e-4]], dtype=torch.float64)
    assert relative_l2_squared(2 * target, target, LINE).item() == pytest.approx(1.0, rel=1e-4)


def test_relative_l2_squared_of_two_zero_fields_is_zero_without_a_floor():
    zero = torch.zeros(2, 1)
    assert relative_l2_squared(zero, zero, LINE).item() == 0.0
    assert relative_l2_squared(zero + 1e-6, zero, LINE).item() > 1e12


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1e6, 1e12])
def test_relative_l2_squared_does_not_depend_on_the_unit(unit):
    target = torch.tensor([[0.3], [-0.4], [1e-9]])
    pred = target + 0.1
    floor = torch.tensor([0.5])
    expected = relative_l2_squared(pred, target, LINE, floor)
    error = relative_l2_squared(unit * pred, unit * target, LINE, unit * floor)
    assert error.item() == pytest.approx(expected.item(), rel=1e-5)


# --- the terms ---


@pytest.mark.parametrize("frames", [2, 3, 5])
def test_operator_losses_equal_the_written_out_formulas_for_any_window(frames):
    u, nu = windows(frames=frames)
    forward, inv_enc, inv_dec = written_out_losses(numbers(WrittenOutModel()), u, nu)
    terms = make_terms(u, nu)
    assert terms.keys() == {"L_forward", "L_inv_enc", "L_inv_dec"}
    assert terms["L_forward"] == pytest.approx(forward, rel=1e-6)
    assert terms["L_inv_enc"] == pytest.approx(inv_enc, rel=1e-6)
    assert terms["L_inv_dec"] == pytest.approx(inv_dec, rel=1e-6)


@pytest.mark.parametrize("frames", [2, 4])
def test_operator_losses_without_the_inverse_terms_give_the_same_forward_term(frames):
    u, nu = windows(frames=frames)
    terms = make_terms(u, nu, inverse=False)
    assert terms.keys() == {"L_forward"}
    assert terms["L_forward"] == pytest.approx(
        written_out_losses(numbers(WrittenOutModel()), u, nu)[0], rel=1e-6
    )


@pytest.mark.parametrize("factor", [0.2, 0.99, 1.01, 3.0])
@pytest.mark.parametrize("frame", [0, 2])
def test_operator_losses_floor_is_a_hundredth_of_the_std(factor, frame):
    u, nu = windows()
    # the root mean square of one field is ``factor`` times the floor
    u[1, frame] *= factor * 0.01 * SCALE / np.sqrt((u[1, frame] ** 2).mean())
    forward, inv_enc, inv_dec = written_out_losses(numbers(WrittenOutModel()), u, nu)
    terms = make_terms(u, nu)
    assert terms["L_forward"] == pytest.approx(forward, rel=1e-6)
    assert terms["L_inv_enc"] == pytest.approx(inv_enc, rel=1e-6)
    assert terms["L_inv_dec"] == pytest.approx(inv_dec, rel=1e-6)
    assert make_terms(u, nu, inverse=False)["L_forward"] == pytest.approx(forward, rel=1e-6)


def test_inverse_loss_frequency_accepts_a_decoder_without_parameters():
    class PlainDecoder(MemoryUPT):
        def __init__(self):
            super().__init__(SPEC, num_tokens=3)
            del self.memory_out

        def decode(self, z):
            return self.patches.join(z[..., : self.patches.size])

    torch.manual_seed(0)
    simulator = Simulator(PlainDecoder(), SPEC).double()
    check_idle(OperatorModule(simulator, lambda_inv_enc=0.0, lambda_inv_dec=0.5))
    with pytest.raises(UpsError, match="weight of L_inv_enc is 1, but"):
        check_idle(OperatorModule(simulator, lambda_inv_dec=0.0))


# --- the loss that is trained on ---


class Seen(pl.Callback):
    """The gradients, the terms and the logged values of every batch."""

    def __init__(self):
        self.gradients, self.terms, self.logged, self.weights = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.weights.append(numbers(pl_module.simulator.model))

    def on_after_backward(self, trainer, pl_module):
        self.gradients.append(
            torch.cat([p.grad.flatten() for p in pl_module.simulator.model.parameters()])
            .numpy()
            .copy()
        )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.terms.append({name: value.item() for name, value in pl_module.terms.items()})
        self.logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def fit(module, batches, *callbacks, **options):
    """Train in float64 on ``batches``, in their order; what a ``Seen`` saw."""
    seen = Seen()
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_epochs=1,
        precision="64-true",
        callbacks=[*callbacks, seen],
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        strategy=ShardedSingleDevice(),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return seen


def weighted(p, u, nu, lambda_inv_enc, lambda_inv_dec):
    forward, inv_enc, inv_dec = written_out_losses(p, u, nu)
    return forward + lambda_inv_enc * inv_enc + lambda_inv_dec * inv_dec


def slopes(function, p, step=1e-5):
    """The gradient of ``function`` at ``p`` by central differences."""
    return np.array(
        [(function(p + step * e) - function(p - step * e)) / (2 * step) for e in np.eye(len(p))]
    )


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("weights", [(0.3, 0.7), (0.0, 0.6), (0.4, 0.0), (0.0, 0.0)])
def test_operator_gradient_equals_that_of_the_written_out_weighted_loss(threads, weights):
    u, nu = windows(n=8)
    module = OperatorModule(
        make_written_out_simulator(),
        lambda_inv_enc=weights[0],
        lambda_inv_dec=weights[1],
        num_cpu_shards=threads,
        squared=True,
    )
    p = numbers(module.simulator.model)
    seen = fit(module, [make_batch(u, nu)])
    expected = slopes(lambda q: weighted(q, u, nu, *weights), p)
    assert seen.gradients[0] == pytest.approx(expected, rel=1e-5, abs=1e-8)
    forward, inv_enc, inv_dec = written_out_losses(p, u, nu)
    all_terms = {
        "loss": weighted(p, u, nu, *weights),
        "L_forward": forward,
        "L_inv_enc": inv_enc,
        "L_inv_dec": inv_dec,
    }
    names = all_terms if any(weights) else ("loss", "L_forward")
    assert seen.terms[0] == pytest.approx({name: all_terms[name] for name in names}, rel=1e-6)
    assert seen.logged[0] == pytest.approx(
        {f"training/operator/{name}": all_terms[name] for name in names}, rel=1e-6
    )


def rooted(pred, target):
    """The root of the relative error, with the floor that keeps its slope at zero finite."""
    return np.sqrt(relative(pred, target) + 1e-8)


def unsquared(p, u, nu, lambda_inv_enc, lambda_inv_dec):
    """The weighted loss of roots, frame by frame: a mean of roots, not a root of means."""
    total = []
    for window, own in zip(u, nu, strict=True):
        z = encoded(p, window[0])
        inv_enc, forward = rooted(decoded(p, z), window[0]), []
        for true in window[1:]:
            z = stepped(p, z, own)
            forward.append(rooted(decoded(p, z), true))
        inv_dec = unsquared_inverse_decoding(p, window, own)
        total.append(np.mean(forward) + lambda_inv_enc * inv_enc + lambda_inv_dec * inv_dec)
    return np.mean(total)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("weights", [(0.3, 0.7), (0.0, 0.6), (0.0, 0.0)])
def test_unsquared_loss_equals_the_written_out_one_and_logs_squared_terms(threads, weights):
    u, nu = windows(n=8)
    options = {"lambda_inv_enc": weights[0], "lambda_inv_dec": weights[1], "squared": False}
    module = OperatorModule(make_written_out_simulator(), num_cpu_shards=threads, **options)
    p = numbers(module.simulator.model)
    seen = fit(module, [make_batch(u, nu)])
    expected = slopes(lambda q: unsquared(q, u, nu, *weights), p)
    assert seen.gradients[0] == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert seen.terms[0].pop("loss") == pytest.approx(unsquared(p, u, nu, *weights), rel=1e-6)
    terms = dict(
        zip(("L_forward", "L_inv_enc", "L_inv_dec"), written_out_losses(p, u, nu), strict=True)
    )
    names = terms if any(weights) else ("L_forward",)
    assert seen.terms[0] == pytest.approx({name: terms[name] for name in names}, rel=1e-6)
    squared = OperatorModule(make_written_out_simulator(), lambda_inv_enc=1.0, squared=True)
    logged = fit(squared, [make_batch(u, nu)]).terms[0]
    assert seen.terms[0] == pytest.approx({name: logged[name] for name in names}, rel=1e-12)


def unsquared_inverse_decoding(p, window, own):
    """The root of L_inv_dec of one window."""
    z = encoded(p, window[0])
    for _ in window[1:]:
        z = stepped(p, z, own)
    again = encoded(p, decoded(p, z))
    return np.sqrt(((again - z) ** 2).mean() / z.var(ddof=1) + 1e-8)


@pytest.mark.parametrize("threads", [1, 4])
def test_adaptive_inverse_decoding_counts_as_far_as_each_sample_is_reconstructed(threads):
    u, nu = windows(n=8)
    module = OperatorModule(
        make_written_out_simulator(), num_cpu_shards=threads, adaptive_inv_dec=True
    )
    p = numbers(module.simulator.model)
    e = [np.sqrt(relative(decoded(p, encoded(p, window[0])), window[0])) for window in u]
    fixed = [max(0, 1 - each) ** 2 for each in e]  # weights have no gradient
    assert max(fixed) > 1.5 * min(fixed)

    def expected(q):
        inv_dec = [
            weight * unsquared_inverse_decoding(q, window, own)
            for weight, window, own in zip(fixed, u, nu, strict=True)
        ]
        return unsquared(q, u, nu, 1.0, 0.0) + np.mean(inv_dec)

    seen = fit(module, [make_batch(u, nu)])
    assert seen.terms[0]["loss"] == pytest.approx(expected(p), rel=1e-6)
    assert seen.gradients[0] == pytest.approx(slopes(expected, p), rel=1e-5, abs=1e-8)
    *_, inv_dec = written_out_losses(p, u, nu)
    assert seen.terms[0]["L_inv_dec"] == pytest.approx(inv_dec, rel=1e-6)


def test_sample_that_is_reconstructed_worse_than_by_zero_has_no_inverse_decoding_loss():
    weight = inverse_decoding_weight(torch.tensor([0.0, 0.25, 1.0, 4.0]))
    assert weight.tolist() == [1.0, 0.25, 0.0, 0.0]


def test_gradient_of_an_unsquared_error_of_zero_is_finite():
    error = torch.zeros(3, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(root(error.square()).mean(), error)
    assert slope.tolist() == [[0.0] * 2] * 3
    assert root(error).mean().item() == pytest.approx(1e-4)
    # of a field at rest that the model reproduces exactly, all gradients are finite too
    simulator = make_written_out_simulator().double()
    with torch.no_grad():
        simulator.model.offset.zero_()
    module = OperatorModule(simulator, lambda_inv_enc=0.0, lambda_inv_dec=0.0, squared=False)
    loss = module.compute_losses(make_batch(0 * windows()[0], windows()[1]))["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(1e-4)
    assert all(torch.isfinite(p.grad).all() for p in simulator.model.parameters())


def test_operator_weighs_both_inverse_terms_by_one_by_default():
    u, nu = windows()
    module = OperatorModule(make_written_out_simulator().double())
    loss = module.compute_losses(make_batch(u, nu))["loss"].item()
    assert loss == pytest.approx(
        unsquared(numbers(module.simulator.model), u, nu, 1.0, 1.0), rel=1e-6
    )


def test_operator_loss_is_the_forward_term_alone_between_batches_with_inverse_terms():
    data = [windows(seed=seed) for seed in range(5)]
    module = OperatorModule(
        make_written_out_simulator(), lambda_inv_enc=0.3, lambda_inv_dec=0.7, squared=True
    )
    seen = fit(module, [make_batch(*each) for each in data], InverseLossFrequency(every=3))
    for i, (p, (u, nu), gradient) in enumerate(
        zip(seen.weights, data, seen.gradients, strict=True)
    ):
        own = (0.3, 0.7) if i in (0, 3) else (0.0, 0.0)
        assert seen.terms[i]["loss"] == pytest.approx(weighted(p, u, nu, *own), rel=1e-6), i
        assert gradient == pytest.approx(
            slopes(lambda q, u=u, nu=nu, own=own: weighted(q, u, nu, *own), p), rel=1e-5, abs=1e-8
        ), i
        assert ("L_inv_dec" in seen.terms[i]) == (i in (0, 3))


def test_inverse_loss_frequency_computes_the_terms_in_all_parts_of_a_batch():
    data = [windows(seed=seed) for seed in range(14)]
    module = OperatorModule(make_written_out_simulator())
    seen = fit(
        module,
        [make_batch(*each) for each in data],
        InverseLossFrequency(every=3, parts=2),
        accumulate_grad_batches=2,
    )
    assert [i for i, terms in enumerate(seen.terms) if "L_inv_enc" in terms] == [0, 1, 6, 7, 12, 13]


def test_inverse_loss_frequency_computes_the_terms_in_every_batch_by_default():
    module = OperatorModule(make_written_out_simulator())
    seen = fit(
        module, [make_batch(*windows(seed=seed)) for seed in range(3)], InverseLossFrequency()
    )
    assert ["L_inv_enc" in terms for terms in seen.terms] == [True] * 3


def check_idle(module):
    """Begin a first batch, in which the callback looks for inverse terms that do nothing."""
    InverseLossFrequency().on_train_batch_start(None, module, make_batch(*windows()), 0)


@pytest.mark.parametrize(
    ("detached", "words"),
    [
        ({"L_inv_enc"}, "weight of L_inv_enc is 0.5, but the encoder gets no gradient"),
        ({"L_inv_dec"}, "weight of L_inv_dec is 0.25, but the encoder gets no gradient"),
    ],
)
def test_inverse_loss_frequency_refuses_a_term_without_gradient(monkeypatch, detached, words):
    def terms(simulator, u, nu, inverse, *places):
        found = operator_errors(simulator, u, nu, inverse)
        return {
            name: value.detach() if name in detached else value for name, value in found.items()
        }

    monkeypatch.setattr("ups.modules.operator.operator_errors", terms)
    with pytest.raises(UpsError, match=words):
        check_idle(
            OperatorModule(
                make_written_out_simulator().double(), lambda_inv_enc=0.5, lambda_inv_dec=0.25
            )
        )


def test_inverse_loss_frequency_refuses_a_term_without_gradient_in_the_decoder(monkeypatch):
    module = OperatorModule(make_written_out_simulator().double())
    decode = module.simulator.model.decode
    weights = module.simulator.model.decoding

    def terms(simulator, u, nu, inverse, *places):
        simulator.model.decode = lambda z: (z * weights.detach()).sum(-1, keepdim=True)
        found = operator_errors(simulator, u, nu, inverse)
        simulator.model.decode = decode
        return found

    monkeypatch.setattr("ups.modules.operator.operator_errors", terms)
    with pytest.raises(UpsError, match="L_inv_enc is 1, but the decoder gets no gradient"):
        check_idle(module)


def test_inverse_loss_frequency_refuses_a_zero_inverse_decoding_term(monkeypatch):
    def terms(simulator, u, nu, inverse, *places):
        found = operator_errors(simulator, u, nu, inverse)
        return {**found, "L_inv_dec": 0 * found["L_inv_dec"]}

    monkeypatch.setattr("ups.modules.operator.operator_errors", terms)
    with pytest.raises(UpsError, match="L_inv_dec is 1, but the term is absent or zero"):
        check_idle(OperatorModule(make_written_out_simulator().double()))
    # a term that nobody asked for may be anything
    check_idle(OperatorModule(make_written_out_simulator().double(), lambda_inv_dec=0.0))


# --- shards ---


class CountedModule(BaseModule):
    """A loss with random numbers, (w * drawn * nu)^2; it notes the sizes of its batches."""

    stage = "counted"

    def __init__(self, num_cpu_shards):
        super().__init__()
        self.save_hyperparameters()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.unused = nn.Parameter(torch.tensor(1.0))
        self.calls, self.drawn = [], []

    def sample_noise(self, batch, generator):
        drawn = torch.randn(len(batch), generator=generator, dtype=torch.float64)
        self.drawn.append(drawn)
        return (drawn,)

    def compute_losses(self, batch, *drawn):
        self.calls.append(len(batch))
        value = (self.weight * drawn[0] * batch.parameters[:, 0]).square().mean()
        return {"loss": value, "half": value / 2}

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.0)


class Gradient(pl.Callback):
    def on_after_backward(self, trainer, pl_module):
        self.weight, self.unused = pl_module.weight.grad.item(), pl_module.unused.grad


def train_counted(threads, sizes, seed=0):
    module, gradient = CountedModule(threads), Gradient()
    batches = [make_batch(*windows(n=n, seed=i)) for i, n in enumerate(sizes)]
    pl.seed_everything(seed, verbose=False)
    trainer = pl.Trainer(
        max_epochs=1, precision="64-true", callbacks=[gradient], logger=False, accelerator="cpu",
        strategy=ShardedSingleDevice(),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return module, gradient, batches


@pytest.mark.parametrize(
    ("threads", "size", "calls"),
    [(1, 8, [8]), (2, 8, [4, 4]), (4, 8, [2, 2, 2, 2]), (2, 7, [7]), (3, 8, [8])],
)
def test_training_step_shards_a_batch_only_when_the_shards_are_of_one_size(threads, size, calls):
    module, gradient, (batch,) = train_counted(threads, [size])
    assert module.calls == calls
    mean = (module.drawn[0] * batch.parameters[:, 0]).square().mean().item()
    assert module.terms["loss"].item() == pytest.approx(4 * mean, rel=1e-9)
    assert module.terms["half"].item() == pytest.approx(2 * mean, rel=1e-9)
    assert gradient.weight == pytest.approx(4 * mean, rel=1e-9)  # d/dw of w^2 m, at w = 2
    assert gradient.unused is None


def test_training_step_draws_by_the_seed_and_by_the_number_of_batches_taken():
    first, *_ = train_counted(1, [4, 4, 4])
    again, *_ = train_counted(2, [4, 4, 4])
    other, *_ = train_counted(1, [4, 4, 4], seed=1)
    for a, b in zip(first.drawn, again.drawn, strict=True):
        assert torch.equal(a, b)
    everything = [tuple(drawn.tolist()) for drawn in (*first.drawn, *other.drawn)]
    assert len(set(everything)) == 6


class Position:
    """A trainer's place: the batches that the run has taken, and the process that it is."""

    def __init__(self, taken, rank, world):
        total = SimpleNamespace(ready=taken)
        self.fit_loop = SimpleNamespace(
            epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=total))
        )
        self.global_rank, self.world_size = rank, world


def drawn_at(taken, rank=0, world=1, seed=0):
    module, position = CountedModule(1).double(), Position(taken, rank, world)
    module.trainer = position
    module.log_dict = lambda *args, **options: None
    torch.manual_seed(seed)
    module.on_fit_start()
    torch.manual_seed(99)  # what else is drawn must not matter
    module.training_step(make_batch(*windows(n=4)), 0)
    return tuple(module.drawn[0].tolist())


def test_training_step_draws_alike_after_a_resume():
    module, *_ = train_counted(1, [4, 4, 4])
    assert [tuple(drawn.tolist()) for drawn in module.drawn] == [
        drawn_at(1),
        drawn_at(2),
        drawn_at(3),
    ]


def test_training_step_draws_differ_between_processes_batches_and_seeds():
    places = [
        (taken, rank, 2, seed) for taken in range(3) for rank in range(2) for seed in range(2)
    ]
    assert len({drawn_at(*place) for place in places}) == len(places)


def test_sharded_loss_averages_terms_and_passes_on_the_outer_gradient():
    weight, unused = torch.tensor(3.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    terms = sharded_loss(
        lambda shard: {"loss": weight * shard, "other": weight + shard},
        [1.0, 5.0],
        [weight, unused],
    )
    assert terms["loss"].item() == pytest.approx((3 + 15) / 2)
    assert terms["other"].item() == pytest.approx((4 + 8) / 2)
    assert not terms["other"].requires_grad
    (0.5 * terms["loss"]).backward()
    assert weight.grad.item() == pytest.approx(0.5 * (1 + 5) / 2)
    assert unused.grad is None


@pytest.mark.parametrize(("rank", "first"), [(0, True), (1, False)])
def test_is_first_process_means_rank_zero(monkeypatch, rank, first):
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", rank)
    assert is_first_process() is first


# --- validation ---


def written_out_validation(p, u, nu):
    """The relative error of each frame (B, T); a field's size is at least 0.01 of the scale."""
    errors = np.empty((len(u), u.shape[1] - 1))
    for i, (trajectory, own) in enumerate(zip(u, nu, strict=True)):
        z = encoded(p, trajectory[0])
        for k, true in enumerate(trajectory[1:]):
            z = stepped(p, z, own)
            rmse = np.sqrt(((decoded(p, z) - true) ** 2).mean())
            errors[i, k] = rmse / max(np.sqrt((true**2).mean()), 0.01 * SCALE)
    return errors


def validated(module, batches):
    trainer = pl.Trainer(
        logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False
    )
    loader = DataLoader(batches, batch_size=None)
    return trainer.validate(module, loader, verbose=False)[0]


def single(u, nu):
    """The batch in single precision."""
    return make_batch(u.astype(np.float32), nu.astype(np.float32))


def test_operator_validation_is_the_mean_error_of_latent_rollouts_over_all_trajectories():
    u, nu = windows(n=5, frames=6)
    module = OperatorModule(make_written_out_simulator())
    # batches of unlike sizes: a mean of their means would be another number
    values = validated(module, [single(u[:3], nu[:3]), single(u[3:], nu[3:])])
    errors = written_out_validation(numbers(module.simulator.model), u, nu)
    assert values["validation/operator/nrmse"] == pytest.approx(errors.mean(), rel=1e-5)
    assert values["validation/operator/nrmse_final"] == pytest.approx(
        errors[:, -1].mean(), rel=1e-5
    )
    assert {
        "validation/operator/rmse",
        "validation/operator/crmse",
        "validation/operator/frmse_low",
    } <= values.keys()


def test_validation_measures_the_fraction_of_rollouts_after_their_correlation_is_lost():
    u, nu = windows(n=5, frames=8)
    module = OperatorModule(make_written_out_simulator())
    p = numbers(module.simulator.model)
    for i, correlated in enumerate((0, 2, 3, 5, 7)):  # frames until the truth is turned over
        z = encoded(p, u[i, 0])
        for k in range(1, 8):
            z = stepped(p, z, nu[i])
            u[i, k] = decoded(p, z) if k <= correlated or k == 7 else -decoded(p, z)
    values = validated(module, [single(u[:3], nu[:3]), single(u[3:], nu[3:])])
    lost = values["validation/operator/decorrelated_fraction"]
    assert lost == pytest.approx(1 - (0 + 2 + 3 + 5 + 7) / 7 / 5, abs=1e-6)
    assert validated(module, [single(u[4:], nu[4:])])[
        "validation/operator/decorrelated_fraction"
    ] == pytest.approx(0, abs=1e-6)


def test_operator_validation_uses_the_length_of_the_domain():
    u, nu = windows(n=2, frames=3)
    simulator = make_written_out_simulator()
    value = validated(OperatorModule(simulator), [single(u, nu)])["validation/operator/frmse_low"]
    p = numbers(simulator.model)
    spectra = []
    for k in range(2):
        power = np.zeros(4)
        for trajectory, own in zip(u, nu, strict=True):
            z = encoded(p, trajectory[0])
            for _ in range(k + 1):
                z = stepped(p, z, own)
            power += np.abs(np.fft.rfft(decoded(p, z) - trajectory[k + 1])) ** 2
        spectra.append(np.sqrt(power / 2) / POINTS * LENGTH)
    assert value == pytest.approx(np.mean(spectra), rel=1e-5)


@pytest.mark.parametrize("factor", [1e-6, 0.5, 0.99, 1.01])
def test_operator_validation_counts_a_decayed_field_as_a_hundredth_of_the_std(factor):
    u, nu = windows(n=2, frames=4)
    u[1, 2] *= factor * 0.01 * SCALE / np.sqrt((u[1, 2] ** 2).mean())
    module = OperatorModule(make_written_out_simulator())
    values = validated(module, [single(u, nu)])
    errors = written_out_validation(numbers(module.simulator.model), u, nu)
    assert values["validation/operator/nrmse"] == pytest.approx(errors.mean(), rel=1e-4)


def test_validation_starts_anew_each_time():
    u, nu = windows(n=4, frames=3)
    module = OperatorModule(make_written_out_simulator())
    validated(module, [single(10 * u, nu)])
    again = validated(module, [single(u, nu)])["validation/operator/nrmse"]
    errors = written_out_validation(numbers(module.simulator.model), u, nu)
    assert again == pytest.approx(errors.mean(), rel=1e-5)


class NoisyStepper:
    """Steps to random numbers."""

    def encode(self, u, parameters):
        return u

    def step(self, state, parameters):
        return torch.randn(state.shape)

    def decode(self, state):
        return state


class NoisySimulator(nn.Module):
    """Gives a ``NoisyStepper``, and remembers the corrector of each."""

    spec = SPEC

    def __init__(self):
        super().__init__()
        self.asked = []

    def stepper(self, correct, points=None):
        self.asked.append(correct)
        return NoisyStepper()

    def predict(self, *arguments):
        return predict(*arguments)


class NoisyModule(BaseModule):
    stage = "noisy"

    def __init__(self):
        super().__init__()
        self.simulator = NoisySimulator()


@pytest.mark.parametrize("correct", ["none", "diffusion", "consistency"])
def test_validation_draws_the_same_noise_each_time(correct):
    module = NoisyModule()
    module.correct = correct
    u, nu = windows(n=4, frames=3)
    batches = [single(u, nu), single(u, nu)]
    torch.manual_seed(5)
    first = validated(module, batches)["validation/noisy/nrmse"]
    torch.manual_seed(6)
    assert validated(module, batches)["validation/noisy/nrmse"] == first
    assert module.simulator.asked == [correct] * 4
    # the noise is that of seed 0, and goes on from the first batch to the second
    torch.manual_seed(0)
    true = batches[0].u[:, 1:]
    sizes = true.square().mean((2, 3)).sqrt()
    errors = []
    for _ in batches:
        drawn = torch.stack([torch.randn(4, POINTS, 1) for _ in range(2)], 1)
        errors.append((drawn - true).square().mean((2, 3)).sqrt() / sizes)
    assert first == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def test_validation_restores_the_random_numbers_of_training():
    module = NoisyModule()
    module.log_dict = lambda *args, **options: None
    torch.manual_seed(5)
    before = torch.get_rng_state()
    module.on_validation_epoch_start()
    module.validation_step(single(*windows()), 0)
    assert not torch.equal(torch.get_rng_state(), before)
    module.on_validation_epoch_end()
    assert torch.equal(torch.get_rng_state(), before)


def test_stages_validate_with_their_own_corrector():
    from ups.modules import ConsistencyModule, DiffusionModule

    found = [
        (module.stage, module.correct)
        for module in (OperatorModule, DiffusionModule, ConsistencyModule)
    ]
    assert found == [
        ("operator", "none"),
        ("diffusion", "diffusion"),
        ("consistency", "consistency"),
    ]
