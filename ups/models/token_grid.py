"""Tokens on a grid of any number of dimensions: how many, and what each sees of its neighbors."""

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups.core.fields import PERIODIC_AXIS, Boundary

Sides = Sequence[tuple[Boundary, Boundary]]
CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}


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
    shapes = [shape for shape in product(*map(divisors, space)) if prod(shape) == num_tokens]
    return min(shapes, key=lambda shape: (_longest_edge(space, shape), -min(shape)), default=None)


def shape_of_patches(space: Sequence[int], edge: int) -> tuple[int, ...]:
    """The number of tokens along each axis so that patches are as nearly ``edge`` points long as
    can be, rather longer than shorter, and no axis has fewer than three.
    """

    def nearest(points: int) -> int:
        numbers = [n for n in divisors(points) if n >= min(3, points)]
        return min(numbers, key=lambda n: (max(points / n / edge, edge * n / points), n))

    return tuple(nearest(points) for points in space)


def possible_numbers(space: Sequence[int]) -> list[int]:
    """The numbers of tokens for which ``token_shape`` finds patches."""
    return sorted({prod(shape) for shape in product(*map(divisors, space))})


def divisors(points: int) -> list[int]:
    return [n for n in range(1, points + 1) if points % n == 0]


def _longest_edge(space: Sequence[int], shape: Sequence[int]) -> int:
    return max(points // n for points, n in zip(space, shape, strict=True))


class AxisWindow(nn.Module):
    """The tokens around each token of a grid along one axis, itself in the middle.

    Args:
        shape: number of tokens along each axis (D,).
        boundary: the sides of each axis (D,).
        axis: the axis.
        width: number of tokens of a window; odd.
        dilation: the distance of two of them.

    Attributes:
        num_outside: number of tokens beyond the sides: 0 if the axis is periodic, otherwise 2.
    """

    indices: Tensor

    def __init__(
        self, shape: Sequence[int], boundary: Sides, axis: int, width: int, dilation: int
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.num_outside = 0 if tuple(boundary[axis]) == PERIODIC_AXIS else 2
        n = self.shape[axis]
        offsets = torch.arange(-(width // 2), width // 2 + 1) * dilation
        place = torch.arange(n)[:, None] + offsets
        number = prod(self.shape)
        tokens = torch.arange(number).view(self.shape).movedim(axis, -1)[..., place % n]
        if self.num_outside:
            tokens = torch.where(place < 0, number, tokens)
            tokens = torch.where(place >= n, number + 1, tokens)
        indices = tokens.movedim(-2, axis).flatten()
        self.register_buffer("indices", indices, persistent=False)

    def forward(self, h: Tensor, outside: Tensor | None = None) -> Tensor:
        """The windows of all tokens.

        Args:
            h: tokens (B, N, W).
            outside: tokens (num_outside, W) beyond the sides; None for zeros.

        Returns:
            Rows (B N, width * W), the tokens of a window in order of their places.
        """
        b, n, channels = h.shape
        if self.num_outside:
            beyond = h.new_zeros(self.num_outside, channels) if outside is None else outside.to(h)
            h = torch.cat((h, beyond.expand(b, -1, -1)), 1)
        return h.index_select(1, self.indices).view(b * n, -1)


class Neighborhood(nn.Module):
    """Linear maps of the tokens in a window around each token of a grid, along all axes.

    On a line the window is a copy and the map a matrix product, otherwise the map is a convolution
    over channels-last tokens. Both are the same map; a copy of a window in two dimensions has nine
    times the tokens, and training takes up to twice as long.

    Args:
        shape: number of tokens along each axis (D,).
        boundary: the sides of each axis (D,). What lies beyond one that is not periodic is zero.
        width: number of tokens of a window along each axis; odd.

    Attributes:
        window: number of tokens of a window.
    """

    indices: Tensor

    def __init__(self, shape: Sequence[int], boundary: Sides, width: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.width = width
        self.window: int = width ** len(self.shape)
        self.is_periodic = all(tuple(sides) == PERIODIC_AXIS for sides in boundary)
        self.line = None
        if len(self.shape) == 1:
            self.line = AxisWindow(shape, boundary, 0, width, 1)
        else:
            indices = _padded_indices(self.shape, boundary, width // 2)
            self.register_buffer("indices", indices, persistent=False)

    def read(self, h: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """What each token makes of its window.

        Args:
            h: tokens (B, N, W).
            weight: (out, window * W), with the tokens of a window in order of their places.
            bias: (out,).

        Returns:
            Tokens (B, N, out).
        """
        b, n, channels = h.shape
        if self.line is not None:
            return F.linear(self.line(h), weight, bias).view(b, n, -1)
        if not self.is_periodic:
            h = torch.cat((h, h.new_zeros(b, 1, channels)), 1)
        space = [n + self.width - 1 for n in self.shape]
        padded = h.index_select(1, self.indices).view(b, *space, channels).movedim(-1, 1)
        dims = len(self.shape)
        kernel = weight.view(-1, *(self.width,) * dims, channels).movedim(-1, 1)
        return CONVOLUTIONS[dims](padded, kernel, bias).movedim(1, -1).reshape(b, n, -1)

    def write(self, h: Tensor, weight: Tensor) -> Tensor:
        """What tokens add to all of their windows, summed where they overlap.

        Args:
            h: tokens (B, N, H).
            weight: (window * S, H), with the tokens of a window in order of their places.

        Returns:
            Values (B, N, S). What lies beyond a side that is not periodic is lost.
        """
        if self.line is not None and self.is_periodic:
            parts = F.linear(h, weight).to(h.dtype).unflatten(-1, (self.width, -1)).unbind(2)
            rolled = [part.roll(k - self.width // 2, 1) for k, part in enumerate(parts)]
            return torch.stack(rolled).sum(0)
        # a token reads what the others write to it: the window seen from its other end
        seen = weight.unflatten(0, (self.window, -1)).flip(0).transpose(0, 1).flatten(1)
        return self.read(h, seen).to(h.dtype)


def _padded_indices(shape: Sequence[int], boundary: Sides, margin: int) -> Tensor:
    """The indices of tokens on a grid that is longer by ``margin`` at each side, flattened.

    Beyond a side that is not periodic it is the number after those of the grid's tokens.
    """
    indices = torch.zeros((), dtype=torch.long)
    beyond = torch.zeros((), dtype=torch.bool)
    for n, sides in zip(shape, boundary, strict=True):
        place = torch.arange(-margin, n + margin)
        is_out = ((place < 0) | (place >= n)) & (tuple(sides) != PERIODIC_AXIS)
        indices = indices[..., None] * n + place % n
        beyond = beyond[..., None] | is_out
    return torch.where(beyond, prod(shape), indices).flatten()
