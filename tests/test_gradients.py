"""Gradients through rollouts and solvers: against finite differences and forward mode."""

import pytest
import torch
from conftest import SPEC, make_simulator
from torch.autograd.graph import saved_tensors_hooks

import ups
from ups.core.errors import UpsError
from ups.core.stepper import rollout
from ups.evaluation.baselines import SolverStepper
from ups.physics import advection, burgers
from ups.physics.periodic_1d import limited_linear_reconstruction
from ups.simulation.simulator import Simulator

# torch's own forward mode imports what torch deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.:DeprecationWarning")
NETS = {
    "mean_network": {"hidden_dim": 16, "depth": 1},
    "denoiser": {"hidden_dim": 16, "depth": 1},
    "num_steps": 2,
}
UNIT = 1 / 32 / 0.05  # the speed of one cell a step


def fields(n=2, points=32):
    """Smooth fields that no absolute value has bent, without a mean, float64."""
    x = burgers.cell_centers(points).double()
    phase = torch.arange(n)[:, None] + 0.3
    waves = torch.sin(2 * torch.pi * x + phase) + 0.4 * torch.cos(4 * torch.pi * x - phase)
    return waves - waves.mean(1, keepdim=True)


def assert_has_true_gradients(function, *inputs, step=1e-6):
    """Reverse mode, ``torch.func.grad`` and forward mode agree with central differences.

    Each input is changed on its own, relatively.
    """
    torch.manual_seed(7)
    leaves = [value.clone().requires_grad_() for value in inputs]
    gradients = torch.autograd.grad(function(*leaves), leaves)
    functional = torch.func.grad(function, tuple(range(len(inputs))))(*inputs)
    for i, value in enumerate(inputs):
        change = torch.rand_like(value) * value.abs().amax()
        ends = [
            [other + sign * step * change if j == i else other for j, other in enumerate(inputs)]
            for sign in (-1, 1)
        ]
        low, high = (function(*end).item() for end in ends)
        expected = (high - low) / (2 * step)
        assert expected != 0
        assert (gradients[i] * change).sum().item() == pytest.approx(expected, rel=1e-5)
        assert torch.allclose(functional[i], gradients[i], rtol=1e-9)
        tangents = [change if j == i else torch.zeros_like(v) for j, v in enumerate(inputs)]
        _, along = torch.func.jvp(function, inputs, tuple(tangents))
        assert along.item() == pytest.approx((gradients[i] * change).sum().item(), rel=1e-8)


def weighted_sum(u):
    """A scalar to which each value contributes another amount."""
    return (u * torch.linspace(-1, 2, u.numel(), dtype=u.dtype).sin().view_as(u)).sum()


@pytest.fixture
def double():
    return make_simulator().eval().double()


# ---------------------------------------------------------------- rollouts


OPTIONS = {
    "latent": {},
    "physical": {"mode": "physical"},
    "off the grid": {"x_out": torch.tensor([0.11, 0.327, 0.9], dtype=torch.float64)},
    "from scattered points": {
        "x": (torch.arange(32, dtype=torch.float64) / 32 + 0.013).roll(5),
        "mode": "physical",
    },
}


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("speed", [0.0, 2.2 * UNIT])
def test_rollout_gradients_of_field_and_parameter_are_true(double, case, speed):
    nu = torch.tensor([0.001, 0.003], dtype=torch.float64)

    def function(u0, nu):
        return weighted_sum(double.rollout(u0, 3, nu=nu, **OPTIONS[case]))

    assert_has_true_gradients(function, fields() + speed, nu)


def test_rollout_gradients_are_true_above_the_training_range(double):
    """One field takes three times as many steps, the other one not."""
    double.training_parameters = [[0.001], [0.002]]
    nu = torch.tensor([0.0055, 0.0015], dtype=torch.float64)

    def function(u0, nu):
        return weighted_sum(double.rollout(u0, 2, nu=nu))

    assert_has_true_gradients(function, fields() + 1.1 * UNIT, nu)


def test_rollout_gradients_of_positions_are_true(double):
    u0, x = fields(), burgers.cell_centers(32).double() + 0.003
    x_out = torch.tensor([0.11, 0.327, 0.91], dtype=torch.float64)

    def function(x, x_out):
        return weighted_sum(double.rollout(u0, 2, nu=0.001, x=x, x_out=x_out))

    assert_has_true_gradients(function, x, x_out)


