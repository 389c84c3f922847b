"""An operator that draws ensembles: its noise, its loss, its training, and what it is worth."""

import itertools
import json
import re

import lightning.pytorch as pl
import numpy as np
import pytest
import scoringrules
import torch
from conftest import SPEC, TINY, line_spec, make_simulator, stop_after
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch.utils.data import DataLoader

import ups
from ups import pipeline
from ups.callbacks import InverseLossFrequency
from ups.core.batch import Batch
from ups.core.errors import RunIncomplete, UpsError
from ups.core.stepper import predict
from ups.hub.export import to_torch
from ups.hub.model_card import render_model_card
from ups.metrics import fair_crps
from ups.models import build
from ups.modules import EnsembleOperatorModule, EvaluationModule, OperatorModule
from ups.modules.losses import almost_fair_crps, ensemble_errors, operator_errors
from ups.modules.sharding import sharded_loss
from ups.run import CONF
from ups.simulation.checkpoint import read_checkpoint
from ups.simulation.guidance import TTC
from ups.simulation.simulator import Simulator

POINTS = 32


def noisy_simulator(seed=0, shared=False, **changes):
    """A simulator whose draws differ."""
    simulator = make_simulator(POINTS, seed, **changes).eval()
    noise = simulator.add_noise({"num_channels": 3, "shared": shared})
    torch.nn.init.normal_(noise.scale_and_shift.weight, std=0.2)
    return simulator


def some_fields(n=4, seed=0):
    return torch.randn(n, POINTS, generator=torch.Generator().manual_seed(seed))


def windows(n=4, frames=3, seed=0):
    u = torch.randn(n, frames, POINTS, 1, generator=torch.Generator().manual_seed(seed))
    return Batch(u, torch.full((n, 1), 1e-3), torch.arange(n), torch.arange(n))


# ---------------------------------------------------------------- draws


@pytest.mark.parametrize("mode", ["latent", "physical"])
def test_untrained_noise_changes_nothing(mode):
    simulator = make_simulator(POINTS).eval()
    before = simulator.rollout(some_fields(), 3, nu=1e-3, mode=mode)
    simulator.add_noise({"num_channels": 3})
    drawn = simulator.rollout(some_fields(), 3, nu=1e-3, mode=mode, temperature=1)
    assert torch.equal(drawn, before)


@pytest.mark.parametrize("mode", ["latent", "physical"])
def test_draws_follow_torchs_random_numbers_and_the_temperature(mode):
    simulator, u0 = noisy_simulator(), some_fields()

    def drawn(temperature):
        torch.manual_seed(1)
        return simulator.rollout(u0, 3, nu=1e-3, mode=mode, temperature=temperature)

    plain = drawn(None)
    assert torch.equal(drawn(0), plain)
    assert torch.equal(drawn(1), drawn(1))
    another = simulator.rollout(u0, 3, nu=1e-3, mode=mode, temperature=1)
    gaps = [(draw - plain).square().mean().sqrt() for draw in (another, drawn(1), drawn(0.1))]
    assert not torch.allclose(another, drawn(1))
    assert 0 < gaps[2] < 0.3 * gaps[1] < gaps[0]
    # every field and every step has noise of its own
    same = simulator.rollout(u0[:1].expand(2, -1), 1, nu=1e-3, mode=mode, temperature=1)
    assert not torch.allclose(same[0], same[1])


def test_noise_scales_and_shifts_all_but_carried_means():
    simulator = noisy_simulator()
    z = simulator.encode(some_fields()[..., None])
    noise = torch.randn(4, z.shape[1], 3)
    changed = simulator.noise(z, noise)
    free = simulator.num_dynamic_channels
    assert free < z.shape[-1]
    assert torch.equal(changed[..., free:], z[..., free:])
    scale, shift = (noise @ simulator.noise.scale_and_shift.weight.T).chunk(2, -1)
    expected = z[..., :free] * (1 + scale) + shift
    assert torch.allclose(changed[..., :free], expected, atol=1e-6)
    drawn = simulator.rollout(some_fields(), 1, nu=1e-3, temperature=1)
    assert torch.allclose(drawn.mean(-1)[:, 0], some_fields().mean(-1), atol=1e-5)


