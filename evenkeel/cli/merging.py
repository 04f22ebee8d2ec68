"""What `evenkeel repair --reference` does to a merged model, and what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from evenkeel.cli.judging import Judging, judged_by, require_better, score_of_test
from evenkeel.cli.pages import Shown
from evenkeel.cli.showing import worded
from evenkeel.errors import EvenkeelError
from evenkeel.io.datasets import Data
from evenkeel.merging.matching import match_
from evenkeel.output.tables import FittedTable


def require_reference_data(
    references: Sequence[Path] | None, data: str | None, of_norms: Mapping[str, object | None]
) -> None:
    """Refuse options that do not go with --reference.

    Raises:
        EvenkeelError: there are no references or no data, or options are given that norms alone are repaired by.
    """
    if not references:
        raise EvenkeelError("--share is of a --reference in the merged weights, and there is no --reference")
    if data is None:
        raise EvenkeelError("--reference needs --data: units are matched by what they return on data")
    for name, value in of_norms.items():
        if value is not None:
            raise EvenkeelError(f"{name} does not go with --reference: everything is matched on the data as they are")


def matched(
    model: nn.Module, points: Sequence[nn.Module], given: Data, options: dict[str, Any], judging: Judging | None
) -> tuple[Shown, dict[str, Any]]:
    """Match a merged model to its end points: what to print, and the same as plain data.

    Args:
        model: the model, changed in place.
        points: the networks that it was merged from.
        given: the data.
        options: of `match_`: weights, max_batches and forward.
        judging: held-out batches on which the loss must get lower, if any.

    Raises:
        EvenkeelError: the model cannot be matched, or that does not help.
    """
    before = score_of_test(model, given, options["forward"])
    done = match_(model, points, given.train, **options, **judged_by(judging))
    require_better(done.before, done.after)
    after = score_of_test(model, given, options["forward"])
    if before is not None and after is not None:
        done.notes = (*done.notes, f"{before.samples} test samples: {before.change_to(after)}")
    scores = {"test before": before and asdict(before), "test after": after and asdict(after)}
    return Shown(done.page(), FittedTable(worded(done._cells()))), {**done.to_dict(), **scores}
