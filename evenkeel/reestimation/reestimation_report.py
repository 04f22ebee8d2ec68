"""Reestimation: what `reestimate_` did, and the way back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from evenkeel.errors import count_text, listed
from evenkeel.model.buffers import Held, put_back_
from evenkeel.model.evaluation import Score, outcome
from evenkeel.output.tables import Cells, grouped
from evenkeel.shift.shift_page import Repair
from evenkeel.statistics.norm_change import NormChange
from evenkeel.statistics.pairs import Match, Slope
from evenkeel.statistics.population import Population

_ALIKE = 0.03  # relative, or in deviations: statistics that differ by less are the same to all that follows
_PART_OF_ALL = "one of every {:.3g} samples was run, noise on and off: these tell slopes well enough"


class Reestimation(Repair):
    """What `reestimate_` did, a row a norm in execution order, and the way back; `str()` is the table.

    Attributes:
        rows: one a norm re-estimated.
        match: what was matched: "variance" or "mean".
        slopes: of every norm that was measured with noise on, too, by path: k of each channel, its standard error, and
            whether it is known, as tensors; see `reestimate_`.
        batches: number of batches used.
        samples: number of samples in them, by the leading dimension of each batch's first tensor, or as told.
        passes: how many times all data were run; more than once where the first were not like the others.
        step: of how many samples one was run; 1 if all were.
        untouched: norms left as they were, by path, each with the reason.
        unsure: norms whose statistics may be off by more than their standard errors, by path, each with the reason.
        notes: how the statistics were made, if not in the usual way, and whether the data suffice.
        converged: whether the standard errors are within the tolerance asked for, if one was.
        before, after: the model's scores on held-out data, if there were any, before and with the new statistics; of a
            regression, by default, on the data themselves.
        scores: of each match that was tried, where both were.
        kept: whether the new statistics are in the model, or, having been no better, were taken back.
        measured: what each norm is fed, by path, before it was blended with what was there.

    >>> import torch, evenkeel as ek
    >>> done = ek.reestimate_(torch.nn.BatchNorm1d(2), [torch.randn(64, 2) for _ in range(3)])
    >>> done.batches, done.samples, done.untouched, [row.path for row in done]
    (3, 192, {}, [''])
    """

    def __init__(
        self,
        rows: Iterable[NormChange],
        *,
        batches: int,
        samples: int,
        passes: int,
        untouched: Mapping[str, str],
        unsure: Mapping[str, str],
        notes: Iterable[str],
        converged: bool,
        held: Held,
        match: Match = "variance",
        slopes: Mapping[str, Slope] | None = None,
        step: float = 1.0,
        stretch: str = "",
        measured: Mapping[str, Population] | None = None,
    ) -> None:
        rows = tuple(rows)
        few = [_PART_OF_ALL.format(step)] if step > 1 else _too_few(rows)
        super().__init__(rows, untouched=untouched, unsure=unsure, notes=(*notes, *few))
        self.batches = batches
        self.samples = samples
        self.passes = passes
        self.step = step
        self.converged = converged
        self.match = match
        self.slopes = dict(slopes or {})
        self.stretch = stretch
        self.measured = dict(measured or {})
        self.before: Score | None = None
        self.after: Score | None = None
        self.scores: dict[str, Score | None] = {}
        self.kept = True
        self._held = held
        self._undone: Held | None = None

    @classmethod
    def nothing(cls, untouched: Mapping[str, str]) -> Reestimation:
        """That all norms were left as they were."""
        none: Mapping[str, str] = {}
        return cls(
            [], batches=0, samples=0, passes=0, untouched=untouched, unsure=none, notes=[], converged=True, held=Held()
        )

    @property
    def standard_errors(self) -> dict[str, float]:
        """The rows' relative standard errors, by path."""
        return {row.path: row.standard_error for row in self}

    @property
    def standard_error(self) -> float:
        """The largest of the norms' relative standard errors: what `tolerance` is compared with."""
        return largest(self.standard_errors.values())

    def undo(self) -> None:
        """Put the statistics found before back, in place."""
        undone = put_back_(self._held)
        self._undone = self._undone or undone

    def taken_back(self) -> Held:
        """Undo it, and return what `put_back_` writes to have it again."""
        return put_back_(self._held)

    def redo(self) -> None:
        """Write the new statistics again after `undo`; nothing if it was not called."""
        if self._undone is not None:
            put_back_(self._undone)
            self._undone = None

    @property
    def summary(self) -> str:
        """What it was made from, and how sure it is, in words."""
        error = "not known" if math.isnan(self.standard_error) else f"at most {self.standard_error:.2%}"
        short = "" if self.converged else ", the tolerance was not reached"
        found = outcome(self.before, self.after, kept=self.kept)
        scores = f"; {found}" if found else ""
        if len(self.scores) > 1:
            scores += f" (match={self.match!r}; " + ", ".join(f"{m} {s.loss:.3g}" for m, s in self.scores.items() if s)
            scores += ")"
        return f"{self.samples} samples in {self.batches} batches, relative standard error {error}{short}{scores}"

    def __repr__(self) -> str:
        untouched = "".join(f"; {path!r} untouched: {reason}" for path, reason in self.untouched.items())
        return f"{type(self).__name__}({len(self)} norms from {self.summary}{untouched})"

    def _figures(self) -> dict[str, Any]:
        scores = {"before": self.before and asdict(self.before), "after": self.after and asdict(self.after)}
        figures: dict[str, Any] = {"match": self.match, "batches": self.batches, "samples": self.samples}
        figures |= {"passes": self.passes, "step": self.step}
        figures |= {"standard_error": self.standard_error}
        return figures | scores | {"converged": self.converged, "kept": self.kept}

    @property
    def _said(self) -> str:
        return f"{count_text(len(self), 'norm')} re-estimated from {self.summary}"

    def _cells(self) -> Cells:
        rows = [
            (r.path, f"{r.before:.4g}", f"{r.after:.4g}", f"{r.ratio:.3f}", f"{r.moved:.2f}", f"{r.standard_error:.2%}")
            for r in self
        ]
        columns = ("norm", "running var", "re-estimated", "ratio", "mean moved, deviations", "standard error")
        if any(r.paired for r in self):
            paired = [
                (f"{r.paired.slope:.3f}", f"{r.paired.dropout:.3f}", f"{r.paired.data:.3f}") if r.paired else ("",) * 3
                for r in self
            ]
            rows = [(*row[:5], *three, row[5]) for row, three in zip(rows, paired, strict=True)]
            columns = (*columns[:5], "slope", "off/on", "on/stored", columns[5])
        caption = [f"from {self.summary}", *grouped(self.untouched, "untouched"), *grouped(self.unsure), *self.notes]
        return Cells(columns, rows, caption, words=columns[:1])


def largest(values: Iterable[float]) -> float:
    """The largest value; NaN if there is none or one is NaN: not known to be within any tolerance."""
    listed = list(values)
    return max(listed) if listed and not any(map(math.isnan, listed)) else math.nan


def _too_few(rows: Sequence[NormChange]) -> list[str]:
    """That the data do not tell the new statistics from the old ones, if so."""
    apart = [row for row in rows if abs(row.ratio - 1) > _ALIKE or row.moved > _ALIKE]
    paths = [row.path for row in apart if row.is_within_error]
    if not paths:
        return []
    return [
        f"{listed(paths)}: new and old statistics differ by less than two standard errors: too few samples to tell "
        "which are better; take more, or prior='auto', which weighs both"
    ]
