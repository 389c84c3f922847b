"""The pipeline of a run: train the pending stages, test, report."""

import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path

import lightning.pytorch as pl
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig

from ups.callbacks import LeaderboardWriter
from ups.callbacks.graceful_stop import TimeLimit
from ups.callbacks.resource_probe import result_path
from ups.core.io import write_text
from ups.core.precision import float32_by_default
from ups.core.settings import to_plain
from ups.datamodules import TrajectoryDataModule
from ups.evaluation.report.table import print_table
from ups.evaluation.results import times_in_words
from ups.modules import EvaluationModule
from ups.runs.config import validate_config
from ups.runs.data_defaults import follow_data, with_default_model, without_generated_sizes
from ups.runs.distributed import ignore_foreign_rank, shutdown_distributed
from ups.runs.initial_weights import check_same_model
from ups.runs.loggers import check_logger_installed, open_loggers
from ups.runs.preflight import preflight
from ups.runs.provenance import check_expected_data, check_expected_provenance, write_provenance
from ups.runs.reports import ReportWriter, finished_results, log_next_steps, report_paths
from ups.runs.run_dir import run_directory
from ups.runs.session import restored_session
from ups.runs.stages import (
    pending_stages,
    previous_stage,
    record_stage_start,
    stage_config,
    validation_score,
    weights_path,
    with_gradient_accumulation,
)
from ups.runs.training import (
    Loggers,
    first_simulator,
    fit,
    make_test_callbacks,
    make_test_trainer,
)
from ups.simulation.checkpoint import latest_checkpoint, load
from ups.simulation.guidance import TTC

log = logging.getLogger("ups")


def run(cfg: DictConfig, overrides: Iterable[str] = ()) -> float:
    """Train the stages that are not finished, test, and report.

    The process is then as it was before: its logging, signals, random numbers and so on.

    Args:
        cfg: the configuration.
        overrides: those of the command. What they name is taken as it is; other sizes may follow
            the data.

    Returns:
        The validation score of the last stage, for sweepers; 0 after a preflight.
    """
    with restored_session():
        return run_command(cfg, overrides)


@float32_by_default()
def run_command(cfg: DictConfig, overrides: Iterable[str] = ()) -> float:
    """``run`` in a process of its own, whose last messages go to the run's log too."""
    overrides = list(overrides)
    cfg = with_default_model(without_generated_sizes(cfg, overrides), overrides)
    validate_config(cfg)
    cfg = follow_data(cfg, overrides)
    check_same_model(cfg)
    ignore_foreign_rank(cfg.trainer)
    check_expected_provenance(cfg)
    check_logger_installed(cfg)
    limit = TimeLimit(cfg.trainer.max_time)
    with limit.outside_of_training(), run_directory(cfg) as folder:
        todo = pending_stages(cfg, folder)
        is_wanted = bool(todo) or cfg.overwrite
        if not is_wanted and (results := finished_results(cfg, folder)):
            log.info("finished already, in %s; overwrite=true or another name starts over", folder)
            # an earlier call may have been killed between its evaluation and the leaderboard
            for callback in make_test_callbacks(cfg):
                if isinstance(callback, LeaderboardWriter):
                    callback.write()
            times = times_in_words(cfg, results.dataset)
            print_table(results.dataset, results.rows, times=times)
            log_next_steps(cfg, folder)
            return validation_score(folder)
        if not todo:
            # raises an error before data are generated if there is nothing to test
            latest_checkpoint(folder)
        write_provenance(cfg, folder)
        parts = preflight(cfg, todo, folder, rehearse)
        if cfg.stage.name == "preflight":
            return 0.0
        with open_loggers(cfg, folder) as loggers:
            for stage in todo:
                train(cfg, stage, folder, loggers, parts.get(stage, 1), limit)
            if shutdown_distributed() and cfg.stage.evaluate:
                test(cfg, folder, loggers)
        return validation_score(folder)


def make_data(cfg: DictConfig) -> TrajectoryDataModule:
    """Prepare the data and check the hash of the test set."""
    data = instantiate(cfg.data, _convert_="all")
    data.prepare_data()
    data.setup()
    check_expected_data(cfg, data.dataset["hash"])
    return data


def train(
    cfg: DictConfig, stage: str, folder: Path, logger: Loggers, parts: int, limit: TimeLimit
) -> None:
    """Train one stage from the weights of the previous one, or of ``init_from``, and write its own.

    Args:
        cfg: the configuration.
        stage: the name of the stage.
        folder: the run's folder.
        logger: the run's loggers.
        parts: number of parts into which batches are split.
        limit: the time limit on the call.

    Raises:
        RunIncomplete: the limit or a signal interrupted training.
    """
    cfg = stage_config(cfg, stage)
    record_stage_start(cfg, folder, stage)
    cfg = with_gradient_accumulation(cfg, parts)
    data = make_data(cfg)
    pl.seed_everything(cfg.seed, verbose=False)
    before = previous_stage(stage)
    simulator = load(weights_path(folder, before), data) if before else first_simulator(cfg, data)
    module = instantiate(cfg.stage[stage].module, simulator, _convert_="all")
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    log.info(
        "%s: %d parameters to train, %d windows a step, data %s",
        stage,
        trained,
        cfg.data.batch_size,
        data.path,
    )
    fit(cfg, stage, module, data, folder, logger, limit)


def test(cfg: DictConfig, folder: Path, logger: Loggers) -> float:
    """Test the simulator and the baselines on the test split, and write the reports.

    Args:
        cfg: the configuration.
        folder: the run's folder.
        logger: the run's loggers.

    Returns:
        The seconds that the rollouts took.
    """
    data = make_data(cfg)
    simulator = load(latest_checkpoint(folder), data)
    with_ttc = True in report_paths(cfg, folder)  # enabled, and at its place
    options = to_plain(cfg.ttc)
    options.pop("enabled", None)
    simulator.ttc = TTC(**options)
    correct = list(cfg.stage.evaluate)
    module = EvaluationModule(simulator, cfg.model.name, correct, with_ttc, data.observation)
    reports = ReportWriter(cfg, folder)
    callbacks = [reports, *make_test_callbacks(cfg)]
    trainer = make_test_trainer(cfg.trainer.accelerator, callbacks, logger)
    log.info(
        "testing %s: %d trajectories, test set %s",
        folder,
        data.dataset["trajectories"],
        data.dataset["hash"],
    )
    trainer.test(module, datamodule=data, verbose=False)
    print_table(data.dataset, module.rows, times=times_in_words(cfg, data.dataset))
    log_next_steps(cfg, folder)
    return reports.seconds


def rehearse(cfg: DictConfig, parts: dict[str, int], scratch: Path) -> None:
    """The preflight's rehearsal: trains stages, tests, and writes the time of the test.

    Args:
        cfg: a configuration by ``ups.runs.preflight.make_dry_run_config``.
        parts: the stages, with the number of parts of their batches.
        scratch: the folder of all output.
    """
    ignore_foreign_rank(cfg.trainer)
    folder = scratch / cfg.name
    logger = CSVLogger(scratch)
    for stage, split in parts.items():
        train(cfg, stage, folder, logger, split, TimeLimit())
    started = time.perf_counter()
    seconds = test(cfg, folder, logger)
    measured = {"seconds": seconds, "beside": time.perf_counter() - started - seconds}
    write_text(result_path(scratch, "test"), json.dumps(measured))
