"""Branches: the residual branches of a graph, found by how signals part and meet, never by the names of classes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from evenkeel.graph import Layer, LayerGraph
from evenkeel.kinds import Kind

_SHORTCUT_WEIGHTS = 1  # a projection; what has more on both sides is two branches


@dataclass(frozen=True)
class Branch:
    """A residual branch: weights on one way to a join or concatenation, and a shortcut beside them.

    Attributes:
        join: where the branch and its shortcut meet.
        layers: what lies on the branch alone, in execution order, without what only computes a gate (squeeze and
            excitation).
        shortcut: what lies on the shortcut alone; nothing if it is the identity.
    """

    join: Layer
    layers: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()

    @property
    def norms(self) -> tuple[Layer, ...]:
        """Its norms with running statistics."""
        return tuple(layer for layer in self.layers if layer.stores)

    @property
    def weights(self) -> tuple[Layer, ...]:
        """Its weight layers."""
        return tuple(layer for layer in self.layers if layer.kind is Kind.WEIGHT)

    @property
    def dropouts(self) -> tuple[Layer, ...]:
        """Its dropouts that drop, but for stochastic depth, which drops the branch itself."""
        return tuple(layer for layer in self.layers if layer.drops and not layer.drops_samples)

    @property
    def is_pre_activation(self) -> bool:
        """Whether its last norm comes before its last weight layer, as in pre-activation blocks, not after it."""
        return bool(self.norms) and self.layers.index(self.weights[-1]) > self.layers.index(self.norms[-1])


def branches_of(graph: LayerGraph) -> tuple[Branch, ...]:
    """The residual branches of a graph, in the order in which they end.

    A branch belongs to a join with a shortcut that is the identity or a projection, or to a concatenation with its own
    input (a dense block); in both, signals that parted meet again. What shrinks a map to grow it again (a U-Net) is no
    branch.

    Args:
        graph: the graph.

    >>> import torch, evenkeel as ek
    >>> from torch import nn
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.norm, self.drop, self.conv = nn.BatchNorm2d(3), nn.Dropout(0.1), nn.Conv2d(3, 3, 1)
    ...     def forward(self, x):
    ...         return x + self.conv(self.drop(self.norm(x)))
    >>> (branch,) = branches_of(ek.trace(Block(), torch.ones(2, 3, 4, 4)))
    >>> [layer.name for layer in branch.layers], branch.shortcut, branch.is_pre_activation
    (['norm', 'drop', 'conv'], (), True)
    """
    histories = _Histories(graph)
    found = (_branch(layer, histories) for layer in graph.of(Kind.JOIN, Kind.CONCAT))
    return tuple(branch for branch in found if branch)


def innermost(branches: Iterable[Branch], layer: Layer) -> Branch | None:
    """The smallest branch that a layer is on; None if it is on none."""
    around = [branch for branch in branches if layer in branch.layers]
    return min(around, key=lambda branch: len(branch.layers), default=None)


class _Histories:
    """What each layer's signal comes from, as sets of bits: a bit a layer, in execution order."""

    def __init__(self, graph: LayerGraph) -> None:
        self.layers = tuple(graph)
        self.of: dict[Layer, int] = {}
        for place, layer in enumerate(self.layers):
            self.of[layer] = 1 << place
            for source in layer.inputs:
                self.of[layer] |= self.of[source]

    def alone(self, layer: Layer) -> list[int]:
        """Of each of a layer's inputs, what it comes from and the others do not; nothing if they share no origin."""
        sources = list(dict.fromkeys(layer.inputs))
        shared = -1
        for source in sources:
            shared &= self.of[source]
        return [self.of[s] & ~_union(self.of[o] for o in sources if o is not s) for s in sources] if shared else []

    def members(self, bits: int) -> tuple[Layer, ...]:
        """The layers of a set."""
        found: list[Layer] = []
        while bits:
            low = bits & -bits
            found.append(self.layers[low.bit_length() - 1])
            bits ^= low
        return tuple(found)


def _branch(join: Layer, histories: _Histories) -> Branch | None:
    """The residual branch that ends at a join or concatenation, if there is one."""
    ways = [_main(histories.members(bits), histories) for bits in histories.alone(join)]
    ways.sort(key=_weights)
    if len(ways) < 2 or _weights(ways[-1]) <= _weights(ways[0]) or _is_hourglass(ways[-1]):
        return None
    others = ways[:-1]
    if join.kind is Kind.CONCAT and any(others):
        return None
    if any(_weights(way) > _SHORTCUT_WEIGHTS for way in others):
        return None
    return Branch(join, ways[-1], tuple(layer for way in others for layer in way))


def _main(layers: tuple[Layer, ...], histories: _Histories) -> tuple[Layer, ...]:
    """The layers without those that only compute a gate for another of them."""
    beside = 0
    for layer in layers:
        if layer.kind is Kind.GATE:
            ways = histories.alone(layer)
            if not all(ways):  # the gate is computed from what it acts on
                beside |= _union(ways)
    return tuple(layer for layer in layers if not histories.of[layer] & ~_past(layer, histories) & beside)


def _past(layer: Layer, histories: _Histories) -> int:
    return _union(histories.of[source] for source in layer.inputs)


def _weights(layers: Iterable[Layer]) -> int:
    return sum(layer.kind is Kind.WEIGHT for layer in layers)


def _is_hourglass(layers: tuple[Layer, ...]) -> bool:
    """Whether the maps are smaller in the midst of the layers than before and behind them."""
    sizes = [_positions(source.shape) for layer in layers[:1] for source in layer.inputs[:1]]
    sizes += [_positions(layer.shape) for layer in layers]
    return min(sizes) < min(sizes[0], sizes[-1])


def _positions(shape: tuple[int, ...]) -> int:
    return math.prod(shape[2:])


def _union(sets: Iterable[int]) -> int:
    result = 0
    for bits in sets:
        result |= bits
    return result
