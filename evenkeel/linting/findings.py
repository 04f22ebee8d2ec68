"""Finding: one offence against a rule, with its remedy as data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from evenkeel.errors import EvenkeelError, count_text
from evenkeel.graph.layer_graph import Layer
from evenkeel.linting.edits import Edit
from evenkeel.output.page import Chart, Mark, Node, Notice, Page
from evenkeel.output.ratios import ratio_text
from evenkeel.output.rendering import render_compact, save_page
from evenkeel.output.tables import Cells, grid_of, html_table

_COLUMNS = ("code", "guideline", "layer", "source", "finding")
_CHART = "The shift of every norm, as predicted"
_ABOUT = (
    "The variance that a norm is predicted to meet in eval mode over the one that it stores, on a logarithmic scale: 1 "
    "is even."
)
_NAMED = 0.03  # how far from 1 an inherited factor is worth naming


@dataclass(frozen=True)
class Finding:
    """One offence against a rule.

    Attributes:
        path: the layer's name in the graph: its module's path, such as "layer1.0.drop", or the path of the module that
            calls it, and the function, such as "layer1.0.dropout#2".
        message: the offence, one sentence.
        advice: what to do about it, one imperative.
        edits: the same as data, for `fix`.
        code: of the rule, such as "EK201".
        guideline: the rule's.
        file, line: where the model's source makes the call, if a source line makes it.
        norm: path of the norm that it shows most at, if any.
        shift: predicted there: variance in eval mode over variance in train mode; 1 is even, None is unknown.
        inherited: the factor of the shift that comes through norms upstream, by theirs; the rest is of dropout since.

    >>> finding = Finding("drop", "dropout p=0.5 feeds bn.", "Move it.", code="EK201", guideline="li2018", shift=0.5)
    >>> print(finding)
    EK201 drop: dropout p=0.5 feeds bn. Move it. [predicted eval/train 0.50]
    """

    path: str
    message: str
    advice: str
    edits: tuple[Edit, ...] = ()
    code: str = ""
    guideline: str = ""
    file: str | None = None
    line: int | None = None
    norm: str | None = None
    shift: float | None = None
    inherited: float | None = None

    @classmethod
    def at(cls, layer: Layer, message: str, advice: str, *edits: Edit, norm: str | None = None) -> Finding:
        """A finding at a layer; the rule adds its code and guideline."""
        return cls(layer.name, message, advice, edits, file=layer.file, line=layer.line, norm=norm)

    @property
    def where(self) -> str | None:
        """Source file and line, such as "densenet.py:87", if a source line makes the call."""
        return None if self.file is None else f"{PurePath(self.file).name}:{self.line}"

    @property
    def notice(self) -> Notice:
        """The finding as a page shows it."""
        message = f"{self.message}{self._predicted}"
        return Notice(self.code, self.guideline, self.path, message, self.advice, self.where or "")

    @property
    def cells(self) -> tuple[str, ...]:
        """The finding as a row of a table."""
        return self.code, self.guideline, self.path, self.where or "", f"{self.message} {self.advice}{self._predicted}"

    def to_dict(self) -> dict[str, Any]:
        """The finding as plain numbers, strings and lists, for JSON."""
        return {
            "code": self.code,
            "guideline": self.guideline,
            "path": self.path,
            "file": self.file,
            "line": self.line,
            "message": self.message,
            "advice": self.advice,
            "norm": self.norm,
            "shift": self.shift,
            "inherited": self.inherited,
            "edits": [str(edit) for edit in self.edits],
        }

    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        return f"{self.code} {self.path}{where}: {self.message} {self.advice}{self._predicted}"

    @property
    def _predicted(self) -> str:
        """The shift in words, and what of it is inherited if that shows."""
        if self.shift is None:
            return ""
        parts = ""
        if self.inherited is not None and abs(self.inherited - 1) > _NAMED:
            own = self.shift / self.inherited
            parts = f": x{own:.2f} by dropout since the norms before, x{self.inherited:.2f} through them"
        return f" [predicted eval/train {self.shift:.2f}{f' at {self.norm}' if self.norm else ''}{parts}]"


class Findings(list[Finding]):
    """The findings of a model.

    Attributes:
        notes: what no rule objects to, but a reader should know, such as the shift that stochastic depth makes.
        network: the model's outline.
        ratios: the shift predicted at every norm, as far as rules asked for it.

    >>> Findings([], notes=["stochastic depth p=0.1 is exempt."]).notes
    ('stochastic depth p=0.1 is exempt.',)
    """

    def __init__(
        self,
        findings: Iterable[Finding] = (),
        notes: Iterable[str] = (),
        *,
        network: Node | None = None,
        ratios: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(findings)
        self.notes = tuple(notes)
        self.network = network
        self.ratios = dict(ratios or {})

    def page(self) -> Page:
        """What `save_html` shows, as plain data."""
        notices = tuple(dict.fromkeys(finding.notice for finding in self))
        counts = Counter(finding.guideline for finding in self)
        shown = {"findings": f"{len(self)}", **{guideline: f"{count}" for guideline, count in counts.items()}}
        marks = tuple(Mark(path, (ratio,)) for path, ratio in self.ratios.items())
        return Page(
            "lint",
            _verdict(self),
            "off" if self else "even",
            self.network.name if self.network else "",
            shown,
            [Chart(_CHART, _ABOUT, ("",), marks)] if marks else [],
            self.network,
            self.ratios,
            notices,
            _commands(self),
            notes=self.notes,
        )

    def save_html(self, path: str | Path, *, model: str = "", weights: str = "") -> None:
        """Write the findings as a page that needs no other file, each at its layer in a drawing of the network.

        Args:
            path: of the file.
            model: the model's name; that of its class if left out.
            weights: where its weights are from.

        Raises:
            EvenkeelError: jinja2 is missing, or the file cannot be written.
        """
        save_page(path, self.page(), model=model, weights=weights)

    def _repr_html_(self) -> str:
        cells = Cells(_COLUMNS, [finding.cells for finding in self], self.notes, words=_COLUMNS)
        try:
            return render_compact(replace(self.page(), grids=[grid_of(cells, "Findings")] if self else []))
        except EvenkeelError:  # without jinja2
            return html_table(cells)


def _verdict(findings: Sequence[Finding]) -> str:
    if not findings:
        return "No findings: dropout stands where the guidelines asked for want it."
    counts = Counter(finding.guideline for finding in findings)
    of_each = ", ".join(f"{count} of {guideline}" for guideline, count in counts.items())
    known = [finding for finding in findings if finding.shift is not None and finding.shift > 0]
    worst = max(known, key=lambda finding: abs(math.log(finding.shift or 1.0)), default=None)
    shown = f" The largest shift predicted is {ratio_text(worst.shift)}, at {worst.norm}." if worst else ""
    return f"{count_text(len(findings), 'finding')}: {of_each}.{shown}"


def _commands(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    found = list(dict.fromkeys(finding.guideline for finding in findings if finding.guideline))
    codes = list(dict.fromkeys(finding.code for finding in findings if finding.code))
    repair = [
        (f"Carry out what {guideline} advises, on a copy", f'fixed = ek.fix(model, example, guideline="{guideline}")')
        for guideline in found[:3]
    ]
    return [*repair, *((f"Read the rule {code}", f"evenkeel explain {code}") for code in codes[:1])]


def joined(findings: Iterable[Finding]) -> list[Finding]:
    """Findings, those that one line makes of one norm again and again, as a loop over time does, as one each.

    >>> drop = Finding("drop", "dropout feeds bn.", "Move it.", file="net.py", line=3)
    >>> [finding.message for finding in joined([drop, replace(drop, path="drop#2"), replace(drop, path="drop#3")])]
    ['dropout feeds bn. So do 2 more calls there.']
    """
    alike: dict[object, list[Finding]] = {}
    for number, finding in enumerate(findings):
        place = (finding.file, finding.line) if finding.file else number
        same = (finding.code, place, finding.path.partition("#")[0], finding.norm, finding.message)
        alike.setdefault(same, []).append(finding)
    return [first if not more else _with_more(first, more) for first, *more in alike.values()]


def _with_more(first: Finding, more: Sequence[Finding]) -> Finding:
    calls = "So does 1 more call there." if len(more) == 1 else f"So do {len(more)} more calls there."
    edits = tuple(edit for finding in (first, *more) for edit in finding.edits)
    return replace(first, message=f"{first.message} {calls}", edits=edits)


def summary(findings: Sequence[Finding]) -> str:
    """Findings in lines, the guidelines one after the other, how many there are of each, and notes, if there are.

    >>> print(summary([Finding("drop", "dropout p=0.5 feeds bn.", "Move it.", code="EK201", guideline="li2018")]))
    EK201 drop: dropout p=0.5 feeds bn. Move it.
    1 finding: 1 of li2018
    """
    counts = Counter(finding.guideline for finding in findings)
    of_each = ", ".join(f"{count} of {guideline}" for guideline, count in counts.items())
    total = count_text(len(findings), "finding") if findings else "no findings"
    notes = [f"note: {note}" for note in getattr(findings, "notes", ())]
    return "\n".join([*map(str, findings), f"{total}: {of_each}" if findings else total, *notes])
