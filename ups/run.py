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
    from ups.modules import EvaluateModule
    from ups.rollout import Simulator

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
            raise  # Hydra goes on with the other jobs and says at the end which one failed
        sys.exit(3 if isinstance(stop, Unfinished) else 2)


def run(cfg: DictConfig) -> float:
    """Data, training, test, report. Returns the test nRMSE of the latent rollout, for sweepers."""
    from ups.config import check
    from ups.report import finished_results, print_table
    from ups.training import open_logger
    from ups.workspace import open_folder

    check(cfg)
    folder = open_folder(cfg)
    if results := finished_results(folder, cfg.stage.name):
        log.info("finished already, in %s; overwrite=true or another name begins anew", folder)
        print_table(results["dataset"], results["rows"])
        return results["rows"][0]["nrmse"]
    data = make_data(cfg)
    with open_logger(cfg) as logger:
        simulator = train_operator(cfg, data, folder, logger)
        tested = test(cfg, simulator, data, logger)
    return report(cfg, tested, data, folder)


def make_data(cfg: DictConfig) -> "BurgersDataModule":
    from hydra.utils import instantiate

    data = instantiate(cfg.data, _convert_="all")
    data.prepare_data()
    data.setup()
    log.info("data: %s, test set %s", data.path, data.dataset["hash"])
    return data


def train_operator(cfg: DictConfig, data: "BurgersDataModule", folder: Path, logger: "Logger") -> "Simulator":
    """Train the operator unless the folder holds a finished one; returns it with its averaged weights."""
    import lightning.pytorch as pl
    from hydra.utils import instantiate

    from ups.models import build
    from ups.rollout import Simulator, load
    from ups.training import finished, fit

    if finished(folder, "operator"):  # a call that was stopped between training and test
        return load(folder)
    pl.seed_everything(cfg.seed, verbose=False)
    spec: Any = OmegaConf.to_container(cfg.model, resolve=True)
    model = build(spec, points=data.points)
    simulator = Simulator(model, data.x, data.dt, data.length, data.scale, spec=spec)
    module = instantiate(cfg.stage.module, simulator, _convert_="all")
    log.info("operator: %d parameters, %d windows a step", sum(p.numel() for p in model.parameters()), cfg.data.batch_size)
    fit(cfg, module, data, folder, logger)
    return load(folder)


def test(cfg: DictConfig, simulator: "Simulator", data: "BurgersDataModule", logger: "Logger") -> "EvaluateModule":
    """Rollouts over the test split, and the baselines, by the same code."""
    import lightning.pytorch as pl

    from ups.modules import EvaluateModule

    module = EvaluateModule(simulator, model=cfg.model.name)
    trainer = pl.Trainer(
        accelerator=cfg.trainer.accelerator, devices=1, logger=logger, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.test(module, datamodule=data, verbose=False)
    return module


def report(cfg: DictConfig, results: "EvaluateModule", data: "BurgersDataModule", folder: Path) -> float:
    """The table, the evaluation JSON, the picture, provenance.json and the leaderboard's rows."""
    from ups import leaderboard
    from ups.provenance import provenance
    from ups.report import draw_rollout, leaderboard_rows, print_table, write_evaluation, write_json

    origin, rows, path = provenance(cfg, data.dataset["hash"]), results.rows, folder / "reports" / f"eval_{cfg.stage.name}.json"
    write_json(folder / "provenance.json", origin)
    assert results.example is not None
    draw_rollout(path.with_suffix(".png"), *results.example, data.dt, data.length, f"{cfg.name}: the median test trajectory")
    table = Path(cfg.output_dir) / "leaderboard.csv"
    leaderboard.record(table, leaderboard_rows(cfg.name, cfg.stage.name, data.dataset, rows, origin))
    write_evaluation(path, data.dataset, rows, origin)  # last: it says that the run is finished
    print_table(data.dataset, rows)
    log.info("report: %s, %s; all runs: %s", path, path.with_suffix(".png"), table)
    log.info("next: python -c 'import ups; sim = ups.load(\"%s\")'", folder)
    return rows[0]["nrmse"]


if __name__ == "__main__":
    main()
