"""The entry point: python -m ups.run [stage=...] [key=value ...].

It composes the configuration and sets the exit code.
"""

import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import NoReturn

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ups.core import resolvers
from ups.core.errors import Interrupted, RunIncomplete, UpsError, to_user_error
from ups.core.renamed_keys import rename_arguments, rename_config

CONF = next(
    str(p)
    for p in (Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf")
    if p.is_dir()
)
# options of Hydra that print something and start no run
INFORMATION = ("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "-i", "--info",
               "-sc", "--shell-completion")  # fmt: skip
LAUNCHER_HINT = (
    "A launcher's package may be missing: pip install 'ups[joblib]', 'ups[slurm]' or 'ups[ray]'"
)
log = logging.getLogger("ups")


resolvers.register()


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def main(cfg: DictConfig) -> float:
    def interrupt(sign: int, frame: FrameType | None) -> None:
        raise Interrupted(f"stopped by {signal.Signals(sign).name}; the same command resumes")

    # during training GracefulStop replaces these handlers
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, interrupt)
    try:
        from ups import pipeline  # here, so that --help doesn't wait for torch

        overrides = HydraConfig.get().overrides.task
        for warning in rename_config(cfg, overrides):
            log.warning("%s", warning)
        return pipeline.run_command(cfg, overrides)
    except BaseException as error:
        stop = to_user_error(error)
        if stop is None:
            raise
        log.error("%s", stop)
        if HydraConfig.get().mode == RunMode.MULTIRUN and not isinstance(stop, Interrupted):
            # a sweep continues with its other jobs, and SweepTable lists unfinished ones at the end
            return float("nan")
        sys.exit(3 if isinstance(stop, RunIncomplete) else 2)
    finally:
        # another signal must not interrupt the final cleanup
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, signal.SIG_IGN)


def cli() -> None:
    """Run ``main``; an error of Hydra is printed as one sentence, without a traceback.

    Keys and choices of the previous release are renamed first.
    """
    sys.argv[1:], warnings = rename_arguments(sys.argv[1:])
    for warning in warnings:
        print(warning, file=sys.stderr)
    if not any(word.partition("=")[0] in INFORMATION for word in sys.argv[1:]):
        # Hydra's callbacks already wait for it: ten seconds, on a slow disk half a minute
        print("loading torch and lightning", flush=True)
    if "HYDRA_FULL_ERROR" in os.environ:
        return main()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra re-raise errors
    try:
        main()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, RecursionError) as error:
        refuse(error)
    except (ValueError, TypeError, AttributeError) as error:
        if not is_raised_by_hydra(error):
            raise
        refuse(error)


def is_raised_by_hydra(error: BaseException) -> bool:
    """Whether Hydra's own code raised ``error``, for example for a choice that is null."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(hydra.__file__).parent)


def refuse(error: BaseException) -> NoReturn:
    """Print an error of Hydra as a sentence and exit."""
    if isinstance(error, OverrideParseException) and "Ambiguous" not in str(error):
        # the parser's own words don't help
        print(
            f"`{error.override}` must be KEY=VALUE, with quotes around a value of special "
            "characters or spaces: 'key=0, 0.5'.",
            file=sys.stderr,
        )
        sys.exit(2)
    if (sentence := unknown_key_or_choice(str(error))) is not None:
        print(sentence, file=sys.stderr)
        sys.exit(2)
    text = "\n".join(str(e) for e in (error, error.__cause__) if e is not None)
    lines = [
        line.strip()
        for line in text.splitlines()
        if line.strip() and not re.search("object_type|To append to your config|hydra.cc", line)
    ]
    hints = [LAUNCHER_HINT] if "hydra/launcher" in text else []
    print("\n".join([*dict.fromkeys(lines), *hints]), file=sys.stderr)
    sys.exit(2)


def choices_with(key: str) -> list[str]:
    """The choices of a group, "model" of "model.depth", whose file has a key."""
    group, _, name = key.partition(".")
    paths = (Path(CONF) / group).glob("*.yaml")
    contents = {path.stem: yaml.safe_load(path.read_text()) for path in paths}
    return sorted(
        choice for choice, own in contents.items() if name in {**own, **own.get(group, {})}
    )


def compose_config(overrides: Sequence[str], rule: str) -> DictConfig:
    """The configuration of settings that Python gives.

    Args:
        overrides: the settings, as on the command line.
        rule: what they must be, for the message.

    Raises:
        UpsError: there is no such setting.
    """
    try:
        with hydra.initialize_config_dir(CONF, version_base="1.3"):
            return hydra.compose("config", list(overrides))
    except HydraException as error:
        reason = unknown_key_or_choice(str(error))
        if reason is None:
            reason = " ".join(str(error).partition("Config search path")[0].split()) + "."
        raise UpsError(f"{rule}: {reason}") from None


def unknown_key_or_choice(refusal: str) -> str | None:
    """A sentence for a key that doesn't exist, or for a group without a choice; else None.

    Args:
        refusal: Hydra's message.
    """
    unknown = re.search(r"Could not override '(.+?)'", refusal)
    if unknown:
        from ups.runs.config import known_keys  # here, because it imports torch

        key = unknown[1]
        near = [name for name in get_close_matches(key, known_keys(), 4) if name != key][:3]
        hint = f"Close to it: {', '.join(near)}" if near else "See python -m ups.run --cfg job"
        owners = choices_with(key)
        if owners or key in known_keys():
            hint = f"Other choices of `{key.partition('.')[0]}` have it"
            hint += f": {', '.join(owners)}" if owners else ""
        return f"`{key}` is not a key of this configuration. {hint}."
    missing = re.search(
        r"Could not find '(.+)/(.+?)'\s+Available options in '.+?':\s+(.+?)\s+Config search",
        refusal,
        re.S,
    )
    if missing and "hydra/launcher" not in refusal:
        group, choice, options = missing.groups()
        return f"`{group}` must be one of {', '.join(options.split())}, got {choice}."
    for group in (word.removesuffix("=null") for word in sys.argv[1:] if word.endswith("=null")):
        folder = Path(CONF) / group
        if "NoneType" in refusal and folder.is_dir():
            choices = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
            return f"`{group}` must be one of {choices}, got null."
    return None


if __name__ == "__main__":
    cli()
