"""Tables: what rich draws, as plain text."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from rich.table import Table

Row_co = TypeVar("Row_co", covariant=True)


class Rows(Sequence[Row_co]):
    """What a report is made of, in execution order: it counts, indexes and iterates over its rows.

    >>> list(Rows("ab")), len(Rows("ab")), Rows("ab")[0]
    (['a', 'b'], 2, 'a')
    """

    def __init__(self, rows: Iterable[Row_co]) -> None:
        self.rows = tuple(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row_co]:
        return iter(self.rows)


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], caption: Sequence[str], *, words: Sequence[str]
) -> Table:
    """A table of figures in the project's one style.

    Args:
        columns: headings.
        rows: cells.
        caption: lines below.
        words: headings of the columns that hold words, not figures.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    result = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        caption=Text("\n".join(caption)),
        caption_justify="left",
    )
    for heading in columns:
        if heading in words:
            result.add_column(heading, overflow="fold")
        else:
            result.add_column(heading, justify="right")
    for row in rows:
        result.add_row(*(Text(cell) for cell in row))
    return result


def plain(renderable: Any, width: int = 110) -> str:
    """What rich would print, without colour and trailing blanks.

    >>> print(plain(table(["norm", "ratio"], [["bn1", "1.00"]], [], words=["norm"])))
    norm   ratio
    ────────────
    bn1     1.00
    """
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def without_nan(value: Any) -> Any:
    """A nested structure with None for what is not a number, which JSON has no word for.

    >>> without_nan({"x": float("nan"), "y": [1.0]})
    {'x': None, 'y': [1.0]}
    """
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in cast("list[Any]", value)]
    return None if isinstance(value, float) and math.isnan(value) else value
