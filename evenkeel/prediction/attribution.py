"""Attribution: which dropouts the difference between train and eval mode comes from, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from evenkeel.graph.kinds import Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph
from evenkeel.prediction.replicas import Energies

Shares = dict[Layer, float]
_NONE = Energies(0.0, 0.0, 0.0, 0.0)
_CHANCE = 1e-9  # of a signal's mean square: what replicas differ by for rounding alone


@dataclass(frozen=True)
class Cause:
    """What noise does to a signal, by the layer that made it.

    Attributes:
        noise: shares of the noise that the signal carries; they sum to 1, or there are none.
        damping: shares, in nats, of log(noise_free / shared): the signal lost to noise at activations and pools.
    """

    noise: Shares
    damping: Shares

    def shares(self, noise: float) -> Shares:
        """Share of each layer in |log(1 - noise)| plus damping, `noise` being noise over train variance."""
        lost = -math.log1p(-min(max(noise, 0.0), 1 - 1e-12))
        weighted = _sum([(self.noise, lost), (self.damping, 1.0)])
        whole = sum(weighted.values())
        return {layer: share / whole for layer, share in weighted.items()} if whole > 0 else {}


def causes_of(
    graph: LayerGraph, energies: Mapping[Layer, Energies], unresolved: Collection[Layer] = ()
) -> dict[Layer, Cause]:
    """What noise has done, and which dropouts made it, to what each layer reads.

    All noise is assumed to pass a layer alike, whatever dropout made it. Where signals meet, energies give the share of
    each, and at a dropout, how much is new.

    Args:
        graph: the graph.
        energies: what replicas of each layer's output share, and what they do not.
        unresolved: layers that make noise though they are no dropouts.
    """
    read: dict[Layer, Cause] = {}
    returned: dict[Layer, Cause] = {}
    for layer in graph:
        given = [energies.get(source, _NONE) for source in layer.inputs]
        read[layer] = _merged(layer, [returned[source] for source in layer.inputs], given)
        found = energies.get(layer)
        if found is not None:
            returned[layer] = _passed(layer, read[layer], given, found, _makers(layer, energies, returned, unresolved))
        else:  # of what has no rows of replicas, noise is known by its layers alone
            returned[layer] = Cause({layer: 1.0}, {}) if _is_noisy(layer) else read[layer]
    return read


def _is_noisy(layer: Layer) -> bool:
    return layer.kind in (Kind.DROPOUT, Kind.NOISE) or bool(layer.p)


def _makers(
    layer: Layer, energies: Mapping[Layer, Energies], returned: Mapping[Layer, Cause], unresolved: Collection[Layer]
) -> Shares:
    """What noise is due to that a layer does not find in its inputs: itself, or noise on the parameters it reads."""
    if _is_noisy(layer) or layer in unresolved:
        return {layer: 1.0}
    parametric = [returned[s].noise for s in layer.inputs if s not in energies and s.kind is not Kind.INPUT]
    shares = [noise for noise in parametric if noise]
    return _sum((noise, 1 / len(shares)) for noise in shares)


def _merged(layer: Layer, causes: list[Cause], given: list[Energies]) -> Cause:
    """What meets at a layer: noise by its energy, damping by the energy of the signal."""
    if layer.kind is Kind.GATE:  # of a product, noise counts by how much of its own factor it is
        sizes = [1 / max(energies.second, 1e-300) for energies in given]
    elif layer.kind is Kind.JOIN:  # every element of the one meets one of the other, however often that is repeated
        sizes = [1.0] * len(given)
    else:
        sizes = [float(math.prod(source.shape)) for source in layer.inputs]
    noise = _weights(size * energies.noise for size, energies in zip(sizes, given, strict=True))
    shared = _weights(size * energies.shared for size, energies in zip(sizes, given, strict=True))
    return Cause(
        _sum((cause.noise, weight) for cause, weight in zip(causes, noise, strict=True)),
        _sum((cause.damping, weight) for cause, weight in zip(causes, shared, strict=True)),
    )


def _passed(layer: Layer, cause: Cause, given: list[Energies], returned: Energies, makers: Shares) -> Cause:
    """What the layer makes of it: its makers add noise of their own, and noise damps the signal at a kink."""
    noise, damping = cause.noise, cause.damping
    if returned.noise <= _CHANCE * returned.second:
        noise = {}
    elif makers:
        added = layer.kind in (Kind.DROPOUT, Kind.NOISE)
        before = sum(e.noise for e in given) if added else returned.second * _noisiness(given)
        old = min(before / returned.noise, 1.0) if any(e.noise for e in given) else 0.0
        noise = _sum([(noise, old), (makers, 1 - old)])
    elif not noise:  # there was none before: the layer makes noise, for an unknown reason
        noise = {layer: 1.0}
    if layer.kind in (Kind.ACTIVATION, Kind.POOL, Kind.GATE) and len(given) == 1:
        damping = _sum([(damping, 1.0), (noise, max(_damping(returned) - _damping(given[0]), 0.0))])
    return Cause(noise, damping)


def _damping(energies: Energies) -> float:
    return math.log(energies.noise_free / energies.shared) if energies.shared > 0 and energies.noise_free > 0 else 0.0


def _noisiness(given: list[Energies]) -> float:
    return sum(e.noise for e in given) / max(sum(e.second for e in given), 1e-300)


def _weights(values: Iterable[float]) -> list[float]:
    listed = list(values)
    whole = sum(listed)
    return [value / whole if whole > 0 else 1 / len(listed) for value in listed]


def _sum(terms: Iterable[tuple[Shares, float]]) -> Shares:
    result: Shares = {}
    for shares, weight in terms:
        for layer, share in shares.items():
            if share * weight > 0:
                result[layer] = result.get(layer, 0.0) + share * weight
    return result
