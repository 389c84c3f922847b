"""Write docs/settings.md and the keys of --help from the schema.

python docs/settings_tables.py --write
"""

import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout, not an installed one

from ups.core.schema import SettingsOf, show, words
from ups.run import CONF
from ups.runs.settings import SECTIONS, Section, is_bookkeeping_key

PAGE = Path(__file__).parent / "settings.md"
HELP = Path(CONF) / "config.yaml"
# keys of --help, with what the description of the argument doesn't say
HELP_KEYS = {
    "name": "the same command again resumes, or skips what is done",
    "seed": "",
    "lambda_inv": "loss.lambda_inv_enc and loss.lambda_inv_dec set one each",
    "loss.inverse_loss_frequency": "",
    "init_from": "",
    "data.unroll_steps": "",
    "data.batch_size": "trainer.accumulate_grad_batches adds batches up to one step",
    "data.num_train": "data=pdebench data.path=FILE reads a PDEBench file",
    "stage.operator.module.lr": "",
    "trainer.max_epochs": "of a later stage: stage.diffusion.trainer.max_epochs",
    "ttc.enabled": "",
    "trainer.max_time": "DD:HH:MM:SS",
    "preflight": "stage=preflight does nothing else",
    "compile": "",
}
HELP_START = (
    "      Keys that people change (KEY=VALUE; all of them: python -m ups.run --cfg job):\n"
)

INTRODUCTION = """\
# Command line and settings

`python -m ups.run --help` is the manual page, and `python -m ups.run --cfg job` prints every
setting with the value that a run would use. The next command enables completion in bash, for the
console script that the package installs (zsh and fish work the same way):

    eval "$(ups -sc install=bash)"

Below are the settings of the default configuration, each with its default and the values that are
allowed. A value that is not allowed, or a key that does not exist, ends the command with one
sentence and exit code 2, before anything is written. The settings marked with * may differ between
two calls that continue one run, and so may `stage.name`, `stage.train`, `stage.evaluate`, `ttc.*`
and the settings of stages that the call does not train. All others must stay the same. `stage.*` is
that of `stage=all`; the default, `stage=operator`, trains and tests the operator alone.
`--cfg job` also prints which weights are kept (`callbacks.best`) and what a stage replaces for
itself (`stage.<stage>.trainer`, `stage.<stage>.data`).

A model, a data module, a stage's module or a callback of your own is checked in the same way, by
the annotations of its constructor. Without annotations only the names are checked. The other
choices of a group (`data=pdebench`, `logger=wandb`, ...) are in the folders of `conf/`. Use
`--config-dir` to add a file of your own from any folder.

`python docs/settings_tables.py --write` writes this page.
"""


def descriptions(target: Any) -> dict[str, str]:
    """What the docstrings of a class and its bases say about its arguments."""
    found: dict[str, str] = {}
    for cls in inspect.getmro(target):
        section = re.search(r"^Args:\n((?: .*\n|\n)*)", f"{inspect.getdoc(cls) or ''}\n", re.M)
        body = textwrap.dedent(section[1]) if section and "__doc__" in vars(cls) else ""
        for name, text in re.findall(r"^(\w+): ((?:.|\n(?= ))*)", body, re.M):
            if not text.startswith("see ``BaseModule"):
                found.setdefault(name, " ".join(text.replace("``", "`").split()))
    return found


def table(section: Section, config: Any) -> list[str]:
    """The lines of one section: a list entry for each setting."""
    said = descriptions(section.target)
    lines = []
    for name, argument in section.named.items():
        key = section.full(name)
        value = OmegaConf.select(config, section.key) if section.key else config
        if not OmegaConf.is_config(value) or name not in value:
            continue  # the default configuration leaves it to the constructor
        if OmegaConf.is_config(value[name]) and not OmegaConf.is_list(value[name]):
            continue  # a section of its own
        default = OmegaConf.to_container(value, resolve=False)[name]
        default = default if "${" in str(default) else show(default).replace("'", "")
        mark = "*" if is_bookkeeping_key(key) else ""
        allowed = "" if argument.marker(SettingsOf) else f" Must be {words(argument.annotation)}."
        text = said.get(name, "").rstrip(".")
        text = f"{text[:1].upper()}{text[1:]}." if text else ""
        lines.append(f"- `{key}={default}`{mark} {text}{allowed}")
    return lines


def default_config() -> Any:
    """The default configuration with all stages."""
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", ["stage=all"])


def page(config: Any) -> str:
    """The text of docs/settings.md."""
    parts = [INTRODUCTION]
    titles: list[str] = []
    for section in SECTIONS:
        lines = table(section, config)
        if not lines:
            continue
        title = section.key or "General"
        if title not in titles:
            titles.append(title)
            parts.append(f"\n## {title}\n\n")
        for line in lines:
            wrapped = textwrap.wrap(line, 100, subsequent_indent="  ", break_long_words=False,
                                    break_on_hyphens=False)  # fmt: skip
            parts.append("\n".join(wrapped) + "\n")
    return "".join(parts)


def help_lines(config: Any) -> str:
    """The keys of --help."""
    lines = []
    for key, more in HELP_KEYS.items():
        group, _, name = key.rpartition(".")
        said = next(
            text
            for section in SECTIONS
            if section.key == group and (text := descriptions(section.target).get(name))
        )
        said = said.split(". ")[0].rstrip(".").replace("`", "")
        text = f"{said}; {more}" if more else said
        setting = f"{key}={show(OmegaConf.select(config, key)).replace(chr(39), '')}"
        # Hydra's template takes $ for a variable
        lines.append(f"        {setting:<33} {text}\n")
    return "".join(lines)


def with_help(text: str, config: Any) -> str:
    """The text of conf/config.yaml with its keys of --help replaced."""
    before, _, rest = text.partition(HELP_START)
    _, _, after = rest.partition("\n\n")
    return f"{before}{HELP_START}{help_lines(config)}\n{after}"


def main() -> None:
    config = default_config()
    wanted = {PAGE: page(config), HELP: with_help(HELP.read_text(), config)}
    for path, text in wanted.items():
        if "--write" in sys.argv:
            path.write_text(text)
        elif path.read_text() != text:
            sys.exit(f"{path} is not up to date; python docs/settings_tables.py --write mends it.")


if __name__ == "__main__":
    main()
