"""python -m ups.report RUN [RUN ...]: several runs side by side in one html file."""

import argparse
import sys
from pathlib import Path

from ups.core.errors import UpsError
from ups.evaluation.report.html import write_comparison
from ups.runs.settings import is_bookkeeping_key


def is_run(path: Path) -> bool:
    """Whether ``path`` is a run's folder, finished or not; outputs/* matches other things too."""
    return (path / "config.yaml").is_file() or (path / "reports").is_dir()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ups.report", description="Compare runs in one self-contained html file."
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, outputs/<name>"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("comparison.html"),
        help="the html file to write (default: %(default)s)",
    )
    given = parser.parse_args()
    runs = [path for path in given.runs if len(given.runs) == 1 or is_run(path)]
    others = [str(path) for path in given.runs if path not in runs]
    if others:
        print("left out, as they are no runs:", ", ".join(others), file=sys.stderr)
    try:
        if not runs:
            raise UpsError("RUN must be a run's folder, outputs/<name>, got none.")
        write_comparison(runs, given.output, is_bookkeeping_key)
    except UpsError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print("written:", given.output)


if __name__ == "__main__":
    main()
