"""The simulator: a trained model in physical units, and rollouts with it."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.models.interpolation import interpolate
from ups.physics import Equation, get_equation
from ups.simulation import model_folder
from ups.simulation.correctors import ResidualCorrector
from ups.simulation.guidance import TTC, GuidedStepper

MODES = ("latent", "physical")
CORRECTIONS = ("none", "diffusion", "consistency")
# number of fields that are decoded at a time: for single fields the overhead of calls dominates
DECODE_CHUNK = 64
log = logging.getLogger(__name__)


class Simulator(nn.Module):
    """A surrogate of u(x, t) on a periodic line.

    It encodes once, steps the tokens many times, and decodes only the frames that are read.

    Args:
        model: maps between fields of unit scale (B, X, 1) on the training grid and latent tokens
            (B, N, C); see ``ups.models``.
        x: the training grid (X,), uniform, in [0, length).
        dt: the time of one step.
        length: the length of the periodic line.
        scale: fields are divided by it before the model gets them.
        spec: the arguments of ``ups.models.build`` for this model. It is kept so that a checkpoint
            describes itself.
        equation: the equation whose physics the baselines, checks and test-time conditioning use;
            see ``ups.physics``.
        nus: the values of the equation's parameter in the training data. A rollout outside their
            range logs a warning.

    Attributes:
        correctors: the correctors that later stages trained, by name.
        ttc: the settings of test-time conditioning.
    """

    x: Tensor
    scale: Tensor

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        dt: float,
        length: float = 1.0,
        scale: float = 1.0,
        spec: Mapping[str, Any] | None = None,
        equation: str = "burgers",
        nus: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.model: Any = model
        get_equation(equation)  # raises an error if it does not exist
        self.equation = equation
        self.correctors = nn.ModuleDict()
        self.ttc = TTC()
        self.dt, self.length, self.spec, self.nus = (
            float(dt),
            float(length),
            dict(spec or {}),
            tuple(map(float, nus)),
        )
        self.register_buffer("x", torch.as_tensor(x, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(float(scale)))

    @property
    def physics(self) -> Equation:
        """The module of the simulator's equation."""
        return get_equation(self.equation)

    def encode(self, u: Tensor) -> Tensor:
        """Encode fields (B, X) on the training grid into tokens (B, N, C)."""
        return self.model.encode((u / self.scale).unsqueeze(-1))

    def step(self, z: Tensor, nu: Tensor, dt: float | None = None) -> Tensor:
        """Advance tokens (B, N, C) by one ``dt``.

        Args:
            z: tokens (B, N, C).
            nu: the equation's parameter (B,).
            dt: the time of the step; default: the simulator's own.

        Returns:
            Tokens (B, N, C).
        """
        return self.model.step(z, torch.full_like(nu, dt or self.dt), nu)

    def decode(self, z: Tensor) -> Tensor:
        """Decode tokens (B, N, C) into fields (B, X) on the training grid."""
        return self.model.decode(z).squeeze(-1) * self.scale

    def project_to_field(
        self,
        z: Tensor,
        field: Tensor,
        steps: int,
        strength: float = 1.0,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Move tokens ``z`` as little as needed so that they decode closer to ``field``.

        Steepest descent on |weight (D(z) - field)|^2. An exact line search sets the length of each
        step: over such a distance the decoder is almost linear. The result has no gradient, and
        channels that a step may not change keep their values.

        Args:
            z: tokens (B, N, C).
            field: the target field (B, X).
            steps: number of descent steps.
            strength: factor on the length of each step.
            weight: weight of each point (B, X); default: 1.

        Returns:
            Tokens (B, N, C).
        """
        free = torch.arange(z.shape[-1], device=z.device) < self.model.free
        with torch.inference_mode(False):  # guidance also runs in validation and test
            z, field = z.detach().clone(), field.detach().clone()
            weight = torch.ones_like(field) if weight is None else weight.clone()
            for _ in range(steps):
                with torch.enable_grad():
                    at = z.requires_grad_(True)
                    gap = weight * (self.decode(at) - field)
                    direction = torch.autograd.grad(gap.square().sum(), at)[0] * free
                with torch.no_grad():
                    z, gap = z.detach(), gap.detach()
                    # a finite difference: two threads can't use forward-mode derivatives at once
                    size, own = (
                        t.square().mean((1, 2), keepdim=True).sqrt() for t in (z, direction)
                    )
                    direction = direction * (0.01 * size / own.clamp_min(1e-30))
                    along = weight * (self.decode(z + direction) - field) - gap
                    length = (gap * along).sum(-1) / along.square().sum(-1).clamp_min(1e-30)
                    z = z - strength * length[:, None, None] * direction
        return z

    def add_corrector(self, name: str, spec: Mapping[str, Any]) -> ResidualCorrector:
        """Add an untrained corrector.

        Args:
            name: its key in ``correctors``.
            spec: the arguments of ``ups.simulation.correctors.ResidualCorrector`` without the sizes
                of the tokens.

        Returns:
            The corrector.
        """
        sizes = {"tokens": self.model.tokens, "width": self.model.width, "free": self.model.free}
        corrector = ResidualCorrector(**{**spec, **sizes})
        self.correctors[name] = corrector
        return corrector

    def sample_step(
        self,
        z: Tensor,
        nu: Tensor,
        correct: str = "none",
        draws: int = 1,
        temperature: float | None = None,
        mean_first: bool = False,
        alike: int = 1,
    ) -> Tensor:
        """Draw corrected steps from tokens ``z`` with torch's global random numbers.

        Args:
            z: tokens (B, N, C).
            nu: the equation's parameter (B,).
            correct: the name of a corrector, or "none".
            draws: number of steps M from each state.
            temperature: see ``stream``.
            mean_first: whether the first of the steps uses the corrector's mean instead of a draw.
            alike: number of consecutive states that share their noise.

        Returns:
            Tokens (B, M, N, C).
        """
        pred = self.step(z, nu)
        if correct == "none":
            return pred[:, None].expand(-1, draws, -1, -1)
        corrector: Any = self.correctors[correct]
        noise = torch.randn(
            len(z) // alike, draws - mean_first, z.shape[1], corrector.free, device=z.device
        ).repeat_interleave(alike, 0)
        return corrector.sample(
            z, pred, torch.full_like(nu, self.dt), nu, noise, temperature, mean_first
        )

    def rollout(
        self,
        u0: Tensor,
        steps: int,
        *,
        nu: float | Tensor,
        mode: Literal["latent", "physical"] = "latent",
        correct: Literal["none", "diffusion", "consistency"] = "none",
        ttc: bool = False,
        x: Tensor | None = None,
        x_out: Tensor | None = None,
        temperature: float | None = None,
    ) -> Tensor:
        """Roll out ``u0`` for ``steps`` steps of ``dt``; the arguments are those of ``stream``.

        Returns:
            Fields (B, steps, X_out), without the initial frame.
        """
        return torch.stack(
            list(
                self._rollout(
                    DECODE_CHUNK, u0, steps, nu, mode, correct, ttc, x, x_out, temperature
                )
            ),
            1,
        )

    def stream(
        self,
        u0: Tensor,
        steps: int,
        *,
        nu: float | Tensor,
        mode: Literal["latent", "physical"] = "latent",
        correct: Literal["none", "diffusion", "consistency"] = "none",
        ttc: bool = False,
        x: Tensor | None = None,
        x_out: Tensor | None = None,
        temperature: float | None = None,
    ) -> Iterator[Tensor]:
        """Yield the frames (B, X_out) of a rollout one at a time.

        Args:
            u0: initial fields (B, X), or (X,) for a single sample.
            steps: number of frames, at least 1.
            nu: the equation's parameter as in PDEBench (for Burgers the viscosity), one number or
                (B,).
            mode: "latent" encodes once; "physical" decodes and encodes again at every step.
            correct: a corrector trained by a later stage ("diffusion" or "consistency"), or "none".
            ttc: whether to choose among corrected candidates by physics at every step.
            x: positions (X,) of ``u0`` in [0, length), any number in any order; default: the
                training grid.
            x_out: positions (X_out,) of the result in [0, length), any number in any order;
                default: the training grid. For positions off the training grid the field is rolled
                out twice, on the training grid and on one with an offset of half a cell, because
                grid values do not determine where between two points a shock lies.
            temperature: factor on the draws of a corrector. 1 samples the learned distribution, as
                ensembles need; 0 takes its mean, the best single prediction; default: the
                corrector's own. Draws use torch's global random numbers.

        Raises:
            UpsError: an argument is out of its range, or this simulator has no such corrector.
        """
        return self._rollout(1, u0, steps, nu, mode, correct, ttc, x, x_out, temperature)

    @torch.no_grad()
    def _rollout(
        self,
        together: int,
        u0: Tensor,
        steps: int,
        nu: float | Tensor,
        mode: str,
        correct: str,
        ttc: bool,
        x: Tensor | None,
        x_out: Tensor | None,
        temperature: float | None,
    ) -> Iterator[Tensor]:
        """Yield the frames of ``stream``.

        About ``together`` fields are decoded at a time unless every step must be decoded before the
        next.
        """
        u0, nu = self._validate_inputs(u0, steps, nu, mode, correct, x, temperature)
        out = None if x_out is None else self._validate_positions(x_out, "x_out")
        # one solution on interleaved grids
        grids = 1 if out is None or bool(torch.isin(out, self.x).all()) else 2
        points = len(self.x) * grids
        seen_at = torch.stack(
            [(self.x + k * self.length / points) % self.length for k in range(grids)], -1
        ).flatten()
        u = (
            u0
            if x is None and grids == 1
            else interpolate(
                u0, self.x if x is None else self._validate_positions(x, "x"), seen_at, self.length
            )
        )
        u, nu = u.unflatten(-1, (-1, grids)).mT.flatten(0, 1), nu.repeat_interleave(grids)
        conditioner = GuidedStepper(self, nu, correct, temperature, grids) if ttc else None
        z, group = self.encode(u), max(1, together // len(u)) if mode == "latent" else 1
        waiting: list[Tensor] = []
        for step in range(1, steps + 1):
            z = (
                self.sample_step(z, nu, correct, temperature=temperature, alike=grids)[:, 0]
                if conditioner is None
                else conditioner(z)
            )
            waiting.append(z)
            if len(waiting) < group and step < steps:
                continue
            u = self.decode(torch.cat(waiting) if len(waiting) > 1 else z)
            frames = u.unflatten(0, (-1, grids)).mT.flatten(1)
            yield from (
                frames if out is None else interpolate(frames, seen_at, out, self.length)
            ).split(len(u0))
            waiting.clear()
            if mode == "physical":
                z = self.encode(u)

    def _validate_inputs(
        self,
        u0: Any,
        steps: int,
        nu: Any,
        mode: str,
        correct: str,
        x: Tensor | None,
        temperature: float | None,
    ) -> tuple[Tensor, Tensor]:
        """Check the arguments of ``stream`` and return fields (B, X) and parameters (B,)."""
        if torch.as_tensor(u0).is_complex():
            raise UpsError("u0 is complex; a real field is expected")
        u0 = torch.as_tensor(u0, dtype=torch.float32, device=self.x.device)
        u0 = u0[None] if u0.ndim == 1 else u0
        points = len(self.x) if x is None else len(self._validate_positions(x, "x"))
        if u0.ndim != 2 or u0.shape[1] != points or len(u0) == 0:
            grid = "the training grid; give x= for any other" if x is None else "x"
            raise UpsError(
                f"u0 has shape {tuple(u0.shape)}; (B, {points}) is expected, the points of {grid}"
            )
        if not bool(torch.isfinite(u0).all()):
            raise UpsError("u0 has values that are not finite; all must be")
        if not (hasattr(steps, "__index__") and steps >= 1):
            raise UpsError(f"steps={steps!r}: a whole number of at least 1 is allowed")
        if mode not in MODES:
            raise UpsError(f"mode={mode!r}: allowed are {', '.join(MODES)}")
        if correct not in CORRECTIONS:
            raise UpsError(f"correct={correct!r}: allowed are {', '.join(CORRECTIONS)}")
        if correct != "none" and correct not in self.correctors:
            held = ", ".join(("none", *self.correctors))
            raise UpsError(
                f"correct={correct!r}: this simulator has no such corrector, "
                f"its stage has not been trained; allowed are {held}"
            )
        if temperature is not None and not (
            isinstance(temperature, int | float) and temperature >= 0
        ):
            raise UpsError(f"temperature={temperature!r}: a number of at least 0 is allowed")
        try:
            nu = torch.as_tensor(nu, dtype=torch.float32, device=self.x.device).expand(len(u0))
        except (TypeError, ValueError, RuntimeError):
            raise UpsError(
                f"nu={nu!r}: one number, or ({len(u0)},), one for each field, is allowed"
            ) from None
        if not bool(((nu > 0) & nu.isfinite()).all()):
            raise UpsError(f"nu={nu.tolist()}: a positive {self.physics.PARAMETER} is allowed")
        low, high = nu.min().item(), nu.max().item()
        if self.nus and not (0.999 * min(self.nus) <= low and high <= 1.001 * max(self.nus)):
            trained = ", ".join(f"{value:g}" for value in self.nus)
            log.warning(
                "nu from %g to %g: this simulator was trained for %s only, "
                "and knows nothing beyond",
                low,
                high,
                trained,
            )
        return u0, nu

    def _validate_positions(self, x: Any, name: str) -> Tensor:
        """Check that positions ``x`` lie in [0, length) and return them as a tensor (X,)."""
        x = torch.as_tensor(x, dtype=torch.float32, device=self.x.device)
        if x.ndim != 1 or len(x) == 0:
            raise UpsError(
                f"{name} has shape {tuple(x.shape)}; a non-empty (X,) tensor of positions "
                "is expected"
            )
        if not bool(((x >= 0) & (x < self.length)).all()):
            low, high = x.min().item(), x.max().item()
            raise UpsError(
                f"{name} reaches from {low:g} to {high:g}; "
                f"positions in [0, {self.length:g}) are expected, the end left out"
            )
        return x

    def config(self) -> dict[str, Any]:
        """Return what a checkpoint needs, besides the weights, to rebuild this simulator.

        It consists of plain values only.
        """
        correctors = {name: corrector.spec for name, corrector in self.correctors.items()}
        return {
            "model": self.spec,
            "x": self.x.tolist(),
            "dt": self.dt,
            "length": self.length,
            "equation": self.equation,
            "nus": list(self.nus),
            "correctors": correctors,
        }

    def save(self, folder: str | Path, card: str = "") -> None:
        """Write a model folder that ``load`` and other tools read.

        Args:
            folder: receives config.json, model.safetensors and, if there is a card, README.md.
            card: text of the model card.
        """
        model_folder.write(Path(folder), self.config(), self.state_dict(), card)
