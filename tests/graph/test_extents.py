"""Extents overlap where views share memory."""

import pytest
import torch

from evenkeel.graph.extents import Extent, base_of

X = torch.zeros(4, 6)
PAIRS = {
    "columns apart": (X[:, :2], X[:, 2:4], False),
    "columns that overlap": (X[:, :3], X[:, 2:4], True),
    "rows apart": (X[:2], X[2:], False),
    "a part and the whole": (X[1], X, True),
}


@pytest.mark.parametrize("case", PAIRS)
def test_views_overlap_where_they_share_elements(case):
    one, other, overlap = PAIRS[case]
    assert Extent.of(one).overlaps(Extent.of(other)) is overlap
    assert base_of(one) is X
