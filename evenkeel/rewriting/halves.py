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

    One that goes wrong among n costs about 2 log2 n attempts, and k of them at most 2 n.

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
        """Keep those of the items that go well with what is kept by now."""
        if reason := self._refused(items):
            self._divide(items, reason)

    def _refused(self, items: Sequence[Item]) -> str:
        """Why items do not go with what is kept; "" if they do, and are kept then."""
        result, reason = self.attempt([*self.kept, *items])
        if not reason:
            self.kept += items
            self.result = result
        return reason

    def _divide(self, items: Sequence[Item], reason: str) -> None:
        """Keep those that go well, of items that do not all."""
        if len(items) == 1:
            self.reasons.append((items[0], reason))
            return
        first, second = items[: len(items) // 2], items[len(items) // 2 :]
        if found := self._refused(first):
            self._divide(first, found)
            self.keep(second)
        else:  # it is the second half's then, and need not be tried again
            self._divide(second, reason)
