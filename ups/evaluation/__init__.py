"""Metrics, baselines, results, the leaderboard and reports."""
