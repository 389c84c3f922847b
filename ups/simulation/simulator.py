"""The simulator: a trained model in physical units, and rollouts with it."""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ups.core.compilation import compiled_or_eager
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, Grid, PointCloud
from ups.core.gradients import needs_gradients
from ups.core.points import Points
from ups.core.precision import float32_by_default
from ups.core.schema import plain
from ups.core.settings import PlainDict
from ups.core.stepper import FIELDS_PER_DECODE, Stepper
from ups.physics import Equation, get_equation
from ups.physics.moving_frame import MovingFrame
from ups.physics.time_factor import is_trained, rescale, time_factors
from ups.simulation import model_folder
from ups.simulation.arguments import (
    validate_count,
    validate_fields,
    validate_options,
    validate_parameters,
    validate_places,
)
from ups.simulation.assimilation import (
    USUAL_NOISE,
    Analysis,
    assimilate,
    draw_background,
)
from ups.simulation.corrected import Corrected
from ups.simulation.correctors import ResidualCorrector
from ups.simulation.guidance import TTC, Guided
from ups.simulation.input_range import warn_of_fields, warn_of_parameters
from ups.simulation.latent import LatentStepper
from ups.simulation.latent_noise import LatentNoise, Noisy
from ups.simulation.on_points import OnPoints
from ups.simulation.picture import rollout_figure
from ups.simulation.readings import validate_readings, validate_sensors
from ups.simulation.resampling import resampling
from ups.simulation.symmetric_rollout import symmetric_rollout

CORRECTIONS = ("none", "diffusion", "consistency")


@compiled_or_eager
def _compiled_step(model: Any, z: Tensor, dt: Tensor, parameters: Tensor) -> Tensor:
    """``model.step``: not a method, because a copy of a compiled method steps the original."""
    return model.step(z, dt, parameters)


def _in_grad_mode(frames: Iterator[Tensor], is_enabled: bool) -> Iterator[Tensor]:
    """Yield ``frames``, each made with gradients or without; the caller's mode stays its own."""
    while True:
        with torch.set_grad_enabled(is_enabled):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


