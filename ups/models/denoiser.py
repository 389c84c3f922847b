"""A network over latent tokens that predicts how to change a predicted state.

Its inputs are the state before the step and a noise level.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.core.fields import Grid
from ups.core.schema import (
    Depth,
    MlpRatio,
    NonEmpty,
    NonNegativeInt,
    PositiveInt,
)
from ups.models.conditioning import condition_features
from ups.models.mixer import block_matrices, mixer_blocks

NUM_FREQUENCIES = 4  # number of sines and of cosines that encode a noise level


class Denoiser(nn.Module):
    """Maps latent states, a noise level, dt and parameters to tokens (B, N, out_channels).

    Its blocks are those of ``ups.models.mixer.MixerUPT``.

    Args:
        tokens: the grid of the tokens, N in all.
        in_channels: channels of all input states together.
        out_channels: channels of the output, which is zero at initialization.
        hidden_dim: channels between the blocks.
        mlp_ratio: see ``ups.models.mixer.MixerUPT``.
        depth: number of blocks for each axis.
        dilations: see ``ups.models.mixer.MixerUPT``.
        num_parameters: number of parameters P of the equation.
    """

    def __init__(
        self,
        tokens: Grid,
        in_channels: int,
        out_channels: int,
        hidden_dim: PositiveInt = 64,
        mlp_ratio: MlpRatio = 1.0,
        depth: Depth = 6,
        dilations: NonEmpty[NonNegativeInt] = (1, 2, 4, 1),
        num_parameters: int = 1,
    ) -> None:
        super().__init__()
        self.tokens_in = nn.Parameter(torch.randn(hidden_dim, in_channels) * in_channels**-0.5)
        self.constant = nn.Parameter(torch.randn(hidden_dim, 1, 1))
        self.condition = nn.Linear(1 + num_parameters + 2 * NUM_FREQUENCIES, hidden_dim)
        self.blocks = mixer_blocks(tokens, hidden_dim, mlp_ratio, dilations, depth)
        self.tokens_out = nn.Parameter(torch.zeros(out_channels, hidden_dim))
        self.register_buffer(
            "frequencies", 0.25 * 2.0 ** torch.arange(NUM_FREQUENCIES), persistent=False
        )
        self.frequencies: Tensor

    def forward(
        self, parts: Sequence[Tensor], level: Tensor, dt: Tensor, parameters: Tensor
    ) -> Tensor:
        """Apply the network.

        Args:
            parts: latent states (B, N, W).
            level: logarithm of the noise level (B,).
            dt: the time of the step (B,).
            parameters: the equation's parameters (B, P).

        Returns:
            Tokens (B, N, out_channels).
        """
        angles = level[:, None] * self.frequencies
        condition = torch.cat((condition_features(dt, parameters), angles.sin(), angles.cos()), -1)
        h = (
            F.linear(torch.cat(tuple(parts), -1), self.tokens_in, self.constant.view(-1))
            + self.condition(condition)[:, None]
        )
        return F.linear(self.blocks(h), self.tokens_out)

    def muon_parameters(self) -> list[Tensor]:
        """The weight matrices of the blocks, which an optimizer may treat as matrices."""
        return block_matrices(self)
