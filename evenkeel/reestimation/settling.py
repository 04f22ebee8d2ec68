"""Settling: measure every norm's input as it is once all norms before it store their new statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

from evenkeel.model.batches import length
from evenkeel.model.buffers import write_
from evenkeel.reestimation.reservoir import Reservoir
from evenkeel.reestimation.small_steps import step_by_step
from evenkeel.reestimation.sweeps import Doubt, Store, adjust, distance_between, is_repeated, settle_on
from evenkeel.statistics.batch_merging import Group
from evenkeel.statistics.measurement import Measurement
from evenkeel.statistics.pairs import Pairs
from evenkeel.statistics.population import KNOWN, Population

_FIRST, _GROWTH = 256, 8  # samples to settle on first; if to stop early, part of those seen that may be too many
_MOST = 8192  # samples of a group: more gain nothing, and leave a processor's caches
_ENOUGH = 64  # how many times more samples there may be than those that show how statistics change
_FEW = 128  # samples that show it at first where the first ones are like all
_MANY = 1024  # samples that show it where it is harder to know
_MOST_PART = 1 / 3  # of all samples, may show it; where more are needed, all are run again
_MARGIN = 1.2  # times as many samples as the doubts ask for
_FEWEST = 8  # batches that these must come from: samples of one may be alike
_MOST_SWEEPS, _SETTLED = 4, 1e-3  # of samples that stand for others: how often, and until what is left to change
_MOST_ALL, _STILL = 40, 1e-4  # the same, of all samples
_MOST_PAIRED = 3  # of all samples, where each is run with noise on, too
_MOST_PASSES, _MOST_PASSES_PAIRED = 12, 2  # the latter of data whose first samples are like all
# Doubts above which all data are run once more: if the first samples were not like the others, and if they were, when
# what is left is as large as what any sample leaves.
_NEAR, _NEAR_SHUFFLED = 3e-3, 2e-2
_NEAR_PAIRED = 3e-2  # no nearer than slopes are known
_AIM = 2e-3  # a doubt that is no larger needs no more samples
_ALIKE = 4.0  # squared, and in standard errors of samples drawn at random, how far the first ones may be from all
_PART, _UNTIL = 8, 1024  # the part of all samples that shows how many must be paired, and how many samples at most
_MORE = 2  # times as many samples, at least, are paired where these were not enough
_END: Any = object()


@dataclass(frozen=True)
class Settled:
    """What `settle` found.

    Attributes:
        populations: what each norm is fed, by path, in execution order.
        passes: how many times all the data were run.
        doubts: by path, how far settling may have left the norm off.
        restless: by path, how far what a norm is fed is from what it stores, where its input depends on that and no
            statistics are found that agree with themselves; relative to the mean variance.
        is_part: whether it stopped before the data ended.
        is_uneven: whether the first samples did not stand for the others.
        is_random: whether the model draws at random in eval mode, too.
        held: of how many samples the statistics are, if all could not be had once more; 0 if they are of all.
        entangled: norms settled by small steps, by path.
        left: how far these steps left what is stored from what is then measured, as
            `Population.mean_distance`.
    """

    populations: Mapping[str, Population]
    passes: int
    doubts: Mapping[str, Doubt]
    restless: Mapping[str, float]
    is_part: bool
    is_uneven: bool
    is_random: bool
    held: int
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
       again, as in 2 and 3, from what is stored by now, unless they agree with it. Where they are given only once,
       the statistics are those of the samples that were held, from all over the stream.

    Args:
        measurement: of the model, not yet used.
        batches: the batches.
        store: writes into a norm, by path, what it is to store of a population, from so many samples.
        max_batches: how many to use; all if None.
        tolerance: stop when the relative standard error of every norm's mean variance is within it.
    """
    held = Reservoir()
    is_done, is_part, near = _first_pass(measurement, batches, store, held, max_batches, tolerance)
    passes, used, ranks = 1, 0, measurement.ranks
    is_complete = not ranks.largest(not held.is_complete)
    source = held.pieces if is_complete else None if is_part or isinstance(batches, Iterator) else batches
    source = None if ranks.largest(source is None) else source
    doubts: dict[str, Doubt] = {}
    while not is_done or ranks.largest(measurement.limits.is_doubted):
        if near > _NEAR:
            doubts = _adjust_by_few(measurement, held, store, near)
        else:
            doubts, _ = _adjust(measurement, held, store, _usual(measurement, _FIRST if passes == 1 else _MANY))
        is_near = _worst(doubts) <= near or (near == _NEAR_PAIRED and passes == _MOST_PASSES_PAIRED)
        if (is_near and not ranks.largest(measurement.limits.is_doubted)) or measurement.is_random:
            break
        stored = measurement.populations
        if source is None or passes == _MOST_PASSES or not _pass_again(measurement, source, max_batches):
            used = _settle_on_held(measurement, held, store)
            used, doubts = 0 if is_complete else used, {}
            break
        passes += 1
        is_settled = distance_between(measurement.populations, stored) < _STILL
        if is_settled and not ranks.largest(measurement.limits.is_doubted):
            doubts = {}  # whatever few samples say: all data agree with what is stored
            break
    is_uneven = passes > 1 or used > 0
    entangled = measurement.entangled & measurement.populations.keys()
    left, restless = 0.0, dict[str, float]()
    if ranks.largest(bool(entangled)):
        stored = measurement.populations
        is_new = source is not None and _pass_again(measurement, source, max_batches)
        passes += is_new
        if is_new and distance_between(measurement.populations, stored) < _SETTLED:
            entangled = set()  # what reads them changes nothing, as a log does
        else:
            groups, is_all = _sample(measurement, held, _usual(measurement, _MANY))
            left, restless = step_by_step(measurement, groups, stored, store, is_all=is_all)
    is_random, found = measurement.is_random, measurement.populations
    return Settled(found, passes, doubts, restless, is_part, is_uneven, is_random, used, entangled, left)


