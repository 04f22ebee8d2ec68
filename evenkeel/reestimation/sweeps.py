"""Sweeps: groups run once more, every norm normalising by how what arrives there has changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from evenkeel.model.norms import Norm
from evenkeel.statistics.batch_merging import Group
from evenkeel.statistics.measurement import Arrivals, Call, Measurement
from evenkeel.statistics.population import KNOWN, Population, by_batch

Store = Callable[[str, Population, float], None]  # path, population, of how many samples


class Doubt(NamedTuple):
    """How far off the change of a norm's statistics may be, in standard errors.

    Attributes:
        channels: of channels' variances, relative, or of their means, in deviations, whichever is larger: root mean
            square over channels.
        mean: of the mean variance, relative.
    """

    channels: float
    mean: float


def settle_on(
    measurement: Measurement,
    groups: Sequence[Group | None],
    store: Store,
    most: int,
    near: float,
) -> None:
    """Run groups that were just run, at most so many times, until what arrives at the norms is what it was before."""
    for _ in range(most):
        before, arrivals = measurement.populations, measurement.arrivals
        sweep(measurement, groups, before, (arrivals, arrivals), store)
        if distance_between(measurement.populations, before) < near:
            break
    for path, population in measurement.populations.items():
        store(path, population, measurement.total)


def sweep(
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
    changes = {path: Change(found, old.get(path, ()), latest.get(path, ())) for path, found in base.items()}

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


def adjust(
    measurement: Measurement,
    groups: Sequence[Group | None],
    base: Mapping[str, Population],
    store: Store,
    most: int,
    near: float,
) -> tuple[dict[str, Doubt], float]:
    """Move a base by the change that storing it makes in groups that were just run, which stand for all the data.

    Args:
        measurement: of the model; its populations are the result.
        groups: were just run, with norms as they were when the base was measured.
        base: of all data.
        store: as for `settle`.
        most: sweeps, at most, until what is left to change is below `near`.
        near: as for `settle_on`.

    Returns:
        How far off the change may be, by path, and what was left to change, as `distance_between`.
    """
    old = latest = measurement.arrivals
    result, unrest = dict(base), 0.0
    in_parts = len(groups) > 1 or any(map(is_repeated, old.values()))
    for _ in range(most if in_parts and not measurement.is_random else 1):
        before, result = result, sweep(measurement, groups, base, (old, latest), store)
        latest = measurement.arrivals
        unrest = distance_between(result, before) if in_parts else 0.0
        if unrest < near:
            break
    measurement.populations = result
    return {path: doubt(old.get(path, ()), latest.get(path, ())) for path in result}, unrest


class Change:
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
    return population.with_call(call[1])


def is_repeated(calls: Sequence[Call]) -> bool:
    """Whether one rank called the norm more than once."""
    return len({rank for rank, _ in calls}) < len(calls)


def distance_between(now: Mapping[str, Population], before: Mapping[str, Population]) -> float:
    """The largest of the norms' distances (see `Population.distance`)."""
    return max((population.distance(before.get(path)) for path, population in now.items()), default=0.0)


def doubt(old: Sequence[Call], new: Sequence[Call]) -> Doubt:
    """How far off the change of a norm's statistics may be, from how differently its batches have changed.

    Infinite where too few batches tell.
    """
    before, after = _numbers(old), _numbers(new)
    if len(before) < KNOWN or before != after:
        return Doubt(math.inf, math.inf)
    (n, mean, squares), (_, new_mean, new_squares) = _columns(old), _columns(new)
    total = n.sum()
    of_mean = _ratio_error(squares.mean(1, keepdim=True), new_squares.mean(1, keepdim=True), 0.0)
    of_variances = _ratio_error(squares, new_squares, 0.01)  # channels that are all but dead tell little
    moves = n * (new_mean - mean - (n * (new_mean - mean)).sum(0) / total)
    variance = (new_squares.sum(0) / total).mean().clamp_min(1e-300)
    of_means = len(n) / (len(n) - 1) * moves.square().sum(0) / total**2 / variance
    return Doubt(max(float(e.square().mean().sqrt()) for e in (of_variances, of_means.sqrt())), float(of_mean))


def _ratio_error(old: Tensor, new: Tensor, least: float) -> Tensor:
    """The standard error of how the sum over batches has changed, relative to the new one, by column."""
    whole = new.sum(0)
    residuals = new - whole / old.sum(0).clamp_min(1e-300) * old
    error = (len(old) / (len(old) - 1) * residuals.square().sum(0)).sqrt()
    return error / whole.clamp_min(max(least * float(whole.mean()), 1e-300))


def _numbers(calls: Sequence[Call]) -> set[int]:
    return {number for _, parts in calls for number, statistics in parts if statistics.size}


def _columns(calls: Sequence[Call]) -> tuple[Tensor, Tensor, Tensor]:
    """Of all batches: counts (batches, 1), means (batches, channels), and squares about the mean of all, likewise."""
    numbers, statistics = zip(*(part for _, parts in calls for part in parts if part[1].size), strict=True)
    counts, means, variances = zip(*statistics, strict=True)
    mean, variance = torch.stack(means).double(), torch.stack(variances).double()
    n = torch.tensor(counts, dtype=torch.float64, device=mean.device)[:, None]
    squares = (n - 1) * variance + n * (mean - (n * mean).sum(0) / n.sum()) ** 2
    rows = by_batch(numbers, torch.cat([n, n * mean, squares], 1))
    count, (sums, squares) = rows[:, :1], rows[:, 1:].tensor_split(2, dim=1)
    return count, sums / count, squares
