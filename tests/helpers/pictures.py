"""Pictures and pages of runs: blank in tests, unless a test looks at them.

Drawing takes half of the time of a tiny run. What is drawn has tests of its own.
"""

import os
from base64 import b64decode
from contextlib import contextmanager
from unittest.mock import patch

from ups.evaluation.report.html import write_run
from ups.evaluation.report.plots import draw_rollout
from ups.runs import reports

VARIABLE = "UPS_TESTS_DRAW"  # for forks of the server of commands
PIXEL = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"
)


def _pixel(path, *about):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PIXEL)


def _blank_page(cfg, tested, data, folder, origin):
    page = folder / "reports/report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("blank")
    return page


def blank():
    """Have the runs of this process write a pixel and a blank page."""
    reports.draw_rollout, reports.write_run = _pixel, _blank_page


@contextmanager
def drawn():
    """Runs draw, those of this process and commands."""
    with (
        patch.object(reports, "draw_rollout", draw_rollout),
        patch.object(reports, "write_run", write_run),
        patch.dict(os.environ, {VARIABLE: "1"}),
    ):
        yield


def is_drawn():
    return VARIABLE in os.environ
