"""Report: rows that count, index and iterate, shown as one table in text, in a notebook and as plain data."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from evenkeel.errors import EvenkeelError, listed
from evenkeel.output.cells import Cells, fitted
from evenkeel.output.files import finite
from evenkeel.output.page import Grid, Node, Page
from evenkeel.output.rendering import render_compact, save_page

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table
    from typing_extensions import Self

Row_co = TypeVar("Row_co", covariant=True)


class Rows(Sequence[Row_co]):
    """Rows in execution order, that count, index and iterate.

    >>> list(Rows("ab")), len(Rows("ab")), Rows("ab")[0]
    (['a', 'b'], 2, 'a')
    """

    def __init__(self, rows: Iterable[Row_co] | Callable[[], Iterable[Row_co]]) -> None:
        self._rows = rows if callable(rows) else tuple(rows)

    @cached_property
    def rows(self) -> tuple[Row_co, ...]:
        """The rows, which a function given in their place makes when they are first read."""
        return tuple(self._rows() if callable(self._rows) else self._rows)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_rows": self.rows}  # what makes them need not be fit to be copied or stored

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row_co]:
        return iter(self.rows)


class Report(Rows[Row_co]):
    """What a verb found or did, row by row; `str()` is its table.

    Attributes:
        rows: one a layer, in execution order.
        untouched: what was left as it was, by path, each with the reason.
        unsure: what is a guess or unknown, by path, each with the reason.
        notes: what else the reader must know.
    """

    _width: ClassVar[int] = 110
    _title: ClassVar[str] = "report"
    _network: Callable[[], Node] | Node | None = None

    def __init__(
        self,
        rows: Iterable[Row_co] | Callable[[], Iterable[Row_co]],
        *,
        untouched: Mapping[str, str] | None = None,
        unsure: Mapping[str, str] | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        super().__init__(rows)
        self.untouched = dict(untouched or {})
        self.unsure = dict(unsure or {})
        self.notes = tuple(notes)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain numbers, strings and lists, for JSON: None stands for what is not finite."""
        rows = [row.to_dict() if hasattr(row, "to_dict") else asdict(row) for row in self.rows]  # type: ignore[call-overload,attr-defined]
        found = {"rows": rows, "untouched": self.untouched, "unsure": self.unsure, "notes": list(self.notes)}
        return finite(self._figures() | found)

    def _figures(self) -> dict[str, Any]:
        """What holds for all rows together."""
        return {}

    @property
    def network(self) -> Node | None:
        """The outline of the model, if it is known: made when it is first read."""
        if callable(self._network):
            self._network = self._network()
        return self._network

    def drawn_with(self, network: Callable[[], Node] | Node | None) -> Self:
        """The same report, which knows the model's outline, or what makes it."""
        self._network = network
        return self

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | ({"_network": self.network} if self._network is not None else {})

    def page(self) -> Page:
        """What `save_html` shows, as plain data."""
        cells = self._cells()
        verdict, *notes = cells.caption or [f"{len(self)} rows."]
        subject = self.network.name if self.network else ""
        return Page(self._title, verdict, subject=subject, grids=[grid_of(cells)], network=self.network, notes=notes)

    def save_html(self, path: str | Path, *, model: str = "", weights: str = "") -> None:
        """Write the report as a page that needs no other file: verdict, charts, the network, table, what to do next.

        Args:
            path: of the file.
            model: the model's name; that of its class if left out.
            weights: where its weights are from.

        Raises:
            EvenkeelError: jinja2 is missing, or the file cannot be written.
        """
        save_page(path, self.page(), model=model, weights=weights)

    @abstractmethod
    def _cells(self) -> Cells:
        """What its table shows."""

    def __rich__(self) -> FittedTable:
        return FittedTable(self._cells())

    def __str__(self) -> str:
        return plain(self, width=self._width)

    def _repr_html_(self) -> str:
        try:
            return render_compact(self.page())
        except EvenkeelError:  # without jinja2
            return html_table(self._cells())


def grouped(reasons: Mapping[str, str], what: str = "") -> list[str]:
    """A line for every reason, with the paths that it holds for.

    >>> grouped({"bn1": "frozen", "bn2": "frozen"}, "untouched")
    ['bn1 and 1 more: untouched: frozen']
    """
    paths: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        paths.setdefault(reason, []).append(path)
    return [": ".join(filter(None, (listed(found), what, reason))) for reason, found in paths.items()]


def grid_of(cells: Cells, title: str = "All layers") -> Grid:
    """The same for a page."""
    return Grid(title, cells.columns, cells.rows, cells.words)


class FittedTable:
    """A table in the project's one style, which fits itself to the line that it is printed on.

    >>> print(plain(FittedTable(Cells(["norm", "ratio"], [["bn1", "1.00"]], [], words=["norm"]))))
    norm   ratio
    ────────────
    bn1     1.00
    """

    def __init__(self, cells: Cells) -> None:
        self._cells = cells

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        yield _drawn(*fitted(self._cells, options.max_width))


def _drawn(cells: Cells, widths: Sequence[int]) -> Table:
    """Cells as a table of rich's."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    result = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        caption=Text("\n".join(cells.caption)),
        caption_justify="left",
    )
    for heading, width in zip(cells.columns, widths, strict=True):
        side = "left" if heading in cells.words else "right"
        result.add_column(heading, justify=side, width=width, overflow="fold")
    for row in cells.rows:
        result.add_row(*(Text(cell) for cell in row))
    return result


def html_table(cells: Cells) -> str:
    """The same as HTML, for a notebook.

    >>> html_table(Cells(["norm"], [["a<b"]], ["1 norm"], ["norm"])).count("a&lt;b")
    1
    """
    sides = ["left" if heading in cells.words else "right" for heading in cells.columns]

    def line(tag: str, texts: Sequence[str]) -> str:
        found = (f'<{tag} style="text-align:{side}">{escape(t)}</{tag}>' for t, side in zip(texts, sides, strict=True))
        return f"<tr>{''.join(found)}</tr>"

    head, body = line("th", cells.columns), "".join(line("td", row) for row in cells.rows)
    below = "<br>".join(map(escape, cells.caption))
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table><p>{below}</p>"


def plain(renderable: Any, width: int = 110) -> str:
    """What rich would print, without colour and trailing blanks."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())
