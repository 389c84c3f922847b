"""The moving frame in which a field has hardly a mean.

An equation with boosts looks the same from every frame that moves at a constant velocity. A network
therefore need not know how fast a field moves as a whole: it sees the field from a frame that moves
along, and what it predicts is moved back.
"""

import torch
from torch import Tensor

from ups.core.fields import PERIODIC_AXIS, Grid, PointCloud
from ups.physics.equation import Equation, translate


class MovingFrame:
    """A frame for each trajectory, which moves by a whole number of cells a step.

    It moves as nearly as that allows at the velocity at which the field is at rest on average. What
    is left of the mean is at most half a cell a step. A frame of exactly that velocity would need
    values between the points of the grid, where a shock may lie anywhere; moved by whole cells, no
    value changes (docs/method.md has both measured). To gradients its velocity is a constant.

    Args:
        equation: the equation. The frame is at rest if there is none, or if it has no boosts.
        u0: the initial fields (B, *space, C).
        domain: where the fields lie. The frame does not move along an axis with ends, nor over
            points without an order.
        dt: the time of a step, one number or (B,).
        group_size: number of consecutive fields that share a frame.
    """

    def __init__(
        self,
        equation: Equation | None,
        u0: Tensor,
        domain: Grid | PointCloud,
        dt: float | Tensor,
        group_size: int = 1,
    ) -> None:
        self.is_moving = False
        boost = equation.boost if equation else None
        if boost is None or not isinstance(domain, Grid):
            return
        self.boost = boost
        self.grid = domain
        step = torch.as_tensor(dt, dtype=u0.dtype, device=u0.device).reshape(-1, 1)
        unit = u0.new_tensor(domain.cell_size) / step
        is_periodic = u0.new_tensor([sides == PERIODIC_AXIS for sides in domain.boundary])
        velocity = boost.velocity(u0.detach()).unflatten(0, (-1, group_size)).mean(1)
        velocity = velocity.repeat_interleave(group_size, 0)
        cells = (velocity / unit * is_periodic).round()
        self.is_moving = bool(cells.any())
        self.cells = cells.long()
        self.velocity = (cells * unit).to(u0.dtype)

    def enter(self, u: Tensor, first_step: int = 0) -> Tensor:
        """See trajectories (B, T, *space, C), which start ``first_step`` steps after the initial
        fields, from the frame.
        """
        return self._move(u, first_step, 1, 1) if self.is_moving else u

    def leave(self, u: Tensor, first_step: int = 1, stride: int = 1) -> Tensor:
        """The inverse of ``enter``, of trajectories that have a frame every ``stride`` steps."""
        return self._move(u, first_step, stride, -1) if self.is_moving else u

    def _move(self, u: Tensor, first_step: int, stride: int, sign: int) -> Tensor:
        frames = u.shape[1]
        step = first_step + stride * torch.arange(frames, device=u.device)
        points = sign * (self.cells[:, None] * step[:, None]).flatten(0, 1)
        velocity = sign * self.velocity.repeat_interleave(frames, 0)
        seen = self.boost.fields(u.flatten(0, 1), velocity)
        return translate(seen[:, None], points, self.grid)[:, 0].unflatten(0, (-1, frames))
