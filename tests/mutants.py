"""Would the tests notice a wrong number? Put plausible mistakes into the code, one at a time.

    python tests/mutants.py                           all mistakes: about an hour on two idle cores
    python tests/mutants.py --area ttc --area data    those of two areas

Each mistake is made in a copy of the checkout, and the fast tests of its area run there. A mistake
that these let pass meets the fast tests of all other areas. The table says how many were noticed,
and the JSON which were not.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("ups", "conf", "tests", "docs", "notebooks", "benchmarks", "README.md", "pyproject.toml")
PATIENCE_SECONDS = 900  # a mistake may make a test wait for ever


def mutate(folder: Path, mutant: dict[str, str]) -> str:
    """Make the mistake in the copy at ``folder``; returns the file's text from before.

    Raises:
        ValueError: the code has changed, and the text to replace is not there once.
    """
    path = folder / mutant["file"]
    text = path.read_text(encoding="utf-8")
    count = text.count(mutant["from"])
    if count != 1:
        raise ValueError(
            f"{mutant['file']} has {mutant['from']!r} {count} times; it must be there once"
        )
    path.write_text(text.replace(mutant["from"], mutant["to"]), encoding="utf-8")
    return text


def passes(folder: Path, tests: list[str]) -> bool:
    """Whether the fast tests in ``tests`` pass in the copy at ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    fast = ["-m", "not slow", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    command = [sys.executable, "-m", "pytest", *fast, *tests]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=PATIENCE_SECONDS
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def is_noticed(folder: Path, mutant: dict[str, str], tests: list[str], others: list[str]) -> bool:
    """Whether a test fails once the mistake is made: one of its area's, or else one of
    ``others``.
    """
    text = mutate(folder, mutant)
    try:
        return not passes(folder, tests) or not passes(folder, others)
    finally:
        (folder / mutant["file"]).write_text(text, encoding="utf-8")


def copy_checkout(folder: Path) -> Path:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    return folder


def run_all(
    mutants: dict[str, list[dict[str, str]]],
    tests: dict[str, list[str]],
    workers: int,
    scratch: Path,
) -> list[dict[str, Any]]:
    """The ``mutants`` of each area, met by its ``tests``, with the "area" and "noticed" or not."""
    copies: SimpleQueue[Path] = SimpleQueue()
    for i in range(workers):
        copies.put(copy_checkout(scratch / f"copy{i}"))
    every_test = sorted({test for area in tests.values() for test in area})

    def work(area: str, mutant: dict[str, str]) -> dict[str, Any]:
        others = [test for test in every_test if test not in tests[area]]
        folder = copies.get()
        try:
            noticed = is_noticed(folder, mutant, tests[area], others)
        finally:
            copies.put(folder)
        print("noticed " if noticed else "SURVIVED", area, "-", mutant["what"], flush=True)
        return {"area": area, **mutant, "noticed": noticed}

    folder = copies.get()
    if not passes(folder, sorted({test for area in mutants for test in tests[area]})):
        raise SystemExit("the tests must pass before mistakes are made, and they do not")
    copies.put(folder)
    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(work, area, m) for area, group in mutants.items() for m in group]
        return [job.result() for job in jobs]


def table(found: list[dict[str, Any]]) -> str:
    """Noticed of all, by area, in Markdown."""
    made = Counter(mutant["area"] for mutant in found)
    noticed = Counter(mutant["area"] for mutant in found if mutant["noticed"])
    lines = [f"| {area} | {noticed[area]} of {count} |" for area, count in made.items()]
    lines.append(f"| all | {noticed.total()} of {made.total()} |")
    return "\n".join(["| area | noticed |", "| --- | --- |", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--area", action="append", help="only this one; may be repeated")
    parser.add_argument("--workers", type=int, default=2, help="copies that are tested at a time")
    parser.add_argument("--output", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    mutants = yaml.safe_load((ROOT / "tests/mutants.yaml").read_text(encoding="utf-8"))
    tests = mutants.pop("tests")
    chosen = {area: mutants[area] for area in options.area or mutants}
    with tempfile.TemporaryDirectory(prefix="ups-mutants-") as scratch:
        found = run_all(chosen, tests, options.workers, Path(scratch))
    print(table(found))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
