"""A short rehearsal before a long run, which estimates memory, disk space and time.

It runs the same stages at full size for a few steps, from untrained weights, in a separate process.
"""

import json
import logging
import math
import shutil
import signal
import tempfile
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ups.callbacks.resource_probe import result_path
from ups.core.errors import UpsError
from ups.core.io import check_disk_space, read_json, same_disk, write_text
from ups.core.settings import to_plain
from ups.datamodules import PointCloudDataModule
from ups.runs.distributed import is_first_process
from ups.runs.provenance import hardware
from ups.runs.rehearsal import OUT_OF_MEMORY, REFUSED, Rehearsal, run_rehearsal
from ups.runs.requirements import (
    Requirements,
    estimate_requirements,
    print_requirements,
)
from ups.runs.stages import (
    has_resume_checkpoint,
    parent_hash,
    previous_stage,
    stage_config,
    stage_fingerprint,
    weights_path,
)
from ups.runs.training import keep_kernels

# the first step is slow, and only from the second on gradients pass layers initialized to zero
MIN_STEPS = 3
NUM_TRAIN, NUM_TEST = 32, 8  # number of trajectories
# bytes that the rehearsal keeps free, in addition to the training data, for a long run
RESERVE = 2**28
KILLED = -int(getattr(signal, "SIGKILL", 9))  # by the system, which is out of memory
log = logging.getLogger(__name__)


def preflight(
    cfg: DictConfig, todo: list[str], folder: Path, rehearse: Rehearsal
) -> dict[str, int]:
    """Rehearse the stages ``todo`` of a run in ``folder``, and print what they need.

    Nothing is rehearsed if earlier calls in this folder rehearsed each stage, with the same
    settings on the same hardware or with a checkpoint from which it resumes; stage=preflight always
    rehearses.

    Returns:
        The number of parts into which the batches of each stage must be split.

    Raises:
        UpsError: a stage fails, or does not fit into memory or on the disk. The message says what
            would fit.
    """
    path = folder / "preflight.json"
    recorded = read_json(path) if path.exists() else {}
    current = {
        stage: {"settings": stage_fingerprint(cfg, stage), "hardware": hardware()} for stage in todo
    }
    needs: dict[str, Requirements] = {
        stage: recorded[stage]
        for stage in todo
        if stage in recorded
        and (
            has_resume_checkpoint(folder, stage)
            or recorded[stage].items() >= current[stage].items()
        )
    }
    is_alone = cfg.stage.name == "preflight"
    if is_first_process() and (is_alone or (cfg.preflight and len(needs) < len(todo))):
        for stage in todo:  # raises an error if a file holds too few trajectories
            instantiate(stage_config(cfg, stage).data, _convert_="all").open_files()
        rehearsed = ", ".join([*todo, "test"])
        log.info("preflight: rehearsing %s in another process", rehearsed)
        with tempfile.TemporaryDirectory(prefix="ups-preflight-") as scratch:
            needs, test_seconds = profile_stages(cfg, todo, folder, Path(scratch), rehearse)
            keep_kernels(Path(scratch) / cfg.name, folder)
        print_requirements(cfg, needs, test_seconds)
        # a cache is removed when its stage ends
        disk = sum(need["checkpoints"] for need in needs.values())
        disk += max(need["cache"] for need in needs.values())
        data = instantiate(cfg.data, _convert_="all")
        if same_disk(folder, data.path):
            disk += data.to_be_made()
        check_disk_space(folder, int(disk), "this run")
        recorded |= {stage: {**current[stage], **needs[stage]} for stage in todo}
        recorded["test"] = {"seconds": test_seconds}
        write_text(path, json.dumps(recorded, indent=1, default=str) + "\n")
    return {stage: need["parts"] for stage, need in needs.items()}