def test_shared_noise_is_the_same_for_all_tokens():
    """Where the equation is the same everywhere a shifted field has the shifted draw."""
    u0 = some_fields()
    width = POINTS // 8  # of a token
    differences = []
    for shared in (True, False):
        simulator = noisy_simulator(shared=shared)
        drawn = []
        for u in (u0, u0.roll(width, -1)):
            torch.manual_seed(3)
            drawn.append(simulator.rollout(u, 2, nu=1e-3, temperature=1))
        differences.append((drawn[0].roll(width, -1) - drawn[1]).abs().max())
    assert differences[0] < 1e-4 < 1e-2 < differences[1]


@pytest.mark.parametrize("shared", [False, True])
def test_each_step_is_from_tokens_with_noise(shared):
    simulator, nu = noisy_simulator(shared=shared), torch.full((4, 1), 1e-3)
    torch.manual_seed(4)
    u = predict(simulator.stepper(temperature=0.5), some_fields()[..., None], 2, nu)
    torch.manual_seed(4)
    noise = [torch.randn(4, 1 if shared else 8, 3) for _ in range(2)]
    with torch.no_grad():
        z = simulator.encode(some_fields()[..., None])
        for k in range(2):
            z = simulator.step(simulator.noise(z, 0.5 * noise[k]), nu)
            assert torch.allclose(u[:, k], simulator.decode(z), atol=1e-6)


def test_points_between_have_the_noise_of_their_field():
    """A field on two grids is one field: both have the same noise."""
    simulator, u0 = noisy_simulator(), some_fields()
    x = torch.cat((simulator.x, simulator.x + 0.5 / POINTS))
    torch.manual_seed(2)
    both = simulator.rollout(u0, 2, nu=1e-3, temperature=1, x_out=x)
    torch.manual_seed(2)
    alone = simulator.rollout(u0, 2, nu=1e-3, temperature=1)
    assert torch.allclose(both[..., :POINTS], alone, atol=1e-5)


def test_corrector_draws_instead_of_the_noise():
    nets = {
        "mean_network": {"hidden_dim": 8, "depth": 1},
        "denoiser": {"hidden_dim": 8, "depth": 1},
    }
    simulator = noisy_simulator()
    simulator.add_corrector("diffusion", nets)
    options = {"nu": 1e-3, "correct": "diffusion", "temperature": 1}
    torch.manual_seed(0)
    with_noise = simulator.eval().rollout(some_fields(), 2, **options)
    simulator.noise = None
    torch.manual_seed(0)
    assert torch.equal(simulator.rollout(some_fields(), 2, **options), with_noise)


def test_saved_noise_draws_the_same_and_older_files_have_none(tmp_path):
    simulator = noisy_simulator()
    simulator.save(tmp_path / "mine")
    again = ups.load(tmp_path / "mine")
    drawn = []
    for each in (simulator, again):
        torch.manual_seed(0)
        drawn.append(each.rollout(some_fields(), 3, nu=1e-3, temperature=1))
    assert torch.equal(*drawn)
    make_simulator(POINTS).save(tmp_path / "plain")
    path = tmp_path / "plain/config.json"
    config = json.loads(path.read_text())
    assert config.pop("noise") is None
    path.write_text(json.dumps(config))
    assert ups.load(tmp_path / "plain").noise is None


def test_exported_graphs_are_of_the_forecast_without_noise(tmp_path):
    simulator = noisy_simulator()
    to_torch(simulator, tmp_path)
    graphs = {n: torch.export.load(tmp_path / f"{n}.pt2").module() for n in ("encode", "step")}
    z = graphs["step"](graphs["encode"](some_fields(2)), torch.full((2,), 1e-3))
    parameters = torch.full((2, 1), 1e-3)
    expected = simulator.step(simulator.encode(some_fields(2)[..., None]), parameters)
    assert torch.allclose(z, expected, atol=1e-5)


