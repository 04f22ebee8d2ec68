"""Cells: what a table shows, and how its columns share a line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_GAP = 3  # letters between two columns
_PART = 3  # a column of words has this part of a line, at least, before spare columns give way to it
_INDENT = "  "  # of a path's second line


class Cells(NamedTuple):
    """What a table shows.

    Attributes:
        columns: the headings.
        rows: the cells, as text.
        caption: lines below.
        words: headings of the columns that hold words, not figures.
        spare: headings of columns that are left out where a line is too short for all, the first one first.
        elsewhere: what shows these all the same.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: Sequence[str]
    words: Sequence[str]
    spare: Sequence[str] = ()
    elsewhere: str = "to_dict() and save_html() hold them"


def fitted(cells: Cells, width: int) -> tuple[Cells, list[int]]:
    """The cells for lines of so many letters, and the widths of the columns.

    Figures are never folded. Spare columns go where those of words would get too narrow; the caption says which. Words
    are folded between words, and a path at its dots.

    >>> rows = [["features.denseblock3.denselayer12.norm1", "0.5", "0.123456789012"]]
    >>> found, widths = fitted(Cells(["norm", "ratio", "slope"], rows, [], ["norm"], ["slope"]), 36)
    >>> found.columns, widths
    (['norm', 'ratio'], [28, 5])
    >>> print(found.rows[0][0])
    features.denseblock3.
      denselayer12.norm1
    """
    places, gone = list(range(len(cells.columns))), list[str]()
    for spare in cells.spare:
        if sum(_least(cells, place, width) + _GAP for place in places) - _GAP <= width:
            break
        places = [place for place in places if cells.columns[place] != spare]
        gone += [spare] if spare in cells.columns else []
    widths = _shared(cells, places, width)
    rows = [[_folded(row[place], size) for place, size in zip(places, widths, strict=True)] for row in cells.rows]
    said = [f"left out for want of width: {', '.join(gone)} ({cells.elsewhere})"] if gone else []
    columns = [cells.columns[place] for place in places]
    return cells._replace(columns=columns, rows=rows, caption=[*cells.caption, *said]), widths


def _shared(cells: Cells, places: Sequence[int], width: int) -> list[int]:
    """The widths of columns: figures, then headings in one line, and what is left to words, the short ones first."""
    widths = {place: _least(cells, place, width) for place in places}
    left = width - _GAP * (len(places) - 1) - sum(widths.values())
    for place in sorted(places, key=lambda place: cells.columns[place] in cells.words):
        wish = len(cells.columns[place]) - widths[place]
        if 0 < wish <= left:
            widths[place], left = widths[place] + wish, left - wish
    words = [place for place in places if cells.columns[place] in cells.words]
    if left < 0:  # no column is spare: those of words share what there is
        left += sum(widths[place] for place in words)
        widths |= dict.fromkeys(words, 0)
    for rank, place in enumerate(sorted(words, key=lambda place: _longest(cells, place) - widths[place])):
        more = max(0, min(_longest(cells, place) - widths[place], left // (len(words) - rank)))
        widths[place], left = widths[place] + more, left - more
    return [max(widths[place], 1) for place in places]


def _least(cells: Cells, place: int, width: int) -> int:
    """Letters that a column cannot do without."""
    heading = cells.columns[place]
    if heading in cells.words:
        return min(width // _PART, _longest(cells, place))
    return max([*map(_letters, heading.split()), *(_letters(row[place]) for row in cells.rows)], default=1)


def _longest(cells: Cells, place: int) -> int:
    return max(_letters(text) for text in (cells.columns[place], *(row[place] for row in cells.rows)))


def _letters(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _folded(text: str, width: int) -> str:
    """A text in lines of at most so many letters, as far as its words, and the parts of its paths, allow."""
    if _letters(text) <= width:
        return text
    lines, indent = [""], "" if " " in text else _INDENT
    for word in text.split():
        gap = " " if lines[-1].strip() else ""
        if _letters(lines[-1] + gap + word) <= width:
            lines[-1] += gap + word
            continue
        parts = re.split(r"(?<=\w\.)(?=\w)", word) if _letters(word) > width else [word]
        lines += [""] if lines[-1] else []
        for part in parts:
            if lines[-1].strip() and _letters(lines[-1] + part) > width:
                lines.append(indent)
            lines[-1] += part
    return "\n".join(lines)
