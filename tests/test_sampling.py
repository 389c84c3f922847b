"""Correctors sample: the diffusion model is no regression, the distilled one is not zero, and
both stages leave the operator alone.
"""

import copy

import lightning.pytorch as pl
import pytest
import torch
from conftest import make_simulator

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.datamodules import BurgersDataModule
from ups.modules import ConsistencyModule, DiffusionModule
from ups.modules.consistency import distance
from ups.modules.optim import Muon
from ups.physics import burgers
from ups.simulation.correctors import (
    SIGMA_DATA,
    ResidualCorrector,
    consistency_sampler,
    heun_sampler,
    heun_step,
)
from ups.simulation.residual_targets import LatentCache, residual_targets

NETS = {"mean": {"width": 16, "depth": 1}, "noise": {"width": 32, "depth": 2}}
LEVELS = [float(level) for level in (10.0 ** torch.linspace(1, -1.7, 24))] + [0.0]


def gaussian(mean, std):
    """The exact denoiser of normal data."""
    return lambda x, s: (
        (std**2 * x + s[:, None, None] ** 2 * mean) / (std**2 + s[:, None, None] ** 2)
    )


def test_the_sampler_draws_the_law_that_the_denoiser_knows():
    torch.manual_seed(0)
    draws = heun_sampler(gaussian(0.3, 0.5), LEVELS[0] * torch.randn(4000, 1, 1), LEVELS)
    assert draws.mean().item() == pytest.approx(0.3, abs=0.06)
    assert draws.std().item() == pytest.approx(0.5, rel=0.05)


def test_one_jump_of_the_exact_consistency_function_ends_where_the_sampler_does():
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
        tokens=4, width=4, free=3, **NETS, steps=12, sigma_max=5.0, temperature=1.0
    )
    mats = corrector.noise_network.muon_parameters()
    others = [p for p in corrector.noise_network.parameters() if all(p is not m for m in mats)]
    optimizer = Muon(mats, others, lr=5e-3)
    z, about = torch.zeros(64, 4, 4), (torch.full((64,), 0.05), torch.full((64,), 0.001))
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


def test_a_diffusion_model_is_no_regression():
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


def test_an_unknown_sampler_is_refused():
    with pytest.raises(UpsError, match="allowed are heun, consistency"):
        ResidualCorrector(tokens=4, width=4, free=3, **NETS, sampler="euler")