class Simulator(nn.Module):
    """A surrogate of a time-dependent field u.

    It is a ``Stepper``: it encodes a field into latent tokens, steps the tokens, and decodes them.
    ``rollout`` and ``stream`` are conveniences that validate their arguments and compose it with a
    corrector and with guidance, see ``stepper``.

    Args:
        model: maps between fields of unit scale (B, *space, C) and latent tokens (B, N, W); see
            ``ups.models``.
        spec: describes the field.
        equation: name of the equation whose physics the baselines, checks and test-time
            conditioning use, see ``ups.physics.get_equation``; None if there is none.
        model_config: the arguments of ``ups.models.build`` for this model. They are kept so that a
            checkpoint describes itself.
        training_parameters: the parameters (P,) of each part of the training data. A rollout
            outside their range logs a warning.
        input_range: the largest of each of ``ups.simulation.input_range.input_size`` among the
            fields of the training data from which a rollout is learnt, mostly the initial ones. The
            first rollout from a field beyond logs a warning.

    Attributes:
        correctors: the correctors that later stages trained, by name.
        is_compiled: whether ``compile`` was called.
        noise: changes the tokens before each step of a draw; None if the operator draws nothing.
        ttc: the settings of test-time conditioning.
    """

    mean: Tensor
    std: Tensor
    feature_units: Tensor

    def __init__(
        self,
        model: nn.Module,
        spec: FieldSpec,
        equation: str | None = None,
        model_config: Mapping[str, object] | None = None,
        training_parameters: Sequence[Sequence[float]] = (),
        input_range: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.spec = spec
        self.equation_name = equation
        self.equation: Equation | None = None if equation is None else get_equation(equation)
        self.model_config = dict(model_config or {})
        self.training_parameters = [[float(value) for value in row] for row in training_parameters]
        self.input_range = dict(input_range or {})
        self.has_warned_of_input = False
        self.is_compiled = False
        self.correctors: MutableMapping[str, ResidualCorrector] = nn.ModuleDict()  # type: ignore[assignment]
        self.noise: LatentNoise | None = None
        self.ttc = TTC()
        units = spec.domain.feature_units if isinstance(spec.domain, PointCloud) else ()
        for name, values in (("mean", spec.mean), ("std", spec.std), ("feature_units", units)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    @property
    def x(self) -> Tensor:
        """The positions of the training grid: (X,) on a line, otherwise (*space, D)."""
        positions = self.spec.grid.positions()
        return positions.squeeze(-1) if positions.ndim == 2 else positions

    @property
    def dt(self) -> float:
        """The time of one step."""
        return self.spec.dt

    @property
    def num_dynamic_channels(self) -> int:
        """The number of channels of a token, from the first, that a step may change."""
        return int(self.model.num_dynamic_channels)

    def encode(
        self, u: Tensor, parameters: Tensor | None = None, points: Points | None = None
    ) -> Tensor:
        """Encode fields (B, *space, C), or (B, P, C) at ``points``, into tokens (B, N, W)."""
        places = self._in_units(points)
        tokens: Tensor = self.model.encode((u - self.mean) / self.std, *places)
        return tokens

    def step(self, state: Tensor, parameters: Tensor) -> Tensor:
        """Advance tokens (B, N, W) by one ``dt`` at ``parameters`` (B, P)."""
        arguments = (state, *self.spec.condition(parameters))
        if self.is_compiled and not torch.is_grad_enabled():
            return _compiled_step(self.model, *arguments)
        tokens: Tensor = self.model.step(*arguments)
        return tokens

    def compile(self) -> None:
        """Compile the steps of rollouts without gradients, for many rollouts of one size.

        torch.compile takes half a minute in the first rollout of each number of fields. Fields then
        differ by rounding. Where it fails, a warning says so and steps stay as they are.
        """
        self.is_compiled = True

    def decode(self, state: Tensor, points: Points | None = None) -> Tensor:
        """Decode tokens (B, N, W) into fields (B, *space, C), or (B, P, C) at ``points``."""
        places = self._in_units(points)
        return torch.addcmul(self.mean, self.model.decode(state, *places), self.std)

    def _in_units(self, points: Points | None) -> tuple[Points, ...]:
        """The points as the model sees them: with features in their usual sizes."""
        if points is None:
            return ()
        return (replace(points, features=points.features / self.feature_units),)

    def on(self, points: Points | None) -> LatentStepper:
        """This simulator with fields at ``points``; itself on the training grid, without any."""
        return self if points is None else OnPoints(self, points)

    def propose(self, state: Tensor, parameters: Tensor, num_candidates: int) -> Tensor:
        """The one candidate for the next tokens (B, 1, N, W)."""
        return self.step(state, parameters)[:, None]

    @float32_by_default()
    def add_corrector(self, name: str, settings: PlainDict) -> ResidualCorrector:
        """Add an untrained corrector.

        Args:
            name: its key in ``correctors``.
            settings: the arguments of ``ups.simulation.correctors.ResidualCorrector`` without the
                sizes of the tokens.

        Returns:
            The corrector.
        """
        sizes = {
            # a model that does not say where its tokens lie has them on a ring
            "tokens": getattr(self.model, "tokens", Grid((self.model.num_tokens,), (1.0,))),
            "hidden_dim": self.model.hidden_dim,
            "num_dynamic_channels": self.num_dynamic_channels,
            "num_parameters": len(self.spec.parameters),
        }
        corrector = ResidualCorrector(**{**settings, **sizes})
        self.correctors[name] = corrector
        return corrector

    @float32_by_default()
    def add_noise(self, settings: PlainDict) -> LatentNoise:
        """Add noise that changes nothing before it is trained.

        Args:
            settings: the arguments of ``LatentNoise`` without the size of the tokens.
        """
        self.noise = LatentNoise(self.num_dynamic_channels, **settings)
        return self.noise

    def stepper(
        self,
        correct: str = "none",
        ttc: bool = False,
        temperature: float | None = None,
        group_size: int = 1,
        points: Points | None = None,
    ) -> Stepper:
        """The composition that these options of ``stream`` select.

        Args:
            correct: see ``stream``.
            ttc: see ``stream``.
            temperature: see ``stream``.
            group_size: number of consecutive states that hold one field on several grids. They
                share the noise of the draws and the choice among candidates.
            points: where the fields lie; None for the training grid.

        Raises:
            UpsError: there is no such corrector, nothing that a temperature could scale, or no
                equation that can guide for ``ttc``.
        """
        stepper = self.on(points)
        if correct != "none":
            corrector = self.correctors[self._validate_corrector(correct)]
            stepper = Corrected(stepper, corrector, temperature, group_size)
        elif temperature:
            if self.noise is None:
                raise UpsError(
                    f"`temperature` must be None or 0, got {temperature!r}: this simulator draws "
                    "nothing without a corrector, as it was not trained with loss=crps."
                )
            stepper = Noisy(stepper, self.noise, temperature, group_size)
        if not ttc:
            return stepper
        return Guided(stepper, self.equation, self.ttc, group_size)

    def moving_frame(self, u0: Tensor, group_size: int = 1) -> MovingFrame:
        """The frame from which ``predict``, ``rollout`` and ``stream`` see fields.

        Args:
            u0: the initial fields (B, *space, C).
            group_size: number of consecutive fields that share a frame.
        """
        return MovingFrame(self.equation, u0, self.spec.domain, self.spec.dt, group_size)

    @torch.no_grad()
    def predict(
        self, stepper: Stepper, u0: Tensor, steps: int, parameters: Tensor, reencode: bool = False
    ) -> Tensor:
        """All frames (B, steps, *space, C) of a rollout of this simulator, without gradients.

        Args:
            stepper: a composition that ``stepper`` returned.
            u0: the initial fields (B, *space, C).
            steps: number of frames.
            parameters: parameters of the equation (B, P).
            reencode: whether each step starts from the encoded field of the step before.
        """
        frames = symmetric_rollout(
            stepper,
            u0,
            steps,
            parameters,
            spec=self.spec,
            equation=self.equation,
            trained=self.training_parameters,
            reencode=reencode,
            frames_per_decode=max(1, FIELDS_PER_DECODE // len(u0)),
        )
        return torch.stack(list(frames), 1)

    def rollout(
        self,
        u0: Tensor,
        steps: int,
        *,
        nu: float | Tensor | None = None,
        parameters: Mapping[str, float | Tensor] | None = None,
        mode: Literal["latent", "physical"] = "latent",
        correct: Literal["none", "diffusion", "consistency"] = "none",
        ttc: bool = False,
        x: Tensor | Points | None = None,
        x_out: Tensor | Points | None = None,
        temperature: float | None = None,
        grad: bool | None = None,
        checkpoint_every: int | None = None,
        stride: int = 1,
    ) -> Tensor:
        """Roll out ``u0`` for ``steps`` steps of ``dt``.

        Main arguments:
            u0: initial fields (B, *space, C), or (*space, C) for a single sample. The channel axis
                may be left out if there is one channel; the frames then have none either.
            steps: number of steps, at least 1.
            nu: the parameter of data that have one parameter, one number or (B,). It has PDEBench's
                meaning (for Burgers the viscosity).
            mode: "latent" encodes once; "physical" decodes and encodes again at every step.
            correct: a corrector trained by a later stage ("diffusion" or "consistency"), or "none".

        Other arguments:
            parameters: the parameters by name, each one number or (B,), instead of ``nu``.
            ttc: whether to choose among corrected candidates and guide them by the equation at
                every step.
            x: positions (P,) of ``u0``, any number in any order, within one period, if the domain
                is a periodic line; default: the training grid. For data on points the ``Points``
                of ``u0`` (B, P, C).
            x_out: positions (Q,), or (Q, D) in D dimensions, of the result, any number in any
                order; default: the training grid. See ``ups.simulation.resampling``. For data on
                points any other ``Points``, at which the model decodes; default: ``x``.
            temperature: factor on the draws of a corrector, or else on the noise of an operator
                trained with ``loss=crps``. 1 samples the learned distribution, as ensembles need; 0
                takes a corrector's mean, or leaves the noise out. Default: the corrector's own, and
                no noise. Refused if there is nothing to draw. Draws use torch's global random
                numbers.
            grad: whether the frames have gradients: True, also with respect to the weights; False;
                or None, only if ``u0``, a parameter, ``x`` or ``x_out`` requires gradients or
                belongs to a transform of ``torch.func``. Time factors, whole-cell moves of the
                frame and the noise of correctors are constants. ``ttc`` has no gradients.
            checkpoint_every: number of steps whose activations are computed again for the gradient
                instead of kept; about the square root of ``steps`` needs the least memory. Frames
                come in groups of as many.
            stride: every how many steps there is a frame: as many as ``steps`` for the last alone.
                A latent rollout decodes nothing else.

        Returns:
            Fields (B, steps // stride, *space, C), without the initial frame.

        Raises:
            UpsError: an argument is out of its range, or this simulator has no such corrector.
        """
        frames = self.stream(
            u0,
            steps,
            nu=nu,
            parameters=parameters,
            mode=mode,
            correct=correct,
            ttc=ttc,
            x=x,
            x_out=x_out,
            temperature=temperature,
            grad=grad,
            checkpoint_every=checkpoint_every,
            stride=stride,
            fields_per_decode=FIELDS_PER_DECODE,
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() or grad is True):
            return torch.stack(list(frames), 1)

    def stream(
        self,
        u0: Tensor,
        steps: int,
        *,
        nu: float | Tensor | None = None,
        parameters: Mapping[str, float | Tensor] | None = None,
        mode: Literal["latent", "physical"] = "latent",
        correct: Literal["none", "diffusion", "consistency"] = "none",
        ttc: bool = False,
        x: Tensor | Points | None = None,
        x_out: Tensor | Points | None = None,
        temperature: float | None = None,
        grad: bool | None = None,
        checkpoint_every: int | None = None,
        stride: int = 1,
        fields_per_decode: int = 1,
    ) -> Iterator[Tensor]:
        """Yield the frames (B, *space, C) of a rollout one at a time.

        Args:
            u0: see ``rollout``, and likewise the arguments that follow.
            fields_per_decode: about how many fields are decoded in one call. Has no effect if every
                step must be decoded before the next.

        Raises:
            UpsError: an argument is out of its range, or this simulator has no such corrector.
        """
        validate_options(steps, mode, temperature, grad, checkpoint_every, stride)
        has_gradients = grad
        if grad is None:
            has_gradients = needs_gradients(u0, nu, x, x_out, parameters)
        if has_gradients and ttc:
            raise UpsError(
                "`ttc` must be False where gradients are needed, got True: guidance has none. "
                "Use grad=False for frames without gradients."
            )
        # without an explicit request, the caller's torch.no_grad() counts
        is_recorded = bool(has_gradients) and (grad is not None or torch.is_grad_enabled())
        frames = self._stream(
            u0,
            steps,
            nu=nu,
            parameters=parameters,
            mode=mode,
            correct=correct,
            ttc=ttc,
            x=x,
            x_out=x_out,
            temperature=temperature,
            checkpoint_every=checkpoint_every,
            stride=stride,
            fields_per_decode=fields_per_decode,
        )
        return _in_grad_mode(frames, is_recorded)

    def _stream(
        self,
        u0: Tensor,
        steps: int,
        *,
        nu: float | Tensor | None,
        parameters: Mapping[str, float | Tensor] | None,
        mode: str,
        correct: str,
        ttc: bool,
        x: Tensor | Points | None,
        x_out: Tensor | Points | None,
        temperature: float | None,
        checkpoint_every: int | None,
        stride: int,
        fields_per_decode: int,
    ) -> Iterator[Tensor]:
        """The frames of ``stream`` in the grad mode of its caller."""
        domain = self.spec.domain
        places, points, queries = validate_places(x, x_out, domain, self.mean)
        sampling = resampling(domain, *places)
        fields, has_channels = validate_fields(u0, self.spec, self.mean, points or places[0])
        names = self.spec.parameters
        values = validate_parameters(nu, parameters, names, len(fields), self.mean)
        stepper = self.stepper(correct, ttc, temperature, sampling.num_grids, points)
        u = sampling.to_grids(fields)
        self._warn(u.detach(), values.detach(), sampling.num_grids)
        frames = symmetric_rollout(
            stepper,
            u,
            steps,
            values.repeat_interleave(sampling.num_grids, 0),
            spec=self.spec,
            equation=self.equation,
            trained=self.training_parameters,
            reencode=mode == "physical",
            group_size=sampling.num_grids,
            frames_per_decode=max(1, fields_per_decode // len(u)),
            checkpoint_every=checkpoint_every,
            stride=stride,
            read=None if queries is None else self.on(queries).decode,
        )
        for u in frames:
            out = sampling.from_grids(u)
            yield out if has_channels else out.squeeze(-1)

    def assimilate(
        self,
        readings: Tensor,
        positions: Tensor,
        times: Sequence[float] | Tensor,
        *,
        background: Tensor | None = None,
        noise: float | Tensor | None = None,
        nu: float | Tensor | None = None,
        parameters: Mapping[str, float | Tensor] | None = None,
        num_draws: int | None = None,
        iterations: int = 80,
    ) -> Analysis:
        """Find the initial state whose rollout fits scattered, noisy readings, for a forecast.

        Sought are tokens: the most probable ones, or draws. A priori they are Gaussian like those
        of ``background``, errors of readings are independent; see ``ups.simulation.assimilation``.

        Args:
            readings: readings (B, R, P, C) at R times and P positions, or (R, P, C) of one
                trajectory; NaN where there is none, but at least one for each. The channel axis may
                be left out if there is one channel; fields then have none either.
            positions: positions (P,), or (P, D) in D dimensions, of the readings, any number in any
                order; (R, P, D) if each time has its own.
            times: times (R,) of the readings, increasing multiples of ``dt`` from 0 on, the time of
                the initial state.
            background: fields (N, *space, C) that say what initial states look like, such as the
                first frames of training data. Only mixtures of them are sought: hundreds, better
                thousands. Default: draws of the equation's initial conditions.
            noise: standard deviation of the errors of readings, in the unit of the field: one
                number, or of a shape that broadcasts to that of ``readings``; default: 5 % of each
                channel's standard deviation in the training data.
            nu: see ``rollout``, and likewise ``parameters``.
            num_draws: number of draws M, which start from the most probable tokens and use torch's
                global random numbers; None for those alone.
            iterations: largest number of steps of a search. Each is about one rollout and its
                gradient. Trajectories are searched one after the other, the draws of one at once.

        Returns:
            The tokens, with methods for fields at the times of the readings and for a forecast.

        Raises:
            UpsError: an argument is out of its range, or the domain is not a grid.
        """
        validate_count(iterations, "iterations")
        if num_draws is not None:
            validate_count(num_draws, "num_draws")
        # the search needs gradients wherever it is called
        with torch.inference_mode(False), torch.enable_grad():
            placed = validate_sensors(positions, self.spec.grid, self.mean)
            seen = validate_readings(
                readings,
                placed,
                times,
                USUAL_NOISE * self.std if noise is None else noise,
                num_channels=self.spec.num_channels,
                dt=self.spec.dt,
                like=self.mean,
            )
            if background is None:
                background = draw_background(self.equation, self.spec)
            fields, _ = validate_fields(background, self.spec, self.mean, name="background")
            if len(fields) < 2:
                raise UpsError(f"`background` must be at least 2 fields, got {len(fields)}.")
            names = self.spec.parameters
            values = validate_parameters(nu, parameters, names, len(seen.values), self.mean)
            return assimilate(self, seen, fields, values, num_draws, iterations)

    def forward(self, u0: Tensor, **options: Any) -> Tensor:
        """The next frame (B, *space, C) after ``u0``; the options are those of ``rollout``."""
        return self.rollout(u0, 1, **options)[:, 0]

    def __repr__(self) -> str:
        domain = self.spec.domain
        points = f"{domain.num_dims}D cloud of"
        if isinstance(domain, Grid):
            points = " x ".join(map(str, domain.shape))
        parts = [
            self.equation_name or "no equation",
            str(self.model_config.get("name", type(self.model).__name__)),
            f"{points} points",
            f"dt={self.spec.dt:g}",
        ]
        for name, values in zip(
            self.spec.parameters, zip(*self.training_parameters, strict=True), strict=False
        ):
            parts.append(f"{name}={', '.join(f'{value:g}' for value in sorted(set(values)))}")
        if len(self.correctors):
            parts.append(f"correctors: {', '.join(self.correctors)}")
        if self.noise is not None:
            parts.append("draws at temperature=1")
        return f"Simulator({'; '.join(parts)})"

    def plot(
        self,
        u: Tensor,
        truth: Tensor | None = None,
        sample: int = 0,
        x: Points | None = None,
    ) -> Figure:
        """Draw a rollout over space and time, beside the truth and the error if it is known.

        On a plane a few frames are drawn, and of a box the plane through the middle of its last
        axis. Fields on points of a plane are drawn in the triangles between them.

        Args:
            u: fields (B, T, *space) or (B, T, *space, C) that ``rollout`` gave on the training
                grid, or (B, T, P, C) at ``x``. The first channel is drawn.
            truth: what ``u`` should be, of the same shape.
            sample: which of the B.
            x: for data on points the points of ``u``.

        Returns:
            A figure; ``figure.savefig("rollout.png")`` writes it, and notebooks show it.

        Raises:
            UpsError: the shapes differ, or ``x`` does not fit the data.
        """
        return rollout_figure(u, truth, sample, self.spec, x)

    def _validate_corrector(self, correct: str) -> str:
        if correct not in CORRECTIONS:
            raise UpsError(f"`correct` must be one of {', '.join(CORRECTIONS)}, got {correct!r}.")
        if correct not in self.correctors:
            held = ", ".join(("none", *self.correctors))
            raise UpsError(
                f"`correct` must be one of {held}, got {correct!r}: this simulator has no such "
                "corrector, because its stage has not been trained."
            )
        return correct

    def _warn(self, u: Tensor, parameters: Tensor, group_size: int) -> None:
        """Warn of parameters (B, P) and, once, of fields (B * group_size, *space, C) beyond the
        training's, as the model will see them.
        """
        factors = time_factors(
            self.equation, self.spec.domain, parameters, self.training_parameters
        )
        # a slower solution of a trained parameter is not beyond
        slowed = (factors != 1)[:, None]
        is_known = is_trained(parameters, self.training_parameters) | slowed
        warn_of_parameters(self.spec.parameters, parameters, is_known, self.training_parameters)
        if not self.input_range or self.has_warned_of_input:
            return
        repeated = (each.repeat_interleave(group_size, 0) for each in (parameters, 1 / factors))
        slow, _ = rescale(self.equation, self.spec.domain, u, *repeated)
        seen = self.moving_frame(slow, group_size).enter(slow[:, None])[:, 0]
        self.has_warned_of_input = warn_of_fields(seen, self.spec, self.input_range)

    def config(self) -> dict[str, object]:
        """Return what a checkpoint needs, besides the weights, to rebuild this simulator.

        It consists of plain values only.
        """
        correctors = {name: corrector.spec for name, corrector in self.correctors.items()}
        config = {
            "model": self.model_config,
            "spec": self.spec.to_dict(),
            "equation": self.equation_name,
            "training_parameters": self.training_parameters,
            "input_range": self.input_range,
            "correctors": correctors,
            "noise": None if self.noise is None else self.noise.settings,
        }
        return {key: plain(value) for key, value in config.items()}

    def save(self, folder: str | Path, card: str = "") -> None:
        """Write a model folder that ``load`` and other tools read.

        Args:
            folder: receives config.json, model.safetensors and, if there is a card, README.md.
            card: text of the model card.
        """
        model_folder.write(Path(folder), self.config(), self.state_dict(), card)
