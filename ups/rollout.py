"""The simulator: a trained model in physical units, and rollouts with it."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ups import pretrained
from ups.errors import UpsError
from ups.files import read_tensors, sha256
from ups.models import build
from ups.models.geometry import interpolate
from ups.physics import Equation, find
from ups.sampling import Corrector
from ups.ttc import TTC, Conditioner

MODES = ("latent", "physical")
CORRECTIONS = ("none", "diffusion", "consistency")
# a run's files, each made by a stage that went on from the one before and holding the whole simulator so far
CHAIN = ("operator", "diffusion_residual", "consistency")
TOGETHER = 64  # fields that are decoded at a time: one by one a batch of one spends more on the calls than on the work
log = logging.getLogger(__name__)


class Simulator(nn.Module):
    """A surrogate of u(x, t) on a periodic line: encode once, step many times, decode where someone looks.

    Args:
        model: maps between fields of unit scale (B, X, 1) on the training grid and latent tokens (B, N, C); see ``ups.models``.
        x: the training grid (X,), uniform, in [0, length).
        dt: the time of one step.
        scale: what fields are divided by before the model sees them.
        spec: how ``ups.models.build`` makes the model; kept so that a checkpoint describes itself.
        equation: whose physics baselines, checks and test-time conditioning use, see ``ups.physics``.
        nus: values of the equation's parameter that it is trained for; others are asked for with a warning outside their range.

    ``correctors`` holds what later stages trained, by name; ``ttc`` the settings of test-time conditioning.
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
        find(equation)  # refuses one that isn't there
        self.equation = equation
        self.correctors = nn.ModuleDict()
        self.ttc = TTC()
        self.dt, self.length, self.spec, self.nus = float(dt), float(length), dict(spec or {}), tuple(map(float, nus))
        self.register_buffer("x", torch.as_tensor(x, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(float(scale)))

    @property
    def physics(self) -> Equation:
        return find(self.equation)

    def encode(self, u: Tensor) -> Tensor:
        """Fields (B, X) on the training grid -> tokens (B, N, C)."""
        return self.model.encode((u / self.scale).unsqueeze(-1))

    def step(self, z: Tensor, nu: Tensor, dt: float | None = None) -> Tensor:
        """Tokens (B, N, C) one ``dt`` on, the simulator's own by default, at ``nu`` (B,)."""
        return self.model.step(z, torch.full_like(nu, dt or self.dt), nu)

    def decode(self, z: Tensor) -> Tensor:
        """Tokens (B, N, C) -> fields (B, X) on the training grid."""
        return self.model.decode(z).squeeze(-1) * self.scale

    def towards(self, z: Tensor, field: Tensor, steps: int, strength: float = 1.0, weight: Tensor | None = None) -> Tensor:
        """Move tokens ``z`` (B, N, C), as little as that takes, so that they decode closer to ``field`` (B, X): (B, N, C), no gradient.

        Steepest descent on |weight (D(z) - field)|^2, ``weight`` (B, X) or 1; each of the ``steps`` is as long as an exact line search
        says, times ``strength``: the decoder is all but linear over such a distance. Channels that a step may not change stay.
        """
        free = torch.arange(z.shape[-1], device=z.device) < self.model.free
        with torch.inference_mode(False):  # guidance works in validation and test too
            z, field = z.detach().clone(), field.detach().clone()
            weight = torch.ones_like(field) if weight is None else weight.clone()
            for _ in range(steps):
                with torch.enable_grad():
                    at = z.requires_grad_(True)
                    gap = weight * (self.decode(at) - field)
                    direction = torch.autograd.grad(gap.square().sum(), at)[0] * free
                with torch.no_grad():
                    z, gap = z.detach(), gap.detach()
                    # a derivative by a difference: forward-mode derivatives can't be taken in two threads at once
                    size, own = (t.square().mean((1, 2), keepdim=True).sqrt() for t in (z, direction))
                    direction = direction * (0.01 * size / own.clamp_min(1e-30))
                    along = weight * (self.decode(z + direction) - field) - gap
                    length = (gap * along).sum(-1) / along.square().sum(-1).clamp_min(1e-30)
                    z = z - strength * length[:, None, None] * direction
        return z

    def add_corrector(self, name: str, spec: Mapping[str, Any]) -> Corrector:
        """Make the corrector ``name`` from its ``spec``, the arguments of ``ups.sampling.Corrector`` without the tokens' sizes."""
        sizes = {"tokens": self.model.tokens, "width": self.model.width, "free": self.model.free}
        corrector = Corrector(**{**spec, **sizes})
        self.correctors[name] = corrector
        return corrector

    def advance(
        self,
        z: Tensor,
        nu: Tensor,
        correct: str = "none",
        draws: int = 1,
        temperature: float | None = None,
        mean_first: bool = False,
        alike: int = 1,
    ) -> Tensor:
        """``draws`` corrected steps from tokens ``z`` (B, N, C): (B, draws, N, C), by torch's random numbers.

        See ``stream`` for ``temperature``; with ``mean_first`` the first of the steps is by the corrector's mean. Every ``alike`` states in
        a row share their noise.
        """
        pred = self.step(z, nu)
        if correct == "none":
            return pred[:, None].expand(-1, draws, -1, -1)
        corrector: Any = self.correctors[correct]
        noise = torch.randn(len(z) // alike, draws - mean_first, z.shape[1], corrector.free, device=z.device).repeat_interleave(alike, 0)
        return corrector.sample(z, pred, torch.full_like(nu, self.dt), nu, noise, temperature, mean_first)

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
        """Roll out ``u0`` for ``steps`` times ``dt``: (B, steps, X_out), without the initial frame. Arguments as in ``stream``."""
        return torch.stack(list(self._frames(TOGETHER, u0, steps, nu, mode, correct, ttc, x, x_out, temperature)), 1)

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
            u0: initial fields (B, X) or (X,), read as one sample.
            steps: how many frames, at least 1.
            nu: the equation's parameter, as PDEBench has it (of Burgers the viscosity), one number or (B,).
            mode: "latent" encodes once; "physical" decodes and encodes again at every step.
            correct: a corrector trained by a later stage ("diffusion" or "consistency"), or "none".
            ttc: whether to choose among corrected candidates by physics at every step.
            x, x_out: positions (X,) and (X_out,) of ``u0`` and of the answer in [0, length), any number in any order;
                default: the training grid. Fields asked for elsewhere are rolled out twice, on the training grid and half a cell
                beside it: a field knows where between two points a shock stands only if it is a point.
            temperature: of a corrector's draws: 1 draws from the law that it has learnt, as ensembles need, 0 takes its mean, the best
                single guess; default: what it was trained with. Draws come from torch's random numbers.

        Raises:
            UpsError: an argument out of its range, or a corrector that this simulator doesn't have.
        """
        return self._frames(1, u0, steps, nu, mode, correct, ttc, x, x_out, temperature)

    @torch.no_grad()
    def _frames(
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
        """The frames of ``stream``, about ``together`` fields decoded at a time where that need not be done step by step."""
        u0, nu = self._checked(u0, steps, nu, mode, correct, x, temperature)
        out = None if x_out is None else self._position(x_out, "x_out")
        grids = 1 if out is None or bool(torch.isin(out, self.x).all()) else 2  # one solution, seen on grids that lie between each other
        points = len(self.x) * grids
        seen_at = torch.stack([(self.x + k * self.length / points) % self.length for k in range(grids)], -1).flatten()
        u = u0 if x is None and grids == 1 else interpolate(u0, self.x if x is None else self._position(x, "x"), seen_at, self.length)
        u, nu = u.unflatten(-1, (-1, grids)).mT.flatten(0, 1), nu.repeat_interleave(grids)
        conditioner = Conditioner(self, nu, correct, temperature, grids) if ttc else None
        z, group = self.encode(u), max(1, together // len(u)) if mode == "latent" else 1
        waiting: list[Tensor] = []
        for step in range(1, steps + 1):
            z = self.advance(z, nu, correct, temperature=temperature, alike=grids)[:, 0] if conditioner is None else conditioner(z)
            waiting.append(z)
            if len(waiting) < group and step < steps:
                continue
            u = self.decode(torch.cat(waiting) if len(waiting) > 1 else z)
            frames = u.unflatten(0, (-1, grids)).mT.flatten(1)
            yield from (frames if out is None else interpolate(frames, seen_at, out, self.length)).split(len(u0))
            waiting.clear()
            if mode == "physical":
                z = self.encode(u)

    def _checked(
        self, u0: Any, steps: int, nu: Any, mode: str, correct: str, x: Tensor | None, temperature: float | None
    ) -> tuple[Tensor, Tensor]:
        if torch.as_tensor(u0).is_complex():
            raise UpsError("u0 is complex; a real field is expected")
        u0 = torch.as_tensor(u0, dtype=torch.float32, device=self.x.device)
        u0 = u0[None] if u0.ndim == 1 else u0
        points = len(self.x) if x is None else len(self._position(x, "x"))
        if u0.ndim != 2 or u0.shape[1] != points or len(u0) == 0:
            grid = "the training grid; give x= for any other" if x is None else "x"
            raise UpsError(f"u0 has shape {tuple(u0.shape)}; (B, {points}) is expected, the points of {grid}")
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
            raise UpsError(f"correct={correct!r}: this simulator has no such corrector, its stage has not been trained; allowed are {held}")
        if temperature is not None and not (isinstance(temperature, int | float) and temperature >= 0):
            raise UpsError(f"temperature={temperature!r}: a number of at least 0 is allowed")
        try:
            nu = torch.as_tensor(nu, dtype=torch.float32, device=self.x.device).expand(len(u0))
        except (TypeError, ValueError, RuntimeError):
            raise UpsError(f"nu={nu!r}: one number, or ({len(u0)},), one for each field, is allowed") from None
        if not bool(((nu > 0) & nu.isfinite()).all()):
            raise UpsError(f"nu={nu.tolist()}: a positive {self.physics.PARAMETER} is allowed")
        low, high = nu.min().item(), nu.max().item()
        if self.nus and not (0.999 * min(self.nus) <= low and high <= 1.001 * max(self.nus)):
            trained = ", ".join(f"{value:g}" for value in self.nus)
            log.warning("nu from %g to %g: this simulator was trained for %s only, and knows nothing beyond", low, high, trained)
        return u0, nu

    def _position(self, x: Any, name: str) -> Tensor:
        x = torch.as_tensor(x, dtype=torch.float32, device=self.x.device)
        if x.ndim != 1 or len(x) == 0:
            raise UpsError(f"{name} has shape {tuple(x.shape)}; a non-empty (X,) tensor of positions is expected")
        if not bool(((x >= 0) & (x < self.length)).all()):
            low, high = x.min().item(), x.max().item()
            raise UpsError(f"{name} reaches from {low:g} to {high:g}; positions in [0, {self.length:g}) are expected, the end left out")
        return x

    def description(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights to make this simulator again; plain values only."""
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
        """Write a folder that ``load`` and other tools read: config.json, model.safetensors and README.md, the ``card``."""
        pretrained.write(Path(folder), self.description(), self.state_dict(), card)


def load(path: str | Path, data: Any = None) -> Simulator:
    """Load a trained simulator, in eval mode, from a run directory (its EMA weights, all finished stages), a checkpoint file, a folder
    that ``Simulator.save`` wrote, or, by its name, from what comes with UPS: "burgers-small".

    ``data``, a datamodule, is compared with what the simulator was trained for.

    Only tensors and plain values are unpickled (``weights_only=True``), and only models of ``ups.models`` are built.

    Raises:
        UpsError: nothing there, not a checkpoint of UPS, weights of another architecture (says which keys differ), or other data.
    """
    names = pretrained.shipped()
    path = pretrained.SHIPPED / path if str(path) in names and not Path(path).exists() else Path(path)
    if pretrained.is_folder(path):
        simulator = restore(*pretrained.read(path), path)
    else:
        path = newest(path) if path.is_dir() else path
        if not path.is_file():
            raise UpsError(f"{path} is neither a run directory nor a checkpoint file, nor a model that comes with UPS: {', '.join(names)}")
        checkpoint = read_checkpoint(path)
        simulator = restore(checkpoint["simulator"], checkpoint["state_dict"], path)
    if data is not None and (simulator.equation, len(simulator.x), simulator.dt) != (data.equation, data.points, data.dt):
        raise UpsError(
            f"{path} was trained for {simulator.equation} at {len(simulator.x)} points and dt {simulator.dt:g}; "
            f"{data.path} is of {data.equation} and has {data.points} and {data.dt:g}"
        )
    return simulator


def newest(folder: Path) -> Path:
    """The checkpoint of a run directory that holds most: of the last stage that was trained on what now stands there."""
    names = [folder / "checkpoints" / f"{stem}{suffix}.ckpt" for stem in CHAIN for suffix in ("_ema", "")]
    found = [next((path for path in names[i : i + 2] if path.is_file()), None) for i in range(0, len(names), 2)]
    best = found[0]
    if best is None:
        wanted = " or ".join(f"checkpoints/{path.name}" for path in names[:2])
        raise UpsError(f"{folder} holds no {wanted}: its operator stage has not finished")
    for path in filter(None, found[1:]):
        if read_checkpoint(path)["made_from"] != sha256(best):
            log.warning("%s was trained on another %s than the one beside it, and is left out", path, best.name)
            break
        best = path
    return best


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint file of a finished stage, its weights under the simulator's own names; an UpsError where it isn't one."""
    try:
        checkpoint = read_tensors(path)
        state = {k.removeprefix("simulator."): v for k, v in checkpoint["state_dict"].items() if k.startswith("simulator.")}
        return {"made_from": None, **checkpoint, "simulator": dict(checkpoint["simulator"]), "state_dict": state}
    except Exception as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UpsError(f"{path} is not a checkpoint of UPS, or is damaged ({type(error).__name__}: {reason})") from None


def differing(own: Mapping[str, Tensor], found: Mapping[str, Any]) -> list[str]:
    """The keys by which weights ``found`` somewhere are not those of a model whose ``own`` they should become."""

    def fits(a: Tensor | None, b: Any) -> bool:
        return a is not None and isinstance(b, Tensor) and (b.layout, b.shape, b.dtype) == (a.layout, a.shape, a.dtype)

    return sorted(k for k in own.keys() | found.keys() if not fits(own.get(k), found.get(k)))


def restore(about: Mapping[str, Any], state: Mapping[str, Tensor], where: str | Path) -> Simulator:
    """Make a simulator from its ``Simulator.description`` and its weights."""
    try:
        x = torch.tensor(about["x"])
        simulator = Simulator(
            build(about["model"], points=len(x)),
            x,
            about["dt"],
            about["length"],
            spec=about["model"],
            equation=about["equation"],
            nus=about.get("nus", ()),
        )
        for name, spec in about.get("correctors", {}).items():
            simulator.add_corrector(name, spec)
    except UpsError:
        raise
    except Exception as error:  # a person may have edited it
        raise UpsError(f"{where} does not describe a simulator ({type(error).__name__}: {error})") from None
    own = simulator.state_dict()
    differ = differing(own, state)
    if differ:
        raise UpsError(f"{where} holds weights of another architecture; {len(differ)} keys differ: {', '.join(differ[:6])}")
    spoilt = [k for k, v in state.items() if not bool(torch.isfinite(v).all())]
    if spoilt or not (0 < simulator.dt < math.inf and 0 < simulator.length < math.inf):
        raise UpsError(f"{where} holds values that are not finite: {', '.join(spoilt) or 'dt, length'}")
    simulator.load_state_dict(state)
    return simulator.eval()
