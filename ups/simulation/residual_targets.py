"""The operator's residuals along windows of true frames, in tokens.

They are computed on the fly, or once and cached on disk.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.io import check_disk_space, format_bytes
from ups.simulation.simulator import Simulator

PARTS = ("state", "pred", "target")


@dataclass
class ResidualTargets:
    """Single steps of the operator and the corrected tokens they should have reached.

    ``residual_targets`` makes them. S is the number of steps.

    Args:
        state: tokens before the step (S, N, C).
        pred: tokens A(state) that the operator predicts (S, N, C).
        target: ``pred``, moved as little as needed to decode to ``field`` (S, N, C).
        field: the true field after the step (S, X).
        certainty: how far ``field`` determines the solution, 0 to 1 (S, X).
        nu: the equation's parameter (S,).
    """

    state: Tensor
    pred: Tensor
    target: Tensor
    field: Tensor
    certainty: Tensor
    nu: Tensor


@torch.no_grad()
def residual_targets(simulator: Simulator, batch: Batch, gradient_steps: int) -> ResidualTargets:
    """Compute the residual targets of all steps along a batch of windows.

    The first step starts from E(u_0), each later one from the previous target. Rollouts of a
    corrected operator visit such states, but not states E(u_t): grid values do not determine where
    in its cell a shock lies, while the tokens of a rollout do.

    Args:
        simulator: the simulator with the frozen operator.
        batch: windows (B, K+1, X).
        gradient_steps: descent steps that move a prediction to its target.

    Returns:
        The targets of S = B K steps.
    """
    about = _about(simulator, batch)
    fields = batch.u[:, 1:]
    state, parts = simulator.encode(batch.u[:, 0]), []
    for k in range(fields.shape[1]):
        pred = simulator.step(state, batch.nu)
        target = simulator.project_to_field(pred, fields[:, k], gradient_steps)
        parts.append((state, pred, target))
        state = target
    state, pred, target = (torch.stack(part, 1).flatten(0, 1) for part in zip(*parts, strict=True))
    return ResidualTargets(state, pred, target, *about)


def _about(simulator: Simulator, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return the fields (S, X), their certainty (S, X) and nu (S,) of a batch's steps."""
    fields = batch.u[:, 1:].flatten(0, 1)
    return (
        fields,
        simulator.physics.shock_weight(fields),
        batch.nu.repeat_interleave(batch.u.shape[1] - 1),
    )


class LatentCache:
    """The ``ResidualTargets`` of an epoch's windows in one file.

    It is read by window number, and it is never written while it is read.

    Args:
        path: the cache file.
        simulator: the simulator with the frozen operator.
        batches: all windows of an epoch.
        windows: number of windows.
        frames: number of frames of a window, K+1.
        dtype: "float16" or "float32".
        steps: descent steps that move a prediction to its target.
        limit: maximum size in bytes.

    Raises:
        UpsError: the cache would exceed ``limit`` or the free disk space. The message has both
            sizes, and no byte is written.
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
            raise UpsError(
                f"{what} needs {format_bytes(self.bytes)}, "
                f"but latent_cache_limit allows {format_bytes(limit)}; "
                "latent_cache=null does without"
            )
        check_disk_space(self.path, self.bytes, what)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # allocate the whole file now: a memory map that fills the disk later kills the process
        with self.path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.bytes)
        values = np.memmap(self.path, dtype, "r+", shape=shape)
        for batch in batches:
            made = residual_targets(simulator, batch, steps)
            parts = torch.stack(
                [getattr(made, name).unflatten(0, (len(batch), -1)) for name in PARTS], 1
            )
            values[batch.window.cpu().numpy()] = parts.cpu().numpy()
        values.flush()
        self.values = np.memmap(self.path, dtype, "r", shape=shape)

    def read(self, batch: Batch) -> ResidualTargets:
        """Read the residual targets of the windows of ``batch``."""
        rows = torch.from_numpy(self.values[batch.window.cpu().numpy()].astype(np.float32)).to(
            batch.u.device
        )
        state, pred, target = rows.transpose(0, 1).flatten(1, 2)
        return ResidualTargets(state, pred, target, *_about(self.simulator, batch))

    def remove(self) -> None:
        """Delete the cache file."""
        self.path.unlink(missing_ok=True)
