"""Small steps: statistics that norms can keep though what they are fed depends on what they store themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evenkeel.reestimation.sweeps import Change, Store
from evenkeel.statistics.batch_merging import Group
from evenkeel.statistics.measurement import Arrivals, Measurement
from evenkeel.statistics.population import Population

_STEPS = 60  # at most, and one more for every norm
_STEP, _LEAST = 0.5, 0.01  # of the way to what is measured, at first and at last
_PATIENCE = 6  # steps without a better one, after which they are halved
_SETTLED = 1e-3
_RESTLESS = 0.05  # what is left after all steps that is worth telling


def step_by_step(
    measurement: Measurement,
    groups: Sequence[Group | None],
    stored: dict[str, Population],
    store: Store,
    *,
    is_all: bool,
) -> tuple[float, dict[str, float]]:
    """Settle norms whose input depends on what they store themselves, as where it scales weights that are rounded.

    Storing what is measured would overshoot, and by rounding never come to rest. So every step goes a part of the way,
    a smaller one where this brings nothing nearer, and what is kept agrees best with what is measured after it.

    Args:
        measurement: of the model; its populations are of all data, with norms that store `stored`.
        groups: to measure by.
        stored: what the norms store, by path.
        store: as for `settle`.
        is_all: whether the groups are all the data.

    Returns:
        How far what is kept is from what is then measured at the norm where it is farthest, and, by path, where this is
        worth telling; as `Population.mean_distance`.
    """
    base, old = measurement.populations, Arrivals()
    best, target, nearest = stored, stored, math.inf
    step, since = _STEP, 0
    for _ in range(_STEPS + len(stored)):
        arrivals, found = measurement.arrive(groups), measurement.populations
        if not is_all:
            old = old or arrivals
            found = {path: Change(base[path], old[path], ()).after(arrivals[path]) for path in found if path in base}
        distance = max(_left(found, stored).values())
        if distance < nearest:
            best, target, nearest, since = stored, found, distance, 0
        elif (since := since + 1) == _PATIENCE:
            stored, found, step, since = best, target, step / 2, 0
        if nearest < _SETTLED or step < _LEAST:
            break
        stored = {path: stored[path].toward(population, step) for path, population in found.items()}
        _store_all(measurement, stored, store)
    _store_all(measurement, best, store)
    measurement.populations = best
    return nearest, {path: off for path, off in _left(target, best).items() if off > _RESTLESS}


def _left(found: dict[str, Population], stored: dict[str, Population]) -> dict[str, float]:
    """How far norms store something else than what was found, by path."""
    return {path: population.mean_distance(stored[path]) for path, population in found.items()}


def _store_all(measurement: Measurement, populations: dict[str, Population], store: Store) -> None:
    for path, population in populations.items():
        store(path, population, measurement.total)
