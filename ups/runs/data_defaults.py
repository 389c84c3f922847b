"""Settings that the command leaves open follow the data: splits, and the number of tokens."""

import copy
import logging
from collections.abc import Callable, Iterable, Sequence

from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from ups.core.errors import UpsError
from ups.core.schema import DividesPoints, arguments
from ups.core.settings import override_keys
from ups.datamodules import PointCloudDataModule, TrajectoryDataModule
from ups.models import get_architecture
from ups.models.token_grid import possible_numbers, token_shape

log = logging.getLogger("ups")
# sizes of generated data, which a file has itself
GENERATED_SIZES = ("num_points", "reference_num_points", "num_frames")
SPLIT_SIZES = ("num_train", "num_validation", "num_test")
# those that points of each trajectory do not have
GRID_SIZES = ("num_points", "reference_num_points")
OWN = "ups.datamodules.OwnDataModule"
POINTS = "ups.datamodules.PointCloudDataModule"


def without_generated_sizes(cfg: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """Leave out the sizes that an experiment gives to generated data, if the data have none such.

    A file has its own number of points and frames, and its splits are shares of it. Points that
    differ from trajectory to trajectory have no grid.

    Args:
        cfg: the configuration, not checked yet.
        overrides: the command's. What they name is kept, and refused if it does not fit.
    """
    data = cfg.get("data")
    if not isinstance(data, DictConfig):
        return cfg
    sizes = {OWN: GENERATED_SIZES, POINTS: GRID_SIZES}.get(data.get("_target_"), ())
    named = override_keys(overrides)
    foreign = [key for key in sizes if key in data and f"data.{key}" not in named]
    if not foreign:
        return cfg
    changed = copy.deepcopy(cfg)
    with open_dict(changed):
        for key in foreign:
            del changed.data[key]
        if data.get("_target_") == OWN or data.get("path") is not None:
            shares = [key for key in SPLIT_SIZES if f"data.{key}" not in named]
            changed.data.update(dict.fromkeys(shares))
    return changed


def with_default_model(cfg: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """Choose the data's own ``default_model``, if they have one and the command names no other.

    Data on points have one, because the default model of all other data needs a grid.

    Args:
        cfg: the configuration, not checked yet.
        overrides: the command's. Settings of the model that they name are kept.

    Returns:
        The configuration without the key ``default_model``.
    """
    if not isinstance(cfg.get("default_model"), DictConfig):
        return cfg
    changed = copy.deepcopy(cfg)
    with open_dict(changed):
        own = changed.pop("default_model")
        named = override_keys(overrides)
        if "model" not in named:
            given = cfg.model.items()
            kept = {str(key): value for key, value in given if f"model.{key!s}" in named}
            changed.model = {**own, **kept}
            log.info("model=%s, the default of these data.", own.architecture)
    return changed


def follow_data(cfg: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """Fill in what the settings leave to the data.

    Splits without a size become shares of the trajectories. A number of tokens that the command
    does not name, and that does not fit the points, becomes the nearest one that does.

    Args:
        cfg: the configuration.
        overrides: the command's.
    """
    data = instantiate(cfg.data, _convert_="all")
    if not isinstance(data, TrajectoryDataModule | PointCloudDataModule):
        return cfg
    filled = copy.deepcopy(cfg)
    for key in SPLIT_SIZES:
        if cfg.data[key] is None:
            filled.data[key] = data.hparams[key]
    if isinstance(data, PointCloudDataModule):
        return filled  # any number of tokens fits any points
    try:
        space = data.space()
    except UpsError:  # of a finished run nothing else is read; otherwise the training refuses it
        return filled
    named = override_keys(overrides)
    architecture: Callable[..., object] = get_architecture(cfg.model.architecture)
    known = arguments(architecture, skip=1).named
    # windows of patches need as many along each axis
    fewest = (cfg.model.get("patch_overlap") or 3) if "patch_overlap" in known else 1
    for key, argument in known.items():
        value = cfg.model.get(key)
        follows = isinstance(value, int) and argument.marker(DividesPoints) is not None
        if not follows or f"model.{key}" in named:
            continue
        filled.model[key] = nearest_number(space, value, fewest)
        if filled.model[key] != value:
            log.warning(
                "model.%s=%d instead of %d, which does not divide the %s points into patches, at "
                "least %d along each axis.",
                key,
                filled.model[key],
                value,
                " x ".join(map(str, space)),
                fewest,
            )
    return filled


def nearest_number(space: Sequence[int], target: int, fewest: int = 1) -> int:
    """The number of tokens that divides ``space`` and whose ratio to ``target`` is closest to 1,
    of those with at least ``fewest`` tokens along each axis, or as many as it has points.
    """
    nearest = sorted(possible_numbers(space), key=lambda n: max(n / target, target / n))
    wide = (n for n in nearest if _is_wide(token_shape(space, n), space, fewest))
    return next(wide, nearest[0])


def _is_wide(shape: Sequence[int] | None, space: Sequence[int], fewest: int) -> bool:
    return shape is not None and all(
        n >= min(fewest, points) for n, points in zip(shape, space, strict=True)
    )
