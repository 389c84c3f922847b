"""Put a session back as it was: a run in a notebook leaves no trace in its process."""

import logging
import os
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only

SIGNALS = ("SIGINT", "SIGTERM", "SIGALRM", "SIGUSR1")  # some systems lack some of them
LOGGERS = ("", "lightning", "lightning.pytorch", "lightning.fabric")


@contextmanager
def restored_session() -> Iterator[None]:
    """Restore the process when the block ends, also by an exception.

    This holds for handlers and levels of loggers, signals, environment variables, the working
    directory, filters of warnings, settings of torch and the states of random numbers.
    """
    with ExitStack() as stack, warnings.catch_warnings():
        for state in (_logging, _signals, _environment, _torch_settings, _random_numbers, _rank):
            stack.callback(state())
        yield


def _logging() -> Callable[[], None]:
    root = logging.getLogger()
    handlers = root.handlers[:]
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    raises = logging.raiseExceptions

    def restore() -> None:
        for handler in root.handlers[:]:
            if handler not in handlers:
                root.removeHandler(handler)
                handler.close()
        root.handlers[:] = handlers
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        logging.raiseExceptions = raises

    return restore


def _signals() -> Callable[[], None]:
    known = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    handlers = {sign: signal.getsignal(sign) for sign in known}

    def restore() -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers, so none has changed
        for sign, handler in handlers.items():
            if handler is not None:  # None: not set from Python
                signal.signal(sign, handler)

    return restore


def _environment() -> Callable[[], None]:
    variables = dict(os.environ)
    folder = os.getcwd()

    def restore() -> None:
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)
        os.chdir(folder)

    return restore


def _torch_settings() -> Callable[[], None]:
    dtype = torch.get_default_dtype()
    threads = torch.get_num_threads()
    precision = torch.get_float32_matmul_precision()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    has_gradients = torch.is_grad_enabled()
    cudnn = (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    compiler = torch._dynamo.config
    suppresses_errors = compiler.suppress_errors

    def restore() -> None:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(is_deterministic, warn_only=warns_only)
        torch.set_grad_enabled(has_gradients)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn
        compiler.suppress_errors = suppresses_errors

    return restore


def _random_numbers() -> Callable[[], None]:
    python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    of_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        if of_cuda:
            torch.cuda.set_rng_state_all(of_cuda)

    return restore


def _rank() -> Callable[[], None]:
    rank = getattr(rank_zero_only, "rank", None)

    def restore() -> None:
        rank_zero_only.rank = rank  # type: ignore[attr-defined]  # set by Lightning in this way

    return restore
