"""Correctors sample: the diffusion model is no regression, the distilled one is not zero, and
both stages leave the operator alone.
"""

import copy

import lightning.pytorch as pl
import pytest
import torch
from conftest import SPEC, line_spec, make_simulator, ring

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.datamodules import BurgersDataModule
from ups.models import build
from ups.modules import ConsistencyModule, DiffusionModule
from ups.modules.consistency import distance
from ups.modules.optim import Muon
from ups.physics import burgers
from ups.simulation.corrected import Corrected
from ups.simulation.correctors import (
    SIGMA_DATA,
    ResidualCorrector,
    consistency_sampler,
    heun_sampler,
    heun_step,
)
from ups.simulation.residual_targets import LatentCache, residual_targets
from ups.simulation.simulator import Simulator

NETS = {"mean_network": {"hidden_dim": 16, "depth": 1}, "denoiser": {"hidden_dim": 32, "depth": 2}}
LEVELS = [float(level) for level in (10.0 ** torch.linspace(1, -1.7, 24))] + [0.0]


def gaussian(mean, std):
    """The exact denoiser of normal data."""
    return lambda x, s: (
        (std**2 * x + s[:, None, None] ** 2 * mean) / (std**2 + s[:, None, None] ** 2)
    )


def test_heun_sampler_draws_the_distribution_of_an_exact_denoiser():
    torch.manual_seed(0)
    draws = heun_sampler(gaussian(0.3, 0.5), LEVELS[0] * torch.randn(4000, 1, 1), LEVELS)
    assert draws.mean().item() == pytest.approx(0.3, abs=0.06)
    assert draws.std().item() == pytest.approx(0.5, rel=0.05)


def test_consistency_sampler_ends_where_heun_does_when_its_function_is_exact():
    def end(x, s):  # the end of the path through (x, s), for normal data
        return 0.3 + (x - 0.3) * 0.5 / (0.25 + s[:, None, None] ** 2).sqrt()

    x = 10 * torch.randn(50, 2, 3)
    assert torch.allclose(
        consistency_sampler(end, x, [10.0, 0.0]),
        heun_sampler(gaussian(0.3, 0.5), x, LEVELS),
        atol=0.02,
    )


def toy(steps=400):
    """A corrector trained on a residual that is +1 or -1 in all channels of a sample, whatever
    the state: its mean says nothing.
    """
    torch.manual_seed(0)
    corrector = ResidualCorrector(
        tokens=ring(4),
        hidden_dim=4,
        num_dynamic_channels=3,
        **NETS,
        num_steps=12,
        sigma_max=5.0,
        temperature=1.0,
    )
    mats = corrector.denoiser.muon_parameters()
    others = [p for p in corrector.denoiser.parameters() if all(p is not m for m in mats)]
    optimizer = Muon(mats, others, lr=5e-3)
    z, about = torch.zeros(64, 4, 4), (torch.full((64,), 0.05), torch.full((64, 1), 0.001))
    for _ in range(steps):
        y = torch.where(torch.rand(64, 1, 1) < 0.5, 1.0, -1.0).expand(64, 4, 3)
        sigma = (torch.randn(64) * 1.2 - 0.3).exp().clamp(0.02, 5.0)
        x = y + sigma[:, None, None] * torch.randn(64, 4, 3)
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        loss = (
            weight
            * (corrector.denoise(x, sigma, torch.zeros_like(y), z, z, *about) - y)
            .square()
            .mean((1, 2))
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return corrector, z, about


def test_sampler_recovers_bimodal_distribution():
    """Samples of a law with two peaks lie at the peaks.

    A regression would answer their mean, 0, whatever the noise.
    """
    corrector, z, about = toy()
    with torch.no_grad():
        draws = corrector.sample(z, z, *about, torch.randn(64, 1, 4, 3))[..., :3].mean((1, 2, 3))
        low, high = (
            corrector.denoise(
                torch.full((64, 4, 3), 0.3),
                torch.full((64,), s),
                torch.zeros(64, 4, 3),
                z,
                z,
                *about,
            )
            for s in (0.05, 5.0)
        )
    assert draws.abs().mean().item() == pytest.approx(1, abs=0.25)
    assert 0.2 < (draws > 0).float().mean().item() < 0.8
    assert (low - high).abs().mean() > 0.05  # the noise level is an input that counts


def test_corrector_refuses_an_unknown_sampler():
    with pytest.raises(UpsError, match="`sampler` must be one of heun, consistency"):
        ResidualCorrector(
            tokens=ring(4), hidden_dim=4, num_dynamic_channels=3, **NETS, sampler="euler"
        )


def data(tmp_path, window=2, repeat=False):
    sizes = {
        "num_points": 32,
        "reference_num_points": 64,
        "num_frames": 11,
        "num_train": 16,
        "num_validation": 4,
        "num_test": 4,
    }
    made = BurgersDataModule(
        cache_dir=str(tmp_path),
        **sizes,
        unroll_steps=window,
        samples_per_trajectory=4,
        batch_size=8,
        fixed_windows=repeat,
    )
    made.prepare_data()
    made.setup()
    return made


def fit(module, tmp_path, epochs=2, repeat=False):
    trainer = pl.Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, datamodule=data(tmp_path, repeat=repeat))
    return module


