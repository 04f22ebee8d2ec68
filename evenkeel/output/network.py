"""The network of a page: the rows of its outline, with norms, findings and lines, as `network.html` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evenkeel.output.page import Node, Notice, Page
from evenkeel.output.rails import Rail, rails_of
from evenkeel.output.ratios import distance

_OPEN_ROWS = 45  # of an outline that are shown before anything is unfolded
_PATTERN = 24  # letters of a folded block, at most
_STRIP = 48  # norms of a block that its row shows, at most
_RAIL, _BOX = 10, 24  # widths of a rail, and of a row's letter, in pixels


def drawn_network(page: Page) -> dict[str, Any] | None:
    """The rows of a page's outline, with blocks open as long as there is room; None of a page that has none."""
    return None if page.network is None else _Rows(page).block(page.network, _opened(page.network))


class _Rows:
    """The rows of a network's outline, ready to be drawn."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.notices: dict[str, list[tuple[int, Notice]]] = {}
        for number, notice in enumerate(page.notices):
            self.notices.setdefault(notice.path, []).append((number, notice))
        first = page.grids[0].rows if page.grids else ()
        self.rows = {row[0]: number for number, row in reversed(list(enumerate(first)))}

    def block(self, node: Node, opened: set[int]) -> dict[str, Any]:
        """A block with its rows, and the lines between these; `opened`: the ids of blocks that are shown open."""
        rails = rails_of(node.edges, len(node.children))
        columns = 1 + max((r.column for row in rails.values() for r in row.rails), default=-1)
        found = self._row(node)
        found |= {"open": id(node) in opened, "gutter": columns * _RAIL + _BOX}
        rows = [self._child(child, opened) for child in node.children]
        ports: dict[int, dict[str, Any]] = {-1: {"port": "reads"}, len(node.children): {"port": "returns"}}
        for place in range(-1, len(node.children) + 1):
            row = rails[place]
            if place in ports and not row.rails:
                continue
            shown = ports.get(place) or rows[place]
            shown["trunk"] = {(True, False): "end", (False, True): "start", (False, False): "apart"}.get(row[:2], "")
            shown["lines"] = _lines(row.rails, columns, is_port=place in ports)
            found.setdefault("children", []).append(shown)
        return found

    def _child(self, node: Node, opened: set[int]) -> dict[str, Any]:
        return self.block(node, opened) if node.is_block else self._row(node)

    def _row(self, node: Node) -> dict[str, Any]:
        ratios = self.page.ratios
        norms = [leaf for leaf in node.leaves if leaf.path in ratios and leaf.letter == "N"]
        values = [ratios[norm.path] for norm in norms]
        worst = max(values, key=distance, default=None)
        former = [self.page.former[norm.path] for norm in norms if norm.path in self.page.former]
        found: dict[str, Any] = {"node": node, "notices": self.notices.get(node.name, []), "ratio": worst}
        found["former"] = max(former, key=distance, default=None)
        if node.is_block:
            found["strip"] = values if len(values) <= _STRIP else []
            found["norms"] = len(values)
            found["inside"] = sum(len(self.notices.get(leaf.name, ())) for leaf in node.leaves)
            found["pattern"] = _pattern(node)
            found["drops"] = sum(leaf.letter == "D" for leaf in node.leaves)
        elif norms:
            found["anchor"] = self.rows.get(node.path)
        return found


def _pattern(node: Node) -> str:
    """The letters of a block, of repeats those of one; nothing if they are too many."""
    letters = [leaf.letter for leaf in (node.children[0] if node.repeats else node).leaves]
    return " ".join(letters) if len(letters) <= _PATTERN else ""


def _opened(root: Node) -> set[int]:
    """The blocks to be open at first: the outer ones before the inner ones, no repeats, as long as there is room."""
    opened, rows, level = set[int](), 0, [root]
    while level:
        size = sum(len(block.children) for block in level)
        if rows + size > _OPEN_ROWS and rows:
            break
        opened |= {id(block) for block in level}
        rows += size
        level = [child for block in level if not block.repeats for child in block.children if child.is_block]
        level = [block for block in level if not block.repeats]
    return opened


def _lines(rails: Sequence[Rail], columns: int, *, is_port: bool) -> list[dict[str, str]]:
    """The lines that skip rows, at one row, as ends in pixels or percent; they lie left of the row's letter."""
    trunk = columns * _RAIL + _BOX // 2
    into, out = (5, 5) if is_port else (11, 21)
    found: list[dict[str, str]] = []
    for rail in rails:
        x = f"{(columns - 1 - rail.column) * _RAIL + _RAIL // 2}"
        begin, end = "0" if rail.up else f"{out}", "100%" if rail.down else f"{into}"
        found.append({"x1": x, "y1": begin, "x2": x, "y2": end})
        for at, touches in ((f"{into}", rail.arrives), (f"{out}", rail.leaves)):
            if touches:
                found.append({"x1": x, "y1": at, "x2": f"{trunk}", "y2": at})
    return found
