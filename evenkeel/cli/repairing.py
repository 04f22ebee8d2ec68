"""What `evenkeel repair` does to a model, and what it shows."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rich.text import Text
from torch import Tensor, nn

from evenkeel.cli.pages import Shown
from evenkeel.errors import EvenkeelError, StretchWarning
from evenkeel.graph.tracing import trace
from evenkeel.io.datasets import Data
from evenkeel.model.evaluation import Score, evaluate
from evenkeel.output.progress import Bar
from evenkeel.output.tables import Cells, table
from evenkeel.prediction.correction import correct_
from evenkeel.prediction.shift_prediction import predict_shift
from evenkeel.statistics.pairs import Match
from evenkeel.statistics.reestimation import reestimate_
from evenkeel.statistics.reestimation_report import Reestimation
from evenkeel.statistics.shift import variance_shift
from evenkeel.statistics.shift_report import ShiftReport

_CHECK = (
    "check scaling and normalization (named sets are standardized, unless --mean, --std, --scale or --transform say "
    "what training did to images from 0 to 1), or pass --other-data if they are meant to be others"
)


def reestimated(
    model: nn.Module, given: Data, options: dict[str, Any], judging: Iterable[Any] | None, *, other_data: bool
) -> tuple[Shown, dict[str, Any]]:
    """Repair a model by data: what to print, and the same as plain data.

    Args:
        model: the model, changed in place.
        given: the data.
        options: of `reestimate_`: match, relative, max_batches, tolerance, prior and unsure.
        judging: held-out batches on which the loss must get lower, if any.
        other_data: whether the data may be others than those of training.

    Raises:
        EvenkeelError: the data are not those of training, or the repair does not help.
    """
    max_batches = options["max_batches"]
    before = _judge(model, given, max_batches, "measuring before")
    is_relative = options["match"] == "mean" or options["relative"]
    if before.shift.other_data and not other_data and not is_relative:
        raise EvenkeelError(f"nothing is written: norm {before.shift.accusation}: {_CHECK}")
    bar = Bar(given.train, "re-estimating", total=max_batches)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StretchWarning)  # it is in the notes
        done = reestimate_(model, bar, **options, held_out=judging, choose="new" if judging is None else "best")
    _require_better(done.before, done.after, "held-out loss" if judging else "loss on these data")
    after = _judge(model, given, max_batches, "measuring after")
    return _comparison(before, after, done), {
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
    example: Tensor,
    judging: Iterable[Any] | None,
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
    scores = [None if judging is None else evaluate(model, judging)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StretchWarning)
        done = correct_(model, graph, unsure=unsure, match=match)
    if not len(done):
        reasons = "; ".join(f"{path}: {reason}" for path, reason in done.untouched.items())
        raise EvenkeelError(f"nothing can be corrected without data, so nothing is written: {reasons}")
    scores.append(None if judging is None else evaluate(model, judging))
    _require_better(scores[0], scores[1], "held-out loss")
    shown = Shown(done.page(before), "The shift as predicted:\n", before, "", done)
    return shown, {"before": _Judgement(before, None).to_dict(), **done.to_dict()}


def _require_better(before: Score | None, after: Score | None, what: str) -> None:
    if before is not None and after is not None and not after.is_better_than(before):
        raise EvenkeelError(f"nothing is written: the {what} gets no lower: {before.change_to(after)}")


@dataclass(frozen=True)
class _Judgement:
    """The shift of a model, and its test score where there are labels."""

    shift: ShiftReport
    score: Score | None

    def to_dict(self) -> dict[str, Any]:
        return {"shift": self.shift.to_dict(), "score": asdict(self.score) if self.score else None}


def _judge(model: nn.Module, data: Data, max_batches: int | None, description: str) -> _Judgement:
    report = variance_shift(model, Bar(data.train, description, total=max_batches), max_batches=max_batches)
    score = None if data.test is None or data.classes is None else evaluate(model, Bar(data.test, "scoring"))
    return _Judgement(report, score)


def _comparison(before: _Judgement, after: _Judgement, done: Reestimation) -> Shown:
    """The shift, norm by norm, and the scores, before and after."""
    columns = ("norm", "running var before", "after", "eval/train before", "after", "made of")
    rows = [
        (b.path, f"{b.running_var:.4g}", f"{a.running_var:.4g}", f"{b.ratio:.3f}", f"{a.ratio:.3f}", b.why)
        for b, a in zip(before.shift, after.shift, strict=True)
    ]
    lines = [
        f"worst norm: x{before.shift.worst:.2f} before, x{after.shift.worst:.2f} after  (x1.00 is even)",
        f"from {done.summary}",
        *(["means were matched: ratios need not be 1"] if done.match == "mean" else []),
        *(f"{path}: untouched, {reason}" for path, reason in done.untouched.items()),
        *(f"{path}: {reason}" for path, reason in done.unsure.items()),
        *done.notes,
    ]
    if before.shift.other_data:
        lines.append(f"--other-data: {before.shift.accusation}")
    if before.score and after.score:
        lines.append(f"{before.score.samples} test samples: {before.score.change_to(after.score)}")
    shown = table(Cells(columns, rows, [], words=(columns[0], columns[-1])))
    page = done.page(before.shift, after.shift)
    return Shown(replace(page, notes=list(dict.fromkeys([*lines[1:], *page.notes]))), shown, Text("\n".join(lines)))
