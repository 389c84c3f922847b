"""Large batches of rollouts, split over CPU threads."""

import threading

import pytest
import torch
from test_rollout import NU, fields

from ups.core.threads import useful_threads, zip_in_threads


@pytest.fixture
def two_threads(monkeypatch):
    """PyTorch has two threads, and a field is enough for one of them."""
    before = torch.get_num_threads()
    monkeypatch.setattr("ups.core.threads.VALUES_PER_THREAD", 32)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def stepped(simulator, monkeypatch):
    """The thread and the number of fields of each step of ``simulator``."""
    calls = []
    step = simulator.model.step

    def counted(z, *condition):
        calls.append((threading.current_thread().name, len(z)))
        return step(z, *condition)

    monkeypatch.setattr(simulator.model, "step", counted)
    return calls


@pytest.mark.parametrize("mode", ["latent", "physical"])
def test_rollout_in_threads_equals_that_in_one(simulator, two_threads, stepped, mode):
    """Fields that move, some of which need two steps for each."""
    simulator.training_parameters = [[NU]]
    u0 = fields(7) + torch.arange(7)[:, None] / 7
    options = {"nu": NU * torch.tensor([1, 2, 1, 1, 2, 1, 1.0]), "mode": mode, "stride": 2}
    torch.set_num_threads(1)
    expected = simulator.rollout(u0, 4, **options)
    assert {name for name, _ in stepped} == {threading.current_thread().name}
    torch.set_num_threads(2)
    stepped.clear()
    found = simulator.rollout(u0, 4, **options)
    assert torch.allclose(found, expected, atol=1e-6)
    assert sorted({size for _, size in stepped}) == [1, 2, 3]
    assert threading.current_thread().name not in {name for name, _ in stepped}


def test_grids_of_one_field_stay_in_one_thread(simulator, two_threads, stepped):
    """Positions between the points take two grids for each of three fields."""
    x_out = torch.tensor([0.3, 0.41])
    u0 = fields(3) + 0.5
    found = simulator.rollout(u0, 2, nu=NU, x=simulator.x + 0.01, x_out=x_out)
    assert sorted({size for _, size in stepped}) == [2, 4]
    torch.set_num_threads(1)
    expected = simulator.rollout(u0, 2, nu=NU, x=simulator.x + 0.01, x_out=x_out)
    assert torch.allclose(found, expected, atol=1e-6)
    torch.set_num_threads(2)
    stepped.clear()
    simulator.rollout(u0[:1], 2, nu=NU, x=simulator.x + 0.01, x_out=x_out)
    assert stepped == [(threading.current_thread().name, 2)] * 2


def test_predictions_in_inference_mode_are_split(simulator, two_threads, stepped):
    with torch.inference_mode():
        u0 = fields(4)[..., None]
        u = simulator.predict(simulator, u0, 2, torch.full((4, 1), NU))
    assert u.is_inference()
    assert {size for _, size in stepped} == {2}


def test_draws_are_those_of_one_thread(simulator, two_threads, stepped):
    simulator.add_noise({"num_channels": 4})
    torch.manual_seed(0)
    simulator.rollout(fields(4), 2, nu=NU, temperature=1.0)
    assert {size for _, size in stepped} == {4}


def test_gradients_and_autocast_keep_a_batch_whole(two_threads):
    u = torch.zeros(4, 32, 1)
    assert useful_threads(u) == 1
    with torch.no_grad():
        assert useful_threads(u) == 2
        assert useful_threads(u[:1]) == useful_threads(u[:, :8]) == 1
        assert useful_threads(u.to("meta")) == 1
        with torch.autocast("cpu", torch.bfloat16):
            assert useful_threads(u) == 1


def test_threads_compute_alone_and_without_gradients(two_threads):
    def setting(count):
        for _ in range(count):
            yield torch.get_num_threads(), torch.is_grad_enabled()

    assert list(zip_in_threads([setting(2), setting(2)], 2)) == [((1, False), (1, False))] * 2
    assert torch.get_num_threads() == 2
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [2]


def test_threads_end_with_the_rollout(simulator, two_threads, monkeypatch):
    before = threading.active_count()
    frames = simulator.stream(fields(4), 3, nu=NU)
    next(frames)
    assert threading.active_count() > before
    frames.close()
    assert threading.active_count() == before

    def fail(z, *condition):
        raise ZeroDivisionError

    monkeypatch.setattr(simulator.model, "step", fail)
    with pytest.raises(ZeroDivisionError):
        simulator.rollout(fields(4), 3, nu=NU)
    assert threading.active_count() == before
