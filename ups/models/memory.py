"""A patch stepper with a memory: tokens that carry their own points and a few channels more."""

import torch
from torch import Tensor, nn

from ups.core.fields import FieldSpec
from ups.core.schema import (
    Depth,
    MlpRatio,
    NonEmpty,
    NonNegativeInt,
    NumPatches,
    PositiveFloat,
    PositiveInt,
)
from ups.models.mixer import soft_rms_clip
from ups.models.patch_stepper import PatchStepper


class MemoryUPT(PatchStepper):
    """A UPT whose tokens carry their own points and a memory of ``memory_channels``.

    - Encoder: the points, and a linear map of the patches around them as memory.
    - Approximator: as in ``PatchStepper``, on points and memory. It adds to the points and rewrites
      the memory. Both rewriting and the bound keep errors of the memory from adding up.
    - Decoder: the points, and a linear map of the memories around them.
    - If the field conserves its mean, the last channels of every token hold it. Nothing may change
      them, no corrector either, and the points are moved to it.

    The memory is what a step knows beyond the field. A physical rollout encodes it again at every
    step and loses that, unless L_inv_dec has brought the encoded memory and the carried one
    together; see docs/notes/model.md for both measured.

    Args:
        spec: see ``PatchStepper``, and likewise the arguments that follow.
        memory_channels: number of channels of the memory, beside the points.
        memory_rms_limit: root mean square at which a token's memory saturates, see
            ``ups.models.mixer.soft_rms_clip``.

    Attributes:
        hidden_dim: channels W of a token: its values, point by point, its memory and the mean.
        num_dynamic_channels: all but the mean's.
    """

    def __init__(
        self,
        spec: FieldSpec,
        num_tokens: NumPatches | None = None,
        memory_channels: PositiveInt = 8,
        memory_rms_limit: PositiveFloat = 3.0,
        hidden_channels: PositiveInt = 48,
        mlp_ratio: MlpRatio = 1.0,
        dilations: NonEmpty[NonNegativeInt] = (1, 2, 4, 1),
        depth: Depth = 8,
        patch_overlap: PositiveInt = 3,
        conserve_mean: bool = True,
    ) -> None:
        super().__init__(
            spec,
            num_tokens,
            hidden_channels,
            mlp_ratio,
            dilations,
            depth,
            patch_overlap,
            conserve_mean,
        )
        self.num_dynamic_channels = self.patches.size + memory_channels
        num_carried = spec.num_channels if self.conserve_mean else 0
        self.hidden_dim = self.num_dynamic_channels + num_carried
        self.sizes = [self.patches.size, memory_channels, num_carried]
        self.memory_rms_limit = memory_rms_limit
        token_dim = self.neighborhood.window * self.num_dynamic_channels
        self.tokens_in = nn.Parameter(torch.randn(hidden_channels, token_dim) * token_dim**-0.5)
        patch_dim = self.neighborhood.window * self.patches.size
        self.first_memory = nn.Linear(patch_dim, memory_channels)
        self.next_memory = nn.Linear(hidden_channels, memory_channels)
        # small: a decoded field starts as the points
        self.memory_out = nn.Parameter(
            0.1 * torch.randn(patch_dim, memory_channels) * memory_channels**-0.5
        )

    def encode(self, u: Tensor) -> Tensor:
        """Encode fields (B, *space, C) of unit scale into tokens (B, N, W)."""
        points = super().encode(u)
        mean = self.patches.mean(points)[:, None, : self.sizes[2]]
        first = self.first_memory
        memory = self.neighborhood.read(points, first.weight, first.bias)
        return self._join(points, memory, mean.expand(-1, self.num_tokens, -1))

    def step(self, z: Tensor, dt: Tensor, parameters: Tensor) -> Tensor:
        """Advance tokens (B, N, W) by ``dt`` (B,) at ``parameters`` (B, P)."""
        points, _, mean = z.split(self.sizes, -1)
        h = self.mix(z[..., : self.num_dynamic_channels], dt, parameters)
        points = self.bound(points + self.neighborhood.write(h, self.patches_out).to(z.dtype))
        return self._join(self._moved(points, mean), self.next_memory(h), mean)

    def decode(self, z: Tensor) -> Tensor:
        """Decode tokens (B, N, W) into fields (B, *space, C)."""
        points, memory, mean = z.split(self.sizes, -1)
        points = points + self.neighborhood.write(memory, self.memory_out).to(z.dtype)
        return super().decode(self._moved(points, mean))

    def _moved(self, points: Tensor, mean: Tensor) -> Tensor:
        """The points with the mean that the tokens carry, which a corrector may have changed."""
        if not self.conserve_mean:
            return points
        return self.patches.with_mean(points, mean.mean(1))

    def _join(self, points: Tensor, memory: Tensor, mean: Tensor) -> Tensor:
        bounded = soft_rms_clip(memory, self.memory_rms_limit)
        return torch.cat((points, bounded.to(points.dtype), mean), -1)
