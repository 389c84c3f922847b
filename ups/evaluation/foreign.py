"""Models that are not part of UPS: functions and modules, called as they are and checked."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ups.core.errors import UpsError
from ups.core.fields import FieldSpec, PointCloud
from ups.core.gradients import to_tensor
from ups.core.points import PLACES, Points
from ups.core.schema import validate
from ups.core.stepper import predict
from ups.evaluation.baselines import Persistence

# what a function may get besides the parameters; one of such a name is in ``parameters`` only
RESERVED = ("u", "u0", "steps", "parameters", *PLACES)
KEYWORD_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Predictor:
    """A function that predicts fields, and how to call it.

    Fields have the shape (B, *space, C); with one channel, they have no channel axis. The function
    also gets those of these keyword arguments that it has: each parameter of the data by its name,
    (B,), and ``parameters``, all of them, (B, P). A parameter with the name of another argument is
    in ``parameters`` only. Everything is float32.

    On points, fields have the shape (B, P, C), or (B, P) with one channel. The keyword arguments
    are also ``positions``, ``features`` and ``mask`` of ``ups.Points``. What the function returns
    where the mask is False counts nowhere.

    A module is called in eval mode, with fields on the device of its weights.

    Args:
        function: a function or an ``nn.Module``.
        returns: "frame" if ``function(u)`` returns the next frame, of the shape of ``u``;
            "rollout" if ``function(u0, steps)`` returns all frames (B, steps, *space[, C]) after
            ``u0``.
        arrays: whether the function takes "torch" tensors or "numpy" arrays. It may return either.
    """

    function: Callable[..., Any]
    returns: Literal["frame", "rollout"] = "frame"
    arrays: Literal["torch", "numpy"] = "torch"

    def __str__(self) -> str:
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return f"{name}: {self.arrays}, returns a {self.returns}"


class ForeignModel:
    """Predicts with a ``Predictor``, and checks what it returns.

    Args:
        name: its name in messages.
        predictor: the function.
        spec: describes the field.

    Raises:
        UpsError: the function can't be called as the predictor says.
    """

    def __init__(self, name: str, predictor: Predictor, spec: FieldSpec) -> None:
        options = {"returns": predictor.returns, "arrays": predictor.arrays}
        validate(Predictor, options, name, required="none")
        self.name = name
        self.predictor = predictor
        self.spec = spec
        self.keywords = self._find_keywords()
        self.device = _device_of(predictor.function)

    @torch.no_grad()
    def predict(
        self, u0: Tensor, steps: int, parameters: Tensor, points: Points | None = None
    ) -> Tensor:
        """All frames (B, steps, *space, C) after ``u0`` (B, *space, C), which may lie on points.

        Raises:
            UpsError: the function returns something else than finite fields of this shape.
        """
        if self.predictor.returns == "rollout":
            frames = self.call(u0, parameters, points, steps)
        else:
            frames = predict(_ForeignStepper(self, points), u0, steps, parameters)
        is_finite = frames.isfinite().transpose(0, 1).flatten(1).all(1)
        if not bool(is_finite.all()):
            frame = int(is_finite.long().argmin()) + 1
            raise UpsError(
                f"`{self.name}` must return finite fields, got NaN or inf in frame {frame} of "
                f"{steps}."
            )
        return frames

    def call(self, u: Tensor, parameters: Tensor, points: Points | None, *steps: int) -> Tensor:
        """The fields (B, *steps, *space, C) that the function returns for ``u`` (B, *space, C)."""
        has_channels = self.spec.num_channels > 1
        given = dict(zip(self.spec.parameters, parameters.unbind(1), strict=True))
        given |= {"parameters": parameters}
        if points is not None:
            given |= {name: getattr(points, name) for name in PLACES}
        keywords = {key: self._copied(given[key]) for key in self.keywords}
        fields = self._copied(u if has_channels else u.squeeze(-1))
        try:
            result = self.predictor.function(fields, *steps, **keywords)
        except Exception as error:
            error.add_note(f"This is an error of the model `{self.name}`.")
            raise
        shape = (len(u), *steps, *fields.shape[1:])
        out = self._checked(result, shape).to(u, copy=True)
        out = out if has_channels else out.unsqueeze(-1)
        if points is None:
            return out
        padding = ~points.mask[(slice(None), *(None for _ in steps), ..., None)]
        return out.masked_fill(padding, 0)

    def _copied(self, value: Tensor) -> Tensor | np.ndarray:
        # a function that changes its argument must not change the data, nor its earlier frames
        value = value.to(self.device, copy=True)
        return value.cpu().numpy() if self.predictor.arrays == "numpy" else value

    def _checked(self, result: object, shape: tuple[int, ...]) -> Tensor:
        """The fields of ``shape`` in ``result``."""
        if not isinstance(result, Tensor | np.ndarray):
            kind = type(result).__name__
            raise UpsError(f"`{self.name}` must return a tensor or an array, got {kind}.")
        is_real = (
            result.is_floating_point() if isinstance(result, Tensor) else result.dtype.kind == "f"
        )
        if not is_real:
            raise UpsError(
                f"`{self.name}` must return real floating-point numbers, got {result.dtype}."
            )
        if tuple(result.shape) != shape:
            what = "the next frame" if self.predictor.returns == "frame" else "all frames"
            raise UpsError(
                f"`{self.name}` must return {what}, of shape {shape}, got {tuple(result.shape)}."
            )
        return to_tensor(result, None, None)

    def _find_keywords(self) -> list[str]:
        """The keyword arguments that the function has of those that there are."""
        function = self.predictor.function
        if not callable(function):
            kind = type(function).__name__
            raise UpsError(f"`{self.name}` must be a function or a module, got {kind}.")
        try:
            forward = function.forward if isinstance(function, nn.Module) else function
            signature = inspect.signature(forward)
        except (TypeError, ValueError):  # written in C
            return []
        kinds = {key: each.kind for key, each in signature.parameters.items()}
        takes_any = inspect.Parameter.VAR_KEYWORD in kinds.values()
        places = PLACES if isinstance(self.spec.domain, PointCloud) else ()
        own = [name for name in self.spec.parameters if name not in RESERVED]
        names = [*own, "parameters", *places]
        keywords = [
            key for key in names if kinds.get(key) in KEYWORD_KINDS or (takes_any and key in own)
        ]
        positional = ("u",) if self.predictor.returns == "frame" else ("u0", "steps")
        try:
            signature.bind(*positional, **dict.fromkeys(keywords))
        except TypeError as error:
            raise UpsError(
                f"`{self.name}` must be a function of ({', '.join(positional)}) and of any of the "
                f"keywords {', '.join(names)}; it can't be called so: {error}."
            ) from None
        return keywords


def _device_of(function: object) -> torch.device:
    weights = function.parameters() if isinstance(function, nn.Module) else iter(())
    first = next(weights, None)
    return torch.device("cpu") if first is None else first.device


class _ForeignStepper(Persistence):
    """Moves the field itself forward by a foreign function."""

    def __init__(self, model: ForeignModel, points: Points | None) -> None:
        self.model = model
        self.points = points

    def step(self, state: Tensor, parameters: Tensor) -> Tensor:
        return self.model.call(state, parameters, self.points)


@contextmanager
def in_eval_mode(functions: Sequence[object]) -> Iterator[None]:
    """Put those that are modules into eval mode; afterwards they are in their own mode again."""
    modules = [each for each in functions if isinstance(each, nn.Module)]
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode
