"""Pages as HTML: one file that needs nothing else, and a compact form for notebooks."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evenkeel.errors import EvenkeelError
from evenkeel.output.charts import details_of, drawn_chart
from evenkeel.output.files import atomic_write
from evenkeel.output.network import drawn_network
from evenkeel.output.page import Notice, Page, tone_of
from evenkeel.output.ratios import ratio_text, side_of, sign_of

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent
_FEW, _SHOWN = 12, 3  # findings of a page that are all shown; else those of a rule that are not folded


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
    found.filters |= {"ratio": ratio_text, "tone": tone_of, "side": side_of, "sign": sign_of}
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
    shown: dict[str, Any] = {"page": page}
    shown["charts"] = [drawn_chart(chart, number, page.subject) for number, chart in enumerate(page.charts)]
    if name == "page.html":
        leaves = page.network.leaves if page.network else ()
        shown["network"], shown["letters"] = drawn_network(page), dict.fromkeys((n.letter, n.word) for n in leaves)
        shown["notices"], shown["data"] = _grouped(page.notices), details_of(page.charts)
    text = environment().get_template(name).render(shown)
    return re.sub(r"\n[ \n]*\n", "\n", text)


def _made() -> dict[str, str]:
    """When a page was made, and by what."""
    torch = sys.modules.get("torch")
    by = f"evenkeel {version('evenkeel')}" + (f", torch {torch.__version__}" if torch else "")
    return {"on": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"), "by": by}


class _Alike(NamedTuple):
    """Findings of one rule that say the same of several layers, each with its number."""

    numbered: list[tuple[int, Notice]]

    @property
    def first(self) -> Notice:
        return self.numbered[0][1]


class _Group(NamedTuple):
    """A guideline's findings: how many, and rule by rule those that are shown and those that are folded."""

    name: str
    total: int
    rules: list[tuple[str, list[_Alike], list[_Alike]]]


def _grouped(notices: Sequence[Notice]) -> list[_Group]:
    """Notices guideline by guideline and rule by rule; those that say the same of several layers together."""
    groups: dict[str, dict[str, dict[tuple[str, str], _Alike]]] = {}
    for number, notice in enumerate(notices):
        alike = groups.setdefault(notice.group, {}).setdefault(notice.code, {})
        alike.setdefault((notice.message, notice.advice), _Alike([])).numbered.append((number, notice))
    most = _SHOWN if len(notices) > _FEW else _FEW
    return [
        _Group(
            name,
            sum(len(alike.numbered) for found in rules.values() for alike in found.values()),
            [(code, list(found.values())[:most], list(found.values())[most:]) for code, found in rules.items()],
        )
        for name, rules in groups.items()
    ]


def with_facts(page: Page, facts: Mapping[str, str], commands: Sequence[tuple[str, str]] = ()) -> Page:
    """A page with more facts, such as the file of the weights, and with other commands, if any are given.

    >>> dict(with_facts(Page("", ""), {"weights": "net.pt", "data": ""}).facts)
    {'weights': 'net.pt'}
    """
    known = {name: value for name, value in facts.items() if value}
    return replace(page, facts={**known, **page.facts}, commands=tuple(commands) or page.commands)
