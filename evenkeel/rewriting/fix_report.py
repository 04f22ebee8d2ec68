"""FixRow and FixReport: what `fix` did in its copy, and what it left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from evenkeel.linting.findings import Finding
from evenkeel.output.tables import Cells, Report

_COLUMNS = ("rule", "layer", "edit", "done")


@dataclass(frozen=True)
class FixRow:
    """One finding, and what became of it.

    Attributes:
        code: of the rule, such as "EK201".
        path: the layer's name in the graph.
        where: source file and line of the call, if a source line makes it.
        edit: what was, or is, to be done, in words.
        done: whether `fix` did it.
        reason: why not.
    """

    code: str
    path: str
    where: str | None
    edit: str
    done: bool
    reason: str = ""

    @classmethod
    def of(cls, finding: Finding, reason: str | None = None) -> FixRow:
        """A finding whose edits were made, or the reason why not."""
        edit = "; ".join(map(str, finding.edits)) or finding.advice.rstrip(".")
        return cls(finding.code, finding.path, finding.where, edit, reason is None, reason or "")

    @property
    def asked(self) -> str:
        """What is to be done where, and which rule asks for it."""
        where = f" ({self.where})" if self.where else ""
        return f"{self.code} {self.path}{where}: {self.edit}"

    def __str__(self) -> str:
        return f"{self.asked}{f', since {self.reason}' if self.reason else ''}"


class FixReport(Report[FixRow]):
    """What `fix` did, a row a finding; it holds plain data, so the model that carries it copies and pickles.

    Attributes:
        rows: the findings fixed, in the order in which that was done, then those left.
        guideline: whose findings they are.
        notes: what the model had around it, and the copy has not.
    """

    def __init__(self, rows: Iterable[FixRow], guideline: str, notes: Iterable[str] = ()) -> None:
        super().__init__(rows, notes=notes)
        self.guideline = guideline

    @property
    def left(self) -> tuple[FixRow, ...]:
        """The findings left to do by hand."""
        return tuple(row for row in self.rows if not row.done)

    def __repr__(self) -> str:
        return f"FixReport({self.guideline}: {len(self) - len(self.left)} fixed, {len(self.left)} left)"

    def _figures(self) -> dict[str, str]:
        return {"guideline": self.guideline}

    def _cells(self) -> Cells:
        shared = [reason for reason, count in Counter(row.reason for row in self.left).items() if count > 1]
        said = {reason: f"no, see {number}" for number, reason in enumerate(shared, 1)}
        rows = [
            (
                row.code,
                f"{row.path} ({row.where})" if row.where else row.path,
                row.edit,
                said.get(row.reason, row.reason or "yes"),
            )
            for row in self.rows
        ]
        notes = [f"{number}: {reason}" for number, reason in enumerate(shared, 1)]
        counts = f"{self.guideline}: {len(self) - len(self.left)} fixed, {len(self.left)} left"
        return Cells(_COLUMNS, rows, [counts, *notes, *self.notes], words=_COLUMNS)
