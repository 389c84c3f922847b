"""A patch stepper with a memory: tokens that carry their own points and a few channels more."""

import torch
from torch import Tensor, nn

from ups.core.fields import FieldSpec
from ups.core.schema import Depth, MlpRatio, NonEmpty, NonNegativeInt, PositiveFloat, PositiveInt
from ups.models.mixer import soft_rms_clip
from ups.models.patch_stepper import PatchStepper


class MemoryUPT(PatchStepper):
    """Tokens that carry their own points and ``memory_channels`` that no decoder reads.

    - Encoder: the points, and a linear map of the patches around them as memory.
    - Approximator: as in ``PatchStepper``, on points and memory. It adds to the points and rewrites
      the memory. Both rewriting and the bound keep errors of the memory from adding up.
    - Decoder: the points.

    The memory is what a step knows beyond the field. A physical rollout encodes it again at every
    step and loses that. L_inv_dec brings the encoded memory and the carried one together: physical
    rollouts become better and latent ones worse, see docs/notes/model.md for both measured.
    L_inv_enc is zero and must be off (``loss.lambda_inv_enc=0``).

    Args:
        spec: see ``PatchStepper``, and likewise the other arguments.
        memory_channels: number of channels of the memory.
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

    def encode(self, u: Tensor) -> Tensor:
        """Encode fields (B, X, C) of unit scale into tokens (B, N, W)."""
        points = super().encode(u)
        return self._join(points, self.first_memory(self.patches.gather(points)))

    def step(self, z: Tensor, dt: Tensor, parameters: Tensor) -> Tensor:
        """Advance tokens (B, N, W) by ``dt`` (B,) at ``parameters`` (B, P)."""
        h = self.mix(z, dt, parameters)
        points = z[..., : self.patches.size] + self.change(h).to(z.dtype)
        return self._join(points, self.next_memory(h))

    def decode(self, z: Tensor) -> Tensor:
        """Return the points of tokens (B, N, W) as fields (B, X, C)."""
        return super().decode(z[..., : self.patches.size])

    def _join(self, points: Tensor, memory: Tensor) -> Tensor:
        return torch.cat(
            (points, soft_rms_clip(memory, self.memory_rms_limit).to(points.dtype)), -1
        )
