"""Loaders: how to iterate over one that is in use elsewhere, and leave no trace."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader


@contextmanager
def aside(loader: Any) -> Generator[Any]:
    """Lend out a training loader, so that its own iteration, under way or to come, yields what it would have.

    That is a copy of a DataLoader, without workers that outlive an iteration, since those can serve one only; what its
    samplers keep, such as an epoch's number or the state of a generator, is put back. Of a loader that accelerate
    prepared it is the loader inside, each process's own share included, which does not count steps of training.

    Args:
        loader: a DataLoader; anything else is lent out as it is.

    Yields:
        What to iterate over.

    >>> loader = DataLoader(range(100), shuffle=True, generator=torch.Generator().manual_seed(0))
    >>> with aside(loader) as borrowed:
    ...     first = [int(number) for number in borrowed]
    >>> first == [int(number) for number in loader]
    True
    """
    inner = getattr(loader, "base_dataloader", loader)
    if not isinstance(inner, DataLoader):
        yield loader
        return
    kept = [(holder, dict(vars(holder))) for holder in (inner, *_samplers(inner))]
    generators = {value for _, state in kept for value in state.values() if isinstance(value, torch.Generator)}
    states = [(generator, generator.get_state()) for generator in generators]
    borrowed = copy.copy(inner)
    borrowed._iterator = None
    try:
        yield borrowed
    finally:
        for holder, state in kept:
            vars(holder).update(state)
        for generator, state in states:
            generator.set_state(state)


def _samplers(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's samplers, and those inside of them."""
    waiting: list[Any] = [loader.batch_sampler, loader.sampler]
    while waiting:
        sampler = waiting.pop()
        if hasattr(sampler, "__dict__"):
            yield sampler
            waiting += [getattr(sampler, name, None) for name in ("sampler", "batch_sampler")]
