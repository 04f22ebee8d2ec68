"""Finding: one offence against a rule, with its remedy as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from evenkeel.graph.layer_graph import Layer
from evenkeel.linting.edits import Edit

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

    >>> Findings([], notes=["stochastic depth p=0.1 is exempt."]).notes
    ('stochastic depth p=0.1 is exempt.',)
    """

    def __init__(self, findings: Iterable[Finding] = (), notes: Iterable[str] = ()) -> None:
        super().__init__(findings)
        self.notes = tuple(notes)


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
    total = f"{len(findings)} finding{'' if len(findings) == 1 else 's'}" if findings else "no findings"
    notes = [f"note: {note}" for note in getattr(findings, "notes", ())]
    return "\n".join([*map(str, findings), f"{total}: {of_each}" if findings else total, *notes])
