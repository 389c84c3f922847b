"""python -m ups.report RUN [RUN ...]: several runs side by side in one html file."""

import argparse
import sys
from pathlib import Path

from ups.core.errors import UpsError
from ups.evaluation.report.html import write_comparison
from ups.runs.settings import is_bookkeeping_key


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
    try:
        write_comparison(given.runs, given.output, is_bookkeeping_key)
    except UpsError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print("written:", given.output)


if __name__ == "__main__":
    main()
