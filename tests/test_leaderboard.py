"""Rows are neither lost nor torn, whoever writes."""

import json
import re

from ups.evaluation import leaderboard


def test_the_same_result_is_replaced_and_columns_grow(tmp_path):
    path = tmp_path / "leaderboard.csv"
    leaderboard.upsert_rows(path, [{"name": "a", "nrmse": 0.5}, {"name": "b", "nrmse": 0.25}])
    leaderboard.upsert_rows(path, [{"name": "a", "nrmse": 0.125, "new": None}])
    assert leaderboard.read(path) == [
        {"name": "a", "nrmse": "0.125", "new": ""},
        {"name": "b", "nrmse": "0.25", "new": ""},
    ]
    assert leaderboard.read(tmp_path / "none.csv") == []


def test_the_page_holds_every_row_and_needs_nothing_else(tmp_path):
    path = tmp_path / "leaderboard.csv"
    leaderboard.upsert_rows(
        path,
        [
            {"name": "</script><b>a", "nrmse": 0.5, "dataset.hash": "x"},
            {"name": "b", "nrmse": 0.25, "dataset.hash": "y"},
        ],
    )
    page = path.with_suffix(".html").read_text()
    rows = page.split('<script id="rows" type="application/json">')[1].split("</script>")[0]
    assert [row["name"] for row in json.loads(rows)] == ["</script><b>a", "b"]
    assert "<b>" not in page
    assert not re.search(r"(src|href)=|@import|url\(", page)