def test_corrector_stages_train_their_corrector_and_nothing_else(tmp_path):
    simulator = make_simulator()
    before = copy.deepcopy(simulator.model.state_dict())
    diffusion = fit(
        DiffusionModule(
            simulator, corrector=NETS | {"num_steps": 3}, projection_steps=1, num_cpu_shards=2
        ),
        tmp_path,
    )
    assert all(
        torch.equal(before[key], value) for key, value in simulator.model.state_dict().items()
    )
    corrector = simulator.correctors["diffusion"]
    assert (diffusion.operator_errors > 0).all()
    assert (corrector.scale > 0).all()
    assert (corrector.scale != 1).all()
    for network in (corrector.mean_network, corrector.denoiser):
        assert network.tokens_out.abs().max() > 0  # it began at zero
    diffusion_weights = copy.deepcopy(simulator.correctors["diffusion"].state_dict())
    fit(ConsistencyModule(simulator, projection_steps=1), tmp_path)
    assert all(
        torch.equal(before[key], value) for key, value in simulator.model.state_dict().items()
    )
    assert all(
        torch.equal(diffusion_weights[key], value)
        for key, value in simulator.correctors["diffusion"].state_dict().items()
    )
    student, teacher = simulator.correctors["consistency"].state_dict(), diffusion_weights
    assert all(
        torch.equal(student[key], teacher[key]) == (not key.startswith("denoiser"))
        for key in student
    )


def test_temperature_scales_the_draws_around_the_mean():
    simulator, u0 = make_simulator().eval(), torch.randn(2, 32)
    corrector = simulator.add_corrector("diffusion", {**NETS, "num_steps": 2})
    for network in (corrector.mean_network, corrector.denoiser):
        torch.nn.init.normal_(network.tokens_out, std=0.3)

    def step(temperature, seed=0):
        torch.manual_seed(seed)
        return simulator.rollout(u0, 1, nu=0.001, correct="diffusion", temperature=temperature)

    assert torch.equal(step(0.0), step(0.0, seed=1))
    assert torch.equal(step(1.0), step(1.0))
    assert not torch.allclose(step(1.0), step(1.0, seed=1), atol=1e-3)
    assert torch.equal(step(None), step(corrector.temperature))
    assert not torch.allclose(
        step(0.0), simulator.rollout(u0, 1, nu=0.001), atol=1e-3
    )  # the mean corrects
    z, parameters = simulator.encode(u0[..., None]), torch.full((2, 1), 0.001)
    states = Corrected(simulator, corrector).propose(z, parameters, 3)
    assert states.shape[:2] == (2, 3)
    assert torch.allclose(simulator.decode(states[:, 0])[..., 0], step(0.0)[:, 0], atol=1e-5)
    with pytest.raises(UpsError, match="`temperature` must be a finite number >= 0, got -1"):
        step(-1)


