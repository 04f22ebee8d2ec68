"""ExactSum: sums of float64 tensors without rounding, the same in whatever order and parts they are added."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


class ExactSum:
    """A sum of tensors of one shape, held as rows that add up to it exactly.

    Adding is Knuth's two-sum, row after row: each row keeps what the one before had to round off, and another row is
    opened where anything is left. So the value, rounded once, does not depend on the order of what was added, nor on
    how it was cut into sums that were then added to each other.

    Args:
        rows: float64 tensors of one shape, of an earlier sum.

    >>> total = ExactSum()
    >>> for x in (1e16, 1.0, -1e16):
    ...     total.add(torch.tensor([x], dtype=torch.float64))
    >>> total.value
    tensor([1.], dtype=torch.float64)
    """

    def __init__(self, rows: Iterable[Tensor] = ()) -> None:
        self._rows = list(rows)

    @property
    def rows(self) -> Tensor:
        """What adds up to the sum, shape (rows, ...)."""
        return torch.stack(self._rows)

    def add(self, value: Tensor) -> None:
        """Add a float64 tensor."""
        rest = value
        for place, row in enumerate(self._rows):
            self._rows[place], rest = _two_sum(row, rest)
            if not rest.any():
                return
        self._rows.append(rest)

    def add_all(self, other: ExactSum) -> None:
        """Add another sum."""
        for row in other._rows:
            self.add(row)

    @property
    def value(self) -> Tensor:
        """The sum, correctly rounded, float64."""
        rows = self.rows
        columns = zip(*(row.flatten().tolist() for row in rows), strict=True)
        return torch.tensor([math.fsum(column) for column in columns], dtype=torch.float64).view(rows.shape[1:])


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The rounded sum, and what was rounded off."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)
