"""Exact sums: the same bits in any order and any grouping, and those of rational arithmetic."""

from fractions import Fraction

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.parts.exact_sums import ExactSum

NUMBERS = st.floats(-1e100, 1e100, allow_nan=False)


def summed(numbers):
    total = ExactSum()
    for number in numbers:
        total.add(torch.tensor([number, -2 * number], dtype=torch.float64))
    return total


@settings(max_examples=50, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_sums_are_those_of_fractions_in_any_order_and_grouping(numbers, random):
    exact = float(sum(map(Fraction, numbers)))
    shuffled = random.sample(numbers, len(numbers))
    cut = random.randint(0, len(numbers) - 1)
    parts = summed(shuffled[cut:])
    if cut:
        parts.add_all(summed(shuffled[:cut]))
    for total in (summed(numbers), parts, ExactSum(parts.rows)):
        assert total.value.tolist() == [exact, -2 * exact]


def test_few_rows_hold_many_terms():
    torch.manual_seed(0)
    total = ExactSum()
    for x in torch.randn(2000, 3, dtype=torch.float64).exp():
        total.add(x)
    assert len(total.rows) <= 3
