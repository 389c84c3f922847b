"""Lightning callbacks: how often the inverse losses run, the plain epoch line, time limits, atomic checkpoints. EMA is Lightning's own."""

from ups.callbacks.checkpoint import AtomicCheckpointIO, LastCheckpoint
from ups.callbacks.epoch_log import EpochLog
from ups.callbacks.finite import FiniteLoss
from ups.callbacks.inverse_frequency import InverseLossFrequency
from ups.callbacks.time_limit import TimeLimit

__all__ = ["AtomicCheckpointIO", "EpochLog", "FiniteLoss", "InverseLossFrequency", "LastCheckpoint", "TimeLimit"]
