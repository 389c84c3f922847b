"""The page of results, docs/results.md, which benchmarks/results.py writes."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return pytest.importorskip("results")


def test_diverged_error_has_a_footnote(results):
    assert results.error(0.00493) == "0.0049"
    assert results.error(999.0, 1) == "999.0"
    assert results.error(1e9) == "1e+09†"
    assert results.number({"mean": 2.6e9, "stdev": 1e9}) == "3e+09†"
    assert results.number({"mean": 0.5, "stdev": 0.25}) == "0.5000 ± 0.2500"


def test_page_begins_with_a_summary_and_ends_with_its_maker(results):
    page = (ROOT / "docs/results.md").read_text()
    assert page.startswith(f"# Results\n\n{results.summary()}\n\n{results.READING}\n\n## ")
    assert page.endswith(results.FOOT + "\n")
    assert not re.search(r"e\+\d\d(?!†)", page)
