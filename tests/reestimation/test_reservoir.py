"""Reservoir: within its budget, and as much of every part of the stream."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.reestimation.reservoir import Reservoir
from evenkeel.statistics.batch_merging import Piece


def filled(count, size, budget, divisible):
    held = Reservoir(budget)
    for number in range(count):
        values = 1000 * number + torch.arange(size).float()
        held.add(Piece(number, values[:, None], size), is_divisible=divisible)
    return held


@given(count=st.integers(1, 120), size=st.integers(1, 40), budget=st.integers(200, 8000), divisible=st.booleans())
def test_it_stays_within_its_budget_and_holds_all_while_it_can(count, size, budget, divisible):
    held = filled(count, size, budget, divisible)
    bytes_held = sum(4 * piece.samples for piece in held.pieces)
    assert bytes_held <= budget or len(held.pieces) == 1
    assert held.is_complete == (4 * count * size <= budget or count == 1)
    assert not held.is_complete or len(held.pieces) == count
    assert all(len(piece.batch) == piece.samples for piece in held.pieces)
    numbers = torch.cat([piece.batch for piece in held.pieces]).flatten() // 1000
    assert numbers.unique().tolist() == sorted({piece.number for piece in held.pieces})


@given(count=st.integers(16, 120), size=st.integers(2, 40), divisible=st.booleans())
def test_what_is_left_comes_from_everywhere(count, size, divisible):
    held = filled(count, size, 16 * size, divisible)
    numbers = [piece.number for piece in held.pieces]
    gaps = [b - a for a, b in zip([-1, *numbers], [*numbers, count], strict=True)]
    assert len(numbers) == 1 or max(gaps) <= 2 * count / len(numbers) + 2


@given(
    count=st.integers(1, 60),
    size=st.integers(1, 40),
    wanted=st.integers(1, 400),
    fewest=st.integers(1, 16),
    divisible=st.booleans(),
)
def test_a_sample_is_about_as_large_as_wanted_and_spread(count, size, wanted, fewest, divisible):
    held = filled(count, size, 1 << 20, divisible)
    pieces = held.sample(wanted, fewest, is_divisible=divisible)
    if count * size <= 2 * wanted:
        assert pieces is held.pieces
    assert len(pieces) >= min(fewest, count)
    numbers = [piece.number for piece in pieces]
    assert numbers == sorted(set(numbers))
    total = sum(piece.samples for piece in pieces)
    assert total >= min(wanted / 4, count * size)
    assert total <= max(4 * wanted, 2 * fewest * (1 if divisible else size), 2 * size)
