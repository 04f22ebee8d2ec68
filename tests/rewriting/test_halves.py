"""The law of halves: what is kept is what would be kept one by one, at a cost that grows with what goes wrong."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from evenkeel.rewriting.halves import Halves

FEW = st.integers(0, 40)


class Attempts:
    """Counts attempts; items go together unless some of them are all there of a set that does not."""

    def __init__(self, wrong: list[set[int]]) -> None:
        self.wrong = wrong
        self.count = 0

    def __call__(self, items):
        self.count += 1
        found = next((wrong for wrong in self.wrong if wrong <= set(items)), None)
        return tuple(items), "" if found is None else f"{sorted(found)} do not go together"


def one_by_one(attempt, items):
    """The slow, obvious way."""
    kept = []
    for item in items:
        if not attempt([*kept, item])[1]:
            kept.append(item)
    return kept


@given(FEW, st.lists(st.sets(FEW, min_size=1, max_size=3), max_size=6))
def test_what_is_kept_is_what_is_kept_one_by_one(count, wrong):
    attempt, items = Attempts(wrong), list(range(count))
    halves = Halves(attempt)
    halves.keep(items)
    assert halves.kept == one_by_one(attempt, items)
    assert [item for item, _ in halves.reasons] == [item for item in items if item not in halves.kept]
    assert all(reason for _, reason in halves.reasons)
    assert halves.result == (tuple(halves.kept) if halves.kept else None)


@given(st.integers(1, 300), st.data())
def test_attempts_grow_with_what_goes_wrong(count, data):
    wrong = data.draw(st.sets(st.integers(0, count - 1), max_size=5))
    attempt = Attempts([{item} for item in wrong])
    Halves(attempt).keep(list(range(count)))
    assert attempt.count <= 1 + len(wrong) * (math.ceil(math.log2(count)) + 2)


@given(st.integers(1, 100))
def test_attempts_are_few_an_item_where_all_go_wrong(count):
    attempt = Attempts([{item} for item in range(count)])
    Halves(attempt).keep(list(range(count)))
    assert attempt.count <= 3 * count
