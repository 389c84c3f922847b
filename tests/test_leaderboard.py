"""Rows are neither lost nor torn, whoever writes."""

import csv
import json
import re
from concurrent.futures import ProcessPoolExecutor

from ups import leaderboard


def _write(task):
    path, worker = task
    for i in range(50):
        leaderboard.record(path, [{"name": f"{worker}-{i}", "stage": "operator", "model": 'm,"quoted"', "nrmse": 0.1}])


def test_eight_writers(tmp_path):
    path = tmp_path / "leaderboard.csv"
    with ProcessPoolExecutor(8) as pool:
        list(pool.map(_write, [(path, worker) for worker in range(8)]))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["name"] for row in rows} == {f"{worker}-{i}" for worker in range(8) for i in range(50)}
    assert all(row["model"] == 'm,"quoted"' and float(row["nrmse"]) == 0.1 for row in rows)


def test_the_same_result_is_replaced_and_columns_grow(tmp_path):
    path = tmp_path / "leaderboard.csv"
    leaderboard.record(path, [{"name": "a", "nrmse": 0.5}, {"name": "b", "nrmse": 0.25}])
    leaderboard.record(path, [{"name": "a", "nrmse": 0.125, "new": None}])
    assert leaderboard.read(path) == [{"name": "a", "nrmse": "0.125", "new": ""}, {"name": "b", "nrmse": "0.25", "new": ""}]
    assert leaderboard.read(tmp_path / "none.csv") == []


def test_the_page_holds_every_row_and_needs_nothing_else(tmp_path):
    path = tmp_path / "leaderboard.csv"
    leaderboard.record(
        path, [{"name": "</script><b>a", "nrmse": 0.5, "dataset.hash": "x"}, {"name": "b", "nrmse": 0.25, "dataset.hash": "y"}]
    )
    page = path.with_suffix(".html").read_text()
    rows = page.split('<script id="rows" type="application/json">')[1].split("</script>")[0]
    assert [row["name"] for row in json.loads(rows)] == ["</script><b>a", "b"]
    assert "<b>" not in page
    assert not re.search(r"(src|href)=|@import|url\(", page)
