"""Merging: a loader's small batches made into large ones, as many as a budget of memory allows."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from evenkeel.model.batches import samples
from evenkeel.model.nested import is_words, map_together

MOST_PARTS = 8  # of a group, whose statistics are taken apart for the variance between them
_CONSTANTS = (str, bytes, int, float, bool, type(None))


@dataclass(frozen=True)
class Group:
    """Batches of the loader that run as one.

    Attributes:
        held: the batches, each with its number.
    """

    held: tuple[tuple[int, Any], ...]

    @property
    def batch(self) -> Any:
        """The batch made of them, a new one every time: a forward may write into it."""
        batches = [batch for _, batch in self.held]
        return merged(batches) if len(batches) > 1 else map_together(_own, batches)

    @property
    def first(self) -> int:
        """Number of the first batch."""
        return self.held[0][0]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many samples each batch holds."""
        return tuple(samples(batch) for _, batch in self.held)

    @property
    def samples(self) -> int:
        """How many samples the group holds."""
        return sum(self.sizes)

    def head(self, count: int) -> Group:
        """A group of the first of its batches, so many that they hold as many samples."""
        ends = list(accumulate(self.sizes))
        held = self.held[: 1 + sum(end < count for end in ends)]
        return Group(held)

    def parts(self, x: Tensor) -> list[tuple[int, Tensor]]:
        """A norm's input batch by batch, or, where those are many, by runs of them; each with its number."""
        per_sample, rest = divmod(len(x), self.samples) if self.samples else (0, 1)
        if len(self.sizes) == 1 or rest:
            return [(self.first, x)]
        step = -(-len(self.sizes) // MOST_PARTS)
        ends = list(accumulate(self.sizes, initial=0))
        ends = [*ends[:-1:step], ends[-1]]
        parts = x.split([(end - start) * per_sample for start, end in pairwise(ends)])
        return [(self.first + i * step, part) for i, part in enumerate(parts)]


class Groups(Iterator[Group]):
    """The batches of a loader in groups of at most so many samples; batches that do not fit together stay apart.

    Samples are taken as independent, as they are in eval mode: every tensor of a batch must have them as its leading
    dimension, and batches are merged only if they agree in all else.

    Args:
        batches: the loader's batches.
        limit: asked, with the first batch of each group, how many samples it may hold; a larger batch is one by itself.

    >>> [group.sizes for group in Groups([torch.ones(4, 2)] * 5, lambda batch: 8)]
    [(4, 4), (4, 4), (4,)]
    """

    def __init__(self, batches: Iterable[Any], limit: Callable[[Any], float]) -> None:
        self._batches = enumerate(batches, 1)
        self._limit = limit
        self._apart = False
        self._waiting: deque[tuple[int, Any]] = deque()

    def __next__(self) -> Group:
        held = [self._take()]
        batch = held[0][1]
        form = None if self._apart else form_of(batch)
        total = samples(batch)
        most = total if form is None else self._limit(batch)
        while total < most:
            try:
                following = self._take()
            except StopIteration:
                break
            total += samples(following[1])
            if total > most or form_of(following[1]) != form:
                self._waiting.appendleft(following)
                break
            held.append(following)
        return Group(tuple(held))

    def split(self, group: Group) -> Group:
        """Take a group back, and give out its batches, and all that follow, one by one: the first one now."""
        self._apart = True
        self._waiting.extendleft(reversed(group.held))
        return next(self)

    def _take(self) -> tuple[int, Any]:
        return self._waiting.popleft() if self._waiting else next(self._batches)


def form_of(batch: Any) -> Hashable | None:
    """What batches must agree in to be merged: all but the number of samples; None if this one cannot be merged.

    >>> form_of({"x": torch.ones(4, 2), "scale": 0.5}) == form_of({"x": torch.zeros(3, 2), "scale": 0.5})
    True
    """
    count = samples(batch)
    try:
        return _form(batch, count) if count else None
    except TypeError:
        return None


def _form(value: Any, count: int) -> Hashable:
    """The form of a part of a batch of `count` samples; TypeError if it has none."""
    if isinstance(value, Tensor) and value.ndim and len(value) == count and value.layout is torch.strided:
        return value.dtype, value.device, value.shape[1:]
    if isinstance(value, Mapping):
        return type(value), tuple((key, _form(item, count)) for key, item in value.items())
    if is_words(value) and len(value) == count:
        return type(value)
    if isinstance(value, (tuple, list)):
        return type(value), tuple(_form(item, count) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), tuple(_form(getattr(value, f.name), count) for f in fields(value) if f.init)
    if isinstance(value, _CONSTANTS):
        return value
    raise TypeError(f"{type(value).__name__} cannot be merged")


def merged(batches: Sequence[Any]) -> Any:
    """One batch of several of the same form.

    >>> merged([{"x": torch.ones(4, 2)}, {"x": torch.ones(3, 2)}])["x"].shape
    torch.Size([7, 2])
    """
    return map_together(_concatenated, batches)


def _own(leaves: Sequence[Any]) -> Any:
    """A copy that may be written to: of a tensor, or of an object, of which attributes may be set."""
    leaf = leaves[0]
    return leaf.clone() if isinstance(leaf, Tensor) else copy.copy(leaf) if hasattr(leaf, "__dict__") else leaf


def _concatenated(leaves: Sequence[Any]) -> Any:
    if isinstance(leaves[0], Tensor):
        return torch.cat(list(leaves))
    return [word for words in leaves for word in words] if is_words(leaves[0]) else leaves[0]
