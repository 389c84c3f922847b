"""The one entry: python -m ups.run [stage=...] [key=value ...]. Composes the configuration, trains, tests, reports."""

import logging
import sys
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:  # imported where they are used, so that --help doesn't wait for torch
    from lightning.pytorch.loggers import Logger

    from ups.datamodules import BurgersDataModule

CONF = next(str(p) for p in (Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf") if p.is_dir())
log = logging.getLogger("ups")


def folder_name(overrides: str) -> str:
    """A sweep job's folder is named by its overrides; a file's name has no slashes and at most 255 bytes."""
    name = overrides.replace("/", "_")
    return name if len(name) <= 120 else f"{name[:100]}-{sha256(name.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> float:
    from ups.errors import Unfinished, UpsError

    try:
        return run(cfg)
    except (UpsError, Unfinished, InstantiationException) as raised:
        stop = raised.__cause__ if isinstance(raised, InstantiationException) else raised
        if not isinstance(stop, UpsError | Unfinished):
            raise
        log.error("%s", stop)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return float("nan")  # a sweep goes on with its other jobs and says at its end which have not finished
        sys.exit(3 if isinstance(stop, Unfinished) else 2)


def run(cfg: DictConfig) -> float:
    """Train the stages that are not finished, test, report. Returns the last stage's validation nRMSE, for sweepers."""
    from ups.config import check
    from ups.report import finished_results, print_table
    from ups.stages import pending, validation_score
    from ups.training import open_logger
    from ups.workspace import open_folder

    check(cfg)
    folder = open_folder(cfg)
    todo = pending(cfg, folder)
    if not todo and (results := finished_results(cfg, folder)):
        log.info("finished already, in %s; overwrite=true or another name begins anew", folder)
        print_table(results["dataset"], results["rows"])
    else:
        with open_logger(cfg) as logger:
            for stage in todo:
                train(cfg, stage, folder, logger)
            test(cfg, folder, logger)
    return validation_score(folder)


def make_data(cfg: DictConfig) -> "BurgersDataModule":
    from hydra.utils import instantiate

    data = instantiate(cfg.data, _convert_="all")
    data.prepare_data()
    data.setup()
    return data


def train(cfg: DictConfig, stage: str, folder: Path, logger: "Logger") -> None:
    """Train one stage on top of those before it, and write its weights."""
    import lightning.pytorch as pl
    from hydra.utils import instantiate

    from ups.rollout import load
    from ups.stages import begin, parent, stage_config, weights
    from ups.training import fit, new_simulator

    cfg = stage_config(cfg, stage)
    begin(cfg, folder, stage)
    data = make_data(cfg)
    pl.seed_everything(cfg.seed, verbose=False)
    before = parent(stage)
    simulator = load(weights(folder, before), data) if before else new_simulator(cfg, data)
    module = instantiate(cfg.stage[stage].module, simulator, _convert_="all")
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    log.info("%s: %d parameters to train, %d windows a step, data %s", stage, trained, cfg.data.batch_size, data.path)
    fit(cfg, stage, module, data, folder, logger)


def test(cfg: DictConfig, folder: Path, logger: "Logger") -> None:
    """Rollouts over the test split with everything that the stage asks for, and the baselines, by the same code; then the reports."""
    import lightning.pytorch as pl

    from ups.modules import EvaluateModule
    from ups.report import report, report_paths
    from ups.rollout import load
    from ups.ttc import TTC

    data = make_data(cfg)
    simulator = load(folder, data)
    options: Any = OmegaConf.to_container(cfg.ttc, resolve=True)
    with_ttc = options.pop("enabled") and True in report_paths(cfg, folder)
    simulator.ttc = TTC(**options)
    module = EvaluateModule(simulator, cfg.model.name, list(cfg.stage.evaluate), with_ttc)
    trainer = pl.Trainer(
        accelerator=cfg.trainer.accelerator, devices=1, logger=logger, enable_progress_bar=False, enable_model_summary=False
    )
    log.info("testing %s: %d trajectories, test set %s", folder, data.dataset["trajectories"], data.dataset["hash"])
    trainer.test(module, datamodule=data, verbose=False)
    report(cfg, module, data, folder)


if __name__ == "__main__":
    main()
