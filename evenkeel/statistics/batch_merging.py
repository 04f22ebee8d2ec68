"""Merging: a loader's small batches made into large ones, as many as a budget of memory allows."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor

from evenkeel.model.nested import is_words, map_together
from evenkeel.model.sample_lists import listed_samples

MOST_PARTS = 8  # of a group, whose statistics are taken apart for the variance between them
_CONSTANTS = (str, bytes, int, float, bool, type(None))
_SMALL = 64  # values of a sample that may tell which way all of a batch goes
Count = Callable[[Any], int]
Proof = Callable[["Group"], bool]


class Piece(NamedTuple):
    """One of the loader's batches, or some of its samples.

    Attributes:
        number: of the batch, from 1.
        batch: the batch.
        samples: how many it holds.
        places: which of the batch's samples these are, as they were taken step by step; empty of all.
    """

    number: int
    batch: Any
    samples: int
    places: tuple[Sequence[int], ...] = ()

    @property
    def form(self) -> Hashable | None:
        """What batches must agree in to be merged with it."""
        return form_of(self.batch, self.samples)

    def thinned(self, step: int) -> Piece:
        """A copy of every `step`-th of its samples, for which the batch must have a form; of all with 1."""
        if step == 1:
            return self._replace(batch=copied(self.batch))
        return self.chosen(range(0, self.samples, step))

    def chosen(self, places: Sequence[int]) -> Piece:
        """A copy of the samples at these places, for which the batch must have a form."""
        batch = map_together(lambda leaves: _chosen(leaves[0], places), [self.batch])
        return Piece(self.number, batch, len(places), (*self.places, places))


@dataclass(frozen=True)
class Group:
    """Batches of the loader that run as one.

    Attributes:
        held: the batches.
    """

    held: tuple[Piece, ...]

    @property
    def batch(self) -> Any:
        """The batch made of them, a new one every time: a forward may write into it."""
        batches = [piece.batch for piece in self.held]
        return merged(batches) if len(batches) > 1 else copied(batches[0])

    @property
    def first(self) -> int:
        """Number of the first batch."""
        return self.held[0].number

    @property
    def key(self) -> Hashable:
        """Equal for groups of the same samples."""
        return tuple((piece.number, piece.places) for piece in self.held)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many samples each batch holds."""
        return tuple(piece.samples for piece in self.held)

    @property
    def samples(self) -> int:
        """How many samples the group holds."""
        return sum(self.sizes)

    def parts(self, x: Tensor, *, by_sample: bool = False) -> list[tuple[int, Tensor]]:
        """A norm's input batch by batch, or, where those are many, by runs of them; each with its number.

        Args:
            x: the input.
            by_sample: whether one batch is taken apart, too, by runs of its samples, numbered from 0.
        """
        per_sample, rest = divmod(len(x), self.samples) if self.samples else (0, 1)
        if by_sample and len(self.sizes) == 1 and not rest:
            return list(enumerate(x.split(-(-self.samples // MOST_PARTS) * per_sample)))
        if len(self.sizes) == 1 or rest:
            return [(self.first, x)]
        step = -(-len(self.sizes) // MOST_PARTS)
        ends = list(accumulate(self.sizes, initial=0))
        ends = [*ends[:-1:step], ends[-1]]
        parts = x.split([(end - start) * per_sample for start, end in pairwise(ends)])
        return [(piece.number, part) for piece, part in zip(self.held[::step], parts, strict=True)]


class Groups(Iterator[Group]):
    """Batches in groups of at most so many samples; those that do not fit together stay apart.

    Samples are taken as independent, as they are in eval mode, if that is proven: every tensor of a batch must have
    them as its leading dimension, and batches are merged only if they agree in all else. A tensor that is the same for
    all samples of a batch may tell which way the batch goes, as the number of a domain does, and must agree as well.

    Args:
        pieces: the batches.
        limit: asked, with the first batch of each group, how many samples it may hold; a larger batch is one by itself.
        proof: asked of groups of several batches whether they may run as one; the first, and then ever more rarely. If
            not, they and all that follow stay apart.

    Attributes:
        merged: how many groups of several batches have been given out.

    >>> pieces = [Piece(number, torch.randn(4, 2), 4) for number in range(5)]
    >>> [group.sizes for group in Groups(pieces, lambda piece: 8)]
    [(4, 4), (4, 4), (4,)]
    """

    def __init__(self, pieces: Iterable[Piece], limit: Callable[[Piece], float], proof: Proof | None = None) -> None:
        self._pieces = iter(pieces)
        self._limit = limit
        self._proof = proof
        self._apart = False
        self._waiting: deque[Piece] = deque()
        self.merged = 0

    def __next__(self) -> Group:
        group = self._gathered()
        if len(group.held) == 1:
            return group
        is_asked = self.merged & (self.merged + 1) == 0  # after 0, 1, 3, 7, ... groups
        if is_asked and self._proof is not None and not self._proof(group):
            return self.split(group)
        self.merged += 1
        return group

    def split(self, group: Group) -> Group:
        """Take a group back, and give out its batches, and all that follow, one by one: the first one now."""
        self._apart = True
        self._waiting.extendleft(reversed(group.held))
        return next(self)

    def _gathered(self) -> Group:
        held = [self._take()]
        form = None if self._apart else held[0].form
        total = held[0].samples
        most = total if form is None else self._limit(held[0])
        while total < most:
            try:
                following = self._take()
            except StopIteration:
                break
            total += following.samples
            if total > most or following.form != form:
                self._waiting.appendleft(following)
                break
            held.append(following)
        return Group(tuple(held))

    def _take(self) -> Piece:
        return self._waiting.popleft() if self._waiting else next(self._pieces)


def form_of(batch: Any, count: int) -> Hashable | None:
    """What batches must agree in to be merged: all but the samples; None if this one cannot be merged.

    >>> form_of({"x": torch.randn(4, 2), "scale": 0.5}, 4) == form_of({"x": torch.randn(3, 2), "scale": 0.5}, 3)
    True
    >>> form_of({"domain": torch.tensor([0, 0])}, 2) == form_of({"domain": torch.tensor([1, 1])}, 2)
    False
    """
    try:
        return _form(batch, count) if count and listed_samples(batch) is None else None
    except TypeError:
        return None


def _form(value: Any, count: int) -> Hashable:
    """The form of a part of a batch of `count` samples; TypeError if it has none."""
    if _is_strided(value) and value.ndim and len(value) == count:
        return value.dtype, value.device, value.shape[1:], _constant(value)
    if isinstance(value, Mapping):
        return type(value), tuple((key, _form(item, count)) for key, item in value.items())
    if is_words(value) and len(value) == count:
        return type(value), value[0] if len(set(value)) == 1 < count else None
    if isinstance(value, (tuple, list)):
        return type(value), tuple(_form(item, count) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), tuple(_form(getattr(value, f.name), count) for f in fields(value) if f.init)
    if isinstance(value, _CONSTANTS):
        return value
    raise TypeError(f"{type(value).__name__} cannot be merged")


def _is_strided(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested


def _constant(tensor: Tensor) -> Hashable | None:
    """What all samples of a batch have in common, if they are small; of a single one, a whole number or a one-hot."""
    size = tensor[0].numel()
    if len(tensor) == 1 and size <= _SMALL and not _is_choice(tensor):
        return None
    if size > _SMALL or not bool((tensor[:2] == tensor[:1]).all()) or not bool((tensor == tensor[:1]).all()):
        return None
    return tuple(tensor[0].flatten().tolist())


def _is_choice(tensor: Tensor) -> bool:
    """Whether the values are one whole number, or a single one among zeros."""
    if tensor.numel() > 1:
        return bool((tensor != 0).sum() == 1) and bool((tensor == 1).any())
    return not tensor.is_complex() and float(tensor) == float(tensor) // 1


def merged(batches: Sequence[Any]) -> Any:
    """One batch of several of the same form.

    >>> merged([{"x": torch.ones(4, 2)}, {"x": torch.ones(3, 2)}])["x"].shape
    torch.Size([7, 2])
    """
    return map_together(_concatenated, batches)


def copied(batch: Any) -> Any:
    """A copy of a batch: of its tensors and arrays, and of objects as deep as these copy themselves."""
    return map_together(_own, [batch])


def _own(leaves: Sequence[Any]) -> Any:
    """A copy that may be written to: of a tensor or a graph, or of an object, of which attributes may be set."""
    leaf = leaves[0]
    if callable(getattr(leaf, "clone", None)) and not isinstance(leaf, type):
        return leaf.clone()
    return copy.copy(leaf) if hasattr(leaf, "__dict__") or isinstance(leaf, np.ndarray) else leaf


def _chosen(leaf: Any, places: Sequence[int]) -> Any:
    if isinstance(leaf, Tensor):
        return leaf[list(places)]
    return type(leaf)(leaf[place] for place in places) if is_words(leaf) else _own([leaf])


def _concatenated(leaves: Sequence[Any]) -> Any:
    if isinstance(leaves[0], Tensor):
        return torch.cat(list(leaves))
    return [word for words in leaves for word in words] if is_words(leaves[0]) else leaves[0]
