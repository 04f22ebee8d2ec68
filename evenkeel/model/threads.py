"""Threads: how many of torch's threads compute, where one of them does it as well or the cores are taken."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

_WORTH = 1 << 27  # multiplications, from which on work is shared: some milliseconds of one thread
_AN_ELEMENT = 32  # multiplications that take as long as to read an element, and write it
_SIZE, _TIMES = 512, 3  # of the matrices multiplied to see whether cores are free, and how often
_GAIN = 0.75  # of one thread's time, that all together take at most on free cores
_LASTS = 2.0  # seconds for which that is then taken for granted


@contextmanager
def single_threaded() -> Generator[None]:
    """Compute on one thread, and on as many as before on leaving, also after an exception; works as a decorator, too.

    Threads that share an operation wait for each other at its end. On a busy machine one of them may not run for some
    milliseconds, which is a thousand times what an operation on a few hundred numbers takes. The number belongs to
    the thread that asks: others that compute meanwhile keep theirs.

    >>> with single_threaded():
    ...     torch.get_num_threads()
    1
    """
    known = getattr(_ALLOWED, "count", None)
    _ALLOWED.count = known or torch.get_num_threads()
    try:
        with on_threads(1):
            yield
    finally:
        _ALLOWED.count = known


def threads_for(operands: Sequence[Tensor], *, product: bool = False) -> AbstractContextManager[None]:
    """All threads for an operation that takes some milliseconds, also where `single_threaded`, if cores are free.

    Args:
        operands: what it reads.
        product: whether it multiplies each position of the first, whose channels come second, by all of the second.
    """
    work = _AN_ELEMENT * max((t.numel() for t in operands), default=0)
    if product and len(operands) > 1 and operands[0].dim() > 1:
        x, weight = operands[:2]
        work = x.numel() // max(x.shape[1], 1) * weight.numel()
    count = getattr(_ALLOWED, "count", None) or torch.get_num_threads()
    return on_threads(count if count > 1 and work >= _WORTH and _CORES.are_free(count) else 1)


@contextmanager
def on_threads(count: int) -> Generator[None]:
    """Compute on so many threads, and on as many as before on leaving, also after an exception."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Cores:
    """Whether other programs leave this one the cores that its threads need, as last measured."""

    def __init__(self) -> None:
        self.until = -math.inf
        self.free = False

    def are_free(self, count: int) -> bool:
        """Whether so many threads are faster than one, by a test every other second."""
        if time.monotonic() > self.until:
            self.free = _seconds(count) < _GAIN * _seconds(1)
            self.until = time.monotonic() + _LASTS
        return self.free


def _seconds(threads: int) -> float:
    """What a multiplication takes, in the mean over some, after one that wakes the threads."""
    with on_threads(threads):
        matrix = torch.ones(_SIZE, _SIZE)
        torch.mm(matrix, matrix)
        began = time.perf_counter()
        for _ in range(_TIMES):
            torch.mm(matrix, matrix)
        return (time.perf_counter() - began) / _TIMES


_ALLOWED = threading.local()  # `count`: how many threads there were before there was one
_CORES = _Cores()
