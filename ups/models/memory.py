"""A patch stepper with a memory: tokens that carry their own points and a few channels more."""

import torch
from torch import Tensor, nn

from ups.core.fields import FieldSpec
from ups.core.schema import Depth, MlpRatio, NonEmpty, NonNegativeInt, PositiveFloat, PositiveInt
from ups.models.mixer import soft_rms_clip
from ups.models.patch_stepper import PatchStepper


class MemoryUPT(PatchStepper):
    """A UPT whose tokens carry their own points and a memory of ``memory_channels``.

    - Encoder: the points, and a linear map of the patches around them as memory.
    - Approximator: as in ``PatchStepper``, on points and memory. It adds to the points and rewrites
      the memory. Both rewriting and the bound keep errors of the memory from adding up.
    - Decoder: the points, and a linear map of the memories around them.

    The memory is what a step knows beyond the field. A physical rollout encodes it again at every
    step and loses that, unless L_inv_dec has brought the encoded memory and the carried one
    together; see docs/notes/model.md for both measured.

    Args:
        spec: see ``PatchStepper``, and likewise the arguments that follow.
        memory_channels: number of channels of the memory, beside the points.
        memory_rms_limit: root mean square at which a token's memory saturates, see
            ``ups.models.mixer.soft_rms_clip``.

    Attributes:
        hidden_dim: channels W of a token: its values, point by point, and its memory.
        num_dynamic_channels: all of them.
    """

    def __init__(
        self,
        spec: FieldSpec,
        num_tokens: PositiveInt = 64,
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
        self.hidden_dim = self.patches.size + memory_channels
        self.num_dynamic_channels = self.hidden_dim
        self.memory_rms_limit = memory_rms_limit
        token_dim = patch_overlap * self.hidden_dim
        self.tokens_in = nn.Parameter(torch.randn(hidden_channels, token_dim) * token_dim**-0.5)
        self.first_memory = nn.Linear(patch_overlap * self.patches.size, memory_channels)
        self.next_memory = nn.Linear(hidden_channels, memory_channels)
        # small: a decoded field starts as the points
        patch_dim = patch_overlap * self.patches.size
        self.memory_out = nn.Parameter(
            0.1 * torch.randn(patch_dim, memory_channels) * memory_channels**-0.5
        )

    def encode(self, u: Tensor) -> Tensor:
        """Encode fields (B, X, C) of unit scale into tokens (B, N, W)."""
        points = super().encode(u)
        return self._join(points, self.first_memory(self.patches.gather(points)))

    def step(self, z: Tensor, dt: Tensor, parameters: Tensor) -> Tensor:
        """Advance tokens (B, N, W) by ``dt`` (B,) at ``parameters`` (B, P)."""
        h = self.mix(z, dt, parameters)
        points = z[..., : self.patches.size] + self.write(h, self.patches_out).to(z.dtype)
        return self._join(points, self.next_memory(h))

    def decode(self, z: Tensor) -> Tensor:
        """Decode tokens (B, N, W) into fields (B, X, C)."""
        points, memory = z.split([self.patches.size, z.shape[-1] - self.patches.size], -1)
        return super().decode(points + self.write(memory, self.memory_out).to(z.dtype))

    def _join(self, points: Tensor, memory: Tensor) -> Tensor:
        return torch.cat(
            (points, soft_rms_clip(memory, self.memory_rms_limit).to(points.dtype)), -1
        )