def profile_stages(
    cfg: DictConfig, todo: list[str], folder: Path, scratch: Path, rehearse: Rehearsal
) -> tuple[dict[str, Requirements], float]:
    """Measure stages in ``scratch``, with batches split into as few parts as memory allows.

    Returns:
        What each stage needs, and the seconds that the test will take.

    Raises:
        UpsError: see ``preflight``.
    """
    if before := previous_stage(todo[0]):
        parent_hash(folder, todo[0])  # raises an error if that stage has not finished
        for raw in (False, True):
            copy = weights_path(scratch / cfg.name, before, raw=raw)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(weights_path(folder, before, raw=raw), copy)
    parts = dict.fromkeys(todo, 1)
    exit_code: int | None = None
    while exit_code != 0:
        left = {s: n for s, n in parts.items() if not result_path(scratch, s).exists()}
        small = make_dry_run_config(cfg, parts, scratch)
        exit_code, words = run_rehearsal(rehearse, small, left, scratch)
        if exit_code == REFUSED:
            raise UpsError(f"preflight: {words.strip().splitlines()[-1]}")
        if exit_code != 0:
            failed = next((s for s in left if not result_path(scratch, s).exists()), "evaluate")
            if exit_code not in (OUT_OF_MEMORY, KILLED):
                raise UpsError(f"preflight: stage {failed} fails:\n{words}")
            _halve_batches(cfg, failed, parts)
    measured = {stage: read_json(result_path(scratch, stage)) for stage in (*todo, "test")}
    needs = {s: estimate_requirements(cfg, s, n, measured[s]) for s, n in parts.items()}
    test = measured["test"]
    test_seconds = test["seconds"] * cfg.data.num_test / min(cfg.data.num_test, NUM_TEST)
    return needs, test_seconds + test["beside"]


def _halve_batches(cfg: DictConfig, stage: str, parts: dict[str, int]) -> None:
    if stage == "evaluate":
        raise UpsError(
            f"preflight: data.eval_batch_size={cfg.data.eval_batch_size} trajectories don't "
            "fit into memory; fewer may"
        )
    batch = stage_config(cfg, stage).data.batch_size // parts[stage]
    words = f"stage {stage}: batches of {batch} windows don't fit into memory"
    if batch % 2:
        raise UpsError(f"preflight: {words} and can't be halved; {batch // 2} may")
    parts[stage] *= 2
    log.warning("%s; they are taken in %d parts", words, parts[stage])


def make_dry_run_config(cfg: DictConfig, parts: dict[str, int], scratch: Path) -> DictConfig:
    """The command's configuration with all its sizes, but few steps and trajectories.

    Its stages have batches in ``parts``, and all its output goes to ``scratch``.
    """
    small = OmegaConf.create(to_plain(cfg, resolve=False))  # a copy that takes new keys
    few = {
        "num_train": min(cfg.data.num_train, NUM_TRAIN),
        "num_validation": min(cfg.data.num_validation, cfg.data.eval_batch_size),
        "num_test": min(cfg.data.num_test, NUM_TEST),
    }
    data = instantiate(cfg.data, _convert_="all")
    if isinstance(data, PointCloudDataModule):
        data.prepare_data()  # its flows are too costly to be solved for the rehearsal alone
        few["path"] = str(data.path)
    elif "cache_dir" in cfg.data:  # of generated data
        few["cache_dir"] = str(scratch / "data")
    small.data.update(few)
    for stage, split in parts.items():
        own = stage_config(cfg, stage)
        batches = max(MIN_STEPS, 2 * own.trainer.accumulate_grad_batches * split)
        windows = math.ceil(batches * own.data.batch_size / split / few["num_train"])
        small.stage[stage].data.update({**few, "samples_per_trajectory": windows})
        small.stage[stage].trainer.max_epochs = 1
    one_device = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    small.trainer.update({**one_device, "max_time": None, "check_val_every_n_epoch": 1})
    in_memory = data.train_bytes() if cfg.data.get("in_memory", True) else 0
    small.callbacks.watch = {
        "_target_": "ups.callbacks.resource_probe.ResourceProbe",
        "folder": str(scratch),
        "reserve": RESERVE + in_memory,
    }
    small.expect = dict.fromkeys(small.expect)  # they are for the command
    small.output_dir = str(scratch)
    if cfg.stage.name == "preflight":
        small.stage.name = "all"
    return small
