"""The stages of a run: what decides each one's result, which of them are finished, and what they were made from."""

import json
import logging
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from ups.config import decides_nothing, differences, flat
from ups.errors import UpsError
from ups.files import read_json, sha256, write_text

# the stages that train, in their order, and the files that hold their weights; each goes on from the one before
FILES = {"operator": "operator", "diffusion": "diffusion_residual", "consistency": "consistency"}
log = logging.getLogger(__name__)


def stage_config(cfg: DictConfig, stage: str) -> DictConfig:
    """The configuration as ``stage`` sees it: its own ``trainer`` and ``data`` laid over the general ones, and ``stage.name`` its name."""
    own = cfg.stage[stage]
    merged: Any = OmegaConf.merge(cfg, {"trainer": own.trainer, "data": own.data, "stage": {"name": stage}})
    return merged


def in_parts(cfg: DictConfig, parts: int) -> DictConfig:
    """``cfg`` with batches of a ``parts``-th of the size, and ``parts`` times as many to a step: less memory, the same effective batch."""
    changes = {
        "data": {"batch_size": cfg.data.batch_size // parts},
        "trainer": {"accumulate_grad_batches": cfg.trainer.accumulate_grad_batches * parts},
    }
    merged: Any = OmegaConf.merge(cfg, changes)
    if merged.callbacks.get("inverse_loss_frequency"):
        OmegaConf.update(merged, "callbacks.inverse_loss_frequency.parts", parts, force_add=True)
    return merged


def settings(cfg: DictConfig, stage: str) -> dict[str, Any]:
    """The keys of ``stage``'s own configuration that decide its result, flat; those of an earlier stage speak through its weights."""
    groups: tuple[str, ...] = ("seed", "compile", "data.", "trainer.", "callbacks.", f"stage.{stage}.module.")
    if stage == "operator":
        groups = (*groups, "model.", "loss.", "lambda_inv")
    return {key: value for key, value in flat(cfg).items() if key.startswith(groups) and not decides_nothing(key)}


def refuse_other_settings(cfg: DictConfig, folder: Path) -> None:
    """Refuse to train a stage that the folder holds already, finished or begun, with other settings.

    Raises:
        UpsError: says which differ.
    """
    anew: list[str] = []
    for stage in cfg.stage.train:
        if _stale(folder, stage) or parent(stage) in anew:
            anew.append(stage)  # whatever it was trained with
            continue
        changed = differences(_record(folder, stage).get("settings"), settings(stage_config(cfg, stage), stage))
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise UpsError(
                f"{folder} holds stage {stage} with other settings ({'; '.join(changed[:3])}{more}); "
                "give another name=..., or overwrite=true to train it anew"
            )


def pending(cfg: DictConfig, folder: Path) -> list[str]:
    """The stages that are still to be trained: not finished, or made from weights that have changed or are about to."""
    todo: list[str] = []
    for stage in cfg.stage.train:
        if parent(stage) in todo or not finished(folder, stage) or _stale(folder, stage):
            todo.append(stage)
    return todo


@rank_zero_only
def begin(cfg: DictConfig, folder: Path, stage: str) -> None:
    """Note what ``stage`` is trained with. What is there, but was made from other weights than now stand there, is removed."""
    now = {"settings": settings(cfg, stage), "made_from": parent_hash(folder, stage)}
    if _stale(folder, stage):
        log.info("%s: the weights that it was made from have changed; it is trained anew", stage)
        remove(folder, stage)
    write_text(_record_path(folder, stage), json.dumps(now, indent=1, default=str) + "\n")


def validation_score(folder: Path) -> float:
    """The validation nRMSE of the last stage that the folder's simulator holds."""
    from ups.rollout import newest, read_checkpoint

    return float(read_checkpoint(newest(folder))["validation_nrmse"])


def begun(folder: Path, stage: str) -> bool:
    """Whether there is a checkpoint that ``stage`` goes on from."""
    return (folder / "checkpoints" / f"{stage}-last.ckpt").exists()


def finished(folder: Path, stage: str) -> bool:
    return weights(folder, stage, raw=True).exists()


def weights(folder: Path, stage: str, *, raw: bool = False) -> Path:
    """The file of a stage's averaged weights, or of its raw ones, which are written last."""
    return folder / "checkpoints" / f"{FILES[stage]}{'' if raw else '_ema'}.ckpt"


def parent(stage: str) -> str | None:
    """The stage that ``stage`` goes on from."""
    before = list(FILES)[: list(FILES).index(stage)]
    return before[-1] if before else None


def parent_hash(folder: Path, stage: str) -> str | None:
    """The hash of the weights that ``stage`` goes on from.

    Raises:
        UpsError: they are not there.
    """
    before = parent(stage)
    if before is None:
        return None
    if not finished(folder, before):
        raise UpsError(f"stage {stage} goes on from stage {before}, which has not finished in {folder}; stage=all trains all in order")
    return sha256(weights(folder, before))


def remove(folder: Path, stage: str) -> None:
    """Remove what ``stage`` has left, its record first: half removed it counts as never begun."""
    for path in (
        _record_path(folder, stage),
        weights(folder, stage, raw=True),
        *folder.glob(f"checkpoints/{stage}-*.ckpt"),
        weights(folder, stage),
    ):
        path.unlink(missing_ok=True)


def _stale(folder: Path, stage: str) -> bool:
    """Whether the folder's ``stage`` was begun on other weights than now stand there."""
    before, known = parent(stage), _record(folder, stage)
    return bool(known) and before is not None and finished(folder, before) and known["made_from"] != parent_hash(folder, stage)


def _record_path(folder: Path, stage: str) -> Path:
    return folder / "checkpoints" / f"{FILES[stage]}.json"


def _record(folder: Path, stage: str) -> dict[str, Any]:
    """What the folder's ``stage`` was begun with; nothing where it has no checkpoint yet."""
    path = _record_path(folder, stage)
    return read_json(path) if path.exists() and (begun(folder, stage) or finished(folder, stage)) else {}