def data(tmp_path, window=2, repeat=False):
    sizes = {
        "points": 32,
        "solver_points": 64,
        "frames": 11,
        "train": 16,
        "validation": 4,
        "test": 4,
    }
    made = BurgersDataModule(
        directory=str(tmp_path),
        **sizes,
        window=window,
        windows_per_trajectory=4,
        batch_size=8,
        repeat=repeat,
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


def test_both_stages_train_their_corrector_and_nothing_else(tmp_path):
    simulator = make_simulator()
    before = copy.deepcopy(simulator.model.state_dict())
    diffusion = fit(
        DiffusionModule(simulator, corrector=NETS | {"steps": 3}, gradient_steps=1, threads=2),
        tmp_path,
    )
    assert all(
        torch.equal(before[key], value) for key, value in simulator.model.state_dict().items()
    )
    corrector = simulator.correctors["diffusion"]
    assert (diffusion.operator_errors > 0).all()
    assert (corrector.scale > 0).all()
    assert (corrector.scale != 1).all()
    for network in (corrector.mean_network, corrector.noise_network):
        assert network.tokens_out.abs().max() > 0  # it began at zero
    diffusion_weights = copy.deepcopy(simulator.correctors["diffusion"].state_dict())
    fit(ConsistencyModule(simulator, gradient_steps=1), tmp_path)
    assert all(
        torch.equal(before[key], value) for key, value in simulator.model.state_dict().items()
    )
    assert all(
        torch.equal(diffusion_weights[key], value)
        for key, value in simulator.correctors["diffusion"].state_dict().items()
    )
    student, teacher = simulator.correctors["consistency"].state_dict(), diffusion_weights
    assert all(
        torch.equal(student[key], teacher[key]) == (not key.startswith("noise_network"))
        for key in student
    )


def test_temperature_scales_the_draws_about_the_mean():
    simulator, u0 = make_simulator().eval(), torch.randn(2, 32)
    corrector = simulator.add_corrector("diffusion", {**NETS, "steps": 2})
    for network in (corrector.mean_network, corrector.noise_network):
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
    z, nu = simulator.encode(u0), torch.full((2,), 0.001)
    states = simulator.sample_step(z, nu, "diffusion", draws=3, mean_first=True)
    assert states.shape[:2] == (2, 3)
    assert torch.allclose(simulator.decode(states[:, 0]), step(0.0)[:, 0], atol=1e-5)
    with pytest.raises(UpsError, match="temperature=-1"):
        step(-1)


def test_the_consistency_stage_needs_a_sampler_to_distil():
    with pytest.raises(UpsError, match="stage diffusion trains one"):
        ConsistencyModule(make_simulator())


def test_distillation_keeps_the_draws_of_the_sampler():
    """One call ends near where the sampler's path from the same noise ends, far from zero."""
    teacher, z, about = toy()
    torch.manual_seed(1)
    student = copy.deepcopy(teacher)
    optimizer = torch.optim.Adam(student.noise_network.parameters(), lr=2e-3)
    for step in range(200):
        y = torch.where(torch.rand(64, 1, 1) < 0.5, 1.0, -1.0).expand(64, 4, 3)
        level = 0 if step % 2 else int(torch.randint(12, ()))
        loss = distance(
            student, teacher, y, torch.randn(64, 4, 3), level, (torch.zeros(64, 4, 3), z, z, *about)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    student.sampler, student.steps = "consistency", 1
    noise = torch.randn(64, 1, 4, 3)
    with torch.no_grad():
        one, many = (
            student.sample(z, z, *about, noise)[..., :3],
            teacher.sample(z, z, *about, noise)[..., :3],
        )
    assert one.abs().mean() > 0.5
    assert torch.corrcoef(torch.stack((one.flatten(), many.flatten())))[0, 1] > 0.7


def test_what_is_assimilated_decodes_closer_to_the_truth_and_moves_little():
    simulator = make_simulator()
    u0 = burgers.initial_conditions(4, burgers.cell_centers(32), seed=0)
    u = burgers.solve(u0, [0.05 * k for k in range(4)], 0.001)
    steps = residual_targets(
        simulator, Batch(u, torch.full((4,), 0.001), torch.arange(4), torch.arange(4)), 5
    )
    assert steps.pred.shape == (12, 8, 16)
    assert torch.equal(steps.field[:3], u[0, 1:])
    assert torch.equal(steps.state[1:3], steps.target[:2])

    def gap(z):
        return (simulator.decode(z) - steps.field).square().sum(-1).detach()

    assert (gap(steps.target) < 0.8 * gap(steps.pred)).all()
    assert torch.equal(steps.target[..., -1], steps.pred[..., -1])  # the carried mean stays
    assert not steps.target.requires_grad


def test_a_rollout_draws_anew_each_time_and_repeats_with_its_seed(simulator):
    corrector = simulator.add_corrector("diffusion", NETS | {"steps": 2})
    with torch.no_grad():
        corrector.noise_network.tokens_out.normal_(std=0.1)
    u0 = burgers.initial_conditions(2, burgers.cell_centers(32), seed=0)

    def roll(seed):
        torch.manual_seed(seed)
        return simulator.rollout(u0, 3, nu=0.001, correct="diffusion")

    assert torch.equal(roll(0), roll(0))
    assert not torch.allclose(roll(0), roll(1), atol=1e-4)
    assert (roll(0).mean(-1) - u0.mean(-1, keepdim=True)).abs().max() < 1e-6


def test_the_two_grids_of_one_field_share_their_noise(simulator):
    simulator.add_corrector("diffusion", {**NETS, "steps": 3})
    z, nu = simulator.encode(torch.randn(2, 32)).repeat_interleave(2, 0), torch.full((4,), 0.001)
    states = simulator.sample_step(z, nu, "diffusion", temperature=1.0, alike=2)
    assert torch.allclose(states[::2], states[1::2], atol=1e-6)
    assert not torch.allclose(
        states, simulator.sample_step(z, nu, "diffusion", temperature=1.0, alike=2), atol=1e-4
    )


def test_heun_ends_with_an_euler_step():
    x, ones = torch.randn(3, 2, 2), torch.ones(3)
    assert torch.allclose(
        heun_step(gaussian(0.3, 0.5), x, ones, 0 * ones), gaussian(0.3, 0.5)(x, ones), atol=1e-6
    )


def test_the_cache_changes_nothing_beyond_its_precision(tmp_path):
    """Steps read from the file are those that are computed anew, to float16's and to float32's
    precision; and the stage trains the same.
    """
    simulator, made = make_simulator().requires_grad_(False), data(tmp_path, repeat=True)
    sampler = made.train_dataloader().sampler
    batches = list(sampler.iter_fixed_batches(made.train_dataloader().dataset))
    for dtype, tolerance in (("float32", 0.0), ("float16", 2e-3)):
        cache = LatentCache(
            tmp_path / "cache" / dtype, simulator, batches, sampler.windows, 3, dtype, 2
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
            make_simulator(), corrector=NETS | {"steps": 3}, gradient_steps=2, latent_cache=dtype
        )
        weights.append(fit(module, tmp_path, epochs=1, repeat=True).corrector.state_dict())
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-5) for key in weights[0])
    assert not list((tmp_path / "cache").glob("*.latents"))


def test_a_cache_that_does_not_fit_is_refused_before_a_byte_is_written(tmp_path):
    with pytest.raises(
        UpsError,
        match=(
            r"the latent cache of 1000000000000 windows in float16 needs "
            r"\d+\.\d [MGT]B at .* but only \d+\.\d [MGT]B are free"
        ),
    ):
        LatentCache(tmp_path / "cache" / "x", make_simulator(), [], 10**12, 3, "float16", 2)
    assert not (tmp_path / "cache").exists()


def test_a_cache_needs_the_same_windows_in_every_epoch(tmp_path):
    module = DiffusionModule(make_simulator(), corrector=NETS, latent_cache="float16")
    with pytest.raises(UpsError, match=r"needs data\.repeat=true"):
        fit(module, tmp_path)
