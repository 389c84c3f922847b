"""A model of two matrices, and the formulas of its guidance written out."""

import math

import torch
from torch import nn

from ups.core.fields import FieldSpec, Grid
from ups.simulation.simulator import Simulator

TOKENS, WIDTH, FREE, POINTS = 4, 3, 2, 16
DT, LENGTH, SCALE = 0.07, 2.0, 0.6


class ToyModel(nn.Module):
    """A model of two matrices, so that every number can be computed by hand."""

    num_tokens, hidden_dim, num_dynamic_channels = TOKENS, WIDTH, FREE

    def __init__(self, seed=0, dtype=torch.float32):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        flat = TOKENS * WIDTH
        self.into = nn.Parameter(0.3 * torch.randn(POINTS, flat, generator=rng, dtype=dtype))
        self.out = nn.Parameter(0.5 * torch.randn(flat, POINTS, generator=rng, dtype=dtype))

    def encode(self, u):
        return (u[..., 0] @ self.into).unflatten(1, (TOKENS, WIDTH))

    def step(self, z, dt, parameters):
        nu = parameters[:, 0]
        speed = dt[:, None, None] * (1 + (nu / 1e-3).log()[:, None, None])
        moved = z + speed * torch.tanh(z.roll(1, 1) + 0.5)
        return torch.cat((moved[..., :FREE], z[..., FREE:]), -1)

    def decode(self, z):
        return (z.flatten(1) @ self.out)[..., None]


def toy_simulator(equation="burgers", model=None, training_parameters=()):
    """The toy model in units of ``SCALE``, on a periodic line of length ``LENGTH``."""
    spec = FieldSpec(Grid((POINTS,), (LENGTH,)), parameters=("nu",), dt=DT, std=(SCALE,))
    model = ToyModel() if model is None else model
    return Simulator(model, spec, equation, training_parameters=training_parameters)


class FieldStepper:
    """A stepper whose states are fields on a line of length 1, for the reward alone."""

    def __init__(self, points, channels=1):
        names = tuple("uvw"[:channels])
        self.spec = FieldSpec(Grid((points,), (1.0,)), names, std=(9.0,) * channels)

    def decode(self, state):
        return state


def descended(simulator, z, field, steps, strength=1.0, weight=None):
    """Exact steepest descent of a linear decoder, sample by sample.

    From tokens (B, N, W), towards fields (B, X) of weights (B, X).
    """
    matrix = simulator.model.out.detach() * simulator.std
    free = torch.zeros(TOKENS, WIDTH, dtype=matrix.dtype)
    free[:, :FREE] = 1
    free = free.flatten()
    done = []
    for b in range(len(z)):
        flat = z[b].detach().flatten().clone()
        w = torch.ones_like(field[b]) if weight is None else weight[b]
        for _ in range(steps):
            gap = w * (flat @ matrix - field[b])
            slope = free * (matrix @ (w * gap))
            change = w * (slope @ matrix)
            flat = flat - strength * (gap @ change) / (change @ change) * slope
        done.append(flat.view(TOKENS, WIDTH))
    return torch.stack(done)


def burgers_confidence(field, threshold=0.03, radius=3):
    """How far the solver of Burgers' equation is trusted at each point of one field (X,)."""
    n = len(field)
    rms = math.sqrt(sum(float(v) ** 2 for v in field) / n)
    weights = []
    for i in range(n):
        near = range(i - radius - 1, i + radius + 1)
        largest = max(abs(float(field[(j + 1) % n]) - float(field[j % n])) for j in near)
        weights.append(1 / math.sqrt(1 + (largest / rms / threshold) ** 2))
    return torch.tensor(weights, dtype=field.dtype)
