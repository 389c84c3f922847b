"""What the operator leaves along windows of true frames, in tokens; computed as they come, or once and kept on disk."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ups.datamodules.windows import Batch
from ups.errors import UpsError
from ups.files import require_space, size
from ups.rollout import Simulator

PARTS = ("state", "pred", "target")


@dataclass
class Steps:
    """Single steps of the operator (S, N, C) that should have led elsewhere; made by ``assimilated``.

    ``state`` and ``pred`` = A(state); ``target``, the prediction moved as little as it takes to decode to the true next ``field`` (S, X);
    ``certainty`` (S, X) of that field; ``nu`` (S,).
    """

    state: Tensor
    pred: Tensor
    target: Tensor
    field: Tensor
    certainty: Tensor
    nu: Tensor


@torch.no_grad()
def assimilated(simulator: Simulator, batch: Batch, gradient_steps: int) -> Steps:
    """All steps along a batch of windows (B, K+1, X), S = B K: the first from E(u_0), each other from the target before it.

    States on which the truth was imposed like this are where rollouts go. States E(u_t) are not: a point field doesn't say where in its
    cell a shock stands, and the tokens of a rollout do.
    """
    about = _about(simulator, batch)
    fields = batch.u[:, 1:]
    state, parts = simulator.encode(batch.u[:, 0]), []
    for k in range(fields.shape[1]):
        pred = simulator.step(state, batch.nu)
        target = simulator.towards(pred, fields[:, k], gradient_steps)
        parts.append((state, pred, target))
        state = target
    state, pred, target = (torch.stack(part, 1).flatten(0, 1) for part in zip(*parts, strict=True))
    return Steps(state, pred, target, *about)


def _about(simulator: Simulator, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    fields = batch.u[:, 1:].flatten(0, 1)
    return fields, simulator.physics.certainty(fields), batch.nu.repeat_interleave(batch.u.shape[1] - 1)


class LatentCache:
    """The ``Steps`` of an epoch's windows in one file, in float16 or float32; read by the windows' numbers, never written while read.

    Raises:
        UpsError: it would be larger than ``limit`` bytes, or than what is free; names both numbers, before a byte is written.
    """

    def __init__(
        self,
        path: Path,
        simulator: Simulator,
        batches: Iterable[Batch],
        windows: int,
        frames: int,
        dtype: str,
        steps: int,
        limit: float = float("inf"),
    ) -> None:
        self.simulator, self.path = simulator, Path(path)
        shape = windows, len(PARTS), frames - 1, simulator.model.tokens, simulator.model.width
        self.bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        what = f"the latent cache of {windows} windows in {dtype}"
        if self.bytes > limit:
            raise UpsError(f"{what} needs {size(self.bytes)}, but latent_cache_limit allows {size(limit)}; latent_cache=null does without")
        require_space(self.path, self.bytes, what)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("wb") as file:  # all of it now: a memory map that meets a full disk later kills the process
            os.posix_fallocate(file.fileno(), 0, self.bytes)
        values = np.memmap(self.path, dtype, "r+", shape=shape)
        for batch in batches:
            made = assimilated(simulator, batch, steps)
            parts = torch.stack([getattr(made, name).unflatten(0, (len(batch), -1)) for name in PARTS], 1)
            values[batch.window.cpu().numpy()] = parts.cpu().numpy()
        values.flush()
        self.values = np.memmap(self.path, dtype, "r", shape=shape)

    def read(self, batch: Batch) -> Steps:
        rows = torch.from_numpy(self.values[batch.window.cpu().numpy()].astype(np.float32)).to(batch.u.device)
        state, pred, target = rows.transpose(0, 1).flatten(1, 2)
        return Steps(state, pred, target, *_about(self.simulator, batch))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
