"""A token mixer that steps the field itself: the peer that shares our blocks, without latents."""

import torch
from torch import Tensor, nn

from ups.core.fields import FieldSpec
from ups.core.schema import Depth, MlpRatio, NonEmpty, NonNegativeInt, NumPatches, PositiveInt
from ups.models.conditioning import condition_features
from ups.models.mixer import block_matrices, mixer_blocks
from ups.models.patches import Bound, Patches


class PatchStepper(nn.Module):
    """Cuts a field on a grid into patches and adds ``MixerBlock``s' change to them.

    A token is the values of its patch, so encode and decode only reshape. A step reads
    ``patch_overlap`` tokens around each one, mixes, and adds to the points of as many. Latent and
    physical rollouts are the same, and the inverse losses are zero and must be off
    (``lambda_inv=0``). In a homogeneous field a shift by a patch is exactly a shift of the tokens.

    Args:
        spec: describes the field.
        num_tokens: number of patches N; one number for each axis, or their product, of which they
            are as square as they can be. None for patches of about four points along each axis.
        hidden_channels: channels inside a step.
        mlp_ratio: channels inside a block, as a multiple of ``hidden_channels``.
        dilations: distances, in tokens, at which the blocks mix along an axis, in turn. Their sum
            must reach as far as information travels in one step.
        depth: number of blocks for each axis.
        patch_overlap: number of patches along each axis, centered on a token, that it reads and
            writes; odd.
        conserve_mean: whether changes of the mean of each channel are removed, if the field
            conserves it.

    Attributes:
        hidden_dim: channels W of a token: its values, point by point.
        num_dynamic_channels: all of them.
        tokens: the grid of the patches.

    Raises:
        UpsError: the sizes don't fit together.
    """

    def __init__(
        self,
        spec: FieldSpec,
        num_tokens: NumPatches | None = None,
        hidden_channels: PositiveInt = 48,
        mlp_ratio: MlpRatio = 1.0,
        dilations: NonEmpty[NonNegativeInt] = (1, 2, 4, 1),
        depth: Depth = 8,
        patch_overlap: PositiveInt = 3,
        conserve_mean: bool = True,
    ) -> None:
        super().__init__()
        self.patches = Patches(spec, num_tokens)
        self.neighborhood = self.patches.neighborhood(patch_overlap)
        self.tokens = self.patches.tokens
        self.num_tokens = self.patches.number
        self.hidden_dim = self.patches.size
        self.num_dynamic_channels = self.patches.size
        self.conserve_mean = conserve_mean and spec.conserves_mean
        patch_dim = self.neighborhood.window * self.patches.size
        self.tokens_in = nn.Parameter(torch.randn(hidden_channels, patch_dim) * patch_dim**-0.5)
        self.condition = nn.Linear(1 + len(spec.parameters), hidden_channels)
        self.blocks = mixer_blocks(self.tokens, hidden_channels, mlp_ratio, dilations, depth)
        # on a plane more tokens write to a point than on a line, each as much less
        writers = hidden_channels * self.neighborhood.window / patch_overlap
        self.patches_out = nn.Parameter(
            torch.randn(patch_dim, hidden_channels) * 0.5 * writers**-0.5
        )
        self.positions = self.patches.positions(hidden_channels)
        self.bound = Bound(self.patches)

    def encode(self, u: Tensor) -> Tensor:
        """Return fields (B, *space, C) as tokens (B, N, W)."""
        return self.patches.cut(u)

    def step(self, z: Tensor, dt: Tensor, parameters: Tensor) -> Tensor:
        """Advance tokens (B, N, W) by ``dt`` (B,) at ``parameters`` (B, P)."""
        change = self.neighborhood.write(self.mix(z, dt, parameters), self.patches_out)
        if self.conserve_mean:
            change = self.patches.with_mean(change, 0.0)
        return self.bound(z + change.to(z.dtype))

    def decode(self, z: Tensor) -> Tensor:
        """Return tokens (B, N, W) as fields (B, *space, C)."""
        return self.patches.join(z)

    def mix(self, z: Tensor, dt: Tensor, parameters: Tensor) -> Tensor:
        """What the blocks make of tokens (B, N, W): (B, N, hidden_channels)."""
        h = self.neighborhood.read(z, self.tokens_in)
        if self.positions is not None:
            h = h + self.positions
        condition = self.condition(condition_features(dt, parameters))
        mixed: Tensor = self.blocks((h + condition[:, None]).to(z.dtype))
        return mixed

    def muon_parameters(self) -> list[Tensor]:
        """The weight matrices of the blocks, which an optimizer may treat as matrices."""
        return block_matrices(self)
