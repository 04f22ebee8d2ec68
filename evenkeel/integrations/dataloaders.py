"""Loaders: iterate over a training loader without disturbing training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader

T = TypeVar("T")


@contextmanager
def undisturbed(loader: Any) -> Generator[Any]:
    """Yield a training loader to iterate over without disturbing training: its own iteration yields what it would have.

    That is a copy of a DataLoader, without workers that outlive an iteration, since those can serve one only; what its
    samplers keep, such as an epoch's number or the state of a generator, is put back. Of a loader that accelerate
    prepared it is the loader inside, each process's own share included, which does not count steps of training.

    Args:
        loader: a DataLoader that iterates as torch's does; anything else is yielded as it is.

    Yields:
        What to iterate over.

    >>> loader = DataLoader(range(100), shuffle=True, generator=torch.Generator().manual_seed(0))
    >>> with undisturbed(loader) as borrowed:
    ...     first = [int(number) for number in borrowed]
    >>> first == [int(number) for number in loader]
    True
    """
    dispatched = type(loader).__name__ == "DataLoaderDispatcher"  # accelerate's: one process reads for all
    inner = loader if dispatched else getattr(loader, "base_dataloader", loader)
    if dispatched or not isinstance(inner, DataLoader):
        yield loader
        return
    kept = [(holder, dict(vars(holder))) for holder in (inner, *_samplers(inner))]
    generators = {value for _, state in kept for value in state.values() if isinstance(value, torch.Generator)}
    states = [(generator, generator.get_state()) for generator in generators]
    borrowed = copy.copy(inner)
    vars(borrowed).update(_iterator=None, persistent_workers=False)
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
    seen: list[Any] = []
    while waiting:
        sampler = waiting.pop()
        if hasattr(sampler, "__dict__") and not any(sampler is other for other in seen):
            yield sampler
            seen.append(sampler)
            waiting += [getattr(sampler, name, None) for name in ("sampler", "batch_sampler")]


class MappedLoader(Generic[T]):
    """The batches of a loader, at most so many, each passed through a function; with a length if the loader has one.

    >>> [*MappedLoader([1, 2], str)], len(MappedLoader([1, 2], str)), [*MappedLoader(iter([1, 2, 3]), str, 2)]
    (['1', '2'], 2, ['1', '2'])
    """

    def __init__(self, loader: Iterable[Any], function: Callable[[Any], T], most: int | None = None) -> None:
        self._loader = loader
        self._function = function
        self._most = most

    def __len__(self) -> int:
        count = len(self._loader)  # type: ignore[arg-type]
        return count if self._most is None else min(count, self._most)

    def __iter__(self) -> Iterator[T]:
        return map(self._function, islice(self._loader, self._most))