@pytest.mark.parametrize("correct", ["diffusion", "consistency"])
def test_rollout_gradients_are_true_with_correctors(double, correct):
    torch.manual_seed(0)
    sampler = "heun" if correct == "diffusion" else "consistency"
    double.add_corrector(correct, {**NETS, "sampler": sampler})
    double.double()
    nu = torch.tensor([0.001, 0.003], dtype=torch.float64)

    def function(u0, nu):
        torch.manual_seed(3)
        return weighted_sum(double.rollout(u0, 2, nu=nu, correct=correct, temperature=1.0))

    assert_has_true_gradients(function, fields(), nu)


def test_gradient_of_a_sum_of_squares_is_not_zero():
    sim = ups.load("burgers-small")

    def function(u):
        return sim.rollout(u, 1, nu=1e-3).square().sum()

    # a constant stays as it is
    gradient = torch.func.grad(function)(torch.ones(1, 256)).detach()
    assert torch.allclose(gradient, torch.full((1, 256), 2.0), atol=1e-4)


def test_second_derivatives_and_jacobians_are_those_of_reverse_mode(double):
    u0, nu = fields(1), torch.tensor(0.002, dtype=torch.float64)

    def function(nu):
        return weighted_sum(double.rollout(u0, 2, nu=nu))

    first = torch.func.grad(function)
    expected = (first(nu + 1e-7) - first(nu - 1e-7)) / 2e-7
    assert torch.func.hessian(function)(nu).item() == pytest.approx(expected.item(), rel=1e-4)
    forward = torch.func.jacfwd(lambda u: double.rollout(u, 2, nu=nu))(u0)
    backward = torch.func.jacrev(lambda u: double.rollout(u, 2, nu=nu))(u0)
    assert torch.allclose(forward, backward, atol=1e-10)


def test_parameters_by_name_and_in_lists_keep_their_gradients(simulator):
    u0 = fields().float()
    nu = torch.tensor([0.001, 0.003], requires_grad=True)
    (expected,) = torch.autograd.grad(simulator.rollout(u0, 2, nu=nu).square().sum(), nu)
    assert expected.abs().min() > 0
    for given in ({"parameters": {"nu": nu}}, {"nu": [nu[0], nu[1]]}, {"nu": list(nu)}):
        found = simulator.rollout(u0, 2, **given).square().sum()
        assert torch.allclose(torch.autograd.grad(found, nu)[0], expected)
    rows = [row.clone().requires_grad_() for row in u0]
    found = simulator.rollout(rows, 2, nu=0.001).square().sum()
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(found, rows))


def test_several_parameters_have_a_gradient_each():
    spec = make_simulator().spec
    spec = type(spec)(spec.domain, parameters=("a", "b"), dt=0.05)
    simulator = Simulator(ups.models.build(SPEC, spec), spec).eval()
    a = torch.tensor(0.002, requires_grad=True)
    found = simulator.rollout(fields().float(), 2, parameters={"a": a, "b": 0.001})
    assert torch.autograd.grad(found.square().sum(), a)[0] != 0


@pytest.mark.parametrize(
    ("requires_grad", "grad", "has_gradient"),
    [(False, None, False), (True, None, True), (True, False, False), (False, True, True)],
)
def test_frames_have_gradients_where_an_input_or_the_caller_asks(
    simulator, requires_grad, grad, has_gradient
):
    u0 = fields().float().requires_grad_(requires_grad)
    assert simulator.rollout(u0, 2, nu=0.001, grad=grad).requires_grad == has_gradient
    frames = simulator.stream(u0, 2, nu=0.001, grad=grad)
    assert [frame.requires_grad for frame in frames] == [has_gradient] * 2


def test_no_grad_of_the_caller_counts_unless_gradients_are_asked_for(simulator):
    u0 = fields().float().requires_grad_()
    with torch.no_grad():
        assert not simulator.rollout(u0, 2, nu=0.001).requires_grad
        assert simulator.rollout(u0, 2, nu=0.001, grad=True).requires_grad


def test_a_stream_leaves_the_grad_mode_of_its_caller_alone(simulator):
    for grad in (False, True):
        for is_enabled in (False, True):
            with torch.set_grad_enabled(is_enabled):
                for _ in simulator.stream(fields().float(), 3, nu=0.001, grad=grad):
                    assert torch.is_grad_enabled() == is_enabled


def test_an_explicit_request_reaches_the_weights(simulator):
    loss = simulator.rollout(fields().float(), 2, nu=0.002, grad=True).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in simulator.parameters())


