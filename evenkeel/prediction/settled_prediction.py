"""Settled predictions: what norms read once those before them are corrected, and which of them must not be."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from evenkeel.graph.kinds import Kind
from evenkeel.model.norms import Norm
from evenkeel.prediction.doubts import SMALL, Doubt, departure, excess
from evenkeel.prediction.replica_recorder import SamplingPlan
from evenkeel.prediction.shift_prediction import Prediction, PredictionInputs, predict

_DISAGREEMENT = 0.1  # in nats, between the ratios that two seeds give
_MOST_UNPROVEN = 0.25  # of the norms that noise moves
_ELEMENTS = 1 << 26  # of the sample that a prediction is compared with


def settle(given: PredictionInputs, plan: SamplingPlan, *, unproven: bool) -> Prediction:
    """Predict what norms read once those before them that can be corrected are, and the others are as they were.

    Args:
        given: of the model.
        plan: how to sample; what is settled is found.
        unproven: whether norms whose prediction cannot be proven are corrected, too.

    Returns:
        The prediction; its doubts are those of norms that a second seed, or their bound, contradicts as well.
    """
    settled, left, beside, compared = set(given.norms.values()), dict[str, Doubt](), dict[str, Doubt](), False
    while True:
        now = replace(plan, settled=settled)
        found = predict(given, now)
        beyond = {path: doubt for path, doubt in _beyond(found, given, settled).items() if not _is_wrong(found, path)}
        doubts = found.doubts | beyond | left  # what was left once, those behind it were predicted with
        left = {path: doubt for path, doubt in doubts.items() if doubt.wrong or not unproven}
        if not compared and settled.isdisjoint(given.norms[path] for path in left):
            compared, scattered = True, _scattered(found, given, now)
            doubts, left = doubts | scattered, left | scattered
        if settled.isdisjoint(given.norms[path] for path in left):
            new = _beside_unproven(found, given, doubts, beside)
            if unproven or not new:
                return replace(found, doubts=doubts | new)
            beside, left = beside | new, left | new
        settled = settled - {given.norms[path] for path in left}


def _beside_unproven(
    found: Prediction, given: PredictionInputs, doubts: Mapping[str, Doubt], before: Mapping[str, Doubt]
) -> dict[str, Doubt]:
    """All other norms, if too many cannot be proven: each is fed by others, and what these get wrong adds up.

    Args:
        found: the prediction.
        given: of the model.
        doubts: all so far.
        before: those that this gave before, when norms were corrected that are now left.
    """
    wrong = {path for path, doubt in doubts.items() if doubt.wrong}
    moved = [path for path, channels in found.channels.items() if abs(departure(channels)) > SMALL]
    moved = [path for path in moved if path not in wrong and given.norms[path] not in given.repaired]
    unproven = [path for path in moved if path in doubts and path not in before]
    if not before and len(unproven) <= _MOST_UNPROVEN * len(moved):
        return {}
    reason = next((doubt.reason for doubt in before.values()), "") or (
        f"{len(unproven)} of {len(moved)} norms cannot be proven, such as {unproven[0]!r}; errors add up"
    )
    return {path: Doubt(reason, wrong=False) for path in moved if path not in doubts}


def _is_wrong(found: Prediction, path: str) -> bool:
    return path in found.doubts and found.doubts[path].wrong


def _beyond(found: Prediction, given: PredictionInputs, settled: Collection[Norm]) -> dict[str, Doubt]:
    """Norms whose variance is predicted to change by more than the dropouts before it can change it."""
    doubts, repaired = dict[str, Doubt](), given.repaired
    for path, bound in found.bounds.items():
        before = [
            x.module
            for call in found.graph.of(Kind.NORM)
            if call.module is given.norms[path]
            for x in found.graph.upstream(call, until=Kind.NORM)
            if x.stores
        ]
        if all(norm in settled or norm in repaired for norm in before) and (
            reason := excess(found.channels[path], bound)
        ):
            doubts[path] = Doubt(reason, wrong=True)
    return doubts


def _scattered(found: Prediction, given: PredictionInputs, plan: SamplingPlan) -> dict[str, Doubt]:
    """Norms to be corrected of which another seed says something else."""
    other = predict(given, replace(plan, seed=plan.seed + 1, elements=min(plan.elements, _ELEMENTS)))
    doubts: dict[str, Doubt] = {}
    for path, channels in found.channels.items():
        ratios = [departure(channels), departure(other.channels[path])]
        if given.norms[path] in plan.settled and abs(ratios[0] - ratios[1]) > _DISAGREEMENT:
            first, second = (f"x{math.exp(ratio):.2f}" for ratio in ratios)
            doubts[path] = Doubt(f"seeds disagree: its variance changes by {first} or {second}", wrong=True)
    return doubts
