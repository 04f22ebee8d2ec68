"""GroupLimits: how many samples of a loader's batches may run together, and whether it is proven that they may."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn

from evenkeel.errors import BatchError
from evenkeel.model.batches import device_of
from evenkeel.model.norms import mixes_batch
from evenkeel.statistics.batch_merging import Group, Groups, Piece
from evenkeel.statistics.probes import Probes

MEMORY = 1 << 27  # bytes
_CHEAP = 1 << 24  # bytes that a CPU's allocator reuses; it maps larger pieces anew every time
_ALL = 4  # times as many samples as a group should hold, at most, may all be in it; of more, so large a part
_HELD = 8  # times as much memory as the largest input of a norm may take, for the inputs of all norms


class GroupLimits:
    """Makes groups of batches, as large as memory allows and as is proven right.

    Args:
        model: in eval mode.
        probes: of the model.
        memory: bytes that the largest input of a norm may take where batches are merged; 0 merges none.

    Attributes:
        least: samples that a group of merged batches should hold, as far as the memory allows; more where that is
            cheap or a small part of all, and all where they are not many more.
        most: samples that it should not exceed.
        expected: number of batches.
        holds: whether the inputs of all norms are held while a group runs, which takes more memory.
        apart: why batches run one by one; empty if they need not.
        is_doubted: whether batches had been merged before it was found that they must not be.
        is_divisible: whether it is proven that samples can be run in any company.
    """

    def __init__(self, model: nn.Module, probes: Probes, memory: int) -> None:
        self.least, self.most, self.expected = 0.0, math.inf, math.inf
        self.holds = False
        self.apart = (
            "a norm normalises by its batch in eval mode, too" if any(map(mixes_batch, model.modules())) else ""
        )
        self.is_doubted = False
        self.is_divisible = False
        self._is_cpu = device_of(model).type == "cpu"
        self._probes = probes
        self._memory = 0 if self.apart else memory
        self._size: float | None = None  # bytes of a sample, as far as groups are limited by them
        self._groups: Groups | None = None  # that were given out last

    def groups_of(self, pieces: Iterable[Piece], expected: float) -> Groups:
        """Batches in groups; their number is what is expected."""
        self.expected = expected
        self._groups = Groups(pieces, _none if self.apart else self._limit, self._is_proven)
        return self._groups

    def release(self) -> None:
        """Hold no batches any more."""
        self._groups = None

    def regrouped(self, pieces: Iterable[Piece]) -> list[Group]:
        """Batches that were run before, in groups as large as the memory allows."""
        return list(Groups(pieces, self._limit if self.is_divisible else _none))

    def split(self, group: Group, reason: str) -> Group:
        """Run a group's batches, and all that follow, one by one from now on: the first one now."""
        assert self._groups is not None
        self.keep_apart(reason)
        return self._groups.split(group)

    def can_divide(self, piece: Piece) -> bool:
        """Whether it is proven, by halves of a batch, that its samples can be run in any company."""
        if self.apart or not self._memory or piece.form is None or piece.samples < 2:
            return False
        halves = (piece.chosen(range(start, piece.samples, 2)) for start in (0, 1))
        return self._is_proven(Group(tuple(halves)))

    def keep_apart(self, reason: str) -> None:
        """Merge no more."""
        self.is_divisible = False
        self.is_doubted |= self._groups is not None and self._groups.merged > 0
        self.apart = self.apart or reason

    def _limit(self, piece: Piece) -> float:
        """How many samples a group may hold."""
        if self._size is None:
            self._size = self._bytes_of_a_sample(piece) if self._memory else math.inf
        size = self._size
        cheap = min(self._memory, _CHEAP) if self._is_cpu else self._memory
        total = self.expected * piece.samples
        least = max(self.least, cheap // size)
        if total <= _ALL * least:
            least = total
        elif math.isfinite(total):
            least = max(least, min(total // _ALL, _ALL * self.least))
        return min(least, self.most, self._memory // size)

    def _bytes_of_a_sample(self, piece: Piece) -> float:
        """Bytes that count of a sample, at least 1; infinite if the model does not take one."""
        try:
            largest, together = self._probes.bytes_of_a_sample(piece.batch)
        except BatchError as error:
            self.keep_apart(f"one sample alone, {error}")
            return math.inf
        return max(largest, together / _HELD if self.holds else 0, 1)

    def _is_proven(self, group: Group) -> bool:
        """Whether every norm is fed the same by samples of the group's batches, apart and merged."""
        try:
            path = self._probes.unlike(group)
        except BatchError as error:
            self.keep_apart(f"two samples of each, {error}")
            return False
        if path is not None:
            self.keep_apart(f"merged, they feed norm {path!r} other values than apart")
        self.is_divisible = path is None
        return self.is_divisible


def _none(_piece: Piece) -> float:
    """How many samples may run together where none may."""
    return 0
