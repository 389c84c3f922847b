"""Batches split over CPU threads, each of which computes its part alone.

The tensors of a small model are too small to split single operations over cores. Whole parts of a
batch have no such limit: PyTorch's operations let other Python threads run meanwhile.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

VALUES_PER_THREAD = 4096  # of a batch of fields; with fewer the calls cost more than they compute

Item = TypeVar("Item")


def useful_threads(u: Tensor) -> int:
    """The number of threads among which a batch (B, ...) of fields is worth splitting.

    It is at most ``torch.get_num_threads()``. It is 1 off the CPU, and for what belongs to one
    thread in PyTorch: gradients, autocast and compilation.
    """
    belongs_to_one = (
        u.device.type != "cpu"
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    )
    if belongs_to_one:
        return 1
    return max(1, min(torch.get_num_threads(), len(u), u.numel() // VALUES_PER_THREAD))


def zip_in_threads(
    iterators: Sequence[Iterator[Item]], num_threads: int
) -> Iterator[tuple[Item, ...]]:
    """Yield the next items of all ``iterators`` together, computed side by side.

    Inside, PyTorch computes with one thread and without gradients. The threads end with the
    iterators, or when this generator is closed.

    Args:
        iterators: iterators of equal length, of anything but None.
        num_threads: number of threads; with 1, or for one iterator, this is ``zip``.
    """
    if num_threads == 1 or len(iterators) == 1:
        yield from zip(*iterators, strict=True)
        return
    own_threads = torch.get_num_threads()
    # modes belong to a thread, and so does the number of threads inside an operation
    mode = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad

    def next_item(iterator: Iterator[Item]) -> Item | None:
        with mode():
            return next(iterator, None)

    with ThreadPoolExecutor(num_threads, "rollout", torch.set_num_threads, (1,)) as pool:
        try:
            while True:
                items = [item for item in pool.map(next_item, iterators) if item is not None]
                if not items:
                    return
                yield tuple(items)
        finally:
            # a thread that is started later would begin with the number that was set last
            torch.set_num_threads(own_threads)
