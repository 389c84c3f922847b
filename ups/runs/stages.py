"""The stages of a run: what decides their results, which are finished, and their parents."""

import json
import logging
from pathlib import Path
from typing import cast

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from ups.core.errors import UpsError
from ups.core.io import read_json, sha256, write_text
from ups.core.renamed_keys import ADDED, rename_flat
from ups.core.settings import PlainDict, diff_configs
from ups.runs.initial_weights import content_hash
from ups.runs.meaning import CONTENT, by_meaning, deciding_settings
from ups.simulation.checkpoint import STAGES, latest_checkpoint, read_checkpoint

log = logging.getLogger(__name__)


def stage_config(cfg: DictConfig, stage: str) -> DictConfig:
    """The configuration of ``stage``.

    Its own ``trainer``, ``data`` and ``callbacks`` override the general ones, and ``stage.name`` is
    its name.
    """
    own = cfg.stage[stage]
    changes = {"trainer": own.trainer, "data": own.data, "callbacks": own.get("callbacks") or {}}
    return _merge(cfg, {**changes, "stage": {"name": stage}})


def with_gradient_accumulation(cfg: DictConfig, parts: int) -> DictConfig:
    """``cfg`` with less memory for the same effective batch.

    Args:
        cfg: the configuration of a stage.
        parts: batches become smaller by this factor, and a step accumulates as many times more of
            them.
    """
    changes: dict[str, object] = {
        "data": {"batch_size": cfg.data.batch_size // parts},
        "trainer": {"accumulate_grad_batches": cfg.trainer.accumulate_grad_batches * parts},
    }
    merged = _merge(cfg, changes)
    if merged.callbacks.get("inverse_loss_frequency"):
        OmegaConf.update(merged, "callbacks.inverse_loss_frequency.parts", parts, force_add=True)
    return merged


def _merge(cfg: DictConfig, changes: dict[str, object]) -> DictConfig:
    return cast(DictConfig, OmegaConf.merge(cfg, changes))


def stage_fingerprint(cfg: DictConfig, stage: str) -> dict[str, object]:
    """The keys of a stage's own configuration that decide its result, flat and by their meaning.

    The keys of earlier stages have an effect through their weights only. Of ``init_from`` the
    content counts.
    """
    groups: tuple[str, ...] = (
        "seed",
        "compile",
        "data.",
        "trainer.",
        "callbacks.",
        f"stage.{stage}.module.",
    )
    initial = {}
    if stage == "operator":
        groups = (*groups, "model.", "loss.", "lambda_inv")
        if cfg.get("init_from") is not None:
            initial["init_from"] = content_hash(cfg.init_from)
    settings = deciding_settings(cfg)
    own = {key: value for key, value in settings.items() if key.startswith(groups)}
    return {**initial, **own}


def initial_weights_hash(folder: Path) -> str | None:
    """The hash of the weights with which the folder's operator began; None for random ones."""
    return _record(folder, "operator").get("settings", {}).get("init_from")


def check_settings_unchanged(cfg: DictConfig, folder: Path) -> None:
    """Check that no stage to train is already in the folder with other settings.

    This holds for finished stages and for those that have only started.

    Raises:
        UpsError: a stage has other settings. The message lists them.
    """
    retrained: list[str] = []
    for stage in cfg.stage.train:
        if _stale(folder, stage) or previous_stage(stage) in retrained:
            retrained.append(stage)  # its settings may differ, as it is trained again anyway
            continue
        now = stage_fingerprint(stage_config(cfg, stage), stage)
        changed = diff_configs(_recorded_settings(folder, stage, now), now)
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise UpsError(
                f"{folder} holds stage {stage} with other settings "
                f"({'; '.join(changed[:3])}{more}); "
                "give another name=..., or overwrite=true to train it again"
            )


def pending_stages(cfg: DictConfig, folder: Path) -> list[str]:
    """The stages that must still be trained.

    They are not finished, or their parent's weights have changed or will change.
    """
    todo: list[str] = []
    for stage in cfg.stage.train:
        if previous_stage(stage) in todo or not is_finished(folder, stage) or _stale(folder, stage):
            todo.append(stage)
    return todo


@rank_zero_only
def record_stage_start(cfg: DictConfig, folder: Path, stage: str) -> None:
    """Record the settings and the parent of ``stage``.

    Results of the stage that were made from other weights of the parent are removed.
    """
    now = {"settings": stage_fingerprint(cfg, stage), "made_from": parent_hash(folder, stage)}
    if _stale(folder, stage):
        log.info("%s: the weights that it was made from have changed; it is trained again", stage)
        remove_stage(folder, stage)
    write_text(_record_path(folder, stage), json.dumps(now, indent=1, default=str) + "\n")


def validation_score(folder: Path) -> float:
    """The validation score of the last stage of the folder's simulator; lower is better."""
    return float(read_checkpoint(latest_checkpoint(folder))["validation_nrmse"])


def has_resume_checkpoint(folder: Path, stage: str) -> bool:
    """Whether there is a checkpoint from which ``stage`` can resume."""
    return (folder / "checkpoints" / f"{stage}-last.ckpt").exists()


def is_finished(folder: Path, stage: str) -> bool:
    """Whether the training of ``stage`` is complete."""
    return weights_path(folder, stage, raw=True).exists()


def weights_path(folder: Path, stage: str, *, raw: bool = False) -> Path:
    """The file of a stage's averaged weights, or of its raw ones.

    The raw file is written last.
    """
    return folder / "checkpoints" / f"{STAGES[stage]}{'' if raw else '_ema'}.ckpt"


def previous_stage(stage: str) -> str | None:
    """The parent of ``stage``, whose weights it starts from; None for the first stage."""
    before = list(STAGES)[: list(STAGES).index(stage)]
    return before[-1] if before else None


def parent_hash(folder: Path, stage: str) -> str | None:
    """The hash of the weights from which ``stage`` starts; None for the first stage.

    Raises:
        UpsError: the parent has not finished.
    """
    before = previous_stage(stage)
    if before is None:
        return None
    if not is_finished(folder, before):
        raise UpsError(
            f"stage {stage} continues from stage {before}, which has not finished in {folder}; "
            "stage=all trains all in order"
        )
    return sha256(weights_path(folder, before))


def remove_stage(folder: Path, stage: str) -> None:
    """Remove the files of ``stage``, its record first.

    Without its record a partly removed stage counts as not started.
    """
    for path in (
        _record_path(folder, stage),
        weights_path(folder, stage, raw=True),
        *folder.glob(f"checkpoints/{stage}-*.ckpt"),
        weights_path(folder, stage),
    ):
        path.unlink(missing_ok=True)


def _recorded_settings(
    folder: Path, stage: str, now: dict[str, object]
) -> dict[str, object] | None:
    """The settings by which ``stage`` was started, by their meaning; None if they are unknown.

    Args:
        folder: the run's folder.
        stage: the name of the stage.
        now: the settings of this call.
    """
    settings = _record(folder, stage).get("settings")
    if settings is None:
        return None
    added = {key: value for key, value in ADDED.items() if key in now}
    meant = {**added, **by_meaning(settings)}
    # version 0.1 recorded paths, and no parameter that it read from a file
    has_path = settings.get("data.path") is not None and CONTENT not in str(settings["data.path"])
    if has_path and settings.get("data.nu") is None:
        meant["data.nu"] = now.get("data.nu")
    return meant


def _stale(folder: Path, stage: str) -> bool:
    """Whether the folder's ``stage`` started from other weights than its parent has now."""
    before = previous_stage(stage)
    known = _record(folder, stage)
    return (
        bool(known)
        and before is not None
        and is_finished(folder, before)
        and known["made_from"] != parent_hash(folder, stage)
    )


def _record_path(folder: Path, stage: str) -> Path:
    return folder / "checkpoints" / f"{STAGES[stage]}.json"


def _record(folder: Path, stage: str) -> PlainDict:
    """What ``record_stage_start`` wrote; empty if the stage has no checkpoint yet."""
    path = _record_path(folder, stage)
    started = has_resume_checkpoint(folder, stage) or is_finished(folder, stage)
    if not path.exists() or not started:
        return {}
    record = read_json(path)
    if record.get("settings"):
        record["settings"] = rename_flat(record["settings"])
    return record
