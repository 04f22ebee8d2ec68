"""Pages as HTML: one file that needs nothing else, and a compact form for notebooks."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenkeel.errors import EvenkeelError
from evenkeel.output.files import atomic_write, finite
from evenkeel.output.page import Chart, Mark, Node, Notice, Page, tone_of
from evenkeel.output.rails import Rail, rails_of

if TYPE_CHECKING:
    from jinja2 import Environment

_TIMES = "\N{MULTIPLICATION SIGN}"
_HERE = Path(__file__).parent
_TICKS = (
    *(1e-6, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
    *(1.0, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1e3, 1e4, 1e6),
)
_LEAST_STEP = 0.11  # of a chart's height, between two ticks
_LEAST_END = 1.1  # of a scale, on each side of 1
_MARGIN = 0.06  # of a chart's height, above and below
_OPEN_ROWS = 45  # of an outline that are shown before anything is unfolded
_SHARES = 5  # of a shift, that are shown one by one
_PATTERN = 24  # letters of a folded block, at most
_STRIP = 48  # norms of a block that its row shows, at most
_RAIL, _BOX = 10, 24  # widths of a rail, and of a row's letter, in pixels


def environment(*folders: Path) -> Environment:
    """Templates in the project's one style, those of other folders first.

    Raises:
        EvenkeelError: jinja2 is missing.
    """
    try:
        from jinja2 import Environment, FileSystemLoader
        from markupsafe import Markup
    except ImportError as error:
        raise EvenkeelError('an HTML page needs jinja2: pip install "evenkeel[report]"') from error
    loader = FileSystemLoader([*folders, _HERE])
    found = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    shared: dict[str, Any] = found.globals
    shared["style"] = Markup((_HERE / "page.css").read_text(encoding="utf-8"))
    shared["script"] = Markup((_HERE / "page.js").read_text(encoding="utf-8"))
    shared["made"] = _made()
    found.filters |= {"ratio": ratio_text, "tone": tone_of, "side": _side, "sign": _sign}
    return found


def render(page: Page) -> str:
    """A page as one HTML document.

    Raises:
        EvenkeelError: jinja2 is missing.

    >>> render(Page("variance shift", "Even.", subject="<b>"))[:15], render(Page("", "", subject="<b>")).count("<b>")
    ('<!doctype html>', 0)
    """
    return _template("page.html", page)


def render_compact(page: Page) -> str:
    """The verdict, charts and tables of a page as a fragment of HTML, without scripts, for a notebook.

    Raises:
        EvenkeelError: jinja2 is missing.
    """
    return _template("compact.html", page)


def write_page(path: str | Path, page: Page) -> None:
    """Write a page as one file that needs no other.

    Raises:
        EvenkeelError: jinja2 is missing, or the file cannot be written.
    """
    text = render(page)
    with atomic_write(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_page(path: str | Path, page: Page, *, model: str, weights: str) -> None:
    """Write what `save_html` is asked for: the page, of a model of that name, if any, and of these weights."""
    page = with_facts(page, {"weights": weights})
    write_page(path, replace(page, subject=model or page.subject))


def _template(name: str, page: Page) -> str:
    drawn = [_drawn(chart, number) for number, chart in enumerate(page.charts)]
    network = _Outline(page).drawn() if page.network is not None and name == "page.html" else None
    letters = dict.fromkeys((n.letter, n.word) for n in page.network.leaves) if page.network else ()
    shown = {"page": page, "charts": drawn, "network": network, "notices": _grouped(page.notices), "letters": letters}
    text = environment().get_template(name).render(shown, data=_data(page))
    return re.sub(r"\n[ \n]*\n", "\n", text)


def _made() -> dict[str, str]:
    """When a page was made, and by what."""
    torch = sys.modules.get("torch")
    by = f"evenkeel {version('evenkeel')}" + (f", torch {torch.__version__}" if torch else "")
    return {"on": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"), "by": by}


def _grouped(notices: Sequence[Notice]) -> list[tuple[str, int, list[list[tuple[int, Notice]]]]]:
    """Notices with their numbers, guideline by guideline; those that say the same of several layers together."""
    groups: dict[str, dict[tuple[str, str, str], list[tuple[int, Notice]]]] = {}
    for number, notice in enumerate(notices):
        alike = groups.setdefault(notice.group, {})
        alike.setdefault((notice.code, notice.message, notice.advice), []).append((number, notice))
    return [(name, sum(map(len, found.values())), list(found.values())) for name, found in groups.items()]


def ratio_text(value: float | None) -> str:
    """A ratio in a few letters.

    >>> [ratio_text(value)[1:] for value in (0.631, 12345.6, float("inf"))], ratio_text(None)
    (['0.63', '1.23e+04', 'inf'], 'unknown')
    """
    if value is None or math.isnan(value):
        return "unknown"
    return f"{_TIMES}{value:.2f}" if 0.01 <= value < 1000 else f"{_TIMES}{value:.3g}"


def _text(value: float | None, chart: Chart) -> str:
    """A value of a chart, a ratio or not."""
    return f"{value:.3g}" if chart.free and value is not None else ratio_text(value)


def _drawn(chart: Chart, number: int) -> dict[str, Any]:
    """A chart with places in percent: its marks, and the lines of its scale."""
    values = [v for mark in chart.marks for v in mark.values if v is not None and 0 < v < math.inf]
    top, bottom = max([*values, _LEAST_END]), min([*values, 1 / _LEAST_END])

    def height(value: float) -> float:
        inside = min(max(value, bottom), top) if not math.isnan(value) else top
        part = (math.log(top) - math.log(inside)) / (math.log(top) - math.log(bottom))
        return round(100 * (_MARGIN + (1 - 2 * _MARGIN) * part), 2)

    step = 100 / max(len(chart.marks), 1)
    marks = [
        {
            "left": round(step * place, 3),
            "text": f"{mark.path}: {', '.join(_text(v, chart) for v in mark.values)}",
            "dots": [
                {"y": height(v), "side": _side(v), "series": s} for s, v in enumerate(mark.values) if v is not None
            ],
        }
        for place, mark in enumerate(chart.marks)
    ]
    ticks = [
        {"y": height(t), "text": f"{'' if chart.free else _TIMES}{t:.3g}", "even": t == 1} for t in _ticks(bottom, top)
    ]
    drawn = {"chart": chart, "number": number, "marks": marks, "ticks": ticks}
    full = any(mark.shares or mark.channels for mark in chart.marks)
    return drawn | {"full": full, "even": height(1.0), "step": round(step, 3), "start": _farthest(chart)}


def _farthest(chart: Chart) -> int:
    """The mark that is shown first."""
    sizes = [max((_distance(v) for v in mark.values if v is not None), default=0.0) for mark in chart.marks]
    return sizes.index(max(sizes)) if sizes else 0


def _side(value: float | None) -> str:
    """On which side of 1 a ratio is: a colour's name."""
    return "flat" if tone_of(value) in ("even", "plain") else "below" if value is not None and value < 1 else "above"