def settle_paired(
    measurement: Measurement, batches: Iterable[Any], store: Store, *, max_batches: int | None = None
) -> Settled:
    """As `settle`, on as few of the samples, from all over the stream, as tell slopes well enough.

    A sample that is paired costs several times one that is not, and slopes are known from few: both of a pair are of
    the same data, so that what differs between samples is in both. A few show how many are needed. All are run where a
    slope is not known, or where the batches can be had only once.
    """
    measurement.wanted = _few
    while True:
        settled = settle(measurement, batches, store, max_batches=max_batches)
        pairs = [found for found in settled.populations.values() if isinstance(found, Pairs)]
        missing = max((found.missing(measurement.step) for found in pairs), default=0.0)
        if measurement.step == 1 or missing <= 1:
            return settled
        measurement.wanted = partial(min, measurement.samples * max(_MARGIN * missing, _MORE))


def _few(total: float) -> float:
    """How many of all samples show how many must be paired; all where these are not many."""
    part = min(total // _PART, _UNTIL)
    return part if part >= _FIRST else total


def _first_pass(
    measurement: Measurement,
    batches: Iterable[Any],
    store: Store,
    held: Reservoir,
    max_batches: int | None,
    tolerance: float | None,
) -> tuple[bool, bool, float]:
    """Steps 1 and 2.

    Returns:
        Whether nothing is left to be done; whether it stopped before the data ended; and how near the result must come.
    """
    measurement.limits.least, measurement.limits.most = _FIRST, _MOST if tolerance is None else _FIRST
    measurement.seen = lambda own, path, norm: store(path, own.populations[path], own.total)
    groups = measurement.groups(batches, max_batches)

    def add(group: Group | None) -> Group | None:
        group = measurement.add(group)
        for piece in group.held if group else ():
            held.add(piece, is_divisible=measurement.limits.is_divisible)
        return group

    first: list[Group | None] = []
    for group in groups:
        first.append(add(group))
        if measurement.samples >= _FIRST:
            break
    following = _END if (is_part := _is_within(measurement, tolerance)) else next(groups, _END)
    in_parts = len(first) > 1 or any(map(is_repeated, measurement.arrivals.values()))
    is_all = following is _END
    if in_parts or not is_all:
        measurement.try_for_noise(held.pieces)
    most, still = (_most_of_all(measurement), _STILL) if is_all else (_MOST_SWEEPS, _SETTLED)
    settle_on(measurement, first, store, most if in_parts else 0, still)
    at_first = {path: population.copy() for path, population in measurement.populations.items()}
    count = measurement.samples
    measurement.limits.least = 0
    settled = set(measurement.populations)
    measurement.seen = lambda own, path, norm: (
        None if path in settled else store(path, own.populations[path], own.total)
    )
    while following is not _END:
        measurement.arrivals = {}
        add(following)
        measurement.limits.most = min(_wanted(measurement, tolerance), _MOST)
        is_part = _is_within(measurement, tolerance)
        following = _END if is_part else next(groups, _END)
    groups.close()
    is_alike = _is_alike(at_first, measurement.populations, count)
    is_part = is_part or (max_batches is not None and max_batches < length(batches))
    near = _NEAR_SHUFFLED if measurement.pairing is None else _NEAR_PAIRED
    return is_all, is_part, near if is_alike else _NEAR


def _is_alike(first: Mapping[str, Population], everything: Mapping[str, Population], count: int) -> bool:
    """Whether so many samples differ from all no more than if they had been drawn from them at random."""
    for path, population in first.items():
        mean, variance = everything[path].mean, everything[path].variance
        least = variance.clamp_min(0.01 * variance.mean() + 1e-30)
        moved = ((population.mean - mean) ** 2 / least).mean()
        changed = ((population.variance + least).log() - (variance + least).log()).square().mean()
        if float(moved) * count > _ALIKE or float(changed) * count > 2 * _ALIKE:
            return False
    return True


def _pass_again(measurement: Measurement, source: Iterable[Any], max_batches: int | None) -> bool:
    """Run all data as norms are by now; false if they cannot be had once more."""
    before = measurement.populations, measurement.batches, measurement.samples
    limits, measurement.seen = measurement.limits, None
    limits.least, limits.most, limits.is_doubted = 0, _MOST, False
    for group in measurement.groups(source, None if isinstance(source, list) else max_batches, again=True):
        measurement.arrivals = {}
        measurement.add(group)
    if not measurement.populations:
        measurement.populations, measurement.batches, measurement.samples = before
        return False
    measurement.batches, measurement.samples = before[1:]
    return True


def _adjust_by_few(measurement: Measurement, held: Reservoir, store: Store, near: float) -> dict[str, Doubt]:
    """Step 3 with few samples, and with as many as the doubts then ask for, where these cost less than a second pass.

    Args:
        measurement: of all data.
        held: samples of them, of which the first are like all.
        store: as for `settle`.
        near: the doubt that will do.
    """
    base, total, usual = measurement.populations, measurement.samples, _usual(measurement, _FIRST)
    stored = [(buffer, buffer.clone()) for norm in measurement.norms.values() for buffer in norm.buffers()]
    best = _AIM if measurement.pairing is None else near
    is_small = total <= 2 * (usual if measurement.pairing is None else _FEW)  # pairs cost several times as much
    count: float = usual if is_small else max(_FEW, total // _ENOUGH)
    used = 0.0
    while True:
        before, (doubts, used) = used, _adjust(measurement, held, store, int(count))
        needed, wanted = (_MARGIN * used * (_worst(doubts) / aim) ** 2 for aim in (near, best))
        count, most = max(needed, min(wanted, usual)), _MOST_PART * total
        if math.isinf(count):  # too few batches reach a norm, as where each domain has its own
            count, most = min(_MORE * used, total), total
        if _worst(doubts) <= best or not before < used < count <= most:  # whole batches may be no more
            return doubts
        measurement.populations = base
        for buffer, value in stored:
            write_(buffer, value)


def _adjust(measurement: Measurement, held: Reservoir, store: Store, count: int) -> tuple[dict[str, Doubt], float]:
    """Step 3: move what was measured by the change that storing it makes in about so many samples.

    Returns:
        How far off that may be, by path, and how many samples these were.
    """
    groups, is_all = _sample(measurement, held, count)
    base = measurement.populations
    measurement.arrive(groups)
    if is_all:
        settle_on(measurement, groups, store, _most_of_all(measurement), _STILL)
        return {}, measurement.samples
    doubts, unrest = adjust(measurement, groups, base, store, _MOST_SWEEPS, _SETTLED)
    size = measurement.ranks.largest(sum(group.samples for group in groups if group)) * measurement.ranks.size
    left = math.sqrt(max(1 - size / max(measurement.samples, 1), 0))  # of the data, those that were not among them
    return {path: Doubt(max(left * d.channels, unrest), left * d.mean) for path, d in doubts.items()}, size


def _most_of_all(measurement: Measurement) -> int:
    """How often all samples are run at most until nothing changes."""
    if measurement.is_random:
        return _MOST_SWEEPS
    return _MOST_ALL if measurement.pairing is None else _MOST_PAIRED


def _worst(doubts: Mapping[str, Doubt]) -> float:
    return max((found.channels for found in doubts.values()), default=0.0)


def _usual(measurement: Measurement, fewest: int) -> int:
    """How many samples most often show how statistics change."""
    return max(fewest, min(4 * _FIRST, measurement.samples // 10), measurement.samples // _ENOUGH)


def _settle_on_held(measurement: Measurement, held: Reservoir, store: Store) -> int:
    """Settle on what is held as if it were all the data; how many samples these are."""
    measurement.limits.least, measurement.limits.most = _FIRST, _MOST
    groups = measurement.regrouped(held.pieces)
    measurement.arrive(groups)
    settle_on(measurement, groups, store, _MOST_ALL, _SETTLED)
    return int(measurement.ranks.total(sum(piece.samples for piece in held.pieces)))


def _sample(measurement: Measurement, held: Reservoir, count: int) -> tuple[list[Group | None], bool]:
    """About so many samples from all over the stream, grouped; and whether they are all that there are."""
    size, divisible = measurement.ranks.size, measurement.limits.is_divisible
    count = -(-count // size)
    pieces = held.sample(count, -(-_FEWEST // size), is_divisible=divisible)
    measurement.limits.least, measurement.limits.most = count, _MOST
    is_part = not held.is_complete or pieces is not held.pieces
    return measurement.regrouped(pieces), not measurement.ranks.largest(is_part)


def _wanted(measurement: Measurement, tolerance: float | None) -> float:
    """How many samples the next group of each rank may hold: half of what the errors so far say is left to measure."""
    if tolerance is None:
        return math.inf
    populations = measurement.populations.values()
    errors = [p.standard_error for p in populations if p.parts >= KNOWN]
    left = measurement.samples * ((max(errors) / tolerance) ** 2 - 1) if len(errors) == len(populations) else 0.0
    return max(_FIRST, measurement.samples / _GROWTH, min(left / 2, measurement.samples)) / measurement.ranks.size


def _is_within(measurement: Measurement, tolerance: float | None) -> bool:
    """Whether every norm's relative standard error is known, and within the tolerance."""
    populations = measurement.populations.values()
    return tolerance is not None and all(p.parts >= KNOWN and p.standard_error <= tolerance for p in populations)
