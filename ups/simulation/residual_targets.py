"""The operator's residuals along windows of true frames, in tokens.

They are computed on the fly, or once and cached on disk.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ups.core.batch import Batch
from ups.core.errors import UpsError
from ups.core.fields import FieldSpec
from ups.core.io import check_disk_space, format_bytes
from ups.simulation.latent import project_to_field
from ups.simulation.simulator import Simulator

PARTS = ("state", "pred", "target")
LOST = 5.0  # root mean square of an error, in standard deviations of the data


@dataclass
class ResidualTargets:
    """Single steps of the operator and the corrected tokens they should have reached.

    ``residual_targets`` makes them. S is the number of steps.

    Args:
        state: tokens before the step (S, N, W).
        pred: tokens A(state) that the operator predicts (S, N, W).
        target: ``pred``, moved as little as needed to decode to ``field`` (S, N, W).
        field: the true field after the step (S, *space, C).
        confidence: how far ``field`` determines the solution (S, *space, 1), from 0 to 1.
        parameters: the equation's parameters (S, P).
    """

    state: Tensor
    pred: Tensor
    target: Tensor
    field: Tensor
    confidence: Tensor
    parameters: Tensor

    def conditions(self, spec: FieldSpec) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a corrector's networks take: state, prediction, dt (S,) and parameters."""
        return self.state, self.pred, *spec.condition(self.parameters)


@torch.no_grad()
def residual_targets(simulator: Simulator, batch: Batch, projection_steps: int) -> ResidualTargets:
    """Compute the residual targets of all steps along a batch of windows.

    The first step starts from E(u_0), each later one from the previous target. Rollouts of a
    corrected operator visit such states, but not states E(u_t): grid values do not determine where
    in its cell a shock lies, while the tokens of a rollout do. A prediction that is lost, ``LOST``
    standard deviations of the data from the truth, counts as E(u_{t+1}): an operator may be
    unstable at a few states, and one of their residuals would outweigh all others.

    Args:
        simulator: the simulator with the frozen operator.
        batch: windows (B, K+1, *space, C).
        projection_steps: descent steps that move a prediction to its target.

    Returns:
        The targets of S = B K steps.
    """
    fields = batch.u[:, 1:]
    state = simulator.encode(batch.u[:, 0])
    parts = []
    for k in range(fields.shape[1]):
        pred = simulator.step(state, batch.parameters)
        lost = _is_lost(simulator, pred, fields[:, k])
        if bool(lost.any()):
            pred = pred.index_put((lost,), simulator.encode(fields[lost, k]))
        target = project_to_field(simulator, pred, fields[:, k], projection_steps)
        parts.append((state, pred, target))
        state = target
    tokens = [torch.stack(part, 1).flatten(0, 1) for part in zip(*parts, strict=True)]
    return _with_fields(simulator, batch, tokens)


def _is_lost(simulator: Simulator, tokens: Tensor, field: Tensor) -> Tensor:
    """Whether tokens are lost as a prediction of fields (B, *space, C): (B,)."""
    error = (simulator.decode(tokens) - field) / simulator.std
    return ~(error.square().flatten(1).mean(1) < LOST**2)


def _with_fields(simulator: Simulator, batch: Batch, tokens: Sequence[Tensor]) -> ResidualTargets:
    """Join the tokens ``PARTS`` of a batch's steps with its fields and parameters."""
    state, pred, target = tokens
    fields = batch.u[:, 1:].flatten(0, 1)
    parameters = batch.parameters.repeat_interleave(batch.u.shape[1] - 1, 0)
    if simulator.equation is None:
        confidence = torch.ones_like(fields[..., :1])
    else:
        confidence = simulator.equation.solver_confidence(
            fields,
            simulator.spec.grid,
            simulator.ttc.shock_threshold,
            simulator.ttc.shock_radius,
        )
    return ResidualTargets(state, pred, target, fields, confidence, parameters)


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
        projection_steps: descent steps that move a prediction to its target.
        max_bytes: maximum size in bytes.

    Raises:
        UpsError: the cache would exceed ``max_bytes`` or the free disk space. The message has both
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
        projection_steps: int,
        max_bytes: float = float("inf"),
    ) -> None:
        self.simulator = simulator
        self.path = Path(path)
        shape = (
            windows,
            len(PARTS),
            frames - 1,
            simulator.model.num_tokens,
            simulator.model.hidden_dim,
        )
        self.bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        what = f"the latent cache of {windows} windows in {dtype}"
        if self.bytes > max_bytes:
            raise UpsError(
                f"{what} needs {format_bytes(self.bytes)}, "
                f"but latent_cache_max_bytes allows {format_bytes(max_bytes)}; "
                "latent_cache_dtype=null does without"
            )
        check_disk_space(self.path, self.bytes, what)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # allocate the whole file now: a memory map that fills the disk later kills the process
        with self.path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, self.bytes)
        values = np.memmap(self.path, dtype, "r+", shape=shape)
        for batch in batches:
            targets = residual_targets(simulator, batch, projection_steps)
            parts = torch.stack(
                [getattr(targets, name).unflatten(0, (len(batch), -1)) for name in PARTS], 1
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
        return _with_fields(self.simulator, batch, (state, pred, target))

    def remove(self) -> None:
        """Delete the cache file."""
        self.path.unlink(missing_ok=True)
