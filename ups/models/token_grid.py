"""Tokens on a grid of any number of dimensions: how many, and what each sees of its neighbors."""

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.core.fields import PERIODIC_AXIS, Boundary

Sides = Sequence[tuple[Boundary, Boundary]]
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def token_shape(space: Sequence[int], num_tokens: int | Sequence[int]) -> tuple[int, ...] | None:
    """The number of tokens along each axis so that their patches are as nearly cubes as can be.

    Args:
        space: number of points of each axis (D,).
        num_tokens: number of tokens in all, or along each axis (D,).

    Returns:
        Divisors of ``space`` (D,) whose product is ``num_tokens``; None if there are none.
    """
    if not isinstance(num_tokens, int):
        fits = len(num_tokens) == len(space) and not any(
            points % n for points, n in zip(space, num_tokens, strict=True)
        )
        return tuple(num_tokens) if fits else None
    divisors = [[n for n in range(1, points + 1) if points % n == 0] for points in space]
    shapes = [shape for shape in product(*divisors) if prod(shape) == num_tokens]
    return min(shapes, key=lambda shape: (_longest_edge(space, shape), -min(shape)), default=None)


def possible_numbers(space: Sequence[int]) -> list[int]:
    """The numbers of tokens for which ``token_shape`` finds patches."""
    divisors = [[n for n in range(1, points + 1) if points % n == 0] for points in space]
    return sorted({prod(shape) for shape in product(*divisors)})


def _longest_edge(space: Sequence[int], shape: Sequence[int]) -> int:
    return max(points // n for points, n in zip(space, shape, strict=True))


class Neighborhood(nn.Module):
    """Linear maps of the tokens in a window around each token of a grid.

    On a line that is periodic, the window is a copy and the map a matrix product, otherwise the map
    is a convolution over channels-last tokens. Both are the same map; a copy of a window in two
    dimensions has nine times the tokens, and training takes up to twice as long.

    Args:
        shape: number of tokens along each axis (D,).
        boundary: the sides of each axis (D,).
        width: number of tokens of a window along each axis; odd.
        dilation: the distance of two of them.

    Attributes:
        window: number of tokens of a window.
        num_outside: number of sides that are not periodic, beyond each of which lies a token.
    """

    indices: Tensor

    def __init__(self, shape: Sequence[int], boundary: Sides, width: int, dilation: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.width = width
        self.window: int = width ** len(self.shape)
        self.dilation = dilation
        self.offsets = [k * dilation for k in range(-(width // 2), width // 2 + 1)]
        self.num_outside = 2 * sum(tuple(sides) != PERIODIC_AXIS for sides in boundary)
        self.is_periodic_line = len(self.shape) == 1 and self.num_outside == 0
        if self.is_periodic_line:
            (n,) = self.shape
            indices = ((torch.arange(n)[:, None] + torch.tensor(self.offsets)) % n).flatten()
        else:
            indices = _padded_indices(self.shape, boundary, self.offsets[-1])
        self.register_buffer("indices", indices, persistent=False)

    def read(
        self, h: Tensor, weight: Tensor, bias: Tensor | None = None, outside: Tensor | None = None
    ) -> Tensor:
        """What each token makes of its window.

        Args:
            h: tokens (B, N, W).
            weight: (out, window * W), with the tokens of a window in order of their places.
            bias: (out,).
            outside: tokens (num_outside, W) beyond the sides that are not periodic; None for zeros.

        Returns:
            Tokens (B, N, out).
        """
        b, n, channels = h.shape
        if self.is_periodic_line:
            rows = h.index_select(1, self.indices).view(b * n, -1)
            return F.linear(rows, weight, bias).view(b, n, -1)
        if self.dilation == 0:  # the window is the token itself
            return F.linear(h, weight.unflatten(1, (-1, channels)).sum(1), bias)
        if self.num_outside:
            beyond = h.new_zeros(self.num_outside, channels) if outside is None else outside.to(h)
            h = torch.cat((h, beyond.expand(b, -1, -1)), 1)
        margin = 2 * self.offsets[-1]
        space = [n + margin for n in self.shape]
        padded = h.index_select(1, self.indices).view(b, *space, channels).movedim(-1, 1)
        dims = len(self.shape)
        kernel = weight.view(-1, *(self.width,) * dims, channels).movedim(-1, 1)
        out = CONVOLUTIONS[dims](padded, kernel, bias, dilation=self.dilation)
        return out.movedim(1, -1).reshape(b, n, -1)

    def write(self, h: Tensor, weight: Tensor) -> Tensor:
        """What tokens add to all of their windows, summed where they overlap.

        Args:
            h: tokens (B, N, H).
            weight: (window * S, H), with the tokens of a window in order of their places.

        Returns:
            Values (B, N, S). What lies beyond a side that is not periodic is lost.
        """
        if self.is_periodic_line:
            parts = F.linear(h, weight).to(h.dtype).unflatten(-1, (self.width, -1)).unbind(2)
            rolled = [part.roll(k, 1) for part, k in zip(parts, self.offsets, strict=True)]
            return torch.stack(rolled).sum(0)
        # a token reads what the others write to it: the window seen from its other end
        seen = weight.unflatten(0, (self.window, -1)).flip(0).transpose(0, 1).flatten(1)
        return self.read(h, seen).to(h.dtype)


def _padded_indices(shape: Sequence[int], boundary: Sides, margin: int) -> Tensor:
    """The indices of tokens on a grid that is longer by ``margin`` at each side, flattened.

    Beyond a side that is not periodic they are the numbers after those of the grid's tokens, one
    for each side.
    """
    places = []
    outside = []
    next_outside = prod(shape)
    for n, sides in zip(shape, boundary, strict=True):
        place = torch.arange(-margin, n + margin)
        beyond = torch.full_like(place, -1)
        if tuple(sides) != PERIODIC_AXIS:
            beyond[place < 0] = next_outside
            beyond[place >= n] = next_outside + 1
            next_outside += 2
        places.append(place % n)
        outside.append(beyond)
    indices = torch.zeros((), dtype=torch.long)
    for n, place in zip(shape, places, strict=True):
        indices = indices[..., None] * n + place
    # in a corner the first axis decides
    for d in reversed(range(len(shape))):
        beyond = outside[d].view(-1, *(1 for _ in shape[d + 1 :]))
        indices = torch.where(beyond >= 0, beyond, indices)
    return indices.flatten()
