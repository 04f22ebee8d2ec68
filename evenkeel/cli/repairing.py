"""What `evenkeel repair` does to a model, and what it shows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rich.text import Text
from torch import nn

from evenkeel.cli.judging import Judging, judged_by, require_better, score_of_test
from evenkeel.cli.pages import Shown
from evenkeel.cli.shifting import blamed, measured
from evenkeel.cli.showing import worded
from evenkeel.cli.wording import for_command_line
from evenkeel.errors import EvenkeelError, StretchWarning, listed
from evenkeel.graph.tracing import trace
from evenkeel.io.datasets import Data
from evenkeel.model.batches import Forward
from evenkeel.model.evaluation import Score
from evenkeel.model.norms import norms_of
from evenkeel.output.page import Page
from evenkeel.output.progress import Bar
from evenkeel.output.tables import Cells, FittedTable, grouped
from evenkeel.prediction.anchors import is_repaired
from evenkeel.prediction.correction import Correction, correct_
from evenkeel.prediction.shift_prediction import predict_shift
from evenkeel.reestimation.reestimation import reestimate_
from evenkeel.reestimation.reestimation_report import Reestimation
from evenkeel.shift.shift_report import ShiftReport, ShiftRow
from evenkeel.statistics.pairs import Match

CHECK = (
    "check scaling and normalization (named sets are standardized, unless --mean, --std, --scale or --transform say "
    "what training did to images from 0 to 1), or pass --other-data if they are meant to be others, "
    "or if weights have changed since, as by pruning or averaging"
)


def reestimated(
    model: nn.Module, given: Data, options: dict[str, Any], judging: Judging | None, *, other_data: bool
) -> tuple[Shown, dict[str, Any]]:
    """Repair a model by data: what to print, and the same as plain data.

    Args:
        model: the model, changed in place.
        given: the data.
        options: of `reestimate_`: match, relative, max_batches, tolerance, prior, unsure and forward.
        judging: held-out batches on which the loss must get lower, if any.
        other_data: whether the data may be others than those of training.

    Raises:
        EvenkeelError: the data are not those of training, or the repair does not help.
    """
    max_batches, forward = options["max_batches"], options["forward"]
    again = _repaired_before(model)
    before = _judge(model, given, max_batches, forward, "measuring before")
    is_relative = options["match"] == "mean" or options["relative"]
    if before.shift.other_data and not other_data and not is_relative:
        raise EvenkeelError(f"nothing is written: norm {before.shift.accusation}: {CHECK}")
    bar = Bar(given.train, "re-estimating", total=max_batches)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StretchWarning)  # it is in the notes
        done = reestimate_(model, bar, **options, **judged_by(judging))
    require_better(done.before, done.after, "held-out loss" if judging else "loss on these data")
    after = _judge(model, given, max_batches, forward, "measuring after")
    done.notes = (*done.notes, *again)
    return _measured_change(before, after, done), {
        "match": done.match,
        "batches": done.batches,
        "samples": done.samples,
        "standard_error": done.standard_error,
        "converged": done.converged,
        "untouched": done.untouched,
        "unsure": done.unsure,
        "notes": list(done.notes),
        "before": before.to_dict(),
        "after": after.to_dict(),
    }


def corrected(
    model: nn.Module,
    example: Any,
    judging: Judging | None,
    *,
    unsure: Literal["leave", "write"],
    match: Match | None,
) -> tuple[Shown, dict[str, Any]]:
    """Repair a model without data: what to print, and the same as plain data; options are as for `correct_`.

    Raises:
        EvenkeelError: nothing can be corrected, or the repair does not help on held-out batches, if there are any.
    """
    graph = trace(model, example)
    before = predict_shift(model, graph)
    scores = [None if judging is None else judging.evaluate(model)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StretchWarning)
        done = correct_(model, graph, unsure=unsure, match=match)
    if not len(done):
        reasons = "; ".join(grouped(done.untouched))
        raise EvenkeelError(f"nothing can be corrected without data, so nothing is written: {reasons}")
    scores.append(None if judging is None else judging.evaluate(model))
    require_better(scores[0], scores[1])
    after = predict_shift(model, graph)
    found = {"before": _Judgement(before, None).to_dict(), "after": _Judgement(after, None).to_dict()}
    return _predicted_change(before, after, done), {**found, **done.to_dict()}


def _repaired_before(model: nn.Module) -> list[str]:
    """That norms had been repaired before, if so."""
    paths = [path for path, norm in norms_of(model).items() if is_repaired(norm)]
    return [f"{listed(paths)}: repaired before; what training had left stays beside it"] if paths else []


@dataclass(frozen=True)
class _Judgement:
    """The shift of a model, and its test score where there are labels."""

    shift: ShiftReport
    score: Score | None

    def to_dict(self) -> dict[str, Any]:
        return {"shift": self.shift.to_dict(), "score": asdict(self.score) if self.score else None}


def _judge(
    model: nn.Module, data: Data, max_batches: int | None, forward: Forward | None, description: str
) -> _Judgement:
    report = measured(model, data.train, max_batches=max_batches, forward=forward, description=description)
    return _Judgement(report, score_of_test(model, data, forward))


def _measured_change(before: _Judgement, after: _Judgement, done: Reestimation) -> Shown:
    """The shift, norm by norm, and the scores, before and after, and what it was made of."""
    lines = [
        f"from {done.summary}",
        *(["means were matched: ratios need not be 1"] if done.match == "mean" else []),
        *grouped(done.untouched, "untouched"),
        *grouped(done.unsure),
        *done.notes,
    ]
    if before.shift.other_data:
        lines.append(f"--other-data: {before.shift.accusation}")
    if before.score and after.score:
        lines.append(f"{before.score.samples} test samples: {before.score.change_to(after.score)}")
    page = done.page(before.shift, after.shift)
    return _change(before.shift, after.shift, lines, page)


def _predicted_change(before: ShiftReport, after: ShiftReport, done: Correction) -> Shown:
    """The same of a repair without data."""
    lines = [
        f"{done.summary}; ratios are predicted",
        *(["means were matched: ratios need not be 1"] if done.match == "mean" else []),
        *grouped(done.untouched, "untouched"),
        *grouped(done.unsure, "unsure"),
        *done.notes,
    ]
    return _change(before, after, lines, done.page(before, after))


def _change(before: ShiftReport, after: ShiftReport, lines: Sequence[str], page: Page) -> Shown:
    """One table of what was and is, and why it was, and lines below; and the page that says the same."""
    columns = ("norm", "running var before", "var after", "eval/train before", "after", "because of")
    now = {row.path: row for row in after}
    rows = [(row.path, *_values(row, now.get(row.path)), row.because) for row in before]
    blame = blamed(before)
    summary = [
        f"worst norm: x{before.worst:.2f} before, x{after.worst:.2f} after  (x1.00 is even)",
        *([f"changed because of {blame}"] if blame else []),
        *lines,
    ]
    shown = FittedTable(worded(Cells(columns, rows, [], (columns[0], columns[-1]), columns[1:3])))
    page = replace(page, notes=list(dict.fromkeys([*for_command_line(lines), *page.notes])))
    return Shown(page, shown, Text(for_command_line("\n".join(summary))))


def _values(before: ShiftRow, after: ShiftRow | None) -> tuple[str, str, str, str]:
    later = ("", "") if after is None else (f"{after.running_var:.4g}", _ratio(after))
    return f"{before.running_var:.4g}", later[0], _ratio(before), later[1]


def _ratio(row: ShiftRow) -> str:
    return f"{row.ratio:.3f}" if math.isfinite(row.ratio) else "not known"
