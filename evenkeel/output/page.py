"""Page: what one report shows in a browser, as plain data; `rendering` turns it into HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Tone = Literal["even", "slight", "off", "plain"]
EVEN, SLIGHT = 1.07, 1.3  # folded ratios up to which a norm is even, and slightly off


@dataclass(frozen=True)
class Node:
    """A layer of a network's outline, or a block of them.

    Attributes:
        name: the layer's in the graph, or the path of the block.
        label: the same, as short as its place allows.
        letter: of its kind, as in a graph's picture; nothing for a block.
        word: its kind in words.
        detail: what else is worth a few letters, such as a drop rate.
        where: source file and line of the call.
        path: of a norm, its module's path.
        children: of a block, its layers and blocks in execution order.
        edges: which child reads which, as pairs of their places (from, to); -1 is what the block reads, and the number
            of children what it returns.
        repeats: whether the children are all alike, one after the other.

    >>> Node("relu", letter="A", word="activation").is_block
    False
    """

    name: str
    label: str = ""
    letter: str = ""
    word: str = ""
    detail: str = ""
    where: str = ""
    path: str = ""
    children: tuple[Node, ...] = ()
    edges: tuple[tuple[int, int], ...] = ()
    repeats: bool = False

    @property
    def is_block(self) -> bool:
        """Whether it holds others."""
        return bool(self.children)

    @property
    def leaves(self) -> Iterator[Node]:
        """The layers in it, in execution order."""
        if not self.children:
            yield self
        for child in self.children:
            yield from child.leaves

    def to_dict(self) -> dict[str, Any]:
        """The same as plain strings and lists, without what is empty."""
        found = {name: value for name, value in vars(self).items() if value}
        if self.children:
            found |= {"children": [child.to_dict() for child in self.children], "edges": [*map(list, self.edges)]}
        return found

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Node:
        """The node that `to_dict` was made of.

        Raises:
            KeyError, TypeError, ValueError: there is none.

        >>> block = Node("net", children=(Node("0", "0", "W"),), edges=((-1, 0), (0, 1)))
        >>> Node.from_dict(block.to_dict()) == block
        True
        """
        children = tuple(cls.from_dict(child) for child in found.get("children", ()))
        edges = tuple((int(a), int(b)) for a, b in found.get("edges", ()))
        if any(not -1 <= a < b <= len(children) for a, b in edges):
            raise ValueError(f"{found['name']}: an edge of {edges} leads nowhere")
        words = {name: str(found.get(name, "")) for name in ("label", "letter", "word", "detail", "where", "path")}
        repeats = bool(found.get("repeats", False))
        return cls(str(found["name"]), **words, children=children, edges=edges, repeats=repeats)


@dataclass(frozen=True)
class Histogram:
    """How many channels have which ratio, in bins that are even in the logarithm.

    Attributes:
        low, high: the smallest and the largest ratio.
        counts: of channels, a bin each.

    >>> Histogram(0.5, 2.0, (1, 0, 3)).to_dict()
    {'low': 0.5, 'high': 2.0, 'counts': [1, 0, 3]}
    """

    low: float
    high: float
    counts: tuple[int, ...]

    def to_dict(self) -> dict[str, object]:
        """The same as plain numbers and lists."""
        return {"low": self.low, "high": self.high, "counts": list(self.counts)}


@dataclass(frozen=True)
class Mark:
    """One layer in a chart.

    Attributes:
        path: of the layer, its name in the chart.
        values: one a series; None where there is none.
        lines: what else there is to say of it.
        shares: what its shift is made of: words and percent.
        channels: how its channels spread.
    """

    path: str
    values: tuple[float | None, ...]
    lines: tuple[str, ...] = ()
    shares: tuple[tuple[str, float], ...] = ()
    channels: Histogram | None = None


@dataclass(frozen=True)
class Chart:
    """Figures of layers in execution order, on a logarithmic scale around 1.

    Attributes:
        title: what is shown.
        about: how to read it, in a sentence.
        series: the names of the values that each mark has.
        marks: the layers.
        free: whether the values are no ratios, of which 1 is the best: pairs of what is measured and predicted.
    """

    title: str
    about: str
    series: tuple[str, ...]
    marks: tuple[Mark, ...]
    free: bool = False


@dataclass(frozen=True)
class Notice:
    """A finding: what is wrong at which layer, and what to do.

    Attributes:
        code: of the rule.
        group: whose rule it is.
        path: the layer's name in the graph.
        message, advice: in words.
        where: source file and line.
    """

    code: str
    group: str
    path: str
    message: str
    advice: str = ""
    where: str = ""


@dataclass(frozen=True)
class Grid:
    """A table: headings, cells as text, and which headings are of words rather than figures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """What one report shows in a browser.

    Attributes:
        title: what kind of report it is.
        verdict: what it comes to, in one sentence.
        tone: how good that is.
        subject: the model's name.
        facts: weights, data and figures, each with a word.
        charts: drawings of figures.
        network: the model's outline.
        ratios: the shift of norms, by path, that the outline shows.
        notices: findings.
        commands: what to do next: words, and a command to copy.
        grids: tables.
        notes: what else the reader must know.
        former: the shift of norms before, if there was a before: the outline shows both.

    >>> Page("variance shift", "Even.").tone
    'plain'
    """

    title: str
    verdict: str
    tone: Tone = "plain"
    subject: str = ""
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    charts: Sequence[Chart] = ()
    network: Node | None = None
    ratios: Mapping[str, float] = field(default_factory=dict[str, float])
    notices: Sequence[Notice] = ()
    commands: Sequence[tuple[str, str]] = ()
    grids: Sequence[Grid] = ()
    notes: Sequence[str] = ()
    former: Mapping[str, float] = field(default_factory=dict[str, float])


def tone_of(ratio: float | None) -> Tone:
    """How far a ratio is from 1: even, slightly off, or off; of none, plain.

    >>> tone_of(1.02), tone_of(0.8), tone_of(2.5), tone_of(float("nan")), tone_of(None)
    ('even', 'slight', 'off', 'off', 'plain')
    """
    if ratio is None:
        return "plain"
    folded = max(ratio, 1 / ratio) if ratio > 0 else float("inf")
    return "even" if folded <= EVEN else "slight" if folded <= SLIGHT else "off"
