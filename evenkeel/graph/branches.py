"""Branches: the residual branches of a graph, found by how signals part and meet, not by the names of classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evenkeel.graph.kinds import CONVOLUTIONS, TRANSPOSES, Kind
from evenkeel.graph.layer_graph import Layer, LayerGraph

_SHORTCUT_WEIGHTS = 1  # a projection; what has more on both sides is two branches


@dataclass(frozen=True)
class Branch:
    """A residual branch: weights on one way to a join or concatenation, and a shortcut beside them.

    Attributes:
        join: where the branch and its shortcut meet.
        layers: those on the branch alone, in execution order, without those that only compute a gate (squeeze and
            excitation).
        shortcut: those on the shortcut alone; none if it is the identity.
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
    def is_pre_activation(self) -> bool:
        """Whether its last norm comes before its last weight layer, as in pre-activation blocks, not after it."""
        return bool(self.norms) and self.layers.index(self.weights[-1]) > self.layers.index(self.norms[-1])


def branches_of(graph: LayerGraph) -> tuple[Branch, ...]:
    """The residual branches of a graph, in the order in which they end.

    A branch ends in a join, beside a shortcut that is the identity, a pool or a projection, or in a concatenation with
    its own input (a dense block). There may be several beside a shortcut without weights. What makes maps smaller and
    larger again (a U-Net) is no branch.

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
    joins = (layer for layer in graph.of(Kind.JOIN, Kind.CONCAT) if not _is_partial(layer))
    return tuple(branch for join in joins for branch in _branches(join, histories))


def innermost(branches: Iterable[Branch], layer: Layer) -> Branch | None:
    """The smallest branch that a layer is on; None if it is on none."""
    around = [branch for branch in branches if layer in branch.layers]
    return min(around, key=lambda branch: len(branch.layers), default=None)


class _Histories:
    """The layers that each layer's signal comes from, as sets of bits, one a layer, in execution order."""

    def __init__(self, graph: LayerGraph) -> None:
        self.layers = tuple(graph)
        self.of: dict[Layer, int] = {}
        self._places = {layer: place for place, layer in enumerate(self.layers)}
        for layer in self.layers:
            self.of[layer] = self.bit(layer)
            for source in layer.inputs:
                self.of[layer] |= self.of[source]

    def alone(self, sources: Sequence[Layer]) -> list[int]:
        """What each signal comes from and the others do not; nothing if they share no origin."""
        shared = -1
        for source in sources:
            shared &= self.of[source]
        return [self.of[s] & ~_union(self.of[o] for o in sources if o is not s) for s in sources] if shared else []

    def bit(self, layer: Layer) -> int:
        """The set of one layer."""
        return 1 << self._places[layer]

    def members(self, bits: int) -> tuple[Layer, ...]:
        """The layers of a set."""
        found: list[Layer] = []
        while bits:
            low = bits & -bits
            found.append(self.layers[low.bit_length() - 1])
            bits ^= low
        return tuple(found)


def gating(graph: LayerGraph) -> frozenset[Layer]:
    """The layers that only compute a gate for a signal that they read, as those of squeeze and excitation do."""
    histories = _Histories(graph)
    return frozenset(histories.members(_union(_beside(gate, histories) for gate in graph.of(Kind.GATE))))


def _branches(join: Layer, histories: _Histories) -> list[Branch]:
    """The residual branches that end in a join or concatenation."""
    ways = [_main(histories.members(bits), histories) for bits in histories.alone(_meeting(join))]
    ways.sort(key=_weights)
    if len(ways) < 2 or _weights(ways[-1]) <= _weights(ways[0]):
        return []
    if join.kind is Kind.CONCAT and (all(ways) or len([way for way in ways if way]) > 1):
        return []  # no identity beside one branch
    branches = ways[-1:] if _weights(ways[0]) else [way for way in ways if _weights(way)]
    others = ways[: -len(branches)]
    if any(_weights(way) > _SHORTCUT_WEIGHTS for way in others):
        return []
    shortcut = tuple(layer for way in others for layer in way)
    return [Branch(join, way, shortcut) for way in branches if not _is_hourglass(way, histories)]


def _meeting(join: Layer) -> list[Layer]:
    """The signals that meet in a join; of sums of sums, all terms."""
    sources: list[Layer] = []
    for source in join.inputs:
        sources += _meeting(source) if join.kind is Kind.JOIN and _is_partial(source) else [source]
    return list(dict.fromkeys(sources))


def _is_partial(layer: Layer) -> bool:
    """Whether a layer is a sum that only goes into another sum."""
    return layer.kind is Kind.JOIN and [user.kind for user in layer.users] == [Kind.JOIN]


def _main(layers: tuple[Layer, ...], histories: _Histories) -> tuple[Layer, ...]:
    """The layers without those that only compute a gate for another of them."""
    beside = _union(_beside(layer, histories) for layer in layers if layer.kind is Kind.GATE)
    return tuple(layer for layer in layers if not histories.bit(layer) & beside)


def _beside(gate: Layer, histories: _Histories) -> int:
    """What computes a gate from what it acts on; nothing if both factors are computed."""
    ways = histories.alone(list(dict.fromkeys(gate.inputs)))
    return 0 if all(ways) else _union(ways)


def _weights(layers: Iterable[Layer]) -> int:
    return sum(layer.kind is Kind.WEIGHT for layer in layers)


def _is_hourglass(layers: tuple[Layer, ...], histories: _Histories) -> bool:
    """Whether all goes through a convolution or pool whose map is smaller than those at both ends of the layers."""
    dims = len(layers[-1].shape)
    maps = [x for x in layers if (x.kind is Kind.POOL or x.function in CONVOLUTIONS) and len(x.shape) == dims]
    size = min(map(_positions, _ends(layers, maps)))
    return any(_positions(x) < size and not _is_bypassed(x, layers, histories) for x in maps)


def _ends(layers: tuple[Layer, ...], maps: Sequence[Layer]) -> tuple[Layer, Layer]:
    """What layers begin and end with, as maps see it: where dimensions change places before them, or behind."""
    turns = [layers.index(x) for x in layers if x.function in TRANSPOSES] if maps else []
    first, last = (layers.index(maps[0]), layers.index(maps[-1])) if maps else (0, len(layers))
    begin = maps[0] if any(turn < first for turn in turns) else layers[0]
    end = maps[-1] if any(turn > last for turn in turns) else layers[-1]
    return next(iter(begin.inputs), begin), end  # a branch may begin with an input of its own


def _is_bypassed(middle: Layer, layers: tuple[Layer, ...], histories: _Histories) -> bool:
    """Whether a signal gets from one end of the layers to the other around one of them."""
    own, around = _union(map(histories.bit, layers)), set[Layer]()
    for layer in layers:
        if layer is not middle and any(x in around or not histories.of[x] & own for x in layer.inputs):
            around.add(layer)
    return layers[-1] in around


def _positions(layer: Layer) -> int:
    return math.prod(layer.shape[2:])


def _union(sets: Iterable[int]) -> int:
    result = 0
    for bits in sets:
        result |= bits
    return result
