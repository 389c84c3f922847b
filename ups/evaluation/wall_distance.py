"""How large errors are at which distance from a wall, for fields on points."""

from typing import NamedTuple

import torch
from torch import Tensor

from ups.core.fields import FieldSpec
from ups.core.points import SIGNED_DISTANCE, Points

NUM_BINS = 16


class ErrorsByDistance(NamedTuple):
    """Errors in bins of the distance from the nearest wall.

    Args:
        distance: the mean distance of the points of each bin (K,).
        rmse: the root mean square error of each channel (K, C), over points and frames, in standard
            deviations of the channel.
    """

    distance: Tensor
    rmse: Tensor


def errors_by_distance(
    pred: Tensor, target: Tensor, points: Points, spec: FieldSpec
) -> ErrorsByDistance | None:
    """Collect errors in at most ``NUM_BINS`` bins of equally many points.

    Points on walls, all at distance 0, fill the first bin alone if there are enough of them.

    Args:
        pred: fields (B, T, P, C).
        target: fields (B, T, P, C).
        points: where they lie.
        spec: describes the field.

    Returns:
        The errors; None if the points do not have the feature ``SIGNED_DISTANCE``.
    """
    names = spec.point_cloud.features
    if SIGNED_DISTANCE not in names:
        return None
    mask = points.mask
    distance = points.features[..., names.index(SIGNED_DISTANCE)][mask].double()
    squared = (pred - target).double().square().mean(1)[mask] / distance.new_tensor(spec.std) ** 2
    ranks = torch.arange(1, NUM_BINS, device=distance.device) * len(distance) // NUM_BINS
    edges = distance.sort().values[ranks].unique()
    bins = torch.bucketize(distance, edges)  # bin k is of distances above edge k - 1 up to edge k
    values = torch.cat((distance[:, None], squared), 1)
    sums = values.new_zeros(len(edges) + 1, values.shape[1]).index_add(0, bins, values)
    counts = bins.bincount(minlength=len(edges) + 1)
    means = sums[counts > 0] / counts[counts > 0, None]
    return ErrorsByDistance(means[:, 0].cpu(), means[:, 1:].sqrt().cpu())
