"""A network over latent tokens that predicts how to change a predicted state.

Its inputs are the state before the step and a noise level.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.models.upt import DT_SCALE, NU_SCALE, MixerBlock

LEVELS = 4  # number of sines and of cosines that encode a noise level


class Denoiser(nn.Module):
    """Maps latent states, a noise level, dt and nu to tokens (B, N, out).

    Its blocks are the UPT's.

    Args:
        tokens: number of tokens N.
        channels: channels of all input states together.
        out: channels of the output, which is zero at initialization.
        width: channels between the blocks.
        hidden: see ``ups.models.upt.UPT``.
        depth: number of blocks.
        distances: see ``ups.models.upt.UPT``.
    """

    def __init__(
        self,
        tokens: int,
        channels: int,
        out: int,
        width: int = 64,
        hidden: float = 1.0,
        depth: int = 6,
        distances: Sequence[int] = (1, 2, 4, 1),
    ) -> None:
        super().__init__()
        inner = round(hidden * width)
        self.tokens_in = nn.Parameter(torch.randn(width, channels) * channels**-0.5)
        self.constant = nn.Parameter(torch.randn(width, 1, 1))
        self.condition = nn.Linear(2 + 2 * LEVELS, width)
        self.blocks = nn.Sequential(
            *(MixerBlock(tokens, width, inner, distances[i % len(distances)]) for i in range(depth))
        )
        self.tokens_out = nn.Parameter(torch.zeros(out, width))
        self.register_buffer("frequencies", 0.25 * 2.0 ** torch.arange(LEVELS), persistent=False)
        self.frequencies: Tensor

    def forward(self, parts: Sequence[Tensor], level: Tensor, dt: Tensor, nu: Tensor) -> Tensor:
        """Apply the network.

        Args:
            parts: latent states (B, N, C).
            level: logarithm of the noise level (B,).
            dt: the time of the step (B,).
            nu: the equation's parameter (B,).

        Returns:
            Tokens (B, N, out).
        """
        angles = level[:, None] * self.frequencies
        about = torch.cat(
            (
                (dt / DT_SCALE - 1)[:, None],
                (nu / NU_SCALE).log()[:, None],
                angles.sin(),
                angles.cos(),
            ),
            -1,
        )
        h = (
            F.linear(torch.cat(tuple(parts), -1), self.tokens_in, self.constant.view(-1))
            + self.condition(about)[:, None]
        )
        return F.linear(self.blocks(h), self.tokens_out)

    def muon_parameters(self) -> list[Tensor]:
        """The weight matrices of the blocks, which an optimizer may treat as matrices."""
        return [p for m in self.modules() if isinstance(m, MixerBlock) for p in (m.w1, m.w2)]
