"""Settling: measure every norm's input as it is once all norms before it store their new statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from evenkeel.model.batches import length
from evenkeel.model.norms import Norm
from evenkeel.statistics.batch_merging import Group
from evenkeel.statistics.measurement import Arrivals, Call, Measurement
from evenkeel.statistics.population import Population
from evenkeel.statistics.reservoir import Reservoir

_FIRST, _GROWTH = 256, 8  # samples to settle on first; if to stop early, part of those seen that may be too many
_MOST = 8192  # samples of a group: more gain nothing, and leave a processor's caches
_ENOUGH = 64  # how many times more samples there may be than those that show how statistics change
_FEWEST = 8  # batches that these must come from: samples of one may be alike
_KNOWN = 4  # parts of the data from which the variance between them says enough
_MOST_SWEEPS, _SETTLED = 4, 1e-3  # of samples that stand for others: how often, and until what is left to change
_MOST_ALL, _STILL = 40, 1e-4  # the same, of all samples
_MOST_PASSES = 12
_NEAR = 4e-3  # standard errors of what settling did not take into account, above which all data are run once more
_MANY = 1024  # samples that show how statistics change where that is harder to know
_STEPS, _STEP = 50, 0.2
_END: Any = object()
Store = Callable[[str, Population, float], None]  # path, population, of how many samples


@dataclass(frozen=True)
class Settled:
    """What `settle` found.

    Attributes:
        populations: what each norm is fed, by path, in execution order.
        passes: how many times all the data were run.
        unsettled: by path, how far variances or means may be off since the data were not run once more; in standard
            errors of the channel where it is most, relative to variances, or in deviations.
        is_part: whether it stopped before the data ended.
        is_uneven: whether the first samples did not stand for the others, so that the data were run again.
        entangled: norms settled by small steps, by path.
        left: how far these steps left what is stored from what is then measured, as `Population.distance`.
    """

    populations: Mapping[str, Population]
    passes: int
    unsettled: Mapping[str, float]
    is_part: bool
    is_uneven: bool
    entangled: Set[str]
    left: float


def settle(
    measurement: Measurement,
    batches: Iterable[Any],
    store: Store,
    *,
    max_batches: int | None = None,
    tolerance: float | None = None,
) -> Settled:
    """Measure each norm's input as it is once all norms before it store what is measured here.

    What reaches a norm depends on the statistics that the norms before it normalise by, and these are only known once
    all data were seen. Were every norm to use each batch's own, as in train mode, small batches would leave a bias that
    grows with depth. So:

    1. The first samples are run with every norm normalising by what it has seen so far, the present batch included. In
       one group, as most often, a norm has then seen all of them when it normalises, and the result is exact. If they
       had to run in several groups, or reach a norm more than once, they are run again until nothing changes: a norm
       then normalises by what it saw the last time, moved by the change so far.
    2. All others are run with norms normalising by that.
    3. Samples from all over the stream are run twice more, before and after: each norm normalises by the statistics of
       all data, moved by the change that the norms before it, normalising by those of all data by now, have made in
       these samples.
    4. How differently the batches among them answer to that change tells how far off the result may be. If the first
       samples were not like the others, as in data sorted by class or by length, that is too far, and all data are run
       again, as in 2 and 3, from what is stored by now. Where they are given only once, those that were held must do.

    Args:
        measurement: of the model, not yet used.
        batches: the batches.
        store: writes into a norm, by path, what it is to store of a population, from so many samples.
        max_batches: how many to use; all if None.
        tolerance: stop when the relative standard error of every norm's mean variance is within it.
    """
    held = Reservoir()
    is_done, is_part = _first_pass(measurement, batches, store, held, max_batches, tolerance)
    passes, ranks = 1, measurement.ranks
    is_complete = not ranks.largest(not held.is_complete)
    source = held.pieces if is_complete else None if is_part or isinstance(batches, Iterator) else batches
    source = None if ranks.largest(source is None) else source
    unsettled: dict[str, float] = {}
    while not is_done or ranks.largest(measurement.is_doubted):
        unsettled = _adjust(measurement, held, store, _FIRST if passes == 1 else _MANY)
        if not ranks.largest(measurement.is_doubted) and max(unsettled.values(), default=0.0) <= _NEAR:
            break
        if source is None or passes == _MOST_PASSES or not _pass_again(measurement, source, max_batches):
            break
        passes += 1
    is_uneven = passes > 1
    entangled = measurement.entangled & measurement.populations.keys()
    left = 0.0
    if ranks.largest(bool(entangled)):
        stored = measurement.populations
        is_new = source is not None and _pass_again(measurement, source, max_batches)
        passes += is_new
        if is_new and _distance(measurement.populations, stored) < _SETTLED:
            entangled = set()  # what reads them changes nothing, as a log does
        else:
            left = _step_by_step(measurement, held, stored, store)
    far = {path: off for path, off in unsettled.items() if off > _NEAR}
    return Settled(measurement.populations, passes, far, is_part, is_uneven, entangled, left)


def _first_pass(
    measurement: Measurement,
    batches: Iterable[Any],
    store: Store,
    held: Reservoir,
    max_batches: int | None,
    tolerance: float | None,
) -> tuple[bool, bool]:
    """Steps 1 and 2; whether nothing is left to be done, and whether it stopped before the data ended."""
    measurement.least, measurement.most = _FIRST, _MOST if tolerance is None else _FIRST
    measurement.seen = lambda own, path, norm: store(path, own.populations[path], own.total)
    groups = measurement.groups(batches, max_batches)

    def add(group: Group | None) -> Group | None:
        group = measurement.add(group)
        for piece in group.held if group else ():
            held.add(piece, is_divisible=measurement.is_divisible)
        return group

    first: list[Group | None] = []
    for group in groups:
        first.append(add(group))
        if measurement.samples >= _FIRST:
            break
    following = _END if (is_part := _is_within(measurement, tolerance)) else next(groups, _END)
    in_parts = len(first) > 1 or any(map(_is_repeated, measurement.arrivals.values()))
    is_all = following is _END
    _settle_on(measurement, first, store, *((_MOST_ALL, _STILL) if is_all else (_MOST_SWEEPS, _SETTLED)), in_parts)
    measurement.least = 0
    settled = set(measurement.populations)
    measurement.seen = lambda own, path, norm: (
        None if path in settled else store(path, own.populations[path], own.total)
    )
    while following is not _END:
        measurement.arrivals = {}
        add(following)
        measurement.most = min(_wanted(measurement, tolerance), _MOST)
        is_part = _is_within(measurement, tolerance)
        following = _END if is_part else next(groups, _END)
    groups.close()
    return is_all, is_part or (max_batches is not None and max_batches < length(batches))


def _pass_again(measurement: Measurement, source: Iterable[Any], max_batches: int | None) -> bool:
    """Run all data as norms are by now; false if they cannot be had once more."""
    before = measurement.populations, measurement.batches, measurement.samples
    measurement.least, measurement.most, measurement.seen, measurement.is_doubted = 0, _MOST, None, False
    for group in measurement.groups(source, None if isinstance(source, list) else max_batches, again=True):
        measurement.arrivals = {}
        measurement.add(group)
    if not measurement.populations:
        measurement.populations, measurement.batches, measurement.samples = before
        return False
    measurement.batches, measurement.samples = before[1:]
    return True


def _adjust(measurement: Measurement, held: Reservoir, store: Store, fewest: int) -> dict[str, float]:
    """Step 3: move what was measured by the change that storing it makes; how far off that may be, by path."""
    groups, is_all = _sample(measurement, held, fewest)
    base, measurement.populations = measurement.populations, {}
    measurement.arrivals, measurement.seen = {}, None
    for group in groups:
        measurement.run(group)
    if is_all:
        _settle_on(measurement, groups, store, _MOST_ALL, _STILL)
        return {}
    old = latest = measurement.arrivals
    result: Mapping[str, Population] = base
    in_parts = len(groups) > 1 or any(map(_is_repeated, old.values()))
    for _ in range(_MOST_SWEEPS if in_parts else 1):
        before, result = result, _sweep(measurement, groups, base, (old, latest), store)
        latest = measurement.arrivals
        if _distance(result, before) < _SETTLED:
            break
    measurement.populations = dict(result)
    size = measurement.ranks.largest(sum(group.samples for group in groups if group)) * measurement.ranks.size
    part = size / max(measurement.samples, 1)
    return {path: _doubt(old.get(path, ()), latest.get(path, ())) * math.sqrt(max(1 - part, 0)) for path in result}


def _sample(measurement: Measurement, held: Reservoir, fewest: int) -> tuple[list[Group | None], bool]:
    """Samples from all over the stream, grouped; and whether they are all that there are."""
    size, divisible = measurement.ranks.size, measurement.is_divisible
    count = -(-max(fewest, measurement.samples // _ENOUGH) // size)
    pieces = held.sample(count, -(-_FEWEST // size), is_divisible=divisible)
    measurement.least, measurement.most = count, _MOST
    is_part = not held.is_complete or pieces is not held.pieces
    return measurement.regrouped(pieces), not measurement.ranks.largest(is_part)


def _settle_on(
    measurement: Measurement,
    groups: Sequence[Group | None],
    store: Store,
    most: int,
    near: float,
    in_parts: bool = True,
) -> None:
    """Run groups that were run before until what arrives at the norms is what it was the last time."""
    for _ in range(most if in_parts else 0):
        before, arrivals = measurement.populations, measurement.arrivals
        _sweep(measurement, groups, before, (arrivals, arrivals), store)
        if _distance(measurement.populations, before) < near:
            break
    for path, population in measurement.populations.items():
        store(path, population, measurement.total)


def _sweep(
    measurement: Measurement,
    groups: Sequence[Group | None],
    base: Mapping[str, Population],
    earlier: tuple[Arrivals, Arrivals],
    store: Store,
) -> dict[str, Population]:
    """Run groups once more, norms normalising by a base moved by how what arrives has changed; return that.

    Args:
        measurement: of the model.
        groups: were run before.
        base: of all data.
        earlier: what arrived when norms were as when the base was measured, and what arrived the last time.
        store: as for `settle`.
    """
    old, latest = earlier
    changes = {path: _Change(found, old.get(path, ()), latest.get(path, ())) for path, found in base.items()}

    def seen(own: Measurement, path: str, norm: Norm) -> None:
        if path in changes:
            store(path, changes[path].after(own.arrivals[path]), own.total)

    measurement.populations, measurement.arrivals, measurement.seen = {}, {}, seen
    for group in groups:
        measurement.run(group)
    found = {path: change.after(measurement.arrivals.get(path, ())) for path, change in changes.items()}
    for path, population in found.items():
        store(path, population, measurement.total)
    return found


class _Change:
    """A population changed as the calls of a norm have changed, so far, against the same calls earlier.

    Calls still to come count as they were the last time: few calls alone would show noise.
    """

    def __init__(self, base: Population, old: Sequence[Call], latest: Sequence[Call]) -> None:
        self.base = base
        nothing = Population(pooled=base.pooled)
        self.old = reduce(_with_call, old, nothing)
        self.to_come = list(accumulate(reversed(latest), _with_call, initial=nothing))[::-1]  # by how many have come
        self.now, self.count = nothing, 0

    def after(self, calls: Sequence[Call]) -> Population:
        """The base after these calls, the first of which are known already."""
        self.now = reduce(_with_call, calls[self.count :], self.now)
        self.count = len(calls)
        left = self.to_come[min(self.count, len(self.to_come) - 1)]
        return self.base.moved(self.old, _with_call(self.now, (0, [(0, left.statistics)])))


def _with_call(population: Population, call: Call) -> Population:
    result = population.copy()
    result.add(call[1])
    result.merge()
    return result


def _is_repeated(calls: Sequence[Call]) -> bool:
    """Whether one rank called the norm more than once."""
    return len({rank for rank, _ in calls}) < len(calls)


def _distance(now: Mapping[str, Population], before: Mapping[str, Population]) -> float:
    return max((population.distance(before.get(path)) for path, population in now.items()), default=0.0)


def _doubt(old: Sequence[Call], new: Sequence[Call]) -> float:
    """How far off the change of a norm's statistics may be, from how differently its batches have changed.

    Standard errors, for the channel where they are largest, of the ratio of variances, and, in deviations, of the
    difference of means; infinite where too few batches tell.
    """
    before, after = _by_number(old), _by_number(new)
    if len(before) < _KNOWN or before.keys() != after.keys():
        return math.inf
    (n, mean, squares), (_, new_mean, new_squares) = _columns(before), _columns(after)
    parts = len(n) / (len(n) - 1)
    ratio = new_squares.sum(0) / squares.sum(0).clamp_min(1e-300)
    least = 0.01 * new_squares.sum(0).mean()  # channels that are all but dead tell little
    variance_error = (parts * (new_squares - ratio * squares).square().sum(0)).sqrt() / new_squares.sum(0).clamp_min(
        least
    )
    moves = n * (new_mean - mean - (n * (new_mean - mean)).sum(0) / n.sum())
    deviation = (new_squares.sum(0) / n.sum()).mean().sqrt()
    mean_error = (parts * moves.square().sum(0)).sqrt() / n.sum() / deviation.clamp_min(1e-300)
    return max(float(variance_error.max()), float(mean_error.max()))


def _by_number(calls: Sequence[Call]) -> dict[int, Population]:
    """What arrived of each batch."""
    found: dict[int, Population] = {}
    for _, parts in calls:
        for number, statistics in parts:
            found.setdefault(number, Population()).add([(number, statistics)])
    for population in found.values():
        population.pool()
    return found


def _columns(batches: Mapping[int, Population]) -> tuple[Tensor, Tensor, Tensor]:
    """Of all batches: counts (batches, 1), means (batches, channels), and squares about the mean of all, likewise."""
    found = [batches[number] for number in sorted(batches)]
    n = torch.tensor([[p.count] for p in found], dtype=torch.float64, device=found[0].mean.device)
    mean, variance = torch.stack([p.mean for p in found]), torch.stack([p.variance for p in found])
    return n, mean, (n - 1) * variance + n * (mean - (n * mean).sum(0) / n.sum()) ** 2


def _step_by_step(measurement: Measurement, held: Reservoir, stored: dict[str, Population], store: Store) -> float:
    """Settle norms whose input depends on what they store themselves, as where it scales weights that are rounded.

    Storing what is measured would overshoot, and by rounding never come to rest: of small steps, and smaller ones at
    the end, the one is kept that agrees best with what is measured after it. How well, is returned.
    """
    groups, is_all = _sample(measurement, held, _MANY)
    base, old = measurement.populations, Arrivals()
    best, nearest = stored, math.inf
    for number in range(_STEPS + len(stored)):
        measurement.populations, measurement.arrivals, measurement.seen = {}, {}, None
        for group in groups:
            measurement.run(group)
        found = measurement.populations
        if not is_all:
            old = old or measurement.arrivals
            found = {
                path: _Change(base[path], old[path], ()).after(measurement.arrivals[path])
                for path in found
                if path in base
            }
        distance = _distance(found, stored)
        if distance < nearest:
            best, nearest = stored, distance
        step = _STEP / (1 + max(0, number - len(stored) - _STEPS // 2) / 5)
        stored = {path: stored[path].toward(population, step) for path, population in found.items()}
        for path, population in stored.items():
            store(path, population, measurement.total)
    for path, population in best.items():
        store(path, population, measurement.total)
    measurement.populations = best
    return nearest


def _wanted(measurement: Measurement, tolerance: float | None) -> float:
    """How many samples the next group of each rank may hold: half of what the errors so far say is left to measure."""
    if tolerance is None:
        return math.inf
    populations = measurement.populations.values()
    errors = [p.standard_error for p in populations if p.parts >= _KNOWN]
    left = measurement.samples * ((max(errors) / tolerance) ** 2 - 1) if len(errors) == len(populations) else 0.0
    return max(_FIRST, measurement.samples / _GROWTH, min(left / 2, measurement.samples)) / measurement.ranks.size


def _is_within(measurement: Measurement, tolerance: float | None) -> bool:
    """Whether every norm's relative standard error is known, and within the tolerance."""
    populations = measurement.populations.values()
    return tolerance is not None and all(p.parts >= _KNOWN and p.standard_error <= tolerance for p in populations)
