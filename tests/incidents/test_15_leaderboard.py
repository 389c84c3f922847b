"""Row 15: parallel jobs write one leaderboard."""

import csv
from concurrent.futures import ProcessPoolExecutor

from ups.evaluation import leaderboard


def _write(task):
    path, worker = task
    for i in range(50):
        leaderboard.upsert_rows(
            path,
            [{"name": f"{worker}-{i}", "stage": "operator", "model": 'm,"quoted"', "nrmse": 0.1}],
        )


def test_eight_writers_leave_four_hundred_whole_rows(tmp_path):
    path = tmp_path / "leaderboard.csv"
    with ProcessPoolExecutor(8) as pool:
        list(pool.map(_write, [(path, worker) for worker in range(8)]))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 400
    assert {row["name"] for row in rows} == {
        f"{worker}-{i}" for worker in range(8) for i in range(50)
    }
    assert all(row["model"] == 'm,"quoted"' and float(row["nrmse"]) == 0.1 for row in rows)