def _sign(value: float | None) -> str:
    """The same as a sign, for who sees no colours."""
    return {"flat": "●", "below": "▼", "above": "▲"}[_side(value)]


def _ticks(bottom: float, top: float) -> list[float]:
    """The ticks of a scale, 1 first, then those far from it, as long as their texts do not meet."""
    inside = [tick for tick in _TICKS if bottom <= tick <= top and tick != 1.0]
    kept, least = [1.0], _LEAST_STEP * math.log(top / bottom)
    for tick in sorted(inside, key=_distance, reverse=True):
        if all(abs(math.log(tick / other)) >= least for other in kept):
            kept.append(tick)
    return kept


def _data(page: Page) -> str:
    """What the page's script shows of each mark, as JSON that no text can end early."""
    charts = [
        {"series": chart.series, "marks": [_details(mark, page, chart) for mark in chart.marks]}
        for chart in page.charts
    ]
    text = json.dumps(finite(charts), separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _details(mark: Mark, page: Page, chart: Chart) -> dict[str, Any]:
    found: dict[str, Any] = {
        "path": mark.path or page.subject,
        "values": [_text(v, chart) for v in mark.values],
        "lines": [line for line in mark.lines if line],
        "shares": [[words, round(share, 1)] for words, share in _largest(mark.shares)],
    }
    if mark.channels is not None:
        ends = [ratio_text(mark.channels.low), ratio_text(mark.channels.high)]
        found["channels"] = {"ends": ends, "counts": mark.channels.counts}
    return found


def _largest(shares: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """The first few shares, and the rest as one."""
    kept, rest = list(shares[:_SHARES]), shares[_SHARES:]
    return [*kept, (f"{len(rest)} more", sum(share for _, share in rest))] if len(rest) > 1 else list(shares)


class _Outline:
    """The rows of a network's outline, ready to be drawn."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.notices: dict[str, list[tuple[int, Notice]]] = {}
        for number, notice in enumerate(page.notices):
            self.notices.setdefault(notice.path, []).append((number, notice))
        first = page.grids[0].rows if page.grids else ()
        self.rows = {row[0]: number for number, row in reversed(list(enumerate(first)))}

    def drawn(self) -> dict[str, Any]:
        """The whole, with blocks open as long as there is room."""
        root = self.page.network
        assert root is not None
        return self._block(root, _opened(root))

    def _block(self, node: Node, opened: set[int]) -> dict[str, Any]:
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
            shown["trunk"] = f"{' u' if row.up else ''}{' d' if row.down else ''}"
            shown["lines"] = _lines(row.rails, columns, is_port=place in ports)
            found.setdefault("children", []).append(shown)
        return found

    def _child(self, node: Node, opened: set[int]) -> dict[str, Any]:
        return self._block(node, opened) if node.is_block else self._row(node)

    def _row(self, node: Node) -> dict[str, Any]:
        ratios = self.page.ratios
        norms = [leaf for leaf in node.leaves if leaf.path in ratios and leaf.letter == "N"]
        values = [ratios[norm.path] for norm in norms]
        worst = max(values, key=_distance, default=None)
        found: dict[str, Any] = {"node": node, "notices": self.notices.get(node.name, []), "ratio": worst}
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


def _distance(ratio: float) -> float:
    return abs(math.log(ratio)) if 0 < ratio < math.inf else math.inf


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


def with_facts(page: Page, facts: Mapping[str, str], commands: Sequence[tuple[str, str]] = ()) -> Page:
    """A page with more facts, such as the file of the weights, and with other commands, if any are given.

    >>> dict(with_facts(Page("", ""), {"weights": "net.pt", "data": ""}).facts)
    {'weights': 'net.pt'}
    """
    known = {name: value for name, value in facts.items() if value}
    return replace(page, facts={**known, **page.facts}, commands=tuple(commands) or page.commands)
