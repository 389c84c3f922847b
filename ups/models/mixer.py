"""A token mixer on patches of a periodic line, built for speed on a fixed set of tokens.

It has the structure of the Universal Physics Transformer (Alkin et al., "Universal Physics
Transformers", NeurIPS 2024): an encoder to a fixed number of latent tokens, an approximator that
steps the tokens, and a decoder. It has no attention and no absolute positions. Token j is centered
at (j + 1/2) L/N and reads the field through an overlapping circular patch; tokens mix with their
neighbors on the circle. A shift of the field by the width of a token is therefore exactly a shift
of the tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.core.fields import FieldSpec
from ups.core.schema import (
    Depth,
    DivisorOfPoints,
    HiddenDim,
    MlpRatio,
    NonEmpty,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from ups.models.conditioning import condition_features
from ups.models.patches import OverlappingPatches, circular_neighbor_indices


class MixerBlock(nn.Module):
    """h + W2 silu(W1 [h_{j-d}, h_j, h_{j+d}] + b): mixes tokens at distance d, then channels.

    Tokens are rows of W channels: one copy concatenates three tokens to a row, and the rest is two
    matrix products.

    Args:
        num_tokens: number of tokens N.
        hidden_dim: channels W of a token.
        mlp_dim: channels inside the block.
        dilation: the distance d in tokens.
    """

    def __init__(self, num_tokens: int, hidden_dim: int, mlp_dim: int, dilation: int) -> None:
        super().__init__()
        self.register_buffer(
            "mix_indices",
            circular_neighbor_indices(num_tokens, (-dilation, 0, dilation)),
            persistent=False,
        )
        self.w1 = nn.Parameter(torch.randn(mlp_dim, 3 * hidden_dim) * (3 * hidden_dim) ** -0.5)
        self.b1 = nn.Parameter(torch.zeros(mlp_dim, 1))
        self.w2 = nn.Parameter(torch.randn(hidden_dim, mlp_dim) * 0.5 * mlp_dim**-0.5)
        self.mix_indices: Tensor

    def forward(self, h: Tensor) -> Tensor:
        """Map tokens (B, N, W) to tokens (B, N, W)."""
        b, n, c = h.shape
        rows = h.index_select(1, self.mix_indices).view(b * n, 3 * c)
        y = F.silu(F.linear(rows, self.w1, self.b1.view(-1)))
        if torch.is_autocast_enabled(h.device.type):
            # products in low precision, the running sum in full precision
            return h + F.linear(y, self.w2).view(b, n, c)
        return torch.addmm(h.reshape(b * n, c), y, self.w2.T).view(b, n, c)


def soft_rms_clip(z: Tensor, limit: float) -> Tensor:
    """z / sqrt(1 + |z|^2 / limit^2) for tokens (B, N, W), with |z|^2 the mean over channels.

    It bounds large tokens and is the identity for small ones. LayerNorm bounds latent rollouts too,
    but it discards the size of a token and with it the precision of small differences; see
    docs/notes/model.md for both measured.
    """
    mean_square = z.square().mean(-1, keepdim=True)
    return z * torch.rsqrt(1 + mean_square / limit**2)


class MixerUPT(nn.Module):
    """Encoder, approximator and decoder of ``MixerBlock`` over tokens on a periodic line.

    Args:
        spec: describes the field, of a multiple of ``num_tokens`` points.
        num_tokens: N of the latent state (B, N, W).
        hidden_dim: W of the latent state.
        mlp_ratio: channels inside a block, as a multiple of ``hidden_dim``.
        dilations: distances of the tokens that the blocks of a part mix, in turn. In the
            approximator their sum, in tokens, must reach as far as information travels in one step.
        encoder_depth: number of blocks in the encoder.
        approximator_depth: number of blocks in the approximator.
        decoder_depth: number of blocks in the decoder.
        patch_overlap: number of patches of num_points/num_tokens points, centered on a token, that
            it reads and writes; odd.
        latent_rms_limit: root mean square at which tokens saturate; see ``soft_rms_clip``.
        conserve_mean: whether the mean of each channel is carried, if the field conserves it: the
            last channels of every token, as many as the field has, hold it through all steps and
            the decoder sets it, so that mass is conserved to round-off.

    Attributes:
        num_dynamic_channels: number of channels, from the first, that a step may change.

    Raises:
        UpsError: the sizes don't fit together.
    """

    def __init__(
        self,
        spec: FieldSpec,
        num_tokens: DivisorOfPoints = 64,
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
        self.patches = OverlappingPatches(spec, "model=mixer_small", num_tokens, patch_overlap)
        self.num_tokens = num_tokens
        self.hidden_dim = hidden_dim
        self.num_channels = num_channels
        self.conserve_mean = conserve_mean and spec.conserves_mean
        num_carried = num_channels if self.conserve_mean else 0
        self.num_dynamic_channels = hidden_dim - num_carried
        self.latent_rms_limit = latent_rms_limit
        mlp_dim = max(1, round(mlp_ratio * hidden_dim))
        patch_dim = patch_overlap * self.patches.size

        def stack(depth: int) -> nn.Sequential:
            return nn.Sequential(
                *(
                    MixerBlock(num_tokens, hidden_dim, mlp_dim, dilations[i % len(dilations)])
                    for i in range(depth)
                )
            )

        self.patches_in = nn.Parameter(torch.randn(hidden_dim, patch_dim) * patch_dim**-0.5)
        # without a constant input, tokens of u and of 2 u would be multiples of each other
        self.constant = nn.Parameter(torch.randn(hidden_dim, 1, 1))
        self.condition = nn.Linear(1 + len(spec.parameters), hidden_dim)
        self.encoder = stack(encoder_depth)
        self.approximator = stack(approximator_depth)
        self.decoder = stack(decoder_depth)
        self.patches_out = nn.Parameter(torch.randn(patch_dim, hidden_dim) * 0.5 * hidden_dim**-0.5)

    def encode(self, u: Tensor) -> Tensor:
        """Encode fields (B, X, C) of unit scale into tokens (B, N, W)."""
        patches = self.patches.gather(self.patches.cut(u))
        h = F.linear(patches, self.patches_in, self.constant.view(-1))
        mean = u.mean(1, keepdim=True).expand(-1, self.num_tokens, -1)
        return self._restore_mean(self.soft_rms_clip(self.encoder(h)), mean)

    def step(self, z: Tensor, dt: Tensor, parameters: Tensor) -> Tensor:
        """Advance tokens (B, N, W) by ``dt`` (B,) at ``parameters`` (B, P)."""
        # a condition (B, W) for all tokens of a sample
        condition = self.condition(condition_features(dt, parameters))
        h = self.soft_rms_clip(self.approximator(z + condition[:, None]))
        return self._restore_mean(h, z[..., -self.num_channels :])

    def decode(self, z: Tensor) -> Tensor:
        """Decode tokens (B, N, W) into fields (B, X, C) on the training grid."""
        written = F.linear(self.decoder(z), self.patches_out)
        u = self.patches.join(self.patches.overlap_add(written)).to(z.dtype)
        if not self.conserve_mean:
            return u
        return u - u.mean(1, keepdim=True) + z[..., -self.num_channels :].mean(1, keepdim=True)

    def soft_rms_clip(self, z: Tensor) -> Tensor:
        """The function of this name, at ``latent_rms_limit``."""
        return soft_rms_clip(z, self.latent_rms_limit)

    def _restore_mean(self, z: Tensor, mean: Tensor) -> Tensor:
        return torch.cat((z[..., : -self.num_channels], mean), -1) if self.conserve_mean else z

    def muon_parameters(self) -> list[Tensor]:
        """The weight matrices of the blocks, which an optimizer may treat as matrices."""
        return [p for m in self.modules() if isinstance(m, MixerBlock) for p in (m.w1, m.w2)]
