"""The test trajectories that pictures show."""

from typing import NamedTuple

from torch import Tensor

from ups.core.fields import FieldSpec
from ups.core.norms import negligible_size, relative_squares
from ups.core.points import Points


class Example(NamedTuple):
    """A test trajectory and its prediction, on the CPU.

    Args:
        truth: fields (T, *space, C), without the initial frame.
        pred: fields (T, *space, C).
        points: where they lie (1, P, D), without padding; None on a grid.
    """

    truth: Tensor
    pred: Tensor
    points: Points | None = None


def choose_examples(
    target: Tensor, pred: Tensor, spec: FieldSpec, points: Points | None = None
) -> dict[str, Example]:
    """The best, the median and the worst trajectory, by the error in the titles of the plots.

    Args:
        target: fields (B, T, *space, C).
        pred: fields (B, T, *space, C).
        spec: describes the field.
        points: where they lie; None on a grid.
    """
    mask = None if points is None else points.mask[:, None]
    floor = negligible_size(spec)
    errors = relative_squares(pred, target, spec.space_axes, floor, mask).sqrt().mean((1, 2))
    order = errors.argsort().tolist()
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    if points is None:
        return {name: Example(target[k].cpu(), pred[k].cpu()) for name, k in chosen.items()}
    examples = {}
    for name, k in chosen.items():
        truth, guess = (field[k][:, points.mask[k]].cpu() for field in (target, pred))
        examples[name] = Example(truth, guess, points.unpadded(k).to("cpu"))
    return examples