def test_consistency_stage_refuses_a_simulator_without_diffusion_corrector():
    with pytest.raises(UpsError, match="stage diffusion trains one"):
        ConsistencyModule(make_simulator())


def test_distilled_corrector_keeps_the_draws_of_its_teacher():
    """One call ends near where the sampler's path from the same noise ends, far from zero."""
    teacher, z, about = toy()
    torch.manual_seed(1)
    student = copy.deepcopy(teacher)
    optimizer = torch.optim.Adam(student.denoiser.parameters(), lr=2e-3)
    for step in range(200):
        y = torch.where(torch.rand(64, 1, 1) < 0.5, 1.0, -1.0).expand(64, 4, 3)
        level = 0 if step % 2 else int(torch.randint(12, ()))
        loss = distance(
            student, teacher, y, torch.randn(64, 4, 3), level, (torch.zeros(64, 4, 3), z, z, *about)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    student.sampler, student.num_steps = "consistency", 1
    noise = torch.randn(64, 1, 4, 3)
    with torch.no_grad():
        one, many = (
            student.sample(z, z, *about, noise)[..., :3],
            teacher.sample(z, z, *about, noise)[..., :3],
        )
    assert one.abs().mean() > 0.5
    assert torch.corrcoef(torch.stack((one.flatten(), many.flatten())))[0, 1] > 0.7


def test_residual_targets_decode_closer_to_the_truth_and_keep_the_mean():
    simulator = make_simulator()
    u0 = burgers.initial_conditions(4, burgers.cell_centers(32), seed=0)
    u = burgers.solve(u0, [0.05 * k for k in range(4)], 0.001)[..., None]
    steps = residual_targets(
        simulator, Batch(u, torch.full((4, 1), 0.001), torch.arange(4), torch.arange(4)), 5
    )
    assert steps.pred.shape == (12, 8, 16)
    assert torch.equal(steps.field[:3], u[0, 1:])
    assert torch.equal(steps.state[1:3], steps.target[:2])

    def gap(z):
        return (simulator.decode(z) - steps.field).square().sum((1, 2)).detach()

    assert (gap(steps.target) < 0.8 * gap(steps.pred)).all()
    assert torch.equal(steps.target[..., -1], steps.pred[..., -1])  # the carried mean stays
    assert not steps.target.requires_grad


def test_corrected_rollout_draws_again_each_time_and_repeats_with_its_seed(simulator):
    corrector = simulator.add_corrector("diffusion", NETS | {"num_steps": 2})
    with torch.no_grad():
        corrector.denoiser.tokens_out.normal_(std=0.1)
    u0 = burgers.initial_conditions(2, burgers.cell_centers(32), seed=0)

    def roll(seed):
        torch.manual_seed(seed)
        return simulator.rollout(u0, 3, nu=0.001, correct="diffusion")

    assert torch.equal(roll(0), roll(0))
    assert not torch.allclose(roll(0), roll(1), atol=1e-4)
    assert (roll(0).mean(-1) - u0.mean(-1, keepdim=True)).abs().max() < 1e-6


def test_corrected_shares_the_noise_of_the_two_grids_of_a_field(simulator):
    corrector = simulator.add_corrector("diffusion", {**NETS, "num_steps": 3})
    z = simulator.encode(torch.randn(2, 32, 1)).repeat_interleave(2, 0)
    parameters = torch.full((4, 1), 0.001)
    corrected = Corrected(simulator, corrector, temperature=1.0, noise_group_size=2)
    states = corrected.step(z, parameters)
    assert torch.allclose(states[::2], states[1::2], atol=1e-6)
    assert not torch.allclose(states, corrected.step(z, parameters), atol=1e-4)


def test_corrected_rollout_of_two_channels_follows_each_parameter():
    """A simulator of two channels and two parameters, whose corrector gets both."""
    spec = line_spec(channels=("h", "v"), parameters=("nu", "beta"), std=(0.6, 2.0))
    torch.manual_seed(0)
    simulator = Simulator(build(SPEC, spec), spec, model_config=SPEC).eval()
    corrector = simulator.add_corrector("diffusion", {**NETS, "num_steps": 2})
    assert corrector.spec["num_parameters"] == 2
    assert corrector.num_dynamic_channels == SPEC["hidden_dim"] - 2  # two of them carry the means
    for network in (corrector.mean_network, corrector.denoiser):
        torch.nn.init.normal_(network.tokens_out, std=0.3)
    u0 = torch.randn(3, 32, 2)

    def roll(temperature, **parameters):
        torch.manual_seed(0)
        parameters = {"nu": 0.001, "beta": 0.4, **parameters}
        return simulator.rollout(
            u0, 2, parameters=parameters, correct="diffusion", temperature=temperature
        )

    u = roll(1.0)
    assert u.shape == (3, 2, 32, 2)
    assert (u.mean(2) - u0.mean(1)[:, None]).abs().max() < 1e-5
    for other in (roll(0.0), roll(1.0, nu=0.01), roll(1.0, beta=4.0)):
        assert not torch.allclose(u, other, atol=1e-3)
    each = roll(1.0, beta=torch.tensor([0.1, 0.4, 2.0]))
    assert torch.allclose(each[1], u[1], atol=1e-5)
    assert not torch.allclose(each[2], u[2], atol=1e-3)


def test_heun_step_is_a_step_of_euler_when_it_ends_at_zero():
    x, ones = torch.randn(3, 2, 2), torch.ones(3)
    assert torch.allclose(
        heun_step(gaussian(0.3, 0.5), x, ones, 0 * ones), gaussian(0.3, 0.5)(x, ones), atol=1e-6
    )


def test_latent_cache_changes_nothing_beyond_its_precision(tmp_path):
    """Steps read from the file are those that are computed anew, to float16's and to float32's
    precision; and the stage trains the same.
    """
    simulator, made = make_simulator().requires_grad_(False), data(tmp_path, repeat=True)
    sampler = made.train_dataloader().sampler
    batches = list(sampler.iter_fixed_batches(made.train_dataloader().dataset))
    for dtype, tolerance in (("float32", 0.0), ("float16", 2e-3)):
        cache = LatentCache(
            tmp_path / "cache" / dtype, simulator, batches, sampler.num_windows, 3, dtype, 2
        )
        assert (
            cache.path.stat().st_size
            == cache.bytes
            == 64 * 3 * 2 * 8 * 16 * (4 if dtype == "float32" else 2)
        )
        for batch in batches[:2]:
            read, made_anew = vars(cache.read(batch)), vars(residual_targets(simulator, batch, 2))
            for name, value in made_anew.items():
                assert torch.allclose(read[name], value, atol=tolerance, rtol=tolerance), (
                    dtype,
                    name,
                )
    weights = []
    for dtype in (None, "float32"):
        torch.manual_seed(0)
        module = DiffusionModule(
            make_simulator(),
            corrector=NETS | {"num_steps": 3},
            projection_steps=2,
            latent_cache_dtype=dtype,
        )
        weights.append(fit(module, tmp_path, epochs=1, repeat=True).corrector.state_dict())
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-5) for key in weights[0])
    assert not list((tmp_path / "cache").glob("*.latents"))


def test_latent_cache_refuses_what_the_disk_cannot_hold_before_writing(tmp_path):
    with pytest.raises(
        UpsError,
        match=(
            r"the latent cache of 1000000000000 windows in float16 needs "
            r"\d+\.\d [MGT]B at .* but only \d+\.\d [MGT]B are free"
        ),
    ):
        LatentCache(tmp_path / "cache" / "x", make_simulator(), [], 10**12, 3, "float16", 2)
    assert not (tmp_path / "cache").exists()


def test_latent_cache_needs_the_same_windows_in_every_epoch(tmp_path):
    module = DiffusionModule(make_simulator(), corrector=NETS, latent_cache_dtype="float16")
    with pytest.raises(UpsError, match=r"needs data\.fixed_windows=true"):
        fit(module, tmp_path)
