"""Lightning callbacks: how often the inverse losses run, the plain epoch line, good ends, atomic checkpoints. EMA is Lightning's own."""

from ups.callbacks.checkpoint import AtomicCheckpointIO, LastCheckpoint
from ups.callbacks.compile_cache import CompileCache
from ups.callbacks.epoch_log import EpochLog
from ups.callbacks.finite import FiniteLoss
from ups.callbacks.inverse_frequency import InverseLossFrequency
from ups.callbacks.progress import Progress
from ups.callbacks.stop import Stop

__all__ = ["AtomicCheckpointIO", "CompileCache", "EpochLog", "FiniteLoss", "InverseLossFrequency", "LastCheckpoint", "Progress", "Stop"]
