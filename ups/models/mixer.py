"""A token mixer on patches of a grid, built for speed on a fixed set of tokens.

It has the structure of the Universal Physics Transformer (Alkin et al., "Universal Physics
Transformers", NeurIPS 2024): an encoder to a fixed number of latent tokens, an approximator that
steps the tokens, and a decoder. It has no attention. Tokens lie on a grid of their own; each reads
the field through an overlapping patch, and tokens mix with their neighbors. Where the field is the
same everywhere there are no absolute positions: on a periodic grid a shift of the field by the
width of a token is exactly a shift of the tokens.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.core.fields import FieldSpec, Grid
from ups.core.schema import (
    Depth,
    HiddenDim,
    MlpRatio,
    NonEmpty,
    NonNegativeInt,
    NumPatches,
    PositiveFloat,
    PositiveInt,
)
from ups.models.conditioning import condition_features
from ups.models.patches import Patches
from ups.models.token_grid import AxisWindow

TOKENS_IN_CACHE = 1024  # of 48 channels: a block computes with 1 MB, half of a usual cache


class MixerBlock(nn.Module):
    """h + W2 silu(W1 [left, h, right] + b): mixes tokens along an axis, then channels.

    Left and right are the tokens at a distance along the axis.

    Args:
        tokens: the grid of the tokens.
        axis: the axis.
        hidden_dim: channels W of a token.
        mlp_dim: channels inside the block.
        dilation: the distance in tokens.
    """

    def __init__(
        self, tokens: Grid, axis: int, hidden_dim: int, mlp_dim: int, dilation: int
    ) -> None:
        super().__init__()
        self.window = AxisWindow(tokens.shape, tokens.boundary, axis, 3, dilation)
        inputs = 3 * hidden_dim
        self.w1 = nn.Parameter(torch.randn(mlp_dim, inputs) * inputs**-0.5)
        self.b1 = nn.Parameter(torch.zeros(mlp_dim, 1))
        self.w2 = nn.Parameter(torch.randn(hidden_dim, mlp_dim) * 0.5 * mlp_dim**-0.5)
        self.outside = None
        if sides := self.window.num_outside:  # a token beyond each wall or open side
            self.outside = nn.Parameter(torch.zeros(sides, hidden_dim))

    def forward(self, h: Tensor) -> Tensor:
        """Map tokens (B, N, W) to tokens (B, N, W)."""
        b, n, c = h.shape
        device = h.device.type
        is_mixed = torch.is_autocast_enabled(device)
        # rounded before it is copied to the windows, of which each token is in three
        seen = h.to(torch.get_autocast_dtype(device)) if is_mixed else h
        rows = self.window(seen, self.outside)
        y = F.silu(F.linear(rows, self.w1, self.b1.view(-1)))
        if is_mixed:
            # products in low precision, the running sum in full precision
            return h + F.linear(y, self.w2).view(b, n, c)
        return torch.addmm(h.reshape(b * n, c), y, self.w2.T).view(b, n, c)


class MixerBlocks(nn.Sequential):
    """Several ``MixerBlock`` in a row.

    On a CPU a large batch passes through all of them a few samples at a time. The tensors inside a
    block, five times as large as its tokens, then stay in the cache of a core. If gradients are
    recorded the batch stays whole: what is kept for them leaves the cache anyway.
    """

    def forward(self, h: Tensor) -> Tensor:
        """Map tokens (B, N, W) to tokens (B, N, W)."""
        samples = max(1, TOKENS_IN_CACHE // h.shape[1])
        is_inference_on_cpu = h.device.type == "cpu" and not torch.is_grad_enabled()
        if torch.compiler.is_compiling() or not is_inference_on_cpu or len(h) <= samples:
            return self._all(h)
        return torch.cat([self._all(part) for part in h.split(samples)])

    def _all(self, h: Tensor) -> Tensor:
        for block in self:
            h = block(h)
        return h


def mixer_blocks(
    tokens: Grid, hidden_dim: int, mlp_ratio: float, dilations: Sequence[int], depth: int
) -> MixerBlocks:
    """``depth`` blocks for each axis, which mix tokens along the axes in turn.

    Along one axis after the other, a block costs less than half of one that mixes the nine tokens
    of a plane's neighborhood at once, and the error after equal time is smaller; see
    docs/notes/model.md.

    Args:
        tokens: the grid of the tokens.
        hidden_dim: channels W of a token.
        mlp_ratio: channels inside a block, as a multiple of ``hidden_dim``.
        dilations: the distances, in turn.
        depth: number of blocks for each axis.
    """
    mlp_dim = max(1, round(mlp_ratio * hidden_dim))
    return MixerBlocks(
        *(
            MixerBlock(tokens, axis, hidden_dim, mlp_dim, dilations[i % len(dilations)])
            for i in range(depth)
            for axis in range(tokens.num_dims)
        )
    )


def block_matrices(module: nn.Module) -> list[Tensor]:
    """The weight matrices of all blocks in ``module``, which an optimizer may treat as matrices."""
    return [p for m in module.modules() if isinstance(m, MixerBlock) for p in (m.w1, m.w2)]


def soft_rms_clip(z: Tensor, limit: float) -> Tensor:
    """z / sqrt(1 + |z|^2 / limit^2) for tokens (B, N, W), with |z|^2 the mean over channels.

    It bounds large tokens and is the identity for small ones. LayerNorm bounds latent rollouts too,
    but it discards the size of a token and with it the precision of small differences; see
    docs/notes/model.md for both measured.
    """
    mean_square = z.square().mean(-1, keepdim=True)
    return z * torch.rsqrt(1 + mean_square / limit**2)


class MixerUPT(nn.Module):
    """Encoder, approximator and decoder of ``MixerBlock`` over tokens on a grid.

    Args:
        spec: describes the field.
        num_tokens: N of the latent state (B, N, W): one number for each axis, or their product, of
            which the patches are as square as they can be.
        hidden_dim: W of the latent state.
        mlp_ratio: channels inside a block, as a multiple of ``hidden_dim``.
        dilations: distances, in tokens, at which the blocks of a part mix along an axis, in turn.
            In the approximator their sum must reach as far as information travels in one step.
        encoder_depth: number of blocks in the encoder, for each axis.
        approximator_depth: likewise in the approximator.
        decoder_depth: likewise in the decoder.
        patch_overlap: number of patches along each axis, centered on a token, that it reads and
            writes; odd.
        latent_rms_limit: root mean square at which tokens saturate; see ``soft_rms_clip``.
        conserve_mean: whether the mean of each channel is carried, if the field conserves it: the
            last channels of every token, as many as the field has, hold it through all steps and
            the decoder sets it, so that mass is conserved to round-off.

    Attributes:
        num_dynamic_channels: number of channels, from the first, that a step may change.
        tokens: the grid of the tokens.

    Raises:
        UpsError: the sizes don't fit together.
    """

    def __init__(
        self,
        spec: FieldSpec,
        num_tokens: NumPatches = 64,
        hidden_dim: HiddenDim = 48,
        mlp_ratio: MlpRatio = 1.0,
        dilations: NonEmpty[NonNegativeInt] = (1, 2, 4, 1),
        encoder_depth: Depth = 2,
        approximator_depth: Depth = 4,
        decoder_depth: Depth = 2,
        patch_overlap: PositiveInt = 3,
        latent_rms_limit: PositiveFloat = 3.0,
        conserve_mean: bool = True,
    ) -> None:
        super().__init__()
        num_channels = spec.num_channels
        self.patches = Patches(spec, num_tokens)
        self.neighborhood = self.patches.neighborhood(patch_overlap)
        self.tokens = self.patches.tokens
        self.num_tokens = self.patches.number
        self.hidden_dim = hidden_dim
        self.num_channels = num_channels
        self.conserve_mean = conserve_mean and spec.conserves_mean
        num_carried = num_channels if self.conserve_mean else 0
        self.num_dynamic_channels = hidden_dim - num_carried
        self.latent_rms_limit = latent_rms_limit
        patch_dim = self.neighborhood.window * self.patches.size
        sizes = (self.tokens, hidden_dim, mlp_ratio, dilations)

        self.patches_in = nn.Parameter(torch.randn(hidden_dim, patch_dim) * patch_dim**-0.5)
        # without a constant input, tokens of u and of 2 u would be multiples of each other
        self.constant = nn.Parameter(torch.randn(hidden_dim, 1, 1))
        self.condition = nn.Linear(1 + len(spec.parameters), hidden_dim)
        self.encoder = mixer_blocks(*sizes, encoder_depth)
        self.approximator = mixer_blocks(*sizes, approximator_depth)
        self.decoder = mixer_blocks(*sizes, decoder_depth)
        # on a plane more tokens write to a point than on a line, each as much less
        writers = hidden_dim * self.neighborhood.window / patch_overlap
        self.patches_out = nn.Parameter(torch.randn(patch_dim, hidden_dim) * 0.5 * writers**-0.5)
        self.positions = self.patches.positions(hidden_dim)

    def encode(self, u: Tensor) -> Tensor:
        """Encode fields (B, *space, C) of unit scale into tokens (B, N, W)."""
        patches = self.patches.cut(u)
        h = self.neighborhood.read(patches, self.patches_in, self.constant.view(-1))
        mean = self.patches.mean(patches)[:, None].expand(-1, self.num_tokens, -1)
        return self._restore_mean(self.soft_rms_clip(self.encoder(self._placed(h))), mean)

    def step(self, z: Tensor, dt: Tensor, parameters: Tensor) -> Tensor:
        """Advance tokens (B, N, W) by ``dt`` (B,) at ``parameters`` (B, P)."""
        # a condition (B, W) for all tokens of a sample
        condition = self.condition(condition_features(dt, parameters))
        h = self.soft_rms_clip(self.approximator(self._placed(z + condition[:, None])))
        return self._restore_mean(h, z[..., -self.num_channels :])

    def decode(self, z: Tensor) -> Tensor:
        """Decode tokens (B, N, W) into fields (B, *space, C) on the training grid."""
        written = self.neighborhood.write(self.decoder(z), self.patches_out).to(z.dtype)
        if self.conserve_mean:
            written = self.patches.with_mean(written, z[..., -self.num_channels :].mean(1))
        return self.patches.join(written)

    def _placed(self, h: Tensor) -> Tensor:
        return h if self.positions is None else h + self.positions

    def soft_rms_clip(self, z: Tensor) -> Tensor:
        """The function of this name, at ``latent_rms_limit``."""
        return soft_rms_clip(z, self.latent_rms_limit)

    def _restore_mean(self, z: Tensor, mean: Tensor) -> Tensor:
        return torch.cat((z[..., : -self.num_channels], mean), -1) if self.conserve_mean else z

    def muon_parameters(self) -> list[Tensor]:
        """The weight matrices of the blocks, which an optimizer may treat as matrices."""
        return block_matrices(self)
