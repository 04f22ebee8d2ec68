"""What `evenkeel shift` measures, and which dropouts cause it, as without data."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from evenkeel.errors import EvenkeelError
from evenkeel.graph.layer_graph import Layer
from evenkeel.io.examples import inputs_of
from evenkeel.model.batches import Forward, inputs, samples
from evenkeel.model.nested import map_tensors, tensors
from evenkeel.output.progress import Bar
from evenkeel.prediction.shift_prediction import predict_shift
from evenkeel.shift.shift import variance_shift
from evenkeel.shift.shift_report import ShiftReport
from evenkeel.shift.shift_rows import ShiftRow

_ENOUGH = 16  # samples of an example
_NAMED = 3  # dropouts


def measured(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    max_batches: int | None = None,
    forward: Forward | None = None,
    example: Any = None,
    description: str = "measuring",
) -> ShiftReport:
    """The shift measured on data, with the dropouts that cause it, which is predicted.

    Args:
        model: the model.
        batches: the data.
        max_batches: how many of them to use; all if None.
        forward: how a batch is run.
        example: what the model is called with; if None, what the first batch holds, unless `forward` is given.
        description: what the progress bar says.
    """
    bar = Bar(batches, description, total=max_batches)
    report = variance_shift(model, bar, max_batches=max_batches, forward=forward)
    if example is None and forward is None:
        example = _example_in(next(iter(batches), None))
    if example is None:
        return report
    return with_causes(report, model, example)


def with_causes(report: ShiftReport, model: nn.Module, example: Any) -> ShiftReport:
    """A measured shift with the dropouts that cause it, as predicted; as it is, with the reason, where that fails."""
    try:
        predicted = {row.path: row for row in predict_shift(model, example)}
    except EvenkeelError as error:
        return _changed(report, report.rows, f"which dropouts cause a shift is not known: {error}")
    rows = [replace(row, causes=predicted[row.path].causes) if row.path in predicted else row for row in report]
    return _changed(report, rows)


def _changed(report: ShiftReport, rows: Iterable[ShiftRow], *notes: str) -> ShiftReport:
    """The report with other rows, and with further notes."""
    notes = (*_own_notes(report), *notes)
    made = ShiftReport(rows, notes, unsure=report.unsure, other_data=report.other_data)
    return made.drawn_with(report.network)


def blamed(report: ShiftReport) -> str:
    """The dropouts that cause the shifts of all norms together, the first three with their shares; "" if none does."""
    sizes: dict[Layer, float] = defaultdict(float)
    for row in report:
        if math.isfinite(row.folded):
            for layer, share in row.causes:
                sizes[layer] += share * math.log(row.folded)
    whole = sum(sizes.values())
    found = sorted(sizes, key=lambda layer: -sizes[layer])
    named = [f"{layer.label} p={layer.p:g}" if layer.p is not None else layer.label for layer in found[:_NAMED]]
    shares = [f"{name}: {100 * sizes[layer] / whole:.0f} %" for name, layer in zip(named, found, strict=False) if whole]
    more = f", and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(shares) + more if shares else ""


def inputs_in(batches: Iterable[Any], forward: Forward | None) -> list[str]:
    """How --input describes what the model is called with on the first batch; none where that cannot be told."""
    batch = None if forward is not None else next(iter(batches), None)
    given = inputs(batch)
    return inputs_of(given[0] if isinstance(given, (tuple, list)) and given else given)


def _own_notes(report: ShiftReport) -> tuple[str, ...]:
    """The notes but for that on other data, which a report makes itself."""
    return report.notes[1:] if report.other_data else report.notes


def _example_in(batch: Any) -> Any:
    """What the model is called with on a batch: a few samples of it, where they can be told."""
    given = inputs(batch)
    example = given if isinstance(given, Mapping) else given[0] if isinstance(given, (tuple, list)) and given else given
    count = samples(batch)
    if any(not tensor.ndim or len(tensor) != count for tensor in tensors(example)):
        return example  # no batch of samples, such as a graph
    return map_tensors(lambda tensor: tensor[:_ENOUGH], example)
