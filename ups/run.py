"""The one entry: python -m ups.run [stage=...] [key=value ...]. Composes the configuration, trains, tests, reports."""

import logging
import os
import re
import signal
import sys
import time
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

if TYPE_CHECKING:  # imported where they are used, so that --help doesn't wait for torch
    from ups.callbacks.stop import TimeLimit
    from ups.datamodules import TrajectoryDataModule
    from ups.training import Loggers

CONF = next(str(p) for p in (Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf") if p.is_dir())
log = logging.getLogger("ups")


def folder_name(overrides: str) -> str:
    """A sweep job's folder is named by its overrides; a file's name has no slashes and at most 255 bytes."""
    name = overrides.replace("/", "_")
    return name if len(name) <= 120 else f"{name[:100]}-{sha256(name.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> float:
    from ups.errors import Interrupted, Unfinished, for_a_person

    def interrupt(sign: int, frame: Any) -> None:
        raise Interrupted(f"stopped by {signal.Signals(sign).name}; the same command goes on")

    for sign in (signal.SIGTERM, signal.SIGINT):  # while a stage trains, its Stop callback takes them
        signal.signal(sign, interrupt)
    try:
        return run(cfg)
    except BaseException as error:
        stop = for_a_person(error)
        if stop is None:
            raise
        log.error("%s", stop)
        if HydraConfig.get().mode == RunMode.MULTIRUN and not isinstance(stop, Interrupted):
            return float("nan")  # a sweep goes on with its other jobs and says at its end which have not finished
        sys.exit(3 if isinstance(stop, Unfinished) else 2)
    finally:
        for sign in (signal.SIGTERM, signal.SIGINT):  # one more of them is not to stop what is done at the very end
            signal.signal(sign, signal.SIG_IGN)


def run(cfg: DictConfig) -> float:
    """Train the stages that are not finished, test, report. Returns the last stage's validation nRMSE, for sweepers."""
    from ups.callbacks.stop import TimeLimit
    from ups.config import check
    from ups.loggers import open_loggers, refuse_missing
    from ups.preflight import preflight
    from ups.provenance import note_provenance, refuse_other_than_expected
    from ups.report import finished_results, print_table, say_next
    from ups.rollout import newest
    from ups.stages import pending, validation_score
    from ups.training import goes_on_alone
    from ups.workspace import open_folder

    check(cfg)
    refuse_other_than_expected(cfg)
    refuse_missing(cfg)
    limit = TimeLimit(cfg.trainer.max_time)
    with limit.outside_of_training(), open_folder(cfg) as folder:
        todo = pending(cfg, folder)
        if not todo and (results := finished_results(cfg, folder)):
            log.info("finished already, in %s; overwrite=true or another name begins anew", folder)
            print_table(results["dataset"], results["rows"])
            say_next(cfg, folder)
            return validation_score(folder)
        if not todo:
            newest(folder)  # refuses where there is nothing to test, before data are made
        note_provenance(cfg, folder)
        parts = preflight(cfg, todo, folder)
        if cfg.stage.name == "preflight":
            return 0.0
        with open_loggers(cfg, folder) as loggers:
            for stage in todo:
                train(cfg, stage, folder, loggers, parts.get(stage, 1), limit)
            if goes_on_alone():
                test(cfg, folder, loggers)
        return validation_score(folder)


def make_data(cfg: DictConfig) -> "TrajectoryDataModule":
    from hydra.utils import instantiate

    from ups.provenance import refuse_other_data

    data = instantiate(cfg.data, _convert_="all")
    data.prepare_data()
    data.setup()
    refuse_other_data(cfg, data.dataset["hash"])
    return data


def train(cfg: DictConfig, stage: str, folder: Path, logger: "Loggers", parts: int, limit: "TimeLimit") -> None:
    """Train one stage on top of those before it, its batches in ``parts``, and write its weights; an Unfinished where ``limit`` is over."""
    import lightning.pytorch as pl
    from hydra.utils import instantiate

    from ups.rollout import load
    from ups.stages import begin, in_parts, parent, stage_config, weights
    from ups.training import fit, new_simulator

    cfg = stage_config(cfg, stage)
    begin(cfg, folder, stage)
    cfg = in_parts(cfg, parts)
    data = make_data(cfg)
    pl.seed_everything(cfg.seed, verbose=False)
    before = parent(stage)
    simulator = load(weights(folder, before), data) if before else new_simulator(cfg, data)
    module = instantiate(cfg.stage[stage].module, simulator, _convert_="all")
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    log.info("%s: %d parameters to train, %d windows a step, data %s", stage, trained, cfg.data.batch_size, data.path)
    fit(cfg, stage, module, data, folder, logger, limit)


def test(cfg: DictConfig, folder: Path, logger: "Loggers") -> float:
    """Rollouts over the test split with everything that the stage asks for, and the baselines, by the same code; then the reports.

    Returns the seconds that the rollouts took.
    """
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
    started = time.perf_counter()
    trainer.test(module, datamodule=data, verbose=False)
    seconds = time.perf_counter() - started
    report(cfg, module, data, folder)
    return seconds


def cli() -> None:
    """``main``; what Hydra can't compose is said in a sentence, and not by a traceback."""
    if "HYDRA_FULL_ERROR" in os.environ:
        return main()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra passes errors on
    try:
        main()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, RecursionError) as error:
        text = "\n".join(str(e) for e in (error, error.__cause__) if e is not None)
        lines = [line.strip() for line in text.splitlines() if line.strip() and not re.search("object_type|To append to your config", line)]
        print("\n".join([*dict.fromkeys(lines), *hints(text)]), file=sys.stderr)
        sys.exit(2)


def hints(refusal: str) -> list[str]:
    """What may mend a command that Hydra refuses: a key that is spelt like the one it doesn't know, a package of a launcher."""
    from ups.config import KEYS, RULES

    unknown = re.search(r"Could not override '(.+?)'", refusal)
    near = get_close_matches(unknown[1], sorted({*KEYS, *RULES})) if unknown else []
    found = [f"Close to it: {', '.join(near)}"] if near else []
    if "hydra/launcher" in refusal:
        found.append("A launcher's package may be missing: pip install 'ups[joblib]', 'ups[slurm]' or 'ups[ray]'")
    return found


if __name__ == "__main__":
    cli()
