"""measure_part: what reaches each norm on some of the data, to be merged with other parts elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from evenkeel.errors import EvenkeelError
from evenkeel.model.batches import Forward
from evenkeel.model.buffers import write_
from evenkeel.model.norms import Norm, pools_batch
from evenkeel.model.restoring import restored
from evenkeel.model.wrappers import unwrapped
from evenkeel.output.progress import Bar
from evenkeel.parts.fingerprints import of_statistics, of_weights
from evenkeel.parts.norm_sums import NormSums
from evenkeel.parts.parts import Part, Start
from evenkeel.reestimation.attempt import counter
from evenkeel.statistics.batch_merging import Group
from evenkeel.statistics.measurement import Measurement
from evenkeel.statistics.norm_buffers import divide, found_in, set_usable_, values_of


def measure_part(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    name: str = "",
    start: Start | None = None,
    forward: Forward | None = None,
    max_batches: int | None = None,
    samples: Callable[[Any], int] | int | None = None,
    progress: bool = False,
    memory: int = 0,
) -> Part:
    """Measure what reaches each norm on some of the data, dropout off, as sums that add up exactly to those of all.

    Each process measures its own data, without a word to the others, and `merge_parts_` makes statistics of what they
    found: the same bits in whatever order the parts are given, and wherever between two batches the data were cut, on
    processors and versions that compute alike. The model is restored bit for bit.

    Args:
        model: the model, the same for all parts.
        batches: an iterable, as for `reestimate_`.
        name: of these data, to be named by in reports; two parts of one name are refused.
        start: what norms store meanwhile: that of the last round's merge; what is found in the model if None.
        forward: how to run a batch, as for `reestimate_`.
        max_batches: how many batches to use; all if None.
        samples: how many samples a batch holds, where its tensors do not tell.
        progress: show a progress bar.
        memory: as for `reestimate_`, but 0: each batch runs by itself, so that how batches are merged has no say. More
            is faster with small batches, and bits then depend on where data were cut, about as float32 rounds.

    Returns:
        The part, to be saved or sent: sums by channel, no samples. Of very few samples they tell much about each.

    Raises:
        EvenkeelError: the start belongs to other weights.
        ModelError: the model has no norm with running statistics, or all of them are frozen.
        BatchError: the batches raised, ran short, were empty, not finite, or reached no norm; says which.

    >>> model, data = nn.BatchNorm1d(2), torch.randn(64, 2)
    >>> left, right = (measure_part(model, [half]) for half in data.split(32))
    >>> left.samples, left.fingerprint == right.fingerprint
    (32, False)
    """
    if (kind := type(start)) not in (Start, type(None)):
        raise EvenkeelError(f"start= is what a merge made, done.start, or what load_start reads, not {kind.__name__}")
    with unwrapped(model) as plain:
        free, untouched = divide(plain, leave=False)
        weights, found = of_weights(plain), of_statistics(plain)
        with restored(plain), torch.no_grad():
            count = counter(samples)
            measurement = Measurement(plain, free, forward=forward, memory=memory, count=count)
            set_usable_(free.values())
            if start is not None:
                write_start_(free, start, weights)
            stored = {path: values_of(norm) for path, norm in free.items()}
            with closing(Bar(batches, "measuring", total=max_batches)) as bar:
                sums, repeated = _sums(measurement, bar if progress else batches, max_batches)
        reasons = {path: measurement.why_not(path) for path in free if path not in sums}
    return Part(
        name=name,
        batches=measurement.batches,
        samples=measurement.samples,
        start=Start(weights, 0, stored) if start is None else replace(start, values=stored),
        found=found,
        sums=sums,
        untouched=untouched | reasons,
        entangled=tuple(sorted(measurement.entangled & sums.keys())),
        is_random=measurement.is_random,
        repeated=repeated,
    )


def write_start_(norms: Mapping[str, Norm], start: Start, weights: str) -> None:
    """Write a start into a model's norms, in place.

    Raises:
        EvenkeelError: it belongs to a model of other weights.
    """
    if start.weights != weights:
        raise EvenkeelError(
            "start= (--start) belongs to other weights than the model has: load the checkpoint that its parts were "
            "measured on"
        )
    for path, values in start.values.items():
        if path in norms:
            buffers = found_in(norms[path])
            if any(value.shape != buffer.shape for buffer, value in zip(buffers, values, strict=True)):
                raise EvenkeelError(
                    f"start= (--start) has {len(values[0])} channels of {path!r}, {len(buffers[0])} there"
                )
            for buffer, value in zip(buffers, values, strict=True):
                write_(buffer, value.to(buffer))


def in_order(passes: Iterable[Sequence[str]]) -> tuple[list[str], bool]:
    """Norms in the order in which passes reached them, of which each may have left some out; whether all agree in it.

    >>> in_order([("b", "c"), ("a", "b")]), in_order([("a", "b"), ("b", "a")])
    ((['a', 'b', 'c'], True), (['a', 'b'], False))
    """
    listed = list(dict.fromkeys(map(tuple, passes)))
    before: dict[str, dict[str, None]] = {path: {} for paths in listed for path in paths}
    for paths in listed:
        for first, second in pairwise(paths):
            before[second][first] = None  # a dict: a set of texts has another order in every process
    try:
        return list(TopologicalSorter(before).static_order()), True
    except CycleError:
        return list(before), False


def _sums(
    measurement: Measurement, batches: Iterable[Any], max_batches: int | None
) -> tuple[dict[str, NormSums], tuple[str, ...]]:
    """The sums of every norm reached, in execution order, and norms that are called several times a pass."""
    sums: dict[str, NormSums] = {}
    passes, repeated = dict[tuple[str, ...], None](), set[str]()
    first: Group | None = None
    for group in measurement.groups(batches, max_batches):
        measurement.arrivals = {}
        ran = measurement.add(group)
        if first is None and ran is not None:
            first = ran
            measurement.try_for_noise(ran.held[:1])
        passes[tuple(measurement.arrivals)] = None
        for path, calls in measurement.arrivals.items():
            repeated |= {path} if len(calls) > 1 else set()
            norm = measurement.norms[path]
            if path not in sums:
                sums[path] = NormSums(found_in(norm)[0], pooled=pools_batch(norm))
            sums[path].add(part for _, parts in calls for part in parts)
    paths, is_agreed = in_order(passes)
    return {path: sums[path] for path in paths}, tuple(sorted(repeated if is_agreed else sums))
