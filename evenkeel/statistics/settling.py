"""Settling: measure every norm's input as it is once all norms before it store their new statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from itertools import accumulate
from typing import Any

from evenkeel.model.buffers import write_
from evenkeel.model.norms import Norm
from evenkeel.statistics.batch_merging import Group
from evenkeel.statistics.measurement import Arrivals, Call, Measurement
from evenkeel.statistics.population import Population

_FIRST, _GROWTH = 256, 8  # samples to settle on first; if to stop early, part of those seen that may be too many
_MOST = 8192  # samples of a group: more gain nothing, and leave a processor's caches
_ENOUGH = 64  # how many times more samples there may be than those that show how statistics change
_FEWEST = 4  # parts of the data from which the variance between them says enough to stop by
_MOST_SWEEPS, _SETTLED = 4, 1e-3
_END: Any = object()
Store = Callable[[Norm, Population], None]


def settle(
    measurement: Measurement,
    batches: Iterable[Any],
    max_batches: int | None = None,
    tolerance: float | None = None,
    *,
    stored: Sequence[str] = ("running_mean", "running_var"),
) -> dict[str, Population]:
    """Measure each norm's input as it is once all norms before it store what is measured here.

    What reaches a norm depends on the statistics that the norms before it normalise by, and these are only known once
    all data were seen. Were every norm to use each batch's own, as in train mode, small batches would leave a bias that
    grows with depth. So:

    1. The first samples are run with every norm normalising by what it has seen so far, the present batch included. In
       one group, as most often, a norm has then seen all of them when it normalises, and the result is exact. If they
       had to run in several groups, or reach a norm more than once, they are run again until nothing changes: a norm
       then normalises by what it saw the last time, moved by the change so far.
    2. All others are run with norms normalising by that.
    3. The first samples, or some of them, are run once more: each norm normalises by the statistics of all data, moved
       by the change that the norms before it, normalising by those of all data by now, have made in these samples.

    Step 3 is exact but for how differently these samples and all of them answer to a small change.

    Args:
        measurement: of the model, not yet used.
        batches: the batches.
        max_batches: how many to use; all if None.
        tolerance: stop when the relative standard error of every norm's mean variance is within it.
        stored: which statistics are going to be stored; of others, norms normalise by those that they have.

    Returns:
        What to store, by path, in execution order.
    """
    store = partial(_store, stored)
    measurement.least, measurement.most = _FIRST, _MOST if tolerance is None else _FIRST
    groups = measurement.groups(batches, max_batches)
    first: list[Group | None] = []
    measurement.seen = lambda own, path, norm: store(norm, own.populations[path])
    for group in groups:
        first.append(measurement.add(group))
        if measurement.samples >= _FIRST:
            break
    arrivals = _settle_first(measurement, first, store)
    measurement.least = 0
    settled, so_far = set(measurement.populations), (measurement.batches, measurement.samples)
    measurement.seen = lambda own, path, norm: None if path in settled else store(norm, own.populations[path])
    while not _is_within(measurement, tolerance) and (group := next(groups, _END)) is not _END:
        measurement.arrivals = {}
        measurement.add(group)
        measurement.most = min(_wanted(measurement, tolerance), _MOST)
    if measurement.batches == so_far[0]:
        return measurement.populations
    enough = max(2 * _FIRST, measurement.samples // _ENOUGH)
    if 2 * enough < so_far[1]:  # running some of them twice takes less time
        count = -(-enough // (len(first) * measurement.ranks.size))
        first = [group and group.head(count) for group in first]
        arrivals = _sample(measurement, first)
    return _sweep(measurement, first, measurement.populations, arrivals, store)


def _sample(measurement: Measurement, groups: Sequence[Group | None]) -> Arrivals:
    """What arrives at the norms of groups that were run before, as the norms are now."""
    populations, measurement.populations = measurement.populations, {}
    measurement.arrivals, measurement.seen = {}, None
    for group in groups:
        measurement.run(group)
    measurement.populations = populations
    return measurement.arrivals


def _settle_first(measurement: Measurement, groups: Sequence[Group | None], store: Store) -> Arrivals:
    """Run groups that were run before until what arrives at the norms is what it was the last time; return that."""
    in_parts = len(groups) > 1 or any(_is_repeated(calls) for calls in measurement.arrivals.values())
    for _ in range(_MOST_SWEEPS if in_parts else 0):
        before, arrivals = measurement.populations, measurement.arrivals
        _sweep(measurement, groups, before, arrivals, store)
        if max(p.distance(before.get(path)) for path, p in measurement.populations.items()) < _SETTLED:
            break
    for path, population in measurement.populations.items():
        store(measurement.norms[path], population)
    return measurement.arrivals


def _sweep(
    measurement: Measurement,
    groups: Sequence[Group | None],
    base: Mapping[str, Population],
    earlier: Arrivals,
    store: Store,
) -> dict[str, Population]:
    """Run groups once more, norms normalising by a base moved by how what arrives differs from earlier; return that."""
    changes = {path: _Change(population, earlier.get(path, ())) for path, population in base.items()}

    def seen(own: Measurement, path: str, norm: Norm) -> None:
        if path in changes:
            store(norm, changes[path].after(own.arrivals[path]))

    measurement.populations, measurement.arrivals, measurement.seen = {}, {}, seen
    for group in groups:
        measurement.run(group)
    return {path: change.after(measurement.arrivals.get(path, ())) for path, change in changes.items()}


class _Change:
    """A population changed as the calls of a norm have changed, so far, against the same calls earlier.

    Of calls still to come, what they were earlier counts on both sides: few calls alone would show noise.
    """

    def __init__(self, base: Population, earlier: Sequence[Call]) -> None:
        self.base = base
        nothing = Population(pooled=base.pooled)
        self.to_come = list(accumulate(reversed(earlier), _with_call, initial=nothing))[::-1]  # by how many have come
        self.now, self.count = nothing, 0

    def after(self, calls: Sequence[Call]) -> Population:
        """The base after these calls, the first of which are known already."""
        self.now = reduce(_with_call, calls[self.count :], self.now)
        self.count = len(calls)
        left = self.to_come[min(self.count, len(self.to_come) - 1)]
        return self.base.moved(self.to_come[0], _with_call(self.now, (0, [(0, left.statistics)])))


def _with_call(population: Population, call: Call) -> Population:
    result = population.copy()
    result.add(call[1])
    result.merge()
    return result


def _is_repeated(calls: Sequence[Call]) -> bool:
    """Whether one rank called the norm more than once."""
    return len({rank for rank, _ in calls}) < len(calls)


def _store(names: Sequence[str], norm: Norm, population: Population) -> None:
    population.pool()
    values = {"running_mean": population.mean, "running_var": population.variance}
    for name in names:
        write_(getattr(norm, name), values[name])


def _wanted(measurement: Measurement, tolerance: float | None) -> float:
    """How many samples the next group of each rank may hold: half of what the errors so far say is left to measure."""
    if tolerance is None:
        return math.inf
    populations = measurement.populations.values()
    errors = [p.standard_error for p in populations if p.parts >= _FEWEST]
    left = measurement.samples * ((max(errors) / tolerance) ** 2 - 1) if len(errors) == len(populations) else 0.0
    return max(_FIRST, measurement.samples / _GROWTH, min(left / 2, measurement.samples)) / measurement.ranks.size


def _is_within(measurement: Measurement, tolerance: float | None) -> bool:
    """Whether every norm's relative standard error is known, and within the tolerance."""
    populations = measurement.populations.values()
    return tolerance is not None and all(p.parts >= _FEWEST and p.standard_error <= tolerance for p in populations)
