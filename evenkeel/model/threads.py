"""Threads: torch kept to one of them, where work is too small to be worth sharing."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


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
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
