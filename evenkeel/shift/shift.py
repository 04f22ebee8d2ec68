"""variance_shift: the variance of every norm's input in eval mode against the one that it stores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from evenkeel.errors import BatchError, TraceError, listed
from evenkeel.graph.layer_graph import LayerGraph
from evenkeel.graph.outline import outline
from evenkeel.graph.tracing import record
from evenkeel.model.batches import Forward, call, each
from evenkeel.model.buffers import is_as_written, is_mean_matched
from evenkeel.model.flags import frozen_in
from evenkeel.model.norms import Norm, norms_of
from evenkeel.model.restoring import restored
from evenkeel.model.wrappers import unwrapped
from evenkeel.shift.shift_causes import ShiftCauses
from evenkeel.shift.shift_passes import compare
from evenkeel.shift.shift_report import LARGEST, ShiftReport
from evenkeel.shift.shift_rows import ShiftRow
from evenkeel.statistics.batch_merging import Group
from evenkeel.statistics.measurement import Measurement
from evenkeel.statistics.other_weights import changes_of, left_behind, of_other_weights
from evenkeel.statistics.stored_values import fault_of, infinite_behind, is_never_updated, is_untrained

_UNTRAINED = (
    "no norm was ever updated: the model is untrained, or its weights were not loaded, and these ratios say nothing "
    "about training"
)
_NOTABLE = 1.03  # factor that other weights may have
_CLOSELY, _AT_ONCE = 256, 512  # samples that are looked at closely: at least, and in a group


def variance_shift(
    model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None, max_batches: int | None = None
) -> ShiftReport:
    """Measure, at every norm layer, the variance of its input in eval mode against the one stored in training.

    Both are averaged over channels, and their ratio is `Delta = mean_c Var_eval / mean_c running_var` (Li et al. 2018,
    section 4). The eval variance is the unbiased variance over all values that the batches send through a channel,
    with the whole model in eval mode, where upstream norms normalise by what they store: the shift of the model
    as it is now. A network without dropout reads up to about 1.07. The model is restored.

    Each row says what its ratio is the product of (`ShiftRow.parts`). For this some of the samples, a few hundred, run
    twice more, with every norm normalising by what it meets: with dropout off, which shows what norms upstream pass on,
    and with dropout on, as in training, which shows what a norm should store. If it stores something else, that is
    what is left of its initial statistics, by momentum and number of updates, or the data are others than in
    training, or weights have changed since; norms that show the latter are in `other_data`.

    Args:
        model: the model, in train or eval mode.
        batches: an iterable; a tensor b is run as `model(b)`, a tuple or list as `model(b[0])`, a mapping as
            `model(**b)`.
        forward: how to run anything else: `lambda model, batch: ...`.
        max_batches: how many batches to use; all if None.

    Returns:
        A `ShiftReport`: a row a norm, in execution order. Norms that no batch reaches are named in its notes; those
        that store what cannot be (NaN, infinite or negative) say so in `bad`, and are the worst.

    Raises:
        ModelError: the model has no norm with running statistics.
        BatchError: the batches raised, ran short, were empty, not finite, or of one sample alone; says which batch and
            layer.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8, momentum=1.0))
    >>> data = [torch.randn(4096, 8)]
    >>> _ = model(data[0])
    >>> report = variance_shift(model, data)
    >>> round(report.worst, 1), report[0].dropouts
    (2.0, (Layer('0', DROPOUT, p=0.5),))
    >>> {name: round(part, 1) for name, part in report[0].parts.items()}
    {'inherited': 1.0, 'dropout': 0.5, 'initial': 1.0, 'stored': 1.0}
    """
    with unwrapped(model) as plain, restored(plain), torch.no_grad():
        norms, frozen = norms_of(plain), frozen_in(plain)
        stream = each(batches, plain, max_batches)
        first = next(stream)
        notes: list[str] = []
        try:
            graph = record(plain, lambda batch: call(plain, batch) if forward is None else forward(plain, batch), first)
        except TraceError as error:
            graph = LayerGraph(())
            notes.append(f"which dropouts feed a norm is not known: {error}")
        measurement = Measurement(plain, norms, forward=forward)
        measurement.spoilt = [path for path, norm in norms.items() if fault_of(norm)]
        measurement.limits.most = _AT_ONCE
        groups = measurement.groups(chain([first], stream))
        closely: list[Group | None] = []
        for group in groups:
            closely.append(measurement.add(group))
            if measurement.samples >= _CLOSELY:
                break
        passes = compare(measurement, closely, frozen)
        measurement.limits.most = math.inf
        del closely
        for group in groups:
            measurement.arrivals = {}
            measurement.add(group)
        populations = measurement.populations
        for path, population in populations.items():
            if population.pooled and population.count < 2:
                raise BatchError(
                    f"norm {path!r} saw one value per channel, which has no variance: more samples are needed"
                )
        beside, unsure = measurement.strangers(frozen)
        causes = ShiftCauses(norms, graph, passes, frozen)
        rows = [causes.explain(path, population) for path, population in populations.items()]
    if passes.failure:
        notes.append(f"which part of a shift is dropout is not known: in train mode, {passes.failure}")
    if matched := [path for path in populations if is_mean_matched(norms[path])]:
        notes.append(f"{listed(matched)}: their means were matched, and their ratios need not be 1")
    if written := [path for path in populations if is_as_written(norms[path], "running_var") and path not in matched]:
        notes.append(f"{listed(written)}: repaired: they store what reestimate_ or correct_ wrote since training")
    notes += [f"{path}: {measurement.why_not(path)}" for path in norms if path not in populations]
    notes += [f"{path}: {what}" for path, what in beside.items()]
    notes += measurement.quantizers.notes
    notes += infinite_behind(plain, norms)
    notes += _on_weights(model, graph, norms, rows)
    if all(map(is_untrained, norms.values())) and not any(map(is_never_updated, norms.values())):
        rows = [replace(row, why="untrained") if row.folded > LARGEST else row for row in rows]
        notes.append(_UNTRAINED)
    report = ShiftReport(rows, notes, unsure=unsure, other_data=causes.other_data)
    return report.drawn_with(partial(outline, graph, type(plain).__name__) if len(graph) else None)


def _on_weights(
    model: nn.Module, graph: LayerGraph, norms: Mapping[str, Norm], rows: Iterable[ShiftRow]
) -> Iterator[str]:
    """What says that statistics are of other weights, where they are off by what is no noise."""
    yield from (f"{path}: {reason}" for path, reason in of_other_weights(graph, norms).items())
    stored = {row.path: row.parts.get("stored", 1.0) for row in rows}
    off = {path for path, part in stored.items() if not 1 / _NOTABLE < part < _NOTABLE}
    yield from (f"{path}: {reason}" for path, reason in left_behind(graph, norms).items() if path in off)
    yield from (f"statistics of other weights: {change}" for change in changes_of(model) if off)
