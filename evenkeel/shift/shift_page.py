"""The page of a ShiftReport, and of a repair: the shift of every norm, before and after."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from evenkeel.output.page import Chart, Grid, Mark, Page, tone_of
from evenkeel.output.ratios import ratio_text
from evenkeel.output.rendering import with_facts, write_page
from evenkeel.output.tables import Report, grid_of
from evenkeel.shift.shift_rows import ShiftRow, ShiftRows
from evenkeel.statistics.norm_change import NormChange

_TITLE = "The shift of every norm, in execution order"
_ABOUT = (
    "The variance that a norm meets in eval mode over the one that it stores, averaged over its channels, on a "
    "logarithmic scale: 1 is even."
)
_WRITTEN = "The variance written over the one that was stored, on a logarithmic scale: 1 is no change."
_PARTS = {
    "inherited": "norms upstream",
    "dropout": "dropout since these",
    "initial": "what is left of the initial variance 1",
    "stored": "other data, batches or weights",
}
_MEASURE = ("Measure it on data, which is exact", "report = ek.variance_shift(model, batches)\nprint(report)")
_SETTLE = (
    "Repair the statistics from data",
    "done = ek.reestimate_(model, batches)\nprint(done)  # done.undo() takes it back",
)
_CORRECT = (
    "Or repair them without data",
    "done = ek.correct_(model, example)\nprint(done)  # done.undo() takes it back",
)
_LINT = (
    "Find the dropouts that cause it",
    'for finding in ek.lint(model, example, guideline="li2018"):\n    print(finding)',
)
_WATCH = (
    "Keep it so: a check for continuous integration, with your own model and checkpoint",
    "evenkeel shift TARGET --input 3x224x224 --weights FILE --fail-above 1.1",
)


def shift_page(report: ShiftRows, after: ShiftRows | None = None) -> Page:
    """A report's page.

    Args:
        report: what is shown.
        after: the same after a repair, if there was one.

    >>> import evenkeel as ek
    >>> shift_page(ek.ShiftReport([ShiftRow("bn", 2.0, 1.0)])).verdict[:59]
    '1 of 1 norms is off: in eval mode, bn is predicted to meet '
    """
    new = {row.path: row for row in after} if after is not None else {}
    where = {leaf.path: leaf.where for leaf in report.network.leaves} if report.network else {}
    marks = [_mark(row, new.get(row.path), where.get(row.path, ""), report) for row in report]
    series = ("before", "after") if new else ("",)
    shown = after or report
    return Page(
        report._title if after is None else "repair",
        _verdict(report) if after is None else _repaired(report, after),
        tone_of(shown.worst if len(shown) else None),
        report.network.name if report.network else "",
        _facts(report) if after is None else _facts_of_repair(report, after),
        [Chart(_TITLE, _ABOUT, series, tuple(marks))],
        report.network,
        _drawn(shown),
        commands=_commands(shown),
        grids=[grid_of(report._cells(), "All norms") if after is None else _side_by_side(report, after)],
        notes=list(dict.fromkeys([*report.notes, *(after.notes if after else ())])),
        former={} if after is None else _drawn(report),
    )


class Repair(Report[NormChange]):
    """What a repair did, row by row: the base of `Reestimation` and `Correction`."""

    _title = "repair"

    @property
    @abstractmethod
    def _said(self) -> str:
        """What was done, in words."""

    def page(self, before: ShiftRows | None = None, after: ShiftRows | None = None) -> Page:
        """What `save_html` shows, as plain data.

        Args:
            before: the shift before the repair, as measured or predicted, if it is known.
            after: the same after it.
        """
        cells = self._cells()
        notes, written = list(cells.caption[1:]), grid_of(cells, "What was written")
        if before is None:
            return replace(self._alone(), grids=[written], notes=notes)
        page = shift_page(before, after)
        verdict = f"{self._said}." if after is None else page.verdict
        grids, notes = [*page.grids, written], list(dict.fromkeys([*notes, *page.notes]))
        commands = page.commands if after is not None else [_MEASURE]
        return replace(page, title=self._title, verdict=verdict, grids=grids, notes=notes, commands=commands)

    def save_html(
        self,
        path: str | Path,
        *,
        model: str = "",
        weights: str = "",
        before: ShiftRows | None = None,
        after: ShiftRows | None = None,
    ) -> None:
        """Write what was done as a page that needs no other file.

        Args:
            path: of the file.
            model: the model's name; that of its class if left out.
            weights: where its weights are from.
            before: the shift before the repair, by `variance_shift` or `predict_shift`, to be shown beside it.
            after: the same after it.

        Raises:
            EvenkeelError: jinja2 is missing, or the file cannot be written.
        """
        page = with_facts(self.page(before, after), {"weights": weights})
        write_page(path, replace(page, subject=model or page.subject))

    def _alone(self) -> Page:
        """The page where no shift is known but the one written."""
        marks = tuple(Mark(row.path, (row.ratio,), (_wrote(row),)) for row in self)
        chart = Chart("What was written, norm by norm", _WRITTEN, ("",), marks)
        subject = self.network.name if self.network else ""
        facts = {"norms": str(len(self)), "left as they were": str(len(self.untouched))}
        page = Page(self._title, f"{self._said}.", "even", subject, facts, [chart], self.network, _drawn(self))
        return replace(page, commands=[_MEASURE])


def _drawn(rows: Iterable[ShiftRow | NormChange]) -> dict[str, float]:
    """The ratios that the network shows, by path."""
    return {row.path: row.ratio for row in rows if not math.isnan(row.ratio)}


def _wrote(row: NormChange) -> str:
    return f"variance {row.before:.4g} became {row.after:.4g}; means moved by up to {row.moved:.2f} deviations"


def _mark(row: ShiftRow, new: ShiftRow | None, where: str, report: ShiftRows) -> Mark:
    values = (row.ratio,) if new is None else (row.ratio, new.ratio)
    lines = [
        row.bad,
        f"it stores variance {row.running_var:.4g} and meets {row.eval_var:.4g} in eval mode",
        "" if row.moved is None else f"its means are {row.moved:.2f} deviations off, at most {row.moved_most or 0:.2f}",
        row.why,
        *(f"{ratio_text(part)} by {_PARTS[name]}" for name, part in row.parts.items() if not row.why),
        report.unsure.get(row.path, ""),
        f"called at {where}" if where else "",
    ]
    return Mark(row.path, values, tuple(lines), _shares(row), row.channels)


def _shares(row: ShiftRow) -> tuple[tuple[str, float], ...]:
    """What a shift is made of, in percent: dropouts as predicted, or parts by their logarithms as measured."""
    if row.causes:
        return tuple((layer.label, share) for layer, share in row.causes if share >= 1)
    return _parted(row.parts) if row.why else ()


def _parted(parts: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    sizes = {_PARTS[name]: abs(math.log(part)) for name, part in parts.items() if 0 < part < math.inf}
    whole = sum(sizes.values())
    found = [(words, 100 * size / whole) for words, size in sizes.items()] if whole > 0 else []
    return tuple(sorted(((words, share) for words, share in found if share >= 1), key=lambda pair: -pair[1]))


def _verdict(report: ShiftRows) -> str:
    if not len(report):
        return "There are no norms."
    worst, meets = report.worst_row, "meets" if report.is_measured else "is predicted to meet"
    name = worst.path or "the norm"
    if worst.bad:
        return f"{name} is damaged: {worst.bad}."
    off = sum(tone_of(row.folded) != "even" for row in report)
    if not off:
        within = ratio_text(report.worst)
        return f"Even: every norm {meets} in eval mode the variance that it stores, within {within}.{_guesses(report)}"
    return (
        f"{off} of {len(report)} norms {'is' if off == 1 else 'are'} off: in eval mode, {name} {meets} "
        f"{ratio_text(worst.ratio)} the variance that it stores. The median norm is off by {ratio_text(report.median)}."
        f"{_guesses(report)}"
    )


def _guesses(report: ShiftRows) -> str:
    """How many figures are guesses, in a sentence; nothing if none is."""
    guessed = sum(row.path in report.unsure for row in report)
    if not guessed:
        return ""
    which = "One figure is a guess" if guessed == 1 else f"{guessed} figures are guesses"
    return f" {which}: the notes say why."


def _repaired(before: ShiftRows, after: ShiftRows) -> str:
    return (
        f"Repaired: the worst norm was off by {ratio_text(before.worst)} ({before.worst_row.path or 'the norm'}), "
        f"and is off by {ratio_text(after.worst)} now ({after.worst_row.path or 'the norm'})."
    )


def _facts(report: ShiftRows) -> dict[str, str]:
    if not len(report):
        return {}
    figures = {"median, off by": ratio_text(report.median), "worst, off by": ratio_text(report.worst)}
    return {"how": "measured" if report.is_measured else "predicted, without data", "norms": f"{len(report)}"} | figures


def _facts_of_repair(before: ShiftRows, after: ShiftRows) -> dict[str, str]:
    figures = {"worst before, off by": ratio_text(before.worst), "worst after": ratio_text(after.worst)}
    return {"how": "measured" if after.is_measured else "predicted", "norms": f"{len(before)}"} | figures


def _side_by_side(before: ShiftRows, after: ShiftRows) -> Grid:
    """The table of a repair, norm by norm."""
    new = {row.path: row for row in after}
    columns = ("norm", "running var", "repaired", "eval/train", "repaired to", "made of, before")
    rows = [(b.path, *_cells(b, new.get(b.path)), b.why or b.fed_by) for b in before]
    return Grid("All norms, before and after", columns, rows, (columns[0], columns[-1]))


def _cells(before: ShiftRow, after: ShiftRow | None) -> tuple[str, ...]:
    new = ("", "") if after is None else (f"{after.running_var:.4g}", f"{after.ratio:.3f}")
    return f"{before.running_var:.4g}", new[0], f"{before.ratio:.3f}", new[1]


def _commands(report: ShiftRows) -> Sequence[tuple[str, str]]:
    if not len(report) or tone_of(report.worst) == "even":
        return (_WATCH,)
    return (_SETTLE, _LINT) if report.is_measured else (_MEASURE, _SETTLE, _CORRECT, _LINT)
