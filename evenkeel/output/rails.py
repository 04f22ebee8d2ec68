"""Rails: the lines beside a list of layers, which show what skips some of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

_MOST = 3  # columns; what needs more shares the last one, as all outputs of a dense block do


class Rail(NamedTuple):
    """One line at one row: whether it comes from above, goes on below, arrives at the row, leaves from it."""

    column: int
    up: bool
    down: bool
    arrives: bool
    leaves: bool


class RailRow(NamedTuple):
    """The lines at one row: whether the row reads the one before, is read by the next; and those that skip rows."""

    up: bool
    down: bool
    rails: tuple[Rail, ...]


class _Span(NamedTuple):
    start: int
    stops: frozenset[int]

    @property
    def end(self) -> int:
        return max(self.stops)


def rails_of(edges: Collection[tuple[int, int]], count: int) -> dict[int, RailRow]:
    """The lines at every row, from -1, what the rows read, to `count`, what they return.

    Args:
        edges: which row is read by which: pairs (from, to).
        count: how many rows there are.

    >>> rows = rails_of([(-1, 0), (0, 1), (-1, 1)], 2)  # a residual branch of one layer, and its sum
    >>> rows[0]
    RailRow(up=True, down=True, rails=(Rail(column=0, up=True, down=True, arrives=False, leaves=False),))
    >>> rows[1].rails
    (Rail(column=0, up=True, down=False, arrives=True, leaves=False),)
    """
    near = {(a, b) for a, b in edges if b == a + 1}
    columns = _columns([_Span(a, frozenset(far)) for a, far in _far(edges).items()])
    return {
        row: RailRow(
            (row - 1, row) in near,
            (row, row + 1) in near,
            tuple(rail for column, spans in enumerate(columns) if (rail := _rail(row, column, spans))),
        )
        for row in range(-1, count + 1)
    }


def _far(edges: Collection[tuple[int, int]]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for a, b in edges:
        if b > a + 1:
            found.setdefault(a, set()).add(b)
    return found


def _columns(spans: list[_Span]) -> list[list[_Span]]:
    """The spans by column, short ones first and next to the rows; two meet in one column only in the last."""
    columns: list[list[_Span]] = []
    for span in sorted(spans, key=lambda span: (span.end - span.start, span.start)):
        free = (c for c in columns if all(span.end <= other.start or other.end <= span.start for other in c))
        column = next(free, None)
        if column is None and len(columns) < _MOST:
            columns.append(column := [])
        (columns[-1] if column is None else column).append(span)
    return columns


def _rail(row: int, column: int, spans: list[_Span]) -> Rail | None:
    up = any(span.start < row <= span.end for span in spans)
    down = any(span.start <= row < span.end for span in spans)
    arrives = any(row in span.stops for span in spans)
    leaves = any(row == span.start for span in spans)
    return Rail(column, up, down, arrives, leaves) if up or down else None
