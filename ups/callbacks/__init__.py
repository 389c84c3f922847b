"""Lightning callbacks: inverse-loss frequency, epoch summaries, clean stops, atomic checkpoints,
the leaderboard, averaged weights.
"""

from ups.callbacks.checkpoint import AtomicCheckpointIO, ResumeCheckpoint
from ups.callbacks.compile_cache import CompileCachePruner
from ups.callbacks.ema import EMAWeightAveraging
from ups.callbacks.epoch_summary import EpochSummary
from ups.callbacks.graceful_stop import GracefulStop
from ups.callbacks.inverse_frequency import InverseLossFrequency
from ups.callbacks.leaderboard import LeaderboardWriter
from ups.callbacks.progress_bar import EpochProgressBar
from ups.callbacks.terminate_on_nan import TerminateOnNaN

__all__ = [
    "AtomicCheckpointIO",
    "CompileCachePruner",
    "EMAWeightAveraging",
    "EpochProgressBar",
    "EpochSummary",
    "GracefulStop",
    "InverseLossFrequency",
    "LeaderboardWriter",
    "ResumeCheckpoint",
    "TerminateOnNaN",
]