def test_guidance_is_refused_where_gradients_are_needed(simulator):
    u0 = fields().float()
    simulator.rollout(u0, 1, nu=0.001, ttc=True)
    for given in ({"u0": u0.clone().requires_grad_()}, {"u0": u0, "grad": True}):
        with pytest.raises(UpsError, match="`ttc` must be False where gradients are needed"):
            simulator.rollout(given.pop("u0"), 1, nu=0.001, ttc=True, **given)
    expected = simulator.rollout(u0, 1, nu=0.001, ttc=True)
    found = simulator.rollout(u0.requires_grad_(), 1, nu=0.001, ttc=True, grad=False)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("options", [{"grad": "yes"}, {"checkpoint_every": 0}])
def test_values_that_mean_nothing_are_refused(simulator, options):
    (name,) = options
    with pytest.raises(UpsError, match=f"`{name}` must be "):
        simulator.rollout(fields(), 2, nu=0.001, **options)


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("mode", ["latent", "physical"])
@pytest.mark.parametrize("every", [1, 3, 7, 50])
def test_checkpoints_change_no_value_and_no_gradient(simulator, mode, every):
    u0 = (fields() + 1.2 * UNIT).float().requires_grad_()
    nu = torch.tensor(0.002, requires_grad=True)
    plain = simulator.rollout(u0, 7, nu=nu, mode=mode)
    found = simulator.rollout(u0, 7, nu=nu, mode=mode, checkpoint_every=every)
    assert torch.allclose(found, plain, atol=1e-6)
    expected = torch.autograd.grad(plain.square().sum(), (u0, nu))
    gradients = torch.autograd.grad(found.square().sum(), (u0, nu))
    for a, b in zip(gradients, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_checkpointed_draws_are_the_same_again(simulator):
    simulator.add_corrector("diffusion", NETS)
    u0 = fields().float().requires_grad_()
    gradients = []
    for every in (None, 2):
        torch.manual_seed(0)
        u = simulator.rollout(
            u0, 4, nu=0.001, correct="diffusion", temperature=1.0, checkpoint_every=every
        )
        gradients.append(torch.autograd.grad(u.square().sum(), u0)[0])
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-5)


