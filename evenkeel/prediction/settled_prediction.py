"""Settled predictions: what norms read once those before them are corrected, and which of them must not be."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import nn

from evenkeel.graph.kinds import Kind
from evenkeel.model.flags import FROZEN
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
    settled, left, compared, adds_up = set(given.norms.values()), dict[str, Doubt](), False, False
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
            adds_up = adds_up or _are_many_unproven(found, doubts)
            behind = _behind_unproven(found, given, doubts) if adds_up else {}
            if unproven or not behind:
                return replace(found, doubts=doubts | behind)
            left = left | behind
        settled = settled - {given.norms[path] for path in left}


def _moved(found: Prediction) -> list[str]:
    return [path for path, channels in found.channels.items() if abs(departure(channels)) > SMALL]


def _are_many_unproven(found: Prediction, doubts: Mapping[str, Doubt]) -> bool:
    """Whether more than a quarter of the norms that noise moves cannot be proven, those not counted that are wrong."""
    moved = [path for path in _moved(found) if not (path in doubts and doubts[path].wrong)]
    return sum(path in doubts for path in moved) > _MOST_UNPROVEN * len(moved)


def _behind_unproven(found: Prediction, given: PredictionInputs, doubts: Mapping[str, Doubt]) -> dict[str, Doubt]:
    """The other norms that noise moves, behind those that cannot be proven: what these get wrong adds up in them."""
    paths: dict[nn.Module | None, str] = {norm: path for path, norm in given.norms.items()}
    unproven = {path for path, doubt in doubts.items() if not doubt.wrong}
    free = {path for path in _moved(found) if path not in doubts and given.norms[path] not in given.repaired}
    behind: dict[str, Doubt] = {}
    for call in found.graph.of(Kind.NORM):
        before = next((paths[x.module] for x in found.graph.upstream(call) if paths.get(x.module) in unproven), None)
        path = paths.get(call.module)
        if before is not None and path in free:
            reason = f"behind {before!r}, and too many norms cannot be proven here: what they get wrong adds up"
            behind[path] = Doubt(reason, wrong=False)
    return behind


def _is_wrong(found: Prediction, path: str) -> bool:
    return path in found.doubts and found.doubts[path].wrong


def _beyond(found: Prediction, given: PredictionInputs, settled: Collection[Norm]) -> dict[str, Doubt]:
    """Norms whose variance is predicted to change by more than the dropouts before it can change it."""
    doubts = dict[str, Doubt]()
    frozen = {given.norms[path] for path, reason in given.distrusted.items() if reason == FROZEN}
    known = {*settled, *given.repaired, *frozen}
    for path, bound in found.bounds.items():
        before = [
            x.module
            for call in found.graph.of(Kind.NORM)
            if call.module is given.norms[path]
            for x in found.graph.upstream(call, until=Kind.NORM)
            if x.stores
        ]
        if all(norm in known for norm in before) and (reason := excess(found.channels[path], bound)):
            doubts[path] = Doubt(reason, wrong=True)
    return doubts


def _scattered(found: Prediction, given: PredictionInputs, plan: SamplingPlan) -> dict[str, Doubt]:
    """Norms to be corrected of which another seed says something else."""
    other = predict(given, replace(plan, seed=plan.seed + 1, elements=min(plan.elements, _ELEMENTS)))
    doubts: dict[str, Doubt] = {}
    for path, channels in found.channels.items():
        ratios = [departure(each, plan.match) for each in (channels, other.channels[path])]
        if given.norms[path] in plan.settled and abs(ratios[0] - ratios[1]) > _DISAGREEMENT:
            first, second = (f"x{math.exp(ratio):.2f}" for ratio in ratios)
            doubts[path] = Doubt(f"seeds disagree: its variance changes by {first} or {second}", wrong=True)
    return doubts