def test_evaluation_scores_the_draws_of_both_modes():
    module = EvaluationModule(noisy_simulator(), "mine", ["none"])
    rows = {}
    for measurement in module.measurements[:2]:
        measurement.start(windows(frames=4))
        torch.manual_seed(0)
        measurement.update(windows(frames=4))
        row = measurement.compute()
        rows[row.mode] = row.metrics
    for mode, row in rows.items():
        simulator = noisy_simulator()
        u = windows(frames=4).u[..., 0]
        torch.manual_seed(0)
        draws = [simulator.rollout(u[:, 0], 3, nu=1e-3, mode=mode, temperature=1) for _ in range(3)]
        crps = fair_crps(torch.stack(draws), u[:, 1:]).mean() / simulator.std
        assert row["crps"] == pytest.approx(crps.item(), rel=1e-4)
        assert row["spread_skill_ratio"] > 0
    assert rows["latent"]["crps"] != rows["physical"]["crps"]


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("fairness", [1.0, 0.25])
def test_loss_of_ensembles_equals_written_out_definitions(fairness):
    simulator, batch = noisy_simulator(), windows(frames=3)
    noise = torch.randn(4, 5, 2, 8, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = ensemble_errors(simulator, batch.u, batch.parameters, noise, True, fairness)
        frames = np.zeros((5, 2, 4, POINTS))
        distances = []
        for row, member in itertools.product(range(4), range(5)):
            z = simulator.encode(batch.u[row : row + 1, 0])
            for k in range(2):
                changed = simulator.noise(z, noise[row : row + 1, member, k])
                z = simulator.step(changed, batch.parameters[row : row + 1])
                frames[member, k, row] = simulator.decode(z)[0, :, 0].numpy()
            again = simulator.encode(simulator.decode(z))
            distances.append(((again - z).square().mean() / z.var()).item())
        plain = operator_errors(simulator, batch.u, batch.parameters, inverse=True)
    truth = batch.u[:, 1:, :, 0].transpose(0, 1).numpy()
    fair, biased = (
        scoringrules.crps_ensemble(truth, frames, m_axis=0, estimator=kind, backend="numpy")
        for kind in ("fair", "nrg")
    )
    crps = fairness * fair + (1 - fairness) * biased
    expected = crps.mean(-1) / simulator.std.item()
    assert found["L_crps"].numpy() == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(found["L_inv_enc"], plain["L_inv_enc"])
    assert found["L_inv_dec"].tolist() == pytest.approx(distances, rel=1e-3)
    few = ensemble_errors(simulator, batch.u, batch.parameters, noise, inverse=False)
    assert set(few) == {"L_crps"}


def test_draw_far_from_all_others_is_called_back_by_the_score_of_few_draws_alone():
    target = torch.zeros(1)
    for fairness, slope in ((1.0, 0.0), (0.5, 0.5 / 9)):
        samples = torch.tensor([[1.0], [-1.0], [1e3]], requires_grad=True)
        almost_fair_crps(samples, target, fairness).sum().backward()
        assert samples.grad[2].item() == pytest.approx(slope, abs=1e-6)


def test_module_adds_weighted_inverse_losses_to_the_score():
    module = EnsembleOperatorModule(
        make_simulator(POINTS),
        lambda_inv_enc=0.5,
        lambda_inv_dec=2.0,
        noise_channels=3,
        fairness=0.25,
    )
    batch = windows()
    drawn = module.sample_noise(batch, torch.Generator().manual_seed(0))
    terms = module.compute_losses(batch, *drawn)
    errors = ensemble_errors(module.simulator, batch.u, batch.parameters, *drawn, True, 0.25)
    roots = {name: (errors[name] + 1e-8).sqrt().mean() for name in ("L_inv_enc", "L_inv_dec")}
    expected = errors["L_crps"].mean() + 0.5 * roots["L_inv_enc"] + 2 * roots["L_inv_dec"]
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["L_crps"].item() == pytest.approx(errors["L_crps"].mean().item(), rel=1e-5)
    module.hparams["adaptive_inv_dec"] = True  # each of a sample's draws has the sample's weight
    weight = (1 - errors["L_inv_enc"].sqrt()).clamp(min=0).square()
    of_draws = (errors["L_inv_dec"] + 1e-8).sqrt().unflatten(0, (4, 2)).mean(1)
    expected = expected - 2 * roots["L_inv_dec"] + 2 * (weight * of_draws).mean()
    terms = module.compute_losses(batch, *drawn)
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    module.compute_inverse_losses = False
    alone = module.compute_losses(batch, *drawn)
    assert set(alone) == {"loss", "L_crps"}
    assert alone["loss"] == alone["L_crps"]


@pytest.mark.parametrize("shared", [False, True])
def test_noise_of_training_follows_its_generator_for_each_member_and_step(shared):
    options = {"num_members": 3, "noise_channels": 2, "shared_noise": shared}
    module = EnsembleOperatorModule(make_simulator(POINTS), **options)
    (one,), (same,), (other,) = (
        module.sample_noise(windows(), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert one.shape == (4, 3, 2, 1 if shared else 8, 2)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_validation_scores_draws_with_noise():
    module = EnsembleOperatorModule(make_simulator(POINTS), num_members=3, noise_channels=3)
    torch.nn.init.normal_(module.simulator.noise.scale_and_shift.weight, std=0.2)
    logged = {}
    module.log_dict = lambda values, **options: logged.update(values)
    batch = windows(frames=4)
    module.on_validation_epoch_start()
    module.validation_step(batch, 0)
    module.on_validation_epoch_end()
    u = batch.u[..., 0]
    torch.manual_seed(0)
    draws = [module.simulator.rollout(u[:, 0], 3, nu=1e-3, temperature=1) for _ in range(3)]
    crps = fair_crps(torch.stack(draws), u[:, 1:]).mean() / module.simulator.std
    assert logged["validation/operator/crps"].item() == pytest.approx(crps.item(), rel=1e-4)
    assert logged["validation/operator/spread_skill_ratio"] > 0


def test_ensemble_of_one_is_refused():
    with pytest.raises(UpsError, match="`num_members` must be an integer >= 2, got 1"):
        EnsembleOperatorModule(make_simulator(POINTS), num_members=1)


def test_shards_of_a_batch_have_the_gradients_of_the_whole():
    gradients = []
    for shards in (1, 2):
        module = EnsembleOperatorModule(noisy_simulator(), noise_channels=3)
        torch.nn.init.ones_(module.simulator.noise.scale_and_shift.weight)
        batch = windows()
        (noise,) = module.sample_noise(batch, torch.Generator().manual_seed(0))
        parts = list(zip(batch.chunk(shards), noise.chunk(shards), strict=True))
        terms = sharded_loss(
            lambda part, module=module: module.compute_losses(*part),
            parts,
            list(module.parameters()),
        )
        terms["loss"].backward()
        gradients.append([p.grad for p in module.parameters()])
    assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(*gradients, strict=True))


# ---------------------------------------------------------------- what it is worth


def hidden_waves(n, seed):
    """Windows of a moving wave and a shorter one, of which the first frame shows the longer one."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.arange(POINTS) / POINTS
    phases = 2 * torch.pi * torch.rand(2, n, 1, 1, generator=rng)
    moved = 2 * torch.pi * (x - torch.tensor([0.0, 0.1, 0.2])[:, None])
    large, small = torch.sin(moved + phases[0]), 0.5 * torch.sin(6 * moved + phases[1])
    u = large + small
    u[:, 0] = large[:, 0]
    return Batch(u[..., None], torch.full((n, 1), 1e-3), torch.arange(n), torch.arange(n))


def fitted(module, epochs=6):
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", num_sanity_val_steps=0,
        callbacks=[InverseLossFrequency(1)],
    )  # fmt: skip
    batches = hidden_waves(512, seed=1).chunk(32)
    trainer.fit(
        module,
        DataLoader(batches, batch_size=None, shuffle=True),
        DataLoader([hidden_waves(16, seed=2)], batch_size=None),
    )
    return module.simulator.eval(), float(trainer.callback_metrics["validation/operator/nrmse"])


def scores(simulator):
    """The fair CRPS of eight draws, and their spread and the error of their mean."""
    batch = hidden_waves(64, seed=3)
    u = batch.u[..., 0]
    torch.manual_seed(0)
    temperature = None if simulator.noise is None else 1
    draws = [simulator.rollout(u[:, 0], 2, nu=1e-3, temperature=temperature) for _ in range(8)]
    samples = torch.stack(draws)
    error = (samples.mean(0) - u[:, 1:]).square().mean().sqrt()
    return fair_crps(samples, u[:, 1:]).mean().item(), (samples.std(0).mean() / error).item()


def test_ensemble_of_an_uncertain_future_beats_the_operator_trained_in_as_many_steps():
    torch.manual_seed(0)
    spec = line_spec(POINTS)
    config = {**SPEC, "num_tokens": 8}
    simulator = Simulator(build(config, spec), spec, None, config)
    start, _ = fitted(OperatorModule(simulator, lambda_inv_enc=0.0, lambda_inv_dec=0.0))

    state = {key: value.clone() for key, value in start.state_dict().items()}
    found = {}
    for kind in (OperatorModule, EnsembleOperatorModule):
        again = Simulator(build(config, spec), spec, None, config)
        again.load_state_dict(state)
        found[kind], error = fitted(kind(again, lr=1e-3, lambda_inv_enc=0.1, lambda_inv_dec=0.1))
        assert error < 1
    plain, _ = scores(found[OperatorModule])
    crps, spread = scores(found[EnsembleOperatorModule])
    assert crps < 0.85 * plain
    assert 0.5 < spread < 1.5


# ---------------------------------------------------------------- from the command line


@pytest.mark.usefixtures("drawn")
@pytest.mark.integration
def test_command_makes_an_ensemble_of_a_finished_operator_and_resumes_bit_for_bit(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)

    def call(*words):
        with initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose("config", [*TINY, "trainer.max_epochs=2", *words])
        GlobalHydra.instance().clear()
        return pipeline.run(cfg)

    call("name=first", "trainer.max_epochs=1")
    arguments = ["loss=crps", "init_from=outputs/first", "trainer.max_epochs=2"]
    call("name=whole", *arguments)

    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(RunIncomplete):
            call("name=stopped", *arguments)
    call("name=stopped", *arguments)
    one, other = (ups.load(f"outputs/{name}").state_dict() for name in ("whole", "stopped"))
    assert one["noise.scale_and_shift.weight"].abs().max() > 0
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    rows = json.loads((tmp_path / "outputs/whole/reports/eval_operator.json").read_text())["rows"]
    assert [row["mode"] for row in rows if "crps" in row] == ["latent", "physical"]
    assert "Ensembles" in (tmp_path / "outputs/whole/reports/report.html").read_text()
    log = (tmp_path / "outputs/whole/run.log").read_text()
    assert "L_crps" in log
    record = json.loads((tmp_path / "outputs/whole/checkpoints/operator.json").read_text())
    assert record["settings"]["callbacks.best.monitor"] == "validation/operator/crps"
    # the weights are those of the epoch with the best score
    logged = [float(score) for score in re.findall(r"validation CRPS (\S+)", log)]
    checkpoint = read_checkpoint(tmp_path / "outputs/whole/checkpoints/operator.ckpt")
    assert checkpoint["validation_nrmse"] == pytest.approx(min(logged), abs=1e-4)
    assert "CRPS of draws" in render_model_card(tmp_path / "outputs/whole", "mine")


def test_conditioning_chooses_among_the_draws_of_an_operator_with_noise():
    simulator = noisy_simulator()
    simulator.ttc = TTC(num_candidates=5, guidance_steps=0)
    state = simulator.encode(some_fields()[..., None])
    parameters = torch.full((4, 1), 1e-3)
    guided = simulator.stepper(temperature=1.0, ttc=True)
    torch.manual_seed(0)
    draws = simulator.stepper(temperature=1.0).propose(state, parameters, 5)
    rewards = guided.score(draws, *guided.predict(state, parameters))
    assert rewards.std(1).min() > 0
    torch.manual_seed(0)
    best = draws[torch.arange(4), rewards.argmax(1)]
    assert torch.equal(guided.step(state, parameters), best)