def saved_bytes(function):
    """The bytes that autograd keeps for the gradient of ``function``'s result."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    assert result.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("mode", ["latent", "physical"])
def test_checkpoints_keep_at_most_a_quarter_of_a_long_rollout(simulator, mode):
    steps, every = 200, 14
    u0 = fields().float().requires_grad_()

    def saved(steps, checkpoint_every=None):
        return saved_bytes(
            lambda: simulator.rollout(
                u0, steps, nu=0.001, mode=mode, checkpoint_every=checkpoint_every
            )
        )

    # of one group of steps all activations are there while its gradient is computed
    peak = saved(steps, every) + saved(every)
    assert peak <= saved(steps) / 4


def test_checkpoints_are_refused_under_transforms_that_support_none(simulator):
    def function(u):
        return simulator.rollout(u, 2, nu=0.001, checkpoint_every=1).sum()

    with pytest.raises(UpsError, match=r"`checkpoint_every` must be None under torch\.func"):
        torch.func.grad(function)(fields().float())


def test_checkpoints_do_nothing_without_gradients(simulator):
    u0 = fields().float()
    plain = simulator.rollout(u0, 5, nu=0.001)
    assert torch.equal(simulator.rollout(u0, 5, nu=0.001, checkpoint_every=2), plain)


def test_the_free_rollout_has_checkpoints_too(simulator):
    u0 = fields().float()[..., None].requires_grad_()
    parameters = torch.full((2, 1), 0.001)
    plain = torch.stack(list(rollout(simulator, u0, 5, parameters)))
    found = torch.stack(list(rollout(simulator, u0, 5, parameters, checkpoint_every=2)))
    assert torch.allclose(found, plain, atol=1e-6)
    expected, gradient = (torch.autograd.grad(u.square().sum(), u0)[0] for u in (plain, found))
    assert torch.allclose(gradient, expected, atol=1e-5)


# ---------------------------------------------------------------- solvers


@pytest.mark.parametrize("nu", [[0.02], [0.02, 0.05], [8.0, 0.3], [0.0, 0.05]])
def test_burgers_solver_has_true_gradients(nu):
    """With the explicit kernel, and with those in Fourier space."""
    nu = torch.tensor(nu, dtype=torch.float64)

    def function(u0, nu):
        return weighted_sum(burgers.solve(u0, [0.01, 0.05], nu))

    if nu.min() == 0:  # there is no smaller viscosity for a difference
        leaf = nu.clone().requires_grad_()
        assert torch.autograd.grad(function(fields(), leaf), leaf)[0].isfinite().all()
        return
    assert_has_true_gradients(function, fields(), nu)


def test_a_single_viscosity_has_the_gradient_of_all_fields():
    u0 = fields()
    each = torch.tensor([0.03, 0.03], dtype=torch.float64, requires_grad=True)
    one = torch.tensor(0.03, dtype=torch.float64, requires_grad=True)
    frames = [burgers.solve(u0, [0.05], nu) for nu in (each, one)]
    assert torch.equal(*frames)
    each_gradient, one_gradient = (
        torch.autograd.grad(u.square().sum(), nu)[0]
        for u, nu in zip(frames, (each, one), strict=True)
    )
    assert one_gradient.item() == pytest.approx(each_gradient.sum().item())


def test_solver_with_gradients_gives_the_compiled_solution():
    u0 = fields(points=128)
    plain = burgers.solve(u0, [0.1, 0.3], 0.01)
    nu = torch.tensor(0.01, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(burgers.solve(u0, [0.1, 0.3], nu), plain, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(burgers.solve(u0, [0.1, 0.3], nu), plain)


def test_exact_burgers_solution_has_true_gradients():
    def function(u0, nu):
        return weighted_sum(burgers.cole_hopf(u0, [0.05, 0.2], nu))

    assert_has_true_gradients(function, fields(), torch.tensor(0.05, dtype=torch.float64))


def test_the_viscosity_is_found_again_by_its_gradient():
    u0 = fields()
    target = burgers.solve(u0, [0.1], 0.07)
    log_nu = torch.tensor(0.02, dtype=torch.float64).log().requires_grad_()
    optimizer = torch.optim.LBFGS([log_nu], max_iter=30, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = (burgers.solve(u0, [0.1], log_nu.exp()) - target).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert log_nu.exp().item() == pytest.approx(0.07, rel=1e-3)


@pytest.mark.parametrize("solve", [advection.solve, advection.exact])
def test_advection_has_true_gradients(solve):
    def function(u0, nu):
        return weighted_sum(solve(u0, [0.01, 0.23], nu))

    assert_has_true_gradients(function, fields(), torch.tensor(0.7, dtype=torch.float64))


def test_advection_solution_is_the_same_with_gradients():
    u0 = fields()
    nu = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    plain = advection.solve(u0, [0.01, 0.23], 0.7)
    assert torch.allclose(advection.solve(u0, [0.01, 0.23], nu), plain, atol=1e-13)


def test_rollouts_of_the_solver_keep_gradients():
    spec = make_simulator().spec
    stepper = SolverStepper(burgers.EQUATION, spec, 16)
    u0 = fields()[..., None].requires_grad_()
    parameters = torch.full((2, 1), 0.05, dtype=torch.float64, requires_grad=True)
    frames = torch.stack(list(rollout(stepper, u0, 3, parameters)))
    for gradient in torch.autograd.grad(frames.square().sum(), (u0, parameters)):
        assert gradient.abs().sum() > 0


def test_gradients_are_finite_for_flat_and_symmetric_fields():
    symmetric = torch.tensor([[0.0, 1.0, 3.0, 1.0, 0.0, -2.0]])
    for u in (torch.zeros(1, 6), symmetric, 1e15 * symmetric):
        for function in (
            lambda u: limited_linear_reconstruction(u, 2),
            burgers.shock_weight,
        ):
            leaf = u.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(function(leaf).sum(), leaf)
            assert gradient.isfinite().all()


# ---------------------------------------------------------------- dtypes


def test_inputs_are_cast_to_the_dtype_of_the_weights(simulator, double):
    u0, nu = fields().float(), torch.tensor([0.001, 0.003])
    x = simulator.x.numpy()
    x_out = [0.1, 0.33]
    expected = simulator.rollout(u0, 3, nu=nu, x=x, x_out=x_out)
    for given in (u0.double(), u0.double().numpy()):
        found = simulator.rollout(given, 3, nu=nu.double(), x=x, x_out=x_out)
        assert torch.equal(found, expected)
    found = double.rollout(u0, 3, nu=nu, x=x, x_out=x_out)
    assert found.dtype == torch.float64
    assert torch.allclose(found.float(), expected, atol=1e-5)
    guided = double.rollout(u0, 2, nu=nu, ttc=True)
    assert torch.allclose(guided.float(), simulator.rollout(u0, 2, nu=nu, ttc=True), atol=1e-4)


def test_double_precision_is_that_of_the_whole_rollout(double):
    """The slower solution and the moving frame are exact, not to single precision."""
    double.training_parameters = [[0.001]]
    u0 = fields() + 3 * UNIT
    slow = double.rollout(u0 / 3, 6, nu=0.001)
    found = double.rollout(u0, 2, nu=0.003)
    assert torch.allclose(found, 3 * slow[:, 2::3], rtol=1e-12, atol=1e-12)
