"""Doubts: why a prediction for a norm is wrong, or right only if what is not known is as assumed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch

from evenkeel.graph.kinds import MAXIMA, MINIMA, NOISELESS, Kind, kind_of_function
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.prediction.anchors import Stored
from evenkeel.prediction.arrivals import Arrival
from evenkeel.prediction.attribution import Shares
from evenkeel.prediction.replica_recorder import ReplicaRecorder
from evenkeel.prediction.replicas import Channels, Energies
from evenkeel.statistics.pairs import Match
from evenkeel.theory.li2018 import dropout_noise

_NOISY = (Kind.DROPOUT, Kind.NOISE)
_GUESSED = 0.1  # share of a norm's shift that dropouts nothing is known of may cause
_EXCEEDED = 0.05  # share of a norm's channels in which noise may exceed what is stored
_NEARLY_ALL = 0.95  # share of a norm's variance that noise may have
_ROUNDING = 1e-5  # share of it that may be no noise at all
SMALL = 0.005  # log ratio of a shift that needs no cause
_WIDTH = 0.15  # in nats, between what a shift may be, up to which it counts as known
_HALF, _LITTLE = 0.5, 0.02  # of a predicted shift, what may be missing, and, in nats, what may be anyway
_BEYOND = 0.1  # in nats, by which a shift may pass its bound, for chance and for inputs that are correlated
_STEEPEST = 1.5  # how many times the noise that activations read is in what they return, at most; 1.47 for ReLU
_LEAST = 0.01  # of a stored variance, left for the signal at least
_MANY = 16  # values, of which the largest is no longer what random inputs make it


@dataclass(frozen=True)
class Doubt:
    """Why a prediction for a norm is not to be relied on.

    Attributes:
        reason: as a clause.
        wrong: whether it contradicts what is known; if not, it is right if what is not known is as assumed.
    """

    reason: str
    wrong: bool


def doubt_of(
    arrivals: Iterable[Arrival], call: Layer, shares: Shares, seen: ReplicaRecorder, graph: LayerGraph, loose: Loose
) -> Doubt | None:
    """Why the prediction for a norm is not to be relied on; None if it is.

    Args:
        arrivals: what reaches the norm.
        call: its last call.
        shares: of each dropout, in what noise does to it.
        seen: what the replicas showed.
        graph: the graph that they recorded.
        loose: the dropouts whose noise is of a strength that no norm fixes.
    """
    arrivals = list(arrivals)
    faults = [*_exceeded(arrivals), *_unknown(call, shares, seen, graph, arrivals[-1].channels)]
    if faults:
        return Doubt(faults[0], wrong=True)
    found = arrivals[-1].channels
    unproven = [
        *_loosely_fixed(arrivals, shares, loose),
        *_opaque(call, seen, graph, found),
        *_largest_of_many(call, seen, graph, found),
    ]
    return Doubt(unproven[0], wrong=False) if unproven else None


def _exceeded(arrivals: list[Arrival]) -> Iterable[str]:
    """More noise than there is variance, or no variance at all."""
    if not any(arrival.channels.train_var.any() for arrival in arrivals):
        yield "it stores a variance of 0 in all channels, as if nothing that reached it ever varied"
    exceeded = torch.stack([arrival.exceeded for arrival in arrivals]).any(0)
    if exceeded.sum() > _EXCEEDED * len(exceeded):
        count = f"{int(exceeded.sum())} of {len(exceeded)}"
        yield f"the noise predicted exceeds the variance stored in {count} channels"
    if (noise := _share(arrivals[-1].channels)) > _NEARLY_ALL:
        yield f"noise is {noise:.0%} of what it stores, and the rest is too small to separate"


def _unknown(call: Layer, shares: Shares, seen: ReplicaRecorder, graph: LayerGraph, found: Channels) -> Iterable[str]:
    """Noise that nothing is known of."""
    for layer in graph.upstream(call, until=Kind.NORM):
        if layer in seen.unresolved:
            yield f"the noise of {layer.label} in eval mode is unknown"
        if layer.kind is Kind.DROPOUT and layer.p is not None and layer.p >= 1:
            yield f"{layer.label} drops everything"
    for layer, share in shares.items() if _share(found) > _ROUNDING else ():
        if share > _GUESSED and (layer in seen.unresolved or (layer.kind not in _NOISY and not layer.p)):
            yield f"{_part(share, layer)}, whose eval output is unknown"


@dataclass(frozen=True)
class Loose:
    """Dropouts on signals of unknown strength: what random inputs make of it is a guess.

    Attributes:
        raw: those that act on a model's inputs as they are, which may be of any strength and mean.
        mixed: those that act on what weights or products make of inputs, or of a norm's output: how strong that is
            depends on how the features of the data are correlated.
    """

    raw: frozenset[Layer]
    mixed: frozenset[Layer]


def loose_dropouts(graph: LayerGraph, known: Mapping[str, Stored], rootless: Collection[Layer] = ()) -> Loose:
    """The dropouts whose noise is of a strength that no norm fixes.

    Args:
        graph: the graph.
        known: what is known of layers, by name (see `stored_before`).
        rootless: the layers that read parameters and no signal. Noise on a weight is as strong as the signals that the
            weight meets.
    """
    raw, mixed = set[Layer](), set[Layer]()
    for layer in graph:
        noisy = layer.kind is Kind.DROPOUT or layer.p or _is_scaled_noise(layer)
        if not noisy:
            continue
        if layer in rootless:
            if any(_meets_loose(met, graph, known, rootless) for met in graph.downstream(layer, until=_weighs)):
                mixed.add(layer)
            continue
        if any(source.name in known for source in layer.inputs):
            continue
        before = graph.upstream(layer, until=_fixes_strength)
        if any(x.kind is Kind.WEIGHT or (x.kind is Kind.GATE and len(x.inputs) > 1) for x in before):
            mixed.add(layer)
        elif any(x.kind is Kind.INPUT for x in before):
            raw.add(layer)
    return Loose(frozenset(raw), frozenset(mixed))


def _weighs(layer: Layer) -> bool:
    return layer.kind is Kind.WEIGHT


def _meets_loose(met: Layer, graph: LayerGraph, known: Mapping[str, Stored], rootless: Collection[Layer]) -> bool:
    """Whether a weight layer reads signals of a strength that no norm fixes."""
    signals = [x for x in met.inputs if x not in rootless] if _weighs(met) else []
    free = [x for x in signals if x.name not in known and x.kind is not Kind.NORM]
    before = {layer for x in free for layer in (x, *graph.upstream(x, until=_fixes_strength))}
    return any(layer.kind in (Kind.INPUT, Kind.WEIGHT) for layer in before)


def _is_scaled_noise(layer: Layer) -> bool:
    """Whether noise is as strong as a signal makes it; what is added as it is has a strength of its own."""
    return layer.kind is Kind.NOISE and kind_of_function(layer.function) is not Kind.JOIN


def _fixes_strength(layer: Layer) -> bool:
    return layer.kind is Kind.NORM


def _loosely_fixed(arrivals: list[Arrival], shares: Shares, loose: Loose) -> Iterable[str]:
    """Noise on signals of unknown strength, if it matters how strong they are."""
    if abs(departure(arrivals[-1].channels)) <= SMALL:
        return
    for layer, share in shares.items():
        if layer in loose.raw and share > _GUESSED:
            yield f"{_part(share, layer)}, on a signal whose variance no norm fixes"
    share = sum(share for layer, share in shares.items() if layer in loose.mixed)
    low, high = map(max, zip(*(bounds_of(arrival, share) for arrival in arrivals), strict=True))
    center = departure(arrivals[-1].channels)
    toward = low if center > 0 else high  # how much nearer to 1 the shift may be
    if high + low > _WIDTH or toward > max(_HALF * abs(center), _LITTLE):
        layer = max((x for x in shares if x in loose.mixed), key=shares.__getitem__)
        between = f"{math.exp(center - low):.2f} and {math.exp(center + high):.2f}"
        yield f"{_part(share, layer)} and such, of unknown strength: eval/train is between {between}"


def bounds_of(arrival: Arrival, share: float) -> tuple[float, float]:
    """How far below and above what is predicted a shift may be, in nats, averaged over channels.

    That a norm stores V and random inputs give it v says either that the data's signals are stronger by V / v all the
    way, and the noise on them with them, or that only their sum is, as features are correlated, and the noise is not.
    The truth is between: the loose part of the noise N is between N and N V / v.

    Args:
        arrival: what reaches the norm.
        share: of its noise, the part on signals of unknown strength.
    """
    found, stored = arrival.found, arrival.channels
    variance, noise = stored.train_var, stored.noise.clamp_min(0)
    factors = [
        variance / found.train_var.clamp_min(1e-300),
        (variance + stored.train_mean**2) / (found.train_var + found.train_mean**2).clamp_min(1e-300),
    ]
    most, least = torch.maximum(*factors).clamp_min(1), torch.minimum(*factors).clamp_max(1)
    left = [(variance - noise * (1 + share * (f - 1))).clamp_min(_LEAST * variance) for f in (most, least)]
    now = (variance - noise).clamp_min(_LEAST * variance)
    below, above = ((now / left[0]).log().mean(), (left[1] / now).log().mean())
    return float(below), float(above)


def _opaque(call: Layer, seen: ReplicaRecorder, graph: LayerGraph, found: Channels) -> Iterable[str]:
    """Operations that noise passes and that are not understood."""
    if abs(departure(found)) <= SMALL:
        return
    for layer in graph.upstream(call, until=Kind.NORM):
        if is_opaque(layer) and _is_noisy(seen.energies.get(layer), layer, graph):
            yield f"it rests on {layer.label}, which noise passes and which is not understood"


def _largest_of_many(call: Layer, seen: ReplicaRecorder, graph: LayerGraph, found: Channels) -> Iterable[str]:
    """Maxima over so many noisy values that they depend on how values that are close together go together."""
    if abs(departure(found)) <= SMALL:
        return
    for layer in graph.upstream(call, until=Kind.NORM):
        count = _pooled_by(layer)
        if count >= _MANY and _is_noisy(seen.energies.get(layer.inputs[0]), layer.inputs[0], graph):
            yield (
                f"it rests on {layer.label}, the largest of {count} noisy values each, which depends on how those of "
                "the data are correlated"
            )


def _pooled_by(layer: Layer) -> int:
    """How many values each maximum is of; 0 for all else."""
    is_maximum = layer.function in MAXIMA | MINIMA
    if not is_maximum or not layer.inputs or not layer.inputs[0].shape or not math.prod(layer.shape):
        return 0
    return math.prod(layer.inputs[0].shape) // math.prod(layer.shape)


def is_opaque(layer: Layer) -> bool:
    """Whether it is not known what a layer does to noise."""
    return layer.kind is Kind.OPAQUE and layer.function not in NOISELESS


def _is_noisy(energies: Energies | None, layer: Layer, graph: LayerGraph) -> bool:
    if energies is None:
        return any(x.kind in _NOISY or x.p for x in graph.upstream(layer))
    return energies.noise > _ROUNDING * energies.second


def _part(share: float, layer: Layer) -> str:
    return f"{share:.0%} of what noise does to it comes from {layer.label}"


def _share(found: Channels) -> float:
    return float(found.noise.mean() / found.train_var.mean())


def departure(found: Channels, match: Match = "variance") -> float:
    """Log of the variance to be stored over the one that training stored, of channel means."""
    return math.log(float(found.matched(match, 0.0)[1].mean() / found.train_var.mean()))


def excess(found: Channels, bound: float) -> str | None:
    """Why a norm's predicted change is more than its bound allows, if it is.

    Args:
        found: what the norm reads.
        bound: see `bounds_before`; upwards twice as much, as a product of two signals hands on rho^2 of what is shared.
    """
    change = departure(found)
    least, most = -bound, 2 * bound
    if least - _BEYOND <= change <= most + _BEYOND:
        return None
    limit = f"{math.exp(least if change < 0 else most):.2f} at most"
    return f"eval/train is predicted as {math.exp(change):.2f}, but the dropouts before it can make it {limit}"


def bounds_before(graph: LayerGraph, seen: ReplicaRecorder) -> dict[Layer, float]:
    """By layer, by how much in nats dropout can at most lower the variance in eval mode of what it returns.

    It is a bound of -log rho, rho being the share of a signal's variance that two replicas have in common. A dropout
    of noise s2 = p / (1 - p) adds to each of the signals that it multiplies `s2 E x^2`: `rho >= rho' / (1 + s2 q)`,
    q = E x^2 / Var x. Sums have no less in common than their terms, unless signals cancel that are correlated:
    `Var(w.x) >= sum_i w_i^2 Var x_i`. Of normal values, f hands on `sum_k a_k^2 rho^k / sum_k a_k^2`, a_k being its
    Hermite coefficients, which is convex and so no less than `1 - lambda (1 - rho)`, lambda = E f'^2 / Var f: 1.47 for
    ReLU, less where f is smooth, 2 for a product of two signals. What a norm hands on is measured, and so is what noise
    that is no dropout, or on parameters, makes of a signal; noise that damps one only makes its variance in eval mode
    larger.

    Args:
        graph: the graph that the replicas recorded.
        seen: what they showed.
    """
    bounds: dict[Layer, float] = {}
    for layer in graph:
        bound = max((bounds[source] for source in layer.inputs), default=0.0)
        read = seen.energies.get(layer.inputs[0]) if layer.inputs else None
        if _is_measured(layer, seen) and layer in seen.energies:
            bound = -math.log(max(1 - _noise_in(seen.energies[layer]), _LEAST))
        elif layer.p and layer.p < 1 and read is not None:
            variance = max(read.noise + read.shared, 1e-300)
            bound += math.log1p(dropout_noise(layer.p) * max(read.second / variance, 1.0))
        elif layer.kind is Kind.GATE and len(layer.inputs) > 1:
            bound *= 2
        elif layer.kind in (Kind.ACTIVATION, Kind.POOL, Kind.OPAQUE):
            bound *= _STEEPEST
        bounds[layer] = bound
    return bounds


def _is_measured(layer: Layer, seen: ReplicaRecorder) -> bool:
    """Whether no rate bounds the noise of what a layer returns."""
    on_parameters = not seen.rootless.isdisjoint(layer.inputs)
    return layer.kind in (Kind.NORM, Kind.NOISE) or on_parameters


def _noise_in(energies: Energies) -> float:
    """Share of noise in a signal's variance."""
    return energies.noise / max(energies.noise + energies.shared, 1e-300)
