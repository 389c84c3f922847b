"""The simulator: a trained model in physical units, and rollouts with it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ups.errors import UpsError
from ups.models import build
from ups.models.geometry import interpolate

MODES = ("latent", "physical")
CORRECTIONS = ("none", "diffusion", "consistency")


class Simulator(nn.Module):
    """A surrogate of u(x, t) on a periodic line: encode once, step many times, decode where someone looks.

    Args:
        model: maps between fields of unit scale (B, X, 1) on the training grid and latent tokens (B, N, C); see ``ups.models``.
        x: the training grid (X,), uniform, in [0, length).
        dt: the time of one step.
        scale: what fields are divided by before the model sees them.
        spec: how ``ups.models.build`` makes the model; kept so that a checkpoint describes itself.
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
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.dt, self.length, self.spec = float(dt), float(length), dict(spec or {})
        self.register_buffer("x", torch.as_tensor(x, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(float(scale)))

    def encode(self, u: Tensor) -> Tensor:
        """Fields (B, X) on the training grid -> tokens (B, N, C)."""
        return self.model.encode((u / self.scale).unsqueeze(-1))

    def step(self, z: Tensor, nu: Tensor) -> Tensor:
        """Tokens (B, N, C) one ``dt`` on, at ``nu`` (B,)."""
        return self.model.step(z, torch.full_like(nu, self.dt), nu)

    def decode(self, z: Tensor) -> Tensor:
        """Tokens (B, N, C) -> fields (B, X) on the training grid."""
        return self.model.decode(z).squeeze(-1) * self.scale

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
    ) -> Tensor:
        """Roll out ``u0`` for ``steps`` times ``dt``: (B, steps, X_out), without the initial frame. Arguments as in :meth:`stream`."""
        return torch.stack(list(self.stream(u0, steps, nu=nu, mode=mode, correct=correct, ttc=ttc, x=x, x_out=x_out)), 1)

    @torch.no_grad()
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
    ) -> Iterator[Tensor]:
        """Yield the frames (B, X_out) of a rollout one at a time.

        Args:
            u0: initial fields (B, X) or (X,), read as one sample.
            steps: how many frames, at least 1.
            nu: PDEBench's viscosity, one number or (B,).
            mode: "latent" encodes once; "physical" decodes and encodes again at every step.
            correct: a corrector trained by a later stage ("diffusion" or "consistency"), or "none".
            ttc: whether to choose among corrected candidates by physics at every step.
            x, x_out: positions (X,) and (X_out,) of ``u0`` and of the answer in [0, length), any number in any order;
                default: the training grid.

        Raises:
            UpsError: an argument out of its range, or a corrector that this simulator doesn't have.
        """
        u0, nu = self._checked(u0, steps, nu, mode, correct, ttc, x, x_out)
        u = u0 if x is None else interpolate(u0, self._position(x, "x"), self.x, self.length)
        out = None if x_out is None else self._position(x_out, "x_out")
        z = self.encode(u)
        for _ in range(steps):
            z = self.step(z, nu)
            u = self.decode(z)
            yield u if out is None else interpolate(u, self.x, out, self.length)
            if mode == "physical":
                z = self.encode(u)

    def _checked(
        self, u0: Any, steps: int, nu: Any, mode: str, correct: str, ttc: bool, x: Tensor | None, x_out: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        u0 = torch.as_tensor(u0, dtype=torch.float32, device=self.x.device)
        u0 = u0[None] if u0.ndim == 1 else u0
        points = len(self.x) if x is None else len(x)
        if u0.ndim != 2 or u0.shape[1] != points:
            grid = "the training grid; give x= for any other" if x is None else "x"
            raise UpsError(f"u0 has shape {tuple(u0.shape)}; (B, {points}) is expected, the points of {grid}")
        if not bool(torch.isfinite(u0).all()):
            raise UpsError("u0 has values that are not finite; all must be")
        if not isinstance(steps, int) or steps < 1:
            raise UpsError(f"steps={steps}: a whole number of at least 1 is allowed")
        if mode not in MODES:
            raise UpsError(f"mode={mode!r}: allowed are {', '.join(MODES)}")
        if correct not in CORRECTIONS:
            raise UpsError(f"correct={correct!r}: allowed are {', '.join(CORRECTIONS)}")
        if correct != "none" or ttc:
            raise UpsError(f"correct={correct!r}, ttc={ttc}: this simulator holds an operator alone; allowed are correct='none', ttc=False")
        nu = torch.as_tensor(nu, dtype=torch.float32, device=self.x.device).expand(len(u0))
        if not bool((nu > 0).all()):
            raise UpsError(f"nu={nu.min().item():g}: a positive viscosity is allowed")
        return u0, nu

    def _position(self, x: Any, name: str) -> Tensor:
        x = torch.as_tensor(x, dtype=torch.float32, device=self.x.device)
        if x.ndim != 1 or len(x) == 0 or not bool(((x >= 0) & (x < self.length)).all()):
            raise UpsError(f"{name} has shape {tuple(x.shape)}; a non-empty (X,) tensor of positions in [0, {self.length:g}) is expected")
        return x

    def description(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights to make this simulator again; plain values only."""
        return {"model": self.spec, "x": self.x.tolist(), "dt": self.dt, "length": self.length}


def load(path: str | Path) -> Simulator:
    """Load a trained simulator, in eval mode, from a run directory (its EMA weights) or a checkpoint file.

    Only tensors and plain values are unpickled (``weights_only=True``), and only models of ``ups.models`` are built.

    Raises:
        UpsError: nothing there, not a checkpoint of UPS, or weights of another architecture (says which keys differ).
    """
    path = Path(path)
    if path.is_dir():
        names = ("operator_ema.ckpt", "operator.ckpt")
        found = [path / "checkpoints" / name for name in names if (path / "checkpoints" / name).is_file()]
        if not found:
            raise UpsError(f"{path} holds no checkpoints/{' or checkpoints/'.join(names)}: its operator stage has not finished")
        path = found[0]
    if not path.is_file():
        raise UpsError(f"{path} is neither a run directory nor a checkpoint file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        about, state = checkpoint["simulator"], checkpoint["state_dict"]
        state = {k.removeprefix("simulator."): v for k, v in state.items() if k.startswith("simulator.")}
    except Exception as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UpsError(f"{path} is not a checkpoint of UPS, or is damaged ({type(error).__name__}: {reason})") from None
    return restore(about, state, path)


def restore(about: Mapping[str, Any], state: Mapping[str, Tensor], where: str | Path) -> Simulator:
    """Make a simulator from its :meth:`Simulator.description` and its weights."""
    x = torch.tensor(about["x"])
    simulator = Simulator(build(about["model"], points=len(x)), x, about["dt"], about["length"], spec=about["model"])
    own = simulator.state_dict()
    differ = sorted(k for k in own.keys() | state.keys() if k not in own or k not in state or own[k].shape != state[k].shape)
    if differ:
        raise UpsError(f"{where} holds weights of another architecture; {len(differ)} keys differ: {', '.join(differ[:6])}")
    simulator.load_state_dict(state)
    return simulator.eval()
