"""Halves: which of many go well together, found by halves where all of them do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Halves(Generic[Item, Result]):
    """Which of many items go well together: those that would also be kept one by one, if what goes well does in parts.

    Groups are as large as they are expected to go well, and those that do not are halved: each item that goes wrong
    costs about log2 n attempts, of few among n, and of many a few (Hwang 1972, generalized binary splitting).

    Args:
        attempt: what comes of some items, and why they do not go together, "" if they do.

    Attributes:
        kept: the items that go well together, in the order in which they were given.
        result: what came of these; None if nothing was kept.
        reasons: of each of the others, by their own order, with the reason.

    >>> halves = Halves[int, int](lambda items: (sum(items), "odd" if any(item % 2 for item in items) else ""))
    >>> halves.keep(range(6))
    >>> halves.kept, halves.result, halves.reasons
    ([0, 2, 4], 6, [(1, 'odd'), (3, 'odd'), (5, 'odd')])
    """

    attempt: Callable[[Sequence[Item]], tuple[Result, str]]
    kept: list[Item] = field(default_factory=list[Item])
    result: Result | None = None
    reasons: list[tuple[Item, str]] = field(default_factory=list[tuple[Item, str]])

    def keep(self, items: Sequence[Item]) -> None:
        """Keep those of the items that go well with what is kept by now, and with those before them."""
        place = 0
        while place < len(items):
            size = (place + len(items)) // (len(self.reasons) + 1)  # by the share that went wrong so far
            group = items[place : place + size]
            reason = self._refused(group)
            place += self._until_wrong(group, reason) if reason else len(group)

    def _refused(self, items: Sequence[Item]) -> str:
        """Why items do not go with what is kept; "" if they do, and are kept then."""
        result, reason = self.attempt([*self.kept, *items])
        if not reason:
            self.kept += items
            self.result = result
        return reason

    def _until_wrong(self, items: Sequence[Item], reason: str) -> int:
        """Keep what comes before the first item that goes wrong, and say how many items that is, with it."""
        first, last = 0, len(items)
        while last - first > 1:
            middle = (first + last) // 2
            if found := self._refused(items[first:middle]):
                last, reason = middle, found
            else:
                first = middle
        self.reasons.append((items[first], reason))
        return last
